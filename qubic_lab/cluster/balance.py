"""Balancers: strategies that choose the replica for the next request, as immutable values.

Each choice returns a new balancer: `replica, balancer = balancer.choose(candidates, draw)`. Balancers without state
return themselves. All of them skip candidates that may not be chosen (see `health.Gate`).
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from qubic_lab.errors import BusyError, check_choice

ALIKE = 1.4
"""Measured speeds whose ratio is at most this may be those of equal replicas."""
DRAWS = 8
"""Random replicas that are looked at for two that are available, before all are."""
FEWEST_ANSWERS = 5
"""Latest answers of each of two replicas from which one may be called the faster."""
SURE_SHARE = 0.9
"""Share of all pairs of answers, one of each replica, in which the faster replica must win. With five answers of each,
one of two equal replicas reaches it in 1 of 30 cases."""


@dataclass(frozen=True)
class BalancerCandidate:
    """A replica as balancers see it.

    Attributes:
        id: its unique name.
        weight: its share of requests in weighted round robin, relative to the others, above 0.
        outstanding_requests: requests that have not ended.
        outstanding_tokens: upper estimate of their remaining tokens, prompts and answers.
        tokens_per_s: its speed by its latest answers, or by a short one when it started.
        speeds: the tokens/s of its latest answers; None if its speed is known for certain.
        score: its health, 0 to 100.
        available: whether it may be chosen.
    """

    id: str
    weight: float = 1
    outstanding_requests: int = 0
    outstanding_tokens: int = 0
    tokens_per_s: float = 1.0
    score: float = 100.0
    available: bool = True
    speeds: tuple[float, ...] | None = None

    @property
    def wait_s(self) -> float:
        """Time of its outstanding tokens at its measured speed, in seconds."""
        return self.outstanding_tokens / self.tokens_per_s


class Balancer(Protocol):
    """A strategy that chooses a replica; each choice returns a new balancer."""

    def choose(self, candidates: Sequence[BalancerCandidate], draw: random.Random) -> "tuple[str, Balancer]":
        """Return the id of an available candidate, and the balancer for the next choice.

        Raises:
            BusyError: no candidate is available.
        """


@dataclass(frozen=True)
class RoundRobin:
    """Each replica in turn, by id; load is ignored.

    `last` is the id of the latest choice, from which turns continue when replicas come and go.
    """

    last: str | None = None

    def choose(self, candidates: Sequence[BalancerCandidate], draw: random.Random) -> "tuple[str, RoundRobin]":
        """Return the id after the latest one."""
        ids = sorted(each.id for each in available(candidates))
        chosen = next((each for each in ids if self.last is None or each > self.last), ids[0])
        return chosen, RoundRobin(chosen)


@dataclass(frozen=True)
class WeightedRoundRobin:
    """Each replica as often as its weight says, spread out: weights 3 and 1 give a a b a.

    Each choice adds its weight to the credit of every available replica, takes the one with the most credit (the first
    of equal ones), and subtracts the sum of weights from it. A replica that is not chosen keeps its credit.

    Source: the smooth weighted round robin of nginx (commit 52327e0627f4, 2012).
    """

    credits: tuple[tuple[str, float], ...] = ()

    def choose(self, candidates: Sequence[BalancerCandidate], draw: random.Random) -> "tuple[str, WeightedRoundRobin]":
        """Return the id with the most credit."""
        before = dict(self.credits)
        credits = {each.id: before.get(each.id, 0.0) for each in candidates}
        choosable = available(candidates)
        for each in choosable:
            credits[each.id] += each.weight
        chosen = max(choosable, key=lambda each: credits[each.id]).id
        credits[chosen] -= sum(each.weight for each in choosable)
        return chosen, WeightedRoundRobin(tuple(credits.items()))


@dataclass(frozen=True)
class LeastConnections:
    """The replica with the fewest outstanding requests, a random one of equals; good if all are equal."""

    def choose(self, candidates: Sequence[BalancerCandidate], draw: random.Random) -> "tuple[str, LeastConnections]":
        """Return the id with the fewest outstanding requests."""
        choosable = available(candidates)
        fewest = min(each.outstanding_requests for each in choosable)
        return draw.choice([each.id for each in choosable if each.outstanding_requests == fewest]), self


@dataclass(frozen=True)
class ResourceAware:
    """A random replica, with the health scores as weights.

    It does not take the best one, because scores are seconds old and all requests until the next ones would go to it.
    """

    def choose(self, candidates: Sequence[BalancerCandidate], draw: random.Random) -> "tuple[str, ResourceAware]":
        """Return an id drawn with the scores as weights, or any id if all scores are 0."""
        choosable = available(candidates)
        scores = [each.score for each in choosable]
        return draw.choices([each.id for each in choosable], scores if any(scores) else None)[0], self


@dataclass(frozen=True)
class TwoChoices:
    """The one of two random replicas that will finish sooner: outstanding tokens ÷ measured tokens/s.

    It accounts for mixed hardware and long requests. It does not herd on old information, because the replica that
    looks best is only sometimes among the two. At equal waits, for example when both are idle, it takes the faster one.
    Of two that are equally fast as far as is known, it takes a random one, and next time the other: they get equal
    shares, and neither gets every second request, which may be alike.

    `owed` is the id of the other, or None.

    Source: M. Mitzenmacher, "The power of two choices in randomized load balancing", IEEE Transactions on Parallel and
    Distributed Systems 12 (2001), 1094-1104; on old information "How useful is old information?", ibid. 11 (2000),
    6-20.
    """

    owed: str | None = None

    def choose(self, candidates: Sequence[BalancerCandidate], draw: random.Random) -> "tuple[str, TwoChoices]":
        """Return the id of the better one of two different replicas, or the only one."""
        drawn = _draw_two(candidates, draw)
        sooner, *later = sorted(drawn, key=lambda each: (each.wait_s, -each.tokens_per_s))
        if not later or sooner.wait_s < later[0].wait_s or _is_faster(sooner, later[0]):
            return sooner.id, self
        chosen, other = (each.id for each in drawn)
        return (other, TwoChoices()) if self.owed == other else (chosen, TwoChoices(None if self.owed else other))


def _draw_two(candidates: Sequence[BalancerCandidate], draw: random.Random) -> list[BalancerCandidate]:
    """Return two random available candidates, or the only one; mostly without a look at any others."""
    if len(candidates) > DRAWS:
        places = draw.sample(range(len(candidates)), DRAWS)
        drawn = list(islice((found for place in places if (found := candidates[place]).available), 2))
        if len(drawn) == 2:
            return drawn
    choosable = available(candidates)
    return draw.sample(choosable, min(2, len(choosable)))


def _is_faster(one: BalancerCandidate, other: BalancerCandidate) -> bool:
    """Return whether a replica is faster for certain, by much more than nothing and by its answers one by one."""
    if one.tokens_per_s <= ALIKE * other.tokens_per_s:
        return False
    if one.speeds is None or other.speeds is None:
        return True
    if min(len(one.speeds), len(other.speeds)) < FEWEST_ANSWERS:
        return False
    faster = sum(mine > theirs for mine in one.speeds for theirs in other.speeds)
    return faster >= SURE_SHARE * len(one.speeds) * len(other.speeds)


BALANCERS: dict[str, Callable[[], Balancer]] = {
    "round-robin": RoundRobin,
    "weighted-round-robin": WeightedRoundRobin,
    "least-connections": LeastConnections,
    "resource-aware": ResourceAware,
    "two-choices": TwoChoices,
}
DEFAULT_BALANCER = "two-choices"


def make_balancer(name: str = DEFAULT_BALANCER) -> Balancer:
    """Return a new balancer.

    Raises:
        InputError: the name is unknown; the message has the closest known one.
    """
    return BALANCERS[check_choice("balancer", name, BALANCERS)]()


def available(candidates: Iterable[BalancerCandidate]) -> list[BalancerCandidate]:
    """Return the candidates that may be chosen, in order; a BusyError if there are none."""
    known = list(candidates)
    assert len({each.id for each in known}) == len(known), "two candidates have the same id"
    found = [each for each in known if each.available]
    if not found:
        raise BusyError(f"none of {len(known)} replicas can take a request now: send it again later")
    return found
