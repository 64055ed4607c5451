"""One coordinator's view of the nodes: the registry's records and the outcomes of its own requests.

This module does no input or output and reads no clock: times are seconds of one clock that the caller reads.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from qubic_lab.cluster.balance import Balancer, BalancerCandidate
from qubic_lab.cluster.health import Gate, Outcome, ReplicaHealth, Vitals, health_score
from qubic_lab.cluster.registry import NodeRecord
from qubic_lab.errors import BusyError, NotFoundError, RefusedError

KEPT_S = 1.0
"""How long a node is kept free for a request that needs a node alone; the waiting task asks again before that."""
MOST_IDLE_PROBES = 25
"""Idle nodes that are probed at once. Probes are due twice a second; from 100 idle nodes on each gets fewer of them."""


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

    `others` are requests and tokens of other coordinators as of the latest heartbeat. `alone` says that one of our own
    must stay the only one. Until `kept_until_s` the node gets no requests, because a request of that kind waits for it.
    """

    record: NodeRecord
    health: ReplicaHealth
    others: tuple[int, int] = (0, 0)
    slots: int = 0
    requests: int = 0
    tokens: int = 0
    alone: bool = False
    kept_until_s: float = -math.inf

    def update(self, record: NodeRecord, coordinator: str, now_s: float) -> None:
        """Take over what the registry says, and read from its messages once what each choice needs."""
        self.record, self.slots = record, record.registration.capabilities.slots
        loads = [load for name, load in record.state.loads.items() if name != coordinator]
        self.others = sum(load.requests for load in loads), sum(load.tokens for load in loads)
        self.health = replace(
            self.health,
            beat_s=now_s - record.age_s,
            draining=record.draining or record.state.draining,
            starting=not record.state.ready,
        )

    @property
    def outstanding(self) -> tuple[int, int]:
        """Requests and tokens: our own as of now, those of other coordinators as of the latest heartbeat."""
        return self.requests + self.others[0], self.tokens + self.others[1]

    def speed(self, now_s: float) -> tuple[float, tuple[float, ...]]:
        """Return its tokens/s, which may be only those of its start, and those of its recent answers."""
        tokens_per_s, speeds = self.health.circuit.speed(now_s)
        return tokens_per_s or self.record.registration.capabilities.tokens_per_s, speeds


class _Candidates(Sequence[BalancerCandidate]):
    """Members as a balancer sees them, each looked at when it is asked for: not every choice needs all."""

    def __init__(self, look: Callable[[_Member], BalancerCandidate], members: Sequence[_Member]) -> None:
        self._look, self._members = look, members

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[BalancerCandidate]:
        return map(self._look, self._members)

    def __getitem__(self, place: Any) -> Any:  # one candidate: nobody asks for a part of them
        return self._look(self._members[place])


