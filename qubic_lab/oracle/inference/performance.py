"""How good returns are, and how sure that is: Sharpe ratios with their errors; plain arrays in, plain values out.

Ratios are per bar unless a name says annual. A year has 365 days, for markets that never close, and bars a year are
counted by the calendar, so that gaps do not flatter.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.inference.bootstrap import RESAMPLES, block_length, is_constant, resampled_weights
from qubic_lab.oracle.model.bars import YEAR_US, Floats

LEAST_BARS = 20
"""Fewer returns say nothing that is worth a number."""
POWER = 0.8
_NORMAL = NormalDist()


def read_returns(returns: ArrayLike) -> Floats:
    """Return net returns per bar as an array.

    Raises:
        InputError: not one row of numbers, or one that is none.
    """
    values = np.asarray(returns, dtype=np.float64)
    if values.ndim != 1:
        raise InputError(f"returns have shape {values.shape}: give one number for each bar")
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InputError(f"return of bar {bad} is {values[bad]}: leave out bars without one")
    return values


def periods_per_year(closed_us: NDArray[np.int64]) -> float:
    """Return how many bars a year has, by the calendar: steps between the first and the last over the time they took.

    Raises:
        InputError: fewer than two bars, or times that do not rise.
    """
    if len(closed_us) < 2 or closed_us[-1] <= closed_us[0]:
        raise InputError(f"{len(closed_us)} bar(s): two or more, by time, are needed to tell how many make a year")
    return float((len(closed_us) - 1) * YEAR_US / (int(closed_us[-1]) - int(closed_us[0])))


def sharpe_ratio(returns: Floats) -> float:
    """Return mean over standard deviation of returns, per bar; NaN where they do not vary or are fewer than two.

    Source: W. F. Sharpe, Journal of Portfolio Management 21 (1994), 49-58; returns are in excess of cash already.
    """
    if len(returns) < 2 or is_constant(returns):
        return math.nan
    return float(returns.mean() / returns.std(ddof=1))


def newey_west_lags(bars: int, overlap: int = 1) -> int:
    """Return how many lags a HAC error takes: 4 (bars / 100)^(2/9), and at least `overlap` − 1.

    Source: W. K. Newey and K. D. West, Review of Economic Studies 61 (1994), 631-653; the least: L. P. Hansen and
    R. J. Hodrick, Journal of Political Economy 88 (1980), 829-853.
    """
    check_at_least("overlap", overlap, 1)
    return min(max(int(4 * (bars / 100) ** (2 / 9)), overlap - 1), max(0, bars - 1))


def hac_variance(values: Floats, lags: int) -> float:
    """Return the long-run variance of a series by Newey and West, mean removed, with Bartlett's weights.

    Source: W. K. Newey and K. D. West, Econometrica 55 (1987), 703-708.
    """
    from statsmodels.stats.sandwich_covariance import S_hac_simple

    centred = (values - values.mean())[:, None]
    return float(S_hac_simple(centred, nlags=lags)[0, 0] / len(values))


def sharpe_error(returns: Floats, overlap: int = 1) -> float:
    """Return the HAC standard error of the Sharpe ratio per bar; NaN where there is no ratio.

    Args:
        returns: per bar.
        overlap: bars that one return covers; lags are at least one fewer.

    Source: the delta method, A. W. Lo, "The statistics of Sharpe ratios", Financial Analysts Journal 58 (2002), 36-52;
    O. Ledoit and M. Wolf, Journal of Empirical Finance 15 (2008), 850-859.
    """
    ratio = sharpe_ratio(returns)
    if math.isnan(ratio):
        return math.nan
    scaled = (returns - returns.mean()) / returns.std()
    influence = scaled - ratio / 2.0 * (scaled**2 - 1.0)
    return math.sqrt(hac_variance(influence, newey_west_lags(len(returns), overlap)) / len(returns))


def sharpe_interval(
    returns: Floats,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    block: float | None = None,
    overlap: int = 1,
    seed: int = 0,
) -> tuple[float, float]:
    """Return an interval of the Sharpe ratio per bar by the stationary bootstrap; NaN where there is no ratio.

    Args:
        returns: per bar.
        confidence: of the interval.
        resamples: draws.
        block: mean length of the blocks; None: as the data ask (`block_length`).
        overlap: bars that one return covers; blocks are at least as long.
        seed: equal seeds give equal draws.

    The ends are the ratio less the quantiles of (drawn ratio − ratio) from the other side, widened by the bias that
    block resampling has in short series: its variance lacks the factor 1 − block / bars. Few trades make it too narrow,
    as where gains and losses come at a few of a hundred bars and returns are 0 elsewhere.

    Source: A. C. Davison and D. V. Hinkley, "Bootstrap methods and their application" (1997), section 5.2; see
    `block_length` and `resampled_weights`.

    Raises:
        InputError: a confidence that is not between 0 and 1, a block that does not fit the bars, or no resamples.
    """
    check_probability("confidence", confidence)
    check_at_least("overlap", overlap, 1)
    ratio = sharpe_ratio(returns)
    if math.isnan(ratio):
        return math.nan, math.nan
    bars = len(returns)
    length = block_length(returns, overlap) if block is None else check_block(block, bars)
    plain = returns.mean() / returns.std()  # draws are weighted, so their spread is of all bars and not of one fewer
    scaled = (returns - returns.mean()) / returns.std()
    moments = np.stack([scaled, scaled**2], axis=1)
    drawn = np.concatenate([w @ moments / bars for w in resampled_weights(bars, length, resamples, seed)])
    mean, spread = drawn[:, 0] + plain, drawn[:, 1] - drawn[:, 0] ** 2
    ratios = np.divide(mean, np.sqrt(np.maximum(spread, 0.0)), out=np.full(len(drawn), np.nan), where=spread > 1e-12)
    away = (ratios[~np.isnan(ratios)] - plain) / math.sqrt(max(0.1, 1.0 - length / bars))
    if not away.size:
        return math.nan, math.nan
    low, high = np.quantile(away, [(1 - confidence) / 2, (1 + confidence) / 2])
    return ratio - float(high), ratio - float(low)


def skewness(returns: Floats) -> float:
    """Return the third standardised moment; NaN where returns do not vary."""
    return math.nan if is_constant(returns) else float(np.mean(((returns - returns.mean()) / returns.std()) ** 3))


def kurtosis(returns: Floats) -> float:
    """Return the fourth standardised moment, 3 for a normal distribution; NaN where returns do not vary."""
    return math.nan if is_constant(returns) else float(np.mean(((returns - returns.mean()) / returns.std()) ** 4))


def probabilistic_sharpe(ratio: float, bars: int, skew: float, kurt: float, benchmark: float = 0.0) -> float:
    """Return how probable it is that the true Sharpe ratio exceeds a benchmark, given the observed one.

    Args:
        ratio: observed, per bar.
        bars: returns that it is from.
        skew: their skewness.
        kurt: their kurtosis, 3 if normal.
        benchmark: per bar.

    Source: D. H. Bailey and M. López de Prado, "The Sharpe ratio efficient frontier", Journal of Risk 15 (2012), 3-44.

    Raises:
        InputError: fewer than two bars, or moments that no distribution has.
    """
    check_at_least("bars", bars, 2)
    return _NORMAL.cdf((ratio - benchmark) * math.sqrt(bars - 1) / math.sqrt(_shape(ratio, skew, kurt)))


def minimum_track_record(
    ratio: float, skew: float, kurt: float, benchmark: float = 0.0, confidence: float = 0.95
) -> float:
    """Return how many bars it takes until the probabilistic Sharpe ratio reaches a confidence; infinite if never.

    Source: Bailey and López de Prado (2012), as `probabilistic_sharpe`.

    Raises:
        InputError: a confidence that is not between 0 and 1, or moments that no distribution has.
    """
    check_probability("confidence", confidence)
    if ratio <= benchmark:
        return math.inf
    return 1.0 + _shape(ratio, skew, kurt) * (_NORMAL.inv_cdf(confidence) / (ratio - benchmark)) ** 2


def _shape(ratio: float, skew: float, kurt: float) -> float:
    shape = 1.0 - skew * ratio + (kurt - 1.0) / 4.0 * ratio**2
    if not shape > 0.0:
        raise InputError(
            f"no returns have a skewness of {skew:g} and a kurtosis of {kurt:g}: give those of the returns"
        )
    return shape


def minimum_detectable_sharpe(error: float, alpha: float = 0.05, power: float = POWER) -> float:
    """Return the smallest Sharpe ratio that a one-sided test finds with this power.

    Args:
        error: standard error of the ratio per bar, such as `sharpe_error` gives, or 1 / √bars.
        alpha: of the test. For the best of many trials take `selection.judge`, which knows their critical value.
        power: the probability of finding it.

    It is (z(1 − alpha) + z(power)) × error. Source: J. Cohen, "Statistical power analysis for the behavioral sciences"
    (1988).

    Raises:
        InputError: an alpha or a power that is not between 0 and 1.
    """
    check_probability("alpha", alpha)
    check_probability("power", power)
    return (_NORMAL.inv_cdf(1 - alpha) + _NORMAL.inv_cdf(power)) * error


def break_even_bps(gross: Floats, turnover: Floats) -> float:
    """Return the cost, in basis points of what is traded, that takes all of the gain; NaN where nothing is traded.

    Args:
        gross: returns per bar before costs.
        turnover: per bar, sum of absolute changes of weights: 1 is the whole equity bought or sold once.

    It is below 0 where there is no gain to take. Costs count as shares of equity, added over bars, not compounded.

    Raises:
        InputError: not as many bars of one as of the other.
    """
    if gross.shape != turnover.shape:
        raise InputError(f"{gross.size} returns and {turnover.size} turnovers: give one of each for every bar")
    traded = float(turnover.sum())
    return 1e4 * float(gross.sum()) / traded if traded > 0.0 else math.nan


@dataclass(frozen=True)
class Performance:
    """What a track record says about its Sharpe ratio. None where there is no number; `absent` says why.

    Attributes:
        bars: returns.
        years: the time they took, of 365 days.
        mean_annual: mean return a year, not compounded.
        volatility_annual: standard deviation a year.
        sharpe: per bar.
        sharpe_annual: sharpe × √(bars a year); serial correlation is in the errors, not in this scaling.
        error_annual: HAC standard error of it.
        interval_annual: of `confidence`, by the stationary bootstrap.
        block: mean length of the bootstrap's blocks.
        probability: that the true ratio is above 0 (probabilistic Sharpe ratio).
        track_record_years: it takes so long until that probability is 95 %; None where the ratio is not above 0.
        detectable_annual: the smallest ratio that one test of this much data finds with a power of 80 %.
        absent: name → the reason why it is None.
    """

    bars: int
    years: float
    mean_annual: float | None = None
    volatility_annual: float | None = None
    sharpe: float | None = None
    sharpe_annual: float | None = None
    error_annual: float | None = None
    interval_annual: tuple[float, float] | None = None
    confidence: float = 0.95
    block: float | None = None
    skewness: float | None = None
    kurtosis: float | None = None
    probability: float | None = None
    track_record_years: float | None = None
    detectable_annual: float | None = None
    absent: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return asdict(self) | {"absent": dict(self.absent)}


_RATIOS = (
    "sharpe",
    "sharpe_annual",
    "error_annual",
    "interval_annual",
    "skewness",
    "kurtosis",
    "probability",
    "track_record_years",
    "detectable_annual",
)


def measure_performance(
    returns: ArrayLike,
    bars_per_year: float,
    *,
    confidence: float = 0.95,
    resamples: int | None = RESAMPLES,
    overlap: int = 1,
    seed: int = 0,
) -> Performance:
    """Return the Sharpe ratio of net returns with all that says how sure it is.

    Args:
        returns: per bar, in excess of cash, after costs.
        bars_per_year: as of `periods_per_year`.
        confidence: of the interval.
        resamples: of the bootstrap; None leaves the interval out.
        overlap: bars that one return covers.
        seed: of the bootstrap.

    Raises:
        InputError: returns that are no numbers, no bars a year, or a confidence that is not between 0 and 1.
    """
    values = read_returns(returns)
    if not (math.isfinite(bars_per_year) and bars_per_year > 0):
        raise InputError(f"bars a year are {bars_per_year}: it must be a number above 0")
    check_probability("confidence", confidence)
    years = len(values) / bars_per_year
    reason = _unfit(values)
    if reason:
        return Performance(len(values), years, absent=dict.fromkeys(_RATIOS, reason))
    root = math.sqrt(bars_per_year)
    ratio, error = sharpe_ratio(values), sharpe_error(values, overlap)
    skew, kurt = skewness(values), kurtosis(values)
    absent = {}
    record = minimum_track_record(ratio, skew, kurt)
    if math.isinf(record):
        absent["track_record_years"] = f"the Sharpe ratio is {ratio * root:.3g}, not above 0: no record is long enough"
    interval, block = None, None
    if resamples is None:
        absent["interval_annual"] = "no bootstrap was asked for"
    else:
        block = block_length(values, overlap)
        low, high = sharpe_interval(values, confidence, resamples, block, overlap, seed)
        interval = (low * root, high * root)
    return Performance(
        bars=len(values),
        years=years,
        mean_annual=float(values.mean()) * bars_per_year,
        volatility_annual=float(values.std(ddof=1)) * root,
        sharpe=ratio,
        sharpe_annual=ratio * root,
        error_annual=error * root,
        interval_annual=interval,
        confidence=confidence,
        block=block,
        skewness=skew,
        kurtosis=kurt,
        probability=probabilistic_sharpe(ratio, len(values), skew, kurt),
        track_record_years=None if math.isinf(record) else record / bars_per_year,
        detectable_annual=minimum_detectable_sharpe(error) * root,
        absent=absent,
    )


def _unfit(values: Floats) -> str | None:
    """Return why returns have no Sharpe ratio."""
    if len(values) < LEAST_BARS:
        return f"{len(values)} returns: fewer than {LEAST_BARS} say nothing"
    if is_constant(values):
        what = "0: no trades, or a constant price" if not values.any() else f"{values[0]:.3g}"
        return f"every return is {what}"
    return None


def check_probability(what: str, value: float) -> float:
    """Return a confidence, level or power if it is one.

    Raises:
        InputError: it does not lie between 0 and 1.
    """
    if not 0.0 < value < 1.0:
        raise InputError(f"{what} is {value}: it must lie between 0 and 1")
    return value


def check_block(block: float, bars: int) -> float:
    """Return the mean length of a bootstrap's blocks if so many bars can be cut into such.

    Raises:
        InputError: it is below 1 bar, or above all of them.
    """
    if not 1.0 <= block <= bars:
        raise InputError(f"block is {block} bars: it must be from 1 to the {bars} bars that there are")
    return block
