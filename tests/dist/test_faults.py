"""What breaks is named: infinities by their stage, lost processes by their rank; and nothing stays behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from clusters import all_gone, family, wait_until
from safetensors.torch import load_file, save_file

from qubic_lab.core import Request, SamplingParams
from qubic_lab.errors import ModelError, NonFiniteError, RankError
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.pipeline.member import check_order
from qubic_lab.pipeline.message import Kind, Message

pytestmark = pytest.mark.dist

GREEDY = SamplingParams(max_new_tokens=6, ignore_eos=True)


def damaged(tiny: Path, folder: Path, name: str, row: int | None = None) -> str:
    """A copy of the tiny model with infinities in one tensor, or in one row of it."""
    shutil.copytree(tiny, folder)
    weights = load_file(folder / "model.safetensors")
    weights[name][slice(None) if row is None else row] = torch.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("tensor", "stage"),
    [("model.layers.0.input_layernorm.weight", 0), ("model.layers.3.input_layernorm.weight", 1), ("lm_head.weight", 1)],
)
def test_the_stage_with_infinities_is_named(
    tensor: str, stage: int, tiny: Path, two_ranks: Pipeline, tmp_path: Path
) -> None:
    two_ranks.configure(PipelineConfig(model=damaged(tiny, tmp_path / "m", tensor), ranks=2, strategy="B", threads=1))
    with pytest.raises(NonFiniteError, match=rf"stage {stage} \(.*bf16"):
        two_ranks.generate(Request(token_ids=(1, 2, 3), sampling=GREEDY))


def test_one_request_with_infinities_harms_no_other(tiny: Path, two_ranks: Pipeline, tmp_path: Path) -> None:
    good = Request(token_ids=(1, 2, 3), sampling=GREEDY)
    two_ranks.configure(PipelineConfig(model=str(tiny), ranks=2, threads=1))
    expected = two_ranks.generate(good).token_ids
    model = damaged(tiny, tmp_path / "m", "model.embed_tokens.weight", row=7)
    two_ranks.configure(PipelineConfig(model=model, ranks=2, threads=1, lanes=1))
    for _ in range(2):  # the second time in the very slot where infinities were left
        with pytest.raises(NonFiniteError, match="stage 0"):
            two_ranks.generate(Request(token_ids=(1, 7, 3), sampling=GREEDY))
        assert two_ranks.generate(good).token_ids == expected


def test_a_model_that_does_not_load_leaves_a_usable_group(tiny: Path, two_ranks: Pipeline, tmp_path: Path) -> None:
    folder = tmp_path / "vanishes"
    shutil.copytree(tiny, folder)
    config = PipelineConfig(model=str(folder), ranks=2, threads=1)
    two_ranks.configure(config)
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 8)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        two_ranks.configure(replace(config, dtype="fp16"))
    two_ranks.configure(PipelineConfig(model=str(tiny), ranks=2, threads=1))
    assert len(two_ranks.generate(Request(token_ids=(1,), sampling=GREEDY)).token_ids) == 6


@pytest.mark.parametrize(
    "victim", [*(pytest.param(each, marks=pytest.mark.slow) for each in ("launcher", "rank 0")), "rank 1"]
)
def test_a_killed_process_takes_its_group_along(victim: str, tiny: Path) -> None:
    with Pipeline.launch(model=str(tiny), ranks=2, threads=1) as pipeline:
        rank_pids = [rank.pid for rank in pipeline.describe()]
        launcher = psutil.Process(rank_pids[0]).parent()
        assert launcher is not None
        assert launcher.num_threads() == 2, "it forks the ranks, so beside its own only the thread that awaits the end"
        processes = family(launcher.pid)
        os.kill(launcher.pid if victim == "launcher" else rank_pids[int(victim[-1])], signal.SIGKILL)
        expected = "launcher ended" if victim == "launcher" else rf"{victim} \(process \d+\) was ended by signal 9"
        with pytest.raises(RankError, match=expected) as caught:
            pipeline.generate(Request(token_ids=(1,), sampling=SamplingParams(max_new_tokens=400, ignore_eos=True)))
        log = Path(re.findall(r"is in (\S+)$", str(caught.value))[0])
        assert log.exists()
        log.unlink()
        wait_until(lambda: all_gone(processes))


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_stopped_rank_is_named_and_its_group_ends(victim: int, tiny: Path) -> None:
    with Pipeline.launch(model=str(tiny), ranks=2, threads=1) as pipeline:
        pids = [rank.pid for rank in pipeline.describe()]
        processes = [psutil.Process(pid) for pid in pids]
        os.kill(pids[victim], signal.SIGSTOP)
        with pytest.raises(RankError, match=rf"rank {victim} \(process {pids[victim]}\) was stopped"):
            pipeline.generate("hi", max_new_tokens=400, ignore_eos=True)
        wait_until(lambda: all_gone(processes))


DIVERGE = """
import os
from dataclasses import replace
from qubic_lab.pipeline.transport import RingTransport
send = RingTransport.send
def skip_one(self, message, *payloads):
    skips = os.environ["RANK"] == "1" and message.sequence == 6
    send(self, replace(message, sequence=7) if skips else message, *payloads)
RingTransport.send = skip_one
"""


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_rank_that_diverges_is_named_and_its_group_ends(
    ranks: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(DIVERGE)  # what Python runs first
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with Pipeline.launch(model=str(tiny), ranks=ranks, threads=1) as pipeline:
        processes = [psutil.Process(rank.pid) for rank in pipeline.describe()]
        with pytest.raises(RankError, match=r"^rank 1 diverged: it answered micro-batch 7 instead of 6; its output"):
            pipeline.generate("hi", max_new_tokens=400, ignore_eos=True)
        wait_until(lambda: all_gone(processes))


def test_an_order_in_a_micro_batchs_place_is_a_divergence() -> None:
    check_order(1, Message(Kind.DECODE, sequence=6), due=6)
    with pytest.raises(RankError, match="rank 1 diverged: it sent an order instead of micro-batch 6"):
        check_order(1, Message(Kind.CONTROL, sequence=6), due=6)


CLIENT = """
import sys, time
from qubic_lab.pipeline import Pipeline
pipeline = Pipeline.launch(model=sys.argv[1], ranks=2, threads=1)
print("up", pipeline.address.removeprefix("unix:"), flush=True)
time.sleep(600)
"""


def test_a_killed_client_leaves_nothing(tiny: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", CLIENT, str(tiny)], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        word, socket = client.stdout.readline().split()
        processes = family(client.pid)
        assert word == "up"
        assert len(processes) == 4, "client, launcher and two ranks"
        client.kill()
    wait_until(lambda: all_gone(processes))
    wait_until(lambda: not Path(socket).parent.exists())


def test_no_port_listens_beyond_loopback(two_ranks: Pipeline) -> None:
    launcher = psutil.Process(two_ranks.describe()[0].pid).parent()
    assert launcher is not None
    listening = [
        connection.laddr.ip
        for process in family(launcher.pid)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening, "gloo listens on loopback; seeing no port at all means that the test looks at nothing"
    assert set(listening) <= {"127.0.0.1", "::1"}
