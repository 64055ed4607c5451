"""One coordinator's view of the nodes: the registry's records and the outcomes of its own requests.

This module does no input or output and reads no clock: times are seconds of one clock that the caller reads.
"""

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from qubic_lab.cluster.balance import Balancer, BalancerCandidate
from qubic_lab.cluster.health import Gate, Outcome, ReplicaHealth, Vitals, health_score
from qubic_lab.cluster.registry import NodeRecord
from qubic_lab.errors import BusyError, NotFoundError, RefusedError

KEPT_S = 1.0
"""How long a node is kept free for a request that needs a node alone; the waiting task asks again before that."""


@dataclass(frozen=True)
class NodeView:
    """A node with its score (0 to 100), the gate that closes it if any, and its outstanding requests and tokens.

    `response_s` is the mean time of its latest answers, None if there are none; `tokens_per_s` is the speed of them, or
    that of its start.
    """

    record: NodeRecord
    score: float
    gate: Gate | None
    outstanding_requests: int
    outstanding_tokens: int
    response_s: float | None
    error_share: float
    tokens_per_s: float


@dataclass
class _Member:
    """A node and this coordinator's own requests there.

    `alone` says that one of them must stay the only one. Until `kept_until_s` the node gets no requests, because a
    request of that kind waits for it.
    """

    record: NodeRecord
    health: ReplicaHealth
    requests: int = 0
    tokens: int = 0
    alone: bool = False
    kept_until_s: float = -math.inf

    def outstanding(self, coordinator: str) -> tuple[int, int]:
        """Return requests and tokens: our own as of now, those of other coordinators as of the latest heartbeat."""
        requests, tokens = self.requests, self.tokens
        for name, load in self.record.state.loads.items():
            if name != coordinator:
                requests, tokens = requests + load.requests, tokens + load.tokens
        return requests, tokens

    def speed(self, now_s: float) -> tuple[float, tuple[float, ...]]:
        """Return its tokens/s, which may be only those of its start, and those of its recent answers."""
        tokens_per_s, speeds = self.health.circuit.speed(now_s)
        return tokens_per_s or self.record.registration.capabilities.tokens_per_s, speeds


