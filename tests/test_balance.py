"""Balancers keep what they promise and never choose what a gate holds back; the benchmark on simulated time."""

import json
import random
from collections import Counter
from collections.abc import Callable, MutableSequence, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.bench.balance import (
    BalancerShare,
    HandledRequest,
    Outage,
    OutageEffect,
    SimulatedNode,
    bench_balance,
    effect_of,
    node_id,
    share_of,
    simulate,
)
from qubic_lab.cli.main import run
from qubic_lab.cluster.balance import (
    BALANCERS,
    Balancer,
    BalancerCandidate,
    LeastConnections,
    ResourceAware,
    RoundRobin,
    TwoChoices,
    WeightedRoundRobin,
    make_balancer,
)
from qubic_lab.cluster.health import Outcome
from qubic_lab.errors import BusyError, InputError

names = st.sampled_from(sorted(BALANCERS))
seeds = st.integers(0, 2**32)
THREE = [BalancerCandidate("a"), BalancerCandidate("b"), BalancerCandidate("c")]


@st.composite
def candidate_lists(draw: st.DrawFn, smallest: int = 1, gated: bool = True) -> list[BalancerCandidate]:
    """Candidates of any load, weight, speed and score, some of them gated."""
    return [
        BalancerCandidate(
            id=node_id(number),
            weight=draw(st.integers(1, 9)),
            outstanding_requests=draw(st.integers(0, 5)),
            outstanding_tokens=draw(st.integers(0, 5000)),
            tokens_per_s=draw(st.floats(1.0, 1000.0)),
            score=draw(st.floats(0.0, 100.0)),
            available=not gated or draw(st.booleans()),
        )
        for number in range(draw(st.integers(smallest, 8)))
    ]


def choices(balancer: Balancer, candidates: Sequence[BalancerCandidate], number: int, seed: int = 0) -> list[str]:
    """The ids of so many choices in a row."""
    draw, chosen = random.Random(seed), []
    for _ in range(number):
        each, balancer = balancer.choose(candidates, draw)
        chosen.append(each)
    return chosen


class NotingRandom(random.Random):
    """A random generator that keeps what it drew last."""

    def sample(self, population: Any, k: int, *, counts: Any = None) -> list[Any]:
        self.drawn: MutableSequence[Any] = super().sample(population, k, counts=counts)
        return list(self.drawn)


@given(names, candidate_lists(), seeds)
def test_no_gated_replica_is_chosen_and_a_seed_decides(
    name: str, candidates: list[BalancerCandidate], seed: int
) -> None:
    free = {each.id for each in candidates if each.available}
    if free:
        chosen = choices(make_balancer(name), candidates, 12, seed)
        assert set(chosen) <= free
        assert choices(make_balancer(name), candidates, 12, seed) == chosen
    else:
        with pytest.raises(BusyError, match=f"none of {len(candidates)} replicas"):
            choices(make_balancer(name), candidates, 1, seed)


@given(candidate_lists(gated=False), st.integers(0, 60))
def test_round_robin_is_even_within_1_after_any_number(candidates: list[BalancerCandidate], number: int) -> None:
    counts = Counter({each.id: 0 for each in candidates})
    counts.update(choices(RoundRobin(), candidates, number))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_round_robin_goes_on_where_it_was_when_replicas_come_and_go() -> None:
    draw = random.Random(0)
    _, balancer = RoundRobin().choose(THREE, draw)
    assert balancer.choose([THREE[0], replace(THREE[1], available=False), THREE[2]], draw)[0] == "c"
    assert balancer.choose([BalancerCandidate("aa"), *THREE], draw)[0] == "aa"
    assert balancer.choose(THREE[:1], draw)[0] == "a"


