"""What a voter's ballot weighs: four parts from 0 to 1, each shown, in fixed shares.

The shares are the project's own choice, not a fit to measurements. A part of which nothing is known is 1/2, which is
what a new voter begins with.
"""

import math
from dataclasses import dataclass

from qubic_lab.errors import InputError

ACCURACY_SHARE = 0.4
RESPONSE_SHARE = 0.2
HEALTH_SHARE = 0.2
COMPLEXITY_SHARE = 0.2

UNKNOWN = 0.5
MEMORY_OUTCOMES = 50
"""An outcome counts 1/e after about so many newer ones."""
HALF_RESPONSE_S = 10.0
"""An answer that takes so long earns half of its part: what the project asks of the slowest 5 % of answers."""
LEAST_PARAMETERS = 1e8
MOST_PARAMETERS = 1e11


@dataclass(frozen=True)
class TrackRecord:
    """A voter's right and wrong answers so far, older ones counted less.

    Only answers that were checked belong here, against a reference or by a person. To count agreement with the winner
    would teach the weights to agree.

    Raises:
        InputError: a count is no number of 0 or more.
    """

    right: float = 0.0
    wrong: float = 0.0

    def __post_init__(self) -> None:
        for name in ("right", "wrong"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}: it must be a number of 0 or more")

    def after(self, right: bool) -> "TrackRecord":
        """Return it after one more answer was checked; all before count a little less."""
        kept = 1 - 1 / MEMORY_OUTCOMES
        return TrackRecord(kept * self.right + right, kept * self.wrong + (not right))


NO_RECORD = TrackRecord()
PRIOR = TrackRecord(right=4.0, wrong=4.0)
"""As if a new voter had been right 4 times and wrong 4 times: one early error takes 1/2 to 4/9."""


def accuracy_part(record: TrackRecord, prior: TrackRecord = PRIOR) -> float:
    """Return the mean of the Beta posterior of a voter's accuracy: prior and record, added up.

    Since older answers are forgotten, it stays within 0.07 and 0.93 with the default prior, whatever the record.

    Raises:
        InputError: the prior is empty.
    """
    if not prior.right + prior.wrong > 0:
        raise InputError("the prior holds no answers: give it a count above 0")
    right, wrong = record.right + prior.right, record.wrong + prior.wrong
    return right / (right + wrong)


def response_part(response_s: float | None, half_s: float = HALF_RESPONSE_S) -> float:
    """Return half ÷ (half + response time): 1 at once, 1/2 after `half_s`, never quite 0.

    Raises:
        InputError: a time is negative or no number, or `half_s` is 0.
    """
    if not 0.0 < half_s < math.inf:
        raise InputError(f"half_s is {half_s}: it must be a number above 0")
    if response_s is None:
        return UNKNOWN
    if not response_s >= 0.0:
        raise InputError(f"response_s is {response_s}: it must be 0 or more")
    return half_s / (half_s + response_s)


def health_part(score: float | None) -> float:
    """Return a node's health score, 0 to 100, as a share of 100.

    Raises:
        InputError: the score is out of its range.
    """
    if score is None:
        return UNKNOWN
    if not 0.0 <= score <= 100.0:
        raise InputError(f"health score is {score}: it must be 0 or more and 100 or less")
    return score / 100


def complexity_part(parameters: int | None) -> float:
    """Return how much computation stands behind a token of an answer: 0 for 10⁸ parameters or fewer, 1 from 10¹¹ on.

    A token costs about 2 floating-point operations for each parameter (of a mixture of experts: each active one). The
    scale is logarithmic: each factor of 10 earns a third. The length of an answer is left out on purpose: it would
    reward rambling.

    Raises:
        InputError: fewer than 1 parameter.
    """
    if parameters is None:
        return UNKNOWN
    if parameters < 1:
        raise InputError(f"parameters is {parameters}: it must be at least 1")
    place = math.log(parameters / LEAST_PARAMETERS) / math.log(MOST_PARAMETERS / LEAST_PARAMETERS)
    return min(1.0, max(0.0, place))


@dataclass(frozen=True)
class WeightParts:
    """A voter's weight and what it is made of, each 0 to 1."""

    accuracy: float
    response: float
    health: float
    complexity: float

    @property
    def weight(self) -> float:
        """The parts by their shares: 40, 20, 20 and 20 %."""
        return (
            ACCURACY_SHARE * self.accuracy
            + RESPONSE_SHARE * self.response
            + HEALTH_SHARE * self.health
            + COMPLEXITY_SHARE * self.complexity
        )

    def to_dict(self) -> dict[str, float]:
        """Return plain values for JSON, the weight first."""
        return {
            "weight": self.weight,
            "accuracy": self.accuracy,
            "response": self.response,
            "health": self.health,
            "complexity": self.complexity,
        }


def weigh(
    record: TrackRecord = NO_RECORD,
    response_s: float | None = None,
    health_score: float | None = None,
    parameters: int | None = None,
) -> WeightParts:
    """Return a voter's weight by what is known of it.

    Args:
        record: its checked answers.
        response_s: its mean time to the end of an answer, in seconds.
        health_score: of its node, 0 to 100.
        parameters: of its model.

    Raises:
        InputError: a value is out of its range.
    """
    return WeightParts(
        accuracy=accuracy_part(record),
        response=response_part(response_s),
        health=health_part(health_score),
        complexity=complexity_part(parameters),
    )
