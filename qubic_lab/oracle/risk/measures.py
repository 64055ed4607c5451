"""Measures of risk: one number per bar, greater is worse, each with a declared warm-up. Rules make levels of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from qubic_lab.errors import InputError, check_at_least, check_choice
from qubic_lab.oracle.model.bars import Bars, Floats, exact_logs, mask_warm_up
from qubic_lab.oracle.model.timestamps import DAY_US
from qubic_lab.oracle.risk.models import LEAST_FIT, garch_of, historical, least_bars, realised_volatility
from qubic_lab.oracle.risk.rolling import mean, median, ratio, recent_drawdown, rolling

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
        bars: of the asset.
        sentiment: sentiment index of its texts, [bars]; NaN where there are no texts.
        other: closes of another asset at the same times, [bars]; NaN where it has none.

    Raises:
        InputError: sentiment or closes without a number for each bar.
    """

    bars: Bars
    sentiment: Floats | None = None
    other: Floats | None = None

    def __post_init__(self) -> None:
        for name in ("sentiment", "other"):
            values = getattr(self, name)
            if values is not None and values.shape != (len(self.bars),):
                raise InputError(f"{name} has shape {values.shape}: give one number for each of {len(self.bars)} bars")

    def first(self, count: int) -> "RiskInputs":
        """Return the first bars and what was known at them."""
        return RiskInputs(
            self.bars.slice(0, count),
            None if self.sentiment is None else self.sentiment[:count],
            None if self.other is None else self.other[:count],
        )


@dataclass(frozen=True)
class RiskMeasure:
    """A causal function of inputs; greater is worse.

    Attributes:
        function: takes inputs and the parameters by name, and gives a value per bar, NaN where there is none.
        warm_up: number of bars before the first value; takes the parameters by name.
        parameters: their names and default values, in bars.
        unit: the unit of its values.
        needs: "volume", "sentiment" or "other" if it has no value without.
        least: the least values of parameters for which `LEAST_BARS` is too short.
    """

    name: str
    function: Callable[..., Floats]
    warm_up: Callable[..., int]
    parameters: Parameters
    unit: str
    description: str
    needs: str = ""
    least: Parameters = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class MeasureValues:
    """The values of a measure, [bars], NaN where there is none; `missing` says why there is none at all."""

    values: Floats
    warm_up: int
    missing: str = ""
    parameters: Parameters = field(default_factory=dict)


def amihud(bars: Bars, window: int) -> Floats:
    """Return the mean absolute log return per million traded, in the currency, over the last `window` bars, [bars].

    NaN for a window in which a bar has no volume: its price could not move. Warm-up: `window` bars.

    Source: Y. Amihud, "Illiquidity and stock returns", Journal of Financial Markets 5 (2002), 31-56.

    Raises:
        InputError: fewer than 1 bar.
    """
    check_at_least("bars", window, 1)
    millions = bars.close * bars.volume / 1e6
    return rolling(ratio(np.abs(bars.log_returns), millions), window, mean)


def _against_usual(now: Floats, values: Floats, bars: int, usual_bars: int) -> Floats:
    """Return a measure of the last `bars` bars over the median of `values` in the `usual_bars` bars before them."""
    usual = np.full(len(values), np.nan)
    usual[bars:] = rolling(values, usual_bars, median)[:-bars] if len(values) > bars else 0.0
    return ratio(now, usual)


def _volatility_ratio(inputs: RiskInputs, bars: int, usual_bars: int) -> Floats:
    volatility = realised_volatility(inputs.bars, bars)
    return _against_usual(volatility, volatility, bars, usual_bars)


def _range_ratio(inputs: RiskInputs, bars: int, usual_bars: int) -> Floats:
    volatility = realised_volatility(inputs.bars, bars, "parkinson")
    return _against_usual(volatility, volatility, bars, usual_bars)


def _garch_ratio(inputs: RiskInputs, usual_bars: int, refit_bars: int, window_bars: int) -> Floats:
    sigma = garch_of(inputs.bars, refit_bars, window_bars).sigma
    return _against_usual(sigma, sigma, 1, usual_bars)


