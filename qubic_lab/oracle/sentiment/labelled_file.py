"""Files of texts with labels, as anybody may have them: CSV, JSON lines or Parquet, with their own names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.oracle.model.file_tables import FileTable, read_table
from qubic_lab.oracle.sentiment.labels import read_labels


@dataclass(frozen=True)
class FileOptions:
    """Which columns and rows of a file count.

    Attributes:
        text, label: columns.
        mapping: what the file's labels mean, beside common spellings; see `labels.read_labels`.
        where: only rows with these values in these columns.
        group: column of groups of texts that are variants of each other.
        by: column of parts whose figures are told beside.
    """

    text: str
    label: str
    mapping: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None
    by: str | None = None


@dataclass(frozen=True)
class LabelledTexts:
    """The texts of a file that can be judged by.

    Attributes:
        rows: of the file, before any were left out.
        elsewhere: rows that `where` leaves out.
        empty: texts without a word.
        unlabelled: rows without a label.
        skipped: rows whose label is mapped to "skip".
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
    """Read a table whose header names the text's or the label's column; a CSV that has neither is told of with both."""
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
    """Return a column's number; its name may differ in case."""
    exact = [place for place, each in enumerate(table.header) if each == name]
    alike = exact or [place for place, each in enumerate(table.header) if each.lower() == name.lower()]
    if not alike:
        raise InputError(f"{table.file}: no column {name!r}: {did_you_mean(name, table.header)}")
    return alike[0]


def _cell(value: object) -> str:
    """Return a cell as a text; nothing and NaN are empty."""
    if value is None or value != value:
        return ""
    return " ".join(str(value).split())
