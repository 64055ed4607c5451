"""What many nodes cost: where a core is full, by hand; and that real processes are looked at. No speeds."""

import math
import re
from pathlib import Path

import pytest

from qubic_lab.bench import scale
from qubic_lab.bench.result import Spread
from qubic_lab.bench.scale import ProcessCosts, bench_scale, find_limit, measure_calls, where_whole
from qubic_lab.cluster.balance import BALANCERS
from qubic_lab.cluster.redis_server import RedisServer, connect


@pytest.mark.parametrize(
    ("shares", "nodes"),
    [
        ([(10, 0.01), (100, 0.1)], 1_000),  # proportional, beyond what was measured
        ([(10, 0.1), (100, 10.0)], 10**1.5),  # with the square, between two
        ([(10, 0.001), (100, 0.5), (1_000, 5.0)], 100 * 2.0),  # by the two around it, not by the first two
        ([(10, 2.0), (100, 20.0)], 5),  # full from the first on
        ([(10, 0.5), (100, 0.5)], math.inf),
        ([(10, 0.5), (100, 0.4), (1_000, 0.3)], math.inf),
    ],
)
def test_where_a_core_is_full(shares: list[tuple[int, float]], nodes: float) -> None:
    assert where_whole(shares) == pytest.approx(nodes)


def same(value: float) -> Spread:
    return Spread(value, value, value)


def costs(nodes: int, requests_per_s: Spread, redis_busy: float = 0.3) -> ProcessCosts:
    return ProcessCosts(
        nodes=nodes,
        names=nodes,
        join_s=0.0,
        beats_per_s=nodes / 5,
        coordinator_idle=same(0.1),
        redis_idle=same(0.1),
        requests_per_s=requests_per_s,
        coordinator_busy=same(0.9),
        redis_busy=same(redis_busy),
    )


def test_nodes_can_be_served_while_they_get_no_more_requests_than_can_be_taken() -> None:
    # At 10 nodes 100 requests/s can be taken, at 100 only 10, which is what 100 nodes get.
    levels = [costs(10, same(100.0)), costs(100, Spread(10.0, 8.0, 12.0)), costs(1_000, same(1.0), redis_busy=1.0)]
    limit = find_limit(levels, 0.1)
    assert (limit.nodes, limit.beyond, limit.process) == (pytest.approx(100), False, "coordinator")
    assert 85 < limit.low < 100 < limit.high < 115
    more = find_limit(levels, 0.01)
    assert more.nodes == pytest.approx(math.sqrt(100_000))
    assert (more.process, find_limit(levels, 0.0001).beyond) == ("coordinator", True)
    assert find_limit(levels, 0.001).process == "redis", "next to 1,000 nodes"


def test_a_limit_far_beyond_the_measured_nodes_is_unknown() -> None:
    # Rates hardly fall, and those of a window may rise: the power law through them says 10 billion, or no end at all.
    levels = [costs(10, Spread(100.0, 20.0, 110.0)), costs(100, Spread(80.0, 15.0, 120.0))]
    limit = find_limit(levels, 0.1)
    assert limit.low is not None and limit.high is None and limit.nodes == pytest.approx(666, abs=1)
    assert re.fullmatch(r"666 nodes \(124 at least, the most is unknown, extrapolated\)", limit.text())
    assert find_limit(levels, 0.0001).text() == "an unknown number of nodes (no end is known, extrapolated)"


def test_calls_are_timed_on_as_many_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "REPEAT", 3)
    monkeypatch.setattr(scale, "TASKS", 5)
    with RedisServer(tmp_path / "redis") as server, connect(server.url) as client:
        few, many = measure_calls(client, 2), measure_calls(client, 200)
    assert many.choose_ms.keys() == set(BALANCERS)
    for each in (many.nodes_ms, many.update_ms, many.beat_ms, *many.choose_ms.values()):
        assert 0 < each.low <= each.median <= each.high
    assert (few.nodes, many.nodes) == (2, 200)
    assert many.tasks_per_s > 0 and many.redis_bytes > 200


@pytest.mark.slow
def test_bench_scale_measures_all_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "REQUESTS", 8)
    monkeypatch.setattr(scale, "HEARTBEAT_S", 0.1)  # of the names
    result = bench_scale((4, 40), (2,), 0.1, window_s=0.3)
    assert [each.nodes for each in result.processes] == [each.nodes for each in result.calls] == [4, 40]
    assert [(each.nodes, each.names) for each in result.check] == [(2, 0)]
    assert result.limit.low <= result.limit.nodes <= result.limit.high
    for found in result.processes:
        assert found.names == max(0, found.nodes - scale.SERVICES) and bool(found.names) == (found.beats_per_s > 0)
        assert 0 < found.requests_per_s.low <= found.requests_per_s.high
        for idle in (found.coordinator_idle, found.redis_idle):
            assert 0 <= idle.low <= idle.median <= idle.high
