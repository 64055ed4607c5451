"""The plan of a comparison: all arguments are checked here, before a process starts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qubic_lab.core import Request, SamplingParams
from qubic_lab.errors import InputError, check_at_least, check_choice, check_range
from qubic_lab.evals.generated import questions_for
from qubic_lab.evals.questions import Question, load_questions
from qubic_lab.model.config import load_config
from qubic_lab.model.folders import rank_folders
from qubic_lab.model.layout import DTYPE_BYTES
from qubic_lab.model.plan import STRATEGIES
from qubic_lab.model.resolve import resolve_model, resolve_whole
from qubic_lab.model.split import read_split
from qubic_lab.pipeline.config import PipelineConfig, ResolvedConfig, resolve_config
from qubic_lab.pipeline.message import MAX_SLOTS
from qubic_lab.provenance import usable_cores


@dataclass(frozen=True)
class ComparisonPlan:
    """What will be run.

    `whole` is the model on one rank; `splits` are the runs of the ranks, with the weights of `candidate` if given.
    """

    base: PipelineConfig
    candidate: str
    whole: ResolvedConfig
    splits: tuple[ResolvedConfig, ...]
    questions: tuple[Question, ...]
    batches: tuple[int, ...]
    dtypes: tuple[str, ...]
    max_new_tokens: int
    seed: int

    @property
    def ids(self) -> list[str]:
        """The questions' ids."""
        return [question.id for question in self.questions]

    @property
    def requests(self) -> list[Request]:
        """The questions as greedy requests."""
        sampling = SamplingParams(max_new_tokens=self.max_new_tokens)
        return [Request(prompt=question.question, sampling=sampling) for question in self.questions]

    @property
    def other_threads(self) -> int:
        """A different number of threads for one extra run on one rank."""
        return 2 if self.whole.threads == 1 else 1

    @property
    def split_config(self) -> PipelineConfig:
        """The common configuration of the splits, without ranks, strategy, dtype and slots."""
        return replace(self.base, model=self.candidate or self.base.model)

    @property
    def steps(self) -> int:
        """The number of runs: one rank, each different split, one rank with other threads, the reference."""
        splits = {(split.ranks, split.layers) for split in self.splits}
        return len(self.dtypes) * (len(self.batches) * (1 + len(splits)) + 2)


def plan_comparison(
    model: str,
    ranks: Sequence[int],
    strategies: Sequence[str] | None,
    batches: Sequence[int],
    dtypes: Sequence[str],
    questions: Path | None,
    limit: int | None,
    max_new_tokens: int,
    threads: int | None,
    candidate: str,
    seed: int,
) -> ComparisonPlan:
    """Check the arguments of `compare` and the files, and return the plan.

    Raises:
        InputError: a value is wrong; names it and the remedy.
    """
    _check_values(ranks, strategies, batches, dtypes)
    asked = _questions(questions, limit, seed)
    SamplingParams(max_new_tokens=max_new_tokens)  # checks it
    folder = resolve_whole(model)
    if threads is None:
        threads = max(1, usable_cores() // max(ranks))
    base = PipelineConfig(model=model, threads=threads, slots=max(batches))
    if candidate:
        _check_vocabulary(folder, model, candidate)
    return ComparisonPlan(
        base=base,
        candidate=candidate,
        whole=resolve_config(replace(base, ranks=1)),
        splits=_splits(replace(base, model=candidate or model), ranks, strategies),
        questions=asked,
        batches=tuple(dict.fromkeys(batches)),
        dtypes=tuple(dict.fromkeys(dtypes)),
        max_new_tokens=max_new_tokens,
        seed=seed,
    )


def _check_values(
    ranks: Sequence[int], strategies: Sequence[str] | None, batches: Sequence[int], dtypes: Sequence[str]
) -> None:
    for number in ranks:
        check_at_least("ranks", number, 1)
    for batch in batches:
        check_range("batch", batch, 1, MAX_SLOTS)
    for dtype in dtypes:
        check_choice("dtype", dtype, DTYPE_BYTES)
    for strategy in strategies or ():
        check_choice("strategy", strategy, STRATEGIES)


def _questions(file: Path | None, limit: int | None, seed: int) -> tuple[Question, ...]:
    if file is None:
        return questions_for(limit, seed)
    questions = load_questions(file)
    return questions if limit is None else questions[: check_at_least("limit", limit, 1)]


def _check_vocabulary(folder: Path, model: str, candidate: str) -> None:
    """Logits of different vocabularies cannot be compared."""
    candidate_folder = resolve_model(candidate)
    parts = rank_folders(candidate_folder)
    theirs, ours = load_config(parts[0] if parts else candidate_folder).vocab, load_config(folder).vocab
    if theirs != ours:
        raise InputError(
            f"candidate {candidate!r} has {theirs} tokens and model {model!r} {ours}: give a candidate of that model"
        )


def _splits(
    config: PipelineConfig, ranks: Sequence[int], strategies: Sequence[str] | None
) -> tuple[ResolvedConfig, ...]:
    """Return the requested splits; a split folder has only its own, which must be among them."""
    split = read_split(resolve_model(config.model))
    if split is None:
        return tuple(
            resolve_config(replace(config, ranks=number, strategy=strategy))
            for number in dict.fromkeys(ranks)
            for strategy in dict.fromkeys(strategies or (s for s in STRATEGIES if s != "A" or number <= 2))
        )
    if split.ranks not in ranks or (strategies and split.strategy not in strategies):
        raise InputError(
            f"candidate {config.model!r} is split over {split.ranks} ranks by strategy {split.strategy}: "
            f"ask for ranks {split.ranks} and strategy {split.strategy}"
        )
    return (resolve_config(config),)
