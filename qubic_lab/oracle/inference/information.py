"""The information coefficient: how well scores rank the returns that follow, by horizon, and how soon that fades."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.inference.alignment import Aligned
from qubic_lab.oracle.inference.bootstrap import is_constant
from qubic_lab.oracle.inference.performance import hac_variance, newey_west_lags
from qubic_lab.oracle.inference.permutation import (
    Placebo,
    circular_placebo,
    dependence,
    holm_of,
    standard_ranks,
)
from qubic_lab.oracle.model.bars import Floats, Integers

HORIZONS = (1, 2, 4, 8, 24)
"""In bars."""
LEAST_PAIRS = 60
"""Fewer pairs of a score and a return say nothing that is worth a number."""
ALPHA = 0.05
STRETCHES = 12
"""A horizon fits where the bars are so many times as long as it and the scores' memory together: shifts that hang
together are few different ones, and of fewer the test rejects too often."""
_TWO_SIDED = 1.959964
_FITTED = 3


@dataclass(frozen=True)
class Association:
    """A rank correlation of scores with returns; None where there is none, with the reason in `absent`.

    Attributes:
        pairs: bars with a score and a return.
        effective: as many independent pairs would make the same error; overlap and memory are counted.
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
    """The information coefficient of one series of scores at one horizon, with all that says how sure it is.

    Attributes:
        name: of the series.
        horizon: in bars.
        found: the correlation.
        p: share of shifted scores that correlate as much, for this test alone.
        p_holm: by Holm, over all tests that were made together.
        p_corrected: by the largest of all tests at each shift (Westfall and Young); the verdict is by this one, as it
            knows how tests hang together.
        detectable: the smallest coefficient that would be found among all tests with a power of 80 %.
        band: what `p_corrected` of 5 % takes, as a coefficient.
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
        """Whether it is more than chance gives, all tests counted."""
        return self.p_corrected is not None and self.p_corrected <= ALPHA

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        names = ("p", "p_holm", "p_corrected", "detectable", "band")
        own = {name: getattr(self, name) for name in names}
        return {"horizon": self.horizon, **asdict(self.found), **own, "evidence": self.evidence}


def associate(score: Floats, move: Floats, overlap: int = 1) -> Association:
    """Return the rank correlation of scores and returns, with an error that allows for overlap and memory.

    Args:
        score: [bars], NaN where unknown.
        move: returns, [bars], NaN where unknown.
        overlap: bars that one return covers.

    Source: the influence of one pair on Spearman's correlation, C. Croux and C. Dehon, Statistical Methods &
    Applications 19 (2010), 497-515; its long-run variance by Newey and West with 2 (overlap − 1) lags or more, since
    Bartlett's weights at just overlap − 1 take a third off what overlap adds; the quantile for so many lags:
    N. M. Kiefer and T. J. Vogelsang, Econometric Theory 21 (2005), 1130-1164.
    """
    both = ~(np.isnan(score) | np.isnan(move))
    x, y = score[both], move[both]
    pairs = len(x)
    if pairs < LEAST_PAIRS:
        return Association(pairs, absent=f"{pairs} pairs of a score and a return: fewer than {LEAST_PAIRS} say nothing")
    for what, values in (("score", x), ("return", y)):
        if is_constant(values):
            return Association(pairs, absent=f"every {what} is {values[0]:.3g}")
    u, v = standard_ranks(x), standard_ranks(y)
    ic = float(np.mean(u * v))
    influence = _influence(x, y)
    lags = min(newey_west_lags(pairs, 2 * overlap - 1), pairs // 4)
    variance = hac_variance(influence, lags)
    error = math.sqrt(variance / pairs)
    reach = _quantile((lags + 1) / pairs) * error
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
    """Return what each pair adds to the rank correlation of all, [pairs], but for a constant."""
    u, v = standard_ranks(x), standard_ranks(y)
    return np.asarray(u * v + _moved_ranks(x, v) + _moved_ranks(y, u))


def _quantile(share: float) -> float:
    """Return the two-sided quantile of 95 % for errors from lags that are so large a share of the pairs."""
    return _TWO_SIDED + 2.9694 * share + 0.4160 * share**2 - 0.5324 * share**3


def _moved_ranks(values: Floats, others: Floats) -> Floats:
    """Return what a pair changes by moving the ranks of the others, [pairs], but for a constant.

    It is the mean of the other variable's ranks over the pairs above it, equal ones half, in ranks' own deviations.
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
    """All coefficients that were looked at together: each series at each horizon.

    Attributes:
        rows: by series, then by horizon.
        placebo: what shifted scores give, in the same order.
        least_shift: bars that scores were moved by at least.
    """

    rows: tuple[Coefficient, ...]
    placebo: Placebo
    least_shift: int

    def of(self, name: str) -> tuple[Coefficient, ...]:
        """Return the rows of a series."""
        return tuple(row for row in self.rows if row.name == name)

    @property
    def tests(self) -> int:
        """How many coefficients are counted."""
        return int((~np.isnan(self.placebo.observed)).sum())


