"""What a model says of a whole text: its headline, and its body sentence by sentence."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.sentiment.scores import SentimentModel, SentimentScore

_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+(?=[^\sa-z])|\n+")
_CUT_MARK = re.compile(r"\s*(?:\[\+\d+ chars\]|…|\.\.\.)\s*$")
STUB_FROM, STUB_TO = 120, 300
"""A body of so many characters that ends in an ellipsis is what sources show of a longer one, at about 200."""


class Titled(Protocol):
    """A text with headline and body, such as `records.Text`."""

    @property
    def title(self) -> str:
        """Its headline."""

    @property
    def body(self) -> str:
        """The rest; empty where there is none."""

    @property
    def cut_characters(self) -> int:
        """How much of the body the source left out."""


@dataclass(frozen=True)
class TextWeights:
    """How much the parts of a text count; only the ratio of the two that there are matters.

    Attributes:
        headline: of the headline.
        body: of a whole body.
        cut_body: of a body of which the source gives only the first 200 or so characters.
        most_sentences: of a body; the first ones count.
        least_words: shorter sentences go with the next one.
    """

    headline: float = 0.4
    body: float = 0.6
    cut_body: float = 0.3
    most_sentences: int = 24
    least_words: int = 5

    def __post_init__(self) -> None:
        for name in ("headline", "body", "cut_body"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise InputError(f"weight {name} is {getattr(self, name)}: it must be a number above 0")
        if self.cut_body > self.body:
            raise InputError(
                f"weight cut_body is {self.cut_body}: it must not be above that of a whole body, {self.body}"
            )
        check_at_least("most_sentences", self.most_sentences, 1)
        check_at_least("least_words", self.least_words, 1)

    def suffix(self) -> str:
        """Return what tells scores by these weights from those by the usual ones; empty for the usual ones."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return "".join(f";{name}={value:g}" for name, value in changed.items())


WEIGHTS = TextWeights()


@dataclass(frozen=True)
class TextScore:
    """A model's judgement of a whole text.

    Attributes:
        whole: headline and body together.
        headline, body: each alone; None where there is none.
        body_share: how much of the whole the body was.
        sentences: of the body that were read.
        sentences_left_out: of the body, behind those.
        cut: the source gave only the beginning of the body; if that is short, too, it counts less.
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
        """In -1..1, as of `SentimentScore`."""
        return self.whole.score

    def details(self) -> dict[str, Any]:
        """Return plain values for JSON, to be kept beside the score."""
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


def is_cut(text: Titled) -> bool:
    """Return whether only the beginning of a text's body is known: by its source, or by how it ends."""
    if text.cut_characters > 0:
        return True
    mark = _CUT_MARK.search(text.body)
    return mark is not None and ("chars" in mark.group() or STUB_FROM <= len(text.body) <= STUB_TO)


def sentences_of(body: str, least_words: int = WEIGHTS.least_words) -> list[str]:
    """Return a body's sentences in order; very short ones are joined with the next, or the last with the one before."""
    found: list[str] = []
    waiting = ""
    for part in _SENTENCE.split(_CUT_MARK.sub("", body)):
        waiting = f"{waiting} {part.strip()}".strip()
        if len(waiting.split()) >= least_words:
            found.append(waiting)
            waiting = ""
    if waiting:
        found = [*found[:-1], f"{found[-1]} {waiting}"] if found else [waiting]
    return found


def score_texts(model: SentimentModel, texts: Sequence[Titled], weights: TextWeights = WEIGHTS) -> list[TextScore]:
    """Return what a model says of each text, headline and body weighed; a body's probabilities are its sentences' mean.

    Without a body the headline decides alone, and without a headline the body. A body that only says the headline
    again is none.
    """
    bodies = [sentences_of(text.body, weights.least_words) if _says_more(text) else [] for text in texts]
    parts = [
        ([text.title] if text.title.strip() else []) + sentences[: weights.most_sentences]
        for text, sentences in zip(texts, bodies, strict=True)
    ]
    distinct = list(dict.fromkeys(part for each in parts for part in each))
    by_part = dict(zip(distinct, model.score(distinct), strict=True))
    return [_joined(text, sentences, by_part, model, weights) for text, sentences in zip(texts, bodies, strict=True)]


def _says_more(text: Titled) -> bool:
    return bool(text.body.strip()) and text.body.split() != text.title.split()


def _joined(
    text: Titled,
    sentences: Sequence[str],
    by_part: dict[str, SentimentScore],
    model: SentimentModel,
    weights: TextWeights,
) -> TextScore:
    headline = by_part.get(text.title) if text.title.strip() else None
    read = sentences[: weights.most_sentences]
    body = _mean([by_part[each] for each in read], [1.0] * len(read), model) if read else None
    cut = body is not None and is_cut(text)
    of_body = weights.cut_body if cut and len(text.body) <= STUB_TO else weights.body
    shares = weights.headline * (headline is not None), of_body * (body is not None)
    if headline is not None and body is not None:
        whole = _mean([headline, body], shares, model)
    else:
        whole = headline or body or _mean([], [], model)
    share = shares[1] / sum(shares) if any(shares) else 0.0
    return TextScore(whole, headline, body, share, len(read), len(sentences) - len(read), cut)


def _mean(scores: Sequence[SentimentScore], weights: Sequence[float], model: SentimentModel) -> SentimentScore:
    """Return the weighted mean of probabilities; of nothing, that nothing is known but that it is neutral."""
    if not scores:
        return SentimentScore(0.0, 1.0, 0.0, model.name, model.version)
    mean = np.average([each.probabilities for each in scores], axis=0, weights=weights)
    return SentimentScore.of(mean / mean.sum(), model.name, model.version)
