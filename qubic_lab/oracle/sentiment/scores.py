"""What a sentiment model says of a text with headline and body: the probability of each label."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.bars import Floats
from qubic_lab.oracle.model.records import Text

LABELS = ("negative", "neutral", "positive")
"""In this order wherever labels are numbers or columns."""
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+(?=[^\sa-z])|\n+")
_CUT_MARK = re.compile(r"\s*(?:\[\+\d+ chars\]|…|\.\.\.)\s*$")
HEADLINE_WEIGHT, BODY_WEIGHT, CUT_BODY_WEIGHT = 0.4, 0.6, 0.3
"""The weights of a headline, of a whole body, and of one of which the source gives about the first 200 characters."""
MOST_SENTENCES = 24
"""The number of first sentences of a body that are read."""
LEAST_WORDS = 5
"""Shorter sentences are joined with the next one."""
STUB_FROM, STUB_TO = 120, 300
"""Sources cut long bodies at about 200 characters: a body of this length that ends in an ellipsis is cut."""


@dataclass(frozen=True)
class SentimentScore:
    """A model's judgement of one text: the probabilities of good and bad news for a holder of what it is about."""

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
        """The probabilities in the order of `LABELS`."""
        return self.negative, self.neutral, self.positive

    def details(self) -> dict[str, float]:
        """Return the probabilities by label, as they are stored with the score."""
        return {label: round(value, 6) for label, value in zip(LABELS, self.probabilities, strict=True)}

    @property
    def score(self) -> float:
        """The probability of good news less that of bad news, -1 to 1."""
        return max(-1.0, min(1.0, self.positive - self.negative))

    @property
    def label(self) -> str:
        """The most likely label; among equally likely ones the first of `LABELS`."""
        return LABELS[int(np.argmax(self.probabilities))]


class SentimentModel(Protocol):
    """A model with a name and a version; `score` accepts any number of texts and processes them in batches."""

    @property
    def name(self) -> str:
        """The name that users give."""

    @property
    def version(self) -> str:
        """Changes whenever the scores may change."""

    def score(self, texts: Sequence[str]) -> list[SentimentScore]:
        """Return the score of each text, in their order."""


def model_key(model: SentimentModel) -> str:
    """Return the key under which the scores of a version of a model are stored."""
    return f"{model.name}@{model.version}"[:128]


def softmax(logits_NC: Floats) -> Floats:
    """Return probabilities (N, 3) of logits (N, 3)."""
    shifted = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float64)


def as_scores(probabilities_NC: Floats, model: str, version: str) -> list[SentimentScore]:
    """Return one score for each row of probabilities, columns in the order of `LABELS`."""
    return [SentimentScore.of(row, model, version) for row in probabilities_NC]


def is_cut(text: Text) -> bool:
    """Return whether only the beginning of a body is known: the source says so, or the body ends that way."""
    if text.cut_characters > 0:
        return True
    mark = _CUT_MARK.search(text.body)
    return mark is not None and ("chars" in mark.group() or STUB_FROM <= len(text.body) <= STUB_TO)


def sentences_of(body: str) -> list[str]:
    """Return the sentences of a body in order; short ones are joined with the next, the last with the one before."""
    found: list[str] = []
    waiting = ""
    for part in _SENTENCE.split(_CUT_MARK.sub("", body)):
        waiting = f"{waiting} {part.strip()}".strip()
        if len(waiting.split()) >= LEAST_WORDS:
            found.append(waiting)
            waiting = ""
    if waiting:
        found = [*found[:-1], f"{found[-1]} {waiting}"] if found else [waiting]
    return found


def score_texts(model: SentimentModel, texts: Sequence[Text]) -> list[SentimentScore]:
    """Return a model's judgement of each text: the weighted mean for headline and body; neutral if both are empty."""
    parts = [_weighted_parts(text) for text in texts]
    distinct = list(dict.fromkeys(part for each in parts for part, _ in each))
    by_part = dict(zip(distinct, model.score(distinct), strict=True))
    found = []
    for each in parts:
        mean = np.array([0.0, 1.0, 0.0])
        if each:
            rows = [by_part[part].probabilities for part, _ in each]
            mean = np.average(rows, axis=0, weights=[weight for _, weight in each])
        found.append(SentimentScore.of(mean / mean.sum(), model.name, model.version))
    return found


def _weighted_parts(text: Text) -> list[tuple[str, float]]:
    """Return the headline, and the first sentences of the body unless it repeats the headline, with their weights."""
    headline = [(text.title, HEADLINE_WEIGHT)] if text.title.strip() else []
    if text.body.split() == text.title.split():
        return headline
    sentences = sentences_of(text.body)[:MOST_SENTENCES]
    of_body = CUT_BODY_WEIGHT if is_cut(text) and len(text.body) <= STUB_TO else BODY_WEIGHT
    return headline + [(sentence, of_body / len(sentences)) for sentence in sentences]
