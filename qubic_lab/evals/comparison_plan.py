"""The plan of a comparison: everything is checked here, before a process starts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qubic_lab.core import Request, SamplingParams
from qubic_lab.errors import InputError, check_at_least, check_choice, check_range
from qubic_lab.evals.generated import questions_for
from qubic_lab.evals.graded import MOST_GRADED, graded_questions
from qubic_lab.evals.loaders import load_user_questions
from qubic_lab.evals.questions import Question
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
class ComparisonConfig:
    """What to compare.

    `model` is an alias, hub id, folder or GGUF file, and `candidate` a model or split folder whose weights the ranks
    run instead; a split folder runs as it was split, and `ranks` and `strategies` must include that. `strategies` None
    means all that apply (A needs two ranks). `batches` are slots per lane. `questions` is a file as
    `load_user_questions` reads it, by its `columns` if given; None means the project's written and generated questions.
    `graded` questions follow, whose difficulty suits a small model (`graded_questions`). `seed` is that of generated
    questions and of the order of options. `threads` are per rank, on both sides; None means cores ÷ the
    largest number of ranks. With `quantization` the ranks run the weights rounded so; what
    they are compared with does not.

    Raises:
        InputError: a value is out of its range.
    """

    model: str = "smollm2"
    ranks: Sequence[int] = (2,)
    strategies: Sequence[str] | None = None
    batches: Sequence[int] = (1, 4)
    dtypes: Sequence[str] = ("fp32", "bf16")
    questions: Path | None = None
    columns: str = ""
    limit: int | None = None
    graded: int = 0
    max_new_tokens: int = 32
    threads: int | None = None
    candidate: str = ""
    seed: int = 0
    quantization: str | None = None

    def __post_init__(self) -> None:
        for number in self.ranks:
            check_at_least(
                "ranks", number, 1 if self.candidate or self.quantization else 2
            )  # one rank is what the others are compared with
        for batch in self.batches:
            check_range("batch", batch, 1, MAX_SLOTS)
        for dtype in self.dtypes:
            check_choice("dtype", dtype, DTYPE_BYTES)
        check_range("graded", self.graded, 0, MOST_GRADED)
        for strategy in self.strategies or ():
            check_choice("strategy", strategy, STRATEGIES)
        SamplingParams(max_new_tokens=self.max_new_tokens)  # checks it


@dataclass(frozen=True)
class ComparisonPlan:
    """What will be run.

    `whole` is the model on one rank; `splits` are the runs of the ranks, with the weights of the candidate if there is
    one, rounded if that is asked. `base` is the configuration that all runs share.
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
    quantization: str | None

    @property
    def candidate_name(self) -> str:
        """What the ranks run, if it is not the model as it is."""
        return f"{self.candidate or self.base.model} in {self.quantization}" if self.quantization else self.candidate

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
        return replace(self.base, model=self.candidate or self.base.model, quantization=self.quantization)

    @property
    def steps(self) -> int:
        """The number of runs: one rank, each different split, one rank with other threads, the reference."""
        splits = {(split.ranks, split.layers) for split in self.splits}
        return len(self.dtypes) * (len(self.batches) * (1 + len(splits)) + 2)


def plan_comparison(config: ComparisonConfig) -> ComparisonPlan:
    """Check the files that a comparison needs, and return what will be run.

    Raises:
        InputError: a file or value is wrong; names it and the remedy.
    """
    if config.questions is None:
        questions = questions_for(config.limit, config.seed)
    else:
        if config.limit is not None:
            check_at_least("limit", config.limit, 1)
        questions = load_user_questions(config.questions, columns=config.columns, limit=config.limit, seed=config.seed)
    questions = (*questions, *graded_questions(config.graded, config.seed))
    folder = resolve_whole(config.model)
    threads = max(1, usable_cores() // max(config.ranks)) if config.threads is None else config.threads
    base = PipelineConfig(model=config.model, threads=threads, slots=max(config.batches))
    if config.candidate:
        _check_vocabulary(folder, config.model, config.candidate)
    return ComparisonPlan(
        base=base,
        candidate=config.candidate,
        whole=resolve_config(replace(base, ranks=1)),
        splits=_splits(
            replace(base, model=config.candidate or config.model, quantization=config.quantization),
            config.ranks,
            config.strategies,
        ),
        questions=questions,
        batches=tuple(dict.fromkeys(config.batches)),
        dtypes=tuple(dict.fromkeys(config.dtypes)),
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        quantization=config.quantization,
    )


def _check_vocabulary(folder: Path, model: str, candidate: str) -> None:
    """Check that the vocabularies match; otherwise logits cannot be compared."""
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
