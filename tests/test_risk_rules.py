"""Measures of risk use their past alone; levels and warnings follow their rules; scores of warnings add up."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bar_series import joined
from hypothesis import given, settings
from hypothesis import strategies as st
from strict_warnings import WARNINGS_ARE_ERRORS

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.bars import PRICES, Bars
from qubic_lab.oracle.model.timestamps import HOUR_US
from qubic_lab.oracle.risk.measures import LEAST_BARS, LEVELS, MEASURES, RiskInputs, amihud, compute_measure
from qubic_lab.oracle.risk.models import (
    ESTIMATORS,
    TailForecast,
    drawdown,
    historical,
    normal,
    realised_volatility,
    recent_drawdown,
)
from qubic_lab.oracle.risk.rules import (
    FORGOTTEN_BARS,
    Assessment,
    RiskEvidence,
    RiskRule,
    assess,
    levels_of,
    read_rules,
)
from qubic_lab.oracle.risk.warning_scores import compare_warnings, evaluate_warnings, find_falls, volatility_ranks

pytestmark = WARNINGS_ARE_ERRORS
SMALL: dict[str, dict[str, int]] = {
    name: {key: {"bars": 6, "usual_bars": 20}.get(key, value) for key, value in each.parameters.items()}
    for name, each in MEASURES.items()
    if name != "garch_ratio"
} | {"loss_over_var": {"bars": 100}}


def random_inputs(seed: int, bars: int) -> RiskInputs:
    """Return a random market with gaps in volume, sentiment and the other asset."""
    draw = np.random.default_rng(seed)
    shocks = draw.standard_t(4, bars) * 0.01
    close = 1e-6 * np.exp(np.cumsum(shocks))
    volume = draw.lognormal(3.0, 1.0, bars)
    volume[draw.random(bars) < 0.01] = np.nan
    sentiment = draw.normal(size=bars)
    sentiment[draw.random(bars) < 0.3] = np.nan
    other = 5e4 * np.exp(np.cumsum(0.5 * shocks + draw.normal(0.0, 0.01, bars)))
    other[draw.random(bars) < 0.01] = np.nan
    return RiskInputs(joined(close, np.exp(draw.random(bars) * 0.01), volume), sentiment, other)


def tail_of(function: Callable[..., TailForecast], *arguments: Any) -> Callable[[RiskInputs], np.ndarray]:
    def both(market: RiskInputs) -> np.ndarray:
        found = function(market.bars.log_returns, *arguments)
        return np.stack([found.var, found.es], axis=1)

    return both


CAUSAL: dict[str, tuple[Callable[[RiskInputs], np.ndarray], int]] = {
    **{
        name: ((lambda m, n=name: compute_measure(n, m, SMALL[n]).values), MEASURES[name].warm_up(**SMALL[name]))
        for name in SMALL
    },
    **{
        name: ((lambda m, n=name: realised_volatility(m.bars, 8, n)), 7 + (name == "close-to-close"))
        for name in ESTIMATORS
    },
    "drawdown": (lambda m: drawdown(m.bars.close), 0),
    "recent_drawdown": (lambda m: recent_drawdown(m.bars.close, 9), 8),
    "amihud": (lambda m: amihud(m.bars, 5), 5),
    "historical": (tail_of(historical, 0.05, 40), 40),
    "normal, all so far": (tail_of(normal, 0.05), 20),
    "levels": (lambda m: assess(m, small_rules()).levels.astype(float), 0),
}
"""Every causal function that is cheap, with its warm-up."""


def small_rules() -> tuple[RiskRule, ...]:
    return tuple(RiskRule(name, name, 0.8, 1.2, 1.6, SMALL[name], hold=2) for name in SMALL)


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return first.shape == second.shape and np.array_equal(first, second, equal_nan=True)


@pytest.mark.parametrize("name", CAUSAL)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 259))
@settings(max_examples=6)
def test_later_bars_change_nothing(name: str, seed: int, cut: int):
    function = CAUSAL[name][0]
    market = random_inputs(seed, 260)
    values = function(market)
    assert same(function(market.first(cut)), values[:cut])
    other = random_inputs(seed + 1, 260)

    def scrambled(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        return np.concatenate([before[:cut], 3.0 * after[cut:]])

    columns = {key: scrambled(getattr(market.bars, key), getattr(other.bars, key)) for key in (*PRICES, "volume")}
    changed = RiskInputs(
        Bars.of(market.bars.closed_us, columns.pop("close"), **columns, frame_us=HOUR_US),
        scrambled(market.sentiment, other.sentiment),
        scrambled(market.other, other.other),
    )
    assert same(function(changed)[:cut], values[:cut])


@pytest.mark.parametrize("name", CAUSAL)
def test_warm_ups_are_as_declared(name: str):
    function, warm_up = CAUSAL[name]
    market = random_inputs(3, 260)
    draw = np.random.default_rng(0)
    other = np.exp(np.cumsum(draw.normal(0, 0.01, 260)))
    whole = RiskInputs(joined(market.bars.close, 1.002, 10.0), draw.normal(size=260), other)  # without gaps
    values = function(whole)
    assert np.isnan(values[:warm_up]).all()
    assert not np.isnan(values[warm_up:]).any()


def test_garch_measure_at_a_cut():
    assert set(MEASURES) - set(CAUSAL) == {"garch_ratio"}, "the others are tested above"
    market = random_inputs(5, 340)
    parameters = {"usual_bars": 20, "refit_bars": 60, "window_bars": 300}
    whole = compute_measure("garch_ratio", market, parameters)
    assert np.isnan(whole.values[: whole.warm_up]).all() and not np.isnan(whole.values[whole.warm_up :]).any()
    assert same(compute_measure("garch_ratio", market.first(320), parameters).values, whole.values[:320])


# Other measures


def test_drawdown_amihud_and_falls_by_hand():
    values = np.array([1.0, 2.0, 1.5, 1.0, 2.0, 3.0])
    assert drawdown(values).tolist() == [0.0, 0.0, 0.25, 0.5, 0.0, 0.0]
    assert drawdown(np.zeros(0)).tolist() == []
    assert recent_drawdown(np.array([4.0, 2.0, 1.0, 1.0]), 2)[1:].tolist() == [0.5, 0.5, 0.0]
    bars = joined(np.exp([0.0, 0.01, 0.03]), volume=[5.0, 2e6, 1e6])
    expected = (0.01 / (2 * math.exp(0.01)) + 0.02 / math.exp(0.03)) / 2
    assert amihud(bars, 2)[-1] == pytest.approx(expected)
    assert np.isnan(amihud(joined([1.0, 2.0, 3.0], volume=[1.0, 0.0, np.nan]), 1)).all()
    close = [100, 100, 95, 89, 85, 80, 81, 100, 100, 100, 100, 88, 88]
    assert find_falls(joined(close), 4, 0.1).tolist() == [3, 11], "each is found once"
    with pytest.raises(InputError, match="drop is 10"):
        find_falls(joined(close), 4, 10)


def test_measures_rise_with_what_they_are_about():
    draw = np.random.default_rng(0)
    calm = draw.normal(0.0, 0.01, 500)
    wild = np.append(calm[:480], draw.normal(0.0, 0.04, 20))
    parameters = {"bars": 10, "usual_bars": 200}

    def last(name: str, returns: np.ndarray, **others: Any) -> float:
        market = RiskInputs(joined(np.exp(np.cumsum(returns)), volume=others.pop("volume", 10.0)), **others)
        chosen = {key: parameters.get(key, value) for key, value in MEASURES[name].parameters.items()}
        return float(compute_measure(name, market, chosen).values[-1])

    assert last("volatility_ratio", wild) > 2.5 > 1.6 > last("volatility_ratio", calm)
    crash = calm.copy()
    crash[-5:] -= 0.05
    assert last("drawdown_in_deviations", crash) > 4 > last("drawdown_in_deviations", calm)
    assert last("illiquidity_ratio", wild) > 2
    busy = np.append(np.full(490, 10.0), np.full(10, 50.0))
    assert last("volume_ratio", calm, volume=busy) == pytest.approx(5.0)
    mood = draw.normal(0.0, 1.0, 500)
    gloom = np.append(mood[:490], mood[490:] - 3.0)
    assert last("sentiment_fall", calm, sentiment=gloom) > 5 > abs(last("sentiment_fall", calm, sentiment=mood))
    together = np.exp(np.cumsum(calm + draw.normal(0.0, 0.003, 500)))
    apart = np.append(together[:475], together[474] * np.exp(np.cumsum(draw.normal(0.0, 0.01, 25))))
    with_it = last("correlation_break", calm, other=together)
    assert last("correlation_break", calm, other=apart) > 2.5 > with_it


@pytest.mark.parametrize("name", MEASURES)
def test_measures_without_data_are_absent_with_the_reason_and_their_parameters_are_checked(name: str):
    chosen = SMALL.get(name, {"usual_bars": 20})
    short = compute_measure(name, RiskInputs(joined([1.0, 2.0], volume=10.0), np.zeros(2), np.ones(2)), chosen)
    assert np.isnan(short.values).all() and "2 bars: it needs" in short.missing
    constant = RiskInputs(joined(np.ones(600), volume=10.0), np.zeros(600), np.ones(600))
    found = compute_measure(name, constant, chosen)
    assert found.missing or name in ("volume_ratio",)
    each = MEASURES[name]
    shortest = {parameter: each.least.get(parameter, LEAST_BARS) for parameter in each.parameters}
    for parameter, bars in shortest.items():
        with pytest.raises(InputError, match=f"{parameter} of {name} is {bars - 1}: it must be at least {bars}"):
            rule(measure=name, parameters={parameter: bars - 1})
    if name == "garch_ratio":
        shortest["refit_bars"] = 100
    compute_measure(name, random_inputs(0, 400), shortest)  # the least parameters that are accepted can be used
    if each.needs:
        bare = RiskInputs(joined(np.ones(600)))
        assert "is known" in compute_measure(name, bare, chosen).missing


# Rules and warnings


def rule(**changes: Any) -> RiskRule:
    return RiskRule(**{"name": "r", "measure": "volatility_ratio", "watch": 1, "warning": 2, "alarm": 4, **changes})


NAN, SILENT = math.nan, [math.nan] * FORGOTTEN_BARS


@pytest.mark.parametrize(
    ("values", "expected", "changes"),
    [
        ([0, 1, 2, 4], [0, 1, 2, 3], {"hold": 1}),
        ([0, 5, 0, 0, 0], [0, 3, 3, 3, 0], {"hold": 3}),
        ([2, 1.85, 1.85, 1.7, 1.7, 1.7], [2, 2, 2, 2, 1, 1], {"clear": 0.9, "hold": 2}),
        ([2, 0, 2, 0, 2], [2, 2, 2, 2, 2], {"hold": 2}),  # it flickers less than its measure
        ([4, NAN, NAN, 0, 0], [3, 3, 3, 3, 0], {"hold": 2}),
        ([NAN, NAN], [0, 0], {}),
        ([4, *SILENT, 2, 0], [3] * FORGOTTEN_BARS + [0, 2, 2], {"hold": 2}),
        ([4, *SILENT[1:], 0, 0], [3] * (FORGOTTEN_BARS + 1) + [0], {"hold": 2}),
    ],
)
def test_levels_rise_at_once_fall_late_and_end_without_values(
    values: list[float], expected: list[int], changes: dict[str, Any]
):
    assert levels_of(rule(**changes), np.array(values, np.float64)).tolist() == expected


ENTRY = {"name": "a", "measure": "volume_ratio", "watch": 1, "warning": 2, "alarm": 4}


def entry(**changes: Any) -> str:
    return json.dumps({"rules": [ENTRY | changes]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: []", "at least one rule"),
        ("rule: [a]", "unknown name 'rule': did you mean 'rules'"),
        (entry(measure="volume_ration"), "did you mean 'volume_ratio'"),
        (entry(holds=2), "did you mean 'hold'"),
        (entry(watch=3), "must rise"),
        (entry(clear=2), "clear is 2"),
        (entry(hold=0), "hold is 0"),
        (entry(parameters={"bar": 2}), "'bars'"),
        (json.dumps({"rules": [ENTRY, ENTRY]}), "two rules are called 'a'"),
    ],
)
def test_wrong_rules_are_refused(text: str, message: str, tmp_path: Path):
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match="rules.yaml.*" + message):
        read_rules(file)
    with pytest.raises(InputError, match=r"none\.yaml cannot be read"):
        read_rules(tmp_path / "none.yaml")


def storm() -> tuple[RiskInputs, Assessment]:
    """Return a market that is calm for 300 bars, then wild and falling, and its assessment."""
    draw = np.random.default_rng(0)
    returns = np.append(draw.normal(0.0, 0.005, 300), draw.normal(-0.01, 0.03, 40))
    market = RiskInputs(joined(np.exp(np.cumsum(returns))))
    small = {"bars": 10, "usual_bars": 100}
    rules = (
        RiskRule("volatility", "volatility_ratio", 1.7, 2.5, 3.5, small),
        RiskRule("fall", "drawdown_in_deviations", 1.5, 2.5, 4.0, small),
        RiskRule("mood", "sentiment_fall", 1.5, 2.5, 4.0, small),
    )
    return market, assess(market, rules)


def test_warnings_bring_their_evidence():
    market, found = storm()
    assert found.missing == {"mood": "no sentiment is known"}
    assert (found.warm_up, found.settled) == (100, 119)
    assert found.levels[:300].max() < found.levels[300:].max() == 3
    raised = found.warnings("warning")
    assert len(raised) >= 2 and all(each.level in ("warning", "alarm") for each in raised)
    for each in found.warnings():
        assert LEVELS.index(each.level) > LEVELS.index(each.before)
        assert each.evidence and each.at_us == market.bars.closed_us[each.bar]
        for evidence in each.evidence:
            assert evidence.level == each.level
        # What has raised the level now is at its threshold or above.
        assert any(evidence.value >= evidence.threshold for evidence in each.evidence if evidence.value is not None)
    first = found.warnings("alarm")[0]
    assert 300 <= first.bar < 325
    assert found.at(0).level == "calm" and found.at(0).evidence == ()
    assert found.at(-1).bar == 339
    fall = RiskRule("fall", "drawdown_in_deviations", 1.0, 1.75, 2.5)
    above, below, unknown = (RiskEvidence.of(fall, 2, value).text for value in (2.0, 0.5, math.nan))
    assert above == "fall: 2.00 deviations (warning from 1.75)"
    assert "0.50 deviations (warning from 1.75, not left yet)" in below and "fall: not known at this bar" in unknown


def test_ranks_of_volatility_rise_with_it_and_use_the_past_alone():
    market, _ = storm()
    ranks = volatility_ranks(market.bars, 10, 100)
    assert np.isnan(ranks[:110]).all() and not np.isnan(ranks[110:]).any()
    assert ranks[300:320].max() == 100 and ranks.min(where=~np.isnan(ranks), initial=100) < 10
    assert same(volatility_ranks(market.bars.slice(0, 315), 10, 100), ranks[:315])


def test_scores_of_warnings_alone_and_beside_the_naive_rule_by_hand():
    hour, month = HOUR_US, 730 * HOUR_US
    events = np.array([100, 200, 400]) * hour
    # 95 and 97 are one standing warning, right; 300 is false; 390 is right; 200 comes with its event: too late.
    raised = np.array([95, 97, 200, 300, 390]) * hour
    found = evaluate_warnings(raised, events, 0, month, 10 * hour)
    assert (found.warnings, found.right, found.falls, found.found) == (4, 2, 3, 2)
    assert found.precision.value == 0.5 and found.recall.value == pytest.approx(2 / 3)
    assert found.lead_h.value == pytest.approx(7.5)  # 5 and 10 hours
    assert found.false_alarms_a_month.value == pytest.approx(2 / (720 / 730))
    assert found.precision_by_chance == pytest.approx(30 / 720)
    # 95 to 107, 200 to 210, 300 to 310 and 390 to 400.
    assert found.recall_by_chance == pytest.approx(42 / 730)
    assert found.precision.low < 0.5 < found.precision.high
    # Garwood: 2 events are 0.2422 to 7.2247.
    assert found.false_alarms_a_month.low == pytest.approx(0.2422 / (720 / 730), abs=1e-3)
    assert found.false_alarms_a_month.high == pytest.approx(7.2247 / (720 / 730), abs=1e-3)
    nothing = evaluate_warnings([], [], 0, month, hour)
    assert nothing.precision.value is None and nothing.recall.value is None and nothing.lead_h.value is None
    assert nothing.false_alarms_a_month.value == 0.0 and nothing.precision_by_chance == 0.0
    events = np.arange(100, 1000, 100) * hour
    beside = compare_warnings(events - 3 * hour, events[:2] - hour, events, 0, 1100 * hour, 10 * hour)
    assert (beside.only_ours, beside.only_naive, beside.naive.found) == (7, 0, 2)
    assert (beside.ours.recall.value, beside.ours.right) == (1.0, 9)
    assert (beside.p, beside.months) == pytest.approx((2 / 2**7, 1100 / 730))
