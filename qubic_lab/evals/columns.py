"""Which columns of a table hold the question, its options and the answer: by a map, or recognized by their names."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qubic_lab.errors import InputError, check_choice, did_you_mean
from qubic_lab.evals.choices import LETTERS, Offered, read_offered, shortened
from qubic_lab.evals.questions import KINDS

Row = Mapping[str, Any]
PARTS = ("question", "options", "answer", "first", "id", "kind", "wrong", "context")
_QUESTION = "question questionstem stem prompt problem query goal ctx sentence instruction input q"
_OPTIONS = "choices options answerchoices mc1targets endings candidates alternatives"
_ANSWER = """
answer answerkey correctanswer bestanswer correctoption correctchoice correct gold target groundtruth expectedanswer
referenceanswer reference finalanswer label answerindex answeridx correctindex correctidx solution output response key
cop a
"""
QUESTION, OPTIONS, ANSWER = (tuple(names.split()) for names in (_QUESTION, _OPTIONS, _ANSWER))
"""Names without spaces and signs, the first one found counts."""
RIGHT_TEXT = ("bestanswer", "correctanswer")
"""Beside wrong answers, the right one is looked for here first."""
WRONG = r"(?:incorrect|wrong)answers?\d*|distractors?\d*"
CONTEXT = ("passage", "context", "article")
_SHOWN = 6
"""Names of a missing column in an error."""
_NUMBERED = re.compile(r"(option|choice|op|opt|answer|ans|ending|sol|solution|alternative|)([a-z]|\d{1,2})")


@dataclass(frozen=True)
class ColumnMap:
    """The columns of a table; `options` is one column with all options (`choices.read_offered`), or one column each.

    The answer is an option's letter, label or text, or with `first` its number, counted from there (0 or 1); "" if the
    options are marked. With `wrong` columns the options are the answer and the texts in these. `context` is put before
    the question.
    """

    question: str
    answer: str
    options: tuple[str, ...] = ()
    first: int | None = None
    id: str = ""
    kind: str = ""
    wrong: tuple[str, ...] = ()
    context: str = ""


def parse_column_map(text: str) -> ColumnMap:
    """Read comma-separated `part=column` pairs; the columns of options or wrong answers are separated by `|`.

    Raises:
        InputError: a part is unknown, repeated, empty or missing, or there are too many options.
    """
    parts: dict[str, str] = {}
    for pair in text.split(","):
        part, _, column = (each.strip() for each in pair.partition("="))
        if not column:
            raise InputError(f"column map has {pair!r}: write part=column, as in question=Q,answer=A")
        check_choice("part of a column map", part, PARTS)
        if part in parts:
            raise InputError(f"column map has {part} twice: give it once")
        parts[part] = column
    for part in ("question", "answer"):
        if part not in parts:
            raise InputError(f"column map {text!r} has no {part}: add {part}=COLUMN")
    lists = {name: tuple(column.strip() for column in parts.pop(name, "").split("|")) for name in ("options", "wrong")}
    for name, columns in lists.items():
        if columns != ("",) and ("" in columns or len(columns) > len(LETTERS) or len(set(columns)) < len(columns)):
            raise InputError(
                f"column map has {name} {'|'.join(columns)!r}: name up to {len(LETTERS)} different columns, as A|B|C"
            )
    options, wrong = (() if columns == ("",) else columns for columns in lists.values())
    first = parts.pop("first", None)
    if first is not None and (first not in ("0", "1") or not options):
        raise InputError(f"column map has first={first}: it is 0 or 1, and needs options")
    return ColumnMap(**parts, options=options, wrong=wrong, first=None if first is None else int(first))


def recognize(file: Path, rows: Sequence[Row]) -> ColumnMap:
    """Return the columns of a file by their names, and whether numbers of options are counted from 0 or 1.

    Raises:
        InputError: a column is missing, or answers can be read in two ways; says what was looked for and what is there.
    """
    columns = list(rows[0])
    known = {_bare(name): name for name in reversed(columns)}
    question = _find(known, QUESTION)
    options = _option_columns(known)
    wrong = () if options else tuple(name for name in columns if re.fullmatch(WRONG, _bare(name)))
    answer = _find(known, [*RIGHT_TEXT, *ANSWER] if wrong else ANSWER, but=[question, *options, *wrong])
    is_marked = bool(options) and offered(rows[0], options, f"{file}").right is not None
    if not question:
        raise _missing(file, "question", QUESTION, columns)
    if not answer and not is_marked:
        raise _missing(file, "answer", ANSWER, columns)
    ids = [str(row.get(known["id"], "")).strip() for row in rows] if "id" in known else [""]
    kinds = {str(row.get(known["kind"])) for row in rows} if "kind" in known else {""}
    found = ColumnMap(
        question=question,
        answer="" if is_marked else answer,
        options=options,
        id=known["id"] if all(ids) and len(set(ids)) == len(ids) else "",
        kind=known["kind"] if kinds <= set(KINDS) else "",
        wrong=wrong,
        context=_find(known, CONTEXT, but=[question]),
    )
    return found if is_marked or not options else replace(found, first=_counted_from(file, rows, found))


def offered(row: Row, columns: Sequence[str], place: str) -> Offered:
    """Return the options of a row from one column or several; empty ones at the end are left out."""
    if len(columns) == 1:
        found = read_offered(cell(row, columns[0], place), f"{place}: {columns[0]}")
    else:
        found = Offered(tuple(cell(row, column, place) for column in columns), tuple(LETTERS[: len(columns)]))
    texts = list(found.texts)
    while texts and texts[-1] in (None, ""):  # a row may have fewer options than columns
        texts.pop()
    return replace(found, texts=tuple(texts), labels=found.labels[: len(texts)])


def cell(row: Row, column: str, place: str) -> Any:
    """Return a row's value of a column, or raise an InputError with the nearest name."""
    if column not in row:
        raise InputError(f"{place} has no column {column!r}: {did_you_mean(column, row)}")
    return row[column]


