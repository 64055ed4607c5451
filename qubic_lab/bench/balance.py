"""Do the balancers share requests as they should, and how soon is a failed node left alone and used again?

Balancers, circuit breaker, gates and score are the real ones; the nodes and the time are simulated, so the figures are
about decisions, not about speeds. A simulated node answers one request after the other at its tokens/s. It fails in
two ways: `errors` fails each request at once and goes on with its heartbeats, `hangs` does neither, and a request fails
when nothing has come for some seconds. Idle nodes are probed, as a coordinator does. No failed request is tried again.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from typing import Any, Literal

from qubic_lab.bench.result import BenchResult, Table
from qubic_lab.cluster.balance import BALANCERS, Balancer, Candidate, make_balancer
from qubic_lab.cluster.health import Outcome, ReplicaHealth, Vitals, health_score
from qubic_lab.errors import BusyError, check_at_least, check_range

Kind = Literal["errors", "hangs"]
KINDS: tuple[Kind, ...] = ("errors", "hangs")

WEIGHTS = (3, 2, 1)
"""The nodes' weights, in turn: mixed hardware."""
TOKENS_PER_S = 30.0
"""A node's speed for each unit of its weight: requests keep three nodes busy for two thirds of the time."""
REQUEST_TOKENS = (16, 64)
PROBE_TOKENS = 1
REQUESTS_PER_NODE_S = 1.0
BEAT_S = 5.0
PROBE_CHECK_S = 0.5
ERROR_S = 0.05
NO_PROGRESS_S = 3.0
BUSY_REQUESTS = 4
"""So many outstanding requests are a whole CPU in use, for the simulated score."""
MEMORY_SHARE = 0.5
FAILS_AT_S = 10.1
"""Just after a heartbeat: that is when silence is found latest."""
RETURNS_AT_S = 30.1
OUTAGE_RUN_S = 60.0
WITHIN_S = 10.0
MOST_NODES = 20


@dataclass(frozen=True)
class Outage:
    """A node that fails in one of two ways from a time to another, in seconds."""

    node: str
    kind: Kind
    from_s: float = FAILS_AT_S
    to_s: float = RETURNS_AT_S

    def silences(self, node: str, at_s: float) -> bool:
        """Tell whether a node sends no heartbeat at a time."""
        return self.kind == "hangs" and self.node == node and self.from_s <= at_s < self.to_s

    def breaks(self, node: str, sent_s: float, ended_s: float) -> bool:
        """Tell whether a node fails a request that would be under way in that time."""
        return self.node == node and sent_s < self.to_s and ended_s > self.from_s


@dataclass(frozen=True)
class Given:
    """A client's request as a balancer gave it: when, in seconds, to which node, and whether it was answered there.

    `node` is None where no node could be chosen, `free` are those that could.
    """

    at_s: float
    node: str | None
    ok: bool
    free: tuple[str, ...]


@dataclass(frozen=True)
class Share:
    """What each node got of the requests while none failed.

    `expected` are the counts that this balancer promises, or None where it promises none.
    """

    balancer: str
    counts: tuple[int, ...]
    expected: tuple[float, ...] | None

    @property
    def within_1(self) -> bool | None:
        """Whether each count is within 1 of the promised one; None where nothing is promised."""
        if self.expected is None:
            return None
        return all(abs(got - due) <= 1 for got, due in zip(self.counts, self.expected, strict=True))


@dataclass(frozen=True)
class Failover:
    """What became of a node's requests when it failed: the worst over nodes of each weight that fail in turn.

    Attributes:
        gone_s: from its failure to the last request that it got before its return, in seconds.
        ready_s: from its return to the first request that it could have got, in seconds; None: to none within the run.
        back_s: from its return to the first request that it got again, in seconds; None: as above. Where the others
            are quick enough, a balancer may have no use for a node that is ready.
        failed: requests that failed or found no node.
    """

    balancer: str
    kind: Kind
    gone_s: float
    ready_s: float | None
    back_s: float | None
    failed: int

    @property
    def within_limit(self) -> bool:
        """Whether it was left alone and chosen again no later than it should be."""
        return self.gone_s <= WITHIN_S and self.back_s is not None and self.back_s <= WITHIN_S


