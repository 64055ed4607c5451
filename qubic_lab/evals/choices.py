"""Multiple choice: the options of a row as files write them, and questions with lettered options shuffled by a seed."""

import ast
import json
import re
import string
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from qubic_lab.errors import InputError

LETTERS = string.ascii_uppercase
REQUEST = "Answer with the letter of the right option."
"""The last line of a question with options."""
MOST_SAME = 0.8
"""Share of right answers with one letter from which a file is suspicious."""
FEWEST_COUNTED = 10
"""Questions; with fewer, one letter may well prevail by chance."""
_LISTED = ("text", "texts", "choices", "options")
_LABELS = ("label", "labels", "key")
_ABOVE = re.compile(
    r"\b(?:all|none|both|neither|any) of (?:these|those|(?:the )?(?:options|answers|choices|others?))\W*$|\bthe above\b"
    r"|以上(?:都|皆|均|全)",
    re.IGNORECASE,
)
"""An option that refers to those before it stays behind them."""
_OF_LETTERS = re.compile(r"(?<![A-Za-z'])[A-H]\)?\s*(?:,|&|\band\b|\bor\b|\bnor\b|和|与)\s*\(?[A-H](?![A-Za-z'])")
"""An option that refers to letters, such as "Both A and B": these options are not shuffled."""


@dataclass(frozen=True)
class Offered:
    """The options of a row with their labels, and the index of the right one if they are marked."""

    texts: tuple[Any, ...]
    labels: tuple[str, ...]
    right: int | None = None


def read_offered(value: Any, what: str) -> Offered:
    """Read options from one value; `what` names it in errors.

    It is a list of texts or of `{text, label}`; a dictionary of both lists, of labels and texts, or of texts and 0 or 1
    (as `mc1_targets` of TruthfulQA); or such a value written as text, or texts separated by line ends, bars or
    semicolons.

    Raises:
        InputError: it is none of these, or marks not exactly one option.
    """
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        value = {
            "text": [_any_of(each, _LISTED) for each in value],
            "label": [_any_of(each, _LABELS) for each in value],
        }
    labels: Sequence[Any] = ()
    marks: Sequence[Any] = ()
    if isinstance(value, Mapping):
        if isinstance(texts := _any_of(value, _LISTED), list):
            is_marked = {"choices", "labels"} <= set(value)
            named = _any_of(value, _LABELS) or ()
            value, labels, marks = texts, () if is_marked else named, named if is_marked else ()
        elif value and all(each in (0, 1) for each in value.values()):
            value, marks = list(value), list(value.values())
        else:
            value, labels = list(value.values()), list(value)
    if not isinstance(value, list):
        raise InputError(f"{what} is {shortened(value)}, not a list: name each option's column, as options=A|B|C")
    if len(value) > len(LETTERS):
        raise InputError(f"{what} has {len(value)} options: there must be 2 to {len(LETTERS)}")
    if (labels or marks) and len(labels or marks) != len(value):
        raise InputError(f"{what} has {len(value)} options and {len(labels or marks)} labels: each needs one")
    if marks:
        if sum(marks) != 1:
            raise InputError(f"{what} marks {sum(marks)} options as right: exactly one is needed")
        return Offered(tuple(value), tuple(LETTERS[: len(value)]), list(marks).index(1))
    return Offered(_without_letters(value), tuple(map(str, labels)) or tuple(LETTERS[: len(value)]))


def split_texts(value: Any) -> list[Any]:
    """Return the texts of a list, or of a text that separates them by line ends, bars or semicolons."""
    parsed = _parsed(value) if isinstance(value, str) else value
    return parsed if isinstance(parsed, list) else [value]


def lettered(question: str, options: Sequence[str], right: int, seed: int) -> tuple[str, str]:
    """Return a question with its options, one a line, shuffled by a seed, and the line of the right one.

    The order depends on the seed and the question. An option that refers to others ("None of the above") stays last;
    options that refer to letters are not shuffled at all.
    """
    # "(B)" within an option would read as the letter of another one.
    written = [re.sub(r"\(([A-Z])\)", r"[\1]", " ".join(option.split())) for option in options]
    order = list(range(len(written)))
    if not any(map(_OF_LETTERS.search, options)):
        Random(f"{seed} {question}").shuffle(order)
        order.sort(key=lambda place: (_ABOVE.search(written[place]) is not None) * (1 + place))
    lines = [f"({letter}) {written[place]}" for letter, place in zip(LETTERS, order, strict=False)]
    return "\n".join([question, *lines, REQUEST]), lines[order.index(right)]


def warn_of_one_letter(file: Path, letters: Sequence[str], remedy: str) -> None:
    """Warn if the right answers of a file are nearly all the same letter."""
    letter, count = Counter(letters).most_common(1)[0] if letters else ("", 0)
    if len(letters) >= FEWEST_COUNTED and count > MOST_SAME * len(letters):
        warnings.warn(
            f"the right option is {letter} in {count} of {len(letters)} questions of {file.name}, so a model that "
            f"prefers {letter} would look good: {remedy}",
            stacklevel=2,
        )


def shortened(value: Any) -> str:
    """Return a value for an error message, cut after 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _any_of(values: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((values[name] for name in names if name in values), None)


def _parsed(text: str) -> Any:
    """Return a value written as JSON or Python, else the parts of a text, else the text."""
    if text.strip()[:1] in ("[", "{"):
        for read in (json.loads, ast.literal_eval):
            try:
                return read(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    for separator in ("\n", "|", ";"):
        if separator in text:
            return [part.strip() for part in text.split(separator) if part.strip()]
    return text


def _without_letters(texts: Sequence[Any]) -> tuple[Any, ...]:
    """Return options without letters of their own, such as "A) 21", if all have them in order."""
    bare = [re.sub(rf"^\(?{letter}\s?[).:]\s*", "", str(text)) for letter, text in zip(LETTERS, texts, strict=False)]
    own = len(bare) == len(texts) > 1 and all(new != str(old) for new, old in zip(bare, texts, strict=True))
    return tuple(bare) if own else tuple(texts)
