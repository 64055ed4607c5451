"""Harnesses: the items are ours, their tasks ask what we ask, logs are read, and what is missing or fails says so."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from examples import example

from qubic_lab.bench import harnesses, local_server
from qubic_lab.bench.harnesses import CHOICES, INSPECT, LM_EVAL, OURS, HarnessError, HarnessResult, HarnessScore, Said
from qubic_lab.bench.local_cluster import local_cluster
from qubic_lab.bench.result import Rate
from qubic_lab.evals.graded import graded_questions
from qubic_lab.model.resolve import resolve_model
from qubic_lab.settings import settings
from qubic_lab.studies import harnesses as study

FOLDER = Path(__file__).parents[1] / "data" / "harnesses"
FAMILIES = ("lookup", "largest", "frequent", "order", "sorts", "index")
CHOSEN = {"doc": {"id": "a", "choices": ["Ada", "Ben"]}, "filtered_resps": [["-3.2", "False"], ["-1.5", "True"]]}
WRITTEN = {"doc": {"id": "b"}, "resps": [[" Ada"]], "filtered_resps": ["Ada"], "exact_match": 1.0}


DOCUMENTED = (
    ("curl", "", '"finish_reason"'),
    ("openai", "openai", r"\['.+', '.+', '.+', '.+'\]\n."),
    ("lm-eval", LM_EVAL, r"(?s)\|qubic_choices\|.*\|acc .*local-chat-completions.*\|qubic_answers\|.*\|exact_match"),
    ("inspect_ai", INSPECT, r"accuracy +[01]\."),
    ("LangChain", "langchain-openai", r".+\n."),
)
"""Sections of docs/harnesses.md with the environments that they need, and what their lines print."""
MOST_DIFFERENCE = 1e-3
"""Of a log-likelihood in fp32, ours from transformers'."""


