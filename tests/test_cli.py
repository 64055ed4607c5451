"""The command line as users and their scripts meet it: one line for what is wrong, one object for what was asked."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from clusters import WITHIN_S, cache_with_kernels, wait_until
from commands import Ended, Run
from comparisons import make_case, make_cases, make_comparison
from models import SHAPE, tiny_model
from refused_commands import REFUSED
from safetensors.torch import load_file, save_file
from studies import write_notebook, write_study, write_week
from typer.main import get_command

from qubic_lab import __version__
from qubic_lab.cli.main import app
from qubic_lab.errors import InputError
from qubic_lab.evals.questions import load_questions
from qubic_lab.model.checkpoint import WEIGHTS
from qubic_lab.model.config import load_config
from qubic_lab.model.cost import kv_memory_bytes
from qubic_lab.model.kernels.build import kernels
from qubic_lab.model.split import split_checkpoint
from qubic_lab.settings import settings

RUN_MARK = "TEST_RUN_OF_QUBIC_LAB"
SAMPLED = "--temperature 1 --top-k 50 --top-p 0.95 --max-new-tokens 12 --threads 1 --json"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good model, its split, everything that can be wrong with a model, and other files."""
    kernels()  # now, so that no command compiles them
    place = tmp_path_factory.mktemp("cli")
    cache_with_kernels(place / "cache")
    for name in ("cache/logs", "tmp", "empty"):
        (place / name).mkdir(parents=True)
    tiny = tiny_model(place / "tiny")
    split_checkpoint(tiny, place / "parts", (2, 2), "C")
    for name in ("truncated", "wider", "infinite", "no-template"):
        shutil.copytree(tiny, place / name)
    os.truncate(place / "truncated" / WEIGHTS, 100_000)
    change_json(place / "wider" / "config.json", hidden_size=128)
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
    questions = [{"id": f"q{n}", "question": f"What\u2028is {n}?", "answer": str(n)} for n in range(3)]
    lines = [json.dumps(question, ensure_ascii=False) for question in questions]
    (place / "questions.jsonl").write_text("\ufeff" + "\n".join(lines))
    write_notebook(place / "notebooks" / "tiny.ipynb")
    write_study(place, "study", quick={"parameters": {"nmber": 2}})
    write_week(place, "study.yaml")
    (place / "runs" / "weeks").mkdir(parents=True)
    lost = {"study": "study", "key": "0", "batch": "2026-11-24", "of": 1, "reused": False, "failed": True}
    (place / "runs" / "weeks" / "2026-W48.json").write_text(json.dumps({"week": "2026-W48", "runs": [lost]}))
    return place


@pytest.fixture(autouse=True)
def stand_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in that folder, and keep all that could be written in it."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("QUBIC_LAB_CACHE", str(place / "cache"))
    monkeypatch.setenv("QUBIC_LAB_RUNS", str(place / "runs"))
    monkeypatch.setenv("TMPDIR", str(place / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)


def change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def token_ids(ended: Ended) -> list[list[int]]:
    return [completion["token_ids"] for completion in ended.json["completions"]]


def start(line: str, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "qubic_lab.cli.main", *shlex.split(line)]
    pipe = subprocess.PIPE
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), **environment}
    # A shell starts its background jobs with Ctrl-C ignored, and whatever they start inherits that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, before)


def run_apart(line: str, **environment: str) -> Ended:
    """Run a command line in a process of its own; what it starts must be gone when it has ended."""
    mark = uuid.uuid4().hex
    out, err = (process := start(line, **environment, **{RUN_MARK: mark})).communicate(timeout=2 * WITHIN_S)
    wait_until_gone(mark)
    return Ended(process.returncode, out, err)


def wait_until_gone(mark: str) -> None:
    """Wait until no process of a run is left."""
    wait_until(lambda: not any(of_run(process, mark) for process in psutil.process_iter()))


