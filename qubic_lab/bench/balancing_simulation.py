"""The real balancers, circuit breakers and scores on simulated nodes and simulated time.

A node decodes one request or a few at once, first come first served. Coordinators give requests to nodes. A coordinator
knows its own requests at once, and those of the others from a node's latest heartbeat, or all of them at once where
heartbeats have no delay. A node may fail in two ways: `errors` fails each request at once and goes on with its
heartbeats; `hangs` does neither, and a request fails when nothing has arrived for some seconds. Failed requests are not
tried again. An outstanding request counts whole until it ends. Prompts cost nothing.
"""

import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Literal, NamedTuple

from qubic_lab.cluster.balance import Balancer, BalancerCandidate
from qubic_lab.cluster.health import Outcome, ReplicaHealth, Vitals, health_score
from qubic_lab.errors import BusyError

OutageKind = Literal["errors", "hangs"]

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

    def update_score(self) -> None:
        """Take the score of this moment: a heartbeat carries it."""
        circuit = self.health.circuit
        busy_share = min(1.0, self.load.requests / self.busy_requests)
        self.score = health_score(Vitals(busy_share, MEMORY_SHARE, circuit.response_s, circuit.error_share))

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

    Args:
        nodes: in the order of their numbers.
        balancer: that each coordinator begins with.
        draw: of the balancers.
        coordinators: how many.
        staleness_s: seconds between two heartbeats of a node, sent one after the other; 0: coordinators share one view.
        gated: nodes that fail or are silent are not chosen, and idle ones are probed, as a coordinator does.
        outage: of a node.
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
        self, node: SimulatedNode, view: CoordinatorView, request: SimulatedRequest, now_s: float
    ) -> tuple[float, Outcome]:
        started_s, outcome = node.work(request.tokens, now_s, self.outage)
        load = NodeLoad(1, request.expected_tokens)
        self._change(node, view, load, 1)
        self._at(outcome.ended_s, partial(self._end, node, view, load, outcome))
        return started_s, outcome

    def _end(self, node: SimulatedNode, view: CoordinatorView, load: NodeLoad, outcome: Outcome, now_s: float) -> None:
        node.health = node.health.after(outcome)
        self._change(node, view, load, -1)

    def _change(self, node: SimulatedNode, view: CoordinatorView, load: NodeLoad, sign: int) -> None:
        node.load = node.load.plus(load, sign)
        if not self.staleness_s:
            node.update_score()
        view.change(node, load, sign)

    def _tell_views(self, number: int, now_s: float) -> None:
        self.nodes[number].update_score()
        for view in self.views:
            view.hear(self.nodes[number])
        self._at(now_s + self.staleness_s / len(self.nodes), partial(self._tell_views, (number + 1) % len(self.nodes)))

    def _beat(self, node: SimulatedNode, now_s: float) -> None:
        if self.outage is None or not self.outage.silences(node.id, now_s):
            node.health = node.health.with_beat(now_s)

    def _probe(self, node: SimulatedNode, now_s: float) -> None:
        if node.health.wants_probe(now_s, idle=node.load.requests == 0):
            node.health = node.health.with_probe(now_s)
            self._send(node, self.views[0], SimulatedRequest(PROBE_TOKENS, PROBE_TOKENS), now_s)
