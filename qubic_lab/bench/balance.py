"""Do the balancers share requests as promised, and how soon is a failed node left alone and used again?

The nodes and the time are simulated (`balancing_simulation`), so the figures are about decisions, not about speeds.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qubic_lab.bench.balancing_simulation import (
    HandledRequest,
    Outage,
    OutageKind,
    SimulatedNode,
    SimulatedRequest,
    Simulation,
)
from qubic_lab.bench.result import BenchResult, Table
from qubic_lab.cluster.balance import BALANCERS, make_balancer
from qubic_lab.errors import check_at_least, check_range

KINDS: tuple[OutageKind, ...] = ("errors", "hangs")
WEIGHTS = (3, 2, 1)
"""The nodes' weights, in turn: mixed hardware."""
TOKENS_PER_S = 30.0
"""A node's speed for each unit of its weight: requests keep three nodes busy for two thirds of the time."""
REQUEST_TOKENS = (16, 64)
REQUESTS_PER_NODE_S = 1.0
FAILS_AT_S = 10.1
"""Just after a heartbeat: that is when silence is found latest."""
RETURNS_AT_S = 30.1
OUTAGE_RUN_S = 60.0
WITHIN_S = 10.0
MOST_NODES = 20


@dataclass(frozen=True)
class BalancerShare:
    """What each node got of the requests while none failed.

    `expected` are the counts that this balancer promises; `within_1`: each count is within 1 of them. Both are None
    where it promises none.
    """

    balancer: str
    counts: tuple[int, ...]
    expected: tuple[float, ...] | None
    within_1: bool | None


@dataclass(frozen=True)
class OutageEffect:
    """What became of a node's requests when it failed: the worst over nodes of each weight that fail in turn.

    `gone_s` is from its failure to the last request that it got before its return. `ready_s` is from its return to the
    first request that it could have got, `back_s` to the first one that it got; None: to none within the run. Where the
    others are quick enough, a balancer may have no use for a node that is ready. `failed` requests failed or found no
    node.
    """

    balancer: str
    kind: OutageKind
    gone_s: float
    ready_s: float | None
    back_s: float | None
    failed: int
    within_limit: bool


@dataclass(frozen=True)
class BalanceResult(BenchResult):
    """Shares and failovers of all balancers; `outage_requests` are those of a run with a failing node."""

    shares: tuple[BalancerShare, ...]
    failovers: tuple[OutageEffect, ...]
    requests: int
    nodes: int
    weights: tuple[int, ...]
    outage_requests: int
    fails_at_s: float
    returns_at_s: float
    limit_s: float
    seed: int
    simulated: bool = True

    def report(self) -> Iterator[Table | str]:
        shares = [(share.balancer, " / ".join(map(str, share.counts)), _promise_text(share)) for share in self.shares]
        yield Table(("balancer", "requests of each node", "expected"), shares)
        failovers = [
            (
                *(each.balancer, each.kind, f"{each.gone_s:.1f}"),
                *("never" if s is None else f"{s:.1f}" for s in (each.ready_s, each.back_s)),
                *(f"{each.failed}", f"{'within' if each.within_limit else 'over'} {self.limit_s:g} s"),
            )
            for each in self.failovers
        ]
        times = ("avoided after s", "ready after s", "chosen after s")
        yield Table(("balancer", "the node", *times, "failed", "verdict"), failovers)
        yield f"Simulated: {self.nodes} nodes of weights {' / '.join(map(str, self.weights))}; decisions, not speeds."


def _promise_text(share: BalancerShare) -> str:
    if share.expected is None:
        return "-"
    promised = " / ".join(f"{each:.1f}" for each in share.expected)
    return f"{promised}: {'met within 1' if share.within_1 else 'missed by more than 1'}"


