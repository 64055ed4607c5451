"""The benchmark of the backtest: its simulations have the truth that they claim, and its verdicts can fail."""

import math

import numpy as np
import pytest
from commands import Run

from qubic_lab.bench.backtest import (
    GARCH,
    NOISES,
    Noise,
    draw,
    effect_run,
    measure_speed,
    null_run,
    sum_up_effect,
    sum_up_null,
    sum_up_var,
    tail_run,
    trial_returns,
)


@pytest.mark.parametrize("noise", NOISES)
def test_noise_has_no_drift_its_true_deviation_and_signals_that_know_nothing(noise: Noise) -> None:
    returns, signals, deviation = draw(noise, (1, 2), bars=40_000, signals=3)
    assert abs(returns.mean()) < 4 * deviation / math.sqrt(40_000)
    assert returns.std() == pytest.approx(deviation, rel=0.06)
    assert set(np.unique(signals)) == {-1.0, 1.0}
    for signal in signals.T:
        assert abs(np.corrcoef(signal[:-1], returns[1:])[0, 1]) < 0.02
        assert 1.0 / np.mean(np.diff(signal) != 0) == pytest.approx(7.0, abs=1.0)
    again = draw(noise, (1, 2), bars=40_000, signals=3)
    assert np.array_equal(again[0], returns) and not np.array_equal(draw(noise, (1, 3), 40_000, 3)[0], returns)


def test_a_trial_earns_what_its_signal_held_over_the_next_bar() -> None:
    returns, signals, _ = draw("gaussian", (3,), bars=60, signals=2)
    trials = trial_returns(returns, signals)
    np.testing.assert_allclose(trials[1:], signals[:-1] * returns[1:, None], atol=1e-12)
    assert not trials[0].any()


def test_a_run_is_the_same_again_and_others_differ() -> None:
    assert null_run(4, seed=5) == null_run(4, seed=5)
    assert null_run(4, seed=5)[2] != null_run(6, seed=5)[2]
    edge, *marks = effect_run(0, seed=5)
    assert 1.0 < edge < 5.0
    assert all(isinstance(mark, bool) for mark in marks)


def test_limits_are_met_and_missed() -> None:
    good = [(NOISES[number % 2], number < 10, 0.5) for number in range(200)]
    found = sum_up_null(good)
    assert (found.false_rate, found.within, found.pbo_within) == (0.05, True, True)
    assert found.by_noise["gaussian"].runs == 100
    bad = sum_up_null([(noise, number < 30, 0.6) for number, (noise, _, _) in enumerate(good)])
    assert (bad.within, bad.pbo_within) == (False, False)
    seen = sum_up_effect([(2.5, number < 80, number < 90, number < 95) for number in range(100)])
    assert (seen.detected.value, seen.chosen.value, seen.covered.value) == (0.8, 0.9, 0.95)
    assert seen.detected_within and seen.covered_within
    assert not sum_up_effect([(2.5, False, True, number < 80) for number in range(100)]).covered_within
    series: list[tuple[dict[str, tuple[bool, ...]], int]] = [
        ({"GARCH-t": (number < 9, False), "constant normal": (True, number < 79)}, 1) for number in range(100)
    ]
    within = {(row.model, row.level) for row in sum_up_var(series).rows if row.within}
    assert within == {("GARCH-t", 0.05), ("constant normal", 0.01)} and len(sum_up_var(series).rows) == 4
    assert sum_up_var(series).failed_fits == 100


def test_value_at_risk_of_a_constant_normal_is_rejected_on_a_long_series() -> None:
    found, failed = tail_run(0, bars=4_000, seed=3)
    assert found["constant normal"] == (True, True)
    assert failed == 0
    assert sum(GARCH[1:3]) < 1.0


def test_the_speed_verdict_follows_from_the_times() -> None:
    found = measure_speed(bars=3_000, sets=4, set_bars=600, block=2)
    assert found.ratio == pytest.approx(found.pandas_ms / found.set_ms)
    assert found.sets_within == (found.ratio >= 1.0)


def test_the_command_measures_in_processes_and_gives_json(here: Run) -> None:
    found = here("bench backtest --null 40 --effect 6 --var 2 --var-bars 1500 --no-speed --json --seed 1").json
    assert found["null"]["runs"] == 40
    assert found["null"]["low"] <= 0.05
    assert abs(found["null"]["mean_pbo"] - 0.5) < 0.15
    assert found["effect"]["runs"] == 6 and found["effect"]["detected"]["count"] >= 3
    assert len(found["var"]["rows"]) == 4 and found["speed"] is None
