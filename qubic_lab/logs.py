"""The form of log lines: texts for people or JSON for machines, with the id of the request that a line is about."""

import json
import logging
import sys
from datetime import UTC, datetime

from qubic_lab.tracing import ids

LEVELS = ("debug", "info", "warning", "error")


class TextFormatter(logging.Formatter):
    """A line for people; a request's id stands at its end."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line, name = super().format(record), ids().get("request_id", "")
        return f"{line} [{name}]" if name and name not in line else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and what is known of the request."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **ids(),
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False)


def configure(level: int, form: str = "text", *, timed: bool = False) -> None:
    """Let this process log to stderr from a level on, as text or json; texts are `timed` where nothing else is.

    What was configured before goes on: a test may catch logs.
    """
    text = f"{'%(asctime)s ' if timed else ''}%(levelname)s %(name)s: %(message)s"
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter(text))
    logging.basicConfig(level=level, handlers=[handler])


def write(level: int, logger: str, text: str, form: str = "text") -> None:
    """Write a line to stderr whatever the level of the log, as text or json: it is meant for whoever started this."""
    line = logging.LogRecord(logger, level, "", 0, text, None, None)
    shown = JsonFormatter().format(line) if form == "json" else f"qubic-lab: {text}"
    print(shown, file=sys.stderr, flush=True)


def level_of(name: str) -> int:
    """Return the number of one of LEVELS."""
    return logging.getLevelNamesMapping()[name.upper()]
