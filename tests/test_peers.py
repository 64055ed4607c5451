"""Engines that ours is compared with: their processes, every fault of theirs, how speeds are read, and GGUF files."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from clusters import WITHIN_S, all_gone, family, wait_until
from commands import Run
from models import tiny_model

from qubic_lab.bench import peers
from qubic_lab.bench.peer_driver import as_float, decode_rate, measure, prefill_rate, stored_tensors, write_gguf
from qubic_lab.bench.peers import PeerError, PeerModel, PeerProcess
from qubic_lab.model.config import load_config
from qubic_lab.model.gguf import LAYER_NAMES, OUTER_NAMES, _open, _values

PROMPTS = ((1, 2), (3, 4))
ENGINE = "bench engine --ranks 1,2 --batch 1,2 --prompt-tokens 5 --new-tokens 60 --repeat 1 --json --peers llama.cpp"


@pytest.fixture
def model(tiny: Path) -> PeerModel:
    return PeerModel(tiny, "bf16", "cpu", threads=2, context=16)


def test_a_peer_is_stopped_unless_it_measures_and_leaves_nothing_behind(fake_peer: Any, model: PeerModel) -> None:
    with PeerProcess(fake_peer("well"), model) as process:
        own = psutil.Process(process._process.pid)
        assert process.version == "fake 1.0"
        for _ in range(2):
            wait_until(lambda: own.status() == psutil.STATUS_STOPPED)
            speeds = process.measure(PROMPTS, 4)
            assert (speeds.decode_tokens_per_s, speeds.prefill_tokens_per_s) == (20.0, 100.0)
    assert not own.is_running()


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("dies at start", "it ended: ImportError: no module named 'engine'; its output is in .*-llamacpp.log"),
        ("dies later", "it ended: MemoryError: two prompts are too many"),
        ("says garbage", "it said b'garbage', which is no reply"),
        ("fails", "ValueError: 2 prompts"),
        ("hangs", "it said nothing for 0.5 s"),
    ],
)
def test_each_fault_of_a_peer_is_a_reason(
    fake_peer: Any, model: PeerModel, monkeypatch: pytest.MonkeyPatch, mode: str, reason: str
) -> None:
    if mode == "hangs":
        monkeypatch.setattr(peers, "ANSWER_TIMEOUT_S", 0.5)
    with pytest.raises(PeerError, match=reason), PeerProcess(fake_peer(mode), model) as process:
        process.measure(PROMPTS, 4)


def test_what_is_not_installed_or_not_for_this_device_is_a_reason(
    fake_peer: Any, model: PeerModel, set_settings: Callable[..., None], tmp_path: Path
) -> None:
    on_gpu = PeerModel(model.folder, "bf16", "cuda", threads=2, context=16)
    with pytest.raises(PeerError, match=r"llama.cpp is built for CPUs here, and this run is on cuda"):
        PeerProcess(fake_peer("well"), on_gpu)
    set_settings(peers=tmp_path / "nowhere")
    with pytest.raises(PeerError, match=r"llama.cpp is not installed: run `make peers`"):
        PeerProcess(fake_peer("well"), model)


def test_a_killed_bench_leaves_no_stopped_peer(fake_peer: Any, model: PeerModel, tmp_path: Path) -> None:
    fake_peer("well")
    script = f"""