@given(candidate_lists(gated=False), st.integers(1, 3))
def test_each_full_cycle_gives_every_replica_its_weight(candidates: list[BalancerCandidate], cycles: int) -> None:
    """Nor is a replica ever a whole request above its weight."""
    cycle, counts = sum(each.weight for each in candidates), Counter[str]()
    for number, chosen in enumerate(choices(WeightedRoundRobin(), candidates, cycle * cycles), start=1):
        counts[chosen] += 1
        assert all(counts[each.id] - number * each.weight / cycle < 1 for each in candidates)
        if number % cycle == 0:
            assert counts == {each.id: each.weight * number // cycle for each in candidates}


def test_a_weighted_replica_keeps_its_credit_while_it_is_held_back() -> None:
    both, draw = [BalancerCandidate("a", weight=2), BalancerCandidate("b", weight=1)], random.Random(0)
    _, balancer = WeightedRoundRobin().choose(both, draw)
    _, held = balancer.choose([both[0], replace(both[1], available=False)], draw)
    assert dict(held.credits) == {"a": -1, "b": 1}
    assert dict(held.choose(both[:1], draw)[1].credits) == {"a": -1}  # one that is gone is forgotten


@given(candidate_lists(gated=False), seeds)
def test_least_connections_takes_one_of_the_fewest(candidates: list[BalancerCandidate], seed: int) -> None:
    (chosen,) = choices(LeastConnections(), candidates, 1, seed)
    found = next(each for each in candidates if each.id == chosen)
    assert found.outstanding_requests == min(each.outstanding_requests for each in candidates)


def test_least_connections_takes_idle_replicas_alike() -> None:
    counts = Counter(choices(LeastConnections(), THREE, 3000))
    assert all(900 < counts[each] < 1100 for each in "abc")


def test_resource_aware_follows_the_scores_without_forgetting_the_second_best() -> None:
    candidates = [replace(each, score=score) for each, score in zip(THREE, (80.0, 20.0, 0.0), strict=True)]
    counts = Counter(choices(ResourceAware(), candidates, 5000))
    assert counts["c"] == 0
    assert 3.5 < counts["a"] / counts["b"] < 4.5
    assert len(set(choices(ResourceAware(), [replace(each, score=0.0) for each in candidates], 50))) == 3


@given(candidate_lists(smallest=2, gated=False), seeds)
def test_two_choices_takes_the_sooner_done_of_two_different_draws(
    candidates: list[BalancerCandidate], seed: int
) -> None:
    draw = NotingRandom(seed)
    chosen, _ = TwoChoices().choose(candidates, draw)
    first, second = draw.drawn
    assert first.id != second.id
    found, other = (first, second) if chosen == first.id else (second, first)
    assert found.id == chosen
    assert found.outstanding_tokens / found.tokens_per_s <= other.outstanding_tokens / other.tokens_per_s


@given(seeds)
def test_of_mixed_hardware_two_choices_takes_the_faster_at_equal_tokens_and_when_idle(seed: int) -> None:
    slow, fast = BalancerCandidate("slow", tokens_per_s=10.0), BalancerCandidate("fast", tokens_per_s=30.0)
    assert choices(TwoChoices(), [slow, fast], 1, seed) == ["fast"]
    loaded = [replace(slow, outstanding_tokens=100), replace(fast, outstanding_tokens=100)]
    assert choices(TwoChoices(), loaded, 1, seed) == ["fast"]
    assert choices(TwoChoices(), [slow, replace(fast, outstanding_tokens=1)], 1, seed) == ["slow"]


def test_two_choices_gives_alike_replicas_equal_shares_in_no_fixed_order() -> None:
    alike = [BalancerCandidate("a", tokens_per_s=10.0), BalancerCandidate("b", tokens_per_s=13.0)]
    taken = "".join(choices(TwoChoices(), alike, 60))
    pairs = {taken[place : place + 2] for place in range(0, 60, 2)}
    assert pairs == {"ab", "ba"}
    three = Counter(choices(TwoChoices(), THREE, 3000))
    assert all(900 < three[each] < 1100 for each in "abc")


@pytest.mark.parametrize(
    ("slow", "fast", "shared"),
    [
        ((10.0,) * 5, (30.0,) * 5, False),
        ((10.0,) * 4, (30.0,) * 5, True),  # too few to tell
        ((10.0, 10.0, 10.0, 10.0, 40.0), (30.0, 30.0, 30.0, 30.0, 5.0), True),
        ((10.0,) * 9 + (40.0,), (30.0,) * 10, False),  # one that was slow or quick for once
    ],
)
def test_two_choices_takes_the_faster_only_if_its_answers_say_so(
    slow: tuple[float, ...], fast: tuple[float, ...], shared: bool
) -> None:
    both = [
        BalancerCandidate("slow", tokens_per_s=median(slow), speeds=slow),
        BalancerCandidate("fast", tokens_per_s=median(fast), speeds=fast),
    ]
    assert set(choices(TwoChoices(), both, 20)) == ({"slow", "fast"} if shared else {"fast"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_balancer("two-choice"), "unknown balancer 'two-choice': did you mean 'two-choices'"),
        (lambda: bench_balance(requests=0), "requests is 0"),
        (lambda: bench_balance(nodes=1), "nodes is 1"),
        (lambda: bench_balance(nodes=21), "nodes is 21"),
    ],
)
def test_what_cannot_be_balanced_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_shares_and_effects_of_an_outage_are_read_from_what_was_given() -> None:
    outage = Outage(node_id(0), "errors", from_s=10.0, to_s=30.0)
    times = [(9.0, 0, True), (10.5, 0, False), (13.0, 0, False), (14.0, 1, True), (31.0, 1, True), (32.5, 0, True)]
    both, other = (node_id(0), node_id(1)), (node_id(1),)
    handled = [HandledRequest(at_s, node_id(node), ok, other if at_s == 14.0 else both) for at_s, node, ok in times]
    effect = OutageEffect("round-robin", "errors", 3.0, 1.0, 2.5, failed=2, within_limit=True)
    assert effect_of("round-robin", handled, outage) == effect
    never = effect_of("round-robin", handled[:5], outage)
    assert (never.back_s, never.within_limit) == (None, False)
    assert share_of("round-robin", handled, [3, 1]) == BalancerShare("round-robin", (4, 2), (3.0, 3.0), True)
    assert share_of("round-robin", [*handled, handled[0]], [3, 1]).within_1 is False
    assert share_of("weighted-round-robin", handled, [3, 1]).expected == (4.5, 1.5)
    assert share_of("two-choices", handled, [3, 1]).within_1 is None


