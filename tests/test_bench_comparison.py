"""`bench compare`: a planted slowdown is found, noise is not called a change, and what differs is said."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Run

from qubic_lab.bench.balance import bench_balance
from qubic_lab.bench.comparison import (
    FEWEST_RUNS,
    BenchFigure,
    compare_results,
    figures_of,
    judge,
    kept_place,
    read_side,
)
from qubic_lab.bench.result import Spread
from qubic_lab.cli.bench import keep_result


def result_of(draw: random.Random, slower: float = 1.0, windows: int = 3) -> dict[str, Any]:
    """Return what a benchmark with noise of 5 % prints; it is `slower` by a factor."""

    def noisy(value: float) -> float:
        return value * draw.gauss(1.0, 0.05)

    def spread(value: float) -> dict[str, float]:
        return vars(Spread.of([noisy(value) for _ in range(windows)]))

    rows = [{"nodes": n, "requests_per_s": spread(200.0 / slower), "beat_ms": spread(2.0 * slower)} for n in (10, 100)]
    return {
        "commit": "abc",
        "machine": "two cores",
        "dtype": "bf16",
        "measured_utc": str(draw.random()),
        "noise": {"load": draw.random()},
        "processes": rows,
        "total_s": noisy(60.0 * slower),
        "errors": 0,
    }


def test_a_planted_slowdown_is_found_and_noise_is_none() -> None:
    draw = random.Random(0)
    found = false = judged = 0
    for _ in range(200):
        same, slower = (compare_results([result_of(draw)], [result_of(draw, factor)]) for factor in (1.0, 1.6))
        found += slower.is_worse
        false += sum(each.verdict not in ("noise", "unknown") for each in same.changes)
        judged += sum(each.verdict != "unknown" for each in same.changes)
        assert not any(each.verdict == "better" for each in slower.changes)
    assert found >= 190
    assert false / judged < 0.03  # 1 in 80 is expected


def test_single_values_are_judged_from_three_runs_on() -> None:
    draw = random.Random(1)

    def verdict_of(runs: int) -> str:
        before, after = ([result_of(draw, factor) for _ in range(runs)] for factor in (1.0, 2.0))
        return {each.name: each.verdict for each in compare_results(before, after).changes}["total_s"]

    assert verdict_of(FEWEST_RUNS - 1) == "unknown"
    assert verdict_of(FEWEST_RUNS) == "worse"


def test_rows_are_found_again_by_what_they_measure() -> None:
    draw = random.Random(2)
    less, more = result_of(draw), result_of(draw)
    more["processes"] = [{**more["processes"][0], "nodes": 30}, *reversed(more["processes"])]
    found = compare_results([less], [more])
    assert {"processes[10].beat_ms", "processes[100].beat_ms", "total_s"} <= {each.name for each in found.changes}
    assert "processes[30].beat_ms" in found.only_one
    assert not found.is_worse


@pytest.mark.parametrize(
    ("name", "after", "verdict"),
    [
        ("requests_per_s", 3.0, "better"),
        ("goodput_per_s", 1.0, "worse"),
        ("latency_ms.p99", 3.0, "worse"),
        ("coordinator_busy", 1.0, "changed"),
        ("tokens", 3.0, "changed"),
        ("choose_ms.two-choices", 3.0, "worse"),
        ("requests_per_s", 2.02, "noise"),
    ],
)
def test_the_name_says_what_is_better(name: str, after: float, verdict: str) -> None:
    before = BenchFigure(2.0, 1.999, 2.001)
    assert judge(name, before, BenchFigure(after, after - 0.001, after + 0.001)).verdict == verdict


def test_an_end_that_is_not_known_judges_nothing() -> None:
    percentiles = {"p50": 1.0, "p50_low": 0.9, "p50_high": 1.1, "p95": 2.0, "p95_low": 1.9, "p95_high": None}
    figures = figures_of({"added_ms": percentiles})
    assert figures == {"added_ms.p50": BenchFigure(1.0, 0.9, 1.1), "added_ms.p95": BenchFigure(2.0, 1.9, None)}
    later = BenchFigure(9.0, 8.9, 9.1)
    assert judge("added_ms.p95", figures["added_ms.p95"], later).verdict == "unknown"


def test_the_command_says_what_differs_and_its_status_what_is_worse(here: Run, tmp_path: Path) -> None:
    draw = random.Random(3)
    for side, factor in (("a", 1.0), ("b", 3.0)):
        for _ in range(3):
            place = kept_place(tmp_path / side, "scale", "AMD EPYC, 2 cores", "abc+changes")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps({**result_of(draw, factor), "dtype": f"of {side}"}))
    assert [each.name for each in sorted((tmp_path / "a").rglob("*.json"))] == ["1.json", "2.json", "3.json"]
    same, worse = here(f"bench compare {tmp_path}/a {tmp_path}/a"), here(f"bench compare {tmp_path}/a {tmp_path}/b")
    assert same.status == 0
    assert same.out.rpartition("\n\n")[2].startswith("NOT WORSE")
    assert worse.status == 1
    assert "dtype differs: of a before, of b after" in worse.out
    for name in ("once", "other"):
        (tmp_path / name).write_text('{"commit": "abc", "total_s": 1.0}')
    unjudged = here(f"bench compare {tmp_path}/once {tmp_path}/other")
    assert (unjudged.status, unjudged.out.splitlines()[-1][:10]) == (2, "NOT JUDGED")
    (tmp_path / "a" / "bad.json").write_text("[")
    refused = here(f"bench compare {tmp_path}/a {tmp_path}/b")
    assert refused.status == 2
    assert "bad.json is no JSON object" in refused.err
    assert here(f"bench compare {tmp_path}/b {tmp_path}").status == 2


def test_a_result_is_kept_by_machine_and_commit(
    tmp_path: Path, set_settings: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    set_settings(reports=tmp_path)
    keep_result(bench_balance(20, 3, 0), "balance")
    [kept] = (tmp_path / "benchmarks").rglob("balance/1.json")
    assert str(kept) in capsys.readouterr().err.replace("\n", "")
    assert compare_results(read_side(kept), read_side(kept.parent)).changes
