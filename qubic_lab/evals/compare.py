"""Compares a split model with the unsplit one, and one rank with transformers: tokens, logits and right answers."""

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

from qubic_lab.core import Completion, Progress, no_progress
from qubic_lab.errors import check_choice
from qubic_lab.evals.comparison import (
    EQUIVALENCE_MARGIN,
    AnswerRow,
    Case,
    GreedyAnswer,
    ReferenceComparison,
    SplitComparison,
    TokenDifference,
    Variant,
    WithLogits,
    accuracy,
    likeness,
    paired_accuracy,
    score,
)
from qubic_lab.evals.comparison_plan import ComparisonConfig, ComparisonPlan, plan_comparison
from qubic_lab.evals.questions import Question
from qubic_lab.evals.scoring import is_checkable, judge, judged_text
from qubic_lab.model.checkpoint import model_hash, run_hash
from qubic_lab.model.config import load_config
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig, ResolvedConfig
from qubic_lab.pipeline.text import Tokenizer
from qubic_lab.provenance import reference_library, source_commit
from qubic_lab.settings import cache_folder

_Report = Callable[[str], None]
THOUGHTS = "<think>"
"""Some chat templates end with this tag, so the model's answer lacks it."""


@dataclass(frozen=True)
class _Run:
    """The answers of one run over all questions, and a file of logits for each."""

    answers: tuple[GreedyAnswer, ...]
    logits: tuple[Path, ...]
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return sum(len(answer.token_ids) for answer in self.answers) / self.seconds

    def with_logits(self) -> Iterator[WithLogits]:
        """Read the answers with their logits one by one."""
        for answer, file in zip(self.answers, self.logits, strict=True):
            yield answer, np.fromfile(file, dtype="<f4").reshape(len(answer.token_ids), -1)


@dataclass(frozen=True)
class _Way:
    """The answers of one way of running, and the name of the way they are paired with, if any."""

    dtype: str
    name: str
    baseline: str | None
    answers: tuple[GreedyAnswer, ...]


_Runs = dict[tuple[str, int], _Run]
"""The runs on one rank, by dtype and batch."""


def compare(config: ComparisonConfig, progress: Progress = no_progress) -> SplitComparison:
    """Answer questions greedily on one rank, with each split, and with transformers; compare tokens and logits.

    One rank is also compared with itself at another number of threads and at the other batch sizes.

    Raises:
        InputError: a file or value is wrong; raised before anything runs.
        RankError, NonFiniteError: a run failed.
    """
    plan = plan_comparison(config)
    done = 0

    def report(what: str) -> None:
        nonlocal done
        done += 1
        progress(what, done, plan.steps)

    tokenizer = Tokenizer(plan.whole.folder)
    prompts = [tokenizer.encode(request) for request in plan.requests]
    with _scratch_folder() as scratch:
        one_rank, variants = _run_one_rank(plan, scratch, report)
        cases, split_ways = _run_splits(plan, one_rank, scratch, report)
        compared = [
            _run_reference(plan, dtype, one_rank[dtype, plan.batches[0]], tokenizer, prompts, report)
            for dtype in plan.dtypes
        ]
    whole_ways = [_Way(dtype, _whole(batch), None, run.answers) for (dtype, batch), run in one_rank.items()]
    ways = [*whole_ways, *split_ways, *(way for _, way in compared)]
    ways.sort(key=lambda way: plan.dtypes.index(way.dtype))
    return _result(plan, cases, tuple(found for found, _ in compared), variants, ways, _opening(tokenizer, prompts[0]))


def _result(
    plan: ComparisonPlan,
    cases: tuple[Case, ...],
    reference: tuple[ReferenceComparison, ...],
    variants: tuple[Variant, ...],
    ways: Sequence[_Way],
    opening: str,
) -> SplitComparison:
    checkable = sum(map(is_checkable, plan.questions))
    scored = {(way.dtype, way.name): score(plan.questions, way.answers, opening) for way in ways if checkable}
    return SplitComparison(
        token_identity=min(case.token_identity for case in cases),
        logits_max_abs=max(case.logits_max_abs for case in cases),
        model=plan.base.model,
        model_hash=model_hash(plan.whole.folder),
        candidate=plan.candidate_name,
        candidate_hash=run_hash(plan.splits[0].folder, plan.quantization) if plan.candidate_name else "",
        meaningless=plan.whole.meaningless,
        device=plan.whole.device,
        threads=plan.whole.threads,
        commit=str(source_commit()),
        seed=plan.seed,
        questions=len(plan.questions),
        checkable=checkable,
        judged=judged_text(plan.questions),
        max_new_tokens=plan.max_new_tokens,
        equivalence_margin=EQUIVALENCE_MARGIN,
        cases=cases,
        reference=reference,
        variants=variants,
        accuracy=tuple(accuracy(dtype, name, found) for (dtype, name), found in scored.items()),
        paired=tuple(
            paired_accuracy(
                way.dtype,
                (way.baseline, scored[way.dtype, way.baseline]),
                (way.name, scored[way.dtype, way.name]),
            )
            for way in ways
            if way.baseline and checkable
        ),
        answers=tuple(
            _answer_row(question, answer, opening)
            for question, answer in zip(plan.questions, ways[0].answers, strict=True)
        ),
    )


