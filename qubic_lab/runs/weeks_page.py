"""The page over all weeks, `reports/index.html`: a row for each week with its six verdicts, the latest first."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2
from pydantic import ValidationError

from qubic_lab.checked_yaml import codec
from qubic_lab.runs.language import translated
from qubic_lab.runs.store import reports_folder, write_atomically
from qubic_lab.runs.summary import SIGNS, deciding_row, rows_of
from qubic_lab.runs.week_report import KEPT, SAMPLE
from qubic_lab.studies.acceptance import AcceptanceRow, Verdict
from qubic_lab.studies.questions import ASKED

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Kept:
    """What a kept week.json says that this page needs."""

    week: str
    rows: tuple[AcceptanceRow, ...]


def write_weeks_page() -> Path:
    """Write the page over all weeks whose pages are here; a damaged week is logged and left out."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("qubic_lab.runs"), autoescape=True, trim_blocks=True)
    weeks = sorted(_weeks(), key=lambda each: each[1], reverse=True)
    page = environment.get_template("weeks.html").render(weeks=weeks, asked=ASKED, signs=SIGNS, _=translated)
    file = reports_folder() / "index.html"
    write_atomically(file, page)
    return file


def _weeks() -> Iterator[tuple[str, str, list[Verdict]]]:
    """Yield folder, week and verdicts of each page."""
    for file in reports_folder().glob(f"*/{KEPT}"):
        if file.parent.name == SAMPLE:
            continue
        try:
            kept = codec(_Kept).validate_json(file.read_bytes())
        except ValidationError:
            log.warning("%s holds no readable week: write it again with 'qubic-lab report'", file)
            continue
        decided = [deciding_row(rows_of(question, kept.rows)) for question in ASKED]
        yield file.parent.name, kept.week, [row.verdict if row else "not measured here" for row in decided]
