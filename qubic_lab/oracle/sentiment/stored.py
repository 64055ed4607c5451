"""Scores of texts in the database: computed once for each version of a model, and read back for an index."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from qubic_lab.errors import QubicLabError
from qubic_lab.oracle.model.timestamps import DAY_US, now_us
from qubic_lab.oracle.sentiment.index import ScoredText, Weighting
from qubic_lab.oracle.sentiment.scores import SentimentModel, model_key, score_texts
from qubic_lab.oracle.store.text_reader import ScoreColumns, TextReader
from qubic_lab.oracle.store.text_store import Score, TextStore
from qubic_lab.oracle.store.transactions import Clock

PREFERRED = ("default", "finbert", "crypto-lexicon", "vader")
"""Models whose scores make the index, the first choice first; others follow by name."""
BASELINE = "majority"
"""A model that gives every text the same score, so an index of its scores would say nothing."""
NO_SCORES = "no model has scored these texts: qubic-lab oracle score does"
NO_TEXTS = "there are no texts"
BATCH = 64
"""Texts that are scored and stored together: the most that an interrupted run loses."""
EVERY_S = 30.0
"""Seconds between two searches for texts without a score."""
RECENT_US = 8 * DAY_US
"""The first search covers all texts, later ones those published within this time."""

_END_US = 1 << 61

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


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
    progress: Progress | None = None,
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


def choose_model(scores: Mapping[str, ScoreColumns]) -> str | None:
    """Return the model whose scores make the index: by preference, then by number of scores, then by age."""

    def rank(key: str) -> tuple[int, int, int, str]:
        name = _model_name(key)
        place = PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)
        return place, -len(scores[key]), -int(scores[key].known_us.max()), key

    return min((key for key in scores if _model_name(key) != BASELINE), key=rank, default=None)


def scored_texts(texts: TextReader, scores: ScoreColumns, weighting: Weighting) -> list[ScoredText]:
    """Return the texts that have these scores, without titles; with sources only if sources weigh differently."""
    sources = texts.sources(scores.news_id.tolist()) if weighting.source_weights else {}
    columns = (scores.news_id, scores.at_us, scores.known_us, scores.score)
    return [
        ScoredText(id, at_us, known_us, score, sources.get(id, ""))
        for id, at_us, known_us, score in zip(*(each.tolist() for each in columns), strict=True)
    ]


def _model_name(key: str) -> str:
    return key.partition("@")[0].partition(":")[0]


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