def task(name: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return found


def test_the_items_are_computed_questions_and_name_their_options() -> None:
    items = harnesses.load_items(FOLDER)
    assert tuple(item.question for item in items) == graded_questions(120, 21, 0.3, FAMILIES)
    for item in items:
        assert item.question.answer in item.choices and len(item.choices) >= 3
        assert list(item.choices) == sorted(set(item.choices))
        assert all(re.search(rf"\b{choice}\b", item.question.question) for choice in item.choices)
    assert harnesses.load_items(FOLDER, 7) == items[:7]


def test_the_tasks_ask_what_ours_asks() -> None:
    for name in (CHOICES, "qubic_answers"):
        assert task(name)["task"] == name
        assert str(task(name)["doc_to_text"]).replace("{{question}}", "{question}") == harnesses.CONTEXT
        assert (FOLDER.parents[1] / task(name)["dataset_kwargs"]["data_files"]["test"]).is_file()  # type: ignore[index]
    assert f"max_tokens={harnesses.NEW_TOKENS}" in (FOLDER / "answers.py").read_text()


def test_lines_of_lm_eval_are_read() -> None:
    assert harnesses.read_sample(json.dumps(CHOSEN | {"acc": 0.0})) == ("a", Said("Ben", False, (-3.2, -1.5)))
    assert harnesses.read_sample(json.dumps(WRITTEN)) == ("b", Said(" Ada", True))
    ours = {"a": Said("Ben", False, (-3.0, -1.5))}
    assert harnesses.largest_difference({"a": Said("Ben", False, (-3.2, -1.5))}, ours) == pytest.approx(0.2)
    assert harnesses.largest_difference({}, ours) is None


def test_a_log_of_inspect_is_read() -> None:
    samples = [
        {"id": "a", "output": {"completion": "It is Ada."}, "scores": {"match": {"value": "C"}}},
        {"id": "b", "output": {"completion": "No."}, "scores": {"match": {"value": "I"}}},
    ]
    found = harnesses.read_log({"status": "success", "samples": samples})
    assert found == {"a": Said("It is Ada.", True), "b": Said("No.", False)}
    with pytest.raises(HarnessError, match="ended with 'error': no server"):
        harnesses.read_log({"status": "error", "error": {"message": "no server"}})


def program(folder: Path, script: str) -> None:
    file = folder / LM_EVAL / "bin" / "lm_eval"
    file.parent.mkdir(parents=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def test_a_harness_that_is_missing_or_fails_says_why(tmp_path: Path, set_settings: Callable[..., None]) -> None:
    set_settings(peers=tmp_path)
    with pytest.raises(HarnessError, match="not installed: run `make harnesses`"):
        harnesses.lm_eval(CHOICES, "hf", {})
    program(tmp_path, "echo first >&2; echo the last line >&2; exit 1")
    with pytest.raises(HarnessError, match="it failed: the last line"):
        harnesses.lm_eval(CHOICES, "hf", {})


def test_a_harness_gets_its_arguments_and_its_log_is_read(tmp_path: Path, set_settings: Callable[..., None]) -> None:
    set_settings(peers=tmp_path)
    line = json.dumps(WRITTEN)
    program(
        tmp_path,
        f'echo "$HF_HUB_OFFLINE $*" > {tmp_path}/said; mkdir "${{11}}/m"; '
        + (f"echo '{line}' > \"${{11}}/m/samples_qubic_answers_2026.jsonl\""),
    )
    assert harnesses.lm_eval("qubic_answers", "hf", {"a": 1, "b": "x"}, Path("tasks"), 5) == {"b": Said(" Ada", True)}
    said = (tmp_path / "said").read_text().split(" --output_path")
    assert said[0] == "1 --model hf --model_args a=1,b=x --tasks qubic_answers --include_path tasks --log_samples"
    assert said[1].endswith("--limit 5\n")


def test_the_study_says_what_differs_and_what_is_missing() -> None:
    scores = (HarnessScore(OURS, CHOICES, Rate.of(3, 4), 4), HarnessScore(LM_EVAL, CHOICES, Rate.of(2, 4), 3))
    missing = {INSPECT: "it is not installed"}
    result = example(
        HarnessResult,
        scores=scores,
        not_measured=missing,
        largest_difference=0.00004,
        items=4,
        versions={LM_EVAL: "0.4"},
    )
    assert [str(each) for each in study.findings(result)] == [
        "lm-eval got over HTTP what the pipeline says on 3 of 4 items.",
        "Log-likelihoods in lm-eval differ from the pipeline's by 4e−05 at most.",
        "inspect-ai was not measured here: it is not installed.",
    ]
    ours, theirs = study.score_rows(result)
    assert (ours["right"], ours["share_pct"], ours["version"]) == (3, 75.0, "")
    assert (theirs["as_ours"], theirs["version"]) == (3, "0.4")
    assert study.scores(result).axes[0].get_xlabel() == "questions answered correctly (%)"


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(3600)
def test_lm_eval_gets_over_http_what_its_own_engine_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parents[1])
    if not (settings().peers / LM_EVAL).exists():
        pytest.skip("lm-eval is not installed: run `make harnesses`")
    folder, tasks = resolve_model("smollm2"), (CHOICES, "qubic_answers")
    with local_server.served(model="smollm2", ranks=2, dtype="fp32") as local:
        ours = [harnesses.lm_eval(name, *harnesses.over_http(f"{local.url}/v1", folder)) for name in tasks]
    theirs = [harnesses.lm_eval(name, "hf", {"pretrained": folder, "dtype": "float32"}) for name in tasks]
    for over_http, own in zip(ours, theirs, strict=True):
        assert {id: said.text for id, said in over_http.items()} == {id: said.text for id, said in own.items()}
        assert len(own) == 120
    difference = harnesses.largest_difference(*(found[0] for found in (ours, theirs)))
    assert difference is not None and difference <= MOST_DIFFERENCE


@pytest.fixture(scope="module", params=["server", "coordinator"])
def served(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "server":
        with local_server.served(model="smollm2") as local:
            yield f"{local.url}/v1"
        return
    with local_cluster() as running:
        running.start_node("a", "smollm2", "bf16", threads=1, slots=8)
        running.wait_for_nodes("a", within_s=120)
        yield f"{running.urls['coordinator-1']}/v1"


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("section", "harness", "printed"), DOCUMENTED, ids=[each[0] for each in DOCUMENTED])
def test_documented_lines_work_as_written(
    section: str, harness: str, printed: str, served: str, tmp_path: Path
) -> None:
    bin = settings().peers.absolute() / harness / "bin"
    if not bin.exists() and harness:
        pytest.skip(f"{harness} is not installed: run `make harnesses`")
    text = (FOLDER.parents[1] / "docs" / "harnesses.md").read_text().split(f"## {section}\n", 1)[1]
    [(language, code)] = re.findall(r"```(console|python)\n(.*?)```", text.split("\n## ", 1)[0], re.DOTALL)
    code = re.sub("(?m)^inspect view$", "", code)  # serves until it is ended
    code = re.sub("(?m)^(lm_eval|inspect eval)", r"\1 --limit 2", code)
    command = [str(bin / "python"), "-c", code] if language == "python" else ["sh", "-ec", code]
    path = os.pathsep.join([str(bin), str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = {"OPENAI_BASE_URL": served, "OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1", "PATH": path}
    (tmp_path / "data").symlink_to(FOLDER.parent)
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(printed, done.stdout), done.stdout
