"""Question sets: one JSON object a line with `id`, `question`, `answer` (the reference) and optionally `kind`."""

import json
from dataclasses import dataclass
from pathlib import Path

from qubic_lab.errors import InputError, did_you_mean

_REQUIRED = ("id", "question", "answer")
_KNOWN = (*_REQUIRED, "kind")


@dataclass(frozen=True)
class Question:
    """A question with its reference answer; `kind` may be empty."""

    id: str
    question: str
    answer: str
    kind: str = ""


def committed_questions() -> Path:
    """Return the file of questions that comes with the project, from the checkout or the installed package."""
    name = "general.jsonl"
    checkout = Path(__file__).parents[2] / "data" / "questions" / name
    return checkout if checkout.exists() else Path(__file__).parent / name


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
    ids = [question.id for question in questions]
    if repeated := next((i for i in ids if ids.count(i) > 1), None):
        raise InputError(f"questions file {file} has id {repeated!r} more than once: ids must differ")
    return questions


def _question(line: str, place: str) -> Question:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place} is not valid JSON ({error})") from error
    if not isinstance(fields, dict):
        raise InputError(f"{place} holds a {type(fields).__name__}: an object with {', '.join(_REQUIRED)} is needed")
    for name, value in fields.items():
        if name not in _KNOWN:
            raise InputError(f"{place} has an unknown field {name!r}: {did_you_mean(name, _KNOWN)}")
        if not isinstance(value, str):
            raise InputError(f"{place}: {name} is {value!r}: a text is needed")
    for name in _REQUIRED:
        if not fields.get(name, "").strip():
            raise InputError(f"{place} has no {name}")
    return Question(**fields)
