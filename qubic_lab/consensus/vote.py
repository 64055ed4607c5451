"""A vote: one answer with its origin, and the record of a voter that gave none."""

from dataclasses import dataclass
from enum import StrEnum

from qubic_lab.core import SamplingParams


@dataclass(frozen=True)
class AnswerSource:
    """What determines an answer: the model (by hash), the prompt and the sampling parameters."""

    model_hash: str
    prompt: str
    sampling: SamplingParams


@dataclass(frozen=True)
class Vote:
    """One answer, its voter and its cost.

    `seconds` runs from the request to the last token. `mean_logprob` is the mean over its tokens in nats, or None if
    unknown.
    """

    voter: str
    node: str
    model: str
    source: AnswerSource
    text: str
    finish_reason: str
    new_tokens: int
    seconds: float
    mean_logprob: float | None = None


class AbsenceReason(StrEnum):
    """Why a voter gave no vote."""

    LATE = "late"
    FAILED = "failed"
    STOPPED = "not needed"


@dataclass(frozen=True)
class Absence:
    """A voter that gave no vote; unless it was stopped early, it counts as a ballot for no group."""

    voter: str
    why: AbsenceReason
    detail: str
