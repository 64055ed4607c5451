"""What a run's notebook recorded, read back: findings, pictures, tables, measures and results, as plain values."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from qubic_lab.runs.change import Direction
from qubic_lab.runs.notebook import CAPTION, FINDINGS
from qubic_lab.runs.picture import read_svg
from qubic_lab.runs.store import read_results
from qubic_lab.studies.finding import Finding

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class RecordedPicture:
    """A figure as SVG, and what it shows."""

    name: str
    caption: str
    svg: str


@dataclass(frozen=True)
class RecordedTable:
    """A recorded table: plain values by row, None where one is missing."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def frame(self) -> "DataFrame":
        """Return the table as a data frame."""
        from pandas import DataFrame

        return DataFrame(list(self.rows), columns=list(self.columns))


@dataclass(frozen=True)
class RecordedMeasure:
    """Repeated measurements of one quantity, and a speed of the machine probed beside each, if it was."""

    name: str
    samples: tuple[float, ...]
    unit: str
    better: Direction
    probe: tuple[float, ...] = ()


@dataclass(frozen=True)
class Records:
    """All that one run recorded; `findings` have the most important one first.

    Older weeks have plain sentences in their place, which are read as findings without values.
    """

    findings: tuple[Annotated[Finding, BeforeValidator(Finding.read)], ...] = ()
    pictures: tuple[RecordedPicture, ...] = ()
    tables: tuple[RecordedTable, ...] = ()
    measures: tuple[RecordedMeasure, ...] = ()
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_records(folder: Path, shown: bool = True) -> Records:
    """Read what lies in a finished run's folder; pictures and tables, if `shown`, in the order of their recording."""
    results = read_results(folder)
    found = results.pop(FINDINGS, {})
    return Records(
        findings=tuple(map(Finding.read, found.get("findings") or found.get("sentences", ()))),
        pictures=tuple(map(_read_picture, _as_recorded(folder / "figures", "*.svg"))) if shown else (),
        tables=tuple(map(_read_table, _as_recorded(folder / "tables", "*.parquet"))) if shown else (),
        measures=read_measures(folder),
        results=results,
    )


def read_measures(folder: Path) -> tuple[RecordedMeasure, ...]:
    """Read the measures in a run's folder, by name."""
    files = sorted((folder / "measures").glob("*.json"), key=_by_number)
    contents = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    lists = ("samples", "probe")
    return tuple(
        RecordedMeasure(**content | {name: tuple(content.get(name, ())) for name in lists}) for content in contents
    )


def _by_number(file: Path) -> list[tuple[int, str]]:
    """Sort 4 before 16."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.stem)]


def _as_recorded(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern), key=lambda file: (file.stat().st_mtime_ns, file.name))


def _read_picture(file: Path) -> RecordedPicture:
    caption, svg = read_svg(file.read_text(encoding="utf-8"))
    return RecordedPicture(file.stem, caption or file.stem, svg)


def _read_table(file: Path) -> RecordedTable:
    from pyarrow import parquet

    table = parquet.read_table(file)
    caption = (table.schema.metadata or {}).get(CAPTION, file.stem.encode()).decode()
    rows = (tuple(_plain(value) for value in row.values()) for row in table.to_pylist())
    return RecordedTable(file.stem, caption, tuple(table.column_names), tuple(rows))


def _plain(value: Any) -> Any:
    """Turn what JSON does not know into what it does: not-a-number is a missing value, a date its text."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value if value is None or isinstance(value, bool | int | float | str | dict) else str(value)
