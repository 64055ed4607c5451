"""Measures of risk: one number per bar, greater is worse, each with a declared warm-up. Rules make levels of them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from qubic_lab.errors import check_at_least, check_choice
from qubic_lab.oracle.model.bars import Bars, Floats, exact_logs, mask_warm_up
from qubic_lab.oracle.model.timestamps import DAY_US
from qubic_lab.oracle.risk.models import (
    LEAST_FIT,
    REFIT_BARS,
    WINDOW_BARS,
    garch_of,
    historical,
    least_bars,
    mean,
    ratio,
    realised_volatility,
    recent_drawdown,
    rolling,
)

Level = Literal["calm", "watch", "warning", "alarm"]
LEVELS: tuple[Level, ...] = ("calm", "watch", "warning", "alarm")
"""In order of rising risk; a level's number is its index."""
Parameters = Mapping[str, int]
LEAST_BARS = 2
"""The shortest window of any measure."""
LEAST_CORRELATED = 5
"""The fewest returns of a correlation: its standard error needs 4 at least."""
TAIL = 0.01
"""The level of the VaR that losses are compared with."""


@dataclass(frozen=True, eq=False)
class RiskInputs:
    """What measures look at: bars, and what was known at the close of each.

    Attributes:
        sentiment: sentiment index of the asset's texts, [bars]; NaN where there are no texts.
        other: closes of another asset at the same times, [bars]; NaN where it has none.
    """

    bars: Bars
    sentiment: Floats | None = None
    other: Floats | None = None

    def first(self, count: int) -> "RiskInputs":
        """Return the first bars and what was known at them."""
        sentiment, other = (None if each is None else each[:count] for each in (self.sentiment, self.other))
        return RiskInputs(self.bars.slice(0, count), sentiment, other)


@dataclass(frozen=True)
class RiskMeasure:
    """A causal function of inputs; greater is worse.

    Attributes:
        function: takes inputs and the parameters by name, and gives a value per bar, NaN where there is none.
        warm_up: takes the parameters by name, and gives the number of bars before the first value.
        parameters: their names and default values, in bars; `least` has minima other than `LEAST_BARS`.
        needs: "volume", "sentiment" or "other" if it has no value without.
    """

    function: Callable[..., Floats]
    warm_up: Callable[..., int]
    parameters: Parameters
    unit: str
    description: str
    needs: str
    least: Parameters


@dataclass(frozen=True, eq=False)
class MeasureValues:
    """The values of a measure, [bars], NaN where there is none; `missing` says why there is none at all."""

    values: Floats
    warm_up: int
    missing: str = ""
    parameters: Parameters = field(default_factory=dict)


MEASURES: dict[str, RiskMeasure] = {}
"""All measures by name: that of the function, without its underscore."""


def _measure(
    unit: str, description: str, warm_up: Callable[..., int], needs: str = "", least: Parameters | None = None
) -> Callable[[Callable[..., Floats]], Callable[..., Floats]]:
    """Make a measure of a function of inputs and parameters; the defaults of the parameters suit short bars."""

    def add(function: Callable[..., Floats]) -> Callable[..., Floats]:
        defaults = {each.name: each.default for each in list(inspect.signature(function).parameters.values())[1:]}
        name = function.__name__.removeprefix("_")
        MEASURES[name] = RiskMeasure(function, warm_up, defaults, unit, description, needs, least or {})
        return function

    return add


_USUAL = "times the usual"


def _two_windows(bars: int, usual_bars: int) -> int:
    """Return the warm-up of a ratio of two measures of `bars` bars, which need one bar more."""
    return 2 * bars + usual_bars - 1


@_measure(_USUAL, "realised volatility of the last bars over its median in the bars before", _two_windows)
def _volatility_ratio(inputs: RiskInputs, bars: int = 24, usual_bars: int = 480) -> Floats:
    volatility = realised_volatility(inputs.bars, bars)
    return _against_usual(volatility, volatility, bars, usual_bars)


@_measure(
    _USUAL,
    "Parkinson's volatility, from highs and lows, over its median in the bars before",
    lambda bars, usual_bars: 2 * bars + usual_bars - 2,
)
def _range_ratio(inputs: RiskInputs, bars: int = 24, usual_bars: int = 480) -> Floats:
    volatility = realised_volatility(inputs.bars, bars, "parkinson")
    return _against_usual(volatility, volatility, bars, usual_bars)


