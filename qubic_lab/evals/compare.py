"""Is the split model still the same model? N ranks against one rank of ours, and one rank against transformers."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from qubic_lab.core import Completion, Request, SamplingParams
from qubic_lab.errors import InputError, check_at_least, check_choice, check_range
from qubic_lab.evals.identity import first_divergence, logits_max_abs, token_identity
from qubic_lab.evals.questions import Question, committed_questions, load_questions
from qubic_lab.evals.reference import ReferenceAnswer, library, reference_answers
from qubic_lab.model.checkpoint import model_hash
from qubic_lab.model.folders import rank_folders
from qubic_lab.model.layout import DTYPE_BYTES
from qubic_lab.model.plan import STRATEGIES
from qubic_lab.model.resolve import resolve_model
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig, ResolvedConfig, resolve_config
from qubic_lab.pipeline.message import MAX_SLOTS
from qubic_lab.pipeline.text import Tokenizer
from qubic_lab.provenance import source_commit, usable_cores
from qubic_lab.settings import cache_folder

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the finished steps and all steps."""


@dataclass(frozen=True)
class Divergence:
    """The first position at which two answers to a question differ."""

    id: str
    position: int


@dataclass(frozen=True)
class Case:
    """N ranks against one rank at the same dtype, threads and slots a lane; both must agree bit for bit.

    `measured_as` names the strategy with the same layers that was run in this one's place. Tokens/s are over all
    questions, prompts included.
    """

    dtype: str
    ranks: int
    strategy: str
    layers: tuple[int, ...]
    batch: int
    questions: int
    tokens: int
    token_identity: float
    logits_max_abs: float
    divergences: tuple[Divergence, ...]
    tokens_per_s: float
    one_rank_tokens_per_s: float
    measured_as: str | None = None


@dataclass(frozen=True)
class Difference:
    """Where our answer leaves the reference's, and by how much the reference preferred its own token there."""

    id: str
    position: int
    ours: str
    theirs: str
    margin: float


@dataclass(frozen=True)
class Reference:
    """One rank of ours against the transformers implementation, greedy, prompt by prompt."""

    dtype: str
    library: str
    questions: int
    tokens: int
    token_identity: float
    logits_max_abs: float
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class AnswerRow:
    """A question, its reference answer and what the model said (one rank, the first dtype and batch)."""

    id: str
    kind: str
    question: str
    answer: str
    text: str
    tokens: int


