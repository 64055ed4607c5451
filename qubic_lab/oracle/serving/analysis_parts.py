"""What the analysis of a frame of bars says, as clients read it; and what the rating takes from it.

TA-Lib is asked for when the first bars are analysed: without it all else is answered, and the analysis is absent.
"""

from contextlib import suppress
from importlib import import_module
from typing import Any

from qubic_lab.oracle.analysis.rating import MoodFigures, PriceFigures, rate
from qubic_lab.oracle.analysis.summary import age
from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.response import FRAME_S, Frame, Missing, age_s
from qubic_lab.oracle.model.timestamps import SECOND_US, iso
from qubic_lab.oracle.serving.responses import AnalysedBars, Anomalies, Mood, Rating
from qubic_lab.oracle.store.freshness import PricedSeries

ANALYSED: dict[Frame, int] = {"1h": 720, "4h": 360, "1d": 250}
"""So many of the last closed bars are analysed: 30 and 60 days, and 250."""
RATED: Frame = "1h"
RATED_BARS = 480
"""The rating's figures are of so many of these bars: the slowest of them has settled by then."""
OLDEST_BARS = 3
"""There is no rating where the last closed bar is older than so many."""
NOT_INSTALLED = 'indicators need TA-Lib, which is not installed: pip install "qubic-lab[oracle]"'
PARTS = ("indicators", "patterns", "trend", "levels", "breakouts", "forecasts")
_ANOMALIES = tuple(Anomalies.model_fields)


def prepare() -> None:
    """Import what analyses bars, where it is installed: it takes half a second that the first answer need not wait."""
    with suppress(ModuleNotFoundError):
        import_module("qubic_lab.oracle.analysis.price_analysis")


def analysis(bars: Bars, at_us: int, source: PricedSeries) -> dict[str, Any]:
    """Return the parts of a price analysis that come from bars, by their names in the answer."""
    try:
        from qubic_lab.oracle.analysis.price_analysis import analyse
    except ModuleNotFoundError as error:
        if error.name != "talib":
            raise
        return no_analysis(NOT_INSTALLED)
    if not len(bars):
        return no_analysis("no bar of this frame has closed yet")
    found = analyse(bars, at_us).to_dict()
    analysed = AnalysedBars(
        source=source.series.source,
        interval_s=source.series.interval_s,
        **{name: found[name] for name in ("bars", "first", "last", "age_s", "missing")},
        notes=list(found["notes"]),
    )
    return {
        "analysed": analysed,
        **{name: found[name] for name in PARTS},
        "anomalies": {name: found[name] for name in _ANOMALIES},
    }


def no_analysis(reason: str) -> dict[str, Any]:
    """Return the same parts, all absent."""
    return {name: Missing(reason=reason) for name in ("analysed", *PARTS, "anomalies")}


def rate_bars(bars: Bars, source: PricedSeries, sentiment: Mood | Missing, at_us: int) -> Rating | Missing:
    """Return the rating of a coin from closed bars of an hour and its sentiment."""
    frame_us = FRAME_S[RATED] * SECOND_US
    prices = price_figures(bars)
    if isinstance(prices, Missing):
        return Missing(reason=f"no rating: {prices.reason}")
    last_us = int(bars.closed_us[-1])
    if at_us - last_us > OLDEST_BARS * frame_us + source.frequency.delay_s * SECOND_US:
        return Missing(reason=f"no rating: the last closed bar of an hour is {age(age_s(last_us, at_us))} old")
    missing = (last_us - int(bars.opened_us[0])) // frame_us - len(bars)
    gaps = f", {missing} are missing" if missing else ""
    basis = [f"{len(bars)} bars of {RATED} from {source.series.source} up to {iso(last_us)}{gaps}"]
    figures: MoodFigures | Missing
    if isinstance(sentiment, Missing):
        figures = sentiment
    else:
        figures = MoodFigures(sentiment.index, sentiment.confidence, sentiment.texts)
        basis.append(f"{sentiment.texts} texts of 24 h, scored by {sentiment.model}")
    return rate(prices, figures, basis)


def price_figures(bars: Bars) -> PriceFigures | Missing:
    """Return what a rating takes from bars of one hour, at the last of them."""
    try:
        from qubic_lab.oracle.analysis.indicators import compute
        from qubic_lab.oracle.analysis.trend import WINDOW, drift_scores
    except ModuleNotFoundError as error:
        if error.name != "talib":
            raise
        return Missing(reason=NOT_INSTALLED)
    if not len(bars):
        return Missing(reason="no bar of one hour has closed yet")
    values = {
        name: each[-1]
        for name, each in compute(bars, ("sma_50", "sma_200", "rsi_14", "macd_histogram", "atr_14")).items()
    }
    tail = bars.tail(WINDOW + 1)
    values["drift_48"] = drift_scores(tail)[-1]
    return PriceFigures(len(bars), float(bars.close[-1]), **{name: float(value) for name, value in values.items()})
