"""What a sentiment model says of a text: the probability of each label, and one number of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qubic_lab.errors import InputError

LABELS = ("negative", "neutral", "positive")
"""In this order wherever labels are numbers or columns."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SentimentScore:
    """A model's judgement of one text: good or bad news for somebody who holds what the text is about.

    Attributes:
        negative, neutral, positive: probabilities; their sum is 1.
        model, version: which one said so.
    """

    negative: float
    neutral: float
    positive: float
    model: str
    version: str

    def __post_init__(self) -> None:
        values = self.probabilities
        if not (all(0.0 <= each <= 1.0 for each in values) and abs(sum(values) - 1.0) < 1e-6):
            raise InputError(f"probabilities of {self.model} are {values}: they must be in 0..1 with the sum 1")

    @classmethod
    def of(cls, probabilities: Sequence[float], model: str, version: str) -> "SentimentScore":
        """Return the score with these probabilities, in the order of `LABELS`."""
        negative, neutral, positive = map(float, probabilities)
        return cls(negative, neutral, positive, model, version)

    @property
    def probabilities(self) -> tuple[float, float, float]:
        """Those of `LABELS`, in their order."""
        return self.negative, self.neutral, self.positive

    @property
    def score(self) -> float:
        """How much likelier good news is than bad: the difference of their probabilities, in -1..1."""
        return max(-1.0, min(1.0, self.positive - self.negative))

    @property
    def label(self) -> str:
        """The likeliest label; of equally likely ones the first of `LABELS`."""
        return LABELS[int(np.argmax(self.probabilities))]


class SentimentModel(Protocol):
    """A model by its name and version; `score` may be called with any number of texts, which it takes in batches."""

    @property
    def name(self) -> str:
        """What users call it."""

    @property
    def version(self) -> str:
        """Changes whenever its scores may."""

    def score(self, texts: Sequence[str]) -> list[SentimentScore]:
        """Return what it says of each text, in their order."""


def model_key(model: SentimentModel) -> str:
    """Return the name under which a model's scores are kept; scores of another version are others."""
    return f"{model.name}@{model.version}"


def softmax(logits_NC: Floats) -> Floats:
    """Return probabilities (N, 3) of logits (N, 3)."""
    shifted = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float64)


def as_scores(probabilities_NC: Floats, model: str, version: str) -> list[SentimentScore]:
    """Return one score for each row of probabilities, columns in the order of `LABELS`."""
    return [SentimentScore.of(row, model, version) for row in probabilities_NC]


def ordered_probabilities(values: Floats, threshold: float, steepness: float, doubt: float) -> Floats:
    """Return probabilities (N, 3) of one value for each text, such as a lexicon's sum.

    Beyond the threshold, on either side, `positive` or `negative` is the likeliest, else `neutral`. The steepness says
    how soon that is as good as decided; `doubt`, in 0..1, is shared by all labels whatever the value, since no sum of
    words is ever sure.
    """
    zeros = np.zeros_like(values)
    logits = np.stack([steepness * (-values - threshold), zeros, steepness * (values - threshold)], axis=1)
    return (1.0 - doubt) * softmax(logits) + doubt / len(LABELS)
