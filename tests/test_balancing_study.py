"""The study of balancers: queues by theory, who knows what and when, equal requests for all, words and pictures."""

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from headlines import told

from qubic_lab.bench.balance import CoordinatorView, NodeLoad, SimulatedNode
from qubic_lab.cluster.balance import BALANCERS, BalancerCandidate
from qubic_lab.errors import InputError
from qubic_lab.studies import balancing as study
from qubic_lab.studies.balancing import BalancingSweep, MeanInterval, RatioInterval, SweepCell
from qubic_lab.studies.balancing_workload import (
    LIMIT_TOKENS,
    MEAN_TOKENS,
    RULES,
    SLOT_TOKENS_PER_S,
    BalancingRun,
    BalancingSetting,
    make_requests,
    make_simulation,
    measure,
    quantile_tokens,
    simulate,
    window_counts,
)
from qubic_lab.studies.style import percent

SMALL = BalancingSetting(nodes=6, requests=30)
CROWD = BalancingSetting(nodes=12, requests=40)


def same(one: BalancingRun, other: BalancingRun) -> bool:
    return np.array_equal(one.node, other.node) and np.array_equal(one.ended_s, other.ended_s)


@pytest.mark.parametrize("tail", [1.1, 3.0])
def test_answers_have_their_mean_and_end_at_the_limit_whatever_the_tail(tail: float) -> None:
    shares = (np.arange(1_000_000) + 0.5) / 1_000_000
    lengths = quantile_tokens(shares, tail)
    assert lengths.mean() == pytest.approx(MEAN_TOKENS, rel=1e-3)
    assert quantile_tokens(np.array([1.0]), tail)[0] == pytest.approx(LIMIT_TOKENS)


def test_every_balancer_gets_the_same_requests_and_a_load_only_moves_them_together() -> None:
    few, many = simulate(SMALL, "two-choices", 3), simulate(SMALL, "least-tokens", 3)
    assert np.array_equal(few.arrived_s, many.arrived_s) and np.array_equal(few.tokens, many.tokens)
    slower_s, idler = make_requests(replace(SMALL, load=0.4), 3)
    assert [each.tokens for each in idler] == few.tokens.tolist()
    assert np.allclose(slower_s, 2 * few.arrived_s)
    _, other = make_requests(replace(SMALL, coordinators=2, knows="estimate"), 3)
    assert [each.tokens for each in other] == few.tokens.tolist()
    assert [each.tokens for each in make_requests(SMALL, 4)[1]] != few.tokens.tolist()


@pytest.mark.parametrize(
    ("knows", "expected"), [("limit", lambda _: LIMIT_TOKENS), ("length", lambda each: each.tokens)]
)
def test_a_balancer_knows_what_the_setting_says(knows: str, expected: Callable[[Any], int]) -> None:
    _, requests = make_requests(replace(SMALL, knows=knows), 0)
    assert [each.expected_tokens for each in requests] == list(map(expected, requests))


def test_two_of_three_estimates_are_right_within_their_factor() -> None:
    _, requests = make_requests(replace(SMALL, knows="estimate", requests=1000), 0)
    within = [abs(math.log(each.expected_tokens / each.tokens)) <= 1.0 for each in requests]
    assert np.mean(within) == pytest.approx(0.683, abs=0.03)


def test_least_tokens_takes_the_soonest_of_all_and_of_equal_ones_the_fastest() -> None:
    draw, rule = random.Random(0), RULES["least-tokens"]()
    speeds = {"slow": 10.0, "fast 0": 30.0, "fast 1": 30.0}
    idle = [BalancerCandidate(name, tokens_per_s=speed) for name, speed in speeds.items()]
    assert {rule.choose(idle, draw)[0] for _ in range(20)} == {"fast 0", "fast 1"}
    busy = [replace(each, outstanding_tokens=tokens) for each, tokens in zip(idle, (90, 300, 280), strict=True)]
    assert rule.choose(busy, draw)[0] == "slow"


def test_drawn_by_speed_each_comes_as_often_as_its_speed_and_the_sooner_one_is_taken() -> None:
    draw, rule = random.Random(0), RULES["two-choices-by-speed"]()
    fast = BalancerCandidate("fast", tokens_per_s=30.0, outstanding_tokens=300)
    both = [BalancerCandidate("slow", tokens_per_s=10.0), fast]
    counts = Counter(rule.choose(both, draw)[0] for _ in range(4000))
    assert counts["fast"] / 4000 == pytest.approx(0.75**2, abs=0.03)  # only where both draws are the fast one


