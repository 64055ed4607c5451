"""A week as plain values: what its runs recorded, the verdicts, and how the project stood.

The page and `weekly.ipynb` are made from it. It is collected from the runs and kept beside the page as `week.json`, so
that both can be read without the runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from qubic_lab.checked_yaml import codec
from qubic_lab.errors import InputError, check_choice
from qubic_lab.oracle.inference.track_record import HEADER, ClaimRecord
from qubic_lab.runs.experiment import ProjectStatus
from qubic_lab.runs.history import MeasureChange, Repetition, Trend
from qubic_lab.runs.records import RecordedTable, Records
from qubic_lab.runs.store import Manifest
from qubic_lab.studies.acceptance import AcceptanceRow

if TYPE_CHECKING:
    from pandas import DataFrame

KEPT = "week.json"
"""The file beside a page that holds the week."""
SAMPLE = "sample"
"""The folder of the week that comes with the project, in place of a week's name."""


@dataclass(frozen=True)
class ReportedRun:
    """A run as a report shows it; a failed or lost one has an `error` and no records.

    `name` is the run's folder under `runs/`: what a number names as its source.
    """

    name: str
    study: str
    manifest: Manifest | None
    records: Records
    error: str | None
    made_in: str | None
    """The week that it was made in."""
    full: bool = False
    left_out: Mapping[str, Any] = field(default_factory=dict)
    """What the full form has more of, by parameter; of a run of the quick form."""

    @property
    def title(self) -> str:
        """The title of its study."""
        return self.manifest.title if self.manifest else self.study


@dataclass(frozen=True)
class LedgerOfWeek:
    """The ledger at the end of a week, or when its page was written.

    `heads_kept` and `heads_lost` are the earlier weeks whose pages show a head that is in it, or is not.
    """

    record: ClaimRecord
    heads_kept: tuple[str, ...]
    heads_lost: tuple[str, ...]

    def sentences(self) -> list[str]:
        """Say what the ledger holds, and whether it is that of earlier pages."""
        said = self.record.sentences()
        if self.heads_lost:
            weeks = ", ".join(self.heads_lost)
            said.insert(0, f"The ledger is not that of the pages of {weeks}: it was replaced, or rewritten.")
        elif self.heads_kept:
            said.append(f"The heads on all earlier pages are in it ({len(self.heads_kept)}).")
        return said

    def table(self) -> RecordedTable:
        """Return what was said and what came, a row for each family."""
        rows = tuple(each.row() for each in self.record.families)
        return RecordedTable("ledger", "What we said and what came, by family of claims.", HEADER, rows)


@dataclass(frozen=True)
class WeekReport:
    """All that is shown of a week; `unfinished` has a sentence for each study with runs still to do."""

    week: str
    written_utc: str
    runs: tuple[ReportedRun, ...]
    rows: tuple[AcceptanceRow, ...]
    changes: tuple[MeasureChange, ...]
    repetitions: tuple[Repetition, ...]
    status: ProjectStatus | None
    unfinished: tuple[str, ...]
    ledger: LedgerOfWeek | None = None
    trends: tuple[Trend, ...] = ()
    against: str | None = None
    """The week that was asked for to compare with; None: the latest that has a measure."""

    def studies(self) -> dict[str, list[ReportedRun]]:
        """Return the runs by study."""
        names = dict.fromkeys(run.study for run in self.runs)
        return {study: [run for run in self.runs if run.study == study] for study in names}

    def trend(self, run: str) -> Trend | None:
        """Return how the key figure of a run moved over weeks, if it has one."""
        return next((trend for trend in self.trends if trend.run == run), None)

    def table(self, name: str) -> "DataFrame":
        """Return the tables of that name of all runs as one data frame, with the columns `study` and `run` before.

        Raises:
            InputError: no run has recorded a table of that name.
        """
        import pandas as pd

        found = [(run, table) for run in self.runs for table in run.records.tables]
        check_choice("table", name, dict.fromkeys(table.name for _, table in found))
        parts = []
        for run, table in found:
            if table.name == name:
                frame = table.frame()
                frame.insert(0, "study", run.study)
                frame.insert(1, "run", run.name)
                parts.append(frame)
        return pd.concat(parts, ignore_index=True)

    def measures(self) -> "DataFrame":
        """Return every sample of every measure: study, run, measure, sample (its number), value, unit, better."""
        import pandas as pd

        columns = ["study", "run", "measure", "sample", "value", "unit", "better"]
        samples = [
            (run.study, run.name, measure.name, number, value, measure.unit, measure.better)
            for run in self.runs
            for measure in run.records.measures
            for number, value in enumerate(measure.samples, start=1)
        ]
        return pd.DataFrame(samples, columns=columns)


def week_to_json(report: WeekReport) -> str:
    """Return a week as JSON."""
    return codec(WeekReport).dump_json(report).decode() + "\n"


def read_week(file: Path) -> WeekReport:
    """Read a week as it was kept beside its page; an InputError if this version cannot."""
    try:
        return codec(WeekReport).validate_json(file.read_bytes())
    except (OSError, ValidationError):
        raise InputError(f"{file} holds no readable week: write it again with 'qubic-lab report'") from None


def differing_parameters(runs: Sequence[ReportedRun]) -> dict[str, dict[str, Any]]:
    """Return for each run the parameters in which the runs of its study differ."""
    found: dict[str, dict[str, Any]] = {}
    for study in dict.fromkeys(run.study for run in runs):
        given = {run.name: run.manifest.parameters for run in runs if run.manifest and run.study == study}
        first = next(iter(given.values()), {})
        names = [name for name in first if any(each.get(name) != first[name] for each in given.values())]
        found |= {run: {name: parameters.get(name) for name in names} for run, parameters in given.items()}
    return found
