"""What the project answers is what its golden files hold; `python scripts/golden.py --write` makes them anew."""

import json
from pathlib import Path

import golden
import pytest


@pytest.mark.parametrize("name", ["openapi", "oracle_routes", "sample_week"])
def test_answers_equal_their_golden_file(name: str) -> None:
    assert golden.check(name) == []


@pytest.mark.slow
def test_the_backtest_bench_equals_its_golden_file() -> None:
    assert golden.check("bench_backtest") == []


@pytest.mark.parametrize(
    ("new", "found"),
    [
        ({"a": 1.0 + 1e-12, "b": [1, "x"], "c": None}, []),
        ({"a": 1, "b": [1, "x"], "c": None}, []),
        ({"a": 1.001, "b": [1, "x"], "c": None}, ["$.a: 1.0 is now 1.001"]),
        ({"a": 1.0, "b": [1.0, "y"], "c": 0}, ["$.b[0]: 1 is now 1.0", '$.b[1]: "x" is now "y"', "$.c: null is now 0"]),
        ({"a": 1.0, "b": [1], "d e": 2}, ["$.b: length 2 is now 1", "$.c: null is missing now", "$['d e']: 2 is new"]),
    ],
)
def test_differences_name_their_path_and_both_values(new: object, found: list[str]) -> None:
    assert golden.differences({"a": 1.0, "b": [1, "x"], "c": None}, new) == found


def test_what_a_fit_gives_may_differ_a_little_by_machine() -> None:
    old = {"tails": [{"shortfall_pct": 2.1581, "beyond": 3}], "price": 2.1581}
    near = {"tails": [{"shortfall_pct": 2.1626, "beyond": 3}], "price": 2.1581}
    far = {"tails": [{"shortfall_pct": 2.2581, "beyond": 4}], "price": 2.1582}
    assert golden.differences(old, near) == []
    assert [line.partition(":")[0] for line in golden.differences(old, far)] == [
        "$.price",
        "$.tails[0].beyond",
        "$.tails[0].shortfall_pct",
    ]


def test_another_week_may_differ_in_measured_speeds_alone(tmp_path: Path) -> None:
    week = json.loads(golden.SAMPLE_WEEK.read_text(encoding="utf-8"))
    runs = {run["study"]: run for run in week["runs"]}
    runs["split_strategies"]["records"]["results"]["link"]["latency_ms"] = 1.0
    runs["risk_warnings"]["records"]["findings"][0] = "another finding"
    file = tmp_path / "week.json"
    file.write_text(json.dumps(week), encoding="utf-8")
    assert [line.partition(":")[0] for line in golden.check_week(file)] == ["$.studies.risk_warnings.findings[0]"]