@_measure(
    _USUAL,
    "volatility that a GARCH(1,1) model forecasts for the next bar over its recent median",
    lambda usual_bars, refit_bars, window_bars: LEAST_FIT + usual_bars,
    least={"window_bars": LEAST_FIT},
)
def _garch_ratio(
    inputs: RiskInputs, usual_bars: int = 480, refit_bars: int = REFIT_BARS, window_bars: int = WINDOW_BARS
) -> Floats:
    sigma = garch_of(inputs.bars, refit_bars, window_bars).sigma
    return _against_usual(sigma, sigma, 1, usual_bars)


@_measure(
    "times value at risk",
    "the last bar's loss over the value at risk of 1 % that was known before it",
    lambda bars: bars + 1,
    least={"bars": least_bars(TAIL)},
)
def _loss_over_var(inputs: RiskInputs, bars: int = 500) -> Floats:
    returns = inputs.bars.log_returns
    return ratio(np.maximum(0.0, -returns), _before(historical(returns, TAIL, bars).var, 1))


@_measure(
    "deviations",
    "fall from the highest recent close, in usual deviations of the return over as many bars",
    lambda bars, usual_bars: max(bars - 1, usual_bars),
)
def _drawdown_in_deviations(inputs: RiskInputs, bars: int = 24, usual_bars: int = 480) -> Floats:
    usual = realised_volatility(inputs.bars, usual_bars)
    return ratio(recent_drawdown(inputs.bars.close, bars), usual * np.sqrt(bars))


@_measure(_USUAL, "Amihud's price impact of the last bars over its median in the bars before", _two_windows, "volume")
def _illiquidity_ratio(inputs: RiskInputs, bars: int = 24, usual_bars: int = 480) -> Floats:
    illiquidity = amihud(inputs.bars, bars)
    return _against_usual(illiquidity, illiquidity, bars, usual_bars)


@_measure(
    _USUAL,
    "mean volume of the last bars over the median volume before",
    lambda bars, usual_bars: bars + usual_bars - 1,
    needs="volume",
)
def _volume_ratio(inputs: RiskInputs, bars: int = 24, usual_bars: int = 480) -> Floats:
    volume = inputs.bars.volume
    return _against_usual(rolling(volume, bars, mean), volume, bars, usual_bars)


@_measure(
    "deviations",
    "how far the mean sentiment of the last bars is below the usual",
    lambda bars, usual_bars: 2 * bars + usual_bars - 2,
    needs="sentiment",
)
def _sentiment_fall(inputs: RiskInputs, bars: int = 24, usual_bars: int = 480) -> Floats:
    """Bars without texts (NaN) are left out; a mean needs texts in one bar, the usual mean in half of its bars."""
    assert inputs.sentiment is not None
    means = rolling(inputs.sentiment, bars, _known_mean)
    before = _before(means, bars)
    usual = rolling(before, usual_bars, lambda part: _known_mean(part, 0.5))
    return ratio(usual - means, rolling(before, usual_bars, _known_deviation))


@_measure(
    "standard errors",
    "change of the correlation with another asset's returns",
    lambda bars, usual_bars: bars + usual_bars,
    needs="other",
    least={"bars": LEAST_CORRELATED, "usual_bars": LEAST_CORRELATED},
)
def _correlation_break(inputs: RiskInputs, bars: int = 48, usual_bars: int = 480) -> Floats:
    """Compare correlations as inverse hyperbolic tangents, whose standard error is 1 / √(bars − 3) each.

    Source: R. A. Fisher, Metron 1 (1921), 3-32.
    """
    assert inputs.other is not None
    other = np.diff(exact_logs(inputs.other), prepend=np.nan)
    now, usual = (_correlation(inputs.bars.log_returns, other, window) for window in (bars, usual_bars))
    error = np.sqrt(1.0 / (bars - 3) + 1.0 / (usual_bars - 3))
    return np.asarray(np.abs(_inverse_tanh(now) - _inverse_tanh(_before(usual, bars))) / error)


def amihud(bars: Bars, window: int) -> Floats:
    """Return the mean absolute log return per million traded, in the currency, over the last `window` bars, [bars].

    NaN for a window in which a bar has no volume: its price could not move. Warm-up: `window` bars.

    Source: Y. Amihud, "Illiquidity and stock returns", Journal of Financial Markets 5 (2002), 31-56.
    """
    millions = bars.close * bars.volume / 1e6
    return rolling(ratio(np.abs(bars.log_returns), millions), window, mean)


