"""Finds texts that repeat others: the same words, the same title on one day, or similar words within a week."""

import hashlib
import html
import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qubic_lab.oracle.model.timestamps import DAY_US

if TYPE_CHECKING:  # it imports SciPy, which is slow and not needed to read texts
    from datasketch import MinHash

BEFORE_US, AFTER_US = 7 * DAY_US, DAY_US
"""A text may repeat one that was published this long before it, or, as sources differ in speed, this soon after it."""
LEAST_SHARED = 0.7
"""The least Jaccard similarity of the word triples of similar texts."""
LEAST_TITLE_WORDS = 4
"""Shorter titles, such as "Bitcoin price today", are reused for other texts."""
LEAST_EXACT_WORDS = 20
"""A text of this length is a repetition at any time; a shorter one may be about another event."""
SHORT_WORDS = 50
"""In shorter texts every number must be equal; in longer ones those of the title."""
_MOST_WORDS = 400
_MOST_CANDIDATES = 64
_BANDS, _BAND_ROWS = 8, 3
"""Finds 97 % of the pairs that share 0.7 of their triples, 99.7 % of those that share 0.8."""
_LEFTOVERS = re.compile(r"<[^<>]{1,500}>|\[\+\d+ chars\]|https?://\S+")
_THOUSANDS = re.compile(r"(?<=\d)[,'’](?=\d{3})")
_WORD = re.compile(
    r"(?:(?<![\w.])[-+−])?\d+(?:\.\d+)*|[^\W\d_]+|[\u2190-\u21ff\u2600-\u27bf\U0001f300-\U0001faff]", re.UNICODE
)
_A, _B, _C = (np.uint64(odd) for odd in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))

Key = tuple[str, str]
"""A text's source and its id there: its versions are no duplicates of each other."""


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What texts are compared by.

    Attributes:
        content_hash: of all words; equal for texts that differ only in case, spaces, punctuation and markup.
        title: the words of the title; empty if they are too few to tell texts apart.
        words: the number of words in title and body.
        shingles: the sorted, distinct hashes of all word triples; they differ for texts with different numbers.
    """

    content_hash: str
    title: str
    words: int
    shingles: NDArray[np.uint32]


def words_of(text: str) -> list[str]:
    """Return a text's words, numbers and pictographs in lower case, without markup, addresses and punctuation."""
    plain = unicodedata.normalize("NFKC", html.unescape(text))
    return _WORD.findall(_THOUSANDS.sub("", _LEFTOVERS.sub(" ", plain)).casefold())


def fingerprint(title: str, body: str) -> Fingerprint:
    """Return what a text is compared by."""
    title_words, body_words = words_of(title), words_of(body)
    words = title_words + body_words
    said = " ".join(title_words) + "\n" + " ".join(body_words) if words else f"{title}\n{body}"
    counted = words if len(words) < SHORT_WORDS else title_words
    numbers = sorted(word for word in counted if word[-1].isdigit())
    return Fingerprint(
        hashlib.sha256(said.encode()).hexdigest(),
        " ".join(title_words) if len(title_words) >= LEAST_TITLE_WORDS else "",
        len(words),
        _shingles(words[:_MOST_WORDS], " ".join(numbers)),
    )


def same_time(at_us: int, other_us: int) -> bool:
    """Return whether a text published at `at_us` may repeat a short or similar one of `other_us`."""
    return -AFTER_US <= at_us - other_us <= BEFORE_US


def shared(first: Fingerprint, second: Fingerprint) -> float:
    """Return the Jaccard similarity of two texts' word triples, 0..1."""
    if not (len(first.shingles) and len(second.shingles)):
        return 0.0
    both = len(np.intersect1d(first.shingles, second.shingles, assume_unique=True))
    return both / (len(first.shingles) + len(second.shingles) - both)


class TextIndex:
    """An index in memory of at most `most` texts, the last ones, that finds texts similar to a given one."""

    def __init__(self, most: int) -> None:
        from datasketch import MinHashLSH

        self._most = most
        self._texts: dict[int, tuple[Key, int, Fingerprint]] = {}
        self._titles: dict[str, list[int]] = {}
        self._lsh = MinHashLSH(num_perm=_BANDS * _BAND_ROWS, params=(_BANDS, _BAND_ROWS))

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, id: int) -> bool:
        return id in self._texts

    def add(self, id: int, key: Key, at_us: int, text: Fingerprint) -> None:
        """Add a text, published at `at_us`, that later ones may repeat."""
        while len(self._texts) >= self._most:
            self._drop(next(iter(self._texts)))
        self._texts[id] = key, at_us, text
        if text.title:
            self._titles.setdefault(text.title, []).append(id)
        if len(text.shingles):
            self._lsh.insert(id, _sketch(text.shingles), check_duplication=False)

    def find(self, key: Key, at_us: int, text: Fingerprint) -> int | None:
        """Return the first text that this one repeats: the same title on the same day, or similar words."""
        for id in self._titles.get(text.title, ()):
            other_key, other_us, _ = self._texts[id]
            if other_key != key and abs(at_us - other_us) <= DAY_US:
                return id
        if not len(text.shingles):
            return None
        for id in sorted(self._lsh.query(_sketch(text.shingles)))[:_MOST_CANDIDATES]:
            other_key, other_us, other = self._texts[id]
            if other_key != key and same_time(at_us, other_us) and shared(text, other) >= LEAST_SHARED:
                return int(id)
        return None

    def _drop(self, id: int) -> None:
        _, _, text = self._texts.pop(id)
        if text.title:
            self._titles[text.title].remove(id)
            if not self._titles[text.title]:
                del self._titles[text.title]
        if len(text.shingles):
            self._lsh.remove(id)


def _shingles(words: Sequence[str], salt: str) -> NDArray[np.uint32]:
    if not words:
        return np.empty(0, dtype=np.uint32)
    padded = [*words, *[""] * (3 - len(words))]
    each = np.array([zlib.crc32(word.encode()) for word in padded], dtype=np.uint64)
    mixed = each[:-2] * _A + each[1:-1] * _B + each[2:] * _C
    mixed ^= np.uint64(zlib.crc32(salt.encode())) << np.uint64(32)
    mixed *= _A
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


@cache
def _blank() -> "MinHash":
    from datasketch import MinHash

    return MinHash(num_perm=_BANDS * _BAND_ROWS, hashfunc=int)


def _sketch(shingles: NDArray[np.uint32]) -> "MinHash":
    sketch = _blank().copy()
    sketch.update_batch(shingles.tolist())
    return sketch