import time
from pathlib import Path
from qubic_lab.bench import peers
peers.DRIVER = Path({str(peers.DRIVER)!r})
peer = next(each for each in peers.PEERS if each.name == "llamacpp")
process = peers.PeerProcess(peer, peers.PeerModel(Path({str(model.folder)!r}), "bf16", "cpu", 2, 16))
print(process._process.pid, flush=True)
time.sleep(600)
"""
    with psutil.Popen([sys.executable, "-c", script], stdout=-1, start_new_session=True) as bench:
        left = psutil.Process(int(bench.stdout.readline()))
        wait_until(lambda: left.status() == psutil.STATUS_STOPPED)
        bench.kill()
        bench.wait()
    left.wait(WITHIN_S)


def test_an_interrupted_bench_ends_a_busy_peer_and_its_workers_at_once(
    fake_peer: Any, model: PeerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[psutil.Process] = []
    interrupted_s = 0.0

    def interrupt(seconds: float) -> None:
        nonlocal interrupted_s
        wait_until(lambda: len(family(process._process.pid)) == 2)
        running.extend(family(process._process.pid))
        interrupted_s = time.monotonic()
        raise KeyboardInterrupt

    monkeypatch.setattr(peers, "END_TIMEOUT_S", 2 * WITHIN_S)
    with pytest.raises(KeyboardInterrupt), PeerProcess(fake_peer("hangs"), model) as process:
        monkeypatch.setattr(process, "_reply", interrupt)
        process.measure(PROMPTS, 4)
    assert time.monotonic() - interrupted_s < WITHIN_S
    wait_until(lambda: all_gone(running))


@pytest.mark.dist
@pytest.mark.slow
def test_the_bench_names_what_it_could_not_measure(fake_peer: Any, tiny: Path, shared_ranks: None, here: Run) -> None:
    fake_peer("dies later")
    result = here(f"{ENGINE} --quantization int8 --model {tiny}").json
    reasons = result["not_measured"]
    measured = {"vs_llamacpp", "prefill_vs_llamacpp", "vs_llamacpp_q8_0", "prefill_vs_llamacpp_q8_0", "vs_llamacpp_rpc"}
    assert reasons.keys() == measured
    assert [each["batch"] for each in result["ratios"]["int8_vs_bf16"]] == [1, 2]
    assert [each["system"] for each in result["setups"] if each["comparison"] == "int8_vs_bf16"][:2] == [
        "ours int8",
        "ours",
    ]
    assert all("two prompts are too many" in reason for reason in reasons.values())
    for name, ranks in {"vs_llamacpp": 1, "prefill_vs_llamacpp": 1, "vs_llamacpp_rpc": 2}.items():
        (found,) = result["ratios"][name]  # of one request, before the fault
        assert found.items() >= {"model": str(tiny), "ranks": ranks, "batch": 1}.items()
        assert 0 < found["low"] <= found["median"] <= found["high"]
    assert set(result["versions"]) == {"llamacpp", "llamacpp_q8_0", "llamacpp_rpc"}


@pytest.mark.dist
def test_ours_are_compared_with_each_other_only_beside_one_rank(
    fake_peer: Any, tiny: Path, shared_ranks: None, here: Run
) -> None:
    fake_peer("well")
    ask = "bench engine --ranks 2 --batch 1 --prompt-tokens 5 --new-tokens 9 --repeat 1 --peers llama.cpp --json"
    result = here(f"{ask} --model {tiny}").json
    assert list(result["ratios"]) == ["vs_llamacpp_rpc"]
    assert result["not_measured"].keys() == {"vs_llamacpp", "prefill_vs_llamacpp", "bandwidth_fraction"}


def test_decode_counts_only_while_all_requests_decode() -> None:
    # From the last first token, at 2 s, until the first request ends, at 4 s: five tokens.
    assert decode_rate([[0.0, 1.0, 2.5, 4.0], [2.0, 3.0, 3.5, 4.0, 5.0]]) == 2.5
    # The first ends before the second begins: twice the second's speed.
    assert decode_rate([[0.0, 1.0], [1.0, 1.5]]) == 4.0
    assert prefill_rate([[1, 2], [3, 4, 5]], [[2.0], [4.0]], started=1.5) == 2.0


def test_a_driver_measures_prompts_with_answers_of_one_token_and_whole_ones() -> None:
    class Steady:
        version = "1"

        def __init__(self) -> None:
            self.asked: list[int] = []

        def answer(self, prompts: Any, new_tokens: int) -> list[list[float]]:
            self.asked.append(new_tokens)
            now = time.perf_counter()
            return [[now + 0.5 + 0.1 * step for step in range(new_tokens)]] * len(prompts)

    found = measure(engine := Steady(), PROMPTS, 5)
    assert engine.asked == [1, 5]
    assert found["decode_tokens_per_s"] == pytest.approx(20.0)
    assert found["prefill_tokens_per_s"] == pytest.approx(8.0, rel=0.01)


@pytest.mark.parametrize(("family", "dtype"), [("llama", "float32"), ("qwen2", "bfloat16")])
def test_a_gguf_file_has_the_values_of_its_model(family: Any, dtype: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", family, dtype=getattr(torch, dtype))
    write_gguf(folder, file := tmp_path / "new" / "model.gguf", dtype)
    config, expected = load_config(folder), {each.name: as_float(each.read()) for each in stored_tensors(folder)}
    for tensor in _open(file).tensors:
        own, _, part = tensor.name.rpartition(".")
        if (name := OUTER_NAMES.get(tensor.name)) is None:
            _, layer, kind = own.split(".")
            name = f"model.layers.{layer}.{LAYER_NAMES[kind]}.{part}"
        found = np.frombuffer(_values(file, config, name, tensor), np.float32)
        assert np.array_equal(found, expected.pop(name).reshape(-1))
    assert not expected
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"default"', '"linear"'))
    with pytest.raises(ValueError, match="rotary embedding is scaled"):
        write_gguf(folder, tmp_path / "scaled.gguf", "float32")
