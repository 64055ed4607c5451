"""Puts the same questions to a served model by other people's harnesses, and to its pipeline without them.

`make harnesses` makes an environment for each harness. They run there by the commands of docs/harnesses.md.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qubic_lab.bench.local_server import served
from qubic_lab.bench.result import ModelResult, Rate, Table, counted, settings_of
from qubic_lab.core import Progress, Request, SamplingParams, no_progress
from qubic_lab.errors import check_at_least
from qubic_lab.evals.questions import Question, read_objects
from qubic_lab.evals.scoring import judge
from qubic_lab.model.resolve import resolve_model
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig
from qubic_lab.settings import settings

FOLDER = Path("data/harnesses")
"""The items, and the tasks of the harnesses."""
LM_EVAL, INSPECT, OURS = "lm-eval", "inspect-ai", "ours"
CHOICES, ANSWERS = "qubic_choices", "answers"
"""Tasks: the likeliest of the given options after the question; an answer in the model's own words."""
MODEL = "default"
"""The served model's other name."""
CONTEXT = "Question: {question}\nAnswer:"
NEW_TOKENS = 24
"""As in the harnesses' tasks."""


class HarnessError(Exception):
    """A harness cannot be run; the message is the reason."""


@dataclass(frozen=True)
class Item:
    """A question with the options of which one is its answer."""

    question: Question
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Said:
    """What a model said to an item, whether it counts as right, and the log-likelihoods of the options."""

    text: str
    right: bool
    loglikelihoods: tuple[float, ...] = ()


SaidById = Mapping[str, Said]


@dataclass(frozen=True)
class HarnessScore:
    """A harness's score on a task; on `same` of its items it got the option or the text that ours got."""

    harness: str
    task: str
    right: Rate
    same: int


@dataclass(frozen=True)
class HarnessResult(ModelResult):
    """The scores of harnesses and our own on the same items, and why others were not measured.

    `largest_difference` is that of a log-likelihood, lm-eval's from ours; `versions` are those of the harnesses.
    """

    scores: tuple[HarnessScore, ...]
    largest_difference: float | None
    not_measured: Mapping[str, str]
    versions: Mapping[str, str]
    items: int

    def report(self) -> Iterator[Table | str]:
        rows = [
            (each.harness, each.task, each.right.text(), f"{each.same} of {each.right.runs}") for each in self.scores
        ]
        yield Table(("harness", "task", "right", "as ours"), rows)
        yield from (f"{harness} was not measured: {reason}" for harness, reason in self.not_measured.items())


def load_items(folder: Path = FOLDER, limit: int | None = None) -> tuple[Item, ...]:
    """Read the first `limit` items, or all.

    Raises:
        InputError: the file cannot be read, or a line is no JSON object.
    """
    lines = islice(read_objects(folder / "items.jsonl", "items"), limit)
    names = ("id", "question", "answer", "kind")
    return tuple(Item(Question(*(item[name] for name in names)), tuple(item["choices"])) for _, item in lines)


def bench_harnesses(
    config: PipelineConfig, folder: Path = FOLDER, limit: int = 120, progress: Progress = no_progress
) -> HarnessResult:
    """Ask the first `limit` items by each harness that is installed, and by the pipeline that it is served from.

    Raises:
        InputError: a value is wrong, or the items cannot be read.
        ModelError, RankError: as for Pipeline.launch.
    """
    items = load_items(folder, check_at_least("limit", limit, 1))
    say, said, missing = counted(progress, 4), dict[tuple[str, str], SaidById](), dict[str, str]()
    with served(model=config.model, ranks=config.ranks or 1, dtype=config.dtype) as local:
        url = f"{local.url}/v1"
        server = over_http(url, resolve_model(config.model))
        asked: dict[tuple[str, str], Callable[[], SaidById]] = {
            (LM_EVAL, CHOICES): lambda: lm_eval(CHOICES, *server, folder, limit),
            (INSPECT, ANSWERS): lambda: inspect_eval(url, folder, limit),
        }
        for (harness, task), ask in asked.items():
            say(f"{harness}: {task}")
            try:
                said[harness, task] = ask()
            except HarnessError as error:
                missing[harness] = str(error)
    with Pipeline.launch(config) as pipeline:
        for task, put in ((CHOICES, choose), (ANSWERS, answer)):
            say(f"{OURS}: {task}")
            said[OURS, task] = put(pipeline, items)
        used = settings_of(pipeline.config)
    return HarnessResult(
        **used,
        scores=tuple(_score(*key, said[key], said[OURS, key[1]]) for key in sorted(said, key=lambda key: key[1])),
        largest_difference=largest_difference(said.get((LM_EVAL, CHOICES), {}), said[OURS, CHOICES]),
        not_measured=missing,
        versions={harness: _version(harness) for harness, _ in said if harness != OURS},
        items=len(items),
    )


def largest_difference(some: SaidById, others: SaidById) -> float | None:
    """Return the largest difference of two log-likelihoods of the same option; None if there is no such pair."""
    pairs = ((each.loglikelihoods, others[id].loglikelihoods) for id, each in some.items())
    return max((abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True)), default=None)


