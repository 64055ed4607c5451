"""Labelled pairs of answers: one JSON object a line with the fields of `AnswerPair`, all of them texts.

What the labels mean stands in `data/consensus/README.md`.
"""

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path

from qubic_lab.errors import InputError, did_you_mean

LABELS = ("same", "different", "contradicting")
LANGUAGES = ("en", "zh")
KINDS = ("choice", "code", "date", "hard", "number", "prose", "span", "symbolic", "unit")
HALVES = ("dev", "test")
_CHOICES = {"label": LABELS, "language": LANGUAGES, "kind": KINDS}


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to a question, and whether they are the same, different or contradicting."""

    id: str
    language: str
    kind: str
    label: str
    question: str
    a: str
    b: str


_FIELDS = tuple(field.name for field in fields(AnswerPair))


def committed_pairs() -> Path:
    """Return the file of pairs that comes with the project, from the checkout or the installed package."""
    name = "pairs.jsonl"
    checkout = Path(__file__).parents[2] / "data" / "consensus" / name
    return checkout if checkout.exists() else Path(__file__).parent / name


def load_pairs(file: Path) -> tuple[AnswerPair, ...]:
    """Read pairs.

    Raises:
        InputError: the file is missing or empty, or a line is not of the form above; names file and line.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(
            f"pairs file {file} cannot be read ({reason}): give a file of one JSON object a line"
        ) from error
    pairs: dict[str, AnswerPair] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            pair = _pair(line, f"{file}:{number}")
            if pair.id in pairs:
                raise InputError(f"{file}:{number} has the id {pair.id!r} of an earlier line: ids must differ")
            pairs[pair.id] = pair
    if not pairs:
        raise InputError(f"pairs file {file} holds no pairs: give one JSON object a line")
    return tuple(pairs.values())


def pairs_half(id: str) -> str:
    """Return the half that a pair is in for good, `dev` or `test`: what is chosen on one is measured on the other."""
    return HALVES[hashlib.sha256(id.encode()).digest()[0] % 2]


def _pair(line: str, place: str) -> AnswerPair:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place} is not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{place} holds a {type(values).__name__}: an object with {', '.join(_FIELDS)} is needed")
    for name, value in values.items():
        if name not in _FIELDS:
            raise InputError(f"{place} has an unknown field {name!r}: {did_you_mean(name, _FIELDS)}")
        if not isinstance(value, str):
            raise InputError(f"{place}: {name} is {value!r}: a text is needed")
    for name in _FIELDS:
        if not values.get(name, "").strip():
            raise InputError(f"{place} has no {name}")
    for name, known in _CHOICES.items():
        if values[name] not in known:
            raise InputError(f"{place}: unknown {name} {values[name]!r}: {did_you_mean(values[name], known)}")
    return AnswerPair(**values)