def bench_balance(requests: int = 50, nodes: int = 3, seed: int = 0) -> BalanceResult:
    """Give requests to simulated nodes by every balancer, with no node failing and with one that fails and returns.

    There are `requests` while none fails, and at most 20 nodes, of weights 3, 2, 1, 3, 2, 1 and so on. Equal seeds give
    equal results.

    Raises:
        InputError: fewer than 1 request or 2 nodes, or too many nodes.
    """
    check_at_least("requests", requests, 1)
    check_range("nodes", nodes, 2, MOST_NODES)
    weights = tuple(WEIGHTS[number % len(WEIGHTS)] for number in range(nodes))
    outage_requests = round(OUTAGE_RUN_S * REQUESTS_PER_NODE_S * nodes)
    return BalanceResult(
        shares=tuple(share_of(name, simulate(name, weights, requests, seed), weights) for name in BALANCERS),
        failovers=tuple(
            worst_effect(name, kind, weights, outage_requests, seed) for name in BALANCERS for kind in KINDS
        ),
        requests=requests,
        nodes=nodes,
        weights=weights,
        outage_requests=outage_requests,
        fails_at_s=FAILS_AT_S,
        returns_at_s=RETURNS_AT_S,
        limit_s=WITHIN_S,
        seed=seed,
    )


def share_of(balancer: str, handled: Sequence[HandledRequest], weights: Sequence[int]) -> BalancerShare:
    """Return what each node got, beside what the balancer promises."""
    counter = Counter(each.node for each in handled)
    counts = tuple(counter[node_id(number)] for number in range(len(weights)))
    promises: dict[str, Sequence[int]] = {"round-robin": [1] * len(weights), "weighted-round-robin": weights}
    parts = promises.get(balancer)
    if parts is None:
        return BalancerShare(balancer, counts, None, None)
    expected = tuple(len(handled) * part / sum(parts) for part in parts)
    within_1 = all(abs(got - due) <= 1 for got, due in zip(counts, expected, strict=True))
    return BalancerShare(balancer, counts, expected, within_1)


def worst_effect(balancer: str, kind: OutageKind, weights: Sequence[int], requests: int, seed: int) -> OutageEffect:
    """Let one node of each weight fail in turn, and return the worst of each figure."""
    firsts = [weights.index(weight) for weight in dict.fromkeys(weights)]
    outages = [Outage(node_id(number), kind, FAILS_AT_S, RETURNS_AT_S) for number in firsts]
    found = [effect_of(balancer, simulate(balancer, weights, requests, seed, each), each) for each in outages]
    return _effect(
        balancer,
        kind,
        gone_s=max(each.gone_s for each in found),
        ready_s=max((each.ready_s for each in found), key=_or_never),
        back_s=max((each.back_s for each in found), key=_or_never),
        failed=max(each.failed for each in found),
    )


def effect_of(balancer: str, handled: Sequence[HandledRequest], outage: Outage) -> OutageEffect:
    """Return how soon a failing node got no more requests, and how soon it got requests again."""
    during_s = [e.arrived_s for e in handled if e.node == outage.node and outage.from_s <= e.arrived_s < outage.to_s]
    after = [each for each in handled if each.arrived_s >= outage.to_s]
    return _effect(
        balancer,
        outage.kind,
        gone_s=max(during_s, default=outage.from_s) - outage.from_s,
        ready_s=next((each.arrived_s - outage.to_s for each in after if outage.node in each.free), None),
        back_s=next((each.arrived_s - outage.to_s for each in after if each.node == outage.node), None),
        failed=sum(not each.ok for each in handled),
    )


def _or_never(at_s: float | None) -> float:
    return math.inf if at_s is None else at_s


def _effect(
    balancer: str, kind: OutageKind, gone_s: float, ready_s: float | None, back_s: float | None, failed: int
) -> OutageEffect:
    return OutageEffect(balancer, kind, gone_s, ready_s, back_s, failed, max(gone_s, _or_never(back_s)) <= WITHIN_S)


def simulate(
    balancer: str, weights: Sequence[int], requests: int, seed: int, outage: Outage | None = None
) -> list[HandledRequest]:
    """Give requests that arrive at equal intervals, one a second for each node, to simulated nodes."""
    draw, gap_s = random.Random(seed), 1 / (REQUESTS_PER_NODE_S * len(weights))
    nodes = [SimulatedNode(n, node_id(n), weight, TOKENS_PER_S * weight) for n, weight in enumerate(weights)]
    lengths = (draw.randint(*REQUEST_TOKENS) for _ in range(requests))  # drawn in turn with the balancer's choices
    simulation = Simulation(nodes, make_balancer(balancer), draw, gated=True, outage=outage)
    arrivals_s = [(number + 1) * gap_s for number in range(requests)]
    return simulation.run(arrivals_s, (SimulatedRequest(tokens, tokens) for tokens in lengths))


def node_id(number: int) -> str:
    """Return a node's id; ids sort as numbers do."""
    return f"node-{number:02d}"
