"""Executed notebooks as HTML without scripts, for the pages that lie beside the page of a week."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from qubic_lab.runs.language import translated
from qubic_lab.runs.notebook import EXECUTED
from qubic_lab.runs.picture import data_uri, in_language
from qubic_lab.runs.records import RecordedPicture
from qubic_lab.runs.store import run_folder
from qubic_lab.runs.week_report import ReportedRun

if TYPE_CHECKING:
    from nbconvert import HTMLExporter

KEPT_ATTRIBUTES = ("alt", "class", "colspan", "href", "rowspan", "scope", "src")
"""Others could repeat an id, or hold a script."""
ADDRESSES = ("#", "data:image/", "http://", "https://")


def notebook_bodies(runs: Sequence[ReportedRun]) -> dict[str, str]:
    """Return the executed notebooks of runs as parts of a page, by run; those that are gone are left out."""
    found = {}
    for run in runs:
        assert run.manifest is not None
        file = run_folder(run.study, run.manifest.key, failed=run.error is not None) / EXECUTED
        if file.is_file():
            found[run.name] = without_scripts(_convert(str(file)), run.records.pictures)
    return found


def _convert(file: str) -> str:
    return str(_exporter().from_filename(file)[0])


@cache
def _exporter() -> "HTMLExporter":
    from nbconvert import HTMLExporter

    return HTMLExporter(template_name="basic", exclude_anchor_links=True)  # type: ignore[no-untyped-call]


def without_scripts(body: str, recorded: Sequence[RecordedPicture] = ()) -> str:
    """Return a part of a page with its text, tables and pictures alone.

    What was recorded of a picture with its caption takes its place: it is small, and in the language used now.
    """
    from bs4 import BeautifulSoup

    document = BeautifulSoup(body, "html.parser")
    for element in document(["base", "embed", "form", "iframe", "link", "meta", "object", "script", "style", "svg"]):
        element.decompose()
    for element in document(True):
        kept = (*KEPT_ATTRIBUTES, "width") if element.name == "img" else KEPT_ATTRIBUTES
        element.attrs = {name: value for name, value in element.attrs.items() if name in kept}
        for name in ("href", "src"):
            if not str(element.get(name, "#")).startswith(ADDRESSES):
                del element[name]
    for output in document("div", class_="output"):  # a wide one scrolls, by the keyboard too
        output.attrs |= {"tabindex": "0", "role": "group", "aria-label": translated("Output of a cell")}
    for picture in recorded:
        for image in document("img", alt=picture.caption):
            image["src"] = data_uri(in_language(picture.svg))
    return str(document)
