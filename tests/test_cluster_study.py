"""The study of the cluster: where requests were, what many nodes cost by hand, and what it says in words."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from matplotlib import pyplot

from qubic_lab.bench.balance import bench_balance
from qubic_lab.bench.dispatch import Exchange, sum_up
from qubic_lab.bench.result import Spread
from qubic_lab.bench.scale import ProcessCosts, find_limit
from qubic_lab.cluster.balance import BALANCERS, DEFAULT_BALANCER
from qubic_lab.cluster.dispatcher import LOOK_S
from qubic_lab.cluster.registry import HEARTBEAT_S
from qubic_lab.errors import InputError
from qubic_lab.studies import cluster as study


def stream(number: int, *stays: tuple[str, float], token_s: list[float], ended_s: float | None) -> dict[str, Any]:
    return {
        "number": number,
        "stays": [{"node": node, "from_s": from_s, "known": 0} for node, from_s in stays],
        "token_s": token_s,
        "ended_s": ended_s,
    }


def make_failover(**changes: Any) -> dict[str, Any]:
    """A node dies after 2 s with request 0 on it, which goes on at another one from 2.5 s."""
    streams = [
        stream(0, ("node-1", 0.0), ("node-2", 2.5), token_s=[1.0, 1.9, 2.1, 3.0, 4.0], ended_s=4.0),
        stream(1, ("node-2", 1.0), token_s=[2.0, 3.0], ended_s=3.0),
        stream(2, ("node-2", 3.0), token_s=[3.5], ended_s=3.5),
    ]
    failures = {
        "node": "node-1",
        "killed_s": 2.0,
        "started_s": 3.0,
        "coordinator": None,
        "coordinator_killed_s": None,
    }
    return {
        "plan": {"requests": 3, "nodes": 2},
        "failures": failures,
        "shut_s": 2.25,
        "open_s": 5.0,
        "chosen_s": 6.0,
        "left_node": [0],
        "node_gaps_s": [0.9],
        "left_coordinator": [],
        "lost": 0,
        "duplicated": 0,
        "wrong": [],
        "streams": streams,
    } | changes


def test_a_request_is_on_its_node_until_that_is_killed_and_then_on_the_next() -> None:
    first, other, moved, last = study.segments(make_failover())
    assert (first.node, first.from_s, first.to_s, first.token_s) == ("node-1", 0.0, 2.0, (1.0, 1.9, 2.1))
    assert (moved.request, moved.node, moved.from_s, moved.to_s, moved.token_s) == (0, "node-2", 2.5, 4.0, (3.0, 4.0))
    # Request 1 has the first line of its node; when it ends, another request may have it.
    assert [each.lane for each in (other, moved, last)] == [0, 1, 0]


def test_every_token_is_drawn_once() -> None:
    failover = make_failover()
    drawn = sorted(at_s for each in study.segments(failover) for at_s in each.token_s)
    assert drawn == sorted(at_s for each in failover["streams"] for at_s in each["token_s"])
    figure = study.failure(failover)
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["node-1\n(killed)", "node-2"]
    named = axes.get_legend_handles_labels()[1]
    assert {"killed (2.0 s)", "started again (3.0 s)", "gets no requests"} <= set(named)
    pyplot.close(figure)


def test_a_stream_without_an_end_and_a_node_that_stays_away_are_drawn_too() -> None:
    broken = stream(0, ("node-1", 0.5), token_s=[1.0], ended_s=None)
    failover = make_failover(streams=[broken], open_s=None)
    [segment] = study.segments(failover)
    assert (segment.from_s, segment.to_s) == (0.5, 1.0)
    pyplot.close(study.failure(failover))


def make_calls(nodes: int, *, choose_ms: float) -> dict[str, Any]:
    """Costs of which all but the choice are proportional to the nodes, or the same for every call."""

    def same(value: float) -> dict[str, float]:
        return {"median": value, "low": value, "high": value}

    return {
        "nodes": nodes,
        "nodes_ms": same(0.04 * nodes),
        "update_ms": same(0.01 * nodes),
        "beat_ms": same(0.5),
        "choose_ms": {name: same(choose_ms if name == DEFAULT_BALANCER else 9e9) for name in BALANCERS},
        "tasks_per_s": 1_000.0,
        "redis_bytes": 600.0,
    }


def test_shares_of_a_core_by_hand() -> None:
    shares = study.core_shares(make_calls(100, choose_ms=2.0), requests_per_node_s=0.1)
    assert shares == pytest.approx(
        {
            "look_at_nodes": 5e-3 / LOOK_S,
            "heartbeats": 100 / HEARTBEAT_S * 0.5e-3,
            "choices": 10 * 2e-3,
            "queue": 10 / 1_000,
        }
    )


def test_parts_grow_as_they_did_and_are_full_where_their_sum_is_a_core() -> None:
    # Heartbeats, looks and queue are proportional, choices grow with the square: of each choice the time doubles.
    calls = [make_calls(nodes, choose_ms=nodes / 100) for nodes in (10, 100, 1_000)]
    paper = study.on_paper(calls, requests_per_node_s=0.1)
    assert [(level["nodes"], level["measured"]) for level in paper["levels"]] == [
        (10, True),
        (100, True),
        (1_000, True),
        (10_000, False),
    ]
    before, after = paper["levels"][-2:]
    assert after["heartbeats"] == pytest.approx(10 * before["heartbeats"])
    assert after["choices"] == pytest.approx(100 * before["choices"])
    linear = before["look_at_nodes"] + before["heartbeats"] + before["queue"]
    at = paper["full_at"] / 1_000
    assert at * linear + at**2 * before["choices"] == pytest.approx(1.0)
    assert json.loads(json.dumps(paper)) == paper


def test_between_levels_the_two_around_count() -> None:
    measured, values = [10, 100, 1_000], [1.0, 10.0, 1_000.0]
    found = [study.power_law(measured, values, nodes) for nodes in (1, 10, 100, 1_000, 10**2.5, 10_000)]
    assert found == pytest.approx([0.1, 1.0, 10.0, 1_000.0, 100.0, 100_000.0])


def test_one_number_of_nodes_tells_no_growth() -> None:
    with pytest.raises(InputError, match="calls are of 1 numbers of nodes"):
        study.on_paper([make_calls(10, choose_ms=1.0)], 0.1)


def make_dispatch(added_ms: float, fault: str = "") -> dict[str, Any]:
    answered = [Exchange(f"task {n}", "", 500.0 + added_ms, 500.0, fault) for n in range(60)]
    load = sum_up(answered, took_s=1.0, concurrency=50, nodes=3, slots=50, new_tokens=6)
    plain = json.loads(json.dumps(vars(load), default=vars))
    return {**plain, "burst": plain, "seconds": 0.5, "limit_ms": 100.0}


def found(failover: dict[str, Any], dispatch: dict[str, Any] | None = None) -> str:
    paper = study.on_paper([make_calls(nodes, choose_ms=nodes / 100) for nodes in (10, 1_000)], 0.1)
    balance = json.loads(json.dumps(bench_balance().to_dict()))
    return " ".join(study.findings(balance, dispatch or make_dispatch(20.0), failover, paper))


def test_what_was_found_is_said_in_words() -> None:
    said = found(make_failover())
    assert "node-1 was killed with 1 request in mid-answer: each of the 3 requests got every token once" in said
    assert "noticed 0.2 s after its end" in said and "2.0 s after its start it was back by itself, and 3.0 s" in said
    assert "50 clients at once, up to 100 requests/s" in said and "add 20 ms at p95 (60 requests" in said
    assert "within the 100 ms aimed at" in said and "every answer was right" in said
    assert "share within 1 with round-robin and weighted-round-robin" in said
    assert "130% of a core at 1,000 nodes, most of it for choices" in said


def test_what_went_wrong_is_said_too() -> None:
    said = found(make_failover(lost=1, duplicated=2, wrong=[0, 1], open_s=None), make_dispatch(120.0))
    assert "of 3 requests 1 were lost, 2 answered twice, and 2 streams were not right" in said
    assert "it was not back when the last request ended" in said
    assert "over the 100 ms aimed at" in said
    assert "was not noticed" in found(make_failover(shut_s=None))
    assert "None of 60 requests had its own right answer: it broke." in found(
        make_failover(), make_dispatch(1.0, "it broke")
    )


def test_tables_have_a_row_for_each_case() -> None:
    balance = json.loads(json.dumps(bench_balance().to_dict()))
    shares = {row["balancer"]: row for row in study.share_rows(balance)}
    assert shares["weighted-round-robin"]["promised"] == "25.0, 16.7, 8.3" and shares["two-choices"]["promised"] is None
    assert sum(shares["round-robin"][f"node_{number}"] for number in (1, 2, 3)) == 50
    assert len(study.outage_rows(balance)) == 2 * len(BALANCERS)
    rows = study.latency_rows(make_dispatch(20.0))
    assert [(row["requests begin"], row["added"]) for row in rows[::3]] == [("spread", "p50"), ("in bursts", "p50")]
    assert study.latency_rows(make_dispatch(1.0, "it broke")) == []


def test_whole_processes_have_a_table_and_a_sentence() -> None:
    costs = [
        ProcessCosts(
            nodes=nodes,
            names=nodes,
            join_s=0.0,
            beats_per_s=nodes / 5,
            coordinator_idle=Spread(0.2, 0.1, 0.3),
            redis_idle=Spread(0.2, 0.1, 0.3),
            requests_per_s=Spread(80.0, 60.0, 90.0),
            coordinator_busy=Spread(0.9, 0.8, 1.0),
            redis_busy=Spread(0.3, 0.2, 0.4),
        )
        for nodes in (10, 100)
    ]
    limit = find_limit(costs, 0.1)
    scale = {"processes": [asdict(each) for each in costs], "limit": asdict(limit)}
    assert study.process_rows(scale)[1] == {
        "nodes": 100,
        "heartbeats_per_s": 20.0,
        "coordinator_idle_pct": 20.0,
        "redis_idle_pct": 20.0,
        "requests_per_s": 80.0,
        "requests_low": 60.0,
        "requests_high": 90.0,
    }
    balance = json.loads(json.dumps(bench_balance().to_dict()))
    paper = study.on_paper([make_calls(nodes, choose_ms=nodes / 100) for nodes in (10, 1_000)], 0.1)
    said = study.findings(balance, make_dispatch(20.0), make_failover(), paper, scale)
    assert len(said) == 6
    assert said[-1].startswith("By whole processes, at the same load, one coordinator serves about 800 nodes (")
    assert "which is extrapolated; what is at its end first is coordinator." in said[-1]


def test_pictures_have_units_and_all_parts() -> None:
    paper = study.on_paper([make_calls(nodes, choose_ms=nodes / 100) for nodes in (10, 1_000)], 0.1)
    costs, latencies = study.costs(paper), study.latencies(make_dispatch(20.0))
    [axes] = costs.axes
    assert axes.get_xlabel() == "nodes (number)" and axes.get_ylabel() == "time spent, of a core (%)"
    assert len(axes.get_legend_handles_labels()[1]) == len(study.PARTS) + 2
    assert len(latencies.axes[0].get_yticklabels()) == 6
    for figure in (costs, latencies):
        pyplot.close(figure)
