"""A voter's weight: four parts from 0 to 1 in fixed shares.

The shares are chosen, not fitted to measurements. An unknown part is 1/2, which is also where new voters start.
"""

import math
from dataclasses import asdict, dataclass

from qubic_lab.errors import InputError

ACCURACY_SHARE = 0.4
RESPONSE_SHARE = 0.2
HEALTH_SHARE = 0.2
COMPLEXITY_SHARE = 0.2

UNKNOWN = 0.5
MEMORY_OUTCOMES = 50
"""After this many newer outcomes an outcome counts 1/e."""
HALF_RESPONSE_S = 10.0
"""Response time in seconds that earns 1/2: the project's target for the slowest 5 % of answers."""
LEAST_PARAMETERS = 1e8
MOST_PARAMETERS = 1e11


@dataclass(frozen=True)
class TrackRecord:
    """A voter's right and wrong answers so far; older ones count less.

    Only answers checked against a reference or by a person belong here. Counting agreement with the winner would teach
    the weights to agree.

    Raises:
        InputError: a count is negative or not finite.
    """

    right: float = 0.0
    wrong: float = 0.0

    def __post_init__(self) -> None:
        for name in ("right", "wrong"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}: it must be a number of 0 or more")

    def after(self, right: bool) -> "TrackRecord":
        """Return the record after one more checked answer; earlier ones count slightly less."""
        kept = 1 - 1 / MEMORY_OUTCOMES
        return TrackRecord(kept * self.right + right, kept * self.wrong + (not right))


NO_RECORD = TrackRecord()
PRIOR = TrackRecord(right=4.0, wrong=4.0)
"""A new voter starts with 4 right and 4 wrong answers, so one early error changes 1/2 to 4/9."""


def accuracy_part(record: TrackRecord, prior: TrackRecord = PRIOR) -> float:
    """Return the mean of the Beta posterior of a voter's accuracy: prior plus record.

    Older answers are forgotten, so with the default prior it stays between 0.07 and 0.93.

    Raises:
        InputError: the prior is empty.
    """
    if not prior.right + prior.wrong > 0:
        raise InputError("the prior holds no answers: give it a count above 0")
    right, wrong = record.right + prior.right, record.wrong + prior.wrong
    return right / (right + wrong)


def response_part(response_s: float | None, half_s: float = HALF_RESPONSE_S) -> float:
    """Return 1 for an immediate answer, 1/2 for one after `half_s` seconds, towards 0 for slower ones.

    Raises:
        InputError: `half_s` is not above 0, or the response time is negative.
    """
    if not 0.0 < half_s < math.inf:
        raise InputError(f"half_s is {half_s}: it must be a number above 0")
    if response_s is None:
        return UNKNOWN
    if not response_s >= 0.0:
        raise InputError(f"response_s is {response_s}: it must be 0 or more")
    return half_s / (half_s + response_s)


def health_part(score: float | None) -> float:
    """Return a node's health score, 0 to 100, as a fraction.

    Raises:
        InputError: the score is out of range.
    """
    if score is None:
        return UNKNOWN
    if not 0.0 <= score <= 100.0:
        raise InputError(f"health score is {score}: it must be 0 or more and 100 or less")
    return score / 100


def complexity_part(parameters: int | None) -> float:
    """Return a score for the computation per token: 0 up to 10⁸ parameters, 1 from 10¹¹ on, logarithmic in between.

    A token costs about 2 floating-point operations per active parameter. The length of an answer is ignored on purpose:
    it would reward rambling.

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
    """The parts of a voter's weight, each from 0 to 1."""

    accuracy: float
    response: float
    health: float
    complexity: float

    @property
    def weight(self) -> float:
        """The weighted sum of the parts."""
        return (
            ACCURACY_SHARE * self.accuracy
            + RESPONSE_SHARE * self.response
            + HEALTH_SHARE * self.health
            + COMPLEXITY_SHARE * self.complexity
        )

    def to_dict(self) -> dict[str, float]:
        """Return plain values for JSON, the weight first."""
        return {"weight": self.weight, **asdict(self)}


def weigh(
    record: TrackRecord = NO_RECORD,
    response_s: float | None = None,
    health_score: float | None = None,
    parameters: int | None = None,
) -> WeightParts:
    """Return a voter's weight from what is known.

    `response_s` is the mean time to a complete answer, `health_score` that of its node, 0 to 100, and `parameters` the
    size of its model.

    Raises:
        InputError: a value is out of its range.
    """
    return WeightParts(
        accuracy=accuracy_part(record),
        response=response_part(response_s),
        health=health_part(health_score),
        complexity=complexity_part(parameters),
    )
