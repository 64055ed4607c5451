"""A user's question files: tables (JSON, JSON lines, CSV, TSV) whose columns are recognized or mapped, and GSM8K.

An example of a column map is `question=Q,options=A|B|C|D,answer=Key`; docs/evaluation.md describes the format.
"""

import csv
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qubic_lab.consensus.conclusions import boxed
from qubic_lab.consensus.quantities import quantities
from qubic_lab.errors import InputError, check_choice
from qubic_lab.evals.choices import LETTERS, lettered, shortened, split_texts, warn_of_one_letter
from qubic_lab.evals.columns import ColumnMap, Row, cell, named_options, offered, parse_column_map, recognize
from qubic_lab.evals.questions import FIELDS, KINDS, Question, check_ids, load_questions, read_objects, read_text
from qubic_lab.evals.scoring import right_option

LAYOUTS = ("auto", "project", "gsm8k", "mapped")
MOST_BYTES = 64 * 2**20
MOST_QUESTIONS = 100_000
MOST_CHARACTERS = 20_000
"""The maximum of a question, an option or an answer; a longer one indicates a broken file."""
GSM8K_MARK = "####"
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
_ENDINGS = (*_JSON_LINES, ".json", *_SEPARATORS)


@dataclass(frozen=True)
class _Loaded:
    """A question, and the letter of its right option as the file gives it, or ""."""

    question: Question
    letter: str = ""


def load_user_questions(
    file: Path, layout: str = "auto", columns: str = "", limit: int | None = None, seed: int = 0
) -> tuple[Question, ...]:
    """Read a user's questions, or only the first ones; options in columns are shuffled by the seed.

    `layout` is `auto` (columns are recognized by their names, see `columns.recognize`), `project` (as
    `load_questions`), `gsm8k`, or `mapped` with the column map `columns`, as in `parse_column_map`. A file whose right
    options are nearly all the same letter causes a warning.

    Raises:
        InputError: an argument or the file is wrong; names file and line.
    """
    check_choice("layout", layout, LAYOUTS)
    layout = "mapped" if columns and layout == "auto" else layout
    if (layout == "mapped") != bool(columns):
        raise InputError(f"layout {layout!r} and column map {columns!r}: a map is needed for 'mapped' and only there")
    if layout == "project":
        return _project(file, limit)
    column_map = parse_column_map(columns) if columns else None
    # One more than the limit, to detect too many; to recognize columns, all rows are read.
    most = limit if limit and layout != "auto" else MOST_QUESTIONS + 1
    rows = list(itertools.islice(_rows(file), most))
    if not rows:
        raise InputError(f"questions file {file} holds no questions: give at least one row")
    if layout == "auto":
        first = rows[0][1]
        is_ours = {"id", "question"} <= first.keys() <= set(FIELDS) and all(
            isinstance(each, str) for each in first.values()
        )
        if is_ours and file.suffix.lower() in _JSON_LINES:
            return _project(file, limit)
        column_map = recognize(file, [row for _, row in rows])
    if len(rows) > MOST_QUESTIONS and not limit:
        raise InputError(f"questions file {file} holds more than {MOST_QUESTIONS:,} questions: give a limit")
    loaded = [
        _mapped(row, place, f"{file.stem}-{number}", column_map, seed)
        if column_map
        else _Loaded(_gsm8k(row, place, f"{file.stem}-{number}"))
        for number, (place, row) in enumerate(rows[:limit], 1)
    ]
    questions = tuple(each.question for each in loaded)
    check_ids(file, questions)
    warn_of_one_letter(file, [each.letter for each in loaded if each.letter], f"options are shuffled by seed {seed}")
    _warn_of_unshuffled(file, [each.question for each in loaded if not each.letter])
    return questions


def _project(file: Path, limit: int | None) -> tuple[Question, ...]:
    """Read a file in the project's form; options stand in the questions, so they cannot be shuffled."""
    _check_size(file)
    questions = load_questions(file)[:limit]
    _warn_of_unshuffled(file, questions)
    return questions


def _warn_of_unshuffled(file: Path, questions: Sequence[Question]) -> None:
    letters = [letter for each in questions if (letter := right_option(each))]
    warn_of_one_letter(file, letters, "give the options in columns of their own, so that they are shuffled")


def _gsm8k(row: Row, place: str, id: str) -> Question:
    answer = _text(row, "answer", place)
    return Question(id, _text(row, "question", place), _after_mark(answer, place), "analytical")


def _after_mark(solution: str, place: str) -> str:
    _, mark, answer = solution.rpartition(GSM8K_MARK)
    if not mark or len(quantities(answer)) != 1:
        raise InputError(f'{place}: the answer ends in {solution[-40:]!r}: GSM8K ends it with "#### NUMBER"')
    return answer.strip()


