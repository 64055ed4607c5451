"""Is the best of many trials more than luck? SPA test, deflated Sharpe ratio, probability of overfitting, a verdict.

Trials are the net returns of every idea that was tried, [bars, trials], not only of those that were kept.
"""

import itertools
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qubic_lab.errors import InputError, check_at_least
from qubic_lab.oracle.inference.performance import ALPHA, LEAST_BARS, NORMAL, POWER, probabilistic_sharpe, sharpe_ratio
from qubic_lab.oracle.inference.resampling import (
    RESAMPLES,
    block_length,
    long_run_variance,
    prewhitened,
    resampled_weights,
)
from qubic_lab.oracle.model.bars import Flags, Floats, is_constant

PARTS = 16
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
    """Return the Sharpe ratio per bar that the best of some independent trials without skill is expected to have.

    `variance` is that of the trials' ratios, per bar. One trial or fewer give 0.

    Source: Bailey and López de Prado (2014), equation 1.
    """
    if trials <= 1.0:
        return 0.0
    # Below about 1.5 trials the approximation of the expected maximum is negative, which the maximum itself never is.
    first, second = NORMAL.inv_cdf(1 - 1 / trials), NORMAL.inv_cdf(1 - 1 / (trials * math.e))
    return math.sqrt(variance) * max(0.0, (1 - np.euler_gamma) * first + np.euler_gamma * second)


def deflated_sharpe(trials: Floats, chosen: int) -> float:
    """Return the probability that the true Sharpe ratio of a trial, chosen among all, is above 0.

    It is the probabilistic Sharpe ratio with the expected best of chance as its benchmark.

    Source: Bailey and López de Prado (2014).
    """
    own = trials[:, chosen]
    scaled = (own - own.mean()) / own.std()
    skew, kurt = float(np.mean(scaled**3)), float(np.mean(scaled**4))
    ratios = sharpe_ratios(trials[:, varying(trials)])
    variance = float(ratios.var(ddof=1)) if len(ratios) > 1 else 0.0
    best = expected_best_sharpe(variance, effective_trials(trials))
    return probabilistic_sharpe(sharpe_ratio(own), len(own), skew, kurt, best)


@dataclass(frozen=True)
class SuperiorAbility:
    """A test of whether a trial, chosen among all, earns more than nothing.

    Attributes:
        p: probability that the best of trials without skill looks at least as good as the chosen one.
        critical: the value that the chosen trial's statistic must reach. It counts the trial's own luck in full, even
            if it loses: with skill it would not be hopeless.
        band: half width, in standard errors, of the 95 % intervals that hold for all trials at once.
        errors: standard errors of the trials' means, [trials].
        block: mean length of the bootstrap's blocks of prewhitened returns.
    """

    p: float
    critical: float
    band: float
    errors: Floats
    block: float


