"""Measures of danger, one number a bar and greater is worse, for rules to judge; each with its declared warm-up."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from qubic_lab.errors import InputError, check_at_least, check_choice
from qubic_lab.oracle.model.candles import Candles, Floats, absent, exact_logs, held
from qubic_lab.oracle.risk import windows
from qubic_lab.oracle.risk.drawdown import recent_drawdown
from qubic_lab.oracle.risk.liquidity import against_usual, amihud, volume_ratio
from qubic_lab.oracle.risk.value_at_risk import historical, least_bars
from qubic_lab.oracle.risk.volatility import LEAST_FIT, garch_of, realised_volatility

Parameters = Mapping[str, int]
LEAST_BARS = 2
"""No window of a measure is shorter."""
LEAST_CORRELATED = 5
"""Returns of a correlation: its standard error has no value for fewer than 4."""
TAIL = 0.01
"""The level of the value at risk that losses are held against."""


@dataclass(frozen=True, eq=False)
class Market:
    """What measures look at: bars, and beside them what is known at each one's close.

    Attributes:
        candles: of the asset.
        sentiment: of its texts known at each close, [bars]; NaN where there are none.
        other: closes of another asset at the same times, [bars]; NaN where it has none.
    """

    candles: Candles
    sentiment: Floats | None = None
    other: Floats | None = None

    def __post_init__(self) -> None:
        for name in ("sentiment", "other"):
            values = getattr(self, name)
            if values is not None and values.shape != (len(self.candles),):
                raise InputError(
                    f"{name} has shape {values.shape}: give one number for each of {len(self.candles)} bars"
                )

    def until(self, bars: int) -> "Market":
        """Return the first bars."""
        return Market(
            self.candles.slice(0, bars),
            None if self.sentiment is None else self.sentiment[:bars],
            None if self.other is None else self.other[:bars],
        )


@dataclass(frozen=True)
class Measure:
    """A causal function of a market; greater is worse.

    Attributes:
        function: takes a market and its parameters, gives a value for each bar, NaN where there is none.
        warm_up: bars before its first value, from its parameters.
        parameters: their names and usual values, in bars.
        unit: what 1 is.
        needs: "volume", "sentiment" or "other", where it cannot do without.
        least: the least values of parameters for which `LEAST_BARS` are too few.
    """

    name: str
    function: Callable[[Market, Parameters], Floats]
    warm_up: Callable[[Parameters], int]
    parameters: Parameters
    unit: str
    description: str
    needs: str = ""
    least: Parameters = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Measured:
    """A measure's values, [bars], with NaN where there is none; `absent` says why there is not one at all."""

    values: Floats
    warm_up: int
    absent: str = ""
    parameters: Parameters = field(default_factory=dict)


def sentiment_fall(sentiment: Floats, bars: int, usual_bars: int) -> Floats:
    """Return how far the mean sentiment of the last bars is below what is usual, in deviations of such means.

    Bars without texts (NaN) are left out; a mean needs texts in one bar, and what is usual in half of its bars.
    Warm-up: `bars` + `usual_bars` − 1 bars.
    """
    means = windows.rolling(sentiment, bars, _known_mean)
    before = absent(len(sentiment))
    before[bars:] = means[: len(means) - bars] if len(means) > bars else 0.0
    usual = windows.rolling(before, usual_bars, lambda part: _known_mean(part, 0.5))
    spread = windows.rolling(before, usual_bars, _known_deviation)
    return held(bars + usual_bars - 1, windows.ratio(usual - means, spread))


def correlation_break(returns: Floats, other: Floats, bars: int, usual_bars: int) -> Floats:
    """Return how far two assets' correlation over the last bars is from that of the bars before, in standard errors.

    Correlations are compared as inverse hyperbolic tangents, whose standard error is 1 / √(bars − 3) for each; NaN
    where one of the returns is not known or does not vary. Warm-up: `bars` + `usual_bars` − 1 returns.

    Source: R. A. Fisher, Metron 1 (1921), 3-32.
    """
    check_at_least("bars", bars, LEAST_CORRELATED)
    check_at_least("usual_bars", usual_bars, LEAST_CORRELATED)
    now = _correlation(returns, other, bars)
    before = absent(len(returns))
    usual = _correlation(returns, other, usual_bars)
    before[bars:] = usual[: len(usual) - bars] if len(usual) > bars else 0.0
    error = np.sqrt(1.0 / (bars - 3) + 1.0 / (usual_bars - 3))
    return np.asarray(np.abs(_tanh_inverse(now) - _tanh_inverse(before)) / error)


