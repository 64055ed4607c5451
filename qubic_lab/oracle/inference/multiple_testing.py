"""Is the best of many trials more than luck? SPA test, deflated Sharpe ratio, probability of overfitting, a verdict.

Trials are the net returns of every idea that was tried, [bars, trials], not only of those that were kept.
"""

import itertools
import math
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.inference.bootstrap import RESAMPLES, block_length, long_run_variance, resampled_weights
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
from qubic_lab.oracle.model.bars import Flags, Floats, is_constant

EULER = 0.5772156649015329
PARTS = 16
_NORMAL = NormalDist()
_CELLS = 4_000_000


def read_trials(trials: ArrayLike) -> Floats:
    """Return the net returns of trials as [bars, trials]; a 1-D array is one trial.

    Raises:
        InputError: another shape, too few bars, or a return that is not finite.
    """
    values = np.asarray(trials, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or not values.shape[1]:
        raise InputError(f"trials have shape {values.shape}: give returns as [bars, trials], of at least 1 trial")
    if len(values) < LEAST_BARS:
        raise InputError(f"trials have {len(values)} bars: at least {LEAST_BARS} are needed")
    if not np.isfinite(values).all():
        bar, trial = (int(each[0]) for each in np.nonzero(~np.isfinite(values)))
        raise InputError(f"return of bar {bar} in trial {trial} is {values[bar, trial]}: align trials to common bars")
    return values


def varying(trials: Floats) -> Flags:
    """Return which trials vary, [trials]."""
    return np.array([not is_constant(column) for column in trials.T])


def sharpe_ratios(trials: Floats) -> Floats:
    """Return the Sharpe ratio per bar of each trial, [trials]; NaN for trials that do not vary."""
    spread = trials.std(axis=0, ddof=1)
    spread[~varying(trials)] = np.nan
    return np.asarray(trials.mean(axis=0) / spread)


def effective_trials(trials: Floats) -> float:
    """Return the number of independent trials that equals these: mean correlation + (1 − mean correlation) × trials.

    Trials that do not vary are left out; a mean correlation below 0 counts as 0.

    Source: D. H. Bailey and M. López de Prado, "The deflated Sharpe ratio", Journal of Portfolio Management 40 (2014),
    94-107, appendix 3.
    """
    values = trials[:, varying(trials)]
    count = values.shape[1]
    if count < 2:
        return float(count)
    scaled = (values - values.mean(axis=0)) / values.std(axis=0)
    total = float(np.mean(scaled.sum(axis=1) ** 2))  # the sum of the correlation matrix
    mean = min(1.0, max(0.0, (total - count) / (count * (count - 1))))
    return float(mean + (1.0 - mean) * count)


def expected_best_sharpe(variance: float, trials: float) -> float:
    """Return the Sharpe ratio per bar that the best of some trials without skill is expected to have.

    Args:
        variance: of the trials' ratios, per bar.
        trials: number of independent trials; 1 or fewer give 0.

    Source: Bailey and López de Prado (2014), equation 1.
    """
    if trials <= 1.0:
        return 0.0
    # Below about 1.5 trials the approximation of the expected maximum is negative, which the maximum itself never is.
    first, second = _NORMAL.inv_cdf(1 - 1 / trials), _NORMAL.inv_cdf(1 - 1 / (trials * math.e))
    return math.sqrt(variance) * max(0.0, (1 - EULER) * first + EULER * second)


def deflated_sharpe(ratio: float, bars: int, skew: float, kurt: float, variance: float, trials: float) -> float:
    """Return the probability that the true Sharpe ratio of the best trial is above 0, given the number of trials.

    It is the probabilistic Sharpe ratio with the expected best of chance as its benchmark. See `probabilistic_sharpe`
    for the first four arguments and `expected_best_sharpe` for the others.

    Source: Bailey and López de Prado (2014).
    """
    return probabilistic_sharpe(ratio, bars, skew, kurt, expected_best_sharpe(variance, trials))


@dataclass(frozen=True)
class SuperiorAbility:
    """A test of whether any trial earns more than nothing.

    Attributes:
        p: probability that the best of trials without skill looks at least as good as the best of these.
        p_chosen: the same for the chosen trial; equals `p` if that is the best one.
        critical: the value that the statistic of the chosen trial (or of the best one) must reach. It counts the chosen
            trial's own luck in full, even if it loses: with skill it would not be hopeless.
        band: half width, in standard errors, of the 95 % intervals that hold for all trials at once.
        errors: standard errors of the trials' means, [trials].
        block: mean length of the bootstrap's blocks.
    """

    p: float
    p_chosen: float
    critical: float
    band: float
    errors: Floats
    block: float


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
    """Test for superior predictive ability (SPA), studentised and consistent: is the best trial more than luck?

    Args:
        trials: net returns in excess of their benchmark, [bars, trials].
        chosen: the trial whose p-value is computed; None: the best one.
        alpha: level of the critical value.
        resamples: of the stationary bootstrap.
        block: mean length of its blocks; None: chosen from the data.
        overlap: number of bars that one return covers.
        seed: of the bootstrap.

    The tests compare it with `arch.bootstrap.SPA`. Resampling by matrix products makes it several times faster, and
    each trial is divided by its own deviation, which SPA there leaves out. Both find luck significant more often than
    at their level where returns have long memory, the more so with few bars.

    Source: P. R. Hansen, "A test for superior predictive ability", Journal of Business & Economic Statistics 23 (2005),
    365-380; the chosen trial's value: J. P. Romano and M. Wolf, Econometrica 73 (2005), 1237-1282.

    Raises:
        InputError: trials that cannot be read, no such trial, an alpha that is not between 0 and 1, or a block that
            does not fit the bars.
    """
    values = read_trials(trials)
    bars, count = values.shape
    if chosen is not None:
        check_at_least("chosen trial", chosen, 0)
        if chosen >= count:
            raise InputError(f"chosen trial is {chosen}: there are {count}, counted from 0")
    check_probability("alpha", alpha)
    check_at_least("overlap", overlap, 1)
    length = block_length(values, overlap) if block is None else check_block(block, bars)
    used = varying(values)
    if not used.any():
        return SuperiorAbility(1.0, 1.0, math.inf, math.inf, np.zeros(count), length)
    return _spa(values, used, chosen, alpha, length, resamples, seed)


def _spa(
    values: Floats, used: Flags, chosen: int | None, alpha: float, block: float, resamples: int, seed: int
) -> SuperiorAbility:
    root = math.sqrt(len(values))
    scale = np.where(used, values.std(axis=0), 1.0)
    scaled = np.where(used, values / scale, 0.0)  # so that tiny returns keep their precision
    deviation = np.sqrt(np.maximum(long_run_variance(scaled, block), 1.0 / len(values)))
    mean = scaled.mean(axis=0)
    statistics = root * mean / deviation
    weights = resampled_weights(len(values), block, resamples, seed)
    means = np.concatenate([part @ scaled / len(values) for part in weights])
    drawn = (means - mean) * root / deviation
    # A trial so bad that it cannot be the best by luck keeps its own mean.
    hopeless = statistics < -math.sqrt(2.0 * math.log(math.log(len(values))))
    luck = np.where(used, drawn + np.where(hopeless, statistics, 0.0), -math.inf).max(axis=1)
    luck = np.maximum(luck, 0.0)
    place = int(np.where(used, statistics, -math.inf).argmax()) if chosen is None else chosen
    return SuperiorAbility(
        p=_share_reached(luck, float(statistics[used].max())),
        p_chosen=_share_reached(luck, float(statistics[place])),
        critical=float(np.quantile(np.maximum(luck, drawn[:, place]), 1 - alpha, method="higher")),
        band=float(np.quantile(np.abs(drawn[:, used]).max(axis=1), 0.95, method="higher")),
        errors=deviation / root * scale,
        block=block,
    )


def _share_reached(luck: Floats, statistic: float) -> float:
    if statistic <= 0.0:
        return 1.0
    return float((1 + np.count_nonzero(luck >= statistic)) / (1 + len(luck)))


def overfitting_probability(trials: ArrayLike, parts: int = PARTS) -> float:
    """Return the probability of backtest overfitting (PBO) by combinatorially symmetric cross-validation.

    It is the probability that the best trial on one half of the data is below the median on the other half; at the
    median it counts half.

    Args:
        trials: net returns, [bars, trials]; those that do not vary are left out.
        parts: even number of parts of the bars; each half of them is one training set, the others its test set.

    Source: D. H. Bailey, J. M. Borwein, M. López de Prado and Q. J. Zhu, "The probability of backtest overfitting",
    Journal of Computational Finance 20 (2017), 39-69; trials are ranked by their Sharpe ratios.

    Raises:
        InputError: an odd number of parts, fewer than two bars a part, or fewer than two trials that vary.
    """
    values = read_trials(trials)
    values = values[:, varying(values)]
    bars, count = values.shape
    if count < 2:
        raise InputError(f"{count} trial(s) vary: overfitting is about the choice among two or more")
    if parts % 2 or not 2 <= parts <= 20:
        raise InputError(f"parts are {parts}: give an even number from 2 to 20")
    if bars < 2 * parts:
        raise InputError(f"{bars} bars are too few for {parts} parts: give fewer parts, or more bars")
    pieces = np.array_split(values / values.std(axis=0), parts)
    sums = np.array([[piece.sum(axis=0), (piece**2).sum(axis=0)] for piece in pieces])  # [parts, 2, trials]
    counts = np.array([len(piece) for piece in pieces], np.float64)
    halves = np.zeros((math.comb(parts, parts // 2), parts))
    np.put_along_axis(halves, np.array(list(itertools.combinations(range(parts), parts // 2))), 1.0, axis=1)
    at_once = max(1, _CELLS // count)
    places = []
    for first in range(0, len(halves), at_once):
        train = halves[first : first + at_once]
        best = _half_ratios(train, sums, counts).argmax(axis=1)
        test = _half_ratios(1.0 - train, sums, counts)
        own = np.take_along_axis(test, best[:, None], axis=1)
        below, equal = (test < own).sum(axis=1), (test == own).sum(axis=1)
        places.append((below + (equal + 1) / 2) / (count + 1))
    place = np.concatenate(places)
    return float(np.mean((place < 0.5) + 0.5 * (place == 0.5)))


def _half_ratios(train: Floats, sums: Floats, counts: Floats) -> Floats:
    """Return the Sharpe ratio of each trial over each choice of parts, [choices, trials]; 0 where it does not vary."""
    bars = (train @ counts)[:, None]
    mean = train @ sums[:, 0] / bars
    variance = train @ sums[:, 1] / bars - mean**2
    return np.divide(mean, np.sqrt(np.maximum(variance, 0.0)), out=np.zeros_like(mean), where=variance > 1e-15)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a chosen trial is more than luck, in one sentence and its numbers; ratios are annual.

    Attributes:
        evidence: whether it is.
        sentence: the verdict with its number.
        p: SPA p-value of the chosen trial, given all trials.
        alpha: level of the verdict.
        trials: number of trials; `effective_trials`: number of independent trials that equals them.
        sharpe: observed ratio; None if the trial does not vary.
        interval: of 95 %; it allows for the choice of the best trial.
        detectable: the smallest true ratio that this data shows with a power of 80 %: (critical value of the best of
            all trials + z(power)) × the error of the chosen trial's mean, over its deviation.
        years: length of the data.
        years_needed: length that shows a true ratio of the observed size; None if that is not above 0.
        deflated: deflated Sharpe ratio: probability that the true ratio is above 0; None if the trial does not vary.
        overfitting: probability of backtest overfitting; None for a single trial or too few bars.
        block: mean length of the bootstrap's blocks.
    """

    evidence: bool
    sentence: str
    p: float
    alpha: float
    trials: int
    effective_trials: float
    sharpe: float | None = None
    interval: tuple[float, float] | None = None
    detectable: float | None = None
    years: float
    years_needed: float | None = None
    deflated: float | None = None
    overfitting: float | None = None
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
    """Judge whether a chosen trial is evidence of skill, given all trials, and which effect would be found.

    Args:
        trials: net returns of all trials in excess of their benchmark, [bars, trials].
        chosen: the trial that is judged.
        bars_per_year: number of bars in a year.
        alpha: probability of finding skill where there is none.
        power: of the smallest detectable ratio.
        resamples: as `block`, `overlap` and `seed` an argument of `superior_ability`.
        block: see there.
        overlap: see there.
        parts: of `overfitting_probability`; None leaves it out.
        seed: see there.

    Raises:
        InputError: what `superior_ability` refuses, bars_per_year not above 0, or a power not between 0 and 1.
    """
    values = read_trials(trials)
    if not (math.isfinite(bars_per_year) and bars_per_year > 0):
        raise InputError(f"bars a year are {bars_per_year}: it must be a number above 0")
    check_probability("power", power)
    test = superior_ability(values, chosen, alpha=alpha, resamples=resamples, block=block, overlap=overlap, seed=seed)
    years, effective = len(values) / bars_per_year, effective_trials(values)
    shared: dict[str, Any] = {"alpha": alpha, "trials": values.shape[1], "effective_trials": effective}
    shared |= {"years": years, "block": test.block}
    own, count = values[:, chosen], _count(values.shape[1])
    if is_constant(own):
        sentence = f"no evidence: the chosen one of {count} never trades or its returns do not vary"
        return Verdict(evidence=False, sentence=sentence, p=1.0, **shared)
    root = math.sqrt(bars_per_year)
    ratio, error = sharpe_ratio(own) * root, float(test.errors[chosen]) / float(own.std()) * root
    detectable, p = (test.critical + _NORMAL.inv_cdf(power)) * error, test.p_chosen
    verdict = Verdict(
        evidence=p <= alpha,
        sentence="",
        p=p,
        sharpe=ratio,
        interval=(ratio - test.band * error, ratio + test.band * error),
        detectable=detectable,
        years_needed=years * (detectable / ratio) ** 2 if ratio > 0 else None,
        deflated=_deflated(values, chosen, effective),
        overfitting=_overfitting(values, parts),
        **shared,
    )
    return replace(verdict, sentence=_sentence(verdict, ratio, detectable, power))


def _deflated(values: Floats, chosen: int, effective: float) -> float:
    own, ratios = values[:, chosen], sharpe_ratios(values[:, varying(values)])
    variance = float(ratios.var(ddof=1)) if len(ratios) > 1 else 0.0
    return deflated_sharpe(sharpe_ratio(own), len(own), skewness(own), kurtosis(own), variance, effective)


def _overfitting(values: Floats, parts: int | None) -> float | None:
    if parts is None or len(values) < 2 * parts or varying(values).sum() < 2:
        return None
    return overfitting_probability(values, parts)


def _sentence(verdict: Verdict, ratio: float, detectable: float, power: float) -> str:
    """Return a verdict in one sentence with its number."""
    years, needed, count = verdict.years, verdict.years_needed, _count(verdict.trials)
    over = f"over {_number(years)} years" if years >= 1 else f"over {_number(365 * years)} days"
    if verdict.evidence:
        return (
            f"evidence (SPA p = {verdict.p:.3g}): an annual Sharpe ratio of {ratio:.2f} {over} is more than the best "
            f"of {count} shows by luck"
        )
    text = (
        f"no evidence (SPA p = {verdict.p:.2f}, {count}): the smallest effect that this data would have shown, with a "
        f"power of {100 * power:.0f} %, is an annual Sharpe ratio of {detectable:.2f}; observed {ratio:.2f} {over}"
    )
    if needed is None:
        return text
    return f"{text}, which would take {_number(needed) if needed < 1_000 else 'more than 1,000'} years to show"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _count(count: int) -> str:
    return "1 trial" if count == 1 else f"{count} trials"