@dataclass
class Fleet:
    """All nodes and the balancer; the coordinator's name distinguishes its own load from that of others."""

    coordinator: str
    balancer: Balancer
    draw: random.Random = field(default_factory=random.Random)
    _members: dict[str, _Member] = field(default_factory=dict)

    def update(self, records: Sequence[NodeRecord], now_s: float) -> None:
        """Update the nodes from the registry's records; nodes without a record are dropped."""
        members = {}
        for record in records:
            member = self._members.get(record.id) or _Member(record, ReplicaHealth(beat_s=now_s))
            member.record = record
            member.health = replace(
                member.health,
                beat_s=now_s - record.age_s,
                draining=record.draining or record.state.draining,
                starting=not record.state.ready,
            )
            members[record.id] = member
        self._members = members

    def __len__(self) -> int:
        return len(self._members)

    def has_room(self, now_s: float) -> bool:
        """Return whether any node could take a request."""
        return any(self._may_take(member, now_s) for member in self._members.values())

    def choose(self, now_s: float, avoid: Collection[str] = (), alone: bool = False, model: str = "") -> NodeRecord:
        """Return the node that gets the next request.

        Args:
            now_s: the time.
            avoid: names of nodes that are chosen only if no other node has room.
            alone: whether the request must be the node's only one. If all nodes are in use, one is kept free for a
                while.
            model: the only model that may answer; empty: any.

        Raises:
            BusyError: no node has room.
        """
        members = list(self._members.values())
        if model:
            members = [each for each in members if each.record.registration.capabilities.model == model]
        candidates = [self._candidate(member, now_s, alone) for member in members]
        if alone and not any(each.available for each in candidates):
            self._keep_one(now_s, members)
        if avoid:  # copying all candidates would cost as much as the rest of the choice
            preferred = [replace(each, available=each.available and each.id not in avoid) for each in candidates]
            candidates = preferred if any(each.available for each in preferred) else candidates
        chosen, self.balancer = self.balancer.choose(candidates, self.draw)
        return self._members[chosen].record

    def choose_only(self, node: str, now_s: float) -> NodeRecord:
        """Return the one node that may answer.

        Raises:
            NotFoundError: the node is not registered.
            RefusedError: a gate closes the node.
            BusyError: the node has no room now.
        """
        member = self._members.get(node)
        if member is None:
            raise NotFoundError(f"node {node} is not registered")
        if (gate := member.health.gate(now_s)) is not None:
            raise RefusedError(f"node {node} takes no requests: {gate}")
        if not self._may_take(member, now_s):
            raise BusyError(f"node {node} is full")
        return member.record

    def begin(self, node: str, tokens: int, alone: bool = False) -> None:
        """Count a request that was sent to a node, with the upper estimate of its tokens."""
        if member := self._members.get(node):
            member.requests += 1
            member.tokens += tokens
            member.alone = alone

    def end(self, node: str, tokens: int) -> None:
        """Remove an ended request from the counts."""
        if member := self._members.get(node):
            member.requests = max(0, member.requests - 1)  # the node may have been dropped and added meanwhile
            member.tokens = max(0, member.tokens - tokens)
            member.alone = member.alone and member.requests > 0

    def note(self, node: str, outcome: Outcome) -> None:
        """Update a node's health with the outcome of a request or a probe."""
        if member := self._members.get(node):
            member.health = member.health.after(outcome)

    def probes(self, now_s: float) -> list[tuple[NodeRecord, bool]]:
        """Return the nodes that need a probe now, and whether it decides on their return; mark the probes as sent."""
        wanted = [
            member
            for member in self._members.values()
            if member.health.wants_probe(now_s, idle=member.outstanding(self.coordinator)[0] == 0)
        ]
        for member in wanted:
            member.health = member.health.with_probe(now_s)
        return [(member.record, member.health.circuit.cause is not None) for member in wanted]

    def views(self, now_s: float) -> list[NodeView]:
        """Return the views of all nodes."""
        return [self._view(member, now_s) for member in self._members.values()]

    def _view(self, member: _Member, now_s: float) -> NodeView:
        circuit = member.health.circuit
        requests, tokens = member.outstanding(self.coordinator)
        return NodeView(
            record=member.record,
            score=_score(member, now_s),
            gate=member.health.gate(now_s),
            outstanding_requests=requests,
            outstanding_tokens=tokens,
            response_s=circuit.response_s(now_s),
            error_share=circuit.error_share(now_s),
            tokens_per_s=member.speed(now_s)[0],
        )

    def _keep_one(self, now_s: float, members: Sequence[_Member]) -> None:
        """Keep a node free: one that is kept already, or else the one with the least load."""
        open_ = [member for member in members if member.health.gate(now_s) is None and not member.alone]
        if open_:
            kept = min(open_, key=lambda each: (each.kept_until_s < now_s, each.outstanding(self.coordinator)))
            kept.kept_until_s = now_s + KEPT_S

    def _candidate(self, member: _Member, now_s: float, alone: bool) -> BalancerCandidate:
        requests, tokens = member.outstanding(self.coordinator)
        tokens_per_s, speeds = member.speed(now_s)
        return BalancerCandidate(
            id=member.record.id,
            weight=max(1, member.record.registration.weight) * tokens_per_s,
            outstanding_requests=requests,
            outstanding_tokens=tokens,
            tokens_per_s=tokens_per_s,
            score=_score(member, now_s),
            available=self._may_take(member, now_s, alone),
            speeds=speeds,
        )

    def _may_take(self, member: _Member, now_s: float, alone: bool = False) -> bool:
        if member.health.gate(now_s) is not None:
            return False
        requests, _ = member.outstanding(self.coordinator)
        if alone:
            return requests == 0
        kept = member.alone or now_s < member.kept_until_s
        return not kept and requests < member.record.registration.capabilities.slots


def _score(member: _Member, now_s: float) -> float:
    state, circuit = member.record.state, member.health.circuit
    response_s, error_share = circuit.response_s(now_s), circuit.error_share(now_s)
    return health_score(Vitals(state.cpu_share, state.memory_share, response_s, error_share))
