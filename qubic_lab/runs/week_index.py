"""The index of an ISO week (UTC), `runs/weeks/2026-W48.json`: its runs and the project's status."""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qubic_lab.checked_yaml import codec
from qubic_lab.errors import InputError
from qubic_lab.runs.experiment import ProjectStatus
from qubic_lab.runs.store import locked, run_folder, runs_folder, write_atomically

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeekEntry:
    """One of the `of` runs of a study in a batch; `batch` is the moment that the batch began (ISO, UTC).

    `full` is whether the batch was of the studies' full forms, `number` the place in it, and `left_out` what the full
    form has more of, by parameter; indexes of earlier versions say none of these.
    """

    study: str
    key: str
    batch: str
    of: int
    reused: bool
    failed: bool
    full: bool = False
    number: int = 0
    left_out: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the run lies; a failed one that succeeded later lies where it succeeded."""
        succeeded = run_folder(self.study, self.key)
        return run_folder(self.study, self.key, failed=True) if self.failed and not succeeded.is_dir() else succeeded


@dataclass(frozen=True)
class WeekIndex:
    """The content of a week's index."""

    week: str
    status: ProjectStatus | None = None
    runs: tuple[WeekEntry, ...] = ()


def week_of(moment: datetime) -> str:
    """Return the ISO week of a moment, as in 2026-W48."""
    year, week, _ = moment.isocalendar()
    return f"{year}-W{week:02d}"


def days_of(week: str) -> tuple[date, date]:
    """Return a week's Monday and Sunday, or raise a ValueError for what is not a week such as 2026-W48."""
    if not re.fullmatch(r"\d{4}-W\d{2}", week):
        raise ValueError(week)
    monday = date.fromisocalendar(int(week[:4]), int(week[6:]), 1)
    return monday, monday + timedelta(days=6)


def add_entry(week: str, entry: WeekEntry) -> None:
    """Add a run to a week's index."""
    with locked(_folder()):
        index = read_index(week)
        _write(replace(index, runs=(*index.runs, entry)))


def keep_status(week: str, status: ProjectStatus) -> None:
    """Keep how the project stands in a week, in place of what was kept before."""
    with locked(_folder()):
        _write(replace(read_index(week), status=status))


def read_index(week: str) -> WeekIndex:
    """Return a week's runs, in the order in which they ended, and its status; neither if the week has no index.

    Raises:
        InputError: the index is damaged.
    """
    file = _folder() / f"{week}.json"
    if not file.exists():
        return WeekIndex(week)
    try:
        return codec(WeekIndex).validate_json(file.read_bytes())
    except ValidationError:
        raise InputError(
            f"{file} is damaged: delete it and run the week's studies again; finished runs are kept"
        ) from None


def _write(index: WeekIndex) -> None:
    content = codec(WeekIndex).dump_json(index, indent=2).decode()
    write_atomically(_folder() / f"{index.week}.json", content + "\n")


def latest_of_each_study(entries: Sequence[WeekEntry]) -> dict[str, tuple[WeekEntry, ...]]:
    """Return each study's runs of the last batch that it was part of, in its order: earlier ones are superseded."""
    in_order = sorted(entries, key=lambda entry: (entry.batch, entry.number))
    last_batch = {entry.study: entry.batch for entry in in_order}
    return {
        study: tuple(entry for entry in in_order if (entry.study, entry.batch) == (study, batch))
        for study, batch in last_batch.items()
    }


def last_full_runs(until: str) -> tuple[WeekEntry, ...]:
    """Return each study's runs of its last full batch up to a week and with it, of batches that ended whole."""
    full = [
        entry
        for week in weeks_with_runs()
        if week <= until
        for entry in read_index(week).runs
        if entry.full and not entry.failed
    ]
    done = Counter((entry.study, entry.batch) for entry in full)
    whole = [entry for entry in full if done[entry.study, entry.batch] == entry.of]
    return tuple(entry for of_study in latest_of_each_study(whole).values() for entry in of_study)


def weeks_with_runs() -> list[str]:
    """Return the weeks that have runs, oldest first; one whose index is damaged is logged and left out."""
    weeks = []
    for file in sorted(_folder().glob("*.json")):
        try:
            weeks += [file.stem] if read_index(file.stem).runs else []
        except InputError as error:
            log.warning("%s", error)
    return weeks


def choose_week(week: str | None) -> str:
    """Return `week`, or by default the latest week with runs; an InputError names the weeks that can be chosen."""
    known = weeks_with_runs()
    if not known:
        raise InputError("no week has runs yet: start with 'qubic-lab run experiments/weekly.yaml'")
    if week is None:
        return known[-1]
    if week not in known:
        raise InputError(f"week {week} has no runs; weeks with runs: {', '.join(known)}")
    return week


def _folder() -> Path:
    return runs_folder() / "weeks"
