"""Certifies the most frequent answer of the voters, at whatever ballot one stops.

Each answer has points against it. The first two ballots give it +2 if both are for the same other answer, else −3. Each
later ballot gives +1 if it is for the answer's strongest rival before that ballot, and −3 if it is for the answer. With
enough points, 5 at an error of 5 %, an answer is excluded for good. Answers that nobody has given yet count as one. The
last answer that is left is certified.

Why it holds, for ballots that are drawn independently from the same shares, with m the most frequent answer:

1. The first two ballots are for the same other answer with probability Σ p² ≤ p_m Σ p ≤ p_m (1 − p_m) ≤ 1/4, the sums
   over all answers but m. So a bet on that, at fair odds for 1/4 and with STAKE of the money, gains nothing on average.
2. Before each later ballot, m's rival is named from the earlier ones. Of ballots for m or this rival, at most half are
   expected for the rival, whichever it is: a bet on it that multiplies by GAIN, or else by GAIN ** −3, gains nothing.
3. By Ville's inequality money that starts at 1 ever reaches 1 / error with a probability of at most `error`; less than
   the points for it do not exclude. So m is seldom excluded.
4. Another answer is certified only if m is excluded, so wrongly with at most that probability, at any time.
5. Only m must not be excluded: nothing is paid for the number of answers, nor for naming the rival from the data.

Ballots of different sources (other models, prompts or temperatures) come in blocks, one of each source, with the rival
named before the block; the first block only names it. m is then the most frequent in the mean of their shares: by the
inequality of arithmetic and geometric means, a block's bets gain no more on average than on ballots from the mean.

Exchangeable ballots, however they correlate, are independent draws from shares that their common cause has chosen (de
Finetti). So the certificate is about what these voters would go on to say. To speak of other voters, with other common
causes, their `correlation` must be told: see `points_needed`. Copies must be merged before (`dependence.find_copies`).

Sources: J. Ville, "Étude critique de la notion de collectif" (1939); betting: I. Waudby-Smith and A. Ramdas, Journal of
the Royal Statistical Society B 86 (2024), 1-27; the mode by tests of pairs: S. A. Jain et al., "PAC mode estimation
using PPR martingale confidence sequences", AISTATS 2022; for language models P. Cordero-Encinar and A. B. Duncan, arXiv
2510.17472, and H. Ota et al., arXiv 2605.05873, whose answer is named beforehand.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qubic_lab.consensus.voting import Group
from qubic_lab.errors import InputError

GAIN = 1.8392867552141612
"""The root above 1 of x³ = x² + x + 1, and so of x + 1 / x³ = 2."""
PAIR, LOSS, STAKE = 2, 3, 0.74
"""Points of two equal ballots, and of one against; with this stake five equal ballots suffice for an error of 5 %."""
DEFAULT_ERROR = 0.05
LEAST_ERROR = 1e-9
"""Sums of doubles are exact enough for it."""
MOST_BALLOTS = 16


def points_needed(error: float, correlation: float = 0.0, most: int = MOST_BALLOTS) -> int:
    """Return the points that exclude an answer.

    With a correlation ρ, each of at most `most` ballots repeats one common answer with probability √ρ, so that two do
    with probability ρ. Then half of the error is for more repetitions than are added to the points, and half for the
    other ballots, which are independent.

    Raises:
        InputError: a value is out of range.
    """
    if not LEAST_ERROR <= error <= 0.5:
        raise InputError(f"the error of a certificate is {error}: give one from {LEAST_ERROR:g} to 0.5")
    if not 0 <= correlation <= 1:
        raise InputError(f"correlation is {correlation}: it must lie between 0 and 1")
    if correlation == 0:
        return _points(error)
    share, more, repeated = math.sqrt(correlation), 1.0, -1
    while more > error / 2:
        repeated += 1
        more -= math.comb(most, repeated) * share**repeated * (1 - share) ** (most - repeated)
    return _points(error / 2) + repeated + 1  # of two equal first ballots one may be a repetition


def _points(error: float) -> int:
    """Return the points that exclude an answer if ballots are independent."""
    # Without a pair, the points are short by less than the stake is worth: GAIN ** −LOSS is less than 1 − STAKE.
    return PAIR + math.ceil(math.log(1 / (error * (1 + 3 * STAKE))) / math.log(GAIN))


@dataclass(frozen=True)
class Certificate:
    """What is known after some ballots: `winner` is the most frequent answer but for `error`; None: not yet known."""

    winner: Group | None
    error: float
    ballots: int

    def __str__(self) -> str:
        return f"not certified after {self.ballots}" if self.winner is None else f"certified at {100 * self.error:g} %"


class Certifier:
    """Takes ballots in the order in which they were asked for; the order of arrival may favour short answers.

    Arguments and errors are those of `points_needed`.
    """

    def __init__(self, error: float = DEFAULT_ERROR, correlation: float = 0.0, most: int = MOST_BALLOTS) -> None:
        self._error, self._needed = error, points_needed(error, correlation, most)
        self._given: Counter[Group] = Counter()
        self._points: dict[Group | None, int] = {None: 0}  # None: all answers that nobody has given
        self._excluded: set[Group | None] = set()
        self._ballots = 0

    def add(self, block: Sequence[Group | None]) -> None:
        """Count a ballot, or one of each source; None has no usable answer."""
        cast = [group for group in block if group is not None]
        leaders = [group for group, _ in self._given.most_common(2)]
        is_second = len(block) == 1 and self._given.total() == 1
        for new in cast:
            if new not in self._points:
                self._points[new] = self._points[None]
                self._excluded |= {new} if None in self._excluded else set()
        for group in self._points:
            rival = next((leader for leader in leaders if leader != group), None)
            won, lost = cast.count(rival) if rival is not None else 0, cast.count(group) if group is not None else 0
            if is_second and cast:
                self._points[group] += PAIR if won else -LOSS
            elif leaders:  # not of the first ballots, which only name the leader
                self._points[group] += won - LOSS * lost
            if self._points[group] >= self._needed:
                self._excluded.add(group)
        self._given.update(cast)
        self._ballots += len(block)

    @property
    def certificate(self) -> Certificate:
        """What the ballots so far show."""
        left = [group for group in self._points if group not in self._excluded]
        return Certificate(left[0] if len(left) == 1 else None, self._error, self._ballots)

    def is_hopeless(self, left: int) -> bool:
        """Return whether none can come in the ballots that are left, though one could have come in those so far."""
        return self.missing > left and self._ballots >= self._needed

    @property
    def missing(self) -> int:
        """The least number of further ballots that a certificate takes; 0: there is one."""
        if self.certificate.winner is not None:
            return 0
        lacks = {group: self._needed - points for group, points in self._points.items() if group not in self._excluded}
        if (given := self._given.total()) < PAIR:
            return self._needed - given
        # All but one must be excluded, and a ballot adds one point at most to each.
        ends = [max(lacks[other] for other in lacks if other != group) for group in lacks if group is not None]
        return min(ends, default=self._needed)
