"""Sharpe ratios, corrections for multiple testing, and tests of forecasts equal published values and hand results."""

import math
import warnings
from itertools import combinations

import numpy as np
import pytest
from arch.bootstrap import SPA, optimal_block_length
from scipy.signal import lfilter
from statsmodels.regression.linear_model import OLS
from strict_warnings import WARNINGS_ARE_ERRORS

from qubic_lab.errors import InputError
from qubic_lab.oracle.backtest.forecast_accuracy import clark_west, diebold_mariano
from qubic_lab.oracle.inference.multiple_testing import (
    effective_trials,
    expected_best_sharpe,
    judge,
    overfitting_probability,
    superior_ability,
)
from qubic_lab.oracle.inference.performance import (
    annual_sharpe,
    break_even_bps,
    hac_variance,
    newey_west_lags,
    probabilistic_sharpe,
    sharpe_ratio,
)
from qubic_lab.oracle.inference.resampling import block_length, long_run_variance, prewhitened, resampled_weights
from qubic_lab.stats import wilson_interval

pytestmark = WARNINGS_ARE_ERRORS


def noise(bars: int, trials: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 0.01, (bars, trials))


def autoregressive(bars: int, phi: float, mean: float, seed: int) -> np.ndarray:
    """Return an AR(1) process of variance 1."""
    shocks = np.random.default_rng(seed).normal(0.0, math.sqrt(1 - phi**2), bars + 50)
    return lfilter([1.0], [1.0, -phi], shocks)[50:] + mean


# Sharpe ratio and its errors


def test_hac_variance_is_that_of_a_regression_on_a_constant():
    values = autoregressive(300, 0.5, 0.2, 1)
    fitted = OLS(values, np.ones(300)).fit(cov_type="HAC", cov_kwds={"maxlags": 7, "use_correction": False})
    assert math.sqrt(hac_variance(values, 7) / 300) == pytest.approx(fitted.bse[0], rel=1e-12)
    assert newey_west_lags(100) == 4
    assert newey_west_lags(100, overlap=24) == 23, "lags cover the overlap"
    assert newey_west_lags(10, overlap=24) == 9


def test_blocks_grow_with_memory():
    lengths = [block_length(autoregressive(1000, phi, 0.0, 3)) for phi in (0.0, 0.5, 0.9)]
    assert 1.0 <= lengths[0] < 5.0 < lengths[1] < lengths[2] <= 100.0
    assert block_length(noise(1000), least=24) == 24
    assert block_length(np.full(100, 0.01)) == 1.0
    for bars in (250, 3000):
        for phi in (-0.5, 0.0, 0.3, 0.9):
            values = autoregressive(bars, phi, 0.0, 4)
            theirs = float(optimal_block_length(values)["stationary"].iloc[0])
            assert block_length(values) == pytest.approx(min(max(1.0, theirs), bars / 10), rel=0.02)


def test_prewhitening_keeps_the_mean_and_leaves_no_memory():
    columns = np.stack([autoregressive(2000, phi, 0.4, 7) for phi in (0.6, -0.4, 0.0)] + [np.zeros(2000)], axis=1)
    white = prewhitened(columns)
    assert white.shape == (1999, 4) and not white[:, 3].any()
    assert white.mean(axis=0) == pytest.approx(columns.mean(axis=0), abs=5e-3)
    for column, phi in zip(white.T[:3], (0.6, -0.4, 0.0), strict=True):
        assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 0.06
        assert column.var() == pytest.approx((1 + phi) / (1 - phi), rel=0.15), "the long-run variance"


def test_weights_draw_whole_blocks_of_every_row_alike():
    weights = np.concatenate(list(resampled_weights(50, 5.0, 400, seed=1)))
    assert weights.shape == (400, 50)
    assert (weights.sum(axis=1) == 50).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(50), abs=0.25)
    assert np.array_equal(weights, np.concatenate(list(resampled_weights(50, 5.0, 400, seed=1))))
    # A resample's mean has the variance that the bootstrap's formula says.
    values = autoregressive(50, 0.6, 0.0, 5)[:, None]
    many = np.concatenate([part @ values / 50 for part in resampled_weights(50, 5.0, 20_000, seed=2)])
    assert 50 * many.var() == pytest.approx(long_run_variance(values, 5.0)[0], rel=0.05)


