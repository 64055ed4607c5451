"""The numbers that a page shows, each with where it is from, and the manifest that is kept beside the page.

Each element of a page with a digit in its text lies in one with the attribute `data-from`: `<run>#<path>` or
`week#<path>`, such as `cluster/1a2b…#tables/calls`. `numbers.json` says of each number what was recorded there and by
which rule it was rounded, and of each run its inputs, its code and the hashes of its files.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qubic_lab.checked_yaml import codec
from qubic_lab.errors import NotFoundError, QubicLabError
from qubic_lab.model.folders import file_hash
from qubic_lab.runs.cells import SUPERSCRIPT
from qubic_lab.runs.store import MANIFEST, Manifest, hash_files, run_folder
from qubic_lab.runs.week_report import ReportedRun, WeekReport

NUMBERS = "numbers.json"
"""The file beside a page that holds its manifest."""
SOURCE = "data-from"
WEEK = "week"
NUMBER = re.compile(r"(?<![\w.,−-])[−+-]?\d+(?:,\d{3})*(?:\.\d+)?(?: × 10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?(?!\w|[.,]\d)", re.ASCII)
SCALES = {1.0: "", 100.0: "in per cent, ", 1e3: "in thousandths, ", 1e-3: "in thousands, ", 1e-6: "in millions, "}
"""What a recorded number may have been multiplied by before it was rounded."""
RECORDED, COMPUTED = "as it was recorded", "counted or computed from it"
VOID = frozenset(["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"])
UNREAD = ("script", "style")


@dataclass(frozen=True)
class Piece:
    """A text of a page, or a tag with its attributes, and the source of the innermost element that names one."""

    source: str | None
    text: str
    tag: str = ""

    @property
    def numbers(self) -> list[str]:
        """The numbers in a text; a tag shows none."""
        return [] if self.tag else NUMBER.findall(self.text)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[Piece] = []
        self._open: list[tuple[str, str | None]] = []

    @property
    def _source(self) -> str | None:
        return self._open[-1][1] if self._open else None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get(SOURCE, self._source)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        source = dict(attrs).get(SOURCE, self._source)
        written = "".join(f' {name}="{value}"' for name, value in attrs)
        self.pieces.append(Piece(source, f"<{tag}{written}>", tag))

    def handle_endtag(self, tag: str) -> None:
        places = [place for place, (name, _) in enumerate(self._open) if name == tag]
        if places:
            del self._open[places[-1] :]

    def handle_data(self, data: str) -> None:
        inside = self._open[-1][0] if self._open else ""
        if text := " ".join(data.split()):
            self.pieces.append(Piece(self._source, text, inside if inside in UNREAD else ""))


def read_pieces(page: str) -> list[Piece]:
    """Return the tags and texts of a page in their order; styles count as tags."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return reader.pieces


def without_source(pieces: Iterable[Piece]) -> list[str]:
    """Return the texts with a digit that no element says the source of."""
    return [piece.text for piece in pieces if not piece.tag and piece.source is None and re.search(r"\d", piece.text)]


@dataclass(frozen=True)
class TracedNumber:
    """A number as it is shown, and what was recorded at its source; `recorded` is None for what is counted from it."""

    shown: str
    source: str
    recorded: int | float | str | None
    rule: str

    def origin(self) -> str:
        """Say what was recorded and how it was rounded."""
        return self.rule if self.rule in (RECORDED, COMPUTED) else f"{self.recorded} {self.rule}"


class RecordedWeek:
    """What a week recorded, by source."""

    def __init__(self, report: WeekReport) -> None:
        content = codec(WeekReport).dump_python(report, mode="json")
        runs = content.pop("runs")
        self._content: dict[str, Any] = {run["name"]: _by_name(run) for run in runs}
        told = {name: {part: run[part] for part in ("manifest", "findings")} for name, run in self._content.items()}
        self._content[WEEK] = {**content, "rows": {row["id"]: row for row in content["rows"]}, "runs": told}
        self._found: dict[str, RecordedValue] = {}

    def __contains__(self, source: str) -> bool:
        return self._at(source) is not None

    def trace(self, shown: str, source: str) -> TracedNumber:
        """Return what a number at a source was made from."""
        if source not in self._found:
            self._found[source] = RecordedValue(self._at(source))
        return TracedNumber(shown, source, *self._found[source].origin(shown))

    def trace_all(self, pieces: Iterable[Piece]) -> Iterator[TracedNumber]:
        """Yield the numbers of a page that have a source, traced."""
        for piece in pieces:
            for shown in piece.numbers if piece.source else ():
                yield self.trace(shown, str(piece.source))

    def _at(self, source: str) -> Any:
        """Return what was recorded at a source; None if there is nothing of this name.

        What a week shows of all its parts, such as its title, is from the whole of it.
        """
        name, _, path = source.partition("#")
        content = self._content.get(name)
        for step in path.split("/"):
            if isinstance(content, list):
                content = content[int(step)] if step.isdigit() and int(step) < len(content) else None
            elif isinstance(content, dict):
                content = content.get(step, content if content is self._content.get(WEEK) else None)
        return content


