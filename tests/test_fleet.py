"""The fleet decides from records and outcomes alone who may get a request, and counts what each has."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qubic_lab.cluster.balance import BALANCERS, make_balancer
from qubic_lab.cluster.fleet import Fleet, NodeView
from qubic_lab.cluster.health import DEFAULT_LIMITS, Gate, Outcome
from qubic_lab.cluster.registry import NodeRecord
from qubic_lab.errors import BusyError
from qubic_lab.wire import cluster_pb2 as pb

ME = "this coordinator"


def record(
    node: str = "a",
    *,
    slots: int = 2,
    age_s: float = 0.0,
    draining: bool = False,
    tokens_per_s: float = 10.0,
    weight: int = 1,
    **state: Any,
) -> NodeRecord:
    capabilities = pb.Capabilities(slots=slots, tokens_per_s=tokens_per_s)
    registration = pb.NodeRegistration(
        node=node, address=f"unix:/{node}", type="whole", weight=weight, capabilities=capabilities
    )
    return NodeRecord(registration, pb.NodeState(**{"ready": True} | state), age_s, 60.0, draining)


def fleet_of(*records: NodeRecord, balancer: str = "least-connections") -> Fleet:
    fleet = Fleet(ME, make_balancer(balancer), random.Random(0))
    fleet.update(records, 100.0)
    return fleet


def view(fleet: Fleet, now_s: float = 100.0) -> NodeView:
    [found] = fleet.views(now_s)
    return found


def test_the_balancer_chooses_among_those_with_room() -> None:
    fleet = fleet_of(record("a", slots=1), record("b", slots=2))
    got = []
    while fleet.has_room(100.0):
        got.append(fleet.choose(100.0).id)
        fleet.begin(got[-1], 10)
    assert sorted(got) == ["a", "b", "b"]
    with pytest.raises(BusyError, match="none of 2"):
        fleet.choose(100.0)
    fleet.end("a", 10)
    assert fleet.choose(100.0).id == "a"


def test_those_to_be_avoided_get_it_only_where_no_other_has_room() -> None:
    fleet = fleet_of(record("a"), record("b", slots=1))
    assert {fleet.choose(100.0, avoid={"a"}).id for _ in range(20)} == {"b"}
    fleet.begin("b", 1)
    assert fleet.choose(100.0, avoid={"a"}).id == "a"


@pytest.mark.parametrize(
    ("found", "gate"),
    [
        (record(), None),
        (record(draining=True), Gate.DRAINING),
        (NodeRecord(record().registration, pb.NodeState(ready=True, draining=True), 0.0, 60.0, False), Gate.DRAINING),
        (record(ready=False), Gate.STARTING),
        (record(age_s=DEFAULT_LIMITS.silent_after_s), Gate.SILENT),
    ],
)
def test_what_the_registry_says_opens_and_shuts_gates(found: NodeRecord, gate: Gate | None) -> None:
    fleet = fleet_of(found)
    assert view(fleet).gate is gate
    assert fleet.has_room(100.0) is (gate is None)
    fleet.update([record()], 101.0)
    assert fleet.has_room(101.0)
    silent_s = 101.0 + DEFAULT_LIMITS.silent_after_s  # no look at the registry in between
    assert fleet.has_room(silent_s - 0.1) and not fleet.has_room(silent_s)


def test_own_requests_count_at_once_and_those_of_others_by_the_heartbeat() -> None:
    loads = {ME: pb.Load(requests=9, tokens=900), "another": pb.Load(requests=1, tokens=30)}
    fleet = fleet_of(record(slots=3, loads=loads))
    fleet.begin("a", 5)
    assert (view(fleet).outstanding_requests, view(fleet).outstanding_tokens) == (2, 35)
    fleet.begin("a", 5)
    assert not fleet.has_room(100.0)
    fleet.update([record(slots=3)], 105.0)
    assert view(fleet).outstanding_requests == 2
    fleet.end("a", 5)
    fleet.end("a", 5)
    assert (view(fleet).outstanding_requests, view(fleet).outstanding_tokens) == (0, 0)


def test_a_node_that_is_gone_is_forgotten_with_what_it_had() -> None:
    fleet = fleet_of(record("a"), record("b"))
    fleet.begin("a", 5)
    fleet.update([record("b")], 101.0)
    assert [each.record.id for each in fleet.views(101.0)] == ["b"]
    fleet.note("a", Outcome(False, 100.0, 101.0, lost=True))
    fleet.update([record("a"), record("b")], 102.0)
    fleet.end("a", 5)  # of the request from before
    assert [(each.record.id, each.outstanding_requests, each.gate) for each in fleet.views(102.0)] == [
        ("a", 0, None),
        ("b", 0, None),
    ]


def test_a_lost_replica_comes_back_by_a_probe() -> None:
    fleet = fleet_of(record())
    fleet.note("a", Outcome(False, 100.0, 101.0, lost=True))
    assert view(fleet, 101.0).gate is Gate.LOST
    fleet.update([record()], 102.0)  # a heartbeat is no proof
    assert view(fleet, 102.0).gate is Gate.LOST
    assert fleet.probes(102.0) == []
    fleet.update([record()], 106.0)
    [(node, returning)] = fleet.probes(106.0)
    assert (node.id, returning) == ("a", True)
    assert fleet.probes(106.5) == []  # one at a time
    fleet.note("a", Outcome(True, 106.0, 106.6, probe=True))
    assert view(fleet, 106.6).gate is None


def test_idle_nodes_are_probed_and_busy_ones_are_not() -> None:
    fleet = fleet_of(record("a"), record("b"), record("c", loads={"another": pb.Load(requests=1)}))
    fleet.begin("b", 1)
    assert [(node.id, returning) for node, returning in fleet.probes(100.0)] == [("a", False)]
    fleet.end("b", 1)
    assert [node.id for node, _ in fleet.probes(101.0)] == ["b"]


def test_views_tell_score_and_recent_requests() -> None:
    fleet = fleet_of(record(cpu_share=0.5, memory_share=1.0))
    fleet.note("a", Outcome(True, 100.0, 105.0))
    fleet.note("a", Outcome(False, 105.0, 106.0))
    found = view(fleet, 106.0)
    assert (found.response_s, found.error_share) == (5.0, 0.5)
    assert found.score == pytest.approx(30 * 0.5 + 0 + 25 * 0.5 + 15 * 0.5)


def test_a_request_that_is_to_be_alone_gets_a_node_of_its_own() -> None:
    elsewhere = {"another": pb.Load(requests=1)}  # what others have at a node is company too
    fleet = fleet_of(record("a", slots=9), record("b", slots=9), record("c", slots=1, loads=elsewhere))
    fleet.begin("a", 5)
    assert fleet.choose(100.0, alone=True).id == "b"
    fleet.begin("b", 5, alone=True)
    assert {fleet.choose(100.0).id for _ in range(9)} == {"a"}
    fleet.end("b", 5)
    assert {fleet.choose(100.0, avoid={"a"}).id for _ in range(9)} == {"b"}


def test_a_further_try_waits_for_another_node_than_one_that_fails() -> None:
    fleet = fleet_of(record("a"), record("b"))
    fleet.note("a", Outcome(False, 100.0, 100.1))
    assert fleet.failing() == {"a"}
    fleet.begin("b", 10)
    assert fleet.choose(100.2, avoid=fleet.failing()).id == "b"
    with pytest.raises(BusyError):
        fleet.choose(100.2, avoid=fleet.failing(), alone=True)
    fleet.end("b", 10)
    assert fleet.choose(100.3, avoid=fleet.failing(), alone=True).id == "b"
    fleet.note("a", Outcome(True, 100.4, 100.5))
    assert fleet.failing() == set()


def test_a_node_is_kept_free_for_a_request_that_waits_to_be_alone() -> None:
    fleet = fleet_of(record("a", slots=9), record("b", slots=9))
    for node in ("a", "b", "b"):
        fleet.begin(node, 5)
    for _ in range(3):  # the same one, though it asks again
        with pytest.raises(BusyError):
            fleet.choose(100.0, alone=True)
        assert {fleet.choose(100.5).id for _ in range(9)} == {"b"}
        fleet.begin("b", 5)
    fleet.end("a", 5)
    assert fleet.choose(100.5, alone=True).id == "a"
    assert fleet.choose(101.5, avoid={"b"}).id == "a"  # where nobody asks any more it is free for all


def one_at_a_time(
    fleet: Fleet, requests: int, speeds: dict[str, float], noise: Callable[[], float] = lambda: 1.0
) -> list[str]:
    """Who got requests that came one after the other, each of which took 30 tokens at the node's real speed."""
    taken, now_s = [], 100.0
    for _ in range(requests):
        taken.append(node := fleet.choose(now_s).id)
        tokens_per_s = speeds[node] * noise()
        fleet.begin(node, 30)
        sent_s, now_s = now_s, now_s + 30 / tokens_per_s
        fleet.end(node, 30)
        fleet.note(node, Outcome(True, sent_s, now_s, tokens_per_s=tokens_per_s))
        fleet.update([replace(view.record, age_s=0.0) for view in fleet.views(now_s)], now_s)
        now_s += 0.5
    return taken


