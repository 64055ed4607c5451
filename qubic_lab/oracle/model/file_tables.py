"""Tables in files, cell by cell as they stand there: CSV with any delimiter, JSON and Parquet, plain or compressed."""

import csv
import gzip
import io
import itertools
import json
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from qubic_lab.errors import InputError

MOST_BYTES = 2 << 30
"""Larger files, uncompressed, are refused: they would fill the memory."""
_PART_BYTES = 1 << 20
DELIMITERS = (",", ";", "\t", "|")
_DAMAGES = (EOFError, RuntimeError, ValueError, OverflowError, IndexError, KeyError)
"""What readers of archives raise, besides errors of their own, at a damaged one."""
_BANNER_LINES = 30
"""A header is looked for in the first lines, behind a banner."""


@dataclass(frozen=True)
class FileTable:
    """Cells as they stand in a file: texts, or values if the file has types; None for no value.

    Attributes:
        header: the columns' names; their numbers from 1 if the file has none, and is not `named`.
        lines: the line (in Parquet and JSON: the row) of each row, from 1.
        notes: what was left out, for the user.
    """

    file: str
    header: tuple[str, ...]
    rows: list[Sequence[Any]]
    lines: list[int]
    named: bool = True
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows:
            raise InputError(f"{self.file}: there are no rows below the header: export it again")
        for line, row in zip(self.lines, self.rows, strict=True):
            if len(row) != len(self.header):
                raise InputError(
                    f"{self.file}:{line}: {len(row)} cells where the header has {len(self.header)}: "
                    "correct the line or leave it out"
                )

    def column(self, number: int) -> list[Any]:
        """Return all cells of a column, by its number from 0."""
        return [row[number] for row in self.rows]

    def where(self, kept: Sequence[bool]) -> "FileTable":
        """Return the table with some of its rows."""
        rows, lines = list(itertools.compress(self.rows, kept)), list(itertools.compress(self.lines, kept))
        return replace(self, rows=rows, lines=lines)

    def places(self) -> list[str]:
        """Return where each row is, for errors."""
        return [f"{self.file}:{line}" for line in self.lines]

    def listed(self) -> str:
        """Return the first names of columns, for errors."""
        return ", ".join(map(repr, self.header[:12]))

    def unused(self, used: Collection[int | None]) -> list[str]:
        """Return a note on the named columns that are not used, if any."""
        names = [name for number, name in enumerate(self.header) if number not in used and name]
        return [f"columns not used: {', '.join(names)}"] if names else []


def starts_with_time(cells: Sequence[str]) -> bool:
    """Return whether a row begins with a number of seconds or less since 1970."""
    return len(cells) > 1 and re.fullmatch(r"\d{9,19}", cells[0].strip()) is not None


