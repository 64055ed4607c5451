"""The information coefficient: how well scores rank the returns that follow, by horizon, and how fast that decays."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.inference.alignment import Aligned
from qubic_lab.oracle.inference.performance import ALPHA, hac_variance, newey_west_lags
from qubic_lab.oracle.inference.resampling import ShiftTest, circular_shift_test, memory_bars, standard_ranks
from qubic_lab.oracle.model.bars import Floats, Integers, is_constant
from qubic_lab.stats import holm

HORIZONS = (1, 2, 4, 8, 24)
"""In bars."""
LEAST_PAIRS = 60
"""With fewer pairs of a score and a return no coefficient is computed."""
AHEAD = 24
"""Single bars ahead for which coefficients are computed."""
STRETCHES = 12
"""A horizon is used if it and the scores' memory together fit this many times into the bars. Closer shifts are
correlated, and with fewer independent ones the test rejects too often."""
_TWO_SIDED = 1.959964
_FITTED = 3


@dataclass(frozen=True)
class Association:
    """A rank correlation of scores with returns; if there is none, figures are None and `absent` says why.

    Attributes:
        pairs: bars with a score and a return; `effective`: number of independent pairs with the same error.
        ic: Spearman's rank correlation; `error`, `low`, `high`: its HAC error and interval of 95 %.
        pearson: the linear correlation.
    """

    pairs: int
    effective: float | None = None
    ic: float | None = None
    error: float | None = None
    low: float | None = None
    high: float | None = None
    pearson: float | None = None
    absent: str = ""


@dataclass(frozen=True)
class Coefficient:
    """The information coefficient of one series of scores at one horizon, with its uncertainty.

    Attributes:
        horizon: in bars.
        p: share of shifted scores that correlate as much, for this test alone; `p_holm`: corrected for all tests.
        p_corrected: corrected by the largest of all tests at each shift (Westfall and Young). The verdict uses this
            one, as it allows for correlated tests.
        detectable: the smallest coefficient that is found among all tests with a power of 80 %.
        band: the coefficient at which `p_corrected` is 5 %.
    """

    name: str
    horizon: int
    found: Association
    p: float | None
    p_holm: float | None
    p_corrected: float | None
    detectable: float | None
    band: float | None

    @property
    def evidence(self) -> bool:
        """Whether it is significant, corrected for all tests."""
        return self.p_corrected is not None and self.p_corrected <= ALPHA

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        names = ("p", "p_holm", "p_corrected", "detectable", "band")
        own = {name: getattr(self, name) for name in names}
        return {"horizon": self.horizon, **asdict(self.found), **own, "evidence": self.evidence}


def associate(score: Floats, move: Floats, overlap: int = 1) -> Association:
    """Return the rank correlation of scores and returns, with an error that allows for overlap and memory.

    Both are [bars], NaN where unknown; `overlap` is the number of bars that one return covers.

    Source: the influence of one pair on Spearman's correlation, C. Croux and C. Dehon, Statistical Methods &
    Applications 19 (2010), 497-515; its long-run variance by Newey and West with at least 2 (overlap − 1) lags, since
    Bartlett's weights with overlap − 1 lags lose a third of what overlap adds; the quantile for many lags: N. M. Kiefer
    and T. J. Vogelsang, Econometric Theory 21 (2005), 1130-1164.
    """
    both = ~(np.isnan(score) | np.isnan(move))
    x, y = score[both], move[both]
    pairs = len(x)
    if pairs < LEAST_PAIRS:
        return Association(pairs, absent=f"{pairs} pairs of a score and a return: at least {LEAST_PAIRS} are needed")
    for what, values in (("score", x), ("return", y)):
        if is_constant(values):
            return Association(pairs, absent=f"every {what} is {values[0]:.3g}")
    u, v = standard_ranks(x), standard_ranks(y)
    ic = float(np.mean(u * v))
    influence = _influence(x, y)
    lags = min(newey_west_lags(pairs, 2 * overlap - 1), pairs // 4)
    variance = hac_variance(influence, lags)
    error = math.sqrt(variance / pairs)
    share = (lags + 1) / pairs
    reach = (_TWO_SIDED + 2.9694 * share + 0.4160 * share**2 - 0.5324 * share**3) * error
    return Association(
        pairs=pairs,
        effective=min(float(pairs), pairs * float(influence.var()) / variance) if variance > 0.0 else float(pairs),
        ic=ic,
        error=error,
        low=max(-1.0, ic - reach),
        high=min(1.0, ic + reach),
        pearson=float(np.corrcoef(x, y)[0, 1]),
    )


def _influence(x: Floats, y: Floats) -> Floats:
    """Return the influence of each pair on the rank correlation, [pairs], up to a constant."""
    u, v = standard_ranks(x), standard_ranks(y)
    return np.asarray(u * v + _moved_ranks(x, v) + _moved_ranks(y, u))


def _moved_ranks(values: Floats, others: Floats) -> Floats:
    """Return the influence of each pair through the ranks of the other pairs, [pairs], up to a constant.

    It is the mean of the other variable's ranks over the pairs above it, ties half, in units of the ranks' deviation.
    """
    _, place = np.unique(values, return_inverse=True)
    sums = np.bincount(place, others)
    above = np.cumsum(sums[::-1])[::-1] - 0.5 * sums
    counts = np.bincount(place)
    middle = np.cumsum(counts) - 0.5 * counts
    deviation = float(np.sqrt(np.average((middle / len(values) - 0.5) ** 2, weights=counts)))
    return np.asarray(above[place] / len(values) / deviation)


@dataclass(frozen=True, eq=False)
class Information:
    """All coefficients that are tested together, by series, then by horizon; the shift test has the same order."""

    rows: tuple[Coefficient, ...]
    shift_test: ShiftTest
    least_shift: int

    def of(self, name: str) -> tuple[Coefficient, ...]:
        """Return the rows of a series."""
        return tuple(row for row in self.rows if row.name == name)

    @property
    def tests(self) -> int:
        """Number of coefficients that are tested."""
        return int((~np.isnan(self.shift_test.observed)).sum())


def information(series: Mapping[str, Aligned], horizons: Sequence[int] = HORIZONS) -> Information:
    """Return the information coefficients of series of scores on the same bars, corrected for their number.

    Bars before the first score and after the last one are left out, so that scores are shifted within their own time.
    Horizons, in bars, that are too long are left out.

    Raises:
        InputError: no series or horizon, series on other bars than the first one's, or too few bars.
    """
    first, last = known_span(series)
    aligned = list(series.values())
    for horizon in horizons:
        check_at_least("horizon", horizon, 1)
    if not horizons:
        raise InputError("there is no horizon: give at least one, in bars")
    scores = [each.score[first:last] for each in aligned]
    memory = max(memory_bars(each) for each in scores)
    fitting = [horizon for horizon in horizons if STRETCHES * (horizon + memory) <= last - first]
    if not fitting:
        raise InputError(
            f"{last - first} bars with scores are too few: these scores have a memory of {memory} bars, so a "
            f"horizon of {min(horizons)} needs at least {STRETCHES * (min(horizons) + memory)}; collect for longer"
        )
    least_shift = max(fitting) + memory
    moves = [aligned[0].ahead(horizon)[first:last] for horizon in fitting]
    shift_test = circular_shift_test(scores, moves, least_shift)
    named = [
        (name, horizon, associate(score, move, horizon))
        for name, score in zip(series, scores, strict=True)
        for horizon, move in zip(fitting, moves, strict=True)
    ]
    return Information(tuple(_rows(named, shift_test)), shift_test, least_shift)


def known_span(series: Mapping[str, Aligned]) -> tuple[int, int]:
    """Return the row of the first bar that has a score in any series, and the row after the last.

    Raises:
        InputError: no series, none with a score, or series on other bars than the first one's.
    """
    if not series:
        raise InputError("there are no scores: give at least one series")
    bars = next(iter(series.values())).bars
    for name, each in series.items():
        if not np.array_equal(each.bars.closed_us, bars.closed_us):
            raise InputError(f"scores {name!r} are on other bars than the first series: align all with the same bars")
    known = np.flatnonzero(np.any([~np.isnan(each.score) for each in series.values()], axis=0))
    if not known.size:
        raise InputError("no bar has a score: texts came before the first bar or after the last one")
    return int(known[0]), int(known[-1]) + 1


def _rows(named: Sequence[tuple[str, int, Association]], test: ShiftTest) -> list[Coefficient]:
    alone, corrected = test.p, test.p_corrected
    together = holm({place: float(p) for place, p in enumerate(alone) if not math.isnan(p)})
    detectable, band = test.detectable, test.band
    rows = []
    for place, (name, horizon, found) in enumerate(named):
        root = math.sqrt(max(1, found.pairs))
        holm_p = together.get(place, math.nan)
        figures = (alone[place], holm_p, corrected[place], detectable[place] / root, band[place] / root)
        tested = found.ic is not None and not np.isnan(test.observed[place])
        rows.append(Coefficient(name, horizon, found, *(float(each) if tested else None for each in figures)))
    return rows


@dataclass(frozen=True)
class Decay:
    """The information coefficient of each single bar ahead, and the bars in which it halves, with 95 % interval.

    The half-life is None if it cannot be fitted, then `absent` says why; `high` is None if it may not decay at all.
    """

    by_bar: tuple[Association, ...]
    half_life: float | None = None
    low: float | None = None
    high: float | None = None
    absent: str = ""


def decay(aligned: Aligned, band: float | None) -> Decay:
    """Return the information coefficients of single bars ahead, and their half-life.

    `band` is the critical coefficient at 5 %; None: not known. A half-life is fitted if the coefficients of at least
    the first three bars have one sign and lie beyond the band. Later ones count with their sign, so that noise around 0
    does not look like memory. The errors of the coefficients are correlated, as scores with memory meet the same
    returns; the interval allows for that.
    """
    found = tuple(associate(aligned.score, aligned.ahead(1, ahead - 1)) for ahead in range(1, AHEAD + 1))
    values = np.array([math.nan if each.ic is None else each.ic for each in found])
    if band is None or math.isnan(values[0]):
        return Decay(found, absent=found[0].absent or "no chance level is known")
    beyond = (np.abs(values) > band) & (np.sign(values) == np.sign(values[0]))
    run = AHEAD if beyond.all() else int(np.argmin(beyond))
    if run < _FITTED:
        said = "no bar ahead is" if not run else "only the next bar is" if run == 1 else f"only the next {run} bars are"
        return Decay(found, absent=f"{said} beyond chance (±{band:.3f}): there is no decay to fit")
    later = np.flatnonzero([bool(each.error) for each in found])
    sizes = values[later] * np.sign(values[0])
    fitted = _fit_decay(later.astype(np.float64), sizes, _error_covariance(aligned, later + 1))
    if fitted is None:
        return Decay(found, absent="no half-life fits")
    rate, slow, fast = fitted
    if not rate > 0.0:
        return Decay(found, absent=f"it does not decay within {len(found)} bars")
    return Decay(found, math.log(2) / rate, math.log(2) / fast, math.log(2) / slow if slow > 0.0 else None)


def _fit_decay(later: Floats, sizes: Floats, covariance: Floats) -> tuple[float, float, float] | None:
    """Fit size × e^(−rate × later) by weighted least squares; return the rate and the ends of its 95 % interval.

    The interval holds the rates around the fitted one at which the residuals along the curve's derivative are within
    their errors, whose covariance is [sizes, sizes]. None: no fit. A lower end of 0: it may not decay.

    Source: E. C. Fieller, Journal of the Royal Statistical Society B 16 (1954), 175-185, for one parameter of a curve.
    """
    from scipy.optimize import curve_fit

    def curve_at(at: Floats, size: float, rate: float) -> Floats:
        return size * np.exp(-rate * at)

    weights = 1.0 / np.diag(covariance)
    try:
        (_, rate), _ = curve_fit(curve_at, later, sizes, (sizes[0], 0.1), weights**-0.5)
    except RuntimeError:
        return None
    rate = float(rate)
    if not rate > 0.0:
        return rate, rate, rate
    rates = rate * np.geomspace(0.01, 100.0, 1_601)  # steps of 0.6 %, the fitted one in the middle
    curve = np.exp(-np.outer(rates, later))
    along = curve * later
    along -= curve * ((along * curve) @ weights / (curve**2 @ weights))[:, None]
    taken = along * weights
    errors = np.sqrt(np.maximum(0.0, np.einsum("ij,jk,ik->i", taken, covariance, taken)))
    outside = np.flatnonzero(np.abs(taken @ sizes) > _TWO_SIDED * errors)
    middle = len(rates) // 2
    slower, faster = outside[outside < middle], outside[outside > middle]
    return rate, float(rates[slower[-1]]) if slower.size else 0.0, float(rates[faster[0]]) if faster.size else math.inf


def _error_covariance(aligned: Aligned, ahead: Integers) -> Floats:
    """Return the covariance of the errors of single bars' coefficients, [ahead, ahead].

    The influence of each pair is placed at the bar of its return, so that shared returns coincide; Newey and West's
    lags cover the rest.
    """
    from statsmodels.stats.sandwich_covariance import S_hac_simple

    bars = len(aligned)
    added = np.zeros((bars + int(ahead.max()), len(ahead)))
    for column, later in enumerate(ahead.tolist()):
        move = aligned.ahead(1, later - 1)
        both = np.flatnonzero(~(np.isnan(aligned.score) | np.isnan(move)))
        influence = _influence(aligned.score[both], move[both])
        added[both + later, column] = (influence - influence.mean()) / len(both)
    return np.asarray(S_hac_simple(added, nlags=newey_west_lags(bars)))
