"""Reads the inputs of a coin's risk: its closed bars, another asset's closes, and the sentiment known at each close."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sqlalchemy import Engine

from qubic_lab.errors import NotFoundError
from qubic_lab.oracle.model.bars import Bars, Floats, Integers
from qubic_lab.oracle.model.response import FRAME_S, Frame, Missing
from qubic_lab.oracle.model.timestamps import SECOND_US
from qubic_lab.oracle.risk.measures import RiskInputs
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
"""The number of the last closed bars that are analysed: 83, 333 and 1,000 days."""
OLDEST_BARS = 3
"""Prices are stale if the last closed bar is older than this number of bars."""
COMPANIONS = {"bitcoin": "ethereum"}
OTHER_COMPANION = "bitcoin"
_TEXTS_US = int(SETTINGS.window_s) * SECOND_US
"""How long a text counts after it was published, once it and its score are known."""

Candidates = Callable[[str, int, int | None], Sequence[Candidate]]


@dataclass(frozen=True, eq=False)
class RiskMarket:
    """The inputs of a coin's risk, and where they come from.

    Attributes:
        candidate: the source of the bars.
        other: the other asset and its source.
        sentiment: the model that scored the texts.
    """

    candidate: Candidate
    inputs: RiskInputs
    other: str | Missing
    sentiment: str | Missing

    @property
    def bars(self) -> Bars:
        """The bars."""
        return self.inputs.bars

    def is_stale(self, at_us: int) -> bool:
        """Return whether the last bar, of at least one, is too old to say anything about an instant."""
        late_us = OLDEST_BARS * self.bars.frame_us + int(self.candidate.frequency.delay_s * SECOND_US)
        return at_us - int(self.bars.closed_us[-1]) > late_us


class RiskMarkets:
    """Reads the inputs of risk; threads may share it.

    Args:
        candidates: gives a coin's series with a price at an instant, as known then or now, the first choice first.
        history: of bars.
        texts: with their scores.
        engine: of the database.
        weighting: of texts by source.
    """

    def __init__(
        self, candidates: Candidates, history: BarHistory, texts: TextStore, engine: Engine, weighting: Weighting
    ) -> None:
        self._candidates, self._history, self._texts = candidates, history, texts
        self._engine, self._weighting = engine, weighting

    def read(self, coin: str, frame: Frame, at_us: int, as_of_us: int | None) -> RiskMarket | Missing:
        """Return the inputs up to an instant, or why the prices cannot be made into such bars.

        Raises:
            NotFoundError: no price of the coin is known.
        """
        candidates = self._candidates(coin, at_us, as_of_us)
        found = self._bars(candidates, frame, at_us, as_of_us)
        if found is None:
            return why_no_bars(frame, candidates)
        candidate, bars = found
        closes, other = self._companion(coin, frame, bars.closed_us, at_us, as_of_us)
        index, model = self._sentiment(coin, bars.closed_us, at_us, as_of_us)
        return RiskMarket(candidate, RiskInputs(bars, index, closes), other, model)

    def _bars(
        self, candidates: Sequence[Candidate], frame: Frame, at_us: int, as_of_us: int | None
    ) -> tuple[Candidate, Bars] | None:
        """Return the bars of the first candidate with enough, else of the one with most; fresh ones come first."""
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
        self, coin: str, frame: Frame, closed_us: Integers, at_us: int, as_of_us: int | None
    ) -> tuple[Floats | None, str | Missing]:
        """Return another asset's closes at the same times, and its name and source."""
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
        self, coin: str, closed_us: Integers, at_us: int, as_of_us: int | None
    ) -> tuple[Floats | None, str | Missing]:
        """Return the sentiment index at each close, and the model that scored the texts."""
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


def closes_at(closed_us: Integers, other: Bars) -> Floats:
    """Return another asset's closes at some instants; NaN where none of its bars closed."""
    found = np.full(len(closed_us), np.nan)
    if len(other):
        places = np.minimum(np.searchsorted(other.closed_us, closed_us), len(other) - 1)
        there = other.closed_us[places] == closed_us
        found[there] = other.close[places[there]]
    return found


def sentiment_at(closed_us: Integers, texts: Sequence[ScoredText], weighting: Weighting) -> Floats:
    """Return the sentiment index of the texts that were published and known at each close; NaN without such texts."""
    found = np.full(len(closed_us), np.nan)
    if texts:
        first = min(max(each.at_us, each.known_us) for each in texts)
        start = int(np.searchsorted(closed_us, first))
        settings = replace(SETTINGS, source_weights=weighting.source_weights)
        found[start:] = index_series(texts, closed_us[start:], settings).composite
    return found