def superior_ability(
    trials: Floats, chosen: int | None = None, *, resamples: int = RESAMPLES, block: float | None = None, seed: int = 0
) -> SuperiorAbility:
    """Test for superior predictive ability (SPA), studentised and consistent: is a trial more than luck?

    Trials are net returns in excess of their benchmark, [bars, trials]; None chooses the best one. Each is prewhitened,
    and the stationary bootstrap draws blocks of what is left, of this mean length; None chooses it from the data.

    The tests compare it with `arch.bootstrap.SPA`. Resampling by matrix products makes it several times faster, and
    each trial is divided by its own deviation, which SPA there leaves out. Without prewhitening both find luck
    significant up to three times as often as at their level where returns have memory.

    Source: P. R. Hansen, "A test for superior predictive ability", Journal of Business & Economic Statistics 23 (2005),
    365-380; the chosen trial's value: J. P. Romano and M. Wolf, Econometrica 73 (2005), 1237-1282.
    """
    used = varying(trials)
    scale = np.where(used, trials.std(axis=0), 1.0)
    scaled = np.where(used, trials / scale, 0.0)  # so that tiny returns keep their precision
    white = prewhitened(scaled)
    block = block_length(white) if block is None else block
    if not used.any():
        return SuperiorAbility(1.0, math.inf, math.inf, np.zeros(trials.shape[1]), block)
    bars = len(white)
    root = math.sqrt(bars)
    deviation = np.sqrt(np.maximum(long_run_variance(white, block), 1.0 / bars))
    mean = white.mean(axis=0)
    statistics = root * mean / deviation
    means = np.concatenate([part @ white / bars for part in resampled_weights(bars, block, resamples, seed)])
    drawn = (means - mean) * root / deviation
    # A trial so bad that it cannot be the best by luck keeps its own mean.
    hopeless = statistics < -math.sqrt(2.0 * math.log(math.log(bars)))
    luck = np.where(used, drawn + np.where(hopeless, statistics, 0.0), -math.inf).max(axis=1)
    luck = np.maximum(luck, 0.0)
    place = int(np.where(used, statistics, -math.inf).argmax()) if chosen is None else chosen
    own = float(statistics[place])
    return SuperiorAbility(
        p=float((1 + np.count_nonzero(luck >= own)) / (1 + len(luck))) if own > 0.0 else 1.0,
        critical=float(np.quantile(np.maximum(luck, drawn[:, place]), 1 - ALPHA, method="higher")),
        band=float(np.quantile(np.abs(drawn[:, used]).max(axis=1), 0.95, method="higher")),
        errors=deviation / root * scale,
        block=block,
    )


