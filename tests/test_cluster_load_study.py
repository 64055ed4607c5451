"""What is said of load, overload and an hour of faults: verdicts of each, and the command of what was not measured."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from examples import example

from qubic_lab.bench.load import LoadLevel, LoadResult, Overload
from qubic_lab.chaos.soak import SoakResult
from qubic_lab.errors import InputError
from qubic_lab.studies import cluster_load as study

LEVEL = example(LoadLevel, surface="cluster", rate=120.0, seconds=120.0, sent=14_400, latency_ms={"p99": 1_800.0})
OVERLOAD = example(Overload, surface="cluster", limit="nodes", peak_per_s=24.0, times=5.0, over=LEVEL, steps=())
OVERLOAD = replace(OVERLOAD, calm=LEVEL, capacity_per_s=24.0, share_of_peak=0.95, recovery_s=0.0)
OVERLOADED = example(LoadResult, levels=(), overloads=(OVERLOAD,), bound_s=2.0, noise=None)
SOAK = example(SoakResult, minutes=60.0, faults={"node-killed": 180}, requests={"streams": 18_000}, noise=None)
SOAK = replace(SOAK, errors=0, growths=(), passed=True)


def test_kept_files_are_read_by_their_names_and_what_is_missing_has_its_command(tmp_path: Path) -> None:
    (tmp_path / "overload-nodes.json").write_text(json.dumps(asdict(OVERLOADED)))
    found = study.read(tmp_path)
    assert found == study.Loads({}, {"overload-nodes.json": OVERLOADED}, {})
    assert [row["sent"] for row in study.rows(found)] == [14_400]
    said = [str(each) for each in study.findings(found)]
    assert "goodput is 95\u00a0% of the peak (asked: 90\u00a0%), 99 % of the answers took at most 1.80 s" in said[0]
    assert said[0].endswith("all held.")
    assert all(study.COMMANDS[kind] in said[-1] for kind in ("load", "soak"))
    (tmp_path / "soak.json").write_text("{")
    with pytest.raises(InputError, match=r"soak\.json is no JSON object"):
        study.read(tmp_path)


def test_what_is_missed_is_named() -> None:
    slow = replace(LEVEL, latency_ms={"p99": 2_100.0})
    for changed, missed in (
        (replace(OVERLOAD, share_of_peak=0.89), "missed: goodput"),
        (replace(OVERLOAD, over=slow, recovery_s=None), "missed: latency, recovery"),
    ):
        assert study.verdict(changed, 2.0).text() == missed
    level = replace(LEVEL, rate=100.0, sent=2_000, in_time=1_990)
    loaded = replace(OVERLOADED, levels=(replace(level, rate=20.0), level), overloads=())
    said = [str(each) for each in study.findings(study.Loads({"load.json": loaded}, {}, {"soak.json": SOAK}))]
    text = "At 100 requests a second to cluster, 1,990 of 2,000 requests were answered right and in time."
    assert said[0] == text
    text = "In 60 minutes with 180 faults clients saw 0 errors in 18,000 requests (asked: none); nothing grew: held."
    assert said[1] == text