def choose(pipeline: Pipeline, items: Sequence[Item]) -> SaidById:
    """Choose the likeliest option of each item after its question, in the words of the task of lm-eval."""
    return {item.question.id: _choose(pipeline, item) for item in items}


def _choose(pipeline: Pipeline, item: Item) -> Said:
    context = CONTEXT.format(question=item.question.question)
    before = len(pipeline.score(context).token_ids) - 1  # the first token has no log-probability
    found = tuple(sum(pipeline.score(f"{context} {choice}").logprobs[before:]) for choice in item.choices)
    chosen = item.choices[found.index(max(found))]
    return Said(chosen, chosen == item.question.answer, found)


def answer(pipeline: Pipeline, items: Sequence[Item]) -> SaidById:
    """Answer each question greedily, as the user's turn of a chat."""
    requests = [Request(item.question.question, sampling=SamplingParams(NEW_TOKENS)) for item in items]
    found = {}
    for item, each in zip(items, pipeline.answer_all(requests), strict=True):
        text, cut = each.completion.text, each.completion.finish_reason == "length"
        found[item.question.id] = Said(text, bool(judge(item.question, text, cut)))
    return found


def over_http(url: str, tokenizer: Path) -> tuple[str, Mapping[str, object]]:
    """Return the type of model of lm-eval, and its arguments, for a served model whose tokenizer is in a folder."""
    where = {"model": MODEL, "base_url": f"{url}/completions", "tokenizer": tokenizer}
    return "local-completions", where | {"num_concurrent": 4}


def lm_eval(
    task: str, model: str, arguments: Mapping[str, object], folder: Path = FOLDER, limit: int | None = None
) -> SaidById:
    """Run a task of the folder in lm-eval, by a type of model and its arguments.

    Raises:
        HarnessError: it is not installed, or fails.
    """
    given = ",".join(f"{name}={value}" for name, value in arguments.items())
    options = ["--model", model, "--model_args", given, "--tasks", task, "--include_path", str(folder)]
    with TemporaryDirectory() as out:
        _run(LM_EVAL, "lm_eval", *options, "--log_samples", "--output_path", out, limit=limit)
        [file] = Path(out).rglob(f"samples_{task}_*.jsonl")
        return {id: said for line in file.read_text(encoding="utf-8").splitlines() for id, said in [read_sample(line)]}


def read_sample(line: str) -> tuple[str, Said]:
    """Return an item's id and what was said to it, from a line of lm-eval's log of samples."""
    sample = json.loads(line)
    doc, right = sample["doc"], float(sample.get("acc", sample.get("exact_match")))
    if "acc" not in sample:
        return doc["id"], Said(sample["resps"][0][0], right == 1.0)
    found = tuple(float(each[0]) for each in sample["filtered_resps"])
    return doc["id"], Said(doc["choices"][found.index(max(found))], right == 1.0, found)


def inspect_eval(url: str, folder: Path = FOLDER, limit: int | None = None) -> SaidById:
    """Run the task of the folder in inspect_ai.

    Raises:
        HarnessError: it is not installed, or fails.
    """
    options = ["--model", f"openai-api/qubic/{MODEL}", "--log-format", "json", "--display", "none"]
    with TemporaryDirectory() as out:
        where = {"QUBIC_BASE_URL": url, "QUBIC_API_KEY": _key()}
        _run(INSPECT, "inspect", "eval", f"{folder}/answers.py", *options, "--log-dir", out, limit=limit, **where)
        [file] = Path(out).glob("*.json")
        return read_log(json.loads(file.read_text(encoding="utf-8")))


def read_log(log: Mapping[str, Any]) -> SaidById:
    """Return what was said to each item, from a log of inspect_ai.

    Raises:
        HarnessError: the evaluation did not end well.
    """
    if log["status"] != "success":
        raise HarnessError(f"its evaluation ended with {log['status']!r}: {(log.get('error') or {}).get('message')}")
    return {
        str(sample["id"]): Said(sample["output"]["completion"], sample["scores"]["match"]["value"] == "C")
        for sample in log["samples"]
    }


def _run(harness: str, program: str, *arguments: str, limit: int | None, **variables: str) -> None:
    """Run a harness's program in its environment, without a model hub."""
    file = settings().peers / harness / "bin" / program
    if not file.exists():
        raise HarnessError("it is not installed: run `make harnesses`")
    command = [str(file), *arguments, *(() if limit is None else ("--limit", str(limit)))]
    environment = os.environ | {"OPENAI_API_KEY": _key(), "HF_HUB_OFFLINE": "1"} | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["it printed nothing"]
        raise HarnessError(f"it failed: {lines[-1].strip()}")


def _key() -> str:
    """Return the server's key; harnesses want one also where the server does not."""
    return os.environ.get("QUBIC_LAB_API_KEY") or "none"


def _version(harness: str) -> str:
    """Return the installed version of a harness."""
    [folder] = (settings().peers / harness).glob(f"lib/*/site-packages/{harness.replace('-', '_')}-*.dist-info")
    return folder.name.removesuffix(".dist-info").rpartition("-")[2]


def _score(harness: str, task: str, said: SaidById, ours: SaidById) -> HarnessScore:
    same = sum(each.text == ours[id].text for id, each in said.items())
    return HarnessScore(harness, task, Rate.of(sum(each.right for each in said.values()), len(said)), same)