def of_run(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(RUN_MARK) == mark
    except psutil.Error:  # ended meanwhile, or somebody else's
        return False


def everything_in(place: Path) -> dict[Path, int]:
    """Times of all files but compiled kernels, which all processes share."""
    kept = place / "cache" / "kernels"
    return {path: path.stat().st_mtime_ns for path in place.rglob("*") if kept not in (path, *path.parents)}


@pytest.mark.parametrize(("line", "said"), REFUSED, ids=[line for line, _ in REFUSED])
def test_what_is_asked_wrongly_is_one_line_and_leaves_nothing(line: str, said: str, here: Run, place: Path) -> None:
    files, processes = everything_in(place), psutil.Process().children(recursive=True)
    error = here(line).failed(2)
    assert re.search(said, error), error
    assert everything_in(place) == files
    assert psutil.Process().children(recursive=True) == processes


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("generate --model tiny --prompts-file too-long.txt", r"prompt has 6\d\d tokens.* context is 512"),
        ("generate --model no-template --prompt hi", "no chat template: .* --raw"),
    ],
)
def test_what_only_the_model_can_tell_is_one_line(line: str, said: str, here: Run, shared_ranks: None) -> None:
    assert re.search(said, here(line).failed(2))


def test_infinities_name_their_stage_and_leave_nothing(place: Path, here: Run, shared_ranks: None) -> None:
    files = everything_in(place)
    ended = here("generate --model infinite --ranks 2 --strategy B --prompt hi")
    assert "stage 1 (layers 2 to 3 + head) produced non-finite values in bf16" in ended.failed(1)
    assert everything_in(place).keys() == files.keys()


