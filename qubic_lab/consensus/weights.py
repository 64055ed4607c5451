"""A voter's weight: four parts from 0 to 1 in fixed shares.

The shares are chosen, not fitted to measurements. An unknown part is 1/2, which is also where new voters start.
"""

import math
from dataclasses import dataclass

ACCURACY_SHARE = 0.4
RESPONSE_SHARE = 0.2
HEALTH_SHARE = 0.2
COMPLEXITY_SHARE = 0.2

UNKNOWN = 0.5
MEMORY_OUTCOMES = 50
"""After this many newer outcomes an outcome counts 1/e."""
PRIOR = 4.0
"""A new voter starts with 4 right and 4 wrong answers, so one early error changes 1/2 to 4/9."""
HALF_RESPONSE_S = 10.0
"""Response time in seconds that earns 1/2: the project's target for the slowest 5 % of answers."""
LEAST_PARAMETERS = 1e8
MOST_PARAMETERS = 1e11


@dataclass(frozen=True)
class TrackRecord:
    """A voter's right and wrong answers so far; older ones count less.

    Only answers checked against a reference or by a person belong here. Counting agreement with the winner would teach
    the weights to agree.
    """

    right: float = 0.0
    wrong: float = 0.0

    def after(self, right: bool) -> "TrackRecord":
        """Return the record after one more checked answer; earlier ones count slightly less."""
        kept = 1 - 1 / MEMORY_OUTCOMES
        return TrackRecord(kept * self.right + right, kept * self.wrong + (not right))

    @property
    def accuracy(self) -> float:
        """The mean of the Beta posterior of the accuracy; as older answers are forgotten, from 0.07 to 0.93."""
        return (self.right + PRIOR) / (self.right + self.wrong + 2 * PRIOR)


NO_RECORD = TrackRecord()


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


def weigh(
    record: TrackRecord = NO_RECORD,
    response_s: float | None = None,
    health_score: float | None = None,
    parameters: int | None = None,
) -> WeightParts:
    """Return a voter's weight from what is known.

    `response_s` is the mean time to a complete answer: 0 s earns 1, HALF_RESPONSE_S 1/2. `health_score` is that of its
    node, 0 to 100. `parameters`, at least 1, stand for the computation per token, about 2 operations each: logarithmic
    from LEAST_PARAMETERS, which earn 0, to MOST_PARAMETERS. The length of an answer would reward rambling.
    """
    response = health = complexity = UNKNOWN
    if response_s is not None:
        response = HALF_RESPONSE_S / (HALF_RESPONSE_S + response_s)
    if health_score is not None:
        health = health_score / 100
    if parameters is not None:
        place = math.log(parameters / LEAST_PARAMETERS) / math.log(MOST_PARAMETERS / LEAST_PARAMETERS)
        complexity = min(1.0, max(0.0, place))
    return WeightParts(record.accuracy, response, health, complexity)
