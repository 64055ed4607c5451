"""The default model: a linear head over sentence embeddings and features of two lexicons; it needs no network."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version

import numpy as np

from qubic_lab.errors import InputError
from qubic_lab.model.embeddings import DIMENSIONS, WEIGHTS_SHA256, Embedder
from qubic_lab.oracle.model.bars import Floats
from qubic_lab.oracle.sentiment.head import Head, read_head
from qubic_lab.oracle.sentiment.lexicon import LEXICON_CODE, crypto_lexicon, lexicon_hash, vader_compounds
from qubic_lab.oracle.sentiment.scores import SentimentScore, as_scores

LEXICON_FEATURES = (
    "compound",
    "positive sum",
    "negative sum",
    "compound above 0",
    "compound below 0",
    "nothing found",
    "VADER's compound",
    "its size",
)
_SUM_SCALE = 3.0
BATCH = 256


def lexicon_features(texts: Sequence[str]) -> Floats:
    """Return `LEXICON_FEATURES` of each text (N, 8), each -1 to 1."""
    readings = [crypto_lexicon().read(text) for text in texts]
    compound = np.array([each.compound for each in readings])
    positive = np.tanh(np.array([each.positive for each in readings]) / _SUM_SCALE)
    negative = np.tanh(np.array([each.negative for each in readings]) / _SUM_SCALE)
    nothing = np.array([float(not each.hits) for each in readings])
    general = vader_compounds(texts)
    columns = (compound, positive, negative, np.maximum(compound, 0), np.maximum(-compound, 0), nothing)
    return np.stack([*columns, general, np.abs(general)], axis=1)


def head_features(texts: Sequence[str], embedder: Embedder) -> Floats:
    """Return the features of the head (N, 392): the embedding, then the lexicon features."""
    vectors = embedder.embed(texts).vectors_ND.astype(np.float64)
    return np.hstack([vectors, lexicon_features(texts)])


@dataclass(frozen=True, eq=False)
class EmbeddingHead:
    """The default model; it loads its embedder with the first texts, which takes seconds.

    Raises:
        InputError: a head for other features.
    """

    head: Head = field(default_factory=read_head)
    embedder: Embedder = field(default_factory=Embedder)
    name: str = "default"

    def __post_init__(self) -> None:
        expected = DIMENSIONS + len(LEXICON_FEATURES)
        if self.head.weights_CF.shape[1] != expected:
            raise InputError(f"head for {self.head.weights_CF.shape[1]} features: there are {expected}; train it again")

    @cached_property
    def version(self) -> str:
        """A hash of the head, the embedder, the lexicon, VADER's version and the matching."""
        depends = (
            json.dumps({**self.head.to_dict(), "measured": None}, sort_keys=True),
            WEIGHTS_SHA256,
            lexicon_hash(),
            version("vaderSentiment"),
            LEXICON_CODE,
        )
        return hashlib.sha256("\n".join(map(str, depends)).encode()).hexdigest()[:12]

    def score(self, texts: Sequence[str]) -> list[SentimentScore]:
        """Return the score of each text.

        Raises:
            ModelError: the embedder's weights are not installed.
        """
        scores: list[SentimentScore] = []
        for start in range(0, len(texts), BATCH):
            features = head_features(texts[start : start + BATCH], self.embedder)
            scores += as_scores(self.head.probabilities(features), self.name, self.version)
        return scores
