"""Benchmarks: what is measured and compared, by hand on plain values; and what the commands print. Speeds: never."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import Run

from qubic_lab.bench.engine import EngineSpeed, Sample, compute_share, quotients, total_threads
from qubic_lab.bench.gpu import dtype_for
from qubic_lab.bench.result import MeasuredResult, Spread, Table
from qubic_lab.bench.speculation import accepted_share
from qubic_lab.cli.bench import show
from qubic_lab.errors import InputError
from qubic_lab.model.config import load_config
from qubic_lab.model.cost import model_cost

ENGINE = "bench engine --ranks 1,2 --batch 1,2 --prompt-tokens 5 --new-tokens 60 --repeat 1"


@pytest.fixture(autouse=True)
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qubic_lab.bench.engine.PROBE_BYTES", 2**16)


@pytest.mark.parametrize(
    ("cores", "ranks", "threads"), [(2, (1, 2), 2), (16, (1, 2, 3), 12), (16, (1, 2), 16), (1, (1, 2), 2), (3, (2,), 2)]
)
def test_threads_can_be_shared_out_evenly(cores: int, ranks: tuple[int, ...], threads: int) -> None:
    assert total_threads(cores, ranks) == threads


def test_a_ratio_is_taken_within_pairs() -> None:
    # The machine drifts: 2, 3 and 1 times as fast in the pairs, though the medians of the speeds are equal.
    ours = [Sample(EngineSpeed(decode, 7.0), 50.0) for decode in (20.0, 90.0, 10.0)]
    theirs = [Sample(EngineSpeed(decode, 1.0), 50.0) for decode in (10.0, 30.0, 10.0)]
    assert quotients(attrgetter("decode"), ours, theirs) == [2.0, 3.0, 1.0]
    assert quotients(attrgetter("prefill"), ours, theirs) == [7.0, 7.0, 7.0]


def test_the_share_of_computing_is_that_of_the_least_busy_rank_while_all_requests_decode() -> None:
    def span(rank: int, kind: str, phase: str, start: float, end: float, *requests: int) -> dict[str, Any]:
        return {"rank": rank, "kind": kind, "phase": phase, "requests": requests, "start_ms": start, "end_ms": end}

    spans = pd.DataFrame(
        [
            span(0, "compute", "decode", 0.0, 50.0, 1),
            span(0, "compute", "decode", 100.0, 150.0, 1, 2),  # from here both decode
            span(0, "sample", "decode", 150.0, 160.0, 1, 2),
            span(0, "receive", "decode", 160.0, 200.0, 1, 2),
            span(1, "compute", "decode", 110.0, 190.0, 1, 2),
            span(0, "compute", "decode", 190.0, 230.0, 1, 2),
            span(1, "compute", "decode", 150.0, 240.0, 2),  # past the end of request 1, at 230
            span(0, "compute", "decode", 300.0, 400.0, 9),  # another run
        ]
    )
    # 50 + 10 + 40 of the 130 ms from 100 to 230 on rank 0.
    assert compute_share(spans, (1, 2)) == pytest.approx(100 / 130)
    with pytest.raises(InputError, match="before all of them decoded: give more --new-tokens"):
        compute_share(spans, (1, 9))


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
    source = {"machine": "this one", "commit": "abc"}
    assert json.loads(capsys.readouterr().out) == source | {"times": spreads, "noise": None}
    show(result, json=False)
    assert capsys.readouterr().out.endswith("\n\nnot judged\ncommit: abc, machine: this one\n")


@pytest.mark.slow
def test_bench_engine_compares_ranks_and_transformers(
    tiny: Path, shared_ranks: None, here: Run, set_settings: Callable[..., None], tmp_path: Path
) -> None:
    set_settings(peers=tmp_path)  # without an environment of its own, transformers is ours
    picture = tmp_path / "ratios.svg"
    result = here(f"{ENGINE} --model {tiny} --picture {picture} --json").json
    assert result.keys() >= {"model", "device", "threads", "dtype", "machine", "commit", "meaningless"}
    assert list(result["versions"]) == ["transformers"] and result["not_measured"] == {}
    shapes = [(s["comparison"], s["system"], s["ranks"], s["requests"]) for s in result["setups"]]
    assert shapes == [
        *(("pipeline_vs_whole", "ours", ranks, ranks * batch) for batch in (1, 2) for ranks in (2, 1)),
        *(("exact_vs_fastest", system, 1, batch) for batch in (1, 2) for system in ("ours", "ours by torch")),
        *(("vs_transformers", system, 1, batch) for batch in (1, 2) for system in ("ours", "transformers")),
    ]
    for setup in result["setups"]:
        assert setup["ranks"] * setup["threads_a_rank"] == result["threads"]
        for found in (setup["decode_tokens_per_s"], setup["prefill_tokens_per_s"], setup["bandwidth_gb_per_s"]):
            assert 0 < found["low"] <= found["median"] <= found["high"]
    of_pipeline, of_one = {"pipeline_vs_whole", "compute_share"}, {"vs_transformers", "prefill_vs_transformers"}
    assert result["ratios"].keys() == {*of_pipeline, *of_one, "bandwidth_fraction", "exact_vs_fastest"}
    for name, found in result["ratios"].items():
        ranks = 2 if name in of_pipeline else 1
        assert [(r["model"], r["ranks"], r["batch"]) for r in found] == [(str(tiny), ranks, 1), (str(tiny), ranks, 2)]
        assert all(0 < r["low"] <= r["median"] <= r["high"] for r in found)
    assert "transformers" in picture.read_text()


def test_bench_gpu_runs_on_a_cpu_too(tiny: Path, shared_ranks: None, here: Run) -> None:
    line = f"bench gpu --model {tiny} --new-tokens 3"
    result = here(f"{line} --json").json
    expected = {"device": "cpu", "dtype": "bf16", "new_tokens": 3, "memory_reserved_bytes": None, "temperature": 0.7}
    assert result.items() >= expected.items()
    assert result["memory_used_bytes"] > 0 and "CPU" in result["memory_note"]
    assert result["memory_total_bytes"] > result["memory_used_bytes"]
    assert result["prompt"] == "What is Qubic blockchain?" and result["answer"]
    out = here(f"{line} --prompt 'Who are you?' --temperature 0").out
    greedy = here(f"{line} --prompt 'Who are you?' --temperature 0 --json").json["answer"]
    assert f"Who are you?\n{greedy}\n" in out and "MiB of memory" in out and "answer:" not in out
    assert result.keys() >= {"load_s", "seconds", "ttft_ms", "tokens_per_s", "threads", "commit"}
    assert "fp16" in here(f"{line} --dtype fp16").out


def test_each_layer_has_its_parameters_bytes_operations_and_time(tiny: Path, here: Run) -> None:
    config = load_config(tiny)
    line = f"model analyse --model {tiny} --context 9"
    found = here(f"{line} --dtype fp32 --repeat 3 --json").json
    names = [each["part"] for each in found["parts"]]
    assert names == ["embedding", *(f"layer {n}" for n in range(config.layers)), "head"]
    cost = model_cost(config, "fp32", 9)
    for each, part in zip(found["parts"][1:-1], [cost.layer] * config.layers, strict=True):
        figures = (each["parameters"], each["weight_bytes"], each["flops"])
        assert figures == (part.parameters, part.weight_bytes, part.flops)
    for each in (*found["parts"], found["whole"]):
        assert 0 < each["time_ms"]["low"] <= each["time_ms"]["median"] <= each["time_ms"]["high"]
    assert found["whole"]["time_ms"]["low"] >= sum(each["time_ms"]["low"] for each in found["parts"])
    whole = (found["whole"]["parameters"], found["whole"]["weight_bytes"])
    assert whole == (cost.parameters, cost.weight_bytes)
    assert found["whole"]["parameters"] == sum(each["parameters"] for each in found["parts"])
    out = here(f"{line} --repeat 1").out
    assert f"| layer {config.layers - 1} " in out and "| whole model" in out


def test_layers_are_analysed_without_weights_too(here: Run) -> None:
    found = here("model analyse --model deepseek --no-time --json").json
    assert (len(found["parts"]), found["whole"]["parameters"]) == (30, 1_777_088_000)
    assert {each["time_ms"] for each in found["parts"]} == {None}
    assert "| layer 27    | 46,797,824 " in here("model analyse --model deepseek --no-time").out


def test_drafts_are_right_where_an_answer_repeats_its_question() -> None:
    assert accepted_share((1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 9)) == pytest.approx(
        2 / 4
    )  # 3 4; one wrong, one step without
    assert accepted_share((1, 2), (7, 8, 9)) == 0


@pytest.mark.dist
def test_drafts_are_compared_with_none_for_each_kind_of_text(
    tiny: Path, shared_ranks: None, here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"quoting": ("One, two.", "One, two."), "free": ("Say it.", "Nobody knows.")}
    monkeypatch.setattr("qubic_lab.bench.speculation.TEXTS", texts)
    result = here(f"bench speculation --ranks 1 --pairs 6 --dtype fp32 --model {tiny} --json").json
    tokens = [(each["kind"], each["tokens"]) for each in result["points"]]
    assert tokens == [("quoting", 10), ("free", 14), ("the model's own, free", 128)], "a byte is a token, and one more"
    assert result["equal_tokens"] and all(each["low"] <= each["ratio"] <= each["high"] for each in result["points"])
    assert [each["accepted"] > 0 for each in result["points"][:2]] == [True, False], "a quotation, and nothing like it"


def test_a_common_beginning_is_computed_once(tiny: Path, shared_ranks: None, here: Run) -> None:
    ask = "bench prefixes --questions 3 --common-tokens 140 --own-tokens 5 --slots 1 --repeat 6"
    result = here(f"{ask} --model {tiny} --json").json
    assert result["same"] and result["cached_share"] == pytest.approx(2 * 128 / (3 * 145))
    assert len(result["whole_s"]) == 6 and result["speedup_low"] <= result["speedup"] <= result["speedup_high"]


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
