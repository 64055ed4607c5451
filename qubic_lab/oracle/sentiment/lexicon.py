"""Sentiment by words: VADER as it is published, and extended by a lexicon of crypto markets with phrases and rules.

`data/lexicons/README.md` describes the matching. Boosters, exclamation marks, capitals, "but" and the sum follow C. J.
Hutto and E. Gilbert, "VADER: a parsimonious rule-based model for sentiment analysis of social media text", ICWSM 2014.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import yaml

from qubic_lab.oracle.model.bars import Floats
from qubic_lab.provenance import data_file

LEXICON_FILE = data_file("lexicons/crypto.yaml", __file__)
"""The committed lexicon of crypto markets."""
LEXICON_CODE = 1
"""Increased when the matching changes."""

WINDOW = 3
"""A negator or booster changes valences within this many words after it, in the same part of the sentence."""
NEGATED = -0.74
"""The factor of a negated valence."""
BOOSTER_FADE = 0.05
"""The share of a booster's strength that is lost for each word between it and the boosted word."""
CAPITALS = 0.733
"""Added to the size of a valence whose word is in capitals while others are not."""
EXCLAMATION, MOST_EXCLAMATIONS = 0.292, 4
BEFORE_BUT, AFTER_BUT = 0.5, 1.5
NORMALISER = 15.0
"""The compound of a sum of valences s is s / sqrt(s² + 15)."""

_PIECE = re.compile(r"#\w+|\d+(?:[.,]\d+)*%?|[^\W\d_]+(?:'[^\W\d_]+)*\d*|[.!?;:]+|[^\w\s]")
_SENTENCE_END = frozenset(".!?;:")
_PART_END = _SENTENCE_END | frozenset(",–—()")
_QUOTES = frozenset("'\"[]“”‘")


@dataclass(frozen=True)
class LexiconRule:
    """The valence of words near certain others: one of `near` within `window` words on either side."""

    name: str
    words: frozenset[str]
    near: frozenset[str]
    window: int
    valence: float


@dataclass(frozen=True)
class LexiconHit:
    """A place and its words in a text, with their valence before and after the context changed it."""

    place: int
    words: str
    valence: float
    counted: float
    because: str


@dataclass(frozen=True)
class LexiconReading:
    """What a lexicon finds in a text.

    Attributes:
        compound: the whole text, -1 to 1.
        positive, negative: sums of the valences above and below 0, both without sign.
        hits: the words with a valence, in order.
    """

    compound: float
    positive: float
    negative: float
    hits: tuple[LexiconHit, ...]


@dataclass(frozen=True, eq=False)
class CryptoLexicon:
    """Words, phrases, emoji and rules with their valences; `general` has the valences of all other words."""

    words: Mapping[str, float]
    phrases: Mapping[tuple[str, ...], float]
    signs: Mapping[str, float]
    negators: frozenset[tuple[str, ...]]
    boosters: Mapping[tuple[str, ...], float]
    rules: tuple[LexiconRule, ...]
    general: Mapping[str, float]

    @cached_property
    def longest(self) -> int:
        """The number of words of the longest phrase, negator or booster."""
        return max(map(len, (*self.phrases, *self.negators, *self.boosters)), default=1)

    def read(self, text: str) -> LexiconReading:
        """Return what the lexicon finds in a text."""
        tokens = _tokens(text)
        marked = _marked(tokens, self)
        shouted = all(token.raw.isupper() for token in tokens)
        hits = [_hit(place, tokens, marked, shouted) for place in range(len(tokens)) if marked[place].valence]
        return _sum(_around_but(hits, tokens), text)


@dataclass(frozen=True)
class _Token:
    """A word or sign: as it is matched, as it is written, and the numbers of its sentence and of its part of it."""

    text: str
    raw: str
    sentence: int
    part: int


@dataclass(frozen=True)
class _Mark:
    """What begins at a token: a valence, a negator or a booster of `words` words."""

    valence: float = 0.0
    because: str = ""
    negator: bool = False
    booster: float = 0.0
    words: int = 1


def _straight(text: str) -> str:
    """Return a text with straight apostrophes, spaces for hyphens, and signs without variants."""
    return text.replace("’", "'").replace("\ufe0f", "").replace("-", " ").replace("‑", " ")


def _tokens(text: str) -> list[_Token]:
    """Return the words and signs of a text, without those that end a sentence."""
    tokens: list[_Token] = []
    sentence = part = 0
    for raw in _PIECE.findall(_straight(text)):
        if raw[0] in _SENTENCE_END:
            sentence += 1
        if raw[0] in _PART_END:
            part += 1
        elif raw not in _QUOTES:
            tokens.append(_Token(raw.lower(), raw, sentence, part))
    return tokens


def _marked(tokens: Sequence[_Token], lexicon: CryptoLexicon) -> list[_Mark]:
    """Return what begins at each token; the longest phrases are matched first, single words last."""
    marks = [_Mark() for _ in tokens]
    taken = [False] * len(tokens)
    for size in range(lexicon.longest, 1, -1):
        for start in range(len(tokens) - size + 1):
            if any(taken[start : start + size]) or tokens[start].part != tokens[start + size - 1].part:
                continue
            words = tuple(token.text for token in tokens[start : start + size])
            if (mark := _phrase(words, lexicon)) is not None:
                marks[start] = mark
                taken[start : start + size] = [True] * size
    for place, token in enumerate(tokens):
        if not taken[place]:
            marks[place] = _single(place, token, tokens, lexicon)
    return marks


