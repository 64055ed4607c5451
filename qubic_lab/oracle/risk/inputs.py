"""Reads the inputs of a coin's risk: its closed bars, another asset's closes, and the sentiment known at each close."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qubic_lab.errors import NotFoundError
from qubic_lab.oracle.model.bars import Bars, Floats, Integers
from qubic_lab.oracle.model.response import FRAME_S, Frame, Missing
from qubic_lab.oracle.model.timestamps import SECOND_US
from qubic_lab.oracle.risk.measures import RiskInputs
from qubic_lab.oracle.sentiment.index import (
    NO_SCORES,
    NO_TEXTS,
    SETTINGS,
    ScoredText,
    Weighting,
    choose_model,
    index_series,
    scored_texts,
)
from qubic_lab.oracle.store.price_store import PricedSeries
from qubic_lab.oracle.store.snapshot import Snapshot, why_no_bars

ANALYSED_BARS: dict[Frame, int] = {"1h": 2_000, "4h": 2_000, "1d": 1_000}
"""The number of the last closed bars that are analysed: 83, 333 and 1,000 days."""
OLDEST_BARS = 3
"""Prices are stale if the last closed bar is older than this number of bars."""
_TEXTS_US = int(SETTINGS.window_s) * SECOND_US
"""How long a text counts after it was published, once it and its score are known."""


@dataclass(frozen=True, eq=False)
class RiskMarket:
    """The inputs of a coin's risk; the series of its bars, the other asset and its source, the model of sentiment."""

    source: PricedSeries
    inputs: RiskInputs
    other: str | Missing
    sentiment: str | Missing

    @property
    def bars(self) -> Bars:
        """The bars."""
        return self.inputs.bars

    def is_stale(self, at_us: int) -> bool:
        """Return whether the last bar, of at least one, is too old to say anything about an instant."""
        late_us = OLDEST_BARS * self.bars.frame_us + int(self.source.frequency.delay_s * SECOND_US)
        return at_us - int(self.bars.closed_us[-1]) > late_us


def read_risk_market(snapshot: Snapshot, coin: str, frame: Frame, weighting: Weighting) -> RiskMarket | Missing:
    """Return a coin's inputs of risk at a snapshot's instant, or why the prices cannot be made into such bars.

    Raises:
        NotFoundError: no price of the coin is known.
    """
    sources = snapshot.sources(coin)
    found = _bars(snapshot, sources, frame)
    if found is None:
        return why_no_bars(frame, sources)
    source, bars = found
    closes, other = _companion(snapshot, coin, frame, bars.closed_us)
    index, model = _sentiment(snapshot, coin, bars.closed_us, weighting)
    return RiskMarket(source, RiskInputs(bars, index, closes), other, model)


def _bars(snapshot: Snapshot, sources: Sequence[PricedSeries], frame: Frame) -> tuple[PricedSeries, Bars] | None:
    """Return the bars of the first series with enough, else of the one with most; fresh ones come first."""
    frame_us = FRAME_S[frame] * SECOND_US
    found: tuple[PricedSeries, Bars] | None = None
    for source in (each for each in sources if each.series.makes(frame_us)):
        if found is not None and (len(found[1]) >= ANALYSED_BARS[frame] or source.stale != found[0].stale):
            break
        bars = snapshot.bars(source, frame_us, ANALYSED_BARS[frame])
        if found is None or len(bars) > len(found[1]):
            found = source, bars
    return found


def _companion(snapshot: Snapshot, coin: str, frame: Frame, closed_us: Integers) -> tuple[Floats | None, str | Missing]:
    """Return another asset's closes at the same times, and its name and source."""
    name = companion(coin)
    try:
        bars = _bars(snapshot, snapshot.sources(name), frame)
    except NotFoundError:
        bars = None
    if bars is None:
        return None, Missing(reason=f"there are no such bars of {name}")
    closes = closes_at(closed_us, bars[1])
    if np.isnan(closes).all():
        return None, Missing(reason=f"no bar of {name} closed at the same time")
    return closes, f"{name} from {bars[0].series.source}"


def _sentiment(
    snapshot: Snapshot, coin: str, closed_us: Integers, weighting: Weighting
) -> tuple[Floats | None, str | Missing]:
    """Return the sentiment index at each close, and the model that scored the texts."""
    if not len(closed_us):
        return None, Missing(reason=NO_TEXTS)
    scores = snapshot.scores(coin, int(closed_us[0]) - _TEXTS_US)
    model = choose_model(scores)
    if model is None:
        return None, Missing(reason=NO_SCORES)
    return sentiment_at(closed_us, scored_texts(snapshot.texts, scores[model], weighting), weighting), model


def companion(coin: str) -> str:
    """Return the asset whose correlation with a coin is watched."""
    return "ethereum" if coin == "bitcoin" else "bitcoin"


def closes_at(closed_us: Integers, other: Bars) -> Floats:
    """Return another asset's closes at some instants; NaN where none of its bars closed."""
    import pandas as pd

    return np.asarray(pd.Series(other.close, other.closed_us).reindex(closed_us), np.float64)


def sentiment_at(closed_us: Integers, texts: Sequence[ScoredText], weighting: Weighting) -> Floats:
    """Return the sentiment index of the texts that were published and known at each close; NaN without such texts."""
    found = np.full(len(closed_us), np.nan)
    if texts:
        first = min(max(each.at_us, each.known_us) for each in texts)
        start = int(np.searchsorted(closed_us, first))
        settings = replace(SETTINGS, source_weights=weighting.source_weights)
        found[start:] = index_series(texts, closed_us[start:], settings).composite
    return found
