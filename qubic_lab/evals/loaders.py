"""A user's question files: GSM8K, and tables (JSON lines, CSV, TSV) with a column map.

An example of a column map is `question=Q,options=A|B|C|D,answer=Key`; docs/evaluation.md describes the format.
"""

import csv
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qubic_lab.consensus.quantities import quantities
from qubic_lab.errors import InputError, check_choice, did_you_mean
from qubic_lab.evals.questions import KINDS, Question, check_ids, load_questions, read_objects, read_text

LAYOUTS = ("project", "gsm8k", "mapped")
MOST_BYTES = 64 * 2**20
MOST_QUESTIONS = 100_000
MOST_CHARACTERS = 20_000
"""The maximum of a question, an option or an answer; a longer one indicates a broken file."""
LETTERS = "ABCDEFGH"
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
_PARTS = ("question", "options", "answer", "first", "id", "kind")

Columns = Mapping[str, Any]


@dataclass(frozen=True)
class ColumnMap:
    """The columns of a table; `options` is one column with a list, or one column per option.

    The answer is an option's letter or text, or with `first` its number, counted from there (0 or 1).
    """

    question: str
    answer: str
    options: tuple[str, ...] = ()
    first: int | None = None
    id: str = ""
    kind: str = ""


def load_user_questions(
    file: Path, layout: str = "project", columns: str = "", limit: int | None = None
) -> tuple[Question, ...]:
    """Read a user's questions, or only the first ones.

    `layout` is `project` (as `load_questions`), `gsm8k`, or `mapped` with the column map `columns`, as in
    `parse_column_map`.

    Raises:
        InputError: an argument or the file is wrong; names file and line.
    """
    check_choice("layout", layout, LAYOUTS)
    if (layout == "mapped") != bool(columns):
        raise InputError(f"layout {layout!r} and column map {columns!r}: a map is needed for 'mapped' and only there")
    if layout == "project":
        _check_size(file)
        return load_questions(file)[:limit]
    column_map = parse_column_map(columns) if columns else None
    # One more than the limit, to detect too many.
    rows = itertools.islice(_rows(file), limit or MOST_QUESTIONS + 1)
    questions = tuple(
        _mapped(row, place, f"{file.stem}-{number}", column_map)
        if column_map
        else _gsm8k(row, place, f"{file.stem}-{number}")
        for number, (place, row) in enumerate(rows, 1)
    )
    if not questions:
        raise InputError(f"questions file {file} holds no questions: give at least one row")
    if len(questions) > MOST_QUESTIONS:
        raise InputError(f"questions file {file} holds more than {MOST_QUESTIONS:,} questions: give a limit")
    check_ids(file, questions)
    return questions


def parse_column_map(text: str) -> ColumnMap:
    """Read comma-separated `part=column` pairs; the columns of options are separated by `|`.

    Raises:
        InputError: a part is unknown, repeated, empty or missing, or there are too many options.
    """
    parts: dict[str, str] = {}
    for pair in text.split(","):
        part, _, column = (each.strip() for each in pair.partition("="))
        if not column:
            raise InputError(f"column map has {pair!r}: write part=column, as in question=Q,answer=A")
        check_choice("part of a column map", part, _PARTS)
        if part in parts:
            raise InputError(f"column map has {part} twice: give it once")
        parts[part] = column
    for part in ("question", "answer"):
        if part not in parts:
            raise InputError(f"column map {text!r} has no {part}: add {part}=COLUMN")
    options = tuple(column.strip() for column in parts["options"].split("|")) if "options" in parts else ()
    if "" in options or len(options) > len(LETTERS) or len(set(options)) < len(options):
        raise InputError(
            f"column map has options {parts['options']!r}: name up to {len(LETTERS)} different columns, as A|B|C"
        )
    first = parts.get("first")
    if first is not None and (first not in ("0", "1") or not options):
        raise InputError(f"column map has first={first}: it is 0 or 1, and needs options")
    texts = {part: parts.get(part, "") for part in ("question", "answer", "id", "kind")}
    return ColumnMap(**texts, options=options, first=None if first is None else int(first))


def _gsm8k(row: Columns, place: str, id: str) -> Question:
    solution = _text(row, "answer", place)
    _, mark, answer = solution.rpartition("####")
    if not mark or len(quantities(answer)) != 1:
        raise InputError(f'{place}: the answer ends in {solution[-40:]!r}: GSM8K ends it with "#### NUMBER"')
    return Question(id, _text(row, "question", place), answer.strip(), "analytical")


