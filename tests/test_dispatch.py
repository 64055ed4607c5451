"""What a coordinator adds: how it is counted, by hand; and that every answer of a cluster is checked. No speeds."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from examples import example

from qubic_lab.bench import dispatch
from qubic_lab.bench.dispatch import DispatchResult, Exchange, ask_all, bench_dispatch, echo_requests, sum_up
from qubic_lab.bench.echo_node import echo_text, echo_tokens
from qubic_lab.bench.local_cluster import free_ports, local_cluster, run_apart
from qubic_lab.bench.result import Percentiles

SETTING = (4, 2, 8, 16)


def test_all_but_the_nodes_own_time_is_added() -> None:
    load = sum_up([Exchange(f"task {n}", "", 1_000.0 + n, 990.0) for n in range(1, 101)], 20.0, *SETTING)
    assert load.added_ms is not None and load.total_ms is not None
    assert (load.added_ms.p50, load.added_ms.p95, load.added_ms.p99) == (60.0, 105.0, 109.0)
    assert (load.total_ms.p50, load.errors, load.first_error) == (1_050.0, 0, "")
    assert (load.requests_per_s, load.tokens_per_s) == (5.0, 80.0)


def test_an_answer_that_is_not_ones_own_is_an_error_and_has_no_time() -> None:
    own, wrong = Exchange("a", "", 20.0, 10.0), Exchange("b", "", 9_000.0, 1.0, "'hi' was answered 'ho'")
    load = sum_up([own, wrong, replace(own, total_ms=7_000.0)], 1.0, *SETTING)
    assert (load.requests, load.errors, load.first_error) == (3, 2, "'hi' was answered 'ho'")
    assert load.added_ms == Percentiles.of([10.0])
    assert load.requests_per_s == 1.0


def test_where_nothing_is_answered_there_are_no_times() -> None:
    load = sum_up([Exchange(fault="ConnectError: nobody")], 1.0, *SETTING)
    assert (load.errors, load.added_ms, load.node_ms, load.requests_per_s) == (1, None, None, 0.0)


def test_each_echo_request_has_an_answer_of_its_own() -> None:
    questions = echo_requests(50, 3)
    assert len({question.expected for question in questions}) == 50
    assert echo_text(echo_tokens(6, 3)) == questions[2].expected == "6 7 8 "


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A coordinator with two echo nodes in one process."""
    with local_cluster() as cluster:
        cluster.start_echo("a", "b", token_s=0.01, slots=4)
        cluster.wait_for_nodes("a", "b")
        yield cluster.urls["coordinator-1"]


def test_clients_get_what_the_nodes_wait_for(url: str) -> None:
    noted: list[int] = []
    answered, took_s = run_apart(ask_all(url, echo_requests(12, 5), 4, 0.05, noted.append))
    load = sum_up(answered, took_s, *SETTING)
    assert (load.requests, load.errors) == (12, 0)
    assert noted == list(range(1, 13))
    assert load.node_ms is not None and load.node_ms.p50 >= 50.0
    assert all(0.0 < each.added_ms < each.total_ms < 1_000 * took_s for each in answered)


def test_wrong_answers_refusals_and_absent_coordinators_are_noticed(url: str) -> None:
    right, other = echo_requests(2, 2)
    questions = [right, replace(other, expected="2 4 "), replace(other, body=other.body | {"seed": -1})]
    answered, _ = run_apart(ask_all(url, questions, 1))
    assert [each.fault.partition(":")[0] for each in answered] == ["", "'request 1' was answered '2 3 '", "status 400"]
    [port] = free_ports(1)
    [nobody], _ = run_apart(ask_all(f"http://127.0.0.1:{port}", [right], 1))
    assert nobody.fault.startswith("ConnectError")


@pytest.mark.slow
def test_echo_nodes_are_judged_and_real_ones_answer_as_alone(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "BURSTS", 1)
    result = bench_dispatch(4, 2, 1, seconds=0.1, new_tokens=2, real_requests=12, model=str(tiny))
    assert (result.requests, result.errors, result.burst.requests, result.burst.errors) == (4, 0, 2, 0)
    assert result.added_ms is not None and result.node_ms is not None
    assert result.within_limit == (result.added_ms.p95 < 100)
    assert result.node_ms.p50 >= 100
    assert result.real is not None
    assert (result.real.requests, result.real.errors, result.real.first_error) == (12, 0, "")
    assert result.real.node_ms is not None and result.real.node_ms.p50 > 0


def test_the_steady_load_is_at_the_top_level_and_errors_are_reported() -> None:
    load = sum_up([Exchange(f"task {n}", "", 1_000.0 + n, 990.0) for n in range(100)], 2.0, *SETTING)
    wrong = sum_up([Exchange(fault="'hi' was answered 'ho'")], 1.0, *SETTING)
    result = example(DispatchResult, **vars(load), burst=wrong, real=load)
    plain = result.to_dict()
    assert plain["added_ms"]["p95"] == 104.0 and plain["errors"] == 0
    assert plain.keys() >= {"burst", "real", "model", "dtype", "threads", "machine", "commit"}
    assert "first error of echo, bursts: 'hi' was answered 'ho'" in result.report()