def _tanh_inverse(correlation: Floats) -> Floats:
    inside = np.clip(correlation, -0.999999, 0.999999)
    return 0.5 * (exact_logs_or_nan(1.0 + inside) - exact_logs_or_nan(1.0 - inside))


def exact_logs_or_nan(values: Floats) -> Floats:
    """Return natural logarithms that depend on each value alone, NaN of NaN."""
    found = absent(len(values))
    known = ~np.isnan(values)
    found[known] = exact_logs(values[known])
    return found


def _correlation(first: Floats, second: Floats, bars: int) -> Floats:
    """Return the correlation of the last bars' values; NaN where one is not known or does not vary."""

    def centred(part: Floats) -> Floats:
        return np.asarray(part - part.mean(axis=1, keepdims=True))

    found = absent(len(first))
    both = np.stack([first, second], axis=1)
    if len(both) < bars:
        return found
    view = np.lib.stride_tricks.sliding_window_view(both, bars, axis=0)
    at_once = max(1, 2_000_000 // bars)
    for start in range(0, len(view), at_once):
        part = np.ascontiguousarray(view[start : start + at_once])
        a, b = centred(np.ascontiguousarray(part[:, 0])), centred(np.ascontiguousarray(part[:, 1]))
        spread = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
        level = (np.ptp(part, axis=2) <= 1e-13 * np.abs(part).max(axis=2)).any(axis=1)
        spread[level] = np.nan
        rows = np.s_[start + bars - 1 : start + bars - 1 + len(part)]
        found[rows] = np.divide((a * b).sum(axis=1), spread, out=absent(len(part)), where=spread > 0.0)
    return found


def _known_mean(part: Floats, least: float = 0.0) -> Floats:
    """Return the mean of what is known in each row; NaN where no more than a share of it is."""
    known = ~np.isnan(part)
    count = known.sum(axis=1)
    total = np.where(known, part, 0.0).sum(axis=1)
    enough = (count > 0) & (count >= least * part.shape[1])
    return np.asarray(np.divide(total, count, out=absent(len(part)), where=enough))


def _known_deviation(part: Floats) -> Floats:
    known = ~np.isnan(part)
    count = known.sum(axis=1)
    away = np.where(known, part - _known_mean(part)[:, None], 0.0)
    spread = np.divide((away**2).sum(axis=1), count - 1, out=absent(len(part)), where=count > 1)
    found = np.asarray(np.sqrt(spread))
    found[found < 1e-12] = np.nan  # equal values, but for rounding
    return found


def _volatility_ratio(market: Market, p: Parameters) -> Floats:
    volatility = realised_volatility(market.candles, p["bars"])
    return against_usual(volatility, volatility, p["bars"], p["usual_bars"])


def _range_ratio(market: Market, p: Parameters) -> Floats:
    volatility = realised_volatility(market.candles, p["bars"], "parkinson")
    return against_usual(volatility, volatility, p["bars"], p["usual_bars"])


def _garch_ratio(market: Market, p: Parameters) -> Floats:
    forecast = garch_of(market.candles, p["refit_bars"], p["window_bars"])
    return against_usual(forecast.sigma, forecast.sigma, 1, p["usual_bars"])


def _loss_over_var(market: Market, p: Parameters) -> Floats:
    returns = windows.log_returns(market.candles)
    found = absent(len(returns))
    found[1:] = windows.ratio(np.maximum(0.0, -returns[1:]), historical(returns, TAIL, p["bars"]).var[:-1])
    return found


def _drawdown_in_deviations(market: Market, p: Parameters) -> Floats:
    usual = realised_volatility(market.candles, p["usual_bars"])
    return windows.ratio(recent_drawdown(market.candles, p["bars"]), usual * np.sqrt(p["bars"]))


def _illiquidity_ratio(market: Market, p: Parameters) -> Floats:
    illiquidity = amihud(market.candles, p["bars"])
    return against_usual(illiquidity, illiquidity, p["bars"], p["usual_bars"])


def _volume_ratio(market: Market, p: Parameters) -> Floats:
    return volume_ratio(market.candles, p["bars"], p["usual_bars"])


def _sentiment_fall(market: Market, p: Parameters) -> Floats:
    assert market.sentiment is not None
    return sentiment_fall(market.sentiment, p["bars"], p["usual_bars"])


def _correlation_break(market: Market, p: Parameters) -> Floats:
    assert market.other is not None
    other = absent(len(market.candles))
    other[1:] = np.diff(exact_logs_or_nan(np.where(market.other > 0.0, market.other, np.nan)))
    return correlation_break(windows.log_returns(market.candles), other, p["bars"], p["usual_bars"])


_DAY = {"bars": 24, "usual_bars": 480}


def _twice(p: Parameters) -> int:
    """Return the warm-up of a ratio of two measures of `bars` bars each, of which one needs a bar more."""
    return 2 * p["bars"] + p["usual_bars"] - 1


_ALL = (
    Measure(
        *("volatility_ratio", _volatility_ratio, _twice, _DAY, "times the usual"),
        "realised volatility of the last bars over its median in the bars before",
    ),
    Measure(
        *("range_ratio", _range_ratio, lambda p: _twice(p) - 1, _DAY, "times the usual"),
        "Parkinson's volatility, from highs and lows, over its median in the bars before",
    ),
    Measure(
        *("garch_ratio", _garch_ratio, lambda p: LEAST_FIT + p["usual_bars"]),
        {"usual_bars": 480, "refit_bars": 50, "window_bars": 1000},
        *("times the usual", "volatility that a GARCH(1,1) model forecasts for the next bar over its recent median"),
        least={"window_bars": LEAST_FIT},
    ),
    Measure(
        *("loss_over_var", _loss_over_var, lambda p: p["bars"] + 1, {"bars": 500}, "times value at risk"),
        "the last bar's loss over the value at risk of 1 % that was known before it",
        least={"bars": least_bars(TAIL)},
    ),
    Measure(
        *("drawdown_in_deviations", _drawdown_in_deviations, lambda p: max(p["bars"] - 1, p["usual_bars"])),
        *(_DAY, "deviations", "fall from the highest recent close, in usual deviations of so many bars' return"),
    ),
    Measure(
        *("illiquidity_ratio", _illiquidity_ratio, _twice, _DAY, "times the usual"),
        *("Amihud's price impact of the last bars over its median in the bars before", "volume"),
    ),
    Measure(
        *("volume_ratio", _volume_ratio, lambda p: p["bars"] + p["usual_bars"] - 1, _DAY, "times the usual"),
        *("mean volume of the last bars over the median volume before", "volume"),
    ),
    Measure(
        *("sentiment_fall", _sentiment_fall, lambda p: 2 * p["bars"] + p["usual_bars"] - 2, _DAY, "deviations"),
        *("how far the mean sentiment of the last bars is below the usual", "sentiment"),
    ),
    Measure(
        *("correlation_break", _correlation_break, lambda p: p["bars"] + p["usual_bars"]),
        {"bars": 48, "usual_bars": 480},
        *("standard errors", "change of the correlation with another asset's returns", "other"),
        least={"bars": LEAST_CORRELATED, "usual_bars": LEAST_CORRELATED},
    ),
)
MEASURES: dict[str, Measure] = {each.name: each for each in _ALL}
"""All measures by name."""


def check_parameters(name: str, parameters: Mapping[str, int]) -> dict[str, int]:
    """Return a measure's parameters, the usual ones where none are given.

    Raises:
        InputError: a measure or a parameter that is none, or fewer bars than the measure can do with.
    """
    measure = MEASURES[check_choice("measure", name, MEASURES)]
    for parameter, value in parameters.items():
        check_choice(f"parameter of {name}", parameter, measure.parameters)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{parameter} of {name} is {value!r}: give a whole number of bars")
        check_at_least(f"{parameter} of {name}", value, measure.least.get(parameter, LEAST_BARS))
    return {**measure.parameters, **parameters}


def measure(name: str, market: Market, parameters: Parameters | None = None) -> Measured:
    """Return a measure of a market, NaN before its warm-up; all NaN with the reason where it cannot be had.

    Raises:
        InputError: a measure or a parameter that is none.
    """
    chosen = check_parameters(name, parameters or {})
    found = MEASURES[name]
    bars, warm_up = len(market.candles), found.warm_up(chosen)
    needed = {"sentiment": market.sentiment, "other": market.other, "volume": market.candles.volume}
    reason = ""
    if found.needs:
        given = needed[found.needs]
        if given is None or bool(np.isnan(given).all()):
            reason = f"no {'other asset' if found.needs == 'other' else found.needs} is known"
    if not reason and bars <= warm_up:
        reason = f"{bars} bars: it needs {warm_up + 1}"
    if reason:
        return Measured(absent(bars), warm_up, reason, chosen)
    values = held(warm_up, found.function(market, chosen))
    if np.isnan(values).all():
        reason = "no bar has a value: prices do not vary, or each window lacks something"
    return Measured(values, warm_up, reason, chosen)
