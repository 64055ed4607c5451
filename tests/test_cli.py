"""The command line as users and their scripts meet it: one line for what is wrong, one object for what was asked."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from models import tiny_model
from safetensors.torch import load_file, save_file
from studies import write_notebook, write_study, write_week

from qubic_lab import __version__
from qubic_lab.cli.main import run
from qubic_lab.evals.questions import load_questions
from qubic_lab.model.checkpoint import WEIGHTS
from qubic_lab.model.split import split_checkpoint
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.pipeline.client import resolve_config
from qubic_lab.settings import settings

COMMANDS = ("generate", "compare", "model-path", "split", "verify", "random-model", "run", "report", "bench memory")
GONE_WITHIN_S = 10.0
RUN_MARK = "QUBIC_LAB_TEST_RUN"
SAMPLED = "--temperature 1 --top-k 50 --top-p 0.95 --max-new-tokens 12 --threads 1 --json"

ASKED_WRONGLY = [
    # commands and options
    ("nonsense", r"No such command 'nonsense' \(see 'qubic-lab --help'\)"),
    ("generat --prompt hi", "Did you mean 'generate'"),
    ("bench", "Missing command"),
    ("bench memry", "Did you mean 'memory'"),
    ("generate --promt hi", r"No such option: --promt .*--prompt.*\(see 'qubic-lab generate --help'\)"),
    ("generate --ranks", "'--ranks' requires an argument"),
    ("generate --prompt hi there", r"unexpected extra argument.*\(there\)"),
    ("model-path", "Missing argument 'MODEL'"),
    ("split --model tiny", "Missing option '--out'"),
    # prompts
    ("generate --model tiny", "either --prompt TEXT or --prompts-file FILE"),
    ("generate --model tiny --prompt hi --prompts-file prompts.txt", "either --prompt TEXT or --prompts-file FILE"),
    ("generate --model tiny --prompt ''", "prompt is empty"),
    ("generate --model tiny --prompt '  '", "prompt is empty"),
    ("generate --model tiny --prompt 'a\udcff'", r"'a\\udcff' is not UTF-8"),
    ("generate --model tiny --prompts-file missing.txt", r"missing\.txt .*No such file.*: give"),
    ("generate --model tiny --prompts-file tiny", "tiny .*directory.*: give"),
    ("generate --model tiny --prompts-file blank.txt", r"blank\.txt is empty: give one prompt a line"),
    ("generate --model tiny --prompts-file latin1.txt", r"latin1\.txt .*not UTF-8"),
    # numbers
    ("generate --model tiny --prompt hi --ranks 0", "ranks is 0: .* at least 1"),
    ("generate --model tiny --prompt hi --ranks -1", "ranks is -1: .* at least 1"),
    ("generate --model tiny --prompt hi --ranks two", "'--ranks'.*integer.*'two'"),
    ("generate --model tiny --prompt hi --ranks 5", "ranks is 5.* 4 layers: give at most 4"),
    ("generate --model tiny --prompt hi --threads 0", "threads is 0"),
    ("generate --model tiny --prompt hi --threads 100000", "threads is 100000: .* at most"),
    ("generate --model tiny --prompt hi --max-new-tokens 0", "max_new_tokens is 0"),
    ("generate --model tiny --prompt hi --max-new-tokens 99999999999", "max_new_tokens is 99999999999: .* at most"),
    ("generate --model tiny --prompt hi --top-k -1", "top_k is -1"),
    ("generate --model tiny --prompt hi --top-k 99999999999", "top_k is 99999999999: .* at most"),
    ("generate --model tiny --prompt hi --top-p 0", r"top_p is 0\.0"),
    ("generate --model tiny --prompt hi --top-p 1.5", r"top_p is 1\.5"),
    ("generate --model tiny --prompt hi --top-p nan", "top_p is nan"),
    ("generate --model tiny --prompt hi --temperature -1", r"temperature is -1\.0"),
    ("generate --model tiny --prompt hi --temperature nan", "temperature is nan"),
    ("generate --model tiny --prompt hi --temperature warm", "'--temperature'.*number.*'warm'"),
    ("generate --model tiny --prompt hi --seed -1", "seed is -1"),
    ("generate --model tiny --prompt hi --seed 18446744073709551616", "seed is 18446744073709551616"),
    ("generate --model tiny --prompt hi --stop ''", "stop string is empty"),
    # dtype and strategy
    ("generate --model tiny --prompt hi --dtype FP32", "unknown dtype 'FP32': did you mean 'fp32'"),
    ("generate --model tiny --prompt hi --dtype int8", "unknown dtype 'int8': known: bf16, fp16, fp32"),
    ("generate --model tiny --prompt hi --strategy D", "unknown strategy 'D': known: A, B, C"),
    ("generate --model tiny --prompt hi --strategy c", "unknown strategy 'c': did you mean 'C'"),
    ("generate --model tiny --prompt hi --ranks 3 --strategy A", "ranks is 3 with strategy A.*: give strategy B or C"),
    ("generate --model tiny --prompt hi --ranks 2 --cut 2", "cut is 2 with strategy C"),
    ("generate --model tiny --prompt hi --ranks 2 --strategy A --cut 0", "cut is 0: .* between 1 and 3"),
    ("generate --model tiny --prompt hi --ranks 2 --strategy A --cut 4", "cut is 4: .* between 1 and 3"),
    # models
    ("generate --model smolm2 --prompt hi", "unknown model 'smolm2'.*did you mean 'smollm2'"),
    ("generate --model ./nowhere --prompt hi", "nowhere' is not there"),
    ("generate --model prompts.txt --prompt hi", "is a file, but no .gguf"),
    ("generate --model empty --prompt hi", r"empty has no config\.json"),
    ("generate --model config-only --prompt hi", "holds no weights"),
    ("generate --model truncated --prompt hi", r"model\.safetensors has \d+ bytes but its header says \d+"),
    ("generate --model fewer-layers --prompt hi", "config and weights disagree"),
    ("generate --model wider --prompt hi", "config and weights disagree"),
    ("generate --model mistral --prompt hi", "MistralForCausalLM is not supported"),
    ("model-path smolm2", "did you mean 'smollm2'"),
    ("model-path empty", r"no config\.json"),
    ("split --model tiny --out wider", "wider is not empty: give a new folder"),
    ("split --model tiny --out prompts.txt", "is a file: give a new folder"),
    ("split --model tiny --out ''", "--out is .*current folder"),
    ("split --model tiny --out new --ranks 9", "ranks is 9"),
    ("split --model tiny --out new --strategy X", "unknown strategy 'X'"),
    ("split --model parts --out new", "split already"),
    ("split --model truncated --out new", "header says"),
    ("verify nowhere", "nowhere is no folder"),
    ("verify tiny", r"no manifest\.json"),
    ("random-model --out new --config deepsek", "did you mean 'deepseek'"),
    ("random-model --out new --config tiny --layers 0", "layers is 0"),
    ("random-model --out new --config tiny --seed -1", "seed is -1"),
    ("random-model --out wider --config tiny", "not empty"),
    # a folder that is split already
    ("generate --model parts --prompt hi --ranks 3", "strategy C into layers .*give --ranks 2"),
    ("generate --model parts --prompt hi --strategy B", "strategy C into layers .*leave out --strategy"),
    ("generate --model parts/rank-0 --prompt hi", "one rank of a split: give the folder above"),
    ("compare --model parts", "split already: give the model that it was made from"),
    # comparisons
    ("compare --model tiny --batch 0", "batch is 0"),
    ("compare --model tiny --batch 65", "batch is 65: .* at most 64"),
    ("compare --model tiny --batch 1,,4", "--batch is '1,,4'"),
    ("compare --model tiny --batch a", "--batch is 'a'"),
    ("compare --model tiny --ranks 2,9", "ranks is 9"),
    ("compare --model tiny --ranks 3 --strategy A", "ranks is 3 with strategy A"),
    ("compare --model tiny --dtype fp32,FP16", "did you mean 'fp16'"),
    ("compare --model tiny --strategy A,b", "did you mean 'B'"),
    ("compare --model tiny --threads 0", "threads is 0"),
    ("compare --model tiny --limit 0", "limit is 0"),
    ("compare --model tiny --max-new-tokens 0", "max_new_tokens is 0"),
    ("compare --model tiny --questions missing.jsonl", r"missing\.jsonl .*No such file"),
    ("compare --model tiny --questions broken.jsonl", r"broken\.jsonl:1 is not valid JSON"),
    ("compare --model tiny --questions unknown.jsonl", "unknown field 'anwser': did you mean 'answer'"),
    ("bench memory --model tiny --new-tokens 0", "new_tokens is 0"),
    ("bench memory --model tiny --ranks 0", "ranks is 0"),
    # studies
    ("run missing.yaml", r"no experiment file missing\.yaml"),
    ("run experiments/weekly.yaml", "unknown parameter 'nmber'.*did you mean 'number'"),
    ("report --week 2026", "'2026' is not of the form 2026-W48"),
    ("report --week 2026-W99", "'2026-W99' is not of the form"),
    ("report --week 2026-W47", "2026-W47 has no runs; weeks with runs: 2026-W48"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good model, its split, everything that can be wrong with a model, and other files."""
    place = tmp_path_factory.mktemp("cli")
    for name in ("cache/logs", "tmp", "empty"):
        (place / name).mkdir(parents=True)
    tiny = tiny_model(place / "tiny")
    split_checkpoint(tiny, place / "parts", (2, 2), "C")
    for name in ("config-only", "truncated", "fewer-layers", "wider", "mistral", "infinite", "no-template"):
        shutil.copytree(tiny, place / name)
    (place / "config-only" / WEIGHTS).unlink()
    os.truncate(place / "truncated" / WEIGHTS, 100_000)
    change_json(place / "fewer-layers" / "config.json", num_hidden_layers=3)
    change_json(place / "wider" / "config.json", hidden_size=128)
    change_json(place / "mistral" / "config.json", architectures=["MistralForCausalLM"])
    weights = load_file(place / "infinite" / WEIGHTS)
    weights["model.layers.3.input_layernorm.weight"][:] = torch.inf
    save_file(weights, place / "infinite" / WEIGHTS, metadata={"format": "pt"})
    (place / "no-template" / "chat_template.jinja").unlink()
    (place / "prompts.txt").write_bytes("\ufeffone\r\n\r\ntwo words\nthree\u2028four\n".encode())
    (place / "too-long.txt").write_text(f"one\n{'x' * 600}\n")
    (place / "blank.txt").write_text("\n  \n")
    (place / "latin1.txt").write_bytes(b"caf\xe9\n")
    (place / "broken.jsonl").write_text('{"id": \n')
    (place / "unknown.jsonl").write_text('{"id": "a", "question": "q?", "anwser": "x"}\n')
    questions = [{"id": f"q{n}", "question": f"What is {n}?", "answer": str(n)} for n in range(3)]
    (place / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    write_notebook(place / "notebooks" / "tiny.ipynb")
    write_study(place, "study", quick={"parameters": {"nmber": 2}})
    write_week(place, "study.yaml")
    (place / "runs" / "weeks").mkdir(parents=True)
    (place / "runs" / "weeks" / "2026-W48.json").write_text('{"week": "2026-W48", "runs": []}')
    return place


@pytest.fixture(autouse=True)
def stand_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test in that folder, and keep all that could be written in it."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("QUBIC_LAB_CACHE", str(place / "cache"))
    monkeypatch.setenv("QUBIC_LAB_RUNS", str(place / "runs"))
    monkeypatch.setenv("TMPDIR", str(place / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture
def shared_ranks(one_rank: Pipeline, two_ranks: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands use the ranks that all tests share, instead of starting their own."""
    pipelines = {1: one_rank, 2: two_ranks}

    def launch(config: PipelineConfig) -> AbstractContextManager[Pipeline]:
        pipeline = pipelines[resolve_config(config).ranks]
        pipeline.configure(config)
        return nullcontext(pipeline)

    monkeypatch.setattr(Pipeline, "launch", launch)


def change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout of a command that ended well and had nothing else to say."""
        assert (self.status, self.err) == (0, "")
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    @property
    def token_ids(self) -> list[list[int]]:
        return [completion["token_ids"] for completion in self.json["completions"]]

    def failed(self, status: int) -> str:
        """The one line of a command that failed, which left stdout empty."""
        assert (self.status, self.out) == (status, "")
        assert self.err.startswith("error: ") and self.err.endswith("\n") and self.err.count("\n") == 1
        return self.err


Run = Callable[[str], Ended]


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process."""

    def run_here(line: str) -> Ended:
        capfd.readouterr()
        status = run(shlex.split(line))
        return Ended(status, *capfd.readouterr())

    return run_here


def start(line: str, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "qubic_lab.cli.main", *shlex.split(line)]
    pipe = subprocess.PIPE
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), **environment}
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def run_apart(line: str, **environment: str) -> Ended:
    """Run a command line in a process of its own; what it starts must be gone when it has ended."""
    mark = uuid.uuid4().hex
    out, err = (process := start(line, **environment, **{RUN_MARK: mark})).communicate(timeout=60)
    assert gone(mark)
    return Ended(process.returncode, out, err)


def gone(mark: str) -> bool:
    """Wait until no process of a run is left; return whether that was in time."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while any(of_run(process, mark) for process in psutil.process_iter()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def of_run(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(RUN_MARK) == mark
    except psutil.Error:  # ended meanwhile, or somebody else's
        return False


def everything_in(place: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in place.rglob("*")}


@pytest.mark.parametrize(("line", "said"), ASKED_WRONGLY, ids=[line for line, _ in ASKED_WRONGLY])
def test_what_is_asked_wrongly_is_one_line_and_leaves_nothing(line: str, said: str, here: Run, place: Path) -> None:
    files, processes = everything_in(place), psutil.Process().children(recursive=True)
    error = here(line).failed(2)
    assert re_search(said, error), error
    assert everything_in(place) == files
    assert psutil.Process().children(recursive=True) == processes
