"""The index of an ISO week (UTC), `runs/weeks/2026-W48.json`: its runs and the project's status."""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from qubic_lab.errors import InputError
from qubic_lab.runs.status import Status
from qubic_lab.runs.store import locked, run_folder, runs_folder, write_atomically


@dataclass(frozen=True)
class Entry:
    """One of the `of` runs of a study in a batch; `batch` is the moment that the batch began (ISO, UTC)."""

    study: str
    key: str
    batch: str
    of: int
    reused: bool
    failed: bool

    @property
    def folder(self) -> Path:
        """Where the run lies; a failed one that succeeded later lies where it succeeded."""
        succeeded = run_folder(self.study, self.key)
        return run_folder(self.study, self.key, failed=True) if self.failed and not succeeded.is_dir() else succeeded


def week_of(moment: datetime) -> str:
    """Return the ISO week of a moment, as in 2026-W48."""
    year, week, _ = moment.isocalendar()
    return f"{year}-W{week:02d}"


def week_of_text(moment_utc: str) -> str:
    """Return the ISO week of a moment that is given as ISO text."""
    return week_of(datetime.fromisoformat(moment_utc))


def days_of(week: str) -> tuple[date, date]:
    """Return a week's Monday and Sunday.

    Raises:
        ValueError: the text is not a week that exists.
    """
    if not re.fullmatch(r"\d{4}-W\d{2}", week):
        raise ValueError(week)
    monday = date.fromisocalendar(int(week[:4]), int(week[6:]), 1)
    return monday, monday + timedelta(days=6)


def add_entry(week: str, entry: Entry) -> None:
    """Add a run to a week's index."""
    with locked(_folder()):
        _write_index(week, read_status(week), [*read_entries(week), entry])


def keep_status(week: str, status: Status) -> None:
    """Keep with a week how the project stands in it, in place of what was kept before."""
    with locked(_folder()):
        _write_index(week, status, read_entries(week))


def read_entries(week: str) -> tuple[Entry, ...]:
    """Return all runs of a week, in the order in which they ended; none if the week has no index."""
    return tuple(Entry(**entry) for entry in _read_index(week).get("runs", []))


def read_status(week: str) -> Status | None:
    """Return how the project stood in a week, or None if nobody said."""
    status = _read_index(week).get("status")
    return TypeAdapter(Status).validate_python(status) if status else None


def _read_index(week: str) -> dict[str, Any]:
    index = _index(week)
    return dict(json.loads(index.read_text(encoding="utf-8"))) if index.exists() else {}


def _write_index(week: str, status: Status | None, entries: Sequence[Entry]) -> None:
    content = {
        "week": week,
        "status": status and dataclasses.asdict(status),
        "runs": [dataclasses.asdict(entry) for entry in entries],
    }
    write_atomically(_index(week), json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def latest_of_each_study(entries: Sequence[Entry]) -> dict[str, tuple[Entry, ...]]:
    """Return each study's runs of the last batch that it was part of: earlier ones are superseded."""
    last_batch = {entry.study: entry.batch for entry in sorted(entries, key=lambda entry: entry.batch)}
    return {
        study: tuple(entry for entry in entries if (entry.study, entry.batch) == (study, batch))
        for study, batch in last_batch.items()
    }


def weeks_with_runs() -> list[str]:
    """Return the weeks that have runs, oldest first."""
    return sorted(index.stem for index in _folder().glob("*.json") if read_entries(index.stem))


def choose_week(week: str | None) -> str:
    """Return `week` if it has runs, or else the latest week that has some.

    Raises:
        InputError: no such week, or none at all; the message names the weeks that can be chosen.
    """
    known = weeks_with_runs()
    if not known:
        raise InputError("no week has runs yet: start with 'qubic-lab run experiments/weekly.yaml'")
    if week is None:
        return known[-1]
    there_are = f"weeks with runs: {', '.join(known)}"
    try:
        days_of(week)
    except ValueError:
        raise InputError(f"week {week!r} is not of the form 2026-W48; {there_are}") from None
    if week not in known:
        raise InputError(f"week {week} has no runs; {there_are}")
    return week


def _folder() -> Path:
    return runs_folder() / "weeks"


def _index(week: str) -> Path:
    return _folder() / f"{week}.json"