def test_a_node_serves_first_come_first_served_in_the_slot_that_is_free_first() -> None:
    node = SimulatedNode(0, "node", weight=2, slot_tokens_per_s=10.0, slots=2)
    given = ((100, 0.0), (40, 1.0), (20, 2.0), (10, 9.0))
    ends_s = [(started_s, outcome.ended_s) for started_s, outcome in (node.work(*each) for each in given)]
    assert ends_s == [(0.0, 10.0), (1.0, 5.0), (5.0, 7.0), (9.0, 10.0)]


def test_waits_are_those_of_theory_for_one_node_with_one_slot() -> None:
    setting = BalancingSetting(
        nodes=1, speeds=(1,), slots=1, load=0.5, length_tail=3.0, staleness_s=0.0, requests=40_000
    )
    run = simulate(setting, "round-robin", 0)
    service_s = run.tokens / SLOT_TOKENS_PER_S
    expected_s = setting.requests_per_s * (service_s**2).mean() / (2 * (1 - setting.load))  # Pollaczek and Khinchine
    assert (run.started_s - run.arrived_s).mean() == pytest.approx(expected_s, rel=0.05)


def test_a_coordinator_knows_its_own_requests_at_once_and_others_from_the_next_heartbeat_on() -> None:
    node = SimulatedNode(0, "node", weight=1, slot_tokens_per_s=10.0)
    mine, theirs = CoordinatorView([node]), CoordinatorView([node])
    for view, load in ((mine, NodeLoad(1, 100)), (theirs, NodeLoad(1, 70))):
        node.load = node.load.plus(load)
        view.change(node, load, 1)
    assert (mine.candidates[0].outstanding_requests, mine.candidates[0].outstanding_tokens) == (1, 100)
    mine.hear(node)
    assert (mine.candidates[0].outstanding_requests, mine.candidates[0].outstanding_tokens) == (2, 170)
    node.load = node.load.plus(NodeLoad(1, 70), -1)
    theirs.change(node, NodeLoad(1, 70), -1)
    assert (mine.candidates[0].outstanding_tokens, theirs.candidates[0].outstanding_tokens) == (170, 0)
    mine.hear(node)
    assert mine.candidates[0].outstanding_tokens == 100


@pytest.mark.parametrize("staleness_s", [0.0, 5.0])
def test_views_hold_what_the_nodes_hold_when_all_is_told(staleness_s: float) -> None:
    setting = replace(SMALL, staleness_s=staleness_s)
    simulation = make_simulation(setting, "two-choices", 0)
    arrivals_s, requests = make_requests(setting, 0)
    handled = simulation.run(arrivals_s, requests)
    for view in simulation.views:
        for node in simulation.nodes:
            view.hear(node)
        seen = [NodeLoad(each.outstanding_requests, each.outstanding_tokens) for each in view.candidates]
        assert seen == [node.load for node in simulation.nodes]
    unfinished = sum(each.ended_s > arrivals_s[-1] for each in handled)
    assert sum(node.load.requests for node in simulation.nodes) == unfinished > 0
    own = [[view.own[node.number].requests for view in simulation.views] for node in simulation.nodes]
    assert [sum(each) for each in own] == [node.load.requests for node in simulation.nodes]


@pytest.mark.parametrize("balancer", ["two-choices", "least-tokens", "least-connections"])
def test_one_coordinator_knows_everything_whatever_the_heartbeats(balancer: str) -> None:
    alone = replace(SMALL, coordinators=1)
    assert same(simulate(alone, balancer, 0), simulate(replace(alone, staleness_s=0.0), balancer, 0))
    many = simulate(SMALL, balancer, 0)
    assert not same(many, simulate(replace(SMALL, staleness_s=0.0), balancer, 0))


@pytest.mark.parametrize("balancer", RULES)
@pytest.mark.parametrize("change", [{"staleness_s": 1.0}, {"knows": "length"}])
def test_a_run_serves_for_another_setting_only_where_the_balancer_does_not_notice(
    balancer: str, change: dict[str, Any]
) -> None:
    other = replace(SMALL, **change)
    is_shared = study.noticed(SMALL, balancer) == study.noticed(other, balancer)
    assert is_shared == same(simulate(SMALL, balancer, 0), simulate(other, balancer, 0))


def test_old_loads_and_many_coordinators_make_a_herd_of_the_least_loaded_but_not_of_two_choices() -> None:
    shares = {
        (name, staleness_s): study.outcomes(replace(CROWD, staleness_s=staleness_s), name, 0)["herd_share"]
        for name in ("least-tokens", "two-choices")
        for staleness_s in (0.0, 5.0)
    }
    assert shares["least-tokens", 5.0] > 1.5 * shares["least-tokens", 0.0]
    assert shares["least-tokens", 5.0] > 1.5 * shares["two-choices", 5.0]
    assert shares["two-choices", 5.0] < 1.2 * shares["two-choices", 0.0]