def _mapped(row: Columns, place: str, id: str, columns: ColumnMap) -> Question:
    question = _text(row, columns.question, place)
    answer = _text(row, columns.answer, place)
    if columns.options:
        options = _options(row, columns.options, place)
        lettered = [f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)]
        question = f"{question} {' '.join(lettered)}"
        answer = lettered[_chosen(answer, options, columns.first, place)]
    kind = check_choice(f"kind of question in {place}", _text(row, columns.kind, place), KINDS) if columns.kind else ""
    return Question(_text(row, columns.id, place) if columns.id else id, question, answer, kind)


def _options(row: Columns, columns: Sequence[str], place: str) -> list[str]:
    values = [_value(row, column, place) for column in columns]
    if len(columns) == 1:
        if not isinstance(values[0], list):
            raise InputError(
                f"{place}: {columns[0]} is {_short(values[0])}, not a list: name each option's column, as options=A|B|C"
            )
        values = list(values[0])
    while values and values[-1] in (None, ""):  # a row may have fewer options than columns
        values.pop()
    if not 2 <= len(values) <= len(LETTERS):
        raise InputError(f"{place} has {len(values)} options: there must be 2 to {len(LETTERS)}")
    # "(B)" within an option would read as the letter of another one.
    return [
        re.sub(r"\(([A-Z])\)", r"[\1]", " ".join(_as_text(value, f"option {letter}", place).split()))
        for letter, value in zip(LETTERS, values, strict=False)
    ]


def _chosen(answer: str, options: Sequence[str], first: int | None, place: str) -> int:
    if first is not None:
        if not answer.isdecimal() or not first <= int(answer) < first + len(options):
            last = first + len(options) - 1
            raise InputError(
                f"{place}: the answer is {_short(answer)}: with first={first} it must be {first} to {last}"
            )
        return int(answer) - first
    letter = answer.strip("(). ").upper()
    found = {
        index
        for index, option in enumerate(options)
        if letter == LETTERS[index] or " ".join(answer.split()).casefold() == option.casefold()
    }
    if len(found) != 1:
        what = "several options" if found else f"neither a letter from A to {LETTERS[len(options) - 1]} nor an option"
        raise InputError(
            f"{place}: the answer {_short(answer)} is {what}: for numbers add first=0 or first=1 to the map"
        )
    return found.pop()


def _rows(file: Path) -> Iterator[tuple[str, Columns]]:
    """Yield each row with its place; the file's suffix decides the format."""
    ending = file.suffix.lower()
    if ending not in (*_SEPARATORS, *_JSON_LINES):
        known = ", ".join((*_JSON_LINES, *_SEPARATORS))
        raise InputError(f"questions file {file} ends in {ending or 'nothing'!r}: known are {known}")
    _check_size(file)
    if ending in _JSON_LINES:
        return read_objects(file, "questions")
    return _table_rows(file, read_text(file, "questions"), _SEPARATORS[ending])


def _table_rows(file: Path, text: str, separator: str) -> Iterator[tuple[str, Columns]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] = []
    begin = 1
    try:
        for cells in reader:
            place, begin = f"{file}:{begin}", reader.line_num + 1
            if not cells:
                continue
            if not names:
                names = [name.strip() for name in cells]
                if len(set(names)) < len(names):
                    raise InputError(f"{place} names a column twice: give each its own name")
            elif len(cells) != len(names):
                raise InputError(f"{place} has {len(cells)} cells: there are {len(names)} columns")
            else:
                yield place, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{file}:{begin} is not a valid row ({error}): check its quotation marks") from error


def _check_size(file: Path) -> None:
    size = file.stat().st_size if file.exists() else 0  # a missing file is reported when it is read
    if size > MOST_BYTES:
        raise InputError(
            f"questions file {file} has {size / 2**20:.0f} MiB: at most {MOST_BYTES // 2**20} are read; cut it"
        )


def _value(row: Columns, column: str, place: str) -> Any:
    if column not in row:
        raise InputError(f"{place} has no column {column!r}: {did_you_mean(column, row)}")
    return row[column]


def _text(row: Columns, column: str, place: str) -> str:
    return _as_text(_value(row, column, place), column, place)


def _as_text(value: Any, name: str, place: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{place}: {name} is {_short(value)}: a text or a number is needed")
    text = str(value).strip()
    if not text:
        raise InputError(f"{place} has no {name}")
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"{place}: {name} has {len(text):,} characters: at most {MOST_CHARACTERS:,} are taken")
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
