"""What the oracle tab shows, from the oracle's answers; a part that cannot be computed says why."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from qubic_lab.oracle.model.response import FRAME_S

AVERAGE_BARS, BAND_DEVIATIONS = 20, 2.0
"""Of the Bollinger bands, as in `oracle.analysis.indicators`."""
DAY_S = 86_400
MOST_LEVELS = 6
BODY_SHARE = 0.7
"""Width of a candle's body, of its bar's length."""
Columns = dict[str, list[Any]]
TIMELINE = ("what", "start", "end", "color", "ms")
"""The columns of a timeline: a name, the times in ms of start and end, a colour, and the ms between."""
NAN = float("nan")


@dataclass(frozen=True)
class Unusual:
    """Something unusual, and when."""

    kind: str
    at: str
    text: str


def missing(part: Any) -> str:
    """Return why a part of an answer is missing; empty if it is there."""
    return str(part["reason"]) if isinstance(part, Mapping) and part.get("available") is False else ""


def columns_of(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Columns:
    """Return rows as the columns of a chart or a table, which have these names."""
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return {name: list(column) for name, column in zip(names, columns, strict=True)}


def _bars(analysis: Mapping[str, Any]) -> list[Any]:
    return [] if missing(analysis["bars"]) else list(analysis["bars"]["bars"])


def ms_of(instant: str) -> float:
    """Return an instant of an answer in milliseconds since 1970, as charts have it."""
    return datetime.fromisoformat(instant).timestamp() * 1e3


def candles(analysis: Mapping[str, Any]) -> Columns:
    """Return the closed bars of a price analysis as columns: candles, volume, and Bollinger bands of the shown bars."""
    bars = _bars(analysis)
    close_T = [bar["close"] for bar in bars]
    middle, low, high = bollinger(close_T)
    rises = [bar["close"] >= bar["open"] for bar in bars]
    return {
        "at": [ms_of(bar["closed"]) for bar in bars],
        "when": [bar["closed"] for bar in bars],
        **{name: [bar[name] for bar in bars] for name in ("open", "high", "low", "close")},
        "volume": [NAN if bar["volume"] is None else bar["volume"] for bar in bars],
        "color": ["#2a9d8f" if rise else "#d1495b" for rise in rises],
        "middle": middle,
        "band_low": low,
        "band_high": high,
    }


def bollinger(close_T: Sequence[float]) -> tuple[list[float], list[float], list[float]]:
    """Return mean and bands of the last 20 closes at each bar; NaN before there are so many."""
    middle, low, high = ([NAN] * len(close_T) for _ in range(3))
    for end in range(AVERAGE_BARS, len(close_T) + 1):
        window = np.asarray(close_T[end - AVERAGE_BARS : end])
        mean, reach = float(window.mean()), BAND_DEVIATIONS * float(window.std())
        middle[end - 1], low[end - 1], high[end - 1] = mean, mean - reach, mean + reach
    return middle, low, high


def body_ms(frame: str) -> float:
    """Return the width of a candle's body in ms."""
    return BODY_SHARE * 1e3 * {str(name): seconds for name, seconds in FRAME_S.items()}[frame]


def forecast_rows(analysis: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the forecasts of a price analysis that there are, the nearest first."""
    found = {} if missing(analysis["forecasts"]) else analysis["forecasts"]
    return sorted((each for each in found.values() if not missing(each)), key=lambda each: each["hours"])


def forecast_columns(analysis: Mapping[str, Any]) -> Columns:
    """Return the forecasts of a price analysis as columns of a chart, from its last close on."""
    rows = forecast_rows(analysis)
    bars = _bars(analysis)
    start = [(ms_of(bars[-1]["closed"]), bars[-1]["closed"], *(3 * [bars[-1]["close"]]))] if rows and bars else []
    points = [*start, *((ms_of(row["at"]), row["at"], row["price"], row["low"], row["high"]) for row in rows)]
    return columns_of(("at", "when", "price", "low", "high"), points)


def levels(analysis: Mapping[str, Any]) -> Columns:
    """Return the strongest price levels as columns of a chart."""
    bars = _bars(analysis)
    found = [] if missing(analysis["levels"]) or not bars else analysis["levels"][:MOST_LEVELS]
    ends = [ms_of(bar["closed"]) for bar in (*bars[:1], *bars[-1:])]
    rows = ((ends, 2 * [each["price"]], each["kind"], each["price"], each["touches"]) for each in found)
    return columns_of(("xs", "ys", "kind", "price", "touches"), rows)


def unusual(analysis: Mapping[str, Any]) -> list[Unusual]:
    """Return what was unusual in the last bars, the newest first: anomalies, hints of manipulation, patterns."""
    parts = {} if missing(analysis["anomalies"]) else analysis["anomalies"]
    found = [
        Unusual(each["kind"], each["at"], each["text"])
        for name in ("outliers", "jumps", "volumes", "manipulation")
        if name in parts and not missing(parts[name])
        for each in parts[name]
    ]
    if not missing(analysis["breakouts"]):
        found += [
            Unusual(f"breakout {each['direction']}", each["at"], _breakout(each)) for each in analysis["breakouts"]
        ]
    if not missing(analysis["patterns"]):
        found += [Unusual(each["name"], each["at"], each["meaning"]) for each in analysis["patterns"]]
    return sorted(found, key=lambda each: each.at, reverse=True)


def reasons(analysis: Mapping[str, Any]) -> dict[str, str]:
    """Return why kinds of anomalies cannot be found, by kind."""
    anomalies = analysis["anomalies"]
    if missing(anomalies):
        return {"anomalies": missing(anomalies)}
    return {name: why for name, part in anomalies.items() if (why := missing(part))}


def day_before(analysis: Mapping[str, Any]) -> str | None:
    """Return the close of the last bar that is at least a day older than the newest; None: there is none."""
    bars = _bars(analysis)
    if not bars:
        return None
    last_s = datetime.fromisoformat(bars[-1]["closed"]).timestamp()
    earlier = [bar["closed"] for bar in bars if datetime.fromisoformat(bar["closed"]).timestamp() <= last_s - DAY_S]
    return earlier[-1] if earlier else None


def _breakout(each: Mapping[str, Any]) -> str:
    level = each["level"]
    return f"close {each['close']:g} beyond {level['low']:g} to {level['high']:g} ({level['touches']} touches)"


def unusual_columns(analysis: Mapping[str, Any]) -> Columns:
    """Return what was unusual as marks above the candles of their bars."""
    highs = {bar["closed"]: bar["high"] for bar in _bars(analysis)}
    marks = [each for each in unusual(analysis) if each.at in highs]
    rows = ((ms_of(each.at), each.at, highs[each.at], each.kind, each.text) for each in marks)
    return columns_of(("at", "when", "price", "kind", "text"), rows)


def news_columns(sentiment: Mapping[str, Any]) -> Columns:
    """Return the sentiment index and the number of texts over a window, as columns of a chart."""
    points = [] if missing(sentiment["index"]) else sentiment["index"]["history"]
    rows = (
        (ms_of(each["at"]), each["at"], NAN if each["index"] is None else each["index"], each["texts"])
        for each in points
    )
    return columns_of(("at", "when", "index", "texts"), rows)


def price_text(value: float | None) -> str:
    """Return a price with as many digits as it needs: that of Qubic is about 0.000001."""
    if value is None or math.isnan(value):
        return "–"
    digits = 2 if abs(value) >= 1 else min(12, 4 - math.floor(math.log10(abs(value) or 1)))
    return f"{value:,.{digits}f}"
