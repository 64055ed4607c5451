"""Benchmarks: what is measured and compared, by hand on plain values; and what the commands print. Speeds: never."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import pytest
from commands import Run

from qubic_lab.bench.engine import (
    EngineSetup,
    EngineSpeed,
    Pairing,
    SpeedRatio,
    plan_ratios,
    plan_setups,
    ratio,
    total_threads,
)
from qubic_lab.bench.gpu import dtype_for
from qubic_lab.bench.result import MeasuredResult, Spread, Table
from qubic_lab.cli.bench import show

ENGINE = "bench engine --ranks 2 --batch 1,2 --prompt-tokens 5 --new-tokens 4 --repeat 2"


@pytest.fixture(autouse=True)
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qubic_lab.bench.engine.PROBE_BYTES", 2**16)


@pytest.mark.parametrize(
    ("cores", "ranks", "threads"), [(2, (1, 2), 2), (16, (1, 2, 3), 12), (16, (1, 2), 16), (1, (1, 2), 2), (3, (2,), 2)]
)
def test_threads_can_be_shared_out_evenly(cores: int, ranks: tuple[int, ...], threads: int) -> None:
    assert total_threads(cores, ranks) == threads


def test_a_repeat_measures_each_setup_once_and_what_is_compared_side_by_side() -> None:
    assert [(s.runner, s.ranks, s.batch, s.requests) for s in plan_setups((1, 2), (1, 2))] == [
        ("transformers", 1, 1, 1),
        ("pipeline", 1, 1, 1),
        ("pipeline", 2, 1, 2),
        ("pipeline", 1, 2, 2),
        ("transformers", 1, 2, 2),
        ("pipeline", 2, 2, 4),
        ("pipeline", 1, 4, 4),
    ]


def test_all_that_is_compared_is_measured_and_ranks_at_the_same_batch_and_requests() -> None:
    setups = plan_setups((1, 2, 3), (1, 4))
    for pairing in plan_ratios((1, 2, 3), (1, 4)):
        assert {pairing.numerator, pairing.denominator} <= set(setups)
    compared = {p.name: (p.numerator, p.denominator) for p in plan_ratios((1, 3), (4,))}
    three, one = EngineSetup("pipeline", 3, 4), EngineSetup("pipeline", 1, 4)
    assert compared["ranks_over_one_rank_same_batch"] == (three, one)
    assert compared["ranks_over_one_rank_same_requests"] == (three, EngineSetup("pipeline", 1, 12))
    assert three.requests == 12


def test_a_ratio_is_the_median_of_the_repeats_own_ratios() -> None:
    one, reference = EngineSetup("pipeline", 1, 8), EngineSetup("transformers", 1, 8)
    # The machine drifts: 2, 3 and 1 times as fast in the repeats, though the medians of the speeds are equal.
    samples = {
        one: [EngineSpeed(20.0, 7.0), EngineSpeed(90.0, 7.0), EngineSpeed(10.0, 7.0)],
        reference: [EngineSpeed(10.0, 1.0), EngineSpeed(30.0, 1.0), EngineSpeed(10.0, 1.0)],
    }
    decode = Pairing("faster", 8, 1, one, reference, attrgetter("decode_tokens_per_s"))
    prefill = Pairing("faster", 8, 1, one, reference, attrgetter("prefill_tokens_per_s"))
    assert ratio(decode, samples, "bf16") == SpeedRatio("faster", 8, 1, "bf16", value=2.0, low=1.0, high=3.0)
    assert ratio(prefill, samples, "bf16").value == 7.0


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16"), ((12, 0), "bf16"), (None, "bf16")]
)
def test_gpus_too_old_for_bf16_compute_in_fp16(capability: tuple[int, int] | None, dtype: str) -> None:
    assert dtype_for(capability) == dtype


@dataclass(frozen=True)
class SmallResult(MeasuredResult):
    """A result with one table and one sentence."""

    times: tuple[Spread, ...]

    def report(self) -> Iterator[Table | str]:
        yield Table(("time", "median"), [(str(n), each.text(".1f")) for n, each in enumerate(self.times)])
        yield "not judged"


def test_a_result_is_one_json_object_or_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    result = SmallResult((Spread.of([1.0, 3.0, 2.0]), Spread(20.0, 1.0, 30.0)), machine="this one", commit="abc")
    show(result, json=True)
    spreads = [{"median": 2.0, "low": 1.0, "high": 3.0}, {"median": 20.0, "low": 1.0, "high": 30.0}]
    assert json.loads(capsys.readouterr().out) == {"times": spreads, "machine": "this one", "commit": "abc"}
    show(result, json=False)
    assert capsys.readouterr().out.endswith("\n\nnot judged\ncommit: abc, machine: this one\n")


def test_bench_engine_compares_ranks_and_transformers(tiny: Path, shared_ranks: None, here: Run) -> None:
    result = here(f"{ENGINE} --dtype bf16,fp32 --model {tiny} --json").json
    assert result.keys() >= {"model", "device", "threads", "library", "machine", "commit", "meaningless"}
    assert result["bandwidth_before_gb_per_s"] > 0 and result["bandwidth_after_gb_per_s"] > 0
    assert len(result["setups"]) == 2 * len(plan_setups((1, 2), (1, 2)))
    for setup in result["setups"]:
        assert setup["ranks"] * setup["threads_a_rank"] == result["threads"]
        for speed in (setup["decode_tokens_per_s"], setup["prefill_tokens_per_s"]):
            assert 0 < speed["low"] <= speed["median"] <= speed["high"]
    compared = {("one_rank_over_transformers", 1), ("one_rank_over_transformers_prefill", 1)}
    compared |= {("ranks_over_one_rank_same_batch", 2), ("ranks_over_one_rank_same_requests", 2)}
    assert {(r["name"], r["ranks"], r["batch"], r["dtype"]) for r in result["ratios"]} == {
        (*each, batch, dtype) for each in compared for batch in (1, 2) for dtype in ("bf16", "fp32")
    }
    assert all(0 < r["low"] <= r["value"] <= r["high"] for r in result["ratios"])


def test_bench_gpu_runs_on_a_cpu_too(tiny: Path, shared_ranks: None, here: Run) -> None:
    line = f"bench gpu --model {tiny} --new-tokens 3"
    result = here(f"{line} --json").json
    expected = {"device": "cpu", "dtype": "bf16", "new_tokens": 3, "memory_reserved_bytes": None}
    assert result.items() >= expected.items()
    assert result["memory_used_bytes"] > 0 and "CPU" in result["memory_note"]
    assert result.keys() >= {"load_s", "seconds", "ttft_ms", "tokens_per_s", "threads", "commit"}
    assert "fp16" in here(f"{line} --dtype fp16").out


@pytest.mark.dist
def test_samples_are_compared_with_one_sample_of_the_same_repeat(tiny: Path, shared_ranks: None, here: Run) -> None:
    ask = "bench samples --ranks 2 --prompt-tokens 9 --new-tokens 3 --dtype fp32 --samples 4 --repeat 3"
    result = here(f"{ask} --model {tiny} --json").json
    assert (result["samples"], result["lanes"], result["slots"]) == (4, 2, 2), "as few slots as the samples need"
    one, several = result["one_s"]["all"], result["samples_s"]["all"]
    assert len(one) == 3 and min(one) > 0
    assert result["times"]["all"] == [pytest.approx(s / o) for s, o in zip(several, one, strict=True)]
    assert result["times"]["low"] <= result["times"]["median"] <= result["times"]["high"]
    assert result["within_limit"] == (result["times"]["median"] <= result["limit"] == 2.0)
    assert (result["prompt_tokens"], result["new_tokens"], result["dtype"]) == (9, 3, "fp32")
