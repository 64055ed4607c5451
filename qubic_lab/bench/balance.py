"""Do the balancers share requests as promised, and how soon is a failed node left alone and used again?

The balancers, circuit breakers and scores are the real ones; nodes and time are simulated, so the figures are about
decisions, not about speeds.

A node decodes one request or a few at once, first come first served. Coordinators give requests to nodes. A coordinator
knows its own requests at once, and those of the others from a node's latest heartbeat, or all of them at once where
heartbeats have no delay. A node may fail in two ways: `errors` fails each request at once and goes on with its
heartbeats; `hangs` does neither, and a request fails when nothing has arrived for some seconds. Failed requests are not
tried again. An outstanding request counts whole until it ends. Prompts cost nothing.
"""

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Literal, NamedTuple, get_args

from qubic_lab.bench.result import BenchResult, Table
from qubic_lab.cluster.balance import BALANCERS, Balancer, BalancerCandidate, make_balancer
from qubic_lab.cluster.health import Outcome, ReplicaHealth, Vitals, health_score
from qubic_lab.errors import BusyError, check_at_least, check_range

OutageKind = Literal["errors", "hangs"]
KINDS: tuple[OutageKind, ...] = get_args(OutageKind)
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
BEAT_S = 5.0
PROBE_CHECK_S = 0.5
PROBE_TOKENS = 1
ERROR_S = 0.05
NO_PROGRESS_S = 3.0
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Outage:
    """A node that fails in one of two ways from a time to another, in seconds."""

    node: str
    kind: OutageKind
    from_s: float
    to_s: float

    def silences(self, node: str, at_s: float) -> bool:
        """Tell whether a node sends no heartbeat at a time."""
        return self.kind == "hangs" and self.node == node and self.from_s <= at_s < self.to_s

    def breaks(self, node: str, sent_s: float, ended_s: float) -> bool:
        """Tell whether a node fails a request that would be under way in that time."""
        return self.node == node and sent_s < self.to_s and ended_s > self.from_s


class SimulatedRequest(NamedTuple):
    """A request: its answer's tokens, the tokens that balancers expect, and the coordinator that gives it to a node."""

    tokens: int
    expected_tokens: int
    coordinator: int = 0


class HandledRequest(NamedTuple):
    """What became of a request; times in seconds, `node` and `free`, the nodes that could be chosen, by id.

    `node` is None, and no time but its arrival is known, where no node could be chosen.
    """

    arrived_s: float
    node: str | None
    ok: bool
    free: tuple[str, ...] = ()
    started_s: float = 0.0
    ended_s: float = 0.0


class NodeLoad(NamedTuple):
    """Requests that have not ended, and the tokens that balancers expect of them."""

    requests: int = 0
    tokens: int = 0

    def plus(self, other: "NodeLoad", sign: int = 1) -> "NodeLoad":
        """Return both together, or with sign -1 this one without the other."""
        return NodeLoad(self.requests + sign * other.requests, self.tokens + sign * other.tokens)


class SimulatedNode:
    """A node: when each of its slots is free, what it has to do, its health, and the score of its latest heartbeat.

    A slot decodes `slot_tokens_per_s`; `busy_requests` outstanding requests are a whole CPU in use, for the score.
    """

    def __init__(
        self, number: int, id: str, weight: int, slot_tokens_per_s: float, slots: int = 1, busy_requests: int = 4
    ) -> None:
        self.number = number
        self.id = id
        self.weight = weight
        self.slot_tokens_per_s = slot_tokens_per_s
        self.tokens_per_s = slot_tokens_per_s * slots
        self.busy_requests = busy_requests
        self.free_s = [0.0] * slots
        self.load = NodeLoad()
        self.health = ReplicaHealth(beat_s=0.0)
        self.update_score()

    def update_score(self, now_s: float = 0.0) -> None:
        """Take the score of this moment: a heartbeat carries it."""
        circuit = self.health.circuit
        busy_share = min(1.0, self.load.requests / self.busy_requests)
        self.score = health_score(
            Vitals(busy_share, MEMORY_SHARE, circuit.response_s(now_s), circuit.error_share(now_s))
        )

    def candidate(self, load: NodeLoad, available: bool = True) -> BalancerCandidate:
        """Return it as a balancer sees it that knows of a load."""
        return BalancerCandidate(self.id, self.weight, *load, self.tokens_per_s, self.score, available)

    def work(self, tokens: int, now_s: float, outage: Outage | None = None) -> tuple[float, Outcome]:
        """Take a request into the slot that is free first; return when it starts, and how and when it ends."""
        started_s = max(now_s, self.free_s[0])
        ended_s = started_s + tokens / self.slot_tokens_per_s
        if outage is not None and outage.breaks(self.id, now_s, ended_s):
            noticed_s = ERROR_S if outage.kind == "errors" else NO_PROGRESS_S
            return started_s, Outcome(ok=False, sent_s=now_s, ended_s=max(now_s, outage.from_s) + noticed_s)
        heapq.heapreplace(self.free_s, ended_s)
        return started_s, Outcome(ok=True, sent_s=now_s, ended_s=ended_s)