def answer_again(config: ComparisonConfig, ids: Sequence[str]) -> Iterator[AnswerRow]:
    """Yield the answers of `SplitComparison.answers` to questions of these ids once more.

    Raises:
        InputError: a file or value is wrong, or there is no such question.
        RankError: the pipeline failed.
    """
    plan = plan_comparison(config)
    requests, tokenizer = plan.requests, Tokenizer(plan.whole.folder)
    opening = _opening(tokenizer, tokenizer.encode(requests[0]))
    for id in ids:
        check_choice("question", id, plan.ids)
    shape = replace(plan.base, ranks=1, dtype=plan.dtypes[0], slots=plan.batches[0])
    with Pipeline.launch(shape) as pipeline:
        for place in map(plan.ids.index, ids):
            yield _answer_row(plan.questions[place], _greedy(pipeline.generate(requests[place])), opening)


def _answer_row(question: Question, answer: GreedyAnswer, opening: str) -> AnswerRow:
    return AnswerRow(
        id=question.id,
        kind=question.kind,
        question=question.question,
        answer=question.answer,
        text=answer.text,
        tokens=len(answer.token_ids),
        correct=judge(question, opening + answer.text, answer.cut),
        cut=answer.cut,
    )


def _whole(batch: int) -> str:
    return f"whole, batch {batch}"


def _opening(tokenizer: Tokenizer, prompt: Sequence[int]) -> str:
    """Return the beginning of the answer that the prompt already contains: thoughts, or nothing."""
    end = "".join(map(tokenizer.token_text, prompt[-3:]))
    return THOUGHTS if end.rstrip().endswith(THOUGHTS) else ""


def _run_one_rank(plan: ComparisonPlan, scratch: Path, report: _Report) -> tuple[_Runs, tuple[Variant, ...]]:
    config = replace(plan.base, ranks=1)
    runs: _Runs = {}
    variants = []
    with Pipeline.launch(config) as pipeline:
        for dtype in plan.dtypes:
            for batch in plan.batches:
                folder = scratch / f"one-{dtype}-{batch}"
                runs[dtype, batch] = _run(pipeline, replace(config, dtype=dtype, slots=batch), plan, folder)
                report(f"1 rank, {dtype}, batch {batch}")
            first = plan.batches[0]
            shape = replace(config, dtype=dtype, slots=first, threads=plan.other_threads)
            folder = scratch / f"threads-{dtype}"
            other = _run(pipeline, shape, plan, folder)
            base = runs[dtype, first]
            variants.append(_variant(plan, dtype, "threads", plan.whole.threads, plan.other_threads, base, other))
            shutil.rmtree(folder)
            variants.extend(
                _variant(plan, dtype, "batch", first, batch, base, runs[dtype, batch]) for batch in plan.batches[1:]
            )
            report(f"1 rank, {dtype}, {plan.other_threads} threads")
    return runs, tuple(variants)


def _variant(
    plan: ComparisonPlan, dtype: str, what: str, base: int, other: int, base_run: _Run, other_run: _Run
) -> Variant:
    measured = likeness(plan.ids, base_run.with_logits(), other_run.with_logits())
    return Variant(**vars(measured), dtype=dtype, what=what, base=base, other=other)


def _run_splits(
    plan: ComparisonPlan, one_rank: _Runs, scratch: Path, report: _Report
) -> tuple[tuple[Case, ...], list[_Way]]:
    cases: list[Case] = []
    ways = []
    for ranks in dict.fromkeys(split.ranks for split in plan.splits):
        splits = [split for split in plan.splits if split.ranks == ranks]
        config = replace(plan.split_config, ranks=ranks)
        with Pipeline.launch(replace(config, strategy=splits[0].strategy)) as pipeline:
            for dtype in plan.dtypes:
                measured: dict[tuple[tuple[int, ...], int], Case] = {}
                # Batches vary within a split, because another split reads the weights again.
                for split, batch in itertools.product(splits, plan.batches):
                    if (same := measured.get((split.layers, batch))) is not None:
                        cases.append(replace(same, strategy=split.strategy, measured_as=same.strategy))
                        continue
                    folder = scratch / f"{ranks}-{split.strategy}-{dtype}-{batch}"
                    shape = replace(config, strategy=split.strategy, dtype=dtype, slots=batch)
                    run = _run(pipeline, shape, plan, folder)
                    case = _case(plan, split, dtype, batch, run, one_rank[dtype, batch])
                    measured[split.layers, batch] = case
                    cases.append(case)
                    name = f"split, {ranks} ranks, {split.strategy}, batch {batch}"
                    ways.append(_Way(dtype, name, _whole(batch), run.answers))
                    shutil.rmtree(folder)
                    report(f"{ranks} ranks, strategy {split.strategy}, {dtype}, batch {batch}")
    return tuple(cases), ways


