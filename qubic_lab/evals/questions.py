"""Question sets: JSON lines with `id`, `question`, `answer` (the reference) and optionally `kind`; their reader.

A creative question has no right answer and may omit the reference.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.provenance import data_file

KINDS = ("factual", "analytical", "technical", "creative")
SETS = ("general", *KINDS)
"""The project's own files; the first has questions of every kind."""
FIELDS = ("id", "question", "answer", "kind")


@dataclass(frozen=True)
class Question:
    """A question with its reference answer, or ""; `kind` may be ""."""

    id: str
    question: str
    answer: str
    kind: str = ""


def committed_questions(name: str = "general") -> Path:
    """Return one of the project's question files (SETS)."""
    return data_file(f"questions/{name}.jsonl", __file__)


def committed_by_kind(kind: str) -> tuple[Question, ...]:
    """Return all written questions of a kind: those of the general set, then those of its own."""
    both = (*load_questions(committed_questions()), *load_questions(committed_questions(kind)))
    return tuple(question for question in both if question.kind == kind)


def load_questions(file: Path) -> tuple[Question, ...]:
    """Read a question set.

    Raises:
        InputError: the file is missing or empty, or a line is invalid; names file and line.
    """
    questions = tuple(_question(place, fields) for place, fields in read_objects(file, "questions"))
    check_ids(file, questions)
    return questions


def check_ids(file: Path, questions: Iterable[Question]) -> None:
    """Raise an InputError if two ids are equal."""
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise InputError(f"questions file {file} has id {question.id!r} more than once: ids must differ")
        seen.add(question.id)


def _question(place: str, fields: dict[str, Any]) -> Question:
    for name, value in fields.items():
        if name not in FIELDS:
            raise InputError(f"{place} has an unknown field {name!r}: {did_you_mean(name, FIELDS)}")
        if not isinstance(value, str):
            raise InputError(f"{place}: {name} is {value!r}: a text is needed")
    is_creative = fields.get("kind") == "creative"  # without a right answer
    for name in ("id", "question") if is_creative else ("id", "question", "answer"):
        if not fields.get(name, "").strip():
            raise InputError(f"{place} has no {name}")
    return Question(**{"answer": "", **fields})


def read_text(file: Path, what: str) -> str:
    """Return a file's text with its line ends, without a byte order mark; `what` is its content in errors, a plural.

    Raises:
        InputError: the file cannot be read, or is not UTF-8.
    """
    try:
        return file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"{what} file {file} cannot be read ({reason}): give a file of UTF-8 text") from error


def read_objects(file: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each object with its place `FILE:LINE`; empty lines are skipped.

    Raises:
        InputError: as `read_text`, the file is empty, or a line is not a JSON object.
    """
    lines = re.split(r"\r\n?|\n", read_text(file, what))
    if not any(line.strip() for line in lines):
        raise InputError(f"{what} file {file} holds no {what}: give one JSON object a line")
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{file}:{number}"
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place} is not valid JSON ({error})") from error
            if not isinstance(fields, dict):
                raise InputError(f"{place} holds a {type(fields).__name__}: an object with named fields is needed")
            yield place, fields