def _by_name(run: dict[str, Any]) -> dict[str, Any]:
    """Return what a run recorded as its sources name it."""
    records, manifest = run.pop("records"), run.pop("manifest")
    return {
        **run,
        "manifest": {**run, **(manifest or {})},
        "findings": records["findings"],
        "results": records["results"],
        "figures": {each["name"]: each["caption"] for each in records["pictures"]},
        **{part: {each["name"]: each for each in records[part]} for part in ("tables", "measures")},
    }


class RecordedValue:
    """The numbers and the texts of a recorded value."""

    def __init__(self, content: Any) -> None:
        leaves = list(_leaves(content))
        self._numbers = [each for each in leaves if isinstance(each, int | float) and not isinstance(each, bool)]
        self._texts = {found for each in leaves if isinstance(each, str) for found in NUMBER.findall(each)}
        self._known: dict[tuple[float, int, bool], dict[str, float]] = {}

    def origin(self, shown: str) -> tuple[int | float | str | None, str]:
        """Return the recorded number that is shown so, and the rule by which it was rounded."""
        if shown in self._texts:
            return shown, RECORDED
        bare = shown.lstrip("−+-").replace(",", "")
        decimals, power = len(bare.partition(" ")[0].partition(".")[2]), " × 10" in bare
        for scale, unit in SCALES.items():
            if (value := self._written(scale, decimals, power).get(bare)) is not None:
                exact = scale == 1.0 and isinstance(value, int)
                return value, RECORDED if exact else f"{unit}{_rounding(decimals, power)}"
        return None, COMPUTED

    def _written(self, scale: float, decimals: int, power: bool) -> dict[str, float]:
        """Return the numbers by how they are written with so many decimals."""
        key = scale, decimals, power
        if key not in self._known:
            self._known[key] = {_write(abs(each) * scale, decimals, power): each for each in self._numbers}
        return self._known[key]


def _rounding(decimals: int, power: bool) -> str:
    places = f"{decimals} decimal{'s' * (decimals != 1)}" if decimals else "a whole number"
    return f"rounded to {places}{' and a power of ten' * power}"


def _write(value: float, decimals: int, power: bool) -> str:
    if not power:
        return f"{value:.{decimals}f}"
    mantissa, _, exponent = f"{value:.{decimals}e}".partition("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPT)}"


def _leaves(content: Any) -> Iterator[Any]:
    if isinstance(content, dict | list):
        for each in [*content, *content.values()] if isinstance(content, dict) else content:
            yield from _leaves(each)
    else:
        yield content


@dataclass(frozen=True)
class RunProof:
    """What a run's numbers depend on: its inputs, its code and environment, and the SHA-256 of each of its files."""

    manifest: Manifest | None
    files: Mapping[str, str]


@dataclass(frozen=True)
class PageManifest:
    """What is kept beside a page: the hash of each file of the page, its runs, and its numbers."""

    week: str
    files: Mapping[str, str]
    runs: Mapping[str, RunProof]
    numbers: Sequence[TracedNumber] = field(default_factory=tuple)


def describe_page(report: WeekReport, files: Mapping[str, str], page: str) -> PageManifest:
    """Return the manifest of a page that is one of these files, given as texts by their names."""
    return PageManifest(
        week=report.week,
        files={name: sha256(content.encode()).hexdigest() for name, content in files.items()},
        runs={run.name: _proof(run) for run in report.runs},
        numbers=tuple(RecordedWeek(report).trace_all(read_pieces(files[page]))),
    )


def _proof(run: ReportedRun) -> RunProof:
    """Return what a run's numbers depend on; of one that is not here, what its manifest says."""
    if (folder := folder_of(run.name)).is_dir():
        return RunProof(run.manifest, hash_run(folder))
    return RunProof(run.manifest, run.manifest.files if run.manifest else {})


def hash_run(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a run's folder, by the path within it."""
    manifest = folder / MANIFEST
    return {**({MANIFEST: file_hash(manifest)} if manifest.is_file() else {}), **hash_files(folder)}


def folder_of(run: str) -> Path:
    """Return the folder of a run by its name, that of a failed one if it failed."""
    study, _, key = run.partition("/")
    failed = run_folder(study, key, failed=True)
    return failed if failed.is_dir() else run_folder(study, key)


def manifest_to_json(manifest: PageManifest) -> str:
    """Return a page's manifest as JSON."""
    return codec(PageManifest).dump_json(manifest, indent=1).decode() + "\n"


def read_page_manifest(file: Path) -> PageManifest:
    """Read the manifest of a page.

    Raises:
        QubicLabError: it is missing or damaged.
    """
    if not file.is_file():
        raise NotFoundError(f"{file} is missing, so its page cannot be checked: write it with 'qubic-lab report'")
    try:
        return codec(PageManifest).validate_json(file.read_bytes())
    except (OSError, ValidationError):
        raise QubicLabError(
            f"{file} holds no readable manifest of its page: write the page with 'qubic-lab report'"
        ) from None
