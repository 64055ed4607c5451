"""The analysis and the rating of a coin's bars, as far as TA-Lib is installed; without it they are missing."""

from importlib import import_module
from importlib.util import find_spec

from qubic_lab.oracle.analysis.rating import NOT_INSTALLED, Rating, SentimentFigures, price_figures, rate
from qubic_lab.oracle.analysis.results import BarAnalysis
from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.response import FRAME_S, Frame, Missing, age_s
from qubic_lab.oracle.model.timestamps import SECOND_US, age_text, iso
from qubic_lab.oracle.sentiment.index_report import SentimentSummary
from qubic_lab.oracle.store.freshness import PricedSeries

ANALYSED: dict[Frame, int] = {"1h": 720, "4h": 360, "1d": 250}
"""The number of last closed bars that are analysed: those of 30 days, 60 days and 250 days."""
RATED: Frame = "1h"
RATED_BARS = 480
"""The number of bars behind a rating: its slowest indicator has settled by then."""
OLDEST_BARS = 3
"""There is no rating if the last closed bar is older than this many bars."""


def prepare() -> None:
    """Import TA-Lib if it is installed: that takes half a second, which the first answer need not wait."""
    if find_spec("talib"):
        import_module("qubic_lab.oracle.analysis.price_analysis")


def analysis(bars: Bars, at_us: int, source: PricedSeries) -> BarAnalysis:
    """Return the analysis of bars at an instant."""
    if find_spec("talib") is None:
        return BarAnalysis.missing(NOT_INSTALLED)
    from qubic_lab.oracle.analysis.price_analysis import analyse

    return analyse(bars, at_us, source.series.source, source.series.interval_s)


def rate_bars(bars: Bars, source: PricedSeries, sentiment: SentimentSummary | Missing, at_us: int) -> Rating | Missing:
    """Return the rating of a coin from closed bars of an hour and its sentiment."""
    frame_us = FRAME_S[RATED] * SECOND_US
    prices = price_figures(bars)
    if isinstance(prices, Missing):
        return Missing(reason=f"no rating: {prices.reason}")
    last_us = int(bars.closed_us[-1])
    if at_us - last_us > OLDEST_BARS * frame_us + source.frequency.delay_s * SECOND_US:
        return Missing(reason=f"no rating: the last closed bar of an hour is {age_text(age_s(last_us, at_us))} old")
    missing = (last_us - int(bars.opened_us[0])) // frame_us - len(bars)
    gaps = f", {missing} are missing" if missing else ""
    basis = [f"{len(bars)} bars of {RATED} from {source.series.source} up to {iso(last_us)}{gaps}"]
    if isinstance(sentiment, Missing):
        return rate(prices, sentiment, basis)
    basis.append(f"{sentiment.texts} texts of 24 h, scored by {sentiment.model}")
    return rate(prices, SentimentFigures(sentiment.index, sentiment.confidence, sentiment.texts), basis)
