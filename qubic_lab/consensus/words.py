"""The words of a text, in English and Chinese; each Chinese character is a word."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

MOST_READ = 8_000
"""Characters read from the beginning of a text, and as many from its end."""
FILLERS = {"the", "a", "an", "and"}
NEGATIONS = {"not", "isn't", "never", "nor", "cannot", "不", "没", "非"}
_WORD = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+(?:'[^\W\u4e00-\u9fff]+)?")
_SIGN = re.compile(
    r"""[^\w\s.,;:!?'"()\[\]{}…“”‘’„«»、。，；：！？（）《》—–-]|(?<!\w)-(?=\d)|(?<=[A-Za-z])-(?![\w-])"""
)
"""Signs that are more than punctuation: C, C++ and C# differ, and so do A and A-."""
_ASCII_SIGN = re.compile(r"[\x00-\x08\x0e-\x1b\x7f#$%&*+/<=>@\\^`|~-]")
"""The signs an ASCII text can have: a faster test, since most texts have none."""
_EMPHASIS = re.compile(r"(?<!\w)\*\*(?=\S)(.+?)(?<=\S)\*\*(?!\w)")
_SHORTEST_STEM = 3


def words(text: str) -> list[str]:
    """Return the words in lower case, without accents, signs and fillers."""
    text = text.casefold()
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text.replace("’", "'"))
        text = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return [word for word in _WORD.findall(text) if word not in FILLERS]


def has_signs(text: str) -> bool:
    """Return whether a text has meaningful signs that `words` leaves out."""
    return bool(_signs(text))


def words_and_signs(text: str) -> str:
    """Return a text in lower case without punctuation, but with all signs; equal texts give equal results."""
    return " ".join([*words(text), *_signs(text)])


def without_emphasis(text: str) -> str:
    """Return a text without Markdown's bold asterisks; those of powers stay."""
    return _EMPHASIS.sub(r"\1", text) if "**" in text else text


def word_set(listed: str) -> frozenset[str]:
    """Return the words of a list separated by spaces."""
    return frozenset(listed.split())


def stem(word: str) -> str:
    """Return the rough stem of a lowercase word: walk, walks, walked and walking share one."""
    if word.endswith("ies") and len(word) >= _SHORTEST_STEM + len("ies"):
        return word[: -len("ies")] + "y"
    for ending in ("ing", "ed", "es", "s"):
        if (
            word.endswith(ending)
            and not word.endswith(("ss", "us", "is"))
            and len(word) >= _SHORTEST_STEM + len(ending)
        ):
            word = word.removesuffix(ending)
            if word[-1] == word[-2] not in "aeiouls":  # planned
                word = word[:-1]
            break
    return word.removesuffix("e") if len(word) > _SHORTEST_STEM else word


def places(wanted: Sequence[str], said: Sequence[str]) -> list[int]:
    """Return the indices at which the words `wanted` begin among those said, without a negation right before them."""
    return [
        place
        for place in range(len(said) - len(wanted) + 1)
        if wanted
        and list(said[place : place + len(wanted)]) == list(wanted)
        and not (place and said[place - 1] in NEGATIONS)
    ]


def without_places(text: str, taken: Iterable[tuple[int, int]]) -> str:
    """Return a text with each of the given stretches, in order, replaced by a space."""
    rest, at = [], 0
    for start, end in taken:
        rest.append(text[at:start])
        at = end
    return " ".join([*rest, text[at:]])


def is_chinese(text: str) -> bool:
    """Return whether a text has Chinese characters."""
    return not text.isascii() and re.search(r"[\u4e00-\u9fff]", text) is not None


def _signs(text: str) -> list[str]:
    return [] if text.isascii() and not _ASCII_SIGN.search(text) else _SIGN.findall(text)


def both_ends(text: str) -> str:
    """Return a text without its middle if it is longer than twice MOST_READ, which bounds the reading time."""
    return text if len(text) <= 2 * MOST_READ else f"{text[:MOST_READ]}\n{text[-MOST_READ:]}"