def _mapped(row: Row, place: str, id: str, columns: ColumnMap, seed: int) -> _Loaded:
    question = _text(row, columns.question, place)
    if columns.context:
        question = f"{_text(row, columns.context, place)}\n\n{question}"
    kind = check_choice(f"kind of question in {place}", _text(row, columns.kind, place), KINDS) if columns.kind else ""
    id = _text(row, columns.id, place) if columns.id else id
    if columns.options:
        texts, right = _chosen(row, columns, place)
        return _Loaded(Question(id, *lettered(question, texts, right, seed), kind), LETTERS[right])
    answer = _text(row, columns.answer, place)
    if columns.wrong:
        texts = _beside_wrong_ones(row, columns, answer, place)
        return _Loaded(Question(id, *lettered(question, texts, 0, seed), kind))
    if GSM8K_MARK in answer:
        return _Loaded(Question(id, question, _after_mark(answer, place), kind or "analytical"))
    return _Loaded(Question(id, question, (boxed(answer) or answer).strip(), kind))


def _chosen(row: Row, columns: ColumnMap, place: str) -> tuple[list[str], int]:
    """Return the options, and the index of the right one."""
    found = offered(row, columns.options, place)
    texts = [_as_text(value, f"option {letter}", place) for letter, value in zip(LETTERS, found.texts, strict=False)]
    if not 2 <= len(texts) <= len(LETTERS):
        raise InputError(f"{place} has {len(texts)} options: there must be 2 to {len(LETTERS)}")
    if found.right is not None:
        return texts, found.right
    answer, first = _text(row, columns.answer, place), columns.first
    if first is not None:
        if not answer.isdecimal() or not first <= int(answer) < first + len(texts):
            last = first + len(texts) - 1
            raise InputError(
                f"{place}: the answer is {shortened(answer)}: with first={first} it must be {first} to {last}"
            )
        return texts, int(answer) - first
    named = named_options(answer, found)
    if len(named) != 1:
        what = "several options" if named else f"neither a letter from A to {LETTERS[len(texts) - 1]} nor an option"
        raise InputError(
            f"{place}: the answer {shortened(answer)} is {what}: for numbers add first=0 or first=1 to the map"
        )
    return texts, named.pop()


def _beside_wrong_ones(row: Row, columns: ColumnMap, answer: str, place: str) -> list[str]:
    """Return the right answer, and the different wrong ones."""
    values = [value for column in columns.wrong for value in split_texts(cell(row, column, place))]
    wrong = [_as_text(value, columns.wrong[0], place) for value in values if value not in (None, "")]
    texts = list(dict.fromkeys([answer, *wrong]))
    if not 2 <= len(texts) <= len(LETTERS):
        raise InputError(f"{place} has {len(texts)} options: there must be 2 to {len(LETTERS)}")
    return texts


def _rows(file: Path) -> Iterator[tuple[str, Row]]:
    """Yield each row with its place; the file's suffix decides the format."""
    ending = file.suffix.lower()
    if ending not in _ENDINGS:
        raise InputError(f"questions file {file} ends in {ending or 'nothing'!r}: known are {', '.join(_ENDINGS)}")
    _check_size(file)
    if ending in _SEPARATORS:
        return _table_rows(file, read_text(file, "questions"), _SEPARATORS[ending])
    return (
        (place, _flat(row)) for place, row in (read_objects if ending in _JSON_LINES else _json_rows)(file, "questions")
    )


def _json_rows(file: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSON array, of its `rows` or `data`, or of JSON lines under another name."""
    try:
        content = json.loads(read_text(file, what))
    except (ValueError, RecursionError):
        yield from read_objects(file, what)
        return
    if isinstance(content, dict):
        content = content.get("rows", content.get("data", [content]))
    for number, row in enumerate(content if isinstance(content, list) else [content], 1):
        row = row.get("row", row) if isinstance(row, dict) else row
        if not isinstance(row, dict):
            raise InputError(f"{file}, entry {number} holds a {type(row).__name__}: named fields are needed")
        yield f"{file}, entry {number}", row


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with a question that is an object (stem, choices) in columns."""
    nested = row.get("question")
    return {**row, **nested, "question": nested["stem"]} if isinstance(nested, Mapping) and "stem" in nested else row


def _table_rows(file: Path, text: str, separator: str) -> Iterator[tuple[str, Row]]:
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


def _text(row: Row, column: str, place: str) -> str:
    return _as_text(cell(row, column, place), column, place)


def _as_text(value: Any, name: str, place: str) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        value = "yes" if value else "no"
    if not isinstance(value, str | int | float):
        raise InputError(f"{place}: {name} is {shortened(value)}: a text or a number is needed")
    text = str(value).strip()
    if not text:
        raise InputError(f"{place} has no {name}")
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"{place}: {name} has {len(text):,} characters: at most {MOST_CHARACTERS:,} are taken")
    return text
