"""Which replica gets the next request? Balancers as plain values: candidates in, one of them out.

A balancer is replaced by each choice: `replica, balancer = balancer.choose(candidates, draw)`. Those that keep no state
return themselves. Candidates that may not be chosen (see `health.Gate`) are passed over by all of them.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from qubic_lab.errors import BusyError, InputError, check_at_least, check_choice


@dataclass(frozen=True)
class Candidate:
    """A replica as balancers see it.

    Attributes:
        id: its name, unlike that of any other.
        weight: its share of requests in weighted round robin, relative to the others'.
        outstanding_requests: requests that were given to it and have not ended.
        outstanding_tokens: tokens that those requests may still take, prompts and answers.
        tokens_per_s: its measured speed; of a new one the predicted speed.
        score: its health, 0 to 100.
        available: whether no gate keeps it from being chosen.

    Raises:
        InputError: a value is out of its range.
    """

    id: str
    weight: int = 1
    outstanding_requests: int = 0
    outstanding_tokens: int = 0
    tokens_per_s: float = 1.0
    score: float = 100.0
    available: bool = True

    def __post_init__(self) -> None:
        check_at_least(f"weight of {self.id}", self.weight, 1)
        check_at_least(f"outstanding_requests of {self.id}", self.outstanding_requests, 0)
        check_at_least(f"outstanding_tokens of {self.id}", self.outstanding_tokens, 0)
        if not 0.0 < self.tokens_per_s < math.inf:
            raise InputError(f"tokens_per_s of {self.id} is {self.tokens_per_s}: it must be a number above 0")
        if not 0.0 <= self.score <= 100.0:
            raise InputError(f"score of {self.id} is {self.score}: it must be 0 or more and 100 or less")

    @property
    def wait_s(self) -> float:
        """How long its outstanding tokens take at its measured speed, in seconds."""
        return self.outstanding_tokens / self.tokens_per_s


class Balancer(Protocol):
    """A way to choose a replica; a frozen value that each choice replaces."""

    def choose(self, candidates: Sequence[Candidate], draw: random.Random) -> "tuple[str, Balancer]":
        """Return the id of an available candidate, and the balancer for the next choice.

        Raises:
            BusyError: no candidate is available.
        """


@dataclass(frozen=True)
class RoundRobin:
    """Each in turn, by id: equal counts for equal replicas, whatever they have to do.

    `last` is the id of the latest choice: turns go on from there when replicas come and go.
    """

    last: str | None = None

    def choose(self, candidates: Sequence[Candidate], draw: random.Random) -> "tuple[str, RoundRobin]":
        """Return the id that follows the latest one; nothing is drawn."""
        ids = sorted(each.id for each in available(candidates))
        chosen = next((each for each in ids if self.last is None or each > self.last), ids[0])
        return chosen, RoundRobin(chosen)


@dataclass(frozen=True)
class WeightedRoundRobin:
    """Each in turn, as often as its weight says, and spread out: weights 3 and 1 give a a b a.

    Each choice adds its weight to every available replica's credit, takes the one with most (of equal ones the first)
    and subtracts the sum of weights from its credit. A replica that is passed over keeps its credit.

    Source: the smooth weighted round robin of nginx (commit 52327e0627f4, 2012).
    """

    credits: tuple[tuple[str, int], ...] = ()

    def choose(self, candidates: Sequence[Candidate], draw: random.Random) -> "tuple[str, WeightedRoundRobin]":
        """Return the id with the most credit; nothing is drawn."""
        before = dict(self.credits)
        credits = {each.id: before.get(each.id, 0) for each in candidates}
        choosable = available(candidates)
        for each in choosable:
            credits[each.id] += each.weight
        chosen = max(choosable, key=lambda each: credits[each.id]).id
        credits[chosen] -= sum(each.weight for each in choosable)
        return chosen, WeightedRoundRobin(tuple(credits.items()))


@dataclass(frozen=True)
class LeastConnections:
    """The one with the fewest outstanding requests, of equal ones any; good where requests and replicas are alike."""

    def choose(self, candidates: Sequence[Candidate], draw: random.Random) -> "tuple[str, LeastConnections]":
        """Return the id with the fewest outstanding requests."""
        choosable = available(candidates)
        fewest = min(each.outstanding_requests for each in choosable)
        return draw.choice([each.id for each in choosable if each.outstanding_requests == fewest]), self


@dataclass(frozen=True)
class ResourceAware:
    """By health: each as likely as its score is high.

    Not simply the best one: scores are seconds old, and until the next ones all requests would go to it.
    """

    def choose(self, candidates: Sequence[Candidate], draw: random.Random) -> "tuple[str, ResourceAware]":
        """Return an id drawn with the scores as weights; where all are 0, any."""
        choosable = available(candidates)
        scores = [each.score for each in choosable]
        return draw.choices([each.id for each in choosable], scores if any(scores) else None)[0], self


@dataclass(frozen=True)
class TwoChoices:
    """Of two random ones the one that is done sooner: outstanding tokens ÷ measured tokens/s.

    It knows of mixed hardware and of long requests, and does not herd when what it knows is old: the one that looks
    best is among the two only now and then. At equal waits the faster one is chosen, of equally fast ones the first
    drawn.

    Source: M. Mitzenmacher, "The power of two choices in randomized load balancing", IEEE Transactions on Parallel and
    Distributed Systems 12 (2001), 1094-1104; of what is old, "How useful is old information?", ibid. 11 (2000), 6-20.
    """

    def choose(self, candidates: Sequence[Candidate], draw: random.Random) -> "tuple[str, TwoChoices]":
        """Return the id of the better of two different ones, or the only one."""
        choosable = available(candidates)
        drawn = draw.sample(choosable, min(2, len(choosable)))
        return min(drawn, key=lambda each: (each.wait_s, -each.tokens_per_s)).id, self


BALANCERS: dict[str, Callable[[], Balancer]] = {
    "round-robin": RoundRobin,
    "weighted-round-robin": WeightedRoundRobin,
    "least-connections": LeastConnections,
    "resource-aware": ResourceAware,
    "two-choices": TwoChoices,
}
DEFAULT_BALANCER = "two-choices"


def make_balancer(name: str = DEFAULT_BALANCER) -> Balancer:
    """Return a balancer that has chosen nothing yet.

    Raises:
        InputError: an unknown name, with the closest known one.
    """
    return BALANCERS[check_choice("balancer", name, BALANCERS)]()


def available(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the candidates that may be chosen, in their order.

    Raises:
        BusyError: there is none.
    """
    known = list(candidates)
    assert len({each.id for each in known}) == len(known), "two candidates have the same id"
    found = [each for each in known if each.available]
    if not found:
        raise BusyError(f"none of {len(known)} replicas can take a request now: send it again later")
    return found
