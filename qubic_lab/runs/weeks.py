"""The index of a week, `runs/weeks/2026-W48.json`: which runs were made or used again in that ISO week (UTC)."""

import dataclasses
import fcntl
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path

from qubic_lab.errors import InputError
from qubic_lab.runs.store import run_folder, write_atomically
from qubic_lab.settings import settings


@dataclass(frozen=True)
class Entry:
    """One run of one batch; `batch` is the moment that the batch began (ISO, UTC)."""

    study: str
    key: str
    batch: str
    reused: bool
    failed: bool

    @property
    def folder(self) -> Path:
        """Where the run lies."""
        return run_folder(self.study, self.key, failed=self.failed)


def week_of(moment: datetime) -> str:
    """Return the ISO week of a moment, as in 2026-W48."""
    year, week, _ = moment.isocalendar()
    return f"{year}-W{week:02d}"


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
    with _locked():
        entries = [*read_entries(week), entry]
        content = {"week": week, "runs": [dataclasses.asdict(each) for each in entries]}
        write_atomically(_index(week), json.dumps(content, indent=2) + "\n")


def read_entries(week: str) -> tuple[Entry, ...]:
    """Return all runs of a week, in the order in which they ended; none if the week has no index."""
    index = _index(week)
    if not index.exists():
        return ()
    return tuple(Entry(**entry) for entry in json.loads(index.read_text(encoding="utf-8"))["runs"])


def latest_of_each_study(entries: Sequence[Entry]) -> dict[str, tuple[Entry, ...]]:
    """Return each study's runs of the last batch that it was part of: earlier ones are superseded."""
    last_batch = {entry.study: entry.batch for entry in sorted(entries, key=lambda entry: entry.batch)}
    return {
        study: tuple(entry for entry in entries if (entry.study, entry.batch) == (study, batch))
        for study, batch in last_batch.items()
    }


def weeks_with_runs() -> list[str]:
    """Return the weeks that have an index, oldest first."""
    return sorted(index.stem for index in _folder().glob("*.json"))


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
    return settings().runs.absolute() / "weeks"


def _index(week: str) -> Path:
    return _folder() / f"{week}.json"


@contextmanager
def _locked() -> Iterator[None]:
    """Let one process at a time change an index; the system drops the lock of a process that dies."""
    _folder().mkdir(parents=True, exist_ok=True)
    with (_folder() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