def test_a_hub_out_of_reach_is_one_line(tmp_path: Path) -> None:
    ended = run_apart("model-path deepseek", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    assert re.search(r"DeepSeek-R1-Distill-Qwen-1\.5B' .*hub cannot be reached.*: give its folder", ended.failed(2))


@pytest.mark.parametrize("cache", ["prompts.txt", "/proc/nowhere"])
def test_an_unwritable_cache_is_named(cache: str, here: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUBIC_LAB_CACHE", cache)
    ended = here("compare --model tiny")
    assert re.search(f"{cache}.* cannot be made .*: set QUBIC_LAB_CACHE", ended.failed(2))
    assert not any((place / "tmp").iterdir())


def test_an_empty_setting_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUBIC_LAB_CACHE", "")
    assert settings().cache.is_absolute()


def test_ctrl_c_ends_a_long_answer_at_once_and_its_ranks(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "long", max_position_embeddings=50_000)
    mark = uuid.uuid4().hex
    asked = f"--verbose generate --model {model} --prompt hi --max-new-tokens 49000 --ignore-eos --threads 1"
    with start(asked, **{RUN_MARK: mark}) as process:
        try:
            assert process.stdout and process.stderr
            assert any("asked for at most 49000 tokens" in line for line in process.stderr)
            process.send_signal(signal.SIGINT)
            assert process.wait(WITHIN_S) == 130
            assert process.stderr.read() == "error: interrupted\n"
        finally:
            process.kill()
    wait_until_gone(mark)


def computes(pid: int) -> bool:
    """Return whether a process of the benchmark has begun to draw: the filter that this needs is loaded then."""
    return "/scipy/signal/" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_benchmark_and_its_pool(number: signal.Signals, status: int) -> None:
    mark = uuid.uuid4().hex
    with start("bench backtest --null 2000 --effect 0", **{RUN_MARK: mark}) as process:
        try:
            own = psutil.Process(process.pid)
            wait_until(lambda: any(computes(each.pid) for each in own.children()))
            for each in (*own.children(), own) if number == signal.SIGINT else (own,):  # as terminals do
                each.send_signal(number)
            assert process.wait(WITHIN_S) == status
            assert process.stderr and process.stderr.read().count("\n") == 1
        finally:
            process.kill()
    wait_until_gone(mark)


@pytest.mark.parametrize(("line", "status"), [("generate --prompt hi", 130), ("node --coordinator 127.0.0.1:1", 0)])
def test_ctrl_c_ends_a_compiler_and_what_it_has_started(line: str, status: int, tmp_path: Path) -> None:
    compiler = tmp_path / "slow-compiler"
    compiler.write_text("#!/bin/sh\nsleep 300\nexit 1\n")
    compiler.chmod(0o700)
    model, mark = tiny_model(tmp_path / "tiny"), uuid.uuid4().hex
    with start(
        f"{line} --model {model}", QUBIC_LAB_CACHE=str(tmp_path / "cache"), CXX=str(compiler), **{RUN_MARK: mark}
    ) as process:
        try:
            own = psutil.Process(process.pid)
            wait_until(lambda: any(each.name() == "sleep" for each in own.children(recursive=True)))
            process.send_signal(signal.SIGINT)
            assert process.wait(WITHIN_S) == status
        finally:
            process.kill()
    wait_until_gone(mark)


def test_ctrl_c_says_nothing_while_modules_are_loaded(tmp_path: Path) -> None:
    loading = tmp_path / "loading"
    (tmp_path / "typer.py").write_text(f"import time\nopen({str(loading)!r}, 'w').close()\ntime.sleep(300)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parent.parent}"}
    command = [sys.executable, "-c", "from qubic_lab.cli import main; main()"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # else a shell's background job hears none
    ) as process:
        try:
            wait_until(loading.exists)
            process.send_signal(signal.SIGINT)
            assert process.stderr and (process.wait(WITHIN_S), process.stderr.read()) == (-signal.SIGINT, b"")
        finally:
            process.kill()


def test_a_reader_that_leaves_gets_no_traceback() -> None:
    with start("generate --help") as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""


def commands_of(group: Any, path: str = "") -> list[str]:
    """The command lines of a group and of all below it, without options."""
    names = group.list_commands(None) if hasattr(group, "list_commands") else []
    return [path, *(line for name in names for line in commands_of(group.get_command(None, name), f"{path} {name}"))]


def test_help_shows_an_example_and_whole_summaries(here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = commands_of(get_command(app))
    assert len(lines) > 40
    for line in lines:
        ended = here(f"{line} --help")
        assert (ended.status, ended.err) == (0, "")
        assert f"Example: qubic-lab{line}" in " ".join(ended.out.split())
        assert "...\n" not in ended.out.partition("Commands:")[2]


def test_a_misspelt_variable_is_an_error_that_suggests_the_right_one(
    here: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUBIC_LAB_CASHE", "x")
    said = "unknown variable QUBIC_LAB_{} in the environment or .env: did you mean 'QUBIC_LAB_{}'?"
    assert here("verify parts").failed(2) == f"error: {said.format('CASHE', 'CACHE')}\n"
    monkeypatch.delenv("QUBIC_LAB_CASHE")
    (place / ".env").write_text("qubic_lab_redisurl=redis://x\nOTHER=1\n")
    try:
        assert here("verify parts").failed(2) == f"error: {said.format('REDISURL', 'REDIS_URL')}\n"
    finally:
        (place / ".env").unlink()
    assert here("verify parts").status == 0


def test_a_variable_with_a_wrong_value_is_named(set_settings: Callable[..., None]) -> None:
    set_settings(group_timeout_s="soon")
    with pytest.raises(InputError, match=r"^QUBIC_LAB_GROUP_TIMEOUT_S is 'soon': Input should be a valid number"):
        settings()


def test_a_shell_completes_commands_of_groups_and_options() -> None:
    def completed(words: str) -> list[str]:
        asked = {"_QUBIC_LAB_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), **asked}
        command = [sys.executable, "-m", "qubic_lab.cli.main"]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.split()

    assert completed("qubic-lab comp") == ["compare"]
    assert completed("qubic-lab oracle st") == ["status"]
    assert "--ranks" in completed("qubic-lab generate --r")


def test_the_bare_command_shows_its_commands(here: Run) -> None:
    ended = here("")
    assert ended == here("--help")
    names = ("generate", "compare", "model-path", "split", "verify", "random-model", "plan", "run", "report", "bench")
    assert all(re.search(rf"^ +{name} ", ended.out, re.MULTILINE) for name in names)
    assert here("--version") == Ended(0, f"qubic-lab {__version__}\n", "")


def test_json_says_what_was_answered_and_by_what(here: Run, shared_ranks: None) -> None:
    answer = here("generate --model tiny --ranks 2 --prompts-file prompts.txt --max-new-tokens 3 --json").json
    completions = answer.pop("completions")
    assert [completion["prompt"] for completion in completions] == ["one", "two words", "three\u2028four"]
    for completion in completions:
        assert completion.keys() >= {"text", "token_ids", "finish_reason", "ttft_ms", "tokens_per_s"}
        assert len(completion["token_ids"]) == 3
        assert completion["finish_reason"] == "length"
    expected = {"model": "tiny", "device": "cpu", "dtype": "bf16", "ranks": 2, "strategy": "C"}
    assert answer.items() >= expected.items()
    assert answer.keys() >= {"threads", "commit"}


def test_one_prompt_streams_and_ends_with_its_speed(here: Run, shared_ranks: None) -> None:
    ask = "generate --model tiny --ranks 2 --prompt hi --max-new-tokens 9 --ignore-eos"
    [answer] = here(f"{ask} --json").json["completions"]
    ended = here(ask)
    assert (ended.status, ended.out) == (0, answer["text"] + "\n")
    assert re.fullmatch(
        r"9 tokens, [\d.]+ tokens/s, the first after \d+ ms; load [\d.]+ m?s, queue \d+ ms, prefill [\d.]+ m?s, "
        r"decode [\d.]+ m?s; at work: rank 0 \d+%, rank 1 \d+%\n",
        ended.err,
    ), ended.err


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_seed_alone_decides_a_sampled_answer(dtype: str, here: Run, shared_ranks: None) -> None:
    sampled = f"generate --model tiny --dtype {dtype} {SAMPLED}"
    [alone] = token_ids(here(f"{sampled} --prompt 'two words' --seed 5"))
    for ranks in (1, 2):
        among_others = token_ids(here(f"{sampled} --prompts-file prompts.txt --seed 5 --ranks {ranks}"))
        assert among_others[1] == alone
    assert token_ids(here(f"{sampled} --prompt 'two words' --seed 6")) != [alone]


def test_a_split_folder_alone_answers_like_the_model(here: Run, shared_ranks: None, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    split = here(f"split --model tiny --ranks 2 --strategy B --out {parts} --json").json
    assert (split["folder"], split["strategy"], len(split["layers"])) == (str(parts), "B", 2)
    assert here(f"verify {parts}").status == 0
    asked = f"--prompts-file prompts.txt --seed 5 {SAMPLED}"
    deep = tmp_path / ("x" * 100)  # too deep for the path of a socket
    deep.mkdir()
    started = run_apart(f"generate --model {parts} {asked}", TMPDIR=str(deep))
    assert not any(deep.iterdir())
    assert (started.json["ranks"], started.json["strategy"]) == (2, "B")
    assert token_ids(started) == token_ids(here(f"generate --model tiny {asked}"))


def test_raw_sends_the_prompt_without_the_template(here: Run, shared_ranks: None) -> None:
    ask = "generate --prompt 'two words' --max-new-tokens 6 --json"
    raw = here(f"{ask} --model tiny --raw")
    assert token_ids(raw) != token_ids(here(f"{ask} --model tiny"))
    assert token_ids(raw) == token_ids(here(f"{ask} --model no-template --raw"))


def test_an_answer_ends_before_a_stop_text(here: Run, shared_ranks: None) -> None:
    ask = "generate --model tiny --prompt hi --ignore-eos --max-new-tokens 40 --json"
    [free] = here(ask).json["completions"]
    stop = next(letter for letter in free["text"][4:] if letter.isalpha())
    [stopped] = here(f"{ask} --stop never --stop {stop}").json["completions"]
    assert stopped["text"] == free["text"].partition(stop)[0]
    assert stopped["finish_reason"] == "stop"
    assert len(stopped["token_ids"]) < len(free["token_ids"]) == 40


def test_an_answer_ends_at_the_end_token_unless_told_to_go_on(here: Run, shared_ranks: None, tmp_path: Path) -> None:
    shutil.copytree("tiny", model := tmp_path / "model")
    ask = f"generate --model {model} --prompt hi --max-new-tokens 6 --json"
    [free] = token_ids(here(f"{ask} --ignore-eos"))
    change_json(model / "generation_config.json", eos_token_id=free[2])
    end = free.index(free[2]) + 1
    one_more = f"{ask} --threads 2"  # another setting, so that the model is configured again
    [ended] = here(one_more).json["completions"]
    assert (ended["token_ids"], ended["finish_reason"]) == (free[:end], "stop")
    assert token_ids(here(f"{one_more} --ignore-eos")) == [free]


def test_a_random_model_is_labelled_beside_the_json(here: Run, shared_ranks: None, tmp_path: Path) -> None:
    out = tmp_path / "random"
    made = here(f"random-model --config tiny --layers 2 --out {out}")
    assert made.status == 0 and "answers are meaningless" in made.out
    ended = here(f"generate --model {out} --prompt hi --max-new-tokens 2 --json")
    assert json.loads(ended.out)["meaningless"]
    assert ended.err.count("\n") == 1 and "random weights" in ended.err
    assert here(f"model-path {out}").out == f"{out}\n"


def test_compare_proves_that_the_split_is_the_model(here: Run, shared_ranks: None, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "big-head", vocab_size=1200)
    result = here(f"compare --model {model} --questions questions.jsonl --limit 2 --max-new-tokens 6 --json").json
    assert (result["verdict"], result["same_model"]) == ("SAME", True)
    assert (result["token_identity"], result["logits_max_abs"], result["questions"]) == (1.0, 0.0, 2)
    cases = {(case["dtype"], case["batch"], case["strategy"]): case for case in result["cases"]}
    assert cases.keys() == {(d, b, s) for d in ("fp32", "bf16") for b in (1, 4) for s in "ABC"}
    measured_as = {
        strategy: {case["measured_as"] for (_, _, s), case in cases.items() if s == strategy} for strategy in "ABC"
    }
    assert measured_as == {"A": {None}, "B": {"A"}, "C": {None}}, "with four layers A is B; a big head sets C apart"
    fp32, bf16 = result["reference"]
    assert (fp32["dtype"], fp32["token_identity"], fp32["differences"]) == ("fp32", 1.0, [])
    assert 0 < fp32["logits_max_abs"] < 1e-4 < bf16["logits_max_abs"], "measured, not assumed"
    asked = {question.id for question in load_questions(Path("questions.jsonl"))[:2]}
    for difference in bf16["differences"]:
        assert difference["id"] in asked and difference["margin"] >= 0
        assert difference["ours"] != difference["theirs"]
    assert bool(bf16["differences"]) == (bf16["token_identity"] < 1)
    assert [answer["id"] for answer in result["answers"]] == ["q0", "q1"]


@pytest.mark.parametrize(
    ("changes", "candidate", "status", "said"),
    [
        ({}, {}, 0, r"SAME: 2,048 tokens in 8 comparisons, all equal, and their logits equal bit for bit$"),
        (
            {"logits_max_abs": 0.25},
            {},
            1,
            r"DIFFERENT: .*; at worst \(3 ranks, strategy C, fp32, batch 1\) 100.00% of 256 tokens equal, "
            r"logits differ by at most 0.25, KL at most [^;]* nats$",
        ),
        ({"token_identity": 0.5}, {}, 1, r"DIFFERENT: .* 50.00% of 256 tokens equal, logits differ"),
        (
            {"token_identity": 0.5},
            {"candidate": "other", "candidate_hash": "b"},
            1,
            r"DIFFERENT: .*; other has other weights than smollm2 \(hashes b and a\)$",
        ),
        ({"token_identity": 0.5}, {"candidate": "parts", "candidate_hash": "a"}, 1, r"DIFFERENT: .* nats$"),
    ],
)
def test_compare_first_says_whether_all_is_the_same(
    changes: dict[str, Any],
    candidate: dict[str, str],
    status: int,
    said: str,
    here: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = [*make_cases(), *([make_case(ranks=3, **changes)] if changes else [])]
    comparison = make_comparison(model_hash="a", cases=cases, **candidate)
    monkeypatch.setattr("qubic_lab.evals.compare.compare", lambda config, progress: comparison)
    ended = here("compare --model tiny")
    assert ended.status == status and re.match(said, ended.out.splitlines()[0]), ended.out
    ended = here("compare --model tiny --json")
    assert ended.status == status
    found = json.loads(ended.out)
    assert (found["verdict"], found["same_model"]) == (said.partition(":")[0], "other weights" not in said)


def test_bench_memory_says_what_each_rank_holds(here: Run, shared_ranks: None) -> None:
    found = here("bench memory --model tiny --ranks 2 --new-tokens 2 --json").json
    ranks = found["ranks"]
    assert [rank["rank"] for rank in ranks] == [0, 1]
    stored = load_file(Path("tiny") / WEIGHTS)
    assert sum(rank["weight_bytes"] for rank in ranks) == sum(2 * tensor.numel() for tensor in stored.values())
    assert all(rank["weight_bytes"] < rank["peak_rss_bytes"] for rank in ranks)
    config, tokens = load_config(Path("tiny")), found["kv_tokens"]
    assert sum(rank["kv_bytes"] for rank in ranks) == kv_memory_bytes(config, config.layers, "bf16", tokens)
    for rank in ranks:  # these are forks of a test, so they hold more than the ranks of users
        assert rank["weight_bytes"] + rank["kv_bytes"] < rank["predicted_bytes"] < 2 * rank["resident_bytes"]


def test_a_plan_needs_a_config_and_no_weights(here: Run, tmp_path: Path) -> None:
    content = here("plan --model deepseek --devices t4,t4,t4 --link 10Gbps:0.1ms --goal throughput --json").json
    layers = {plan["strategy"]: plan["layers"] for plan in content["plans"]}
    assert layers == {"B": [10, 9, 9], "C": [11, 11, 6], "D": [28, 28, 28], "M": [8, 12, 8]}
    assert (content["model"], content["recommendation"], content["context"]) == ("deepseek", "D", 1024)
    assert content["refused"][0]["strategy"] == "A"
    assert sum(content["accelerate"]["layers"]) == 28
    assert "one after the other" in content["accelerate_note"]
    assert content["changes"]["by_context"] and content["changes"]["sentences"]
    assert re.search(r"Recommended: D\. D \(3 replicas\): \d+", here("plan").out)

    (tmp_path / "config.json").write_text(json.dumps(SHAPE | {"architectures": ["LlamaForCausalLM"]}))
    content = here(f"plan --model {tmp_path} --devices t4,l4 --context 512 --json").json
    assert [sum(plan["layers"]) for plan in content["plans"]] == [4, 4, 4, 4, 8]


def test_the_printed_plan_is_that_of_the_docs(here: Run) -> None:
    page = (Path(__file__).parents[1] / "docs" / "planning.md").read_text()
    line = re.search("^qubic-lab (plan .*--goal throughput)$", page, re.MULTILINE)
    assert line is not None
    shown = page.split("long lines are wrapped:\n\n```\n")[1].split("\n```")[0]
    assert shown.split() == here(line[1]).out.partition("\nAssumptions\n")[0].split()


def test_a_page_without_plans_says_so(here: Run) -> None:
    page = here("plan --devices box=1GB@20GB/s@1TFLOPS").out
    assert "Recommended: none. No plan fits" in page
    assert "accelerate finds no room for all weights" in page


@pytest.mark.parametrize("line", ["--help", "bench --help", "oracle --help", "plan", "plan --devices t4,t4 --json"])
def test_help_and_plans_load_no_libraries_of_models_or_pictures(line: str) -> None:
    code = (
        "import sys; from qubic_lab.cli.main import run; status = run(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'accelerate', 'grpc', 'matplotlib', 'pandas'} & sys.modules.keys(); "
        "sys.exit(f'loaded: {heavy}' if heavy else status)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", code, *shlex.split(line)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout
