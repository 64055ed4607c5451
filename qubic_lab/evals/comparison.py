"""The results of a comparison as frozen values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Divergence:
    """The first position at which two answers differ, and the lead of the base's best logit there."""

    id: str
    position: int
    margin: float


@dataclass(frozen=True)
class RunLikeness:
    """How alike the answers of two runs are; the first run is the base.

    Logits count up to and including the first divergent position, while both have seen the same tokens. `kl_*` is
    KL(base || other) of the next-token distribution, in nats; `margin_min` is the smallest lead of the base's best
    logit over the second.
    """

    questions: int
    tokens: int
    token_identity: float
    logits_max_abs: float
    kl_mean: float
    kl_max: float
    margin_min: float
    divergences: tuple[Divergence, ...]


@dataclass(frozen=True, kw_only=True)
class Case(RunLikeness):
    """N ranks against one rank at the same dtype, threads and batch; both must agree bit for bit.

    `measured_as` names a strategy with the same layers that was run instead. Tokens/s include prompts.
    """

    dtype: str
    ranks: int
    strategy: str
    layers: tuple[int, ...]
    batch: int
    tokens_per_s: float
    one_rank_tokens_per_s: float
    measured_as: str | None = None


@dataclass(frozen=True, kw_only=True)
class Variant(RunLikeness):
    """One rank against itself after a change of `what` (`threads` or `batch`); kernels may then round differently."""

    dtype: str
    what: str
    base: int
    other: int


@dataclass(frozen=True)
class TokenDifference:
    """Where our answer leaves the reference's, and the reference's lead for its own token there."""

    id: str
    position: int
    ours: str
    theirs: str
    margin: float


@dataclass(frozen=True, kw_only=True)
class ReferenceComparison(RunLikeness):
    """One rank against the transformers implementation (the base), greedy, prompt by prompt."""

    dtype: str
    library: str
    differences: tuple[TokenDifference, ...]


@dataclass(frozen=True)
class SystemAccuracy:
    """The number of right answers to checkable questions, with the 95 % Wilson interval of the share.

    `cut` answers reached the token limit; they are scored as they are.
    """

    dtype: str
    system: str
    questions: int
    correct: int
    cut: int
    low: float
    high: float


@dataclass(frozen=True)
class PairedTests:
    """Tests of the difference of two accuracies on the same questions, other less baseline.

    `low` to `high` is Tango's 95 % interval, `tost_low` to `tost_high` the 90 % interval that must lie within the
    margin to be `equivalent`. `minimum_detectable` (power 80 %, two-sided 5 %) is None if there is none.
    """

    difference: float
    low: float
    high: float
    mcnemar_p: float
    tost_low: float
    tost_high: float
    equivalent: bool
    minimum_detectable: float | None


@dataclass(frozen=True)
class PairedAccuracy:
    """Two ways of running on the same checkable questions; identical tokens need no test."""

    dtype: str
    baseline: str
    other: str
    questions: int
    both: int
    only_baseline: int
    only_other: int
    neither: int
    identical: bool
    tests: PairedTests | None


@dataclass(frozen=True)
class AnswerRow:
    """A question, its reference answer and the model's answer (one rank, the first dtype and batch).

    `correct` is None if no rule can check the answer.
    """

    id: str
    kind: str
    question: str
    answer: str
    text: str
    tokens: int
    correct: bool | None
    cut: bool


@dataclass(frozen=True)
class SplitComparison:
    """All results of a comparison and its settings.

    `candidate` is the model whose weights the ranks ran, if it is not `model`; the hash of a split folder is that of
    the model in its manifest.
    """

    token_identity: float
    logits_max_abs: float
    model: str
    model_hash: str
    candidate: str
    candidate_hash: str
    meaningless: bool
    device: str
    threads: int
    commit: str
    seed: int
    questions: int
    checkable: int
    max_new_tokens: int
    equivalence_margin: float
    cases: tuple[Case, ...]
    reference: tuple[ReferenceComparison, ...]
    variants: tuple[Variant, ...]
    accuracy: tuple[SystemAccuracy, ...]
    paired: tuple[PairedAccuracy, ...]
    answers: tuple[AnswerRow, ...]
