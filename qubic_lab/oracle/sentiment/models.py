"""All sentiment models by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qubic_lab.errors import InputError, check_choice
from qubic_lab.oracle.sentiment.embedding_head import EmbeddingHead
from qubic_lab.oracle.sentiment.finbert import FinBert
from qubic_lab.oracle.sentiment.head import read_head
from qubic_lab.oracle.sentiment.lexicon import crypto_lexicon_model, vader
from qubic_lab.oracle.sentiment.scores import LABELS, SentimentModel, SentimentScore

DEFAULT = "default"


@dataclass(frozen=True)
class Majority:
    """The baseline: gives every text the same score.

    Attributes:
        shares: of each of `LABELS` in the texts where they were counted.
    """

    shares: tuple[float, float, float]
    name: str = "majority"

    @property
    def version(self) -> str:
        """The shares."""
        return "-".join(f"{share:.3f}" for share in self.shares)

    def score(self, texts: Sequence[str]) -> list[SentimentScore]:
        """Return the shares as probabilities, for each text."""
        total = sum(self.shares)
        same = SentimentScore.of([share / total for share in self.shares], self.name, self.version)
        return [same] * len(texts)


def majority_of(labels: Sequence[str]) -> Majority:
    """Return the baseline with the shares of some labels.

    Raises:
        InputError: no labels.
    """
    if not labels:
        raise InputError("there are no labels to count: give at least one")
    negative, neutral, positive = (float(np.mean([each == label for each in labels])) for label in LABELS)
    return Majority((negative, neutral, positive))


MODELS: dict[str, Callable[[], SentimentModel]] = {
    "majority": lambda: Majority(read_head().shares),
    "vader": vader,
    "crypto-lexicon": crypto_lexicon_model,
    DEFAULT: EmbeddingHead,
    "finbert": FinBert,
}
"""Makes each model; the majority is that of our training part."""


def make_model(name: str = DEFAULT) -> SentimentModel:
    """Return a model by name; `finbert:ID` stands for another hub id or folder.

    Raises:
        InputError: an unknown name.
        ModelError: what it needs is missing.
    """
    kind, colon, checkpoint = name.partition(":")
    if kind == "finbert" and colon:
        if not checkpoint:
            raise InputError("model 'finbert:' names no checkpoint: give a hub id or folder behind the colon")
        return FinBert(checkpoint)
    return MODELS[check_choice("model", name, MODELS)]()
