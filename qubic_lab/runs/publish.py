"""A week's page for others: copied to a folder or bucket, announced by a webhook. The page stays if that fails."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from qubic_lab.errors import QubicLabError
from qubic_lab.oracle.alerts.delivery import RejectedError, RetryableError, Webhook
from qubic_lab.runs.language import LANGUAGES
from qubic_lab.runs.week_report import WeekReport
from qubic_lab.settings import settings

ATTEMPTS = 4
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""The pause after a failed attempt, which doubles, unless the receiver asks for a longer one."""


def publish(page: Path, url: str) -> str:
    """Copy a page and what is beside it to `<url>/<week>`, the index of weeks to `url`; return the page's address.

    `url` is a folder, or what fsspec knows, such as s3://bucket/pages or gs://bucket. A file is there whole or not at
    all, and the page comes after the files that it links to, so that readers see an old page or a new one.

    Raises:
        QubicLabError: the address cannot be written.
    """
    import fsspec

    folder = page.parent.parent if page.parent.name in LANGUAGES else page.parent  # the week's
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    files.sort(key=lambda file: file == page)
    index = folder.parent / page.name
    try:
        system, root = fsspec.url_to_fs(url)
        for file in [*files, *([index] if index.is_file() else [])]:
            target = f"{root.rstrip('/')}/{file.relative_to(folder.parent).as_posix()}"
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            _put(system, target, file.read_bytes())
        return str(system.unstrip_protocol(f"{root.rstrip('/')}/{page.relative_to(folder.parent).as_posix()}"))
    except Exception as error:  # each kind of storage raises errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise QubicLabError(f"{page} is written, but not published to {url}: {reason}") from error


def _put(system: Any, target: str, content: bytes) -> None:
    """Write a file at once: buckets do so themselves, in a folder it is renamed."""
    if "file" in (system.protocol, *system.protocol):
        whole = Path(target)
        unfinished = whole.with_name(f".{whole.name}.part")
        unfinished.write_bytes(content)
        unfinished.replace(whole)
    else:
        system.pipe_file(target, content)


def announcer(url: str | None) -> Webhook | None:
    """Return the webhook of `--announce`, or of QUBIC_LAB_ANNOUNCE_WEBHOOK; None: none is set.

    What is sent is signed if QUBIC_LAB_ANNOUNCE_SECRET is set.

    Raises:
        InputError: an address that is none, or without TLS beyond this host; it is not shown.
    """
    given = settings()
    secret = given.announce_secret
    if url is not None:
        return Webhook(SecretStr(url), secret, name="--announce")
    if given.announce_webhook is None:
        return None
    return Webhook(given.announce_webhook, secret, name="QUBIC_LAB_ANNOUNCE_WEBHOOK")


def announce(told: Mapping[str, Any], webhook: Webhook, pause: Callable[[float], None] = time.sleep) -> None:
    """Post what `message` returned, a few times if the receiver fails.

    Raises:
        QubicLabError: it was refused, or failed each time.
    """
    page, body = told["page"], json.dumps(told, ensure_ascii=False).encode()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            webhook.post(sha256(body).hexdigest(), body)
            return
        except RejectedError as error:
            raise QubicLabError(f"{page} is written, but not announced: the webhook {error}") from None
        except RetryableError as error:
            if attempt == ATTEMPTS:
                what = f"the webhook {error}, {ATTEMPTS} times"
                raise QubicLabError(f"{page} is written, but not announced: {what}") from None
            pause(min(max(FIRST_PAUSE_S * 2.0 ** (attempt - 1), error.wait_s), LONGEST_PAUSE_S))


def message(report: WeekReport, page: str) -> dict[str, Any]:
    """Return what is announced: `text` for a chat, and the same as values."""
    rows = [row for row in report.rows if row.measurable]
    failing, verdicts = [row.id for row in rows if row.verdict == "fail"], Counter(row.verdict for row in rows)
    named = f" ({', '.join(failing)})" if failing else ""
    text = f"Qubic Lab, week {report.week}: {verdicts['pass']} criteria pass, {len(failing)} fail{named}. {page}"
    return {"text": text, "week": report.week, "page": page, "verdicts": dict(verdicts), "failing": failing}