def read_table(
    path: Path,
    is_header: Callable[[Sequence[str]], bool],
    is_row: Callable[[Sequence[str]], bool] = starts_with_time,
    *,
    delimiters: Sequence[str] = DELIMITERS,
    encoding: str = "utf-8",
) -> FileTable:
    """Read a file by its ending: .parquet, .jsonl, .json, else CSV; all but the first also in .gz or .zip.

    Args:
        path: the file.
        is_header: tells a row that names columns from a banner before it.
        is_row: tells the first row of CSV that has no header at all; its columns get their numbers as names.
        delimiters: of CSV; the first one that gives a header, or such a row, is taken.
        encoding: of a file that is not in UTF-8; by default such a file is refused.

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
    if len(content) > MOST_BYTES:
        raise InputError(f"{path.name}: more than {MOST_BYTES >> 30} GiB: split the file")
    try:
        text = _decoded(content, encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path.name}:{line}: not in UTF-8: save the file as CSV in UTF-8") from error
    if not text.strip():
        raise InputError(f"{path.name}: the file is empty: export it again")
    if name.lower().endswith((".jsonl", ".ndjson")):
        return _read_json_lines(path.name, text)
    if name.lower().endswith(".json"):
        return _read_json(path.name, text)
    return _read_csv(path.name, text, is_header, is_row, delimiters)


def _decoded(content: bytes, encoding: str) -> str:
    try:
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        if encoding == "utf-8":
            raise
        return content.decode(encoding)


def _unpack(path: Path) -> tuple[str, bytes]:
    """Return the name and the content of the file, or of the one that is compressed in it."""
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as file:
                return path.stem, _content(file)
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
                if len(names) == 1:
                    with archive.open(names[0]) as member:
                        return names[0], _content(member)
            raise InputError(f"{path.name}: the archive holds {len(names)} files: unpack it and give one")
    except InputError:
        raise
    except (*_DAMAGES, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, struct.error) as error:
        raise InputError(f"{path.name}: the archive is damaged ({error}): fetch it again") from error
    with path.open("rb") as plain:
        return path.name, _content(plain)


def _content(file: IO[bytes] | gzip.GzipFile) -> bytes:
    """Return a file's content, or somewhat more than MOST_BYTES of it; a single read would reserve as much memory."""
    parts = iter(lambda: file.read(_PART_BYTES), b"")
    return b"".join(itertools.islice(parts, MOST_BYTES // _PART_BYTES + 1))


def _read_csv(
    file: str,
    text: str,
    is_header: Callable[[Sequence[str]], bool],
    is_row: Callable[[Sequence[str]], bool],
    delimiters: Sequence[str],
) -> FileTable:
    heads = {each: list(itertools.islice(_rows(file, text, each), _BANNER_LINES)) for each in delimiters}
    for delimiter, head in heads.items():
        for line, row in head:
            if is_header(names := _names(row)):
                return _below(file, text, delimiter, line, names)
    for delimiter, head in heads.items():
        first = head[0][1] if head else []
        if is_row(first):
            numbers = tuple(str(number + 1) for number in range(len(_trimmed(first))))
            return _below(file, text, delimiter, 0, numbers)
    banner = text.strip().split("\n", 1)[0].strip()
    raise InputError(f"{file}:1: {banner[:60]!r} names no columns that are known: map them, such as close=Last")


def _rows(file: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not empty with the number of its first line."""
    csv.field_size_limit(1 << 24)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    line = 1
    try:
        for row in reader:
            if any(map(str.strip, row)):
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{file}:{line}: cannot be read as CSV ({error}): check its quotes") from error


def _names(row: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.strip().strip("<>").strip() for name in _trimmed(row))


def _trimmed(row: Sequence[str]) -> Sequence[str]:
    """Return a row without the empty cell behind a delimiter at the line's end."""
    return row[:-1] if len(row) > 1 and not row[-1].strip() else row


def _below(file: str, text: str, delimiter: str, header_line: int, header: tuple[str, ...]) -> FileTable:
    """Return the rows below the header; `header_line` is 0 if there is none."""
    rows: list[Sequence[Any]] = []
    lines: list[int] = []
    banners = repeated = 0
    for line, row in _rows(file, text, delimiter):
        if line <= header_line:
            banners += line < header_line
            continue
        if row[0].strip().strip("<>") == header[0] and _names(row) == header:
            repeated += 1  # concatenated files
            continue
        rows.append(row if len(row) == len(header) else _trimmed(row))
        lines.append(line)
    notes = [f"{banners} banner line(s) before the header skipped"] * bool(banners)
    notes += [f"{repeated} repeated header(s) skipped"] * bool(repeated)
    return FileTable(file, header, rows, lines, bool(header_line), tuple(notes))


def _read_json(file: str, text: str) -> FileTable:
    """Return a list of lists, as exchanges' interfaces give bars, or of objects, as NewsAPI gives articles.

    An object with `prices` is what CoinGecko gives at /coins/ID/market_chart: quotes with volumes of 24 hours.
    Lines are their numbers.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON ({error}): fetch it again") from error
    if isinstance(found, dict) and found.get("status") == "error":
        raise InputError(f"{file}: holds an error instead of articles ({str(found.get('message'))[:200]}): ask again")
    if isinstance(found, dict) and isinstance(found.get("prices"), list):
        return _read_market_chart(file, found)
    found = found.get("articles") if isinstance(found, dict) else found
    if isinstance(found, list) and found and all(isinstance(row, dict) for row in found):
        return _of_objects(file, dict(enumerate(found, 1)))
    if not isinstance(found, list) or not all(isinstance(row, list) for row in found):
        raise InputError(f"{file}: a list of lists is needed, one for each bar, or of objects, or NewsAPI's articles")
    header = tuple(str(number + 1) for number in range(len(found[0]) if found else 0))
    return FileTable(file, header, found, list(range(1, len(found) + 1)), named=False)


def _read_market_chart(file: str, chart: Mapping[str, Any]) -> FileTable:
    """Return a row for each price; market caps and volumes are those of the same time."""
    names = ("prices", "market_caps", "total_volumes")
    columns: list[dict[Any, Any]] = []
    for name in names:
        pairs = chart.get(name) or []
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise InputError(f"{file}: `{name}` are not pairs of a time and a value: fetch it again")
        columns.append(dict(pairs))
    rows: list[Sequence[Any]] = [(at, *(column.get(at) for column in columns)) for at in columns[0]]
    return FileTable(file, ("timestamp", "price", "market cap", "total volume"), rows, list(range(1, len(rows) + 1)))


def _read_json_lines(file: str, text: str) -> FileTable:
    objects: dict[int, dict[str, Any]] = {}
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}:{line}: not JSON ({error}): one object a line is needed") from error
        if not isinstance(found, dict):
            raise InputError(f"{file}:{line}: no JSON object: one a line is needed")
        objects[line] = found
    return _of_objects(file, objects)


def _of_objects(file: str, objects: Mapping[int, Mapping[str, Any]]) -> FileTable:
    header = tuple(dict.fromkeys(key for found in objects.values() for key in found))
    return FileTable(file, header, [[found.get(key) for key in header] for found in objects.values()], list(objects))


def _read_parquet(path: Path) -> FileTable:
    """Return a Parquet file's values; times lose what is finer than a microsecond."""
    import pyarrow
    import pyarrow.parquet

    with path.open("rb"):  # a missing or forbidden file is told as any other
        pass
    try:
        table = pyarrow.parquet.read_table(path)
        columns = [
            column.cast(pyarrow.timestamp("us", column.type.tz), safe=False)
            if pyarrow.types.is_timestamp(column.type)
            else column
            for column in table.columns
        ]
        rows: list[Sequence[Any]] = list(zip(*(column.to_pylist() for column in columns), strict=True))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, TypeError) as error:
        raise InputError(f"{path.name}: no Parquet file, or damaged: fetch it again") from error
    return FileTable(path.name, tuple(table.column_names), rows, list(range(1, len(rows) + 1)))