def overfitting_probability(trials: Floats, parts: int = PARTS) -> float | None:
    """Return the probability of backtest overfitting (PBO) by combinatorially symmetric cross-validation.

    It is the probability that the best trial on one half of the data is below the median on the other half; at the
    median it counts half. The bars are cut into an even number of parts; each half of them is one training set, the
    others its test set. Trials that do not vary are left out. None: fewer than two others, or than two bars a part.

    Source: D. H. Bailey, J. M. Borwein, M. López de Prado and Q. J. Zhu, "The probability of backtest overfitting",
    Journal of Computational Finance 20 (2017), 39-69; trials are ranked by their Sharpe ratios.
    """
    values = trials[:, varying(trials)]
    bars, count = values.shape
    if count < 2 or bars < 2 * parts:
        return None
    pieces = np.array_split(values / values.std(axis=0), parts)
    sums = np.array([[piece.sum(axis=0), (piece**2).sum(axis=0)] for piece in pieces])  # [parts, 2, trials]
    counts = np.array([len(piece) for piece in pieces], np.float64)
    halves = _halves(parts)
    at_once = max(1, _CELLS // count)
    places = []
    for first in range(0, len(halves), at_once):
        one = halves[first : first + at_once]
        ratios = _half_ratios(one, sums, counts), _half_ratios(1.0 - one, sums, counts)
        for train, test in (ratios, ratios[::-1]):
            own = np.take_along_axis(test, train.argmax(axis=1)[:, None], axis=1)
            below, equal = (test < own).sum(axis=1), (test == own).sum(axis=1)
            places.append((below + (equal + 1) / 2) / (count + 1))
    place = np.concatenate(places)
    return float(np.mean((place < 0.5) + 0.5 * (place == 0.5)))


@cache
def _halves(parts: int) -> Floats:
    """Return 1 for each part of a half and 0 for the others, [choices, parts]: all halves that have the first part."""
    others = itertools.combinations(range(1, parts), parts // 2 - 1)
    return np.array([[1.0, *(float(part in half) for part in range(1, parts))] for half in map(set, others)])


def _half_ratios(train: Floats, sums: Floats, counts: Floats) -> Floats:
    """Return the Sharpe ratio of each trial over each choice of parts, [choices, trials]; 0 where it does not vary."""
    bars = (train @ counts)[:, None]
    mean = train @ sums[:, 0] / bars
    variance = train @ sums[:, 1] / bars - mean**2
    return np.divide(mean, np.sqrt(np.maximum(variance, 0.0)), out=np.zeros_like(mean), where=variance > 1e-15)


def beyond(trials: Floats, hold: Floats) -> Floats:
    """Return what trials earn beyond the market: net returns less β × those of holding, [bars, trials].

    β is the slope of each trial's returns on those of holding, [bars], over the whole time. It uses hindsight, which
    attribution must; nothing is traded by it.
    """
    around = hold - hold.mean()
    variance = float(around @ around)
    slopes = around @ trials / variance if variance > 0.0 else np.zeros(trials.shape[1])
    left = np.asarray(trials - np.outer(hold, slopes))
    left[:, left.std(axis=0) <= 1e-9 * trials.std(axis=0)] = 0.0  # holding itself leaves rounding, not returns
    return left


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a chosen trial is more than luck, in one sentence and its numbers; ratios are annual.

    Attributes:
        p: SPA p-value of the chosen trial, given all trials.
        sharpe, deflated: observed ratio and deflated Sharpe ratio; None if the trial does not vary.
        interval: of 95 %; it allows for the choice of the best trial.
        detectable: the smallest true ratio that this data shows with a power of 80 %: (critical value of the best of
            all trials + z(power)) × the error of the chosen trial's mean, over its deviation.
        years_needed: length of data that shows a true ratio of the observed size; None if that is not above 0.
        overfitting: probability of backtest overfitting; None for a single trial or too few bars.
        block: mean length of the bootstrap's blocks of prewhitened returns.
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


def judge(
    trials: ArrayLike,
    chosen: int,
    bars_per_year: float,
    *,
    resamples: int = RESAMPLES,
    parts: int | None = PARTS,
    seed: int = 0,
) -> Verdict:
    """Judge whether a chosen trial is evidence of skill, given all trials, and which effect would be found.

    Trials are net returns in excess of their benchmark, [bars, trials]. `parts` are those of `overfitting_probability`;
    None leaves it out.

    Raises:
        InputError: trials that cannot be read, or no such trial.
    """
    values = read_trials(trials)
    check_at_least("chosen trial", chosen, 0)
    if chosen >= values.shape[1]:
        raise InputError(f"chosen trial is {chosen}: there are {values.shape[1]}, counted from 0")
    test = superior_ability(values, chosen, resamples=resamples, seed=seed)
    years = len(values) / bars_per_year
    shared: dict[str, Any] = {"alpha": ALPHA, "trials": values.shape[1], "effective_trials": effective_trials(values)}
    shared |= {"years": years, "block": test.block}
    own, count = values[:, chosen], _count(values.shape[1])
    if is_constant(own):
        sentence = f"no evidence: the chosen one of {count} never trades or its returns do not vary"
        return Verdict(evidence=False, sentence=sentence, p=1.0, **shared)
    if own.min() <= -1.0:
        sentence = f"no evidence: the chosen one of {count} lost all that it had, so its Sharpe ratio is not defined"
        return Verdict(evidence=False, sentence=sentence, p=1.0, **shared)
    root = math.sqrt(bars_per_year)
    ratio, error = sharpe_ratio(own) * root, float(test.errors[chosen]) / float(own.std()) * root
    detectable = (test.critical + NORMAL.inv_cdf(POWER)) * error
    verdict = Verdict(
        evidence=test.p <= ALPHA,
        sentence="",
        p=test.p,
        sharpe=ratio,
        interval=(ratio - test.band * error, ratio + test.band * error),
        detectable=detectable,
        years_needed=years * (detectable / ratio) ** 2 if ratio > 0 else None,
        deflated=deflated_sharpe(values, chosen),
        overfitting=None if parts is None else overfitting_probability(values, parts),
        **shared,
    )
    return replace(verdict, sentence=_sentence(verdict, ratio, detectable))


def _sentence(verdict: Verdict, ratio: float, detectable: float) -> str:
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
        f"power of {100 * POWER:.0f} %, is an annual Sharpe ratio of {detectable:.2f}; observed {ratio:.2f} {over}"
    )
    if needed is None:
        return text
    return f"{text}, which would take {_number(needed) if needed < 1_000 else 'more than 1,000'} years to show"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _count(count: int) -> str:
    return "1 trial" if count == 1 else f"{count} trials"