def test_probabilistic_and_deflated_sharpe_equal_published_values():
    # Bailey and López de Prado (2012): 24 months, mean 0.036, deviation 0.079, skewness −2.448, kurtosis 10.164.
    ratio = 0.458
    assert probabilistic_sharpe(ratio, 24, -2.448, 10.164) == pytest.approx(0.913, abs=5e-4)
    assert probabilistic_sharpe(ratio, 24, 0.0, 3.0) == pytest.approx(0.982, abs=5e-4)
    # Bailey and López de Prado (2014): annual ratio 2.5 over 1250 days, 100 trials of variance 0.5 a year, skewness −3,
    # kurtosis 10: the best of chance has 0.1132 a day, and the probability is 0.9004.
    assert expected_best_sharpe(1.0, 1) == 0.0 <= expected_best_sharpe(1.0, 1.2)
    best = expected_best_sharpe(0.5 / 250, 100)
    assert best == pytest.approx(0.1132, abs=5e-5)
    assert probabilistic_sharpe(2.5 / math.sqrt(250), 1250, -3.0, 10.0, best) == pytest.approx(0.9004, abs=2e-4)


def test_break_even_cost_by_hand():
    # 30 basis points are earned while equity is turned over one and a half times.
    assert break_even_bps(np.array([0.001, -0.001, 0.003]), np.array([1.0, 0.0, 0.5])) == pytest.approx(20.0)
    assert math.isnan(break_even_bps(np.zeros(2), np.zeros(2)))


def test_annual_sharpe_has_its_error_and_is_none_without_variation():
    # Mean 0.01; deviations −0.02, 0, 0.02 and 0: variance 0.0008 / 3.
    assert sharpe_ratio(np.array([-0.01, 0.01, 0.03, 0.01])) == pytest.approx(0.01 / math.sqrt(0.0008 / 3))
    returns = noise(1000)[:, 0] + 0.001
    ratio, error = annual_sharpe(returns, 365.0)
    assert ratio == pytest.approx(sharpe_ratio(returns) * math.sqrt(365))
    assert error == pytest.approx(math.sqrt(365 / 1000), rel=0.1)
    assert annual_sharpe(np.full(100, 0.01), 365.0) is None and annual_sharpe(noise(10)[:, 0], 365.0) is None


def test_an_account_that_lost_all_has_no_ratio_and_is_no_evidence():
    returns = np.append(np.full(99, 0.05) + noise(99)[:, 0], -1.0)  # the mean is far above 0, and nothing is left
    assert returns.mean() > 0.0 and annual_sharpe(returns, 365.0) is None
    found = judge(returns, 0, 365.0, resamples=100)
    assert (found.evidence, found.sharpe, found.p) == (False, None, 1.0) and "lost all" in found.sentence


# Multiple testing


def test_effective_trials():
    independent = noise(5000, 10)
    assert effective_trials(independent) == pytest.approx(10.0, abs=0.3)
    assert effective_trials(np.repeat(independent[:, :1], 10, axis=1)) == pytest.approx(1.0)
    pairs = np.concatenate([independent[:, :5], independent[:, :5]], axis=1)  # mean correlation 5 / 45
    assert effective_trials(pairs) == pytest.approx(1 / 9 + 8 / 9 * 10, abs=0.3)
    assert effective_trials(np.zeros((50, 3))) == 0.0


