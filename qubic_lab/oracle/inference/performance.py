"""Sharpe ratios and their errors, and the cost at which a gain is gone; plain arrays in, plain values out.

Ratios are per bar unless a name says annual. A year has 365 days, for markets that never close.
"""

import math
from statistics import NormalDist

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.bars import Floats, is_constant

LEAST_BARS = 20
"""With fewer returns nothing is computed."""
ALPHA, POWER = 0.05, 0.8
NORMAL = NormalDist()


def sharpe_ratio(returns: Floats) -> float:
    """Return the mean of returns over their standard deviation; they must vary.

    Source: W. F. Sharpe, Journal of Portfolio Management 21 (1994), 49-58; returns are those in excess of cash.
    """
    return float(returns.mean() / returns.std(ddof=1))


def newey_west_lags(bars: int, overlap: int = 1) -> int:
    """Return the number of lags of a HAC error: 4 (bars / 100)^(2/9), and at least `overlap` − 1.

    Source: W. K. Newey and K. D. West, Review of Economic Studies 61 (1994), 631-653; the lower bound: L. P. Hansen and
    R. J. Hodrick, Journal of Political Economy 88 (1980), 829-853.
    """
    return min(max(int(4 * (bars / 100) ** (2 / 9)), overlap - 1), max(0, bars - 1))


def hac_variance(values: Floats, lags: int) -> float:
    """Return the long-run variance of a series about its mean by Newey and West, with Bartlett's weights.

    Source: W. K. Newey and K. D. West, Econometrica 55 (1987), 703-708.
    """
    from statsmodels.stats.sandwich_covariance import S_hac_simple

    centred = (values - values.mean())[:, None]
    return float(S_hac_simple(centred, nlags=lags)[0, 0] / len(values))


def sharpe_error(returns: Floats) -> float:
    """Return the HAC standard error of the Sharpe ratio.

    Source: the delta method, A. W. Lo, "The statistics of Sharpe ratios", Financial Analysts Journal 58 (2002), 36-52;
    O. Ledoit and M. Wolf, Journal of Empirical Finance 15 (2008), 850-859.
    """
    scaled = (returns - returns.mean()) / returns.std()
    influence = scaled - sharpe_ratio(returns) / 2.0 * (scaled**2 - 1.0)
    return math.sqrt(hac_variance(influence, newey_west_lags(len(returns))) / len(returns))


def annual_sharpe(returns: Floats, bars_per_year: float) -> tuple[float, float] | None:
    """Return the annual Sharpe ratio of net returns and its HAC standard error.

    The ratio is scaled by the root of the bars in a year; serial correlation is in the error, not in this scaling.
    None: fewer than 20 returns, returns that do not vary, or a loss of all: no mean of returns tells what such an
    account was worth.
    """
    if len(returns) < LEAST_BARS or is_constant(returns) or returns.min() <= -1.0:
        return None
    root = math.sqrt(bars_per_year)
    return sharpe_ratio(returns) * root, sharpe_error(returns) * root


def probabilistic_sharpe(ratio: float, bars: int, skew: float, kurt: float, benchmark: float = 0.0) -> float:
    """Return the probability that the true Sharpe ratio exceeds a benchmark, given the observed one; both per bar.

    It depends on the number of returns, their skewness, and their kurtosis, which is 3 for a normal distribution.

    Source: D. H. Bailey and M. López de Prado, "The Sharpe ratio efficient frontier", Journal of Risk 15 (2012), 3-44.

    Raises:
        InputError: moments that no distribution has.
    """
    shape = 1.0 - skew * ratio + (kurt - 1.0) / 4.0 * ratio**2
    if not shape > 0.0:
        raise InputError(
            f"no returns have a skewness of {skew:g} and a kurtosis of {kurt:g}: give those of the returns"
        )
    return NORMAL.cdf((ratio - benchmark) * math.sqrt(bars - 1) / math.sqrt(shape))


def break_even_bps(gross: Floats, turnover: Floats) -> float:
    """Return the cost in basis points of the value traded at which the gain is 0; NaN where nothing is traded.

    Both are [bars]: returns before costs, and the value traded as a share of equity. The cost is below 0 if there is no
    gain. Costs are shares of equity, added over bars and not compounded.
    """
    traded = float(turnover.sum())
    return 1e4 * float(gross.sum()) / traded if traded > 0.0 else math.nan