class CoordinatorView:
    """What a coordinator knows of the nodes. A change makes one candidate anew, not thousands."""

    def __init__(self, nodes: Sequence[SimulatedNode]) -> None:
        self.own = [NodeLoad()] * len(nodes)
        self.others = [NodeLoad()] * len(nodes)
        self.candidates = [node.candidate(NodeLoad()) for node in nodes]

    def change(self, node: SimulatedNode, load: NodeLoad, sign: int) -> None:
        """Count a request of one's own as given (sign 1) or as ended (sign -1)."""
        self.own[node.number] = self.own[node.number].plus(load, sign)
        self._update(node)

    def hear(self, node: SimulatedNode) -> None:
        """Take a heartbeat: the node's load beside one's own requests, and its score."""
        others = node.load.plus(self.own[node.number], -1)
        if others != self.others[node.number] or node.score != self.candidates[node.number].score:  # it may be no news
            self.others[node.number] = others
            self._update(node)

    def _update(self, node: SimulatedNode) -> None:
        self.candidates[node.number] = node.candidate(self.own[node.number].plus(self.others[node.number]))


class Simulation:
    """Nodes, coordinators and a list of what happens next; time goes from one event to the next.

    `nodes` are in the order of their numbers, and each coordinator begins with the `balancer`. A node sends a heartbeat
    every `staleness_s` seconds, one node after the other; 0: coordinators share one view. `gated`: nodes that fail or
    are silent are not chosen, and idle ones are probed, as a coordinator does.
    """

    def __init__(
        self,
        nodes: Sequence[SimulatedNode],
        balancer: Balancer,
        draw: random.Random,
        *,
        coordinators: int = 1,
        staleness_s: float = 0.0,
        gated: bool = False,
        outage: Outage | None = None,
    ) -> None:
        self.nodes = nodes
        self.by_id = {node.id: node for node in nodes}
        self.draw = draw
        self.staleness_s = staleness_s
        self.gated = gated
        self.outage = outage
        self.views = [CoordinatorView(nodes) for _ in range(coordinators if staleness_s else 1)]
        self.balancers = [balancer] * coordinators
        self.handled: list[HandledRequest] = []
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = count()

    def run(self, arrivals_s: Sequence[float], requests: Iterable[SimulatedRequest]) -> list[HandledRequest]:
        """Let requests arrive at these times, and return what became of each.

        A request is taken from `requests` as it arrives. Its end is known when it is given to a node, as later ones do
        not overtake it there: the simulation ends with the last arrival.
        """
        incoming = iter(requests)
        for at_s in arrivals_s:
            self._at(at_s, lambda now_s: self._arrive(next(incoming), now_s))
        if self.staleness_s:
            self._at(self.staleness_s / len(self.nodes), partial(self._tell_views, 0))
        if self.gated:
            for node in self.nodes:
                for act, gap_s in ((self._beat, BEAT_S), (self._probe, PROBE_CHECK_S)):
                    for number in range(1, int(arrivals_s[-1] / gap_s) + 1):
                        self._at(number * gap_s, partial(act, node))
        if self.outage is not None:  # a node that comes back registers, which is a heartbeat
            self._at(self.outage.to_s, partial(self._beat, self.by_id[self.outage.node]))
        while len(self.handled) < len(arrivals_s):
            now_s, _, happen = heapq.heappop(self._events)
            happen(now_s)
        return self.handled

    def _at(self, at_s: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._numbers), happen))

    def _arrive(self, request: SimulatedRequest, now_s: float) -> None:
        view = self.views[request.coordinator % len(self.views)]
        candidates = view.candidates
        free: tuple[str, ...] = ()
        if self.gated:
            candidates = [node.candidate(node.load, node.health.gate(now_s) is None) for node in self.nodes]
            free = tuple(each.id for each in candidates if each.available)
        try:
            chosen, balancer = self.balancers[request.coordinator].choose(candidates, self.draw)
        except BusyError:
            self.handled.append(HandledRequest(now_s, None, False, free))
            return
        self.balancers[request.coordinator] = balancer
        started_s, outcome = self._send(self.by_id[chosen], view, request, now_s)
        self.handled.append(HandledRequest(now_s, chosen, outcome.ok, free, started_s, outcome.ended_s))

    def _send(
        self, node: SimulatedNode, view: CoordinatorView, request: SimulatedRequest, now_s: float, probe: bool = False
    ) -> tuple[float, Outcome]:
        started_s, outcome = node.work(request.tokens, now_s, self.outage)
        outcome = replace(outcome, probe=probe)
        load = NodeLoad(1, request.expected_tokens)
        self._change(node, view, load, 1, now_s)
        self._at(outcome.ended_s, partial(self._end, node, view, load, outcome))
        return started_s, outcome

    def _end(self, node: SimulatedNode, view: CoordinatorView, load: NodeLoad, outcome: Outcome, now_s: float) -> None:
        node.health = node.health.after(outcome)
        self._change(node, view, load, -1, now_s)

    def _change(self, node: SimulatedNode, view: CoordinatorView, load: NodeLoad, sign: int, now_s: float) -> None:
        node.load = node.load.plus(load, sign)
        if not self.staleness_s:
            node.update_score(now_s)
        view.change(node, load, sign)

    def _tell_views(self, number: int, now_s: float) -> None:
        self.nodes[number].update_score(now_s)
        for view in self.views:
            view.hear(self.nodes[number])
        self._at(now_s + self.staleness_s / len(self.nodes), partial(self._tell_views, (number + 1) % len(self.nodes)))

    def _beat(self, node: SimulatedNode, now_s: float) -> None:
        if self.outage is None or not self.outage.silences(node.id, now_s):
            node.health = node.health.with_beat(now_s)

    def _probe(self, node: SimulatedNode, now_s: float) -> None:
        if node.health.wants_probe(now_s, idle=node.load.requests == 0):
            node.health = node.health.with_probe(now_s)
            self._send(node, self.views[0], SimulatedRequest(PROBE_TOKENS, PROBE_TOKENS), now_s, probe=True)


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
