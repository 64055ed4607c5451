"""Levels of confidence that promise how many answers are wrong, from a finite number of votes with known answers.

A level is given from a score on. Of all votes with such a score or a better one at most a share is wrong: this holds
with a probability of 95 % over the votes that it rests on, however they are distributed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from qubic_lab.checked_yaml import STRICT
from qubic_lab.stats import Floats, binomial_at_most

CERTAINTY = 0.95
"""The probability of each promise, over the votes that it rests on."""
STEPS = 20
"""Scores that are tried for a level."""


class ConfidenceLevel(StrEnum):
    """What to do with an answer, by its confidence."""

    ANSWER = "answer"
    NOTE = "answer with a note"
    RECOMPUTE = "recompute"
    FALLBACK = "fallback"


MOST_WRONG = {ConfidenceLevel.ANSWER: 0.15, ConfidenceLevel.NOTE: 0.25, ConfidenceLevel.RECOMPUTE: 0.40}
"""Of the votes at a level or a better one, the share that may be wrong; what has none of them is the fallback."""


@dataclass(frozen=True)
class Band:
    """A level is given from the score `least` on; None: no score could be shown to keep its promise.

    Of the `votes` from there on that it was shown with, `wrong` were wrong.
    """

    __pydantic_config__ = STRICT
    level: ConfidenceLevel
    least: float | None
    votes: int
    wrong: int


def find_bands(other_score_M: Floats, other_right_M: Floats, score_N: Floats, right_N: Floats) -> tuple[Band, ...]:
    """Return the band of each level in MOST_WRONG, the best first.

    Scores are probabilities that a winner is right; a level takes at least 1 less what may be wrong. Those to try are
    quantiles of M other votes, in the order in which these show best that the promise holds. Each is tried on the N
    votes by the exact binomial test of "more are wrong than promised", until one fails; the lowest one before counts.
    Scores and order do not depend on the N outcomes, so no try has to be paid for. The N votes must be of different
    questions.

    Source: split fixed-sequence testing, A. N. Angelopoulos et al., "Learn then test: calibrating predictive algorithms
    to achieve risk control", arXiv 2110.01052; for the risk of the answers that are given, Y. Geifman and R. El-Yaniv,
    "Selective classification for deep neural networks", NeurIPS 2017.
    """
    tries = np.unique(np.quantile(other_score_M, np.arange(STEPS) / STEPS, method="lower"))[::-1].tolist()

    def band(level: ConfidenceLevel) -> Band:
        found, doubt = Band(level, None, 0, 0), dict[float, float]()
        for least in (each for each in tries if each >= 1 - MOST_WRONG[level]):
            doubt[least] = binomial_at_most(*_counts(least, other_score_M, other_right_M), MOST_WRONG[level])
        for least in sorted(doubt, key=doubt.__getitem__):
            wrong, votes = _counts(least, score_N, right_N)
            if binomial_at_most(wrong, votes, MOST_WRONG[level]) > 1 - CERTAINTY:
                break
            if found.least is None or least < found.least:
                found = Band(level, least, votes, wrong)
        return found

    return tuple(map(band, MOST_WRONG))


def _counts(least: float, scores: Floats, right: Floats) -> tuple[int, int]:
    """Return how many of the votes from a score on are wrong, and how many there are."""
    chosen = scores >= least
    return int(chosen.sum() - right[chosen].sum()), int(chosen.sum())


def level_of(score: float, bands: Sequence[Band]) -> ConfidenceLevel:
    """Return the best level whose band has the score."""
    return next(
        (each.level for each in bands if each.least is not None and score >= each.least), ConfidenceLevel.FALLBACK
    )