def test_a_run_is_measured_without_its_beginning_and_its_broken_last_window() -> None:
    setting = BalancingSetting(nodes=2, speeds=(2, 1), requests=5)
    arrived_s = np.array([0.0, 1.0, 10.0, 11.0, 12.0, 15.0, 16.0, 20.0, 21.0, 22.0])
    tokens = np.full(10, 200)
    node = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1, 1])
    run = BalancingRun(arrived_s, arrived_s + 1, arrived_s + np.where(node == 0, 11.0, 21.0), tokens, node)
    assert window_counts(run, setting).tolist() == [[2, 1], [2, 0]]
    found = measure(run, setting)
    assert found["herd_share"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["time_mean_s"] == pytest.approx((4 * 11 + 4 * 21) / 8)
    assert found["wait_mean_s"] == pytest.approx(1.0)
    assert found["slowdown_mean"] == pytest.approx(found["time_mean_s"] / 10)  # 200 tokens at 20 tokens/s
    assert found["imbalance"] == pytest.approx(1 / 3)  # 800 tokens each: 400 and 800 units of work


def test_evenly_drawn_pairs_cannot_carry_more_than_their_slowest_nodes_can() -> None:
    assert study.most_load([1, 1, 1]) == 1.0
    assert study.most_load([3, 2, 1]) == 1.0
    assert study.most_load([10, 3, 1]) == pytest.approx(4 / 14 * 3)  # one of three pairs is the slower two
    assert study.most_load([10, 3, 1] * 10) == pytest.approx(40 / 140 / (190 / 435))


def test_intervals_are_students_and_ratios_are_paired() -> None:
    found = study.mean_interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.high - 2.0 == pytest.approx(2.0 - found.low) == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    always_double = study.ratio_interval([2.0, 20.0, 200.0], [1.0, 10.0, 100.0])
    assert (always_double.ratio, always_double.low, always_double.high) == pytest.approx((2.0, 2.0, 2.0))


def make_cell(value: Any, balancer: str, ratio: float = 1.0, p99: float = 8.0) -> SweepCell:
    around = MeanInterval(p99, p99 - 1, p99 + 1)
    against = RatioInterval(ratio, ratio * 0.9, ratio * 1.1)
    outcomes = {"slowdown_p99": around, "time_p99_s": around, "herd_share": MeanInterval(0.3, 0.2, 0.4)}
    return SweepCell(value, balancer, {"slowdown_p99": (p99, p99)}, outcomes, dict.fromkeys(study.COMPARED, against))


def make_sweeps(oldest_ratio: float = 1.7, *nodes: SweepCell) -> list[BalancingSweep]:
    two, least, by_speed = "two-choices", "least-tokens", "two-choices-by-speed"
    known, skewed = (3, 2, 1), (10, 3, 1)
    stale = [(0.0, two), (0.0, least, 0.5), (5.0, two), (5.0, least, oldest_ratio)]
    speeds = [(known, two), (known, by_speed, 0.95), (skewed, two), (skewed, by_speed, 0.2)]
    cells = {
        "staleness_s": [make_cell(*each) for each in stale],
        "speeds": [*(make_cell(*each) for each in speeds), make_cell(skewed, "round-robin", 1.05)],
        "knows": [make_cell("limit", two), make_cell("length", two, p99=16.0)],
        "nodes": nodes or [make_cell(3, two, p99=9.0), make_cell(3000, two)],
    }
    return [BalancingSweep(factor, 2, BalancingSetting(), tuple(each)) for factor, each in cells.items()]


def test_findings_own_where_two_choices_are_not_the_best_and_where_nothing_was_shown() -> None:
    found = study.findings(make_sweeps())
    assert found[0].figure() == "8.0 times the time alone (7.0\N{NO-BREAK SPACE}…\N{NO-BREAK SPACE}9.0)"
    assert told(found, "loss") == [
        "With two-choices, the p99 of slowdown is 8.0 (2 seeds).",
        "The simulation has 30 nodes, speeds 3:2:1, 4 slots a node, 10 coordinators, heartbeats every 5 s, load 0.8.",
        "As multiples of its p99, the others have: least-tokens 1.70 (1.53 to 1.87).",
        f"The busiest node gets this share of the requests of 5 s: two-choices {percent(0.3)}, least-tokens "
        f"{percent(0.3)}.",
        "These beat two-choices (p99 as a multiple of its p99): least-tokens 0.50 (0.45 to 0.55) with fresh loads.",
        "No difference from two-choices was shown: round-robin 1.05 (0.95 to 1.16) with speeds 10:3:1.",
        "Drawn by speed, with speeds 3:2:1, two choices have 0.95 (0.85 to 1.04) times the p99 and 0.95 (0.85 to 1.04) "
        "times the mean time.",
        "Drawn by speed, with speeds 10:3:1, two choices have 0.20 (0.18 to 0.22) times the p99 and 0.20 (0.18 to "
        "0.22) times the mean time.",
        "Drawn evenly, with speeds 10:3:1, two choices cannot carry more than load 0.65.",
        "If two-choices knows more than an answer's limit, its p99 changes by this factor: length 2.00 (2.00 to 2.00).",
        "The p99 of slowdown with 3 and with 3,000 nodes is: two-choices 9.0 and 8.0.",
    ]
    better = study.findings(make_sweeps(0.4, make_cell(30, "two-choices"), make_cell(30, "least-tokens", 0.4)))[4]
    assert str(better).count("least-tokens") == 2  # fresh loads, and once the setting that all sweeps share


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(0.5, "better"), (0.95, "no difference shown"), (1.05, "no difference shown"), (2.0, "worse")],
)
def test_a_verdict_needs_an_interval_that_leaves_out_1(ratio: float, verdict: str) -> None:
    assert make_cell(5.0, "least-tokens", ratio).verdict == verdict
    assert make_cell(5.0, "two-choices", ratio).verdict == ""


