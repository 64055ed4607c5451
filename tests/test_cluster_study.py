"""The study of the cluster: where requests were, what many nodes cost by hand, and what it says in words."""

from dataclasses import asdict
from typing import Any

import pytest
from examples import example
from headlines import told

from qubic_lab.bench.balance import bench_balance
from qubic_lab.bench.dispatch import DispatchResult, Exchange, sum_up
from qubic_lab.bench.failover import ClientStream, FailoverPlan, FailoverResult, KilledProcesses, NodeStay
from qubic_lab.bench.scale import CallCosts, ProcessCosts, ScaleResult, Spread, find_limit
from qubic_lab.cluster.balance import BALANCERS, DEFAULT_BALANCER
from qubic_lab.cluster.dispatcher import LOOK_S
from qubic_lab.cluster.registry import HEARTBEAT_S
from qubic_lab.errors import InputError
from qubic_lab.studies import cluster as study
from qubic_lab.studies import cluster_scale as scale


def stream(number: int, *stays: tuple[str, float], token_s: list[float], ended_s: float | None) -> ClientStream:
    found = tuple(NodeStay(node, from_s, 0) for node, from_s in stays)
    return example(ClientStream, number=number, stays=found, token_s=tuple(token_s), ended_s=ended_s)


def make_failover(**changes: Any) -> FailoverResult:
    """A node dies after 2 s with request 0 on it, which goes on at another one from 2.5 s."""
    streams = (
        stream(0, ("node-1", 0.0), ("node-2", 2.5), token_s=[1.0, 1.9, 2.1, 3.0, 4.0], ended_s=4.0),
        stream(1, ("node-2", 1.0), token_s=[2.0, 3.0], ended_s=3.0),
        stream(2, ("node-2", 3.0), token_s=[3.5], ended_s=3.5),
    )
    asked = {"plan": FailoverPlan(requests=4, nodes=2), "failures": KilledProcesses("node-1", 2.0, 3.0, None, None)}
    times = {"shut_s": 2.25, "open_s": 5.0, "chosen_s": 6.0, "left_node": (0,), "node_gaps_s": (0.9,)}
    return example(FailoverResult, **asked | times | {"streams": streams} | changes)


def test_a_request_is_on_its_node_until_that_is_killed_and_then_on_the_next() -> None:
    first, other, moved, last = study.segments(make_failover())
    assert (first.node, first.from_s, first.to_s, first.token_s) == ("node-1", 0.0, 2.0, (1.0, 1.9, 2.1))
    assert (moved.request, moved.node, moved.from_s, moved.to_s, moved.token_s) == (0, "node-2", 2.5, 4.0, (3.0, 4.0))
    # Request 1 has the first line of its node; when it ends, another request may have it.
    assert [each.lane for each in (other, moved, last)] == [0, 1, 0]


def test_every_token_is_drawn_once() -> None:
    failover = make_failover()
    drawn = sorted(at_s for each in study.segments(failover) for at_s in each.token_s)
    assert drawn == sorted(at_s for each in failover.streams for at_s in each.token_s)
    broken = stream(0, ("node-1", 0.5), token_s=[1.0], ended_s=None)
    study.failure(make_failover(streams=(broken,), open_s=None))
    [silent] = study.segments(make_failover(streams=(stream(0, ("node-1", 0.5), token_s=[], ended_s=1.0),)))
    assert (silent.to_s, silent.token_s, silent.lane) == (1.0, (), 0)  # it ended without a token
    [axes] = study.failure(failover).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["node-1\n(killed)", "node-2"]
    named = axes.get_legend_handles_labels()[1]
    assert {"killed (2.0 s)", "started again (3.0 s)", "gets no requests"} <= set(named)


def make_calls(nodes: int, choose_ms: float) -> CallCosts:
    """LayerCosts of which all but the choice are proportional to the nodes, or the same for every call."""

    def same(value: float) -> Spread:
        return Spread(value, value, value)

    choices = {name: same(choose_ms if name == DEFAULT_BALANCER else 9e9) for name in BALANCERS}
    return CallCosts(nodes, same(0.04 * nodes), same(0.01 * nodes), same(0.5), choices, 1_000.0, 600.0)


def make_paper(*levels: int) -> scale.ScaleOnPaper:
    return scale.on_paper([make_calls(nodes, nodes / 100) for nodes in levels], requests_per_node_s=0.1)


def test_shares_of_a_core_by_hand() -> None:
    shares = scale.core_shares(make_calls(100, 2.0), requests_per_node_s=0.1)
    expected = {"look_at_nodes": 5e-3 / LOOK_S, "heartbeats": 100 / HEARTBEAT_S * 0.5e-3}
    assert asdict(shares) == pytest.approx(expected | {"choices": 10 * 2e-3, "queue": 10 / 1_000})


