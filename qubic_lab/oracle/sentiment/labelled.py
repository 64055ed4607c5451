"""Labelled texts: our headlines, and anybody's files with their own column names and labels."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.oracle.model.file_tables import DELIMITERS, FileTable, read_table
from qubic_lab.oracle.sentiment.scores import LABELS
from qubic_lab.provenance import data_file

HEADLINES_FILE = data_file("sentiment/headlines.jsonl", __file__)
OTHER_ENCODING = "cp1252"
"""Of files that are not in UTF-8."""
SKIP = "skip"
"""Rows whose label is mapped to this are left out."""
TEXT_COLUMNS = ("text", "headline", "title", "news", "sentence", "tweet", "content", "body", "description")
LABEL_COLUMNS = ("label", "sentiment", "labels", "label text", "sentiment label", "polarity", "class", "target")
"""Names of columns that are used if no others are given; the first one found counts."""
_SPELLINGS = {
    "negative": ("negative", "neg", "bearish", "bear", "bad", "-", "down", "very negative", "sell"),
    "neutral": ("neutral", "neu", "none", "mixed", "hold", "sideways"),
    "positive": ("positive", "pos", "bullish", "bull", "good", "+", "up", "very positive", "buy"),
}
_KNOWN = {spelling: label for label, spellings in _SPELLINGS.items() for spelling in spellings}
_SIGNS = {-1: "negative", 0: "neutral", 1: "positive"}
_NUMBERS = frozenset(map(str, range(-1, 3)))
_NUMBER = re.compile(r"[-+]?\d+(?:\.0+)?")


@dataclass(frozen=True)
class LabelledTexts:
    """The labelled texts of a file with `rows` rows; `left_out`: how many of these do not count, by reason."""

    file: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...] | None
    rows: int
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class Columns:
    """How to read the labelled texts of a file.

    Attributes:
        text, label: names of columns, or their numbers from 1 in a file without a header; None: found by common names,
            else by what the columns hold.
        mapping: meaning of the file's labels, in addition to common spellings; see `read_labels`.
        where: only rows with these values in these columns.
        group: column whose equal values mark variants of a text.
    """

    text: str | None = None
    label: str | None = None
    mapping: Mapping[str, str] | None = None
    where: Mapping[str, str] | None = None
    group: str | None = None


@dataclass(frozen=True)
class LabelledHeadline:
    """A headline with the number of its label, and its group."""

    text: str
    label: int
    group: str


def read_examples(path: Path, split: str = "train") -> list[LabelledHeadline]:
    """Return the headlines of one part, in the file's order.

    Raises:
        InputError: the file cannot be read, or is damaged.
    """
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [
            LabelledHeadline(row["text"], LABELS.index(row["label"]), row["group"])
            for row in rows
            if row["split"] == split
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no file of headlines, or damaged ({error}): fetch it again") from error


def read_labelled(path: Path, columns: Columns) -> LabelledTexts:
    """Read the texts of a file, CSV with or without a header, JSON lines or Parquet, with their labels.

    Raises:
        InputError: the file or a column is missing or cannot be told, a label is not known, or no row is left.
    """
    table = _table(path, columns)
    mapping, where = columns.mapping or {}, columns.where or {}
    asked = _place(table, columns.text) if columns.text else None
    label = _place(table, columns.label) if columns.label else _label_column(table, mapping)
    text = _text_column(table, label) if asked is None else asked
    places = {_place(table, name): value for name, value in where.items()}
    group = _place(table, columns.group) if columns.group else None
    chosen = [row for row in table.rows if all(_cell(row[place]) == value for place, value in places.items())]
    written = [row for row in chosen if _cell(row[text])]
    given = [row for row in written if _cell(row[label])]
    labels = read_labels([_cell(row[label]) for row in given], mapping)
    kept = [(row, each) for row, each in zip(given, labels, strict=True) if each is not None]
    if not kept:
        raise InputError(
            f"{table.file}: none of {len(table.rows)} rows has a text and a label that count: check "
            f"--text {table.header[text]}, --label {table.header[label]}{' and --where' if where else ''}"
        )
    return LabelledTexts(
        file=table.file,
        texts=tuple(_cell(row[text]) for row, _ in kept),
        labels=tuple(each for _, each in kept),
        groups=tuple(_cell(row[group]) for row, _ in kept) if group is not None else None,
        rows=len(table.rows),
        left_out={
            "other rows": len(table.rows) - len(chosen),
            "empty texts": len(chosen) - len(written),
            "no label": len(written) - len(given),
            "skipped": len(given) - len(kept),
        },
    )


def _table(path: Path, columns: Columns) -> FileTable:
    """Return a file's cells; without a header, its columns have their numbers from 1 as names."""
    given = [_plain(name) for name in (columns.text, columns.label) if name]
    numbered = bool(given) and all(map(str.isdecimal, given))
    wanted = {*given} if len(given) == 2 else {*given, *TEXT_COLUMNS, *LABEL_COLUMNS}

    def is_header(names: Sequence[str]) -> bool:
        return not numbered and any(_plain(name) in wanted for name in names)

    def is_row(cells: Sequence[str]) -> bool:
        return len(cells) > 1 and (numbered or any(_plain(cell) in _KNOWN for cell in cells))

    try:  # Financial PhraseBank comes as text@label, and not in UTF-8
        return read_table(path, is_header, is_row, delimiters=(*DELIMITERS, "@"), encoding=OTHER_ENCODING)
    except InputError as error:  # take any header, so that a later error can suggest one of its names
        try:
            return read_table(path, lambda names: len(names) > 1, encoding=OTHER_ENCODING)
        except InputError:
            raise error from None


def _label_column(table: FileTable, mapping: Mapping[str, str]) -> int:
    """Return the number of the column of labels: by its name, or the only one that holds nothing else."""
    named = _named(table, LABEL_COLUMNS)
    if named is not None:
        return named
    known = {*_KNOWN, *_NUMBERS, *map(_plain, mapping)}
    cells = [{_plain(cell) for cell in map(_cell, table.column(place)) if cell} for place in range(len(table.header))]
    alike = [place for place, found in enumerate(cells) if len(found) > 1 and found <= known]
    if len(alike) != 1:
        may = [table.header[place] for place in alike] or table.header
        raise InputError(f"{table.file}: the column of labels is not clear: give --label, such as {', '.join(may[:6])}")
    return alike[0]


def _text_column(table: FileTable, label: int) -> int:
    """Return the number of the column of texts: by its name, or the one with the longest texts."""
    named = _named(table, TEXT_COLUMNS)
    if named is not None and named != label:
        return named
    others = [place for place in range(len(table.header)) if place != label]
    if not others:
        raise InputError(f"{table.file}: there is no column of texts beside {table.header[label]!r}: give --text")
    return max(others, key=lambda place: sum(len(_cell(cell)) for cell in table.column(place)))


def _named(table: FileTable, names: Sequence[str]) -> int | None:
    plain = [_plain(name) for name in table.header]
    return next((plain.index(name) for name in names if name in plain), None)


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
