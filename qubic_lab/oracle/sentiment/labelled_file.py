"""Labelled texts of anybody's files: CSV, JSON lines or Parquet, with their own column names and labels."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.oracle.model.file_tables import FileTable, read_table
from qubic_lab.oracle.sentiment.scores import LABELS

SKIP = "skip"
"""Rows whose label is mapped to this are left out."""
_SPELLINGS = {
    "negative": ("negative", "neg", "bearish", "bear", "bad", "-", "down", "very negative", "sell"),
    "neutral": ("neutral", "neu", "none", "mixed", "hold", "sideways"),
    "positive": ("positive", "pos", "bullish", "bull", "good", "+", "up", "very positive", "buy"),
}
_KNOWN = {spelling: label for label, spellings in _SPELLINGS.items() for spelling in spellings}
_SIGNS = {-1: "negative", 0: "neutral", 1: "positive"}
_NUMBER = re.compile(r"[-+]?\d+(?:\.0+)?")


@dataclass(frozen=True)
class FileOptions:
    """The columns and rows of a file that count.

    Attributes:
        text, label: columns.
        mapping: meaning of the file's labels, in addition to common spellings; see `read_labels`.
        where: only rows with these values in these columns.
        group: column of groups of texts that are variants of each other.
        by: column of parts that are reported separately.
    """

    text: str
    label: str
    mapping: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None
    by: str | None = None


@dataclass(frozen=True)
class LabelledTexts:
    """The labelled texts of a file.

    Attributes:
        rows: number of rows of the file.
        elsewhere: number of rows that `where` leaves out.
        empty: number of texts without a word.
        unlabelled: number of rows without a label.
        skipped: number of rows whose label is mapped to "skip".
    """

    file: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...] | None
    parts: tuple[str, ...] | None
    rows: int
    elsewhere: int
    empty: int
    unlabelled: int
    skipped: int


def read_labelled(path: Path, options: FileOptions) -> LabelledTexts:
    """Read a file's texts with their labels.

    Raises:
        InputError: the file or a column is missing, a label is not known, or no row is left.
    """
    table = _read(path, options)
    places = {name: _place(table, name) for name in _columns(options)}
    chosen = [row for row in table.rows if all(_cell(row[places[n]]) == v for n, v in options.where.items())]
    written = [row for row in chosen if _cell(row[places[options.text]])]
    given = [row for row in written if _cell(row[places[options.label]])]
    labels = read_labels([_cell(row[places[options.label]]) for row in given], options.mapping)
    kept = [(row, label) for row, label in zip(given, labels, strict=True) if label is not None]
    if not kept:
        raise InputError(
            f"{table.file}: none of {len(table.rows)} rows has a text and a label that count: "
            f"check --text {options.text}, --label {options.label}{' and --where' if options.where else ''}"
        )

    def column(name: str | None) -> tuple[str, ...] | None:
        return None if name is None else tuple(_cell(row[places[name]]) or "(empty)" for row, _ in kept)

    return LabelledTexts(
        file=table.file,
        texts=tuple(_cell(row[places[options.text]]) for row, _ in kept),
        labels=tuple(label for _, label in kept),
        groups=column(options.group),
        parts=column(options.by),
        rows=len(table.rows),
        elsewhere=len(table.rows) - len(chosen),
        empty=len(chosen) - len(written),
        unlabelled=len(written) - len(given),
        skipped=len(given) - len(kept),
    )


def _columns(options: FileOptions) -> list[str]:
    named = (options.text, options.label, options.group, options.by, *options.where)
    return [name for name in named if name is not None]


def _read(path: Path, options: FileOptions) -> FileTable:
    """Read a table whose header names the column of the text or of the label; the error for a CSV names both."""
    rows: list[Sequence[str]] = []
    wanted = {options.text.lower(), options.label.lower()}

    def is_header(names: Sequence[str]) -> bool:
        rows.append(names)
        return any(name.lower() in wanted for name in names)

    try:
        return read_table(path, is_header)
    except InputError:
        wide = [names for names in rows if len(names) > 1]
        if not rows or any(name.lower() in wanted for names in rows for name in names):
            raise
        header = (wide or rows)[0]
    raise InputError(f"{path.name}: no column {options.text!r}: {did_you_mean(options.text, header)}")


def _place(table: FileTable, name: str) -> int:
    """Return the number of a column; its name may differ in case."""
    exact = [place for place, each in enumerate(table.header) if each == name]
    alike = exact or [place for place, each in enumerate(table.header) if each.lower() == name.lower()]
    if not alike:
        raise InputError(f"{table.file}: no column {name!r}: {did_you_mean(name, table.header)}")
    return alike[0]


def _cell(value: object) -> str:
    """Return a cell as text; missing values are empty."""
    if value is None or value != value:
        return ""
    return " ".join(str(value).split())


def read_label(spelling: object) -> str:
    """Return the label that a word stands for.

    Raises:
        InputError: an unknown word.
    """
    label = _KNOWN.get(_plain(spelling))
    if label is None:
        shown = str(spelling)[:60]
        raise InputError(
            f"unknown label {shown!r}: {did_you_mean(_plain(shown), LABELS)}; say what it means, "
            f"such as --map {shown!r}=neutral, or =skip to leave such rows out"
        )
    return label


def read_labels(spellings: Sequence[object], mapping: Mapping[str, str] | None = None) -> list[str | None]:
    """Return the label of each spelling; None for those to leave out.

    Common spellings of words are known, and the numbers -1, 0 and 1 if -1 occurs: 0, 1 and 2, or 0 and 1 alone, mean
    different things in different files.

    Args:
        spellings: as they occur in a file.
        mapping: labels, or "skip", of spellings that are unknown or mean something else in this file.

    Raises:
        InputError: an unknown label, or ambiguous numbers.
    """
    for theirs, ours in (mapping or {}).items():
        if ours not in (*LABELS, SKIP):
            raise InputError(f"--map {theirs}={ours}: {ours!r} is no label: {did_you_mean(ours, (*LABELS, SKIP))}")
    mapped = {_plain(theirs): ours for theirs, ours in (mapping or {}).items()}
    written = {_plain(each): str(each) for each in spellings[::-1]}
    distinct = [plain for plain in dict.fromkeys(map(_plain, spellings)) if plain not in mapped]
    numbers = {int(float(each)) for each in distinct if _NUMBER.fullmatch(each)}
    if numbers and not (numbers <= set(_SIGNS) and -1 in numbers):
        shown = ", ".join(map(str, sorted(numbers)[:6]))
        raise InputError(
            f"labels are the numbers {shown}, which mean different things in different files: say which is which, "
            "such as --map 0=negative --map 1=neutral --map 2=positive"
        )
    known = {
        each: _SIGNS[int(float(each))] if _NUMBER.fullmatch(each) else read_label(written[each]) for each in distinct
    }
    known |= mapped
    return [None if known[_plain(each)] == SKIP else known[_plain(each)] for each in spellings]


def _plain(spelling: object) -> str:
    text = " ".join(str(spelling).strip().lower().replace("_", " ").split())
    return str(int(float(text))) if _NUMBER.fullmatch(text) else text
