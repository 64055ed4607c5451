"""Build a week's page from manifests and recorded results: it reads and words, and computes no result again."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2

from qubic_lab.errors import InputError
from qubic_lab.studies import accuracy_comparison as words
from qubic_lab.runs.acceptance import judge
from qubic_lab.runs.manifest import Manifest, read_manifest, read_results, utc_now
from qubic_lab.runs.store import write_atomically
from qubic_lab.runs.weeks import Entry, choose_week, days_of, latest_of_each_study, read_entries
from qubic_lab.settings import settings

COMPARISON = "comparison"
"""The name under which a notebook records a comparison of split and whole."""


@dataclass(frozen=True)
class Picture:
    """A figure as it stands in the page: its content as a data URI, and what it shows."""

    uri: str
    caption: str


@dataclass(frozen=True)
class ReportedRun:
    """A run as a report shows it; a failed or lost one has an `error` and no results."""

    entry: Entry
    manifest: Manifest | None
    results: Mapping[str, Mapping[str, Any]]
    pictures: tuple[Picture, ...]
    error: str | None

    @property
    def name(self) -> str:
        """The run's folder under `runs/`: what a number names as its source."""
        return f"{self.entry.study}/{self.entry.key}"

    @property
    def comparison(self) -> Mapping[str, Any] | None:
        """The recorded comparison of split and whole, if there is one."""
        return self.results.get(COMPARISON)


def build_report(week: str | None = None) -> Path:
    """Write the page of a week (by default the latest that has runs) and return its absolute path.

    Raises:
        InputError: the week is malformed or has no runs.
    """
    week = choose_week(week)
    studies = {
        study: [read_run(entry) for entry in entries]
        for study, entries in latest_of_each_study(read_entries(week)).items()
    }
    page = settings().reports.absolute() / week / "index.html"
    write_atomically(page, render(week, studies, written=utc_now()))
    return page


def read_run(entry: Entry) -> ReportedRun:
    """Read from a run's folder what a page shows of it."""
    try:
        manifest = read_manifest(entry.folder)
    except InputError as error:
        return ReportedRun(entry, None, {}, (), str(error))
    if manifest.error is not None:
        return ReportedRun(entry, manifest, {}, (), manifest.error)
    pictures = tuple(map(_read_picture, sorted((entry.folder / "figures").glob("*.svg"))))
    return ReportedRun(entry, manifest, read_results(entry.folder), pictures, None)


def _read_picture(file: Path) -> Picture:
    content = file.read_bytes()
    caption = ElementTree.fromstring(content).findtext(".//{http://purl.org/dc/elements/1.1/}title") or file.stem
    return Picture(f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}", caption)


def differing_parameters(runs: Sequence[ReportedRun]) -> list[str]:
    """Return the names of the parameters in which the runs of a study differ."""
    given = [run.manifest.parameters for run in runs if run.manifest]
    return [name for name in given[0] if any(each.get(name) != given[0][name] for each in given)] if given else []


def render(week: str, studies: Mapping[str, Sequence[ReportedRun]], written: datetime) -> str:
    """Return the page of a week as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qubic_lab.runs"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    runs = [run for of_study in studies.values() for run in of_study]
    comparisons = {run.name: run.comparison for run in runs if run.comparison}
    first_day, last_day = days_of(week)
    return environment.get_template("report.html").render(
        week=week,
        first_day=first_day,
        last_day=last_day,
        written=written,
        studies=studies,
        runs=runs,
        comparisons=comparisons,
        rows=judge(comparisons),
        differing_parameters=differing_parameters,
        words=words,
    )