def named_options(answer: str, found: Offered) -> set[int]:
    """Return the options that an answer names by label or text."""
    said = " ".join(answer.split()).casefold()
    label, texts = re.sub(r"^(?:option|choice)\s", "", said).strip("(). "), {said, re.sub(r"^\(?\w[).:]\s*", "", said)}
    return {
        place
        for place, (own, option) in enumerate(zip(found.labels, found.texts, strict=True))
        if label == own.casefold() or " ".join(str(option).split()).casefold() in texts
    }


def _option_columns(known: Mapping[str, str]) -> tuple[str, ...]:
    """Return the column of all options, else those that differ in a letter or number: A, B, C or option1, option2."""
    if found := _find(known, OPTIONS):
        return (found,)
    families: dict[str, list[str]] = {}
    for name in known:
        if numbered := _NUMBERED.fullmatch(name):
            families.setdefault(numbered[1], []).append(numbered[2])
    for stem, ends in families.items():
        for run in (list(map(str.lower, LETTERS)), list(map(str, range(26))), list(map(str, range(1, 27)))):
            count = next(place for place, end in enumerate([*run, None]) if end not in ends)
            if count > 1 and (stem or run[0] == "a"):
                return tuple(known[stem + end] for end in run[:count])
    return ()


def _counted_from(file: Path, rows: Sequence[Row], found: ColumnMap) -> int | None:
    """Return from where the answers count options, or None if they are letters, labels or texts."""
    answers = [cell(row, found.answer, f"{file}") for row in rows]
    if not all(isinstance(each, int) or (isinstance(each, str) and each.strip().isdecimal()) for each in answers):
        return None
    choices = [offered(row, found.options, f"{file}") for row in rows]
    if all(each.labels != tuple(LETTERS[: len(each.labels)]) for each in choices):
        return None  # labels of its own, which may be numbers
    by_name = not all(isinstance(each, int) for each in answers) and all(
        len(named_options(str(answer), each)) == 1 for answer, each in zip(answers, choices, strict=True)
    )
    starts = [
        first
        for first in (0, 1)
        if all(first <= int(answer) < first + len(each.texts) for answer, each in zip(answers, choices, strict=True))
    ]
    if by_name + len(starts) != 1:
        options = "|".join(found.options)
        seen = ", ".join(sorted({str(answer) for answer in answers})[:5])
        raise InputError(
            f"{file}: the answers {seen} may be texts or numbers of options from 0 or 1: say which by --map "
            f"'question={found.question},options={options},answer={found.answer},first=0', or first=1, or neither"
        )
    return None if by_name else starts[0]


def _find(known: Mapping[str, str], looked: Sequence[str], but: Sequence[str] = ()) -> str:
    return next((known[name] for name in looked if name in known and known[name] not in but), "")


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()


def _missing(file: Path, part: str, looked: Sequence[str], columns: Sequence[str]) -> InputError:
    near = [name for name in columns if difflib.get_close_matches(_bare(name), looked, n=1, cutoff=0.75)]
    hint = f"is it {near[0]!r}? N" if near else "n"
    return InputError(
        f"questions file {file} has no column with the {part}: looked for {', '.join(looked[:_SHOWN])} and so on; "
        f"there are {shortened(columns) if len(columns) > 40 else ', '.join(columns)}; {hint}ame it by --map, as in "
        "question=COLUMN,answer=COLUMN"
    )