@pytest.mark.parametrize("balancer", sorted(BALANCERS.keys() - {"resource-aware", "least-connections"}))
@pytest.mark.parametrize("b", [10.0, 9.7, 3.0])  # as its start has measured it, when others were loading
def test_two_equal_nodes_get_equal_shares_one_request_at_a_time_after_a_slow_start(balancer: str, b: float) -> None:
    fleet = fleet_of(record("a"), record("b", tokens_per_s=b), balancer=balancer)
    taken = one_at_a_time(fleet, 50, {"a": 10.0, "b": 10.3})
    assert 22 <= taken.count("a") <= 28
    later = taken[10:]
    assert abs(later.count("a") - later.count("b")) <= 2


def test_noise_does_not_make_one_of_two_equal_nodes_the_faster() -> None:
    draw, shares = random.Random(5), []
    for seed in range(20):
        fleet = fleet_of(record("a"), record("b", tokens_per_s=4.0), balancer="two-choices")
        fleet.draw = random.Random(seed)
        taken = one_at_a_time(fleet, 40, {"a": 10.0, "b": 10.0}, lambda: math.exp(draw.gauss(0.0, 0.5)))
        shares.append(taken.count("a"))
    assert sum(19 <= share <= 21 for share in shares) >= 17, shares


def test_a_slow_node_is_found_out_by_its_answers_whatever_its_start_has_measured() -> None:
    slow_and_fast = {"a": 30.0, "b": 10.0}
    fleet = fleet_of(record("a"), record("b"), balancer="two-choices")
    assert set(one_at_a_time(fleet, 20, slow_and_fast)[10:]) == {"a"}
    fleet = fleet_of(record("a"), record("b", tokens_per_s=90.0), balancer="weighted-round-robin")
    taken = one_at_a_time(fleet, 60, slow_and_fast)[20:]
    assert taken.count("a") == pytest.approx(30, abs=1)  # three of four
    fleet = fleet_of(record("a"), record("b", weight=3), balancer="weighted-round-robin")
    taken = one_at_a_time(fleet, 60, slow_and_fast)[20:]
    assert taken.count("a") == pytest.approx(20, abs=1)


def test_views_forget_what_answers_said_when_none_come() -> None:
    fleet = fleet_of(record(slots=3))
    for number in range(3):
        fleet.note("a", Outcome(True, 100.0 + number, 100.9 + number, tokens_per_s=33.0))
    fleet.note("a", Outcome(True, 110.0, 110.008, probe=True))
    seen = view(fleet, 110.0)
    assert (seen.response_s, seen.tokens_per_s) == (pytest.approx(0.9), 33.0)
    idle = view(fleet, 500.0)
    assert (idle.response_s, idle.tokens_per_s) == (None, 10.0)