@dataclass(frozen=True)
class BalanceResult(BenchResult):
    """Shares and failovers of all balancers; `outage_requests` are those of a run with a failing node."""

    shares: tuple[Share, ...]
    failovers: tuple[Failover, ...]
    requests: int
    nodes: int
    weights: tuple[int, ...]
    outage_requests: int
    fails_at_s: float
    returns_at_s: float
    limit_s: float
    seed: int
    simulated: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {
            "shares": [asdict(share) | {"within_1": share.within_1} for share in self.shares],
            "failovers": [asdict(each) | {"within_limit": each.within_limit} for each in self.failovers],
        }

    def report(self) -> Iterator[Table | str]:
        """Yield one table of shares and one of failovers."""
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
        yield (
            f"Simulated: {self.nodes} nodes of weights {' / '.join(map(str, self.weights))} on simulated time, seed "
            f"{self.seed}; these are decisions, not speeds. {self.requests} requests while none fails; "
            f"{self.outage_requests} while one fails at {self.fails_at_s:g} s and returns at "
            f"{self.returns_at_s:g} s, the worst over nodes of each weight. Commit {self.commit}"
        )


def _promise_text(share: Share) -> str:
    if share.expected is None:
        return "-"
    promised = " / ".join(f"{each:.1f}" for each in share.expected)
    return f"{promised}: {'met within 1' if share.within_1 else 'missed by more than 1'}"


def bench_balance(requests: int = 50, nodes: int = 3, seed: int = 0) -> BalanceResult:
    """Give requests to simulated nodes by every balancer, with no node failing and with one that fails and returns.

    Args:
        requests: how many while none fails.
        nodes: of weights 3, 2, 1, 3, 2, 1 and so on, 20 at the most.
        seed: of the requests' lengths and the balancers' draws; equal seeds give equal results.

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
            worst_failover(name, kind, weights, outage_requests, seed) for name in BALANCERS for kind in KINDS
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


def share_of(balancer: str, given: Sequence[Given], weights: Sequence[int]) -> Share:
    """Return what each node got, beside what the balancer promises."""
    counts = Counter(each.node for each in given)
    promises: dict[str, Sequence[int]] = {"round-robin": [1] * len(weights), "weighted-round-robin": weights}
    parts = promises.get(balancer)
    return Share(
        balancer,
        counts=tuple(counts[node_id(number)] for number in range(len(weights))),
        expected=None if parts is None else tuple(len(given) * part / sum(parts) for part in parts),
    )


def worst_failover(balancer: str, kind: Kind, weights: Sequence[int], requests: int, seed: int) -> Failover:
    """Let one node of each weight fail in turn, and return the worst of each figure."""
    firsts = [weights.index(weight) for weight in dict.fromkeys(weights)]
    outages = [Outage(node_id(number), kind) for number in firsts]
    found = [failover_of(balancer, simulate(balancer, weights, requests, seed, each), each) for each in outages]
    return Failover(
        balancer,
        kind,
        gone_s=max(each.gone_s for each in found),
        ready_s=latest([each.ready_s for each in found]),
        back_s=latest([each.back_s for each in found]),
        failed=max(each.failed for each in found),
    )


def latest(times_s: Sequence[float | None]) -> float | None:
    """Return the greatest, which is None, never, where any is."""
    known_s = [each for each in times_s if each is not None]
    return max(known_s) if len(known_s) == len(times_s) else None


def failover_of(balancer: str, given: Sequence[Given], outage: Outage) -> Failover:
    """Return how soon a node got nothing any more, and how soon it got requests again."""
    during_s = [e.at_s for e in given if e.node == outage.node and outage.from_s <= e.at_s < outage.to_s]
    after = [each for each in given if each.at_s >= outage.to_s]
    return Failover(
        balancer,
        outage.kind,
        gone_s=max(during_s, default=outage.from_s) - outage.from_s,
        ready_s=next((each.at_s - outage.to_s for each in after if outage.node in each.free), None),
        back_s=next((each.at_s - outage.to_s for each in after if each.node == outage.node), None),
        failed=sum(not each.ok for each in given),
    )


def simulate(
    balancer: str, weights: Sequence[int], requests: int, seed: int, outage: Outage | None = None
) -> tuple[Given, ...]:
    """Give requests that come at equal intervals, one a second for each node, to simulated nodes."""
    simulation = Simulation(weights, make_balancer(balancer), random.Random(seed), outage)
    gap_s = 1 / (REQUESTS_PER_NODE_S * len(weights))
    return simulation.run([(number + 1) * gap_s for number in range(requests)])


def node_id(number: int) -> str:
    """Return a node's id; ids sort as numbers do."""
    return f"node-{number:02d}"