def _phrase(words: tuple[str, ...], lexicon: CryptoLexicon) -> _Mark | None:
    if words in lexicon.phrases:
        return _Mark(lexicon.phrases[words], "phrase", words=len(words))
    if words in lexicon.negators:
        return _Mark(negator=True, words=len(words))
    if words in lexicon.boosters:
        return _Mark(booster=lexicon.boosters[words], words=len(words))
    return None


def _single(place: int, token: _Token, tokens: Sequence[_Token], lexicon: CryptoLexicon) -> _Mark:
    """Return the first match of a word: negator, booster, rule, own entry or general entry."""
    if (mark := _phrase((token.text,), lexicon)) is not None:
        return mark
    for rule in lexicon.rules:
        if token.text in rule.words and _is_near(rule, place, tokens):
            return _Mark(rule.valence, f"rule: {rule.name}")
    if token.text in lexicon.signs:
        return _Mark(lexicon.signs[token.text], "sign")
    if token.text in lexicon.words:
        return _Mark(lexicon.words[token.text], "word")
    general = lexicon.general.get(token.text.removeprefix("#"))
    return _Mark() if general is None else _Mark(general, "general lexicon")


def _is_near(rule: LexiconRule, place: int, tokens: Sequence[_Token]) -> bool:
    around = tokens[max(0, place - rule.window) : place + rule.window + 1]
    return any(token.text in rule.near and token.sentence == tokens[place].sentence for token in around)


def _hit(place: int, tokens: Sequence[_Token], marks: Sequence[_Mark], shouted: bool) -> LexiconHit:
    """Return the words at a place, with their valence changed by the words before them.

    Capitals count unless the whole text is `shouted`.
    """
    mark, here = marks[place], tokens[place]
    words = " ".join(token.text for token in tokens[place : place + mark.words])
    counted, because = mark.valence, [mark.because]
    if here.raw.isupper() and len(here.raw) > 1 and not shouted:
        counted += math.copysign(CAPITALS, counted)
    before = [
        (place - earlier, marks[earlier])
        for earlier in range(max(0, place - WINDOW), place)
        if tokens[earlier].part == here.part
    ]
    counted = _boosted(counted, before)
    for _, each in before:
        if each.negator:
            counted *= NEGATED
            because.append("negated")
    return LexiconHit(place, words, mark.valence, counted, ", ".join(because))


def _boosted(valence: float, before: Iterable[tuple[int, _Mark]]) -> float:
    """Return a valence with the boosters before it added to its size; a booster changes only the next valence."""
    size = abs(valence)
    for distance, mark in reversed(list(before)):
        if mark.valence:
            break
        size += mark.booster * (1.0 - BOOSTER_FADE * (distance - mark.words))
    return math.copysign(max(0.0, size), valence)


def _around_but(hits: Sequence[LexiconHit], tokens: Sequence[_Token]) -> list[LexiconHit]:
    """Return the hits; those before the last "but" count less than those after it."""
    buts = [place for place, token in enumerate(tokens) if token.text == "but"]
    if not buts:
        return list(hits)
    return [replace(hit, counted=hit.counted * (BEFORE_BUT if hit.place < buts[-1] else AFTER_BUT)) for hit in hits]


def _sum(hits: Sequence[LexiconHit], text: str) -> LexiconReading:
    positive = math.fsum(hit.counted for hit in hits if hit.counted > 0)
    negative = -math.fsum(hit.counted for hit in hits if hit.counted < 0)
    total = positive - negative
    if total:
        total += math.copysign(EXCLAMATION * min(text.count("!"), MOST_EXCLAMATIONS), total)
    return LexiconReading(total / math.sqrt(total * total + NORMALISER), positive, negative, tuple(hits))


def vader_compounds(texts: Sequence[str]) -> Floats:
    """Return VADER's compound of each text, -1 to 1."""
    analyzer = _analyzer()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts], dtype=np.float64)


def crypto_compounds(texts: Sequence[str]) -> Floats:
    """Return the crypto lexicon's compound of each text, -1 to 1."""
    return np.array([crypto_lexicon().read(text).compound for text in texts], dtype=np.float64)


@cache
def crypto_lexicon() -> CryptoLexicon:
    """Return the committed lexicon on top of VADER's, read once; `data/lexicons/README.md` describes its sections."""
    content: dict[str, Any] = yaml.safe_load(LEXICON_FILE.read_text("utf-8"))

    def phrases(*sections: str) -> dict[tuple[str, ...], float]:
        return {tuple(key.split()): float(value) for name in sections for key, value in content[name].items()}

    return CryptoLexicon(
        words={word: float(valence) for word, valence in content["words"].items()},
        phrases=phrases("phrases"),
        signs={_straight(sign).lower(): float(v) for sign, v in (content["emoji"] | content["hashtags"]).items()},
        negators=frozenset(tuple(each.split()) for each in content["negators"]),
        boosters=phrases("intensifiers", "diminishers"),
        rules=tuple(
            LexiconRule(
                rule["name"], frozenset(rule["words"]), frozenset(rule["near"]), rule["window"], rule["valence"]
            )
            for rule in content["rules"]
        ),
        general=_analyzer().lexicon,
    )


@cache
def lexicon_hash() -> str:
    """Return the SHA-256 of the committed lexicon's file."""
    return hashlib.sha256(LEXICON_FILE.read_bytes()).hexdigest()


@cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
