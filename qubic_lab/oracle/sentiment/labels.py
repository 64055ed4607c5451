"""How files and models spell the three labels."""

import re
from collections.abc import Mapping, Sequence

from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.oracle.sentiment.scores import LABELS

SKIP = "skip"
"""Rows with a label that is mapped to this are left out."""
_SPELLINGS = {
    "negative": ("negative", "neg", "bearish", "bear", "bad", "-", "down", "very negative", "sell"),
    "neutral": ("neutral", "neu", "none", "mixed", "hold", "sideways"),
    "positive": ("positive", "pos", "bullish", "bull", "good", "+", "up", "very positive", "buy"),
}
_KNOWN = {spelling: label for label, spellings in _SPELLINGS.items() for spelling in spellings}
_SIGNS = {-1: "negative", 0: "neutral", 1: "positive"}
_NUMBER = re.compile(r"[-+]?\d+(?:\.0+)?")


def read_label(spelling: object) -> str:
    """Return the label that a word means.

    Raises:
        InputError: it is none that is known.
    """
    label = _KNOWN.get(_plain(spelling))
    if label is None:
        shown = str(spelling)[:60]
        raise InputError(
            f"unknown label {shown!r}: {did_you_mean(_plain(shown), LABELS)}; say what it means, "
            f"such as --map {shown!r}=neutral, or =skip to leave such rows out"
        )
    return label


def read_labels(spellings: Sequence[object], mapping: Mapping[str, str] | None = None) -> list[str | None]:
    """Return the label of each spelling; None for those that are to be left out.

    Words are known by common spellings. Of numbers only -1, 0 and 1 are, together: 0, 1 and 2, or 0 and 1 alone, mean
    different things in different files.

    Args:
        spellings: as a file has them.
        mapping: labels, or "skip", of spellings that are not known or mean something else here.

    Raises:
        InputError: a label that is not known, or numbers that say too little.
    """
    said = {_plain(theirs): check_mapped(theirs, ours) for theirs, ours in (mapping or {}).items()}
    written = {_plain(each): str(each) for each in spellings[::-1]}
    distinct = [plain for plain in dict.fromkeys(map(_plain, spellings)) if plain not in said]
    numbers = {int(float(each)) for each in distinct if _NUMBER.fullmatch(each)}
    if numbers and not (numbers <= set(_SIGNS) and -1 in numbers):
        shown = ", ".join(map(str, sorted(numbers)[:6]))
        raise InputError(
            f"labels are the numbers {shown}, which mean different things in different files: say which is which, "
            "such as --map 0=negative --map 1=neutral --map 2=positive"
        )
    known = {
        each: _SIGNS[int(float(each))] if _NUMBER.fullmatch(each) else read_label(written[each]) for each in distinct
    }
    known |= said
    return [None if known[_plain(each)] == SKIP else known[_plain(each)] for each in spellings]


def check_mapped(theirs: str, ours: str) -> str:
    """Return the label that a mapping gives, or "skip".

    Raises:
        InputError: it is neither.
    """
    if ours not in (*LABELS, SKIP):
        raise InputError(f"--map {theirs}={ours}: {ours!r} is no label: {did_you_mean(ours, (*LABELS, SKIP))}")
    return ours


def _plain(spelling: object) -> str:
    text = " ".join(str(spelling).strip().lower().replace("_", " ").split())
    return str(int(float(text))) if _NUMBER.fullmatch(text) else text