def _loss_over_var(inputs: RiskInputs, bars: int) -> Floats:
    returns = inputs.bars.log_returns
    found = np.full(len(returns), np.nan)
    found[1:] = ratio(np.maximum(0.0, -returns[1:]), historical(returns, TAIL, bars).var[:-1])
    return found


def _drawdown_in_deviations(inputs: RiskInputs, bars: int, usual_bars: int) -> Floats:
    usual = realised_volatility(inputs.bars, usual_bars)
    return ratio(recent_drawdown(inputs.bars.close, bars), usual * np.sqrt(bars))


def _illiquidity_ratio(inputs: RiskInputs, bars: int, usual_bars: int) -> Floats:
    illiquidity = amihud(inputs.bars, bars)
    return _against_usual(illiquidity, illiquidity, bars, usual_bars)


def _volume_ratio(inputs: RiskInputs, bars: int, usual_bars: int) -> Floats:
    volume = inputs.bars.volume
    return _against_usual(rolling(volume, bars, mean), volume, bars, usual_bars)


def _sentiment_fall(inputs: RiskInputs, bars: int, usual_bars: int) -> Floats:
    """Bars without texts (NaN) are left out; a mean needs texts in one bar, the usual mean in half of its bars."""
    assert inputs.sentiment is not None
    means = rolling(inputs.sentiment, bars, _known_mean)
    before = np.full(len(means), np.nan)
    before[bars:] = means[:-bars] if len(means) > bars else 0.0
    usual = rolling(before, usual_bars, lambda part: _known_mean(part, 0.5))
    return ratio(usual - means, rolling(before, usual_bars, _known_deviation))


def _known_mean(part: Floats, least: float = 0.0) -> Floats:
    """Return the mean of the known values of each row; NaN where less than a share `least` of them is known."""
    known = ~np.isnan(part)
    count = known.sum(axis=1)
    total = np.where(known, part, 0.0).sum(axis=1)
    enough = (count > 0) & (count >= least * part.shape[1])
    return np.asarray(np.divide(total, count, out=np.full(len(part), np.nan), where=enough))


def _known_deviation(part: Floats) -> Floats:
    known = ~np.isnan(part)
    count = known.sum(axis=1)
    away = np.where(known, part - _known_mean(part)[:, None], 0.0)
    spread = np.divide((away**2).sum(axis=1), count - 1, out=np.full(len(part), np.nan), where=count > 1)
    found = np.asarray(np.sqrt(spread))
    found[found < 1e-12] = np.nan  # equal values, except for rounding
    return found


def _correlation_break(inputs: RiskInputs, bars: int, usual_bars: int) -> Floats:
    """Compare correlations as inverse hyperbolic tangents, whose standard error is 1 / √(bars − 3) each.

    Source: R. A. Fisher, Metron 1 (1921), 3-32.
    """
    assert inputs.other is not None
    other = np.full(len(inputs.bars), np.nan)
    other[1:] = np.diff(exact_logs(np.where(inputs.other > 0.0, inputs.other, np.nan)))
    returns = inputs.bars.log_returns
    now, usual = (_correlation(returns, other, window) for window in (bars, usual_bars))
    before = np.full(len(returns), np.nan)
    before[bars:] = usual[:-bars] if len(usual) > bars else 0.0
    error = np.sqrt(1.0 / (bars - 3) + 1.0 / (usual_bars - 3))
    return np.asarray(np.abs(_inverse_tanh(now) - _inverse_tanh(before)) / error)


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


def _two_windows(bars: int, usual_bars: int) -> int:
    """Return the warm-up of a ratio of two measures of `bars` bars, which need one bar more."""
    return 2 * bars + usual_bars - 1


