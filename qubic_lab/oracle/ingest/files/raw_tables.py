"""Tables in files, as they are: CSV with any delimiter, JSON and Parquet, plain or compressed."""

import csv
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qubic_lab.errors import InputError

MOST_BYTES = 2 << 30
"""Larger files, unpacked, are refused: they would fill the memory."""
_DELIMITERS = (",", ";", "\t", "|")
_BANNER_LINES = 30
"""So many lines at most may stand before a header."""


@dataclass(frozen=True)
class RawTable:
    """Cells as they stand in a file: texts, or values where the file has types; None where there is nothing.

    Attributes:
        header: the columns' names; their numbers from 1 where the file has none.
        rows: all as long as the header.
        lines: the line (in Parquet: the row) of each, from 1.
        named: whether the file has a header.
        notes: what was left out, to be told.
    """

    file: str
    header: tuple[str, ...]
    rows: list[Sequence[Any]]
    lines: list[int]
    named: bool = True
    notes: tuple[str, ...] = ()

    def column(self, number: int) -> list[Any]:
        """Return all cells of a column, by its number from 0."""
        return [row[number] for row in self.rows]

    def places(self) -> list[str]:
        """Return where each row is, for errors."""
        return [f"{self.file}:{line}" for line in self.lines]


def read_table(path: Path, is_header: Callable[[Sequence[str]], bool]) -> RawTable:
    """Read a file by its ending: .parquet, .jsonl, .json, else CSV; all but the first also in .gz or .zip.

    Args:
        path: the file.
        is_header: tells a row that names columns from a banner before it.

    Raises:
        InputError: it is missing, empty, damaged or of another kind.
    """
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return _read_parquet(path)
        name, content = _unpack(path)
    except FileNotFoundError as error:
        raise InputError(f"file {path} does not exist: check the path") from error
    except OSError as error:
        raise InputError(f"file {path} cannot be read ({error.strerror or error}): check it") from error
    text = _decode(path, content)
    if not text.strip():
        raise InputError(f"{path.name}: the file is empty: export it again")
    if name.lower().endswith((".jsonl", ".ndjson")):
        return _read_json_lines(path.name, text)
    if name.lower().endswith(".json"):
        return _read_json(path.name, text)
    return _read_csv(path.name, text, is_header)


def _unpack(path: Path) -> tuple[str, bytes]:
    """Return the name and the bytes of the file, or of the one that it holds."""
    ending = path.suffix.lower()
    try:
        if ending == ".gz":
            with gzip.open(path) as file:
                return path.stem, _limited(path, file.read(MOST_BYTES + 1))
        if ending == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
                if len(names) != 1:
                    raise InputError(f"{path.name}: the archive holds {len(names)} files: unpack it and give one")
                with archive.open(names[0]) as member:
                    return names[0], _limited(path, member.read(MOST_BYTES + 1))
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError) as error:
        raise InputError(f"{path.name}: the archive is damaged ({error}): fetch it again") from error
    with path.open("rb") as plain:
        return path.name, _limited(path, plain.read(MOST_BYTES + 1))


def _limited(path: Path, content: bytes) -> bytes:
    if len(content) > MOST_BYTES:
        raise InputError(f"{path.name}: more than {MOST_BYTES >> 30} GiB: split the file")
    return content


def _decode(path: Path, content: bytes) -> str:
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path.name}:{line}: not in UTF-8: save the file as CSV in UTF-8") from error


def _read_csv(file: str, text: str, is_header: Callable[[Sequence[str]], bool]) -> RawTable:
    for delimiter in _DELIMITERS:
        head = _first_rows(file, text, delimiter)
        found = next((number for number, (_, row) in enumerate(head) if is_header(_names(row))), None)
        if found is not None:
            return _below(file, text, delimiter, head[found][0], _names(head[found][1]))
    for delimiter in _DELIMITERS:
        rows = [row for _, row in _first_rows(file, text, delimiter)]
        if len(rows[0]) > 1 and re.fullmatch(r"\d{9,19}", rows[0][0].strip()):
            header = tuple(str(number + 1) for number in range(len(_trimmed(rows[0]))))
            return _below(file, text, delimiter, 0, header)
    first = text.strip().split("\n", 1)[0].strip()
    raise InputError(f"{file}:1: {first[:60]!r} names no columns that are known: map them, such as close=Last")


