"""Build a week's page from what its runs recorded: it reads and words, and computes no result again."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import jinja2

from qubic_lab.errors import InputError
from qubic_lab.runs import summary
from qubic_lab.runs.cells import format_column, format_number, heading, in_words, is_numeric, is_prose
from qubic_lab.runs.collect_week import collect_week, open_week
from qubic_lab.runs.page_numbers import NUMBERS, describe_page, manifest_to_json
from qubic_lab.runs.records import RecordedPicture, RecordedTable
from qubic_lab.runs.store import locked, reports_folder, write_atomically
from qubic_lab.runs.week_index import choose_week, days_of
from qubic_lab.runs.week_report import KEPT, SAMPLE, WeekReport, differing_parameters, week_to_json
from qubic_lab.studies.acceptance import MEANINGS

PAGE = "index.html"
LONG_TABLE = 12
"""Rows; a longer table is folded."""
WIDE_TABLE = 6
"""Columns; a wider table is scrolled on a phone."""
PLAIN = " !$()*+,;=:@/?-._~[]{}|"
"""Characters that mean nothing in an address or in HTML, so that they can stand in a picture's address as they are."""


@dataclass(frozen=True)
class Column:
    """A column as it stands in the page."""

    heading: str
    kind: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class ShownTable:
    """A table as it stands in the page."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    wide: bool
    folded: bool


def build_page(week: str | None = None) -> Path:
    """Write the page of a week, by default the latest with runs, and return its absolute path; see `open_week`."""
    if week == SAMPLE:
        raise InputError(f"the sample week has its page already: open {reports_folder() / SAMPLE / PAGE}")
    report = open_week(week) if week else collect_week(choose_week(None))
    folder = reports_folder() / report.week
    files = week_files(report)
    with locked(folder):
        for name, content in {**files, NUMBERS: manifest_to_json(describe_page(report, files, PAGE))}.items():
            write_atomically(folder / name, content)
    return folder / PAGE


def week_files(report: WeekReport) -> dict[str, str]:
    """Return the page of a week and what lies beside it, by the names of the files; they depend on the week alone."""
    return {KEPT: week_to_json(report), PAGE: render(report)}


def render(report: WeekReport) -> str:
    """Return the page of a week as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qubic_lab.runs"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    first_day, last_day = days_of(report.week)
    return environment.get_template("report.html").render(
        report=report,
        studies=report.studies(),
        first_day=first_day,
        last_day=last_day,
        written=datetime.fromisoformat(report.written_utc),
        show=show_table,
        data_uri=data_uri,
        differing_parameters=differing_parameters,
        words=summary,
        meanings=MEANINGS,
        number=format_number,
        in_words=in_words,
    )


def show_table(table: RecordedTable) -> ShownTable:
    """Return a recorded table as the page shows it."""
    columns = tuple(_column(name, [row[place] for row in table.rows]) for place, name in enumerate(table.columns))
    return ShownTable(
        caption=table.caption,
        columns=columns,
        rows=tuple(zip(*(column.cells for column in columns), strict=True)),
        wide=len(columns) > WIDE_TABLE or any(column.kind == "prose" for column in columns),
        folded=len(table.rows) > LONG_TABLE,
    )


def _column(name: str, values: Sequence[object]) -> Column:
    kind = "number" if is_numeric(values) else "prose" if is_prose(values) else "short"
    return Column(heading(name), kind, tuple(format_column(name, values)))


def data_uri(picture: RecordedPicture) -> str:
    """Return a picture's content as an address that needs no file beside the page."""
    return f"data:image/svg+xml,{quote(picture.svg, safe=PLAIN)}"
