"""What a sentiment model says of a text, the probability of each label; and the scoring of texts in the database."""

import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.oracle.model.bars import Floats
from qubic_lab.oracle.model.records import Text
from qubic_lab.oracle.model.timestamps import DAY_US, now_us
from qubic_lab.oracle.store.text_store import Score, TextStore
from qubic_lab.oracle.store.transactions import Clock

LABELS = ("negative", "neutral", "positive")
"""In this order wherever labels are numbers or columns."""
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+(?=[^\sa-z])|\n+")
_CUT_MARK = re.compile(r"(?<!\s)\s*(?:\[\+\d+ chars\]|…|\.\.\.)\s*$")
HEADLINE_WEIGHT, BODY_WEIGHT, CUT_BODY_WEIGHT = 0.4, 0.6, 0.3
"""The weights of a headline, of a whole body, and of one of which the source gives about the first 200 characters."""
MOST_SENTENCES = 24
"""The number of first sentences of a body that are read."""
LEAST_WORDS = 5
"""Shorter sentences are joined with the next one."""
STUB_FROM, STUB_TO = 120, 300
"""Sources cut long bodies at about 200 characters: a body of this length that ends in an ellipsis is cut."""
BATCH = 64
"""Texts that are scored and stored together: the most that an interrupted run loses."""
EVERY_S = 30.0
"""Seconds between two searches for texts without a score."""
RECENT_US = 8 * DAY_US
"""The first search covers all texts, later ones those published within this time."""
_END_US = 1 << 61

_log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Scoring:
    """The number of a coin's texts, of those scored now, and of those scored before."""

    coin: str
    key: str
    texts: int
    scored: int
    before: int


def score_stored(
    store: TextStore,
    model: SentimentModel,
    coin: str,
    start_us: int = 0,
    *,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> Scoring:
    """Score a coin's texts that this version of the model has not scored yet, and store the scores.

    Each batch is stored when it is done, the newest texts first: an interrupted run can be continued, and a second run
    finds nothing to do. Repetitions of other texts are not scored.

    Args:
        store: the texts.
        model: scores them.
        coin: its id.
        start_us: earliest time of publication.
        batch: texts that are scored and stored together.
        progress: called with the number of texts that are done, and of all that lacked a score.
    """
    key = model_key(model)
    texts = store.read(coin, start_us, _END_US)
    known = set(store.scores(coin, start_us, _END_US, key).news_id.tolist())
    missing = [text for text in reversed(texts) if text.id not in known]
    for start in range(0, len(missing), batch):
        some = missing[start : start + batch]
        scored = zip(some, score_texts(model, some), strict=True)
        store.add_scores(
            [Score(text.id, key, each.score, max(each.probabilities), each.details()) for text, each in scored]
        )
        if progress is not None:
            progress(start + len(some), len(missing))
    return Scoring(coin, key, len(texts), len(missing), len(texts) - len(missing))


class _Ended(Exception):
    """The scorer is ending."""


class Scorer:
    """Scores new texts about some coins repeatedly, beside a collector, in its own thread."""

    def __init__(
        self,
        store: TextStore,
        model: SentimentModel,
        coins: Sequence[str],
        clock: Clock = now_us,
        every_s: float = EVERY_S,
    ) -> None:
        self._store, self._model, self._coins = store, model, tuple(coins)
        self._clock, self._every_s = clock, every_s
        self._ending = threading.Event()
        self.scored = 0

    @contextmanager
    def running(self) -> Iterator["Scorer"]:
        """Score while the block runs, and once more at its end; `scored` counts the texts.

        Raises:
            ModelError: the model cannot be loaded.
        """
        self._model.score(["This loads the model, or says what is missing."])
        thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ending.set()
            thread.join()

    def _run(self) -> None:
        start_us, whole = 0, True
        while not self._ending.wait(self._every_s):
            whole = self._search(start_us)
            if whole:
                start_us = self._clock() - RECENT_US
        # A first search that was interrupted continues in the next process.
        self._search(start_us if whole else self._clock() - RECENT_US, last=True)

    def _search(self, start_us: int, last: bool = False) -> bool:
        """Score texts without a score; return whether all texts have been checked."""
        counted = 0

        def progress(done: int, total: int) -> None:
            nonlocal counted
            self.scored += done - counted
            counted = done
            if self._ending.is_set() and not last:
                raise _Ended

        try:
            for coin in self._coins:
                counted = 0
                score_stored(self._store, self._model, coin, start_us, progress=progress)
        except _Ended:
            return False
        except QubicLabError as error:  # of the database: the next search finds what is left
            _log.warning("texts are not scored now: %s", error)
            return False
        return True
