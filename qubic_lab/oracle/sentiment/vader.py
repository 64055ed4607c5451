"""Two models of words alone: VADER as it is published, and with the lexicon of crypto markets in its place."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

from qubic_lab.oracle.sentiment.head import Head, WordScale, lexicon_file, read_head
from qubic_lab.oracle.sentiment.lexicon import CryptoLexicon, read_lexicon
from qubic_lab.oracle.sentiment.scores import Floats, SentimentScore, as_scores, ordered_probabilities

LEXICON_CODE = 1
"""Raised when the way of matching changes."""


@dataclass(frozen=True)
class Vader:
    """VADER's compound with its own thresholds of ±0.05; how steep probabilities are was fitted to our headlines."""

    scale: WordScale
    name: str = "vader"

    @property
    def version(self) -> str:
        """Return the package's version and what its probabilities follow."""
        return f"{version('vaderSentiment')}-{_short(self.scale)}"

    def score(self, texts: Sequence[str]) -> list[SentimentScore]:
        """Return what VADER says of each text."""
        return as_scores(word_probabilities(vader_compounds(texts), self.scale), self.name, self.version)


@dataclass(frozen=True)
class CryptoLexiconModel:
    """The compound of the crypto lexicon over VADER's general one; thresholds were fitted to our headlines."""

    scale: WordScale
    name: str = "crypto-lexicon"

    @property
    def version(self) -> str:
        """Return what changes with the lexicon, VADER's words, the matching and the scale."""
        return f"{lexicon_hash()[:8]}-{_short(self.scale, version('vaderSentiment'), LEXICON_CODE)}"

    def score(self, texts: Sequence[str]) -> list[SentimentScore]:
        """Return what the lexicon says of each text."""
        compounds = np.array([crypto_lexicon().read(text).compound for text in texts])
        return as_scores(word_probabilities(compounds, self.scale), self.name, self.version)


def vader(head: Head | None = None) -> Vader:
    """Return VADER, scaled as the committed head says."""
    return Vader((head or read_head()).scales["vader"])


def crypto_lexicon_model(head: Head | None = None) -> CryptoLexiconModel:
    """Return the lexicon's model, scaled as the committed head says."""
    return CryptoLexiconModel((head or read_head()).scales["crypto-lexicon"])


def word_probabilities(compounds: Floats, scale: WordScale) -> Floats:
    """Return probabilities (N, 3) of the labels from compounds (N)."""
    return ordered_probabilities(compounds, scale.threshold, scale.steepness, scale.doubt)


def vader_compounds(texts: Sequence[str]) -> Floats:
    """Return VADER's compound of each text, in -1..1."""
    analyzer = _analyzer()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts], dtype=np.float64)


@cache
def crypto_lexicon() -> CryptoLexicon:
    """Return the committed lexicon over VADER's, read once."""
    return read_lexicon(lexicon_file(), _analyzer().lexicon)


@cache
def lexicon_hash() -> str:
    """Return the SHA-256 of the committed lexicon's file."""
    return hashlib.sha256(lexicon_file().read_bytes()).hexdigest()


@cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def _short(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]