def _first_rows(file: str, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    rows: list[tuple[int, list[str]]] = []
    for numbered in _rows(file, text, delimiter):
        rows.append(numbered)
        if len(rows) == _BANNER_LINES:
            break
    return rows


def _rows(file: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the number of its first line."""
    csv.field_size_limit(1 << 24)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    line = 1
    try:
        for row in reader:
            if row and any(map(str.strip, row)):
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{file}:{line}: cannot be read as CSV ({error}): check its quotes") from error


def _names(row: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.strip().strip("<>").strip() for name in _trimmed(row))


def _trimmed(row: Sequence[str]) -> Sequence[str]:
    """Leave out one empty cell behind a delimiter at the line's end."""
    return row[:-1] if len(row) > 1 and not row[-1].strip() else row


def _below(file: str, text: str, delimiter: str, header_line: int, header: tuple[str, ...]) -> RawTable:
    """Return what stands below the header; `header_line` is 0 where there is none."""
    rows: list[Sequence[Any]] = []
    lines: list[int] = []
    banners = repeated = 0
    for line, row in _rows(file, text, delimiter):
        if line <= header_line:
            banners += line < header_line
        elif len(row) == len(header):
            if row[0].strip().strip("<>") == header[0] and _names(row) == header:
                repeated += 1  # files that were put one behind the other
                continue
            rows.append(row)
            lines.append(line)
        elif len(_trimmed(row)) == len(header):
            rows.append(_trimmed(row))
            lines.append(line)
        else:
            raise InputError(
                f"{file}:{line}: {len(row)} cells where the header has {len(header)}: correct the line or leave it out"
            )
    notes = [f"{banners} banner line(s) before the header skipped"] * bool(banners)
    notes += [f"{repeated} repeated header(s) skipped"] * bool(repeated)
    return _filled(RawTable(file, header, rows, lines, bool(header_line), tuple(notes)))


def _filled(table: RawTable) -> RawTable:
    if not table.rows:
        raise InputError(f"{table.file}: there are no rows below the header: export it again")
    return table


def _read_json(file: str, text: str) -> RawTable:
    """Return a list of lists, as exchanges' interfaces give bars; lines are the lists' numbers."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error}): fetch it again") from error
    if not isinstance(found, list) or not all(isinstance(row, list) for row in found):
        raise InputError(f"{file}: a list of lists is needed: one for each bar")
    if not found:
        raise InputError(f"{file}: there are no bars: fetch it again")
    width = len(found[0])
    for number, row in enumerate(found, 1):
        if len(row) != width:
            raise InputError(
                f"{file}:{number}: {len(row)} values where the first has {width}: correct it or leave it out"
            )
    header = tuple(str(number + 1) for number in range(width))
    return RawTable(file, header, found, list(range(1, len(found) + 1)), named=False)


def _read_json_lines(file: str, text: str) -> RawTable:
    objects: list[dict[str, Any]] = []
    lines: list[int] = []
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            found = json.loads(content)
        except ValueError as error:
            raise InputError(f"{file}:{line}: not JSON ({error}): one object a line is needed") from error
        if not isinstance(found, dict):
            raise InputError(f"{file}:{line}: no JSON object: one a line is needed")
        objects.append(found)
        lines.append(line)
    header = tuple(dict.fromkeys(key for found in objects for key in found))
    return _filled(RawTable(file, header, [[found.get(key) for key in header] for found in objects], lines))


def _read_parquet(path: Path) -> RawTable:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path.name}: no Parquet file, or damaged: fetch it again") from error
    columns = [_values(column) for column in table.columns]
    rows: list[Sequence[Any]] = list(zip(*columns, strict=True))
    return _filled(RawTable(path.name, tuple(table.column_names), rows, list(range(1, len(rows) + 1))))


def _values(column: Any) -> list[Any]:
    """Return a column's values; times lose what is finer than a microsecond."""
    import pyarrow

    if pyarrow.types.is_timestamp(column.type):
        column = column.cast(pyarrow.timestamp("us", column.type.tz), safe=False)
    values: list[Any] = column.to_pylist()
    return values
