"""Labelled pairs of answers: one JSON object a line with the fields of `AnswerPair`, all of them texts.

What the labels mean stands in `data/consensus/README.md`.
"""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.evals.json_lines import check_present, read_texts

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
    pairs: dict[str, AnswerPair] = {}
    for place, texts in read_texts(file, "pairs", _FIELDS, _FIELDS):
        check_present(place, texts, _FIELDS)
        for name, known in _CHOICES.items():
            if texts[name] not in known:
                raise InputError(f"{place}: unknown {name} {texts[name]!r}: {did_you_mean(texts[name], known)}")
        if texts["id"] in pairs:
            raise InputError(f"{place} has the id {texts['id']!r} of an earlier line: ids must differ")
        pairs[texts["id"]] = AnswerPair(**texts)
    return tuple(pairs.values())


def pairs_half(id: str) -> str:
    """Return the half that a pair is in for good, `dev` or `test`: what is chosen on one is measured on the other."""
    return HALVES[hashlib.sha256(id.encode()).digest()[0] % 2]