def test_spa_agrees_with_arch():
    trials = noise(250, 6, seed=4) + np.linspace(-0.001, 0.0012, 6)
    ours = superior_ability(trials, block=3.0, resamples=4000)
    # arch compares means as they are, so trials are divided by their long-run deviation first.
    scaled = trials / np.sqrt(long_run_variance(trials, 3.0))
    theirs = SPA(np.zeros(250), -scaled, block_size=3, reps=1500, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.compute()
    assert ours.p == pytest.approx(theirs.pvalues["consistent"], abs=0.03)
    critical = math.sqrt(250) * theirs.critical_values(0.05)["consistent"]
    assert ours.critical == pytest.approx(critical, abs=0.12)


def test_spa_ignores_scale_and_order_and_more_trials_of_nothing_take_evidence_away():
    trials = noise(300, 4, seed=2)
    trials[:, 1] += 0.0015

    def p(given: np.ndarray, chosen: int | None = None) -> float:
        return superior_ability(given, chosen=chosen, resamples=500, block=2.0).p

    with_idle = np.column_stack([trials, np.zeros(300)])
    for same in (1e-7 * trials, trials * [1.0, 50.0, 1.0, 0.1], with_idle):
        assert p(same) == p(trials) == p(trials, 1) < p(trials, 0)
    assert p(-np.abs(trials)) == 1.0 == p(np.zeros((100, 3)))
    good = noise(400, 1, seed=9) + 0.0011
    few = superior_ability(good, chosen=0, resamples=1000)
    many = superior_ability(np.column_stack([good, noise(400, 60, seed=10)]), chosen=0, resamples=1000)
    assert few.p < 0.05 < 0.9 * many.p
    assert few.critical < many.critical


def test_the_best_of_trials_with_memory_is_luck_as_often_as_the_level_says():
    found, errors = 0, []
    for seed in range(200):
        trials = np.stack([autoregressive(250, 0.3, 0.0, 1000 * seed + trial) for trial in range(10)], axis=1)
        test = superior_ability(trials, resamples=300, seed=seed)
        found += test.p <= 0.05
        errors.append(test.errors)
    assert wilson_interval(found, 200)[0] <= 0.05 and found / 200 <= 0.065
    assert np.mean(errors) == pytest.approx(math.sqrt(1.3 / 0.7 / 250), rel=0.03)


def test_overfitting_equals_a_plain_count_and_is_a_half_on_noise_and_none_with_an_edge():
    found = [overfitting_probability(noise(256, 12, seed), parts=8) for seed in range(60)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.08)
    edge = noise(1000, 12, 1)
    edge[:, 4] += 0.002
    assert overfitting_probability(edge, parts=8) < 0.02
    trials = noise(61, 5, 3)  # parts of unequal length
    pieces = np.array_split(np.arange(61), 4)
    below = []
    for chosen in combinations(range(4), 2):
        train = np.concatenate([pieces[part] for part in chosen])
        test = np.setdiff1d(np.arange(61), train)
        ratio = [trials[rows].mean(axis=0) / trials[rows].std(axis=0) for rows in (train, test)]
        place = (np.argsort(np.argsort(ratio[1]))[ratio[0].argmax()] + 1) / 6
        below.append(1.0 if place < 0.5 else 0.5 if place == 0.5 else 0.0)
    assert overfitting_probability(trials, parts=4) == pytest.approx(np.mean(below))
    assert overfitting_probability(trials[:, :1], 4) is None, "one trial"
    assert overfitting_probability(trials[:30], 16) is None, "few bars"


@pytest.mark.parametrize(
    ("trials", "chosen", "message"),
    [
        (noise(10, 3), 0, "10 bars: at least 20 are needed"),
        (np.full((30, 2), np.nan), 0, "return of bar 0 in trial 0 is nan"),
        (np.zeros((30, 0)), 0, r"trials have shape \(30, 0\)"),
        (noise(30, 3), 3, "chosen trial is 3: there are 3"),
        (noise(30, 3), -1, "chosen trial is -1"),
    ],
)
def test_verdicts_refuse_what_they_cannot_judge(trials: np.ndarray, chosen: int, message: str):
    with pytest.raises(InputError, match=message):
        judge(trials, chosen, 365.0)


def test_verdicts_on_noise_on_an_edge_and_on_a_choice_that_never_trades():
    trials = noise(1000, 20, 3)
    best = int((trials.mean(axis=0) / trials.std(axis=0)).argmax())
    found = judge(trials, best, 365.0, resamples=400, parts=8)
    assert not found.evidence and found.p > 0.05
    assert found.sentence.startswith("no evidence (SPA p = ")
    assert f"annual Sharpe ratio of {found.detectable:.2f}" in found.sentence
    # About (critical value of the best of 20, 2.8, + 0.84) × √(365 / 1000).
    assert found.detectable == pytest.approx(3.65 * math.sqrt(0.365), rel=0.1)
    assert found.years_needed > found.years
    assert found.overfitting is not None and found.deflated is not None and found.interval is not None
    assert found.interval[0] < 0 < found.interval[1]
    edge = trials.copy()
    edge[:, 7] += 0.002
    found = judge(edge, 7, 365.0, resamples=400, parts=8)
    assert found.evidence and found.p < 0.01
    assert found.sentence.startswith("evidence (SPA p = 0.00")
    assert "best of 20 trials" in found.sentence
    assert found.interval[0] < 0.2 * math.sqrt(365) < found.interval[1]
    assert found.overfitting == pytest.approx(0.0, abs=0.02)
    idle = trials[:100, :3] * [1.0, 0.0, 1.0]
    found = judge(idle, 1, 365.0, resamples=100)
    assert not found.evidence and found.sharpe is None and "never trades" in found.sentence
    assert judge(np.zeros(100), 0, 365.0, resamples=100).p == 1.0


@pytest.mark.parametrize("count", [1, 10])
def test_a_loser_would_have_been_found_by_as_much_as_a_winner(count: int):
    """An edge is found by its size: how bad the chosen one was does not make the smallest detectable one smaller."""
    trials = noise(500, count, 6)
    trials -= trials.mean(axis=0)

    def detectable(statistic: float) -> float:
        moved = trials.copy()
        moved[:, 0] += statistic * moved[:, 0].std() / math.sqrt(500)
        return judge(moved, 0, 365.0, resamples=400, parts=None).detectable

    assert [detectable(each) for each in (-1.5, -3.0, -10.0)] == pytest.approx([detectable(0.5)] * 3)
    if count == 1:
        edge, fresh = detectable(-3.0) / math.sqrt(365) * 0.01, noise(500, 120, 8)
        found = sum(judge(each + edge, 0, 365.0, resamples=200, parts=None).evidence for each in fresh.T)
        assert 0.7 <= found / 120 <= 0.9


@pytest.mark.slow
def test_verdict_errs_as_often_as_it_says_and_finds_what_it_promises():
    runs, wrong, found, held, places = 300, 0, 0, 0, []
    for seed in range(runs):
        trials = noise(600, 20, seed)
        best = int((trials.mean(axis=0) / trials.std(axis=0)).argmax())
        null = judge(trials, best, 365.0, resamples=400, parts=8, seed=seed)
        wrong += null.evidence
        places.append(null.overfitting)
        trials[:, 5] += null.detectable / math.sqrt(365) * 0.01
        best = int((trials.mean(axis=0) / trials.std(axis=0)).argmax())
        edge = judge(trials, best, 365.0, resamples=400, parts=None, seed=seed)
        found += edge.evidence
        held += edge.interval[0] <= (null.detectable if best == 5 else 0.0) <= edge.interval[1]
    assert wrong / runs <= 0.085
    assert found / runs >= 0.75
    assert held / runs >= 0.9
    assert np.mean(places) == pytest.approx(0.5, abs=0.05)


# Forecasts


def test_clark_west_is_a_regression_on_a_constant():
    draw = np.random.default_rng(0)
    outcome, large = draw.normal(size=300), draw.normal(0.0, 0.3, 300)
    gain = outcome**2 - ((outcome - large) ** 2 - large**2)
    plain = OLS(gain, np.ones(300)).fit()
    found = clark_west(outcome, np.zeros(300), large)
    assert found.statistic == pytest.approx(plain.tvalues[0] * math.sqrt(300 / 299), rel=1e-9)
    robust = OLS(gain, np.ones(300)).fit(
        cov_type="HAC", cov_kwds={"maxlags": 11, "kernel": "uniform", "use_correction": False}
    )
    assert clark_west(outcome, np.zeros(300), large, horizon=12).statistic == pytest.approx(robust.tvalues[0])


def test_diebold_mariano_by_hand():
    first = np.array([1.0, 2.0, 3.0, 2.0] * 6)
    second = np.array([2.0, 1.0, 5.0, 4.0] * 6)
    d = first - second  # −1, 1, −2, −2: mean −1; autocovariances 1.5 at lag 0
    lag_1 = float(((d[1:] + 1) * (d[:-1] + 1)).sum()) / 24
    one = diebold_mariano(first, second)
    assert one.statistic == pytest.approx(-1 / math.sqrt(1.5 / 24) * math.sqrt(23 / 24))
    two = diebold_mariano(first, second, horizon=2)
    correction = (24 + 1 - 4 + 2 / 24) / 24
    assert two.statistic == pytest.approx(-1 / math.sqrt((1.5 + 2 * lag_1) / 24) * math.sqrt(correction))
    # Student's t with 23 degrees of freedom: two-sided 5 % is at 2.069, 1 % at 2.807.
    assert one.p < 0.01
    turned = diebold_mariano(second, first)
    assert turned.p == one.p and turned.statistic == -one.statistic


def test_tests_of_forecasts_say_why_there_is_no_number():
    assert "at least 20 are needed" in clark_west(np.zeros(5), np.zeros(5), np.zeros(5)).absent
    assert "equally good" in clark_west(np.ones(50), np.zeros(50), np.zeros(50)).absent
    assert "every bar gives the same value (1)" in diebold_mariano(np.full(50, 3.0), np.full(50, 2.0)).absent
    assert "too few for a horizon of 60" in diebold_mariano(noise(50)[:, 0], np.zeros(50), 60).absent
    with pytest.raises(InputError, match="shapes"):
        diebold_mariano(np.zeros(5), np.zeros(6))
    with pytest.raises(InputError, match="not finite"):
        diebold_mariano(np.full(30, np.nan), np.zeros(30))
