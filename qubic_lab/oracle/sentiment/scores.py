"""What a sentiment model says of a text: the probability of each label, of a headline, a body and both together."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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


@dataclass(frozen=True)
class TextScore:
    """A model's judgement of a whole text.

    Attributes:
        whole: headline and body together; each alone is None if there is none.
        body_share: weight of the body in the whole, 0 to 1.
        sentences: number of sentences of the body that were read; later ones are left out.
        cut: the source gave only the beginning of the body; if that is also short, it counts less.
    """

    whole: SentimentScore
    headline: SentimentScore | None
    body: SentimentScore | None
    body_share: float
    sentences: int
    sentences_left_out: int
    cut: bool

    @property
    def score(self) -> float:
        """The score of the whole, -1 to 1."""
        return self.whole.score

    def details(self) -> dict[str, Any]:
        """Return plain values for JSON, which are stored with the score."""
        negative, neutral, positive = self.whole.probabilities
        return {
            "negative": round(negative, 6),
            "neutral": round(neutral, 6),
            "positive": round(positive, 6),
            "headline": None if self.headline is None else round(self.headline.score, 6),
            "body": None if self.body is None else round(self.body.score, 6),
            "body_share": round(self.body_share, 6),
            "sentences": self.sentences,
            "sentences_left_out": self.sentences_left_out,
            "cut": self.cut,
        }


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


def score_texts(model: SentimentModel, texts: Sequence[Text]) -> list[TextScore]:
    """Return a model's judgement of each text, weighting headline and body; a body's is the mean of its sentences.

    Without a body only the headline counts, and without a headline only the body. A body that repeats the headline
    does not count.
    """
    bodies = [[] if text.body.split() == text.title.split() else sentences_of(text.body) for text in texts]
    parts = [
        ([text.title] if text.title.strip() else []) + sentences[:MOST_SENTENCES]
        for text, sentences in zip(texts, bodies, strict=True)
    ]
    distinct = list(dict.fromkeys(part for each in parts for part in each))
    by_part = dict(zip(distinct, model.score(distinct), strict=True))
    return [_joined(text, sentences, by_part, model) for text, sentences in zip(texts, bodies, strict=True)]


def _joined(
    text: Text, sentences: Sequence[str], by_part: Mapping[str, SentimentScore], model: SentimentModel
) -> TextScore:
    headline = by_part.get(text.title) if text.title.strip() else None
    read = sentences[:MOST_SENTENCES]
    body = _mean([by_part[each] for each in read], [1.0] * len(read), model) if read else None
    cut = body is not None and is_cut(text)
    of_body = CUT_BODY_WEIGHT if cut and len(text.body) <= STUB_TO else BODY_WEIGHT
    shares = HEADLINE_WEIGHT * (headline is not None), of_body * (body is not None)
    if headline is not None and body is not None:
        whole = _mean([headline, body], shares, model)
    else:
        whole = headline or body or _mean([], [], model)
    share = shares[1] / sum(shares) if any(shares) else 0.0
    return TextScore(whole, headline, body, share, len(read), len(sentences) - len(read), cut)


def _mean(scores: Sequence[SentimentScore], weights: Sequence[float], model: SentimentModel) -> SentimentScore:
    """Return the weighted mean of probabilities; neutral if there are none."""
    if not scores:
        return SentimentScore(0.0, 1.0, 0.0, model.name, model.version)
    mean = np.average([each.probabilities for each in scores], axis=0, weights=weights)
    return SentimentScore.of(mean / mean.sum(), model.name, model.version)
