"""What is left of the best result once it is counted how many ideas were tried: SPA, deflated Sharpe, PBO, a verdict.

Trials are the net returns of every idea that was tried, [bars, trials], not only of those that were liked.
"""

import itertools
import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.inference.bootstrap import (
    RESAMPLES,
    block_length,
    is_constant,
    long_run_variance,
    resampled_means,
)
from qubic_lab.oracle.inference.performance import (
    LEAST_BARS,
    POWER,
    check_block,
    check_probability,
    kurtosis,
    probabilistic_sharpe,
    sharpe_ratio,
    skewness,
)
from qubic_lab.oracle.model.bars import Floats

EULER = 0.5772156649015329
PARTS = 16
_NORMAL = NormalDist()
_CELLS = 4_000_000


def read_trials(trials: ArrayLike) -> Floats:
    """Return the net returns of trials as [bars, trials]; one row of returns is one trial.

    Raises:
        InputError: another shape, too few bars, or a return that is no number.
    """
    values = np.asarray(trials, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or not values.shape[1]:
        raise InputError(f"trials have shape {values.shape}: give returns as [bars, trials], of at least 1 trial")
    if len(values) < LEAST_BARS:
        raise InputError(f"trials have {len(values)} bars: fewer than {LEAST_BARS} say nothing")
    if not np.isfinite(values).all():
        bar, trial = (int(each[0]) for each in np.nonzero(~np.isfinite(values)))
        raise InputError(f"return of bar {bar} in trial {trial} is {values[bar, trial]}: align trials to common bars")
    return values


def sharpe_ratios(trials: Floats) -> Floats:
    """Return the Sharpe ratio per bar of each trial; NaN of those that do not vary."""
    spread = trials.std(axis=0, ddof=1)
    spread[[is_constant(column) for column in trials.T]] = np.nan
    return np.asarray(trials.mean(axis=0) / spread)


def effective_trials(trials: Floats) -> float:
    """Return how many independent trials have as much chance as these: mean correlation + (1 − it) × trials.

    Trials that do not vary are left out; a mean correlation below 0 counts as 0.

    Source: D. H. Bailey and M. López de Prado, "The deflated Sharpe ratio", Journal of Portfolio Management 40 (2014),
    94-107, appendix 3.
    """
    varying = trials[:, [not is_constant(column) for column in trials.T]]
    count = varying.shape[1]
    if count < 2:
        return float(count)
    scaled = (varying - varying.mean(axis=0)) / varying.std(axis=0)
    total = float(np.mean(scaled.sum(axis=1) ** 2))  # the sum of the correlation matrix
    mean = min(1.0, max(0.0, (total - count) / (count * (count - 1))))
    return float(mean + (1.0 - mean) * count)


def expected_best_sharpe(variance: float, trials: float) -> float:
    """Return the Sharpe ratio that the best of some trials without skill is expected to show.

    Args:
        variance: of the trials' ratios, per bar.
        trials: how many independent ones; 1 or fewer give 0.

    Source: Bailey and López de Prado (2014), equation 1.
    """
    if trials <= 1.0:
        return 0.0
    # Below about 1.5 trials the approximation of the expected maximum falls under 0, which no maximum of them does.
    first, second = _NORMAL.inv_cdf(1 - 1 / trials), _NORMAL.inv_cdf(1 - 1 / (trials * math.e))
    return math.sqrt(variance) * max(0.0, (1 - EULER) * first + EULER * second)


def deflated_sharpe(ratio: float, bars: int, skew: float, kurt: float, variance: float, trials: float) -> float:
    """Return how probable it is that a chosen trial's true Sharpe ratio is above 0, given how many were tried.

    Args:
        ratio: observed, per bar.
        bars: returns that it is from.
        skew: their skewness.
        kurt: their kurtosis, 3 if normal.
        variance: of all trials' ratios, per bar.
        trials: how many independent ones, as of `effective_trials`.

    Source: Bailey and López de Prado (2014): the probabilistic Sharpe ratio against the best of chance.
    """
    return probabilistic_sharpe(ratio, bars, skew, kurt, expected_best_sharpe(variance, trials))


@dataclass(frozen=True)
class SuperiorAbility:
    """A test of whether any of the trials earns more than nothing.

    Attributes:
        p: probability that the best of trials without skill looks at least as good as the best of these.
        p_chosen: as good as the chosen one; `p` where that is the best.
        statistics: √bars × mean / long-run deviation, [trials]; 0 where a trial does not vary.
        critical: what the chosen one's statistic must reach, or the best one's where none is chosen. Its own luck
            counts in full even where it loses: were it good, it would not be hopeless.
        band: half width of the intervals of 95 % that hold for all trials at once, in standard errors.
        errors: standard errors of the trials' means, [trials].
        block: mean length of the bootstrap's blocks.
        alpha: the level that `critical` is for.
    """

    p: float
    p_chosen: float
    statistics: Floats
    critical: float
    band: float
    errors: Floats
    block: float
    alpha: float


def superior_ability(
    trials: ArrayLike,
    chosen: int | None = None,
    *,
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
    block: float | None = None,
    overlap: int = 1,
    seed: int = 0,
) -> SuperiorAbility:
    """Test for superior predictive ability, studentised and consistent: is the best of the trials more than luck?

    Args:
        trials: net returns in excess of what they are to beat, [bars, trials].
        chosen: the trial whose own p-value is asked for; None: the best one.
        alpha: level of the critical value.
        resamples: of the stationary bootstrap.
        block: mean length of its blocks; None: as the data ask.
        overlap: bars that one return covers.
        seed: of the bootstrap.

    It is the test that `arch.bootstrap.SPA` has, to which the tests compare it; it resamples by products of matrices,
    which is several times faster, and divides each trial by its own deviation, which SPA there leaves out.

    Returns that remember much make it call luck ability more often than at its level, the more so the fewer bars there
    are; that of `arch` does so too.

    Source: P. R. Hansen, "A test for superior predictive ability", Journal of Business & Economic Statistics 23 (2005),
    365-380; the chosen one's value: J. P. Romano and M. Wolf, Econometrica 73 (2005), 1237-1282.

    Raises:
        InputError: trials that cannot be read, no trial of that number, an alpha that is not between 0 and 1, or a
            block that does not fit the bars.
    """
    values = read_trials(trials)
    bars, count = values.shape
    _check_chosen(chosen, count)
    check_probability("alpha", alpha)
    check_at_least("overlap", overlap, 1)
    length = block_length(values, overlap) if block is None else check_block(block, bars)
    varying = np.array([not is_constant(column) for column in values.T])
    if not varying.any():
        nothing = np.zeros(count)
        return SuperiorAbility(1.0, 1.0, nothing, math.inf, math.inf, nothing, length, alpha)
    scale = np.where(varying, values.std(axis=0), 1.0)
    scaled = np.where(varying, values / scale, 0.0)  # tiny returns lose nothing, and a trial that trades not is 0
    variance = np.maximum(long_run_variance(scaled, length), 1.0 / bars)
    mean = scaled.mean(axis=0)
    statistics = math.sqrt(bars) * mean / np.sqrt(variance)
    drawn = (resampled_means(scaled, length, resamples, seed) - mean) * math.sqrt(bars) / np.sqrt(variance)
    # A trial so bad that it cannot be the best by luck keeps its own mean.
    hopeless = statistics < -math.sqrt(2.0 * math.log(math.log(bars)))
    luck = np.where(varying, drawn + np.where(hopeless, statistics, 0.0), -math.inf).max(axis=1)
    luck = np.maximum(luck, 0.0)
    place = int(np.where(varying, statistics, -math.inf).argmax()) if chosen is None else chosen
    return SuperiorAbility(
        p=_share_reached(luck, float(statistics[varying].max())),
        p_chosen=_share_reached(luck, float(statistics[place])),
        statistics=statistics,
        critical=float(np.quantile(np.maximum(luck, drawn[:, place]), 1 - alpha, method="higher")),
        band=float(np.quantile(np.abs(drawn[:, varying]).max(axis=1), 0.95, method="higher")),
        errors=np.sqrt(variance / bars) * scale,
        block=length,
        alpha=alpha,
    )


def _share_reached(luck: Floats, statistic: float) -> float:
    if statistic <= 0.0:
        return 1.0
    return float((1 + np.count_nonzero(luck >= statistic)) / (1 + len(luck)))


@dataclass(frozen=True)
class Overfitting:
    """What picking the best on one half of the data is worth on the other half.

    Attributes:
        probability: that the pick is below the median there (PBO); a pick at the median counts half.
        loss: that it loses there.
        median_place: of the pick there, 0 the worst to 1 the best trial.
        splits: halves that were tried.
        parts: that the bars were cut into.
    """

    probability: float
    loss: float
    median_place: float
    splits: int
    parts: int


def overfitting(trials: ArrayLike, parts: int = PARTS) -> Overfitting:
    """Return the probability of backtest overfitting by combinatorially symmetric cross-validation.

    Args:
        trials: net returns, [bars, trials]; those that do not vary are left out.
        parts: even number of stretches of bars; every half of them is one training set, the rest its test set.

    Source: D. H. Bailey, J. M. Borwein, M. López de Prado and Q. J. Zhu, "The probability of backtest overfitting",
    Journal of Computational Finance 20 (2017), 39-69; the measure of a trial is its Sharpe ratio.

    Raises:
        InputError: an odd number of parts, fewer than two bars a part, or fewer than two trials that vary.
    """
    values = read_trials(trials)
    varying = values[:, [not is_constant(column) for column in values.T]]
    if varying.shape[1] < 2:
        raise InputError(f"{varying.shape[1]} trial(s) vary: overfitting is about the choice among two or more")
    if parts % 2 or not 2 <= parts <= 20:
        raise InputError(f"parts are {parts}: give an even number from 2 to 20")
    if len(varying) < 2 * parts:
        raise InputError(f"{len(varying)} bars are too few for {parts} parts: give fewer parts, or more bars")
    scaled = varying / varying.std(axis=0)
    pieces = np.array_split(scaled, parts)
    sums = np.array([[piece.sum(axis=0), (piece**2).sum(axis=0)] for piece in pieces])  # [parts, 2, trials]
    counts = np.array([len(piece) for piece in pieces], np.float64)
    halves = np.zeros((math.comb(parts, parts // 2), parts))
    chosen = np.array(list(itertools.combinations(range(parts), parts // 2)))
    np.put_along_axis(halves, chosen, 1.0, axis=1)
    trials_count = varying.shape[1]
    at_once = max(1, _CELLS // trials_count)
    places, losses = [], []
    for first in range(0, len(halves), at_once):
        train = halves[first : first + at_once]
        best = _half_ratios(train, sums, counts).argmax(axis=1)
        test = _half_ratios(1.0 - train, sums, counts)
        own = np.take_along_axis(test, best[:, None], axis=1)
        below, equal = (test < own).sum(axis=1), (test == own).sum(axis=1)
        places.append((below + (equal + 1) / 2) / (trials_count + 1))
        losses.append(own[:, 0] < 0)
    place, loss = np.concatenate(places), np.concatenate(losses)
    probability = float(np.mean((place < 0.5) + 0.5 * (place == 0.5)))
    return Overfitting(probability, float(loss.mean()), float(np.median(place)), len(halves), parts)


def _half_ratios(train: Floats, sums: Floats, counts: Floats) -> Floats:
    """Return the Sharpe ratio of each trial over each choice of parts, [choices, trials]; 0 where it does not vary."""
    bars = (train @ counts)[:, None]
    mean = train @ sums[:, 0] / bars
    variance = train @ sums[:, 1] / bars - mean**2
    return np.divide(mean, np.sqrt(np.maximum(variance, 0.0)), out=np.zeros_like(mean), where=variance > 1e-15)


@dataclass(frozen=True)
class Verdict:
    """Whether a chosen trial is more than luck, in one sentence and its numbers; ratios are a year's.

    Attributes:
        evidence: whether it is.
        sentence: the verdict with its number.
        p: of the chosen one, given all that were tried (SPA).
        alpha: the level it is judged at.
        trials: that were tried; `effective_trials`: as many independent ones.
        sharpe: observed; None where the trial does not vary.
        interval: of 95 %, for the best of the trials as for any: it allows for the choice.
        detectable: the smallest true ratio that this data would have shown with a power of 80 %.
        years: of the data.
        years_needed: so much data would show a true ratio of the observed size; None where that is not above 0.
        deflated: probability that the ratio is above 0 (deflated Sharpe ratio); None where there is none.
        overfitting: probability of backtest overfitting; None for a single trial or too few bars.
        block: mean length of the bootstrap's blocks.
    """

    evidence: bool
    sentence: str
    p: float
    alpha: float
    trials: int
    effective_trials: float
    sharpe: float | None
    interval: tuple[float, float] | None
    detectable: float | None
    years: float
    years_needed: float | None
    deflated: float | None
    overfitting: float | None
    block: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return asdict(self)


def judge(
    trials: ArrayLike,
    chosen: int,
    bars_per_year: float,
    *,
    alpha: float = 0.05,
    power: float = POWER,
    resamples: int = RESAMPLES,
    block: float | None = None,
    overlap: int = 1,
    parts: int | None = PARTS,
    seed: int = 0,
) -> Verdict:
    """Say whether a chosen trial is evidence of skill, given all that were tried, or what it would have taken.

    Args:
        trials: net returns of all that were tried, [bars, trials], in excess of what they are to beat.
        chosen: which one is judged.
        bars_per_year: as of `performance.periods_per_year`.
        alpha: the probability of finding skill where there is none.
        power: of the smallest detectable ratio.
        resamples: of the stationary bootstrap.
        block: mean length of its blocks; None: as the data ask.
        overlap: bars that one return covers.
        parts: of the overfitting's cross-validation; None leaves it out.
        seed: of the bootstrap.

    The smallest detectable ratio is (critical value of the best of all trials + z(power)) × the error of the chosen
    one's mean, over its deviation; the critical value has the chosen one's luck in it even where it loses.

    Raises:
        InputError: trials that cannot be read, no trial of that number, no bars a year, an alpha or a power that is not
            between 0 and 1, or a block that does not fit the bars.
    """
    values = read_trials(trials)
    bars, count = values.shape
    if not (math.isfinite(bars_per_year) and bars_per_year > 0):
        raise InputError(f"bars a year are {bars_per_year}: it must be a number above 0")
    check_probability("power", power)
    test = superior_ability(values, chosen, alpha=alpha, resamples=resamples, block=block, overlap=overlap, seed=seed)
    own = values[:, chosen]
    years, root = bars / bars_per_year, math.sqrt(bars_per_year)
    effective = effective_trials(values)
    if is_constant(own):
        sentence = f"no evidence: the chosen one of {_count(count)} never trades or its returns do not vary"
        rest = (None, None, None, years, None, None, None, test.block)
        return Verdict(False, sentence, 1.0, alpha, count, effective, *rest)
    ratio, deviation = sharpe_ratio(own) * root, float(own.std())
    error = float(test.errors[chosen]) / deviation * root
    detectable = (test.critical + _NORMAL.inv_cdf(power)) * error
    needed = years * (detectable / ratio) ** 2 if ratio > 0 else None
    ratios = sharpe_ratios(values)
    ratios = ratios[~np.isnan(ratios)]
    variance = float(ratios.var(ddof=1)) if len(ratios) > 1 else 0.0
    deflated = deflated_sharpe(ratio / root, bars, skewness(own), kurtosis(own), variance, effective)
    evidence = test.p_chosen <= alpha
    return Verdict(
        evidence=evidence,
        sentence=_sentence(evidence, test.p_chosen, count, ratio, detectable, power, years, needed),
        p=test.p_chosen,
        alpha=alpha,
        trials=count,
        effective_trials=effective,
        sharpe=ratio,
        interval=(ratio - test.band * error, ratio + test.band * error),
        detectable=detectable,
        years=years,
        years_needed=needed,
        deflated=deflated,
        overfitting=_overfitting_of(values, parts),
        block=test.block,
    )


def _overfitting_of(values: Floats, parts: int | None) -> float | None:
    varying = sum(not is_constant(column) for column in values.T)
    if parts is None or varying < 2 or len(values) < 2 * parts:
        return None
    return overfitting(values, parts).probability


def _sentence(
    evidence: bool,
    p: float,
    count: int,
    ratio: float,
    detectable: float,
    power: float,
    years: float,
    needed: float | None,
) -> str:
    """Return the verdict in one sentence with its number."""
    over = f"over {_number(years)} years" if years >= 1 else f"over {_number(365 * years)} days"
    if evidence:
        return (
            f"evidence (SPA p = {p:.3g}): an annual Sharpe ratio of {ratio:.2f} {over} is more than the best of "
            f"{_count(count)} shows by luck"
        )
    text = (
        f"no evidence (SPA p = {p:.2f}, {_count(count)}): the smallest effect that this data would have shown, with a "
        f"power of {100 * power:.0f} %, is an annual Sharpe ratio of {detectable:.2f}; observed {ratio:.2f} {over}"
    )
    if needed is None:
        return text
    return f"{text}, which would take {_number(needed) if needed < 1_000 else 'more than 1,000'} years to show"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _count(count: int) -> str:
    return "1 trial" if count == 1 else f"{count} trials"


def _check_chosen(chosen: int | None, count: int) -> None:
    if chosen is not None:
        check_at_least("chosen trial", chosen, 0)
        if chosen >= count:
            raise InputError(f"chosen trial is {chosen}: there are {count}, counted from 0")