def test_a_simulated_node_fails_what_an_outage_meets_when_that_is_noticed() -> None:
    node = SimulatedNode(0, node_id(0), weight=1, slot_tokens_per_s=10.0)
    hangs = Outage(node.id, "hangs", from_s=10.0, to_s=30.0)
    assert node.work(20, 1.0, hangs) == (1.0, Outcome(True, 1.0, 3.0))
    assert node.work(20, 2.0, hangs) == (3.0, Outcome(True, 2.0, 5.0))  # it waits for the first
    assert node.work(20, 9.0, hangs)[1] == Outcome(False, 9.0, 13.0)  # nothing comes for 3 s
    assert node.work(20, 12.0, hangs)[1] == Outcome(False, 12.0, 15.0)
    assert node.work(20, 30.0, hangs) == (30.0, Outcome(True, 30.0, 32.0))
    assert node.work(20, 40.0, replace(hangs, node=node_id(1), to_s=90.0))[1].ok


@pytest.mark.parametrize("kind", ["errors", "hangs"])
def test_a_failed_node_gets_nothing_until_its_return_even_where_it_is_the_only_one(kind: Any) -> None:
    outage = Outage(node_id(0), kind, from_s=10.1, to_s=30.1)
    handled = simulate("two-choices", [1], 60, seed=0, outage=outage)
    assert [each.node for each in handled if 20.1 < each.arrived_s < 30.1] == [None] * 10
    assert [each.ok for each in handled if each.arrived_s > 40.1] == [True] * 20


def test_the_benchmark_meets_what_is_asked_of_50_requests_on_3_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "balance", "--requests", "50", "--nodes", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["simulated"] is True
    shares = {share["balancer"]: share for share in found["shares"]}
    assert sorted(shares["round-robin"]["counts"]) == [16, 17, 17]
    assert shares["weighted-round-robin"]["counts"] == [25, 17, 8]
    assert {share["within_1"] for share in found["shares"]} == {True, None}
    assert all(sum(share["counts"]) == 50 for share in shares.values())
    failovers = found["failovers"]
    assert [(each["balancer"], each["kind"]) for each in failovers] == [
        (name, kind) for name in BALANCERS for kind in ("errors", "hangs")
    ]
    assert [each for each in failovers if not each["within_limit"]] == []