def test_a_sweep_has_a_cell_for_each_value_and_balancer() -> None:
    lines: list[tuple[str, int, int]] = []
    found = study.sweep(
        SMALL, "speeds", [[1], [3, 1]], ["two-choices", "round-robin"], 2, lambda *line: lines.append(line)
    )
    cells = [(speeds, balancer) for speeds in ((1,), (3, 1)) for balancer in ("two-choices", "round-robin")]
    assert [(cell.value, cell.balancer) for cell in found.cells] == cells
    assert lines[0] == ("equal speeds, two-choices", 0, 4) and lines[-1] == ("speeds 3:1, round-robin", 3, 4)
    runs = [measure(simulate(replace(SMALL, speeds=(3, 1)), "round-robin", seed), SMALL) for seed in range(2)]
    assert found.find([3, 1], "round-robin").samples["time_p99_s"] == tuple(run["time_p99_s"] for run in runs)
    rows = study.cell_rows(found)
    assert [row["speeds"] for row in rows] == ["1", "1", "3:1", "3:1"]
    assert rows[0]["ratio"] == 1.0 and rows[0]["verdict"] == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BalancingSetting(nodes=0), "nodes is 0: it must be at least 1"),
        (lambda: BalancingSetting(speeds=()), r"speeds are \(\)"),
        (lambda: BalancingSetting(load=1.0), "load is 1.0: it must lie between 0 and 1"),
        (lambda: BalancingSetting(staleness_s=-1.0), "staleness_s is -1.0"),
        (lambda: BalancingSetting(length_tail=1.0), "length_tail is 1.0"),
        (lambda: BalancingSetting(knows="lenght"), "unknown knows 'lenght': did you mean 'length'"),
        (lambda: simulate(SMALL, "least-token", 0), "unknown balancer 'least-token': did you mean 'least-tokens'"),
        (lambda: study.sweep(SMALL, "loads", [0.5], ["two-choices"], 2), "unknown factor 'loads': did you mean 'load'"),
        (lambda: study.sweep(SMALL, "load", [0.5], ["round-robin"], 2), "unknown balancer 'two-choices'"),
        (lambda: study.sweep(SMALL, "load", [0.5], ["two-choices"], 1), "seeds is 1"),
        (lambda: make_sweeps()[0].find(5.0, "round-robin"), "round-robin was not run with heartbeats every 5 s"),
    ],
)
def test_what_cannot_be_simulated_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_curves_name_their_units_and_have_a_line_for_each_balancer() -> None:
    assert set(study.LOOKS) == set(RULES) > set(BALANCERS)
    assert len(set(study.LOOKS.values())) == len(RULES)
    figure = study.curves(make_sweeps()[0])
    times, slowdowns = figure.axes
    assert times.get_ylabel() == "p99 of time (s)" and slowdowns.get_xlabel() == "time between heartbeats (s)"
    assert [tick.get_text() for tick in slowdowns.get_xticklabels()] == ["0", "5"]
    assert times.get_legend_handles_labels()[1] == ["two-choices", "least-tokens"]
