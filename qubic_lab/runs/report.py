"""Write the page of a week as HTML, with a page beside it for each study: it computes no result again."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from qubic_lab.errors import InputError
from qubic_lab.runs import summary
from qubic_lab.runs.cells import format_number, in_words
from qubic_lab.runs.collect_week import collect_week, open_week
from qubic_lab.runs.first_screen import and_more
from qubic_lab.runs.history import MeasureChange
from qubic_lab.runs.language import ENGLISH, current_language, language, sentence_gap, translated, translated_text
from qubic_lab.runs.notebook import EXECUTED
from qubic_lab.runs.page import WeekPage, make_page, show_table
from qubic_lab.runs.page_numbers import NUMBERS, describe_page, manifest_to_json
from qubic_lab.runs.picture import data_uri
from qubic_lab.runs.store import locked, reports_folder, write_atomically
from qubic_lab.runs.study_page import notebook_bodies
from qubic_lab.runs.week_index import choose_week, days_of
from qubic_lab.runs.week_report import KEPT, SAMPLE, ReportedRun, WeekReport, week_to_json
from qubic_lab.runs.weeks_page import write_weeks_page
from qubic_lab.studies.acceptance import MEANINGS

PAGE = "index.html"
TREND_SIZE = (100, 30)


def build_page(week: str | None = None, tag: str = ENGLISH, against: str | None = None) -> Path:
    """Write the page of a week, by default the latest with runs, and return its absolute path; see `open_week`.

    `tag` is of its language: a page that is not English lies in a folder of this name beside the English one.
    The page over all weeks is written, too. Measures are compared with the week `against`.
    """
    if week == SAMPLE:
        raise InputError(f"the sample week has its page already: open {reports_folder() / SAMPLE / PAGE}")
    report = open_week(week, against) if week else collect_week(choose_week(None), against)
    folder = reports_folder() / report.week / ("" if tag == ENGLISH else tag)
    with language(tag):
        files = week_files(report)
        files |= {NUMBERS: manifest_to_json(describe_page(report, files, PAGE))}
    with locked(folder):
        for name, content in files.items():
            write_atomically(folder / name, content)
    write_weeks_page()
    return folder / PAGE


def week_files(report: WeekReport) -> dict[str, str]:
    """Return the page of a week and what lies beside it, by the names of the files; they depend on the week alone."""
    return {KEPT: week_to_json(report), PAGE: render(make_page(report)), **study_pages(report)}


def render(page: WeekPage) -> str:
    """Return the page of a week as HTML."""
    first_day, last_day = days_of(page.report.week)
    return (
        _environment()
        .get_template("report.html")
        .render(
            page=page,
            title=translated("Week {number} of {year}", number=int(page.report.week[6:]), year=page.report.week[:4]),
            days=f"{first_day} – {last_day}",
            signs=summary.SIGNS,
            words=summary,
            meanings=MEANINGS,
            show=show_table,
            and_more=and_more,
            notebook=has_notebook,
            split_changes=split_changes,
        )
    )


def study_pages(report: WeekReport) -> dict[str, str]:
    """Return a page for each study of a week whose executed notebooks are here, by the name of its file."""
    template = _environment().get_template("study.html")
    bodies = {
        study: (runs[0].title, notebook_bodies([run for run in runs if has_notebook(run)]))
        for study, runs in report.studies().items()
    }
    return {
        f"{study}.html": template.render(title=title, notebooks=notebooks)
        for study, (title, notebooks) in bodies.items()
        if notebooks
    }


def has_notebook(run: ReportedRun) -> bool:
    """Whether a run kept its executed notebook."""
    return run.manifest is not None and EXECUTED in run.manifest.files


def split_changes(
    changes: Sequence[MeasureChange],
) -> tuple[list[tuple[int, MeasureChange]], list[tuple[int, MeasureChange]]]:
    """Return the changes that are shown to be better or worse, and the others, with their places."""
    moved = [each.judgement.verdict in ("better", "worse") for each in changes]
    numbered = list(enumerate(changes))
    return [each for each in numbered if moved[each[0]]], [each for each in numbered if not moved[each[0]]]


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qubic_lab.runs"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": format_number, "told": translated_text}
    environment.globals.update(_=translated, text=translated_text, language=current_language, gap=sentence_gap)
    environment.globals.update(data_uri=lambda svg: Markup(data_uri(svg)), trend_points=trend_points, in_words=in_words)
    return environment


def trend_points(values: Sequence[float]) -> list[tuple[float, float]]:
    """Return the points of a line through values, in a box of TREND_SIZE with its origin at the upper left."""
    width, height = TREND_SIZE
    low, high = min(values), max(values)
    span = high - low
    return [
        (round(width * place / (len(values) - 1), 1), round(height * ((high - value) / span if span else 0.5), 1))
        for place, value in enumerate(values)
    ]