def _before(values: Floats, bars: int) -> Floats:
    """Return the value `bars` bars before each bar."""
    return np.concatenate([np.full(bars, np.nan), values[:-bars]])


def _against_usual(now: Floats, values: Floats, bars: int, usual_bars: int) -> Floats:
    """Return a measure of the last `bars` bars over the median of `values` in the `usual_bars` bars before them."""
    medians = rolling(values, usual_bars, lambda part: np.median(part, axis=1))
    return ratio(now, _before(medians, bars))


def _known_mean(part: Floats, least: float = 0.0) -> Floats:
    """Return the mean of the known values of each row; NaN where less than a share `least` of them is known."""
    known = np.ma.masked_invalid(part)
    means = known.mean(axis=1).filled(np.nan)
    return np.where(known.count(axis=1) >= least * part.shape[1], means, np.nan)


def _known_deviation(part: Floats) -> Floats:
    found = np.ma.masked_invalid(part).std(axis=1, ddof=1).filled(np.nan)
    found[found < 1e-12] = np.nan  # equal values, except for rounding
    return np.asarray(found)


def _correlation(first: Floats, second: Floats, bars: int) -> Floats:
    """Return the correlation over the last bars; NaN where a value is not known or one side does not vary."""

    def correlate(places: Floats) -> Floats:
        rows = places.astype(np.int64)
        a, b = first[rows], second[rows]
        constant = np.zeros(len(rows), np.bool_)
        for side in (a, b):
            constant |= np.ptp(side, axis=1) <= 1e-13 * np.abs(side).max(axis=1)
        a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
        spread = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
        spread[constant] = np.nan
        return ratio((a * b).sum(axis=1), spread)

    return rolling(np.arange(len(first), dtype=np.float64), bars, correlate)


def _inverse_tanh(correlation: Floats) -> Floats:
    inside = np.clip(correlation, -0.999999, 0.999999)
    return 0.5 * (exact_logs(1.0 + inside) - exact_logs(1.0 - inside))


def check_parameters(name: str, parameters: Mapping[str, int]) -> dict[str, int]:
    """Return all parameters of a measure: those given, and the defaults of the others.

    Raises:
        InputError: an unknown measure or parameter, or fewer bars than the measure needs.
    """
    measure = MEASURES[check_choice("measure", name, MEASURES)]
    for parameter, value in parameters.items():
        check_choice(f"parameter of {name}", parameter, measure.parameters)
        check_at_least(f"{parameter} of {name}", value, measure.least.get(parameter, LEAST_BARS))
    return {**measure.parameters, **parameters}


def compute_measure(name: str, inputs: RiskInputs, parameters: Parameters | None = None) -> MeasureValues:
    """Return the values of a measure, NaN before its warm-up; all NaN with the reason if it cannot be computed."""
    chosen, found = check_parameters(name, parameters or {}), MEASURES[name]
    bars, warm_up = len(inputs.bars), found.warm_up(**chosen)
    values, missing = np.full(bars, np.nan), ""
    given = {"sentiment": inputs.sentiment, "other": inputs.other, "volume": inputs.bars.volume}.get(found.needs)
    if found.needs and (given is None or np.isnan(given).all()):
        missing = f"no {'other asset' if found.needs == 'other' else found.needs} is known"
    elif bars <= warm_up:
        missing = f"{bars} bars: it needs {warm_up + 1}"
    else:
        values = mask_warm_up(warm_up, found.function(inputs, **chosen))
        if np.isnan(values).all():
            missing = "no bar has a value: prices do not vary, or each window lacks something"
    return MeasureValues(values, warm_up, missing, chosen)


@dataclass(frozen=True)
class WindowLengths:
    """Lengths of windows in bars: of the current value, of the usual values before it, and of historical VaR."""

    bars: int = 24
    usual_bars: int = 480
    tail_bars: int = 500

    @classmethod
    def of(cls, frame_us: int) -> "WindowLengths":
        """Return the lengths for bars of `frame_us` microseconds; those for days would else need years of warm-up."""
        return cls(bars=7, usual_bars=120, tail_bars=120) if frame_us >= DAY_US else cls()

    def parameters(self, measure: str) -> dict[str, int]:
        """Return the parameters of a measure that differ from its defaults, which are those for short bars."""
        defaults = MEASURES[measure].parameters
        if self == WindowLengths():
            return {}
        if "usual_bars" not in defaults:
            return {"bars": self.tail_bars}
        return {name: getattr(self, name) for name in ("bars", "usual_bars") if name in defaults}