def information(series: Mapping[str, Aligned], horizons: Sequence[int] = HORIZONS) -> Information:
    """Return the information coefficients of some series of scores on the same bars, corrected for their number.

    Bars before the first score and after the last one are left out, so that scores are shifted within their own time.

    Args:
        series: by name; all on the same bars.
        horizons: in bars; those that do not fit are left out.

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
    memory = max(dependence(each) for each in scores)
    fitting = [horizon for horizon in horizons if STRETCHES * (horizon + memory) <= last - first]
    if not fitting:
        raise InputError(
            f"{last - first} bars with scores are too few: these scores remember {memory} bars, so at least "
            f"{STRETCHES * (min(horizons) + memory)} are needed for a horizon of {min(horizons)}; collect for longer"
        )
    least_shift = max(fitting) + memory
    moves = [aligned[0].ahead(horizon)[first:last] for horizon in fitting]
    placebo = circular_placebo(scores, moves, least_shift)
    named = [
        (name, horizon, associate(score, move, horizon))
        for name, score in zip(series, scores, strict=True)
        for horizon, move in zip(fitting, moves, strict=True)
    ]
    return Information(tuple(_rows(named, placebo)), placebo, least_shift)


def known_span(series: Mapping[str, Aligned]) -> tuple[int, int]:
    """Return the place of the first bar that has a score in any series, and the one after the last.

    Raises:
        InputError: no series, none with a score, or series on other bars than the first one's.
    """
    if not series:
        raise InputError("there are no scores: give at least one series of them")
    bars = next(iter(series.values())).bars
    for name, each in series.items():
        if not np.array_equal(each.bars.closed_us, bars.closed_us):
            raise InputError(f"scores {name!r} are on other bars than the first ones: align all with the same bars")
    known = np.flatnonzero(np.any([~np.isnan(each.score) for each in series.values()], axis=0))
    if not known.size:
        raise InputError("no bar has a score: texts came before the first bar or after the last one")
    return int(known[0]), int(known[-1]) + 1


def _rows(named: Sequence[tuple[str, int, Association]], placebo: Placebo) -> list[Coefficient]:
    alone, corrected = placebo.p, placebo.p_corrected
    together = holm_of(alone)
    detectable, band = placebo.detectable(ALPHA), placebo.critical(ALPHA) * placebo.spread
    rows = []
    for place, (name, horizon, found) in enumerate(named):
        tested = found.ic is not None and not np.isnan(placebo.observed[place])
        root = math.sqrt(max(1, found.pairs))
        rows.append(
            Coefficient(
                name,
                horizon,
                found,
                p=float(alone[place]) if tested else None,
                p_holm=together[place] if tested else None,
                p_corrected=float(corrected[place]) if tested else None,
                detectable=float(detectable[place]) / root if tested else None,
                band=float(band[place]) / root if tested else None,
            )
        )
    return rows


@dataclass(frozen=True)
class Decay:
    """The information coefficient of each single bar ahead.

    Attributes:
        by_bar: of the bars 1, 2, … ahead.
        half_life: bars in which it halves; None where that means nothing, with the reason in `absent`.
        low, high: its interval of 95 %; `high` None where it may not fall at all.
    """

    by_bar: tuple[Association, ...]
    half_life: float | None = None
    low: float | None = None
    high: float | None = None
    absent: str = ""


def decay(aligned: Aligned, band: float | None, bars: int = 24) -> Decay:
    """Return how the information coefficient of single bars falls, and in how many it halves.

    A half-life is told where the first bars' coefficients, one after the other, are of one sign and beyond the band of
    chance: at least three of them, else there is nothing to fit. Later ones count with their sign, so that noise about
    0 does not look like memory. The coefficients err together, as scores that remember meet the same returns; the
    interval knows how much.

    Args:
        aligned: scores and returns.
        band: what chance gives at 5 %, as a coefficient; None: nothing is known of it.
        bars: how far ahead.
    """
    found = tuple(associate(aligned.score, aligned.ahead(1, ahead - 1)) for ahead in range(1, bars + 1))
    values = np.array([math.nan if each.ic is None else each.ic for each in found])
    if band is None or math.isnan(values[0]):
        return Decay(found, absent=found[0].absent or "no chance level is known")
    beyond = (np.abs(values) > band) & (np.sign(values) == np.sign(values[0]))
    run = bars if beyond.all() else int(np.argmin(beyond))
    if run < _FITTED:
        said = "no bar ahead is" if not run else "only the next bar is" if run == 1 else f"only the next {run} bars are"
        return Decay(found, absent=f"{said} beyond what chance gives (±{band:.3f}): there is no fall to fit")
    known = np.array([bool(each.error) for each in found])
    later = np.flatnonzero(known)
    fitted = _fall(later.astype(np.float64), values[known] * np.sign(values[0]), _together(aligned, later + 1))
    if fitted is None:
        return Decay(found, absent="the fall fits no half-life")
    rate, slow, fast = fitted
    if not rate > 0.0:
        return Decay(found, absent=f"it does not fall within {len(found)} bars")
    return Decay(found, math.log(2) / rate, math.log(2) / fast, math.log(2) / slow if slow > 0.0 else None)


def _fall(later: Floats, sizes: Floats, covariance: Floats) -> tuple[float, float, float] | None:
    """Fit size × e^(−rate × later) by weighted least squares; return the rate and the ends of its interval of 95 %.

    The interval holds the rates about the fitted one at which what is left of the sizes follows a change of the rate no
    more than their errors do, whose covariance is [sizes, sizes]: at the true rate that is a sum of errors alone. None
    where nothing fits; a slow end of 0 is no fall.

    Source: E. C. Fieller, Journal of the Royal Statistical Society B 16 (1954), 175-185, for one parameter of a curve.
    """
    from scipy.optimize import curve_fit

    weights = 1.0 / np.diag(covariance)
    try:
        (_, rate), _ = curve_fit(
            lambda at, size, rate: size * np.exp(-rate * at), later, sizes, (sizes[0], 0.1), weights**-0.5
        )
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


def _together(aligned: Aligned, ahead: Integers) -> Floats:
    """Return the covariance of the errors of single bars' coefficients, [ahead, ahead].

    What each pair adds is set at the bar of its return: what coefficients share comes at one time there, and Newey and
    West's lags are for what is left.
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