_DAY = {"bars": 24, "usual_bars": 480}
_USUAL = "times the usual"
_ALL = (
    RiskMeasure(
        name="volatility_ratio",
        function=_volatility_ratio,
        warm_up=_two_windows,
        parameters=_DAY,
        unit=_USUAL,
        description="realised volatility of the last bars over its median in the bars before",
    ),
    RiskMeasure(
        name="range_ratio",
        function=_range_ratio,
        warm_up=lambda bars, usual_bars: 2 * bars + usual_bars - 2,
        parameters=_DAY,
        unit=_USUAL,
        description="Parkinson's volatility, from highs and lows, over its median in the bars before",
    ),
    RiskMeasure(
        name="garch_ratio",
        function=_garch_ratio,
        warm_up=lambda usual_bars, refit_bars, window_bars: LEAST_FIT + usual_bars,
        parameters={"usual_bars": 480, "refit_bars": 50, "window_bars": 1000},
        unit=_USUAL,
        description="volatility that a GARCH(1,1) model forecasts for the next bar over its recent median",
        least={"window_bars": LEAST_FIT},
    ),
    RiskMeasure(
        name="loss_over_var",
        function=_loss_over_var,
        warm_up=lambda bars: bars + 1,
        parameters={"bars": 500},
        unit="times value at risk",
        description="the last bar's loss over the value at risk of 1 % that was known before it",
        least={"bars": least_bars(TAIL)},
    ),
    RiskMeasure(
        name="drawdown_in_deviations",
        function=_drawdown_in_deviations,
        warm_up=lambda bars, usual_bars: max(bars - 1, usual_bars),
        parameters=_DAY,
        unit="deviations",
        description="fall from the highest recent close, in usual deviations of the return over as many bars",
    ),
    RiskMeasure(
        name="illiquidity_ratio",
        function=_illiquidity_ratio,
        warm_up=_two_windows,
        parameters=_DAY,
        unit=_USUAL,
        description="Amihud's price impact of the last bars over its median in the bars before",
        needs="volume",
    ),
    RiskMeasure(
        name="volume_ratio",
        function=_volume_ratio,
        warm_up=lambda bars, usual_bars: bars + usual_bars - 1,
        parameters=_DAY,
        unit=_USUAL,
        description="mean volume of the last bars over the median volume before",
        needs="volume",
    ),
    RiskMeasure(
        name="sentiment_fall",
        function=_sentiment_fall,
        warm_up=lambda bars, usual_bars: 2 * bars + usual_bars - 2,
        parameters=_DAY,
        unit="deviations",
        description="how far the mean sentiment of the last bars is below the usual",
        needs="sentiment",
    ),
    RiskMeasure(
        name="correlation_break",
        function=_correlation_break,
        warm_up=lambda bars, usual_bars: bars + usual_bars,
        parameters={"bars": 48, "usual_bars": 480},
        unit="standard errors",
        description="change of the correlation with another asset's returns",
        needs="other",
        least={"bars": LEAST_CORRELATED, "usual_bars": LEAST_CORRELATED},
    ),
)
MEASURES: dict[str, RiskMeasure] = {each.name: each for each in _ALL}
"""All measures by name."""


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
    """Return the values of a measure, NaN before its warm-up; all NaN with the reason if it cannot be computed.

    Raises:
        InputError: an unknown measure or parameter, or fewer bars than the measure needs.
    """
    chosen = check_parameters(name, parameters or {})
    found = MEASURES[name]
    bars, warm_up = len(inputs.bars), found.warm_up(**chosen)
    missing = ""
    if found.needs:
        given = {"sentiment": inputs.sentiment, "other": inputs.other, "volume": inputs.bars.volume}[found.needs]
        if given is None or bool(np.isnan(given).all()):
            missing = f"no {'other asset' if found.needs == 'other' else found.needs} is known"
    if not missing and bars <= warm_up:
        missing = f"{bars} bars: it needs {warm_up + 1}"
    if missing:
        return MeasureValues(np.full(bars, np.nan), warm_up, missing, chosen)
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
        """Return the parameters of a measure that differ from its defaults, which are those for short bars.

        Raises:
            KeyError: an unknown measure.
        """
        defaults = MEASURES[measure].parameters
        if self == WindowLengths():
            return {}
        known = {"bars": self.bars, "usual_bars": self.usual_bars}
        ours = known if "usual_bars" in defaults else {"bars": self.tail_bars}
        return {name: value for name, value in ours.items() if name in defaults}
