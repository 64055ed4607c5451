"""Workloads of the study of balancers: random requests with a heavy tail, rules to compare with, and what is measured.

Nodes of several speeds decode a few requests at once; requests come at random, and a few answers are much longer than
the rest. Several coordinators take them in, with loads that they know late. Nothing fails, and full nodes are not
passed over, as the cluster's own coordinators would do. The nodes are those of `qubic_lab.bench.balance`.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from qubic_lab.bench.balance import SimulatedNode, SimulatedRequest, Simulation
from qubic_lab.cluster.balance import BALANCERS, Balancer, BalancerCandidate, available
from qubic_lab.errors import InputError, check_at_least, check_choice

SLOT_TOKENS_PER_S = 10.0
"""What one slot decodes, for each unit of its node's speed."""
MEAN_TOKENS = 250.0
LIMIT_TOKENS = 4096
ESTIMATE_SIGMA = 1.0
"""Of the logarithm: two of three estimates are right within a factor of 2.7."""
KNOWS = ("limit", "estimate", "length")
WARM_UP_SHARE = 0.2
"""This first part of a run is not counted: it begins with idle nodes."""
HERD_WINDOW_S = 5.0
"""The cluster's heartbeat; the same for all, so that herds can be compared."""


@dataclass(frozen=True)
class TwoChoicesBySpeed:
    """Two choices drawn with replacement in proportion to speed; otherwise as `TwoChoices`."""

    def choose(self, candidates: Sequence[BalancerCandidate], draw: random.Random) -> "tuple[str, TwoChoicesBySpeed]":
        """Return the id of the better of two draws, which may be the same one."""
        choosable = available(candidates)
        drawn = draw.choices(choosable, [each.tokens_per_s for each in choosable], k=2)
        return min(drawn, key=lambda each: (each.wait_s, -each.tokens_per_s)).id, self


@dataclass(frozen=True)
class LeastTokens:
    """The node with the shortest wait, outstanding tokens ÷ tokens/s; of equal ones the fastest, then a random one.

    The obvious balancer; with equally old loads all coordinators choose the same node at once.
    """

    def choose(self, candidates: Sequence[BalancerCandidate], draw: random.Random) -> "tuple[str, LeastTokens]":
        """Return the id with the shortest wait."""
        choosable = available(candidates)
        waits_s = [each.wait_s for each in choosable]
        shortest_s = min(waits_s)
        soonest = [each for each, wait_s in zip(choosable, waits_s, strict=True) if wait_s == shortest_s]
        fastest = max(each.tokens_per_s for each in soonest)
        return draw.choice([each.id for each in soonest if each.tokens_per_s == fastest]), self


RULES: dict[str, Callable[[], Balancer]] = {
    **BALANCERS,
    "two-choices-by-speed": TwoChoicesBySpeed,
    "least-tokens": LeastTokens,
}
"""The package's balancers and the rules that this study compares them with."""


@dataclass(frozen=True)
class BalancingSetting:
    """A cluster and what it is asked.

    Nodes have relative `speeds`, in turn, of 10 tokens/s a slot for each unit, and send heartbeats every `staleness_s`,
    one after the other; with 0 all coordinators know everything at once. `load`: requested tokens ÷ tokens that the
    nodes can decode. `length_tail`: the exponent of answers' lengths at a constant mean; smaller is heavier. `requests`
    are for each node.

    Raises:
        InputError: a value is out of its range.
    """

    nodes: int = 30
    speeds: tuple[int, ...] = (3, 2, 1)
    slots: int = 4
    coordinators: int = 10
    staleness_s: float = 5.0
    load: float = 0.8
    knows: str = "limit"
    length_tail: float = 1.1
    requests: int = 80

    def __post_init__(self) -> None:
        for name in ("nodes", "slots", "coordinators", "requests"):
            check_at_least(name, getattr(self, name), 1)
        check_choice("knows", self.knows, KNOWS)
        if not self.speeds or min(self.speeds) < 1:
            raise InputError(f"speeds are {self.speeds}: there must be at least one, and each at least 1")
        if not 0.0 < self.load < 1.0:
            raise InputError(f"load is {self.load}: it must lie between 0 and 1")
        if not 0.0 <= self.staleness_s < math.inf:
            raise InputError(f"staleness_s is {self.staleness_s}: it must be a number of at least 0")
        if not 1.0 < self.length_tail < math.inf:
            raise InputError(f"length_tail is {self.length_tail}: it must be a number above 1")

    @property
    def node_speeds(self) -> list[int]:
        """The speed of each node."""
        return [self.speeds[number % len(self.speeds)] for number in range(self.nodes)]

    @property
    def requests_per_s(self) -> float:
        """The arrival rate that gives the nodes their load."""
        can_per_s = sum(self.node_speeds) * self.slots * SLOT_TOKENS_PER_S
        return self.load * can_per_s / MEAN_TOKENS


@dataclass(frozen=True)
class BalancingRun:
    """What became of each request, in their order; times in seconds, `node` counts from 0."""

    arrived_s: NDArray[np.float64]
    started_s: NDArray[np.float64]
    ended_s: NDArray[np.float64]
    tokens: NDArray[np.int64]
    node: NDArray[np.int64]


def quantile_tokens(shares: NDArray[np.float64], tail: float) -> NDArray[np.float64]:
    """Return the quantiles of answers' lengths: a Pareto distribution truncated at the limit.

    Source: M. Harchol-Balter, M. E. Crovella, C. D. Murta, "On choosing a task assignment policy for a distributed
    server system", Journal of Parallel and Distributed Computing 59 (1999), 204-228.
    """
    shortest = shortest_tokens(tail)
    rest = 1 - shares * (1 - (shortest / LIMIT_TOKENS) ** tail)
    return np.asarray(shortest * rest ** (-1 / tail))


