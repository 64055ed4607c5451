"""Scores texts as they come: beside a collector, in a thread of its own."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from qubic_lab.errors import QubicLabError
from qubic_lab.oracle.model.timestamps import DAY_US, now_us
from qubic_lab.oracle.sentiment.scores import SentimentModel
from qubic_lab.oracle.sentiment.stored import FIRST_US, Progress, score_stored
from qubic_lab.oracle.store.text_store import TextStore
from qubic_lab.oracle.store.transactions import Clock

EVERY_S = 30.0
"""So often is it looked whether there are texts without a score."""
RECENT_US = 8 * DAY_US
"""The first look is at all texts, later ones at those published so shortly before."""

_log = logging.getLogger(__name__)


class _Ended(Exception):
    """It was told to end."""


class Scorer:
    """Scores the texts about some coins that a model has not scored yet, again and again until it is told to end."""

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
        """Score while the block runs, and once more at its end; `scored` says how many it were.

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
        start_us, whole = FIRST_US, True
        while not self._ending.wait(self._every_s):
            whole = self._look(start_us, self._check)
            if whole:
                start_us = self._clock() - RECENT_US
        self._look(start_us if whole else self._clock() - RECENT_US, None)  # a long first look may go on next time

    def _check(self, done: int, total: int) -> None:
        if self._ending.is_set():
            raise _Ended

    def _look(self, start_us: int, progress: Progress | None) -> bool:
        """Score what has no score; tell whether all has been looked at."""
        try:
            for coin in self._coins:
                self.scored += score_stored(self._store, self._model, coin, start_us, progress=progress).scored
        except _Ended:
            return False
        except QubicLabError as error:  # of the database: the next look finds what is left
            _log.warning("texts are not scored now: %s", error)
            return False
        return True
