"""The study of the engine's gains: each kept result is read, told with its model, or named as missing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from examples import example
from headlines import told

from qubic_lab.bench.engine import SpeedRatio
from qubic_lab.bench.prediction_result import PredictionCell
from qubic_lab.bench.samples import SampleTimes
from qubic_lab.bench.slow_link import BreakEven
from qubic_lab.bench.speculation import SpeculationPoint
from qubic_lab.errors import InputError
from qubic_lab.studies import engine_gains as study

ROOT = Path(__file__).parents[1]
ACCURACY = ROOT / "data" / "accuracy"
RESULTS: dict[str, dict[str, Any]] = {
    "schedules": {"seeds": 10_000, "tokens": 3_000, "differing": 0, "missing": 0},
    "prefixes": {"speedup": 12.5, "speedup_low": 11.5, "speedup_high": 13.6, "same": True},
    "long-prompt": {"times": 2.4, "low": 2.1, "high": 2.8, "answers_unchanged": True},
    "speculation": {"points": (SpeculationPoint("code", 9, 1.0, 0.9, 2.39, 2.2, 2.5),), "equal_tokens": True},
    "samples": {"times": SampleTimes(1.39, 1.2, 1.6, (1.2,)), "layers": (15, 15)},
    "small-weights": {"ratios": {"int8_vs_bf16": (SpeedRatio(1.9, 1.8, 2.0, "smollm2", 1, 1),)}},
    "links": {"break_even": (BreakEven("free", 1, False, None, True), BreakEven("free", 4, False, 1.0, True))},
    "prediction": {
        "median_error": 0.031,
        "median_memory_error": 0.012,
        "cells": tuple(
            example(PredictionCell, error=error, answer=answer)
            for answer, error in (("free", -0.3), ("free", 0.2), ("", 0))
        ),
    },
}


def kept(folder: Path, *names: str, **changes: Any) -> Path:
    """Keep results of these kinds as a benchmark prints them."""
    for name in names:
        kind, _, _ = study.KINDS[name]
        values = {"model": "smollm2", "dtype": "bf16", "device": "cpu", "threads": 2, "commit": "abc"}
        found = example(kind, **values | RESULTS[name] | changes)
        (folder / f"{name}-a.json").write_text(json.dumps(found.to_dict()))
    return folder


def test_every_kind_is_read_from_what_its_benchmark_prints(tmp_path: Path) -> None:
    gains = study.read(kept(tmp_path, *study.KINDS), ACCURACY)
    assert not gains.absent
    found = {row["figure"]: row for row in study.rows(gains) if row["file"].endswith("-a.json")}
    assert found[study.WHAT["prefixes"]]["value"] == 12.5
    assert found[study.WHAT["drafts-error"]]["value"] == 25
    assert {row["commit"] for row in found.values()} == {"abc"}
    assert (
        set(RESULTS) == set(study.KINDS) == {gain.kind for each in gains.measured for gain in each.gains} - {"accuracy"}
    )
    said = told(study.findings(gains), "speed")
    assert "The engine meets 7 of 9 targets" in str(study.findings(gains)[0]), "a long prompt and drafts do not"
    assert any("random schedules: 0 of 3,000 (smollm2" in str(each) for each in said)
    assert any("12.5 (11.5 to 13.6) (smollm2, bf16, cpu, 2 threads a rank, commit abc)" in str(each) for each in said)
    assert any("one answer: never, it is slower at once (smollm2" in str(each) for each in said)


def test_what_is_not_kept_is_named_with_its_command_and_a_difference_is_told(tmp_path: Path) -> None:
    gains = study.read(kept(tmp_path, "prefixes", same=False), tmp_path / "none")
    assert set(gains.absent) == {*study.KINDS, "accuracy"} - {"prefixes"}
    texts = [str(each) for each in study.findings(gains)]
    assert texts[0].startswith("The engine meets 1 of 1 measured target. Not measured: schedules, long prompt")
    assert "These differ and must not: tokens of prefixes-a.json." in texts
    assert "samples (qubic-lab bench samples --samples 8 --json)" in texts[-1]
    assert str(study.findings(study.Gains((), gains.absent))[0]) == "None of the engine's gains was measured."


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"commit": "abc"}'])
def test_another_file_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "links.json").write_text(content)
    (tmp_path / "int8.json").write_text(content)
    for folders in ((tmp_path, ACCURACY), (ACCURACY, tmp_path)):
        with pytest.raises(InputError, match=r"\.json") as refused:
            study.read(*folders)
        assert "\n" not in str(refused.value)


def test_every_result_that_comes_with_the_project_is_read() -> None:
    gains = study.read(ROOT / "data" / "gains", ACCURACY)
    files = {*(ROOT / "data" / "gains").glob("*.json"), *ACCURACY.glob("*.json")}
    assert {each.file for each in gains.measured} == {file.name for file in files}
    assert not [each.file for each in gains.measured if each.faults or "/" in each.model]


def test_a_target_is_met_by_the_median_and_on_free_text_by_an_interval_that_reaches_it() -> None:
    gain = study.Gain("samples", "samples", 1.6, 1.4, 1.8, 1.5, at_most=True)
    assert not gain.met and replace(gain, value=1.5).met and replace(gain, target=None).met is None
    free = study.Gain("speculation", "free", 0.95, 0.9, 0.98, 0.97, reaches=True)
    assert free.met and not replace(free, reaches=False).met and not replace(free, high=0.96).met