@dataclass
class Fleet:
    """All nodes and the balancer; the coordinator's name distinguishes its own load from that of others."""

    coordinator: str
    balancer: Balancer
    draw: random.Random = field(default_factory=random.Random)
    _members: dict[str, _Member] = field(default_factory=dict)
    _by_model: dict[str, list[_Member]] = field(default_factory=lambda: {"": []})
    """The members by name, of each model and, for "", all."""

    def update(self, records: Sequence[NodeRecord], now_s: float, gone: Collection[str] | None = None) -> None:
        """Update nodes from the registry's records, and drop those `gone`, by default all that have no record."""
        if gone is None:
            gone = self._members.keys() - {record.id for record in records}
        moved = [self._members.pop(name, None) is not None for name in gone]
        for record in records:
            member = self._members.get(record.id) or _Member(record, ReplicaHealth(beat_s=now_s))
            moved.append(record.id not in self._members or _model(member.record) != _model(record))
            member.update(record, self.coordinator, now_s)
            self._members[record.id] = member
        if any(moved):
            self._sort()

    def _sort(self) -> None:
        ordered = sorted(self._members.values(), key=lambda member: member.record.id)
        by_model = defaultdict[str, list[_Member]](list)
        for member in ordered:
            by_model[_model(member.record)].append(member)
        self._by_model = dict(by_model) | {"": ordered}

    def __len__(self) -> int:
        return len(self._members)

    def addresses(self) -> set[str]:
        """Return the addresses of all nodes."""
        return {member.record.registration.address for member in self._members.values()}

    def has_room(self, now_s: float) -> bool:
        """Return whether any node could take a request."""
        return self.room(now_s, 1) > 0

    def room(self, now_s: float, most: int) -> int:
        """Return how many requests nodes could take, counted up to `most`."""
        found = 0
        for member in self._by_model[""]:
            if self._may_take(member, now_s):
                found += member.slots - member.outstanding[0]
                if found >= most:
                    return most
        return found

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
        members = self._by_model.get(model, [])
        if alone and avoid:  # those are often idle, because what they get fails
            members = [
                member for member in members if member.record.id not in avoid and member.health.gate(now_s) is None
            ] or members
        if alone and not any(self._may_take(member, now_s, alone) for member in members):
            self._keep_one(now_s, members)
        if avoid:
            with suppress(BusyError):
                return self._choose(members, now_s, alone, avoid)
        return self._choose(members, now_s, alone)

    def _choose(self, members: Sequence[_Member], now_s: float, alone: bool, avoid: Collection[str] = ()) -> NodeRecord:
        look = partial(self._candidate, now_s=now_s, alone=alone, avoid=avoid)
        chosen, self.balancer = self.balancer.choose(_Candidates(look, members), self.draw)
        return self._members[chosen].record

    def failing(self) -> set[str]:
        """Return the names of nodes whose latest request here failed: a further try of a task had better avoid them."""
        return {name for name, member in self._members.items() if member.health.circuit.failures}

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
        due = [
            member for member in self._by_model[""] if member.health.wants_probe(now_s, idle=member.outstanding[0] == 0)
        ]
        returning = [member for member in due if member.health.circuit.cause is not None]
        idle = [member for member in due if member.health.circuit.cause is None]
        idle = sorted(idle, key=lambda member: member.health.circuit.heard_s)[:MOST_IDLE_PROBES]
        for member in (*returning, *idle):
            member.health = member.health.with_probe(now_s)
        return [(member.record, member in returning) for member in (*returning, *idle)]

    def views(self, now_s: float) -> list[NodeView]:
        """Return the views of all nodes."""
        return [self._view(member, now_s) for member in self._by_model[""]]

    def _view(self, member: _Member, now_s: float) -> NodeView:
        circuit = member.health.circuit
        requests, tokens = member.outstanding
        age_s = now_s - member.health.beat_s
        registered_s = member.record.registered_s + age_s - member.record.age_s
        return NodeView(
            record=replace(member.record, age_s=age_s, registered_s=registered_s),
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
            kept = min(open_, key=lambda each: (each.kept_until_s < now_s, each.outstanding))
            kept.kept_until_s = now_s + KEPT_S

    def _candidate(self, member: _Member, now_s: float, alone: bool, avoid: Collection[str] = ()) -> BalancerCandidate:
        requests, tokens = member.outstanding
        tokens_per_s, speeds = member.speed(now_s)
        return BalancerCandidate(
            id=member.record.id,
            weight=max(1, member.record.registration.weight) * tokens_per_s,
            outstanding_requests=requests,
            outstanding_tokens=tokens,
            tokens_per_s=tokens_per_s,
            score=_score(member, now_s),
            available=self._may_take(member, now_s, alone) and member.record.id not in avoid,
            speeds=speeds,
        )

    def _may_take(self, member: _Member, now_s: float, alone: bool = False) -> bool:
        if member.health.gate(now_s) is not None:
            return False
        requests, _ = member.outstanding
        if alone:
            return requests == 0
        kept = member.alone or now_s < member.kept_until_s
        return not kept and requests < member.slots


def _model(record: NodeRecord) -> str:
    return record.registration.capabilities.model


def _score(member: _Member, now_s: float) -> float:
    state, circuit = member.record.state, member.health.circuit
    response_s, error_share = circuit.response_s(now_s), circuit.error_share(now_s)
    return health_score(Vitals(state.cpu_share, state.memory_share, response_s, error_share))
