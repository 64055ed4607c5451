"""The study of the engine's speed: a saved result is read back or refused, judged, and told with what is missing."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from examples import example
from headlines import told

from qubic_lab.bench.engine import EngineResult, SetupResult, SpeedRatio
from qubic_lab.bench.result import Spread
from qubic_lab.errors import InputError
from qubic_lab.runs.collect_week import judge
from qubic_lab.runs.experiment import load
from qubic_lab.runs.records import Records
from qubic_lab.studies import engine_speed as study
from qubic_lab.studies.acceptance import AcceptanceRow

ROOT = Path(__file__).parents[1]
LOW, MET = {1: 1.2, 8: 0.9}, {1: 0.98, 8: 1.1}


def ratios(medians: dict[int, float], ranks: int = 1) -> tuple[SpeedRatio, ...]:
    return tuple(SpeedRatio(value, value - 0.1, value + 0.1, "smollm2", ranks, b) for b, value in medians.items())


def result(vs_vllm: dict[int, float], **changes: Any) -> EngineResult:
    speed = Spread(20.0, 19.0, 21.5)
    side = SetupResult("vs_vllm", "ours", 1, 2, 8, speed, speed, Spread(30.0, 29.0, 31.0))
    plain = {
        "model": "smollm2",
        "repeat": 7,
        "prompt_tokens": 64,
        "measured_utc": "2026-11-30T15:00:00+00:00",
        "setups": (side,),
    }
    absent = {"vs_llamacpp": "make peers"}
    return example(EngineResult, **plain | {"ratios": {"vs_vllm": ratios(vs_vllm)}, "not_measured": absent} | changes)


def rows(**runs: EngineResult) -> dict[str, AcceptanceRow]:
    """Return the rows of SmolLM2 by the name of their ratio."""
    found = judge({run: Records(results={"engine_speed": asdict(each)}) for run, each in runs.items()})
    names = {what: name for name, what in study.WHAT.items()}
    what = [row.what.partition(": ") for row in found]
    return {names[each]: row for (of, _, each), row in zip(what, found, strict=True) if of == "Speed of smollm2"}


def saved(folder: Path, content: Any) -> Path:
    file = folder / "saved.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_a_saved_result_is_read_back_whole(tmp_path: Path):
    assert EngineResult.from_json(saved(tmp_path, result(MET).to_dict())) == result(MET)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"speed": 1}, "unknown name 'speed'"),
        ({"commit": None}, "'commit' is missing"),
        ({"measured_utc": None}, "'measured_utc' is missing"),
        ({"repeat": "7"}, "repeat is '7': it must be a whole number"),
        ({"ratios": {"vs_vllm": [{"median": 1.0}]}}, "'low' is missing"),
        ({"ratios": {"vs_vllm": [asdict(ratios(MET)[0]) | {"mean": 1.0}]}}, "unknown name 'mean'"),
    ],
)
def test_another_content_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], error: str):
    content = {name: value for name, value in (result(MET).to_dict() | change).items() if value is not None}
    with pytest.raises(InputError, match=error) as refused:
        EngineResult.from_json(saved(tmp_path, content))
    assert "\n" not in str(refused.value)


def test_what_is_no_json_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="is no JSON object"):
        EngineResult.from_json(saved(tmp_path, "{"))
    with pytest.raises(InputError, match="cannot be read"):
        EngineResult.from_json(tmp_path / "none.json")


def test_every_shipped_result_is_read_and_shown():
    (of_study,) = load(ROOT / "experiments" / "engine_speed.yaml").studies
    files = sorted((ROOT / "data" / "engine").glob("*.json"))
    assert [ROOT / name for name in sorted(of_study.data)] == files
    assert [ROOT / name for name in sorted(of_study.quick.grid["measured"])] == files
    assert all(told(study.findings(EngineResult.from_json(file)), "speed") for file in files)


def test_a_target_counts_as_met_from_97_percent_and_the_worst_run_decides():
    row = rows(met=result(MET))["vs_vllm"]
    assert (row.verdict, row.run, row.reason) == ("pass", "met", "")
    assert row.measured == "measured on 2026-11-30: 0.98 (0.88 to 1.08) at B = 1, 1.10 (1.00 to 1.20) at B = 8"
    row = rows(met=result(MET), other=result({}), long=result(LOW, prompt_tokens=512))["vs_vllm"]
    assert (row.verdict, row.run) == ("pass", "met"), "the others measured other things"
    row = rows(met=result(MET), low=result(LOW))["vs_vllm"]
    assert (row.verdict, row.run, row.reason) == ("fail", "low", "missed: 0.90 of 1 at B = 8")


def test_what_was_not_measured_has_no_verdict_but_a_reason():
    found = rows(run=result({1: 1.2}))
    assert (found["vs_vllm"].verdict, found["vs_vllm"].reason) == ("not measured here", "not measured: B = 8")
    assert (found["vs_llamacpp"].verdict, found["vs_llamacpp"].reason) == ("not measured here", "make peers")
    assert found["vs_transformers"].reason == "the run was not asked for it"
    few = rows(run=result(LOW, repeat=1))["vs_vllm"]
    assert few.verdict == "not measured here" and "1 pair: a verdict takes 7" in few.reason
    other = rows(run=replace(result(MET), model="another"))["vs_vllm"]
    assert other.reason == "no finished run of engine_speed this week has measured smollm2"


def test_findings_name_the_peer_the_date_what_missed_and_what_is_missing():
    headline, targets, source, absent = study.findings(result(LOW))
    assert str(headline) == "smollm2 decodes at 0.90 times the speed of vLLM or more (2 batch sizes, 2026-11-30)."
    assert headline.figure() == "0.90 × (0.80\N{NO-BREAK SPACE}…\N{NO-BREAK SPACE}1.00)"
    assert str(targets) == "These missed their targets: vs_vllm at B = 8 (0.90 of 1)."
    assert "2026-11-30" in str(source) and "7 pairs" in str(source)
    assert str(absent).startswith("Not measured: vs_transformers") and "vs_llamacpp" in str(absent)
    assert str(study.findings(result(LOW, repeat=1))[1]) == "Only 1 pair of measurements: a verdict takes 7."
    assert str(study.findings(result({}, ratios={}))[0]) == "Nothing was compared with smollm2 on 2026-11-30."


def test_tables_have_targets_ranges_and_reasons():
    first, second = study.ratio_rows(result(LOW))
    assert (first["median"], first["target"], second["target"]) == (1.2, 1.0, 1.0)
    (side,) = study.speed_rows(result(LOW))
    assert (side["decode_tokens_per_s"], side["decode_low_tokens_per_s"], side["bandwidth_gb_per_s"]) == (20, 19, 30)
    assert study.source_rows(result(LOW))[0]["peers"] == "none"
    assert study.missing(result(LOW))["vs_llamacpp"] == "make peers"