def _run(pipeline: Pipeline, config: PipelineConfig, plan: ComparisonPlan, folder: Path) -> _Run:
    folder.mkdir()
    pipeline.configure(replace(config, capture=folder))
    started = time.perf_counter()
    found = list(pipeline.answer_all(plan.requests))
    seconds = time.perf_counter() - started
    return _Run(
        answers=tuple(_greedy(each.completion) for each in found),
        logits=tuple(folder / f"{each.number}.f32" for each in found),
        seconds=seconds,
    )


def _greedy(answer: Completion) -> GreedyAnswer:
    return GreedyAnswer(answer.token_ids, answer.text, answer.finish_reason == "length")


def _case(plan: ComparisonPlan, split: ResolvedConfig, dtype: str, batch: int, run: _Run, one_rank: _Run) -> Case:
    measured = likeness(plan.ids, one_rank.with_logits(), run.with_logits())
    return Case(
        **vars(measured),
        dtype=dtype,
        ranks=split.ranks,
        strategy=split.strategy,
        layers=split.layers,
        batch=batch,
        tokens_per_s=run.tokens_per_s,
        one_rank_tokens_per_s=one_rank.tokens_per_s,
    )


def _run_reference(
    plan: ComparisonPlan,
    dtype: str,
    run: _Run,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    report: _Report,
) -> tuple[ReferenceComparison, _Way]:
    answers: list[GreedyAnswer] = []
    eos = load_config(plan.whole.folder).eos_token_ids

    def answer_all() -> Iterator[WithLogits]:
        for tokens, logits_TV in reference_answers(
            plan.whole.folder, dtype, prompts, plan.max_new_tokens, plan.whole.threads, plan.batches[0]
        ):
            answers.append(GreedyAnswer(tuple(tokens), tokenizer.decode(tokens), cut=tokens[-1] not in eos))
            yield answers[-1], logits_TV

    measured = likeness(plan.ids, answer_all(), run.with_logits())
    ours, theirs = (dict(zip(plan.ids, each, strict=True)) for each in (run.answers, answers))
    report(f"transformers, {dtype}")
    reference = ReferenceComparison(
        **vars(measured),
        dtype=dtype,
        library=reference_library(),
        differences=tuple(
            # Both have a token there: the shorter answer ends with an end token, which the longer one lacks.
            TokenDifference(
                id=gap.id,
                position=gap.position,
                ours=tokenizer.token_text(ours[gap.id].token_ids[gap.position]),
                theirs=tokenizer.token_text(theirs[gap.id].token_ids[gap.position]),
                margin=gap.margin,
            )
            for gap in measured.divergences
        ),
    )
    return reference, _Way(dtype, reference_library(), _whole(plan.batches[0]), tuple(answers))


def reference_answers(
    folder: Path, dtype: str, prompts: Sequence[Sequence[int]], max_new_tokens: int, threads: int, batch: int = 1
) -> Iterator[tuple[list[int], npt.NDArray[np.float32]]]:
    """Yield tokens and fp32 logits (tokens, V) of greedy answers by transformers' own model and generate.

    Prompts are given as token ids; `batch` of them are answered at a time, shorter ones filled up on the left.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging as transformers_logging

    from qubic_lab.model.decoder import torch_dtype

    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch_dtype(dtype), local_files_only=True)
    eos = list(load_config(folder).eos_token_ids) or None
    # A fresh config: the model's own may ask for sampling or penalties, and the comparison is of plain greedy decoding.
    filling = eos[0] if eos else 0
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=filling)
    for first in range(0, len(prompts), batch):
        group = [list(prompt) for prompt in prompts[first : first + batch]]
        longest = max(map(len, group))
        with torch.inference_mode():
            output = model.generate(
                torch.tensor([[filling] * (longest - len(prompt)) + prompt for prompt in group]),
                attention_mask=torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in group]),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        for row, tokens in enumerate(output.sequences[:, longest:].tolist()):
            # An answer that ended before the others of its group is filled up behind its end token.
            length = next((place for place, token in enumerate(tokens, start=1) if token in (eos or ())), len(tokens))
            yield tokens[:length], np.stack([step[row].float().numpy() for step in output.logits[:length]])


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """Yield a cache folder for captured logits, which may exceed a /tmp in memory.

    Folders that a killed comparison left behind are deleted first.
    """
    for left in cache_folder().glob("compare-*-*"):
        if not psutil.pid_exists(int(left.name.split("-")[1])):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"compare-{os.getpid()}-", dir=cache_folder()) as folder:
        yield Path(folder)
