"""What a comparison finds, as frozen values: they become JSON, and everything that is drawn or said comes from them."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Divergence:
    """The first position at which two answers differ, and how far the base's best logit led the second one there."""

    id: str
    position: int
    margin: float


@dataclass(frozen=True)
class RunLikeness:
    """How alike the answers of two ways of running are; the first way is the base.

    Logits count while both answers have seen the same tokens: up to and with the first divergent position.
    `kl_*` is KL(base || other) of the next token's distribution, in nats; `margin_min` the base's smallest lead of the
    best logit over the second.
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
    """N ranks against one rank at the same dtype, threads and slots a lane; both must agree bit for bit.

    `measured_as` names the strategy with the same layers that was run in this one's place. Tokens/s are over all
    questions, prompts included.
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
    """One rank against itself after one change of `what` (`threads` or `batch`); kernels may then round otherwise."""

    dtype: str
    what: str
    base: int
    other: int


@dataclass(frozen=True)
class TokenDifference:
    """Where our answer leaves the reference's, and by how much the reference preferred its own token there."""

    id: str
    position: int
    ours: str
    theirs: str
    margin: float


@dataclass(frozen=True, kw_only=True)
class ReferenceComparison(RunLikeness):
    """One rank of ours against the transformers implementation (the base), greedy, prompt by prompt."""

    dtype: str
    library: str
    differences: tuple[TokenDifference, ...]


@dataclass(frozen=True)
class SystemAccuracy:
    """How many of the checkable questions a way of running answers rightly, with the 95 % Wilson interval.

    `cut` answers ended at the limit of new tokens; they are scored as far as they got.
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
    """What two ways' right and wrong answers to the same questions say; shares, other less baseline.

    `low` to `high` is Tango's 95 % interval of the difference, `tost_low` to `tost_high` the 90 % one that must lie
    within the margin for `equivalent`. `minimum_detectable` (power 80 %, two-sided 5 %) is None where none is.
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
    """Two ways of running on the same checkable questions; where all tokens are identical no test is needed."""

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
    """A question, its reference answer and what the model said (one rank, the first dtype and batch).

    `correct` is None where no rule can check the answer.
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
class ModelComparison:
    """All cases, the reference apart, and what they were measured on.

    `candidate` is the model whose weights the ranks ran, if it was not `model` itself; a split folder's hash is that of
    the model which its manifest names.
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

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)