@cache
def shortest_tokens(tail: float) -> float:
    """Return the shortest answer that gives the right mean."""

    def excess(shortest: float) -> float:
        share = shortest / LIMIT_TOKENS
        return float(tail / (tail - 1) * shortest * (1 - share ** (tail - 1)) / (1 - share**tail)) - MEAN_TOKENS

    return float(brentq(excess, 1.0, MEAN_TOKENS))


def make_requests(setting: BalancingSetting, seed: int) -> tuple[list[float], list[SimulatedRequest]]:
    """Return the arrival times in seconds and the requests of a seed, the same for every balancer and staleness.

    Gaps, lengths, estimates and coordinators are drawn apart, so that a change of one leaves the others as they are.
    """
    gaps, lengths, estimates, givers = (np.random.default_rng(each) for each in np.random.SeedSequence(seed).spawn(4))
    number = setting.nodes * setting.requests
    tokens = _whole_tokens(quantile_tokens(lengths.random(number), setting.length_tail))
    estimated = _whole_tokens(tokens * np.exp(ESTIMATE_SIGMA * estimates.standard_normal(number)))
    expected = {"limit": np.full(number, LIMIT_TOKENS), "estimate": estimated, "length": tokens}[setting.knows]
    gaps_s = gaps.standard_exponential(number) / setting.requests_per_s
    coordinators = givers.integers(setting.coordinators, size=number)
    requests = map(SimulatedRequest, tokens.tolist(), expected.tolist(), coordinators.tolist())
    return list(accumulate(gaps_s.tolist())), list(requests)


def _whole_tokens(lengths: NDArray[Any]) -> NDArray[np.int64]:
    return np.asarray(np.clip(np.rint(lengths), 1, LIMIT_TOKENS), np.int64)


def make_simulation(setting: BalancingSetting, balancer: str, seed: int) -> Simulation:
    """Return the nodes and coordinators of a setting before any request; an unknown balancer is an InputError."""
    check_choice("balancer", balancer, RULES)
    nodes = [
        SimulatedNode(number, f"node-{number:05d}", speed, SLOT_TOKENS_PER_S * speed, setting.slots, setting.slots)
        for number, speed in enumerate(setting.node_speeds)
    ]
    return Simulation(
        nodes,
        RULES[balancer](),
        random.Random(seed),
        coordinators=setting.coordinators,
        staleness_s=setting.staleness_s,
    )


def simulate(setting: BalancingSetting, balancer: str, seed: int) -> BalancingRun:
    """Give the requests of a seed to the nodes by a balancer; an unknown one is an InputError."""
    simulation = make_simulation(setting, balancer, seed)
    arrivals_s, requests = make_requests(setting, seed)
    handled = simulation.run(arrivals_s, requests)
    return BalancingRun(
        arrived_s=np.array([each.arrived_s for each in handled]),
        started_s=np.array([each.started_s for each in handled]),
        ended_s=np.array([each.ended_s for each in handled]),
        tokens=np.array([request.tokens for request in requests]),
        node=np.array([simulation.by_id[each.node or ""].number for each in handled]),
    )


def measure(run: BalancingRun, setting: BalancingSetting) -> dict[str, float]:
    """Return the measures of a run, without its beginning.

    `time` is from arrival to the last token, `wait` the part before the first one; `slowdown` is the time ÷ the time
    alone on the fastest node. `herd_share` is the mean share of the requests of 5 s that went to the busiest node; it
    is comparable at equal numbers of nodes and requests. `imbalance` is the standard deviation ÷ mean of the nodes'
    work in seconds.
    """
    counted = slice(int(WARM_UP_SHARE * len(run.tokens)), None)
    speeds = np.array(setting.node_speeds)
    times_s = (run.ended_s - run.arrived_s)[counted]
    slowdowns = times_s / (run.tokens[counted] / (SLOT_TOKENS_PER_S * speeds.max()))
    work_s = np.bincount(run.node[counted], run.tokens[counted], setting.nodes) / speeds
    counts = window_counts(run, setting)
    counts = counts[counts.sum(axis=1) > 0]
    return {
        "time_mean_s": float(times_s.mean()),
        "time_p50_s": float(np.quantile(times_s, 0.5)),
        "time_p95_s": float(np.quantile(times_s, 0.95)),
        "time_p99_s": float(np.quantile(times_s, 0.99)),
        "wait_mean_s": float((run.started_s - run.arrived_s)[counted].mean()),
        "slowdown_mean": float(slowdowns.mean()),
        "slowdown_p99": float(np.quantile(slowdowns, 0.99)),
        "herd_share": float((counts.max(axis=1) / counts.sum(axis=1)).mean()),
        "imbalance": float(work_s.std() / work_s.mean()),
    }


def window_counts(run: BalancingRun, setting: BalancingSetting) -> NDArray[np.int64]:
    """Return the requests that each node got (columns) in each whole 5 s (rows), after a run's beginning."""
    counted = slice(int(WARM_UP_SHARE * len(run.tokens)), None)
    arrived_s = run.arrived_s[counted]
    window = ((arrived_s - arrived_s[0]) // HERD_WINDOW_S).astype(np.int64)
    cells = np.bincount(window * setting.nodes + run.node[counted], minlength=(window[-1] + 1) * setting.nodes)
    counts = cells.reshape(-1, setting.nodes)
    return counts[:-1] if len(counts) > 1 else counts  # the last one ends with the run
