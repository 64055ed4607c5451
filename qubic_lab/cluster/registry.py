"""Which nodes there are: each registers, says every few seconds that it lives, and is removed when it is silent.

The registry lives in Redis, so every coordinator sees the same nodes. Nodes never reach Redis: they speak to any
coordinator (see `admission`). Time is Redis's alone; a node's own clock does not matter.
"""

import math
import uuid
from dataclasses import dataclass
from typing import Any

import redis

from qubic_lab.cluster.redis_calls import Scripts
from qubic_lab.errors import InputError, NotFoundError, RefusedError, check_choice
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire.channel import read_host

HEARTBEAT_S = 5.0
"""So often does a node say that it lives."""
REMOVED_S = 30.0
"""A node that was silent for so long is removed; it registers again with its next sign of life."""
PATIENCE_S = 3.0
"""A lost connection to Redis is waited out for so long: less than a node waits for its answer, else it would ask again
while the first call was still to be carried out."""
NODE_TYPES = ("whole", "stage", "expert")
MOST_NAME_CHARACTERS = 100
MOST_BYTES = 2**16
"""Of a registration, and of a state: every coordinator reads all of them each second."""


@dataclass(frozen=True)
class NodeRecord:
    """A registered node; `age_s` since its latest heartbeat and `registered_s` since it registered, by Redis's clock.

    `draining`: somebody asked that it gets nothing new; that it drains by itself stands in `state`.
    """

    registration: pb.NodeRegistration
    state: pb.NodeState
    age_s: float
    registered_s: float
    draining: bool

    @property
    def id(self) -> str:
        """Its name, unlike that of any other."""
        return self.registration.node


class Registry:
    """The registry of one name on a Redis connection made by `redis_server.connect`; may be shared by threads.

    All methods wait out a lost connection, for up to `PATIENCE_S`.

    Raises, in every method:
        QubicLabError: Redis cannot be reached for so long, or refuses.
    """

    def __init__(self, client: "redis.Redis", name: str = "nodes") -> None:
        self._scripts = Scripts(client, "registry", name, PATIENCE_S)
        self.clock_offset_ms = 0
        """For tests: added to Redis's clock."""

    def register(self, registration: pb.NodeRegistration, owner: str = "") -> str:
        """Make a node known and return its session, which its heartbeats show.

        A node of this name at the same address is the same one, and keeps its session, so that a call may be repeated.
        One at another address was started again: its session is over.

        Args:
            registration: who it is and what it can do.
            owner: who it has proved to be, by its certificate; nobody else may take its name while it lives.

        Raises:
            InputError: the registration says what cannot be.
            RefusedError: a node of this name lives, and is somebody else's.
        """
        check_registration(registration)
        arguments = (registration.node, uuid.uuid4().hex, owner, registration.address, registration.SerializeToString())
        session: bytes = self._run("register", *arguments)
        if not session:
            raise RefusedError(f"node {registration.node!r} is registered with another certificate: give another name")
        return session.decode()

    def beat(self, node: str, session: str, state: pb.NodeState) -> None:
        """Say that a node lives and how it is.

        Raises:
            InputError: the state says what cannot be.
            NotFoundError: it is not registered, or was removed: it has to register again.
            RefusedError: the session is not that of the node that registered last by this name.
        """
        check_state(state)
        self._check(node, self._run("beat", node, session, state.SerializeToString()))

    def leave(self, node: str, session: str) -> None:
        """Remove a node; errors as of `beat`."""
        self._check(node, self._run("leave", node, session))

    def drain(self, node: str, draining: bool = True) -> None:
        """Ask that a node gets nothing new, or that it gets something again; what it has it ends.

        Raises:
            NotFoundError: there is no such node.
        """
        self._check(node, self._run("drain", node, "1" if draining else "0"))

    def nodes(self) -> list[NodeRecord]:
        """Return those that were not silent for too long, by name; remove the others."""
        records = [
            NodeRecord(
                pb.NodeRegistration.FromString(registration),
                pb.NodeState.FromString(state),
                age_ms / 1_000,
                registered_ms / 1_000,
                draining == b"1",
            )
            for registration, state, age_ms, registered_ms, draining in self._run("list")
        ]
        return sorted(records, key=lambda record: record.id)

    def _run(self, script: str, *arguments: str | bytes) -> Any:
        settings = {"clock_offset_ms": self.clock_offset_ms, "removed_ms": round(REMOVED_S * 1_000)}
        return self._scripts.run(script, settings, *arguments)

    def _check(self, node: str, found: bytes) -> None:
        if found == b"unknown":
            raise NotFoundError(f"no node {node!r} is registered, or it was silent for {REMOVED_S:g} s: register again")
        if found == b"other":
            raise RefusedError(f"node {node!r} was registered by another process since: this session is over")


def check_registration(registration: pb.NodeRegistration) -> None:
    """Refuse what cannot be.

    Raises:
        InputError: names the field, its value and what it must be.
    """
    capabilities = registration.capabilities
    if not (registration.node.isprintable() and 0 < len(registration.node) <= MOST_NAME_CHARACTERS):
        raise InputError(f"node name {registration.node!r}: give 1 to {MOST_NAME_CHARACTERS} printable characters")
    if not registration.address.startswith("unix:"):
        read_host(registration.address)
    _check_size(f"registration of {registration.node}", registration)
    check_choice("node type", registration.type, NODE_TYPES)
    if capabilities.slots < 1:
        raise InputError(f"slots of {registration.node} is {capabilities.slots}: it must be at least 1")
    if not 0.0 < capabilities.tokens_per_s < math.inf:
        raise InputError(
            f"tokens_per_s of {registration.node} is {capabilities.tokens_per_s}: it must be a number above 0"
        )


def check_state(state: pb.NodeState) -> None:
    """Refuse shares that are none; errors as of `check_registration`."""
    _check_size("state", state)
    for name in ("cpu_share", "memory_share"):
        if not 0.0 <= getattr(state, name) <= 1.0:
            raise InputError(f"{name} is {getattr(state, name)}: it must be 0 or more and 1 or less")


def _check_size(what: str, message: pb.NodeRegistration | pb.NodeState) -> None:
    if (size := message.ByteSize()) > MOST_BYTES:
        raise InputError(f"the {what} has {size:,} bytes: at most {MOST_BYTES:,} are taken")
