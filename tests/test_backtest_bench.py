"""The benchmark of the backtest: its simulations have the truth that they claim, and its verdicts can fail."""

import math
from pathlib import Path

import numpy as np
import pytest
from commands import Run

from qubic_lab.bench.backtest import effect_run, measure_speed, null_run, sum_up_effect, sum_up_null
from qubic_lab.bench.processes import DEVIATION, GARCH, LONG_SHARE, PROCESSES, draw, simulated_market, trial_returns
from qubic_lab.bench.tails import REFIT_BARS, file_tails, sum_up_var, tail_run
from qubic_lab.errors import InputError
from qubic_lab.oracle.backtest.engine import simulate
from qubic_lab.oracle.model.timestamps import HOUR_US, iso
from qubic_lab.oracle.risk.forecast_tests import evaluate_models
from qubic_lab.oracle.risk.models import garch_forecast, simulate_garch


@pytest.mark.parametrize("process", PROCESSES)
def test_noise_has_no_drift_its_true_deviation_and_signals_that_know_nothing(process: str) -> None:
    bars = 60_000
    returns, signals = draw(process, (1, 2), bars, signals=4)
    memory = {"ar0.3": 1.36, "regimes": 1.3}.get(process, 1.0)  # root of the long-run variance over the variance
    assert abs(returns.mean()) < 4 * memory * DEVIATION / math.sqrt(bars)
    assert returns.std() == pytest.approx(DEVIATION, rel=0.15 if process in ("garch-t", "t3") else 0.06)  # heavy tails
    found = float(np.corrcoef(returns[1:], returns[:-1])[0, 1])
    assert found == pytest.approx({"ar0.3": 0.3, "ar-0.3": -0.3}.get(process, 0.0), abs=0.05)
    assert set(np.unique(signals[:, ::2])) == {-1.0, 1.0} and set(np.unique(signals[:, 1::2])) == {0.0, 1.0}
    assert signals[:, 1::2].mean() == pytest.approx(LONG_SHARE, abs=0.03)
    for signal in signals.T:
        assert abs(np.corrcoef(signal[:-1], returns[1:])[0, 1]) < 0.03
    lasts = [1.0 / np.mean(np.diff(signals[:, number]) != 0) for number in (0, 2)]
    assert lasts == [pytest.approx(7.0, abs=1.0), pytest.approx(16.0, abs=2.0)]
    again, other = draw(process, (1, 2), bars, 4), draw(process, (1, 3), bars, 4)
    assert np.array_equal(again[0], returns) and not np.array_equal(other[0], returns)


def test_a_trial_earns_what_its_account_does() -> None:
    returns, signals = draw("gaussian", (3,), bars=60, signals=2)
    market, trials = simulated_market(returns), trial_returns(returns, signals)
    for signal, trial in zip(signals.T, trials.T, strict=True):
        account = simulate(market, signal, rebalance="always")
        np.testing.assert_allclose(trial, account.net_returns, atol=1e-12)


def test_a_run_is_the_same_again_and_others_differ() -> None:
    assert null_run(4, "ar0.3", 250, seed=5) == null_run(4, "ar0.3", 250, seed=5)
    assert null_run(4, seed=5)[2] != null_run(6, seed=5)[2]
    edge, *marks = effect_run(0, seed=5)
    assert 1.0 < edge < 5.0
    assert all(isinstance(mark, bool) for mark in marks)


def test_limits_are_met_and_missed() -> None:
    found = sum_up_null("gaussian", 250, [(number < 10, number < 20, 0.5) for number in range(200)])
    assert (found.false.value, found.against_cash.value, found.within, found.pbo_within) == (0.05, 0.1, True, True)
    bad = sum_up_null("gaussian", 250, [(number < 30, True, 0.6) for number in range(200)])
    assert (bad.within, bad.pbo_within) == (False, False)
    seen = sum_up_effect([(2.5, number < 80, number < 90, number < 95) for number in range(100)])
    assert (seen.detected.value, seen.chosen.value, seen.covered.value) == (0.8, 0.9, 0.95)
    assert seen.detected_within and seen.covered_within
    assert not sum_up_effect([(2.5, False, True, number < 80) for number in range(100)]).covered_within
    series: list[tuple[dict[str, tuple[bool, ...]], int]] = [
        ({"GARCH-t": (number < 15, number < 9), "constant normal": (True, number < 79)}, 1) for number in range(100)
    ]
    within = {(row.model, row.level) for row in sum_up_var(series).rows if row.within}
    assert within == {("GARCH-t", 0.05), ("constant normal", 0.01)} and len(sum_up_var(series).rows) == 4
    assert sum_up_var(series).failed_fits == 100


def test_value_at_risk_of_a_constant_normal_is_rejected_on_a_long_series() -> None:
    found, failed = tail_run(0, bars=4_000, seed=3)
    assert found["constant normal"] == (True, True)
    assert failed == 0


def test_value_at_risk_on_a_file_is_tested_as_on_its_returns(tmp_path: Path) -> None:
    returns, _ = simulate_garch(1_000, *GARCH, seed=2)
    close = 100.0 * np.exp(np.cumsum(returns))
    file = tmp_path / "hours.csv"
    rows = [
        f"{iso(int(hour) * HOUR_US)},{price:.9f}" for hour, price in zip(range(400_000, 401_000), close, strict=True)
    ]
    lines = [f"{at},{price},{price},{price},{price}" for at, price in (row.split(",") for row in rows)]
    file.write_text("\n".join(["time,open,high,low,close", *lines]))
    found = {(row.model, row.level): row for row in file_tails(0, (str(file),))}
    assert len(found) == 8
    given = np.append(np.nan, np.diff(np.log(close)))
    (expected,) = evaluate_models(given, garch_forecast(given, REFIT_BARS), (0.05,), 500, ("filtered historical",))
    row = found["filtered historical", 0.05]
    assert (row.bars, row.beyond) == (expected.test.bars, expected.test.violations) != (0, 0)
    assert row.christoffersen_p == pytest.approx(expected.test.conditional.p, abs=1e-6)
    assert row.fit == (min(row.kupiec_p, row.christoffersen_p) >= 0.05)
    file.write_text("\n".join(["time,open,high,low,close", *lines[:800]]))
    with pytest.raises(InputError, match="800 bars: tests of value at risk need 852"):
        file_tails(0, (str(file),))


def test_the_speed_verdict_follows_from_the_times() -> None:
    found = measure_speed(bars=3_000, sets=4, set_bars=600, block=2)
    assert found.ratio == pytest.approx(found.pandas_ms / found.set_ms)
    assert found.sets_within == (found.ratio >= 1.0)


def test_the_command_measures_in_processes_and_gives_json(here: Run) -> None:
    command = (
        "bench backtest --null 20 --process gaussian,ar0.3 --bars 250 --effect 6 --var 2 --var-bars 1500 --no-speed"
    )
    found = here(f"{command} --json --seed 1").json
    assert [(row["process"], row["bars"], row["false"]["runs"]) for row in found["null"]["rows"]] == [
        ("gaussian", 250, 20),
        ("ar0.3", 250, 20),
    ]
    for row in found["null"]["rows"]:
        assert row["false"]["low"] <= 0.05 and row["false"]["count"] <= row["against_cash"]["count"]
        assert abs(row["mean_pbo"] - 0.5) < 0.15
    assert found["effect"]["runs"] == 6 and found["effect"]["detected"]["count"] >= 3
    assert len(found["var"]["rows"]) == 6 and found["speed"] is None
