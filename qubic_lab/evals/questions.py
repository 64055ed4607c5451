"""Question sets: one JSON object a line with `id`, `question`, `answer` (the reference) and optionally `kind`.

A creative question has no right answer and may leave the reference out.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qubic_lab.errors import InputError, check_choice, did_you_mean

KINDS = ("factual", "analytical", "technical", "creative")
SETS = ("general", *KINDS)
"""The files that come with the project; the first has some of every kind."""
_REQUIRED = ("id", "question", "answer")
_KNOWN = (*_REQUIRED, "kind")


@dataclass(frozen=True)
class Question:
    """A question with its reference answer, which is empty where there is none; `kind` may be empty."""

    id: str
    question: str
    answer: str
    kind: str = ""


def committed_questions(name: str = "general") -> Path:
    """Return a file of questions that comes with the project, from the checkout or the installed package.

    Raises:
        InputError: `name` is none of SETS.
    """
    file = f"{check_choice('question set', name, SETS)}.jsonl"
    checkout = Path(__file__).parents[2] / "data" / "questions" / file
    return checkout if checkout.exists() else Path(__file__).parent / file


def committed_by_kind(kind: str) -> tuple[Question, ...]:
    """Return all written questions of a kind: those of the general set, then those of its own.

    Raises:
        InputError: `kind` is none of KINDS.
    """
    check_choice("kind of question", kind, KINDS)
    both = (*load_questions(committed_questions()), *load_questions(committed_questions(kind)))
    return tuple(question for question in both if question.kind == kind)


def load_questions(file: Path) -> tuple[Question, ...]:
    """Read a question set.

    Raises:
        InputError: the file is missing or empty, or a line is not of the form above; names file and line.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(
            f"questions file {file} cannot be read ({reason}): give a file of one JSON object a line"
        ) from error
    questions = tuple(_question(line, f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip())
    if not questions:
        raise InputError(f"questions file {file} holds no questions: give one JSON object a line")
    check_ids(file, questions)
    return questions


def check_ids(file: Path, questions: Iterable[Question]) -> None:
    """Check that no two questions have one id.

    Raises:
        InputError: two have; names the id.
    """
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise InputError(f"questions file {file} has id {question.id!r} more than once: ids must differ")
        seen.add(question.id)


def _question(line: str, place: str) -> Question:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not valid JSON ({error})") from error
    if not isinstance(fields, dict):
        raise InputError(f"{place} holds a {type(fields).__name__}: an object with {', '.join(_REQUIRED)} is needed")
    for name, value in fields.items():
        if name not in _KNOWN:
            raise InputError(f"{place} has an unknown field {name!r}: {did_you_mean(name, _KNOWN)}")
        if not isinstance(value, str):
            raise InputError(f"{place}: {name} is {value!r}: a text is needed")
    if fields.get("kind") == "creative":
        fields.setdefault("answer", "")
    for name in _REQUIRED:
        if not fields.get(name, "").strip() and not (name == "answer" and fields.get("kind") == "creative"):
            raise InputError(f"{place} has no {name}")
    return Question(**fields)