@dataclass
class Node:
    """A simulated node: its speed in tokens/s, its health, what it has to do, and when it will have done that."""

    id: str
    weight: int
    tokens_per_s: float
    health: ReplicaHealth = field(default_factory=lambda: ReplicaHealth(beat_s=0.0))
    requests: int = 0
    tokens: int = 0
    free_s: float = 0.0

    def candidate(self, now_s: float) -> Candidate:
        """Return it as balancers see it."""
        circuit = self.health.circuit
        cpu_share = min(1.0, self.requests / BUSY_REQUESTS)
        return Candidate(
            id=self.id,
            weight=self.weight,
            outstanding_requests=self.requests,
            outstanding_tokens=self.tokens,
            tokens_per_s=self.tokens_per_s,
            score=health_score(Vitals(cpu_share, MEMORY_SHARE, circuit.response_s, circuit.error_share)),
            available=self.health.gate(now_s) is None,
        )

    def work(self, tokens: int, now_s: float, outage: Outage | None) -> Outcome:
        """Take a request, and return how and when it will end."""
        started_s = max(now_s, self.free_s)
        ended_s = started_s + tokens / self.tokens_per_s
        if outage is not None and outage.breaks(self.id, now_s, ended_s):
            noticed_s = ERROR_S if outage.kind == "errors" else NO_PROGRESS_S
            return Outcome(ok=False, sent_s=now_s, ended_s=max(now_s, outage.from_s) + noticed_s)
        self.free_s = ended_s
        return Outcome(ok=True, sent_s=now_s, ended_s=ended_s)


class Simulation:
    """Nodes, a balancer and a list of what happens next; time goes from one event to the next."""

    def __init__(
        self, weights: Sequence[int], balancer: Balancer, draw: random.Random, outage: Outage | None = None
    ) -> None:
        self.nodes = {
            node_id(number): Node(node_id(number), weight, TOKENS_PER_S * weight)
            for number, weight in enumerate(weights)
        }
        self.balancer = balancer
        self.draw = draw
        self.outage = outage
        self.given: list[Given] = []
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = count()

    def run(self, arrivals_s: Sequence[float]) -> tuple[Given, ...]:
        """Let requests come at these times, and return how each was given, in their order."""
        for at_s in arrivals_s:
            self._at(at_s, self._arrive)
        for node in self.nodes.values():
            for at_s in _every(BEAT_S, arrivals_s[-1]):
                self._at(at_s, partial(self._beat, node))
            for at_s in _every(PROBE_CHECK_S, arrivals_s[-1]):
                self._at(at_s, partial(self._probe, node))
        if self.outage is not None:  # a node that comes back registers, which is a heartbeat
            self._at(self.outage.to_s, partial(self._beat, self.nodes[self.outage.node]))
        while self._events:
            now_s, _, happen = heapq.heappop(self._events)
            happen(now_s)
        return tuple(self.given)

    def _at(self, at_s: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._numbers), happen))

    def _arrive(self, now_s: float) -> None:
        tokens = self.draw.randint(*REQUEST_TOKENS)
        candidates = [node.candidate(now_s) for node in self.nodes.values()]
        free = tuple(each.id for each in candidates if each.available)
        try:
            chosen, self.balancer = self.balancer.choose(candidates, self.draw)
        except BusyError:
            self.given.append(Given(now_s, None, False, free))
            return
        outcome = self._send(self.nodes[chosen], tokens, now_s)
        self.given.append(Given(now_s, chosen, outcome.ok, free))

    def _send(self, node: Node, tokens: int, now_s: float) -> Outcome:
        outcome = node.work(tokens, now_s, self.outage)
        node.requests += 1
        node.tokens += tokens
        self._at(outcome.ended_s, partial(self._end, node, tokens, outcome))
        return outcome

    def _end(self, node: Node, tokens: int, outcome: Outcome, now_s: float) -> None:
        node.requests -= 1
        node.tokens -= tokens
        node.health = node.health.after(outcome)

    def _beat(self, node: Node, now_s: float) -> None:
        if self.outage is None or not self.outage.silences(node.id, now_s):
            node.health = node.health.with_beat(now_s)

    def _probe(self, node: Node, now_s: float) -> None:
        if node.health.wants_probe(now_s, idle=node.requests == 0):
            node.health = node.health.with_probe(now_s)
            self._send(node, PROBE_TOKENS, now_s)


def _every(gap_s: float, until_s: float) -> list[float]:
    return [number * gap_s for number in range(1, int(until_s / gap_s) + 1)]
