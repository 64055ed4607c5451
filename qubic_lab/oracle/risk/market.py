"""The market that rules of risk look at: a coin's closed bars, and beside them what was known at each close."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sqlalchemy import Engine

from qubic_lab.errors import NotFoundError
from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.candles import Candles, Floats, Instants, absent
from qubic_lab.oracle.model.response import FRAME_S, Frame, Missing
from qubic_lab.oracle.model.timestamps import SECOND_US
from qubic_lab.oracle.risk.measures import Market
from qubic_lab.oracle.sentiment.index import SETTINGS, ScoredText, Weighting, index_series
from qubic_lab.oracle.serving.price_parts import Candidate, fits, why_no_bars
from qubic_lab.oracle.serving.sentiment_parts import (
    NO_SCORES,
    NO_TEXTS,
    choose_model,
    read_sources,
    sample_ids,
    scored_texts,
)
from qubic_lab.oracle.serving.text_parts import score_summary, without_texts
from qubic_lab.oracle.store.bar_history import BarHistory
from qubic_lab.oracle.store.text_store import TextStore

LOOKED_AT: dict[Frame, int] = {"1h": 2_000, "4h": 2_000, "1d": 1_000}
"""So many of the last closed bars are looked at: 83 and 333 days, and 1,000."""
OLDEST_BARS = 3
"""Prices are stale where the last closed bar is older than so many."""
COMPANIONS = {"bitcoin": "ethereum"}
OTHER_COMPANION = "bitcoin"
_TEXTS_US = int(SETTINGS.window_s) * SECOND_US
"""A text counts for so long after it was published, once it and its score are known."""

Candidates = Callable[[str, int, int | None], Sequence[Candidate]]


@dataclass(frozen=True, eq=False)
class RiskMarket:
    """A coin's closed bars with what was known at each close, and where that is from.

    Attributes:
        other: the other asset and its source.
        sentiment: the model whose scores of texts they are.
    """

    candidate: Candidate
    market: Market
    other: str | Missing
    sentiment: str | Missing

    @property
    def candles(self) -> Candles:
        """The bars."""
        return self.market.candles

    def is_stale(self, at_us: int) -> bool:
        """Return whether the last bar is so old that it says nothing of an instant; there is at least one."""
        late_us = OLDEST_BARS * self.candles.frame_us + int(self.candidate.frequency.delay_s * SECOND_US)
        return at_us - int(self.candles.closed_us[-1]) > late_us


class RiskMarkets:
    """Reads markets; threads may share it.

    Args:
        candidates: gives a coin's series with a price at an instant, as known then or by now, the first choice first.
        history: of bars.
        texts: with their scores.
        engine: of the database that all of it is in.
        weighting: of texts by source.
    """

    def __init__(
        self, candidates: Candidates, history: BarHistory, texts: TextStore, engine: Engine, weighting: Weighting
    ) -> None:
        self._candidates, self._history, self._texts = candidates, history, texts
        self._engine, self._weighting = engine, weighting

    def read(self, coin: str, frame: Frame, at_us: int, as_of_us: int | None) -> RiskMarket | Missing:
        """Return a coin's market up to an instant, or why its prices make no such bars.

        Raises:
            NotFoundError: no price of the coin is known.
        """
        candidates = self._candidates(coin, at_us, as_of_us)
        bars = self._bars(candidates, frame, at_us, as_of_us)
        if bars is None:
            return why_no_bars(frame, candidates)
        candidate, found = bars
        candles = Candles.of(found, FRAME_S[frame] * SECOND_US)
        closes, other = self._companion(coin, frame, candles.closed_us, at_us, as_of_us)
        index, model = self._sentiment(coin, candles.closed_us, at_us, as_of_us)
        return RiskMarket(candidate, Market(candles, index, closes), other, model)

    def _bars(
        self, candidates: Sequence[Candidate], frame: Frame, at_us: int, as_of_us: int | None
    ) -> tuple[Candidate, Bars] | None:
        """Return the bars of the first candidate that has enough, or of the one that has most; fresh ones go first."""
        frame_us = FRAME_S[frame] * SECOND_US
        found: tuple[Candidate, Bars] | None = None
        for candidate in (each for each in candidates if fits(each.series, frame_us)):
            if found is not None and (len(found[1]) >= LOOKED_AT[frame] or candidate.stale != found[0].stale):
                break
            bars = self._history.bars(candidate, frame_us, LOOKED_AT[frame], at_us, as_of_us)
            if found is None or len(bars) > len(found[1]):
                found = candidate, bars
        return found

    def _companion(
        self, coin: str, frame: Frame, closed_us: Instants, at_us: int, as_of_us: int | None
    ) -> tuple[Floats | None, str | Missing]:
        """Return another asset's closes at the same times, and which one that is."""
        name = companion(coin)
        try:
            bars = self._bars(self._candidates(name, at_us, as_of_us), frame, at_us, as_of_us)
        except NotFoundError:
            bars = None
        if bars is None:
            return None, Missing(reason=f"there are no such bars of {name}")
        closes = closes_at(closed_us, bars[1])
        if np.isnan(closes).all():
            return None, Missing(reason=f"no bar of {name} closed at the same time")
        return closes, f"{name} from {bars[0].series.source}"

    def _sentiment(
        self, coin: str, closed_us: Instants, at_us: int, as_of_us: int | None
    ) -> tuple[Floats | None, str | Missing]:
        """Return the index of texts at each close, and the model whose scores it is made from."""
        if not len(closed_us):
            return None, Missing(reason=NO_TEXTS)
        start_us = int(closed_us[0]) - _TEXTS_US
        every = self._texts.scores_by_model(coin, start_us, at_us + 1, as_of_us=as_of_us)
        if not every:
            return None, Missing(reason=NO_SCORES)
        invented = sample_ids(self._engine, coin, start_us, at_us + 1)
        kept = {model: without_texts(columns, invented) for model, columns in every.items()}
        model = choose_model(score_summary(name, columns) for name, columns in kept.items() if len(columns))
        if model is None:
            return None, Missing(reason=NO_SCORES)
        sources = read_sources(self._engine, [int(id) for id in kept[model].news_id], self._weighting)
        return sentiment_at(closed_us, scored_texts(kept[model], sources), self._weighting), model


def companion(coin: str) -> str:
    """Return the asset whose correlation with a coin is watched."""
    return COMPANIONS.get(coin, OTHER_COMPANION)


def closes_at(closed_us: Instants, other: Bars) -> Floats:
    """Return another asset's closes at some instants, NaN where none of its bars closed at one."""
    found = absent(len(closed_us))
    if len(other):
        places = np.minimum(np.searchsorted(other.closed_us, closed_us), len(other) - 1)
        there = other.closed_us[places] == closed_us
        found[there] = other.close[places[there]]
    return found


def sentiment_at(closed_us: Instants, texts: Sequence[ScoredText], weighting: Weighting) -> Floats:
    """Return the index of the texts that were published and known at each close; NaN where there was none."""
    found = absent(len(closed_us))
    if texts:
        first = min(max(each.at_us, each.known_us) for each in texts)
        start = int(np.searchsorted(closed_us, first))
        settings = replace(SETTINGS, source_weights=weighting.source_weights)
        found[start:] = index_series(texts, closed_us[start:], settings).composite
    return found