@dataclass(frozen=True)
class Comparison:
    """All cases, the reference apart, and what they were measured on."""

    token_identity: float
    logits_max_abs: float
    model: str
    model_hash: str
    meaningless: bool
    device: str
    threads: int
    commit: str
    seed: int
    questions: int
    max_new_tokens: int
    cases: tuple[Case, ...]
    reference: tuple[Reference, ...]
    answers: tuple[AnswerRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Plan:
    """What will be run, checked before anything is."""

    base: PipelineConfig
    questions: tuple[Question, ...]
    requests: tuple[Request, ...]
    batches: tuple[int, ...]
    dtypes: tuple[str, ...]
    splits: tuple[ResolvedConfig, ...]
    max_new_tokens: int

    @property
    def steps(self) -> int:
        """Runs of all questions: one rank, each different split, the reference."""
        splits = {(split.ranks, split.layers) for split in self.splits}
        return len(self.dtypes) * (len(self.batches) * (1 + len(splits)) + 1)


@dataclass(frozen=True)
class _Run:
    """The answers of one way of running the questions; `logits` holds a file for each."""

    completions: tuple[Completion, ...]
    logits: tuple[Path, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(len(completion.token_ids) for completion in self.completions)


def compare(
    model: str = "smollm2",
    ranks: Sequence[int] = (2,),
    strategies: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 4),
    dtypes: Sequence[str] = ("fp32", "bf16"),
    questions: Path | None = None,
    limit: int | None = None,
    max_new_tokens: int = 32,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Answer questions greedily with one rank, with each split, and with transformers; compare tokens and logits.

    Args:
        model: alias, hub id, folder or GGUF file.
        ranks: numbers of ranks to split over.
        strategies: `A`, `B`, `C`; by default all that fit (A is for two ranks).
        batches: slots a lane.
        dtypes: `fp32`, `bf16`, `fp16`.
        questions: a question file; by default the committed one.
        limit: so many of its first questions; by default all.
        max_new_tokens: most tokens of an answer.
        threads: compute threads of each rank, on both sides; by default cores ÷ the largest number of ranks.
        progress: called after each step.

    Raises:
        InputError: a value is wrong, before anything runs.
        RankError, NonFiniteError: a run failed.
    """
    plan = _plan(model, ranks, strategies, batches, dtypes, questions, limit, max_new_tokens, threads)
    done = 0

    def report(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(what, done, plan.steps)

    with _scratch_folder() as scratch:
        one_rank = _run_one_rank(plan, scratch, report)
        cases = _run_splits(plan, one_rank, scratch, report)
        first = one_rank[plan.dtypes[0], plan.batches[0]]
        reference = tuple(
            _compare_reference(plan, dtype, one_rank[dtype, plan.batches[0]], report) for dtype in plan.dtypes
        )
    resolved = plan.splits[0]
    return Comparison(
        token_identity=min(case.token_identity for case in cases),
        logits_max_abs=max(case.logits_max_abs for case in cases),
        model=model,
        model_hash=model_hash(resolved.folder),
        meaningless=resolved.meaningless,
        device=resolved.device,
        threads=resolved.threads,
        commit=str(source_commit()),
        seed=0,
        questions=len(plan.questions),
        max_new_tokens=max_new_tokens,
        cases=cases,
        reference=reference,
        answers=tuple(
            AnswerRow(q.id, q.kind, q.question, q.answer, completion.text, len(completion.token_ids))
            for q, completion in zip(plan.questions, first.completions, strict=True)
        ),
    )


def _plan(
    model: str,
    ranks: Sequence[int],
    strategies: Sequence[str] | None,
    batches: Sequence[int],
    dtypes: Sequence[str],
    questions: Path | None,
    limit: int | None,
    max_new_tokens: int,
    threads: int | None,
) -> _Plan:
    for number in ranks:
        check_at_least("ranks", number, 1)
    for batch in batches:
        check_range("batch", batch, 1, MAX_SLOTS)
    for dtype in dtypes:
        check_choice("dtype", dtype, DTYPE_BYTES)
    for strategy in strategies or ():
        check_choice("strategy", strategy, STRATEGIES)
    asked = load_questions(questions or committed_questions())
    if limit is not None:
        asked = asked[: check_at_least("limit", limit, 1)]
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    if rank_folders(resolve_model(model)):
        raise InputError(f"model {model!r} is split already: give the model that it was made from")
    if threads is None:
        threads = max(1, usable_cores() // max(ranks))
    base = PipelineConfig(model=model, threads=threads, slots=max(batches))
    splits = [
        resolve_config(replace(base, ranks=number, strategy=strategy))
        for number in dict.fromkeys(ranks)
        for strategy in dict.fromkeys(strategies or (s for s in STRATEGIES if s != "A" or number <= 2))
    ]
    return _Plan(
        base=base,
        questions=asked,
        requests=tuple(Request(prompt=question.question, sampling=sampling) for question in asked),
        batches=tuple(dict.fromkeys(batches)),
        dtypes=tuple(dict.fromkeys(dtypes)),
        splits=tuple(splits),
        max_new_tokens=max_new_tokens,
    )


def _run_one_rank(plan: _Plan, scratch: Path, report: Callable[[str], None]) -> dict[tuple[str, int], _Run]:
    config = replace(plan.base, ranks=1)
    runs = {}
    with Pipeline.launch(config) as pipeline:
        for dtype in plan.dtypes:
            for batch in plan.batches:
                folder = scratch / f"one-{dtype}-{batch}"
                runs[dtype, batch] = _run(pipeline, replace(config, dtype=dtype, slots=batch), plan, folder)
                report(f"1 rank, {dtype}, batch {batch}")
    return runs


def _run_splits(
    plan: _Plan, one_rank: dict[tuple[str, int], _Run], scratch: Path, report: Callable[[str], None]
) -> tuple[Case, ...]:
    cases: list[Case] = []
    for ranks in dict.fromkeys(split.ranks for split in plan.splits):
        splits = [split for split in plan.splits if split.ranks == ranks]
        config = replace(plan.base, ranks=ranks)
        with Pipeline.launch(replace(config, strategy=splits[0].strategy)) as pipeline:
            for dtype in plan.dtypes:
                for batch in plan.batches:
                    measured: dict[tuple[int, ...], Case] = {}
                    for split in splits:
                        if (same := measured.get(split.layers)) is not None:
                            cases.append(replace(same, strategy=split.strategy, measured_as=same.strategy))
                            continue
                        folder = scratch / f"{ranks}-{split.strategy}-{dtype}-{batch}"
                        shape = replace(config, strategy=split.strategy, dtype=dtype, slots=batch)
                        run = _run(pipeline, shape, plan, folder)
                        case = _compare_case(plan, split, dtype, batch, run, one_rank[dtype, batch])
                        measured[split.layers] = case
                        cases.append(case)
                        shutil.rmtree(folder)
                        report(f"{ranks} ranks, strategy {split.strategy}, {dtype}, batch {batch}")
    return tuple(cases)


def _run(pipeline: Pipeline, config: PipelineConfig, plan: _Plan, folder: Path) -> _Run:
    folder.mkdir()
    pipeline.configure(replace(config, capture=folder))
    started = time.perf_counter()
    answers = list(pipeline.answer_all(plan.requests))
    seconds = time.perf_counter() - started
    logits = tuple(folder / f"{answer.number}.f32" for answer in answers)
    return _Run(tuple(answer.completion for answer in answers), logits, seconds)


def _compare_case(plan: _Plan, split: ResolvedConfig, dtype: str, batch: int, run: _Run, one_rank: _Run) -> Case:
    pairs = [
        (ours.token_ids, theirs.token_ids) for ours, theirs in zip(run.completions, one_rank.completions, strict=True)
    ]
    divergences = [first_divergence(*pair) for pair in pairs]
    differences = [
        logits_max_abs(_read_logits(ours, len(pair[0])), _read_logits(theirs, len(pair[1])), divergence)
        for ours, theirs, pair, divergence in zip(run.logits, one_rank.logits, pairs, divergences, strict=True)
    ]
    return Case(
        dtype=dtype,
        ranks=split.ranks,
        strategy=split.strategy,
        layers=split.layers,
        batch=batch,
        questions=len(pairs),
        tokens=one_rank.tokens,
        token_identity=token_identity(pairs),
        logits_max_abs=max(differences),
        divergences=tuple(
            Divergence(question.id, position)
            for question, position in zip(plan.questions, divergences, strict=True)
            if position is not None
        ),
        tokens_per_s=run.tokens / run.seconds,
        one_rank_tokens_per_s=one_rank.tokens / one_rank.seconds,
    )


def _compare_reference(plan: _Plan, dtype: str, run: _Run, report: Callable[[str], None]) -> Reference:
    folder = plan.splits[0].folder
    tokenizer = Tokenizer(folder)
    prompts = [tokenizer.encode(request) for request in plan.requests]
    pairs, differences, largest = [], [], 0.0
    answers = reference_answers(folder, dtype, prompts, plan.max_new_tokens, plan.splits[0].threads)
    for question, completion, file, theirs in zip(plan.questions, run.completions, run.logits, answers, strict=True):
        ours = completion.token_ids
        divergence = first_divergence(ours, theirs.token_ids)
        largest = max(largest, logits_max_abs(_read_logits(file, len(ours)), theirs.logits_TV, divergence))
        pairs.append((ours, theirs.token_ids))
        if divergence is not None:
            differences.append(_difference(question, divergence, ours, theirs, tokenizer))
    report(f"transformers, {dtype}")
    return Reference(
        dtype=dtype,
        library=library(),
        questions=len(pairs),
        tokens=sum(len(theirs) for _, theirs in pairs),
        token_identity=token_identity(pairs),
        logits_max_abs=largest,
        differences=tuple(differences),
    )


def _difference(
    question: Question, position: int, ours: Sequence[int], theirs: ReferenceAnswer, tokenizer: Tokenizer
) -> Difference:
    """Both have a token at a divergence: the one that ends early ends with its end token, which the other lacks."""
    return Difference(
        id=question.id,
        position=position,
        ours=tokenizer.token_text(ours[position]),
        theirs=tokenizer.token_text(theirs.token_ids[position]),
        margin=theirs.margin(position),
    )


def _read_logits(file: Path, tokens: int) -> npt.NDArray[np.float32]:
    """Return a request's captured logits, shape (tokens, V)."""
    return np.fromfile(file, dtype="<f4").reshape(tokens, -1)


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """Yield a folder in the cache for captured logits: they can be larger than a /tmp that is kept in memory.

    What a killed comparison left there goes first.
    """
    for left in cache_folder().glob("compare-*-*"):
        if not psutil.pid_exists(int(left.name.split("-")[1])):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"compare-{os.getpid()}-", dir=cache_folder()) as folder:
        yield Path(folder)
