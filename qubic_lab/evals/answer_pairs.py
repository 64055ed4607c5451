"""Labelled pairs of answers: JSON lines with the fields of `AnswerPair`, all of them texts.

`data/consensus/README.md` explains the labels.
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
    """Return the project's own file of pairs, from the checkout or the installed package."""
    name = "pairs.jsonl"
    checkout = Path(__file__).parents[2] / "data" / "consensus" / name
    return checkout if checkout.exists() else Path(__file__).parent / name


def load_pairs(file: Path) -> tuple[AnswerPair, ...]:
    """Read pairs.

    Raises:
        InputError: the file is missing or empty, or a line is invalid; names file and line.
    """
    pairs: dict[str, AnswerPair] = {}
    for place, texts in read_texts(file, "pairs", _FIELDS):
        check_present(place, texts, _FIELDS)
        for name, known in _CHOICES.items():
            if texts[name] not in known:
                raise InputError(f"{place}: unknown {name} {texts[name]!r}: {did_you_mean(texts[name], known)}")
        if texts["id"] in pairs:
            raise InputError(f"{place} has the id {texts['id']!r} of an earlier line: ids must differ")
        pairs[texts["id"]] = AnswerPair(**texts)
    return tuple(pairs.values())


def pairs_half(id: str) -> str:
    """Return the permanent half of a pair: choices are made on `dev` and measured on `test`."""
    return HALVES[hashlib.sha256(id.encode()).digest()[0] % 2]