def test_parts_grow_as_they_did_and_are_full_where_their_sum_is_a_core() -> None:
    # Heartbeats, looks and queue are proportional, choices grow with the square: of each choice the time doubles.
    paper = make_paper(10, 100, 1_000)
    expected = [(10, True), (100, True), (1_000, True), (10_000, False)]
    assert [(level.nodes, level.measured) for level in paper.levels] == expected
    before, after = paper.levels[-2:]
    assert after.heartbeats == pytest.approx(10 * before.heartbeats)
    assert after.choices == pytest.approx(100 * before.choices)
    linear = before.look_at_nodes + before.heartbeats + before.queue
    assert paper.full_at is not None
    at = paper.full_at / 1_000
    assert at * linear + at**2 * before.choices == pytest.approx(1.0)


def test_one_number_of_nodes_tells_no_growth() -> None:
    with pytest.raises(InputError, match="calls are of 1 numbers of nodes"):
        make_paper(10)


def make_dispatch(added_ms: float, fault: str = "") -> DispatchResult:
    answered = [Exchange(f"task {n}", "", 500.0 + added_ms, 500.0, fault) for n in range(60)]
    load = sum_up(answered, took_s=1.0, concurrency=50, nodes=3, slots=50, new_tokens=6)
    return example(DispatchResult, **vars(load), burst=load, seconds=0.5, limit_ms=100.0)


def found(failover: FailoverResult, dispatch: DispatchResult | None = None) -> str:
    return " ".join(
        told(study.findings(bench_balance(), dispatch or make_dispatch(20.0), failover, make_paper(10, 1_000)), "loss")
    )


def test_findings_follow_the_numbers() -> None:
    said = found(make_failover())
    for expected in (
        "None of 4 requests was lost when node-1 died; coordinators add less than 100 ms. "
        "node-1 was killed while it answered 1 request. The interrupted requests paused for 0.9 s at most. Every "
        "coordinator noticed the failure after 0.2 s. After its restart the node was available again after 2.0 s and "
        "got a request after 3.0 s.",
        "With 50 clients the coordinator adds 20 ms at p95, within the 100 ms target. "
        "When all clients ask at the same moment it adds 20 ms at p95. Every answer was right.",
        "With round-robin, weighted-round-robin, each simulated node got its promised share of 50 requests",
        "take 130 % of a core at 1,000 nodes, most of it for choices.",
    ):
        assert expected in said


@pytest.mark.parametrize(
    ("failover", "dispatch", "expected"),
    [
        (
            {"lost": 1, "duplicated": 2, "wrong": (0, 1)},
            (20.0,),
            "2 of 4 requests were not answered whole and once when node-1 died (1 lost, 2 twice).",
        ),
        ({"open_s": None}, (20.0,), "The node was not back when the last request ended."),
        ({"shut_s": None}, (20.0,), "No coordinator noticed during the run that node-1 was gone."),
        ({}, (120.0,), "over the 100 ms target"),
        ({}, (1.0, "it broke"), "None of 60 requests got its right answer: it broke."),
    ],
)
def test_findings_say_what_failed(failover: dict[str, Any], dispatch: tuple[Any, ...], expected: str) -> None:
    assert expected in found(make_failover(**failover), make_dispatch(*dispatch))


def test_tables_have_a_row_for_each_case() -> None:
    balance = bench_balance()
    shares = {row["balancer"]: row for row in study.share_rows(balance)}
    assert shares["weighted-round-robin"]["promised"] == "25.0, 16.7, 8.3" and shares["two-choices"]["promised"] is None
    assert sum(shares["round-robin"][f"node_{number}"] for number in (1, 2, 3)) == 50
    assert len(study.outage_rows(balance)) == 2 * len(BALANCERS)
    rows = study.latency_rows(make_dispatch(20.0))
    assert [(row["requests begin"], row["added"]) for row in rows[::3]] == [("spread", "p50"), ("in bursts", "p50")]
    assert study.latency_rows(make_dispatch(1.0, "it broke")) == []


def test_whole_processes_have_a_table_and_a_sentence() -> None:
    idle = {"coordinator_idle": Spread(0.2, 0.1, 0.3), "redis_idle": Spread(0.2, 0.1, 0.3)}
    busy = {"coordinator_busy": Spread(0.9, 0.8, 1.0), "redis_busy": Spread(0.3, 0.2, 0.4)}
    measured = idle | busy | {"requests_per_s": Spread(80.0, 60.0, 90.0)}
    costs = [example(ProcessCosts, nodes=each, names=each, beats_per_s=each / 5, **measured) for each in (10, 100)]
    result = example(ScaleResult, processes=tuple(costs), limit=find_limit(costs, 0.1))
    assert [row["heartbeats_per_s"] for row in scale.process_rows(result)] == [2.0, 20.0]
    said = str(scale.process_finding(result))
    assert said.startswith("Measured by whole processes, one coordinator serves about 800 nodes (")
    assert said.endswith(", extrapolated); the coordinator is the bottleneck.")


def test_pictures_have_units_and_all_parts() -> None:
    costs, latencies = scale.costs(make_paper(10, 1_000)), study.latencies(make_dispatch(20.0))
    [axes] = costs.axes
    assert axes.get_xlabel() == "nodes (number)" and axes.get_ylabel() == "time spent, of a core (%)"
    assert len(axes.get_legend_handles_labels()[1]) == len(scale.PARTS) + 2
    assert len(latencies.axes[0].get_yticklabels()) == 6
