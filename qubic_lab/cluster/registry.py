"""The registry of nodes: each node registers, sends heartbeats, and is removed when they stop.

The registry lives in Redis, so every coordinator sees the same nodes. Nodes never connect to Redis: they call the
`RegistryService` of any coordinator. All times come from Redis's clock, whose steps are left out (`lua/base.lua`); the
nodes' clocks do not matter.
"""

import json
import math
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import redis

from qubic_lab.cluster.redis_calls import Command, Scripts, Steps, Word, scripted
from qubic_lab.errors import InputError, NotFoundError, QubicLabError, RefusedError, check_choice
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire.channel import is_loopback, peer_names, read_host, status_of

HEARTBEAT_S = 5.0
"""Interval of a node's heartbeats."""
REMOVED_S = 30.0
"""A node without a heartbeat for this time is removed; it registers again with its next one."""
PATIENCE_S = 3.0
"""How long a call waits for a lost connection to Redis. It is less than a node's own timeout, so that a node does not
repeat a call that is still pending."""
NODE_TYPES = ("whole", "expert")
MOST_NAME_CHARACTERS = 100
MOST_BYTES = 2**16
"""Limit for a registration and for a state, because every coordinator reads all of them each second."""


@dataclass(frozen=True)
class NodeRecord:
    """A registered node; `age_s` is the time since its latest heartbeat, `registered_s` that since its registration.

    `draining` says that a client asked the node to drain; `state.draining` says that the node drains by itself.
    """

    registration: pb.NodeRegistration
    state: pb.NodeState
    age_s: float
    registered_s: float
    draining: bool

    @property
    def id(self) -> str:
        """Its unique name."""
        return self.registration.node


@dataclass(frozen=True)
class NodeChanges:
    """Nodes that have registered, sent a heartbeat or been told to drain since an instant, and who has gone since.

    `whole` says that these are all nodes: every other one has gone. `at_ms` is the instant of this reading.
    """

    records: list[NodeRecord]
    gone: list[str]
    whole: bool
    at_ms: int


class Registry:
    """A named registry on a Redis connection from `redis_server.connect`; threads may share it.

    All methods wait up to `PATIENCE_S` for a lost connection to come back.

    Raises, in every method:
        QubicLabError: Redis cannot be reached in that time, or refuses.
    """

    def __init__(self, client: "redis.Redis", name: str = "nodes") -> None:
        self._scripts = Scripts(client, "registry", name, PATIENCE_S)
        self.clock_offset_ms = 0
        """For tests: added to Redis's clock."""

    def register(self, registration: pb.NodeRegistration, owner: str = "") -> str:
        """Register a node and return its session, which its heartbeats must carry.

        A node with the same identity at the same address keeps its session, so that the call may be repeated; at
        another address it was restarted, and its old session ends. While it lives, nobody else gets its name.

        Args:
            registration: name, address and capabilities of the node.
            owner: names in the node's certificate, which must be the same too.

        Raises:
            InputError: the registration is invalid.
            RefusedError: another live node has this name.
        """
        check_registration(registration)
        node, address, identity = registration.node, registration.address, registration.identity
        known = registration.SerializeToString()
        session, taken_at = self._script("register", node, uuid.uuid4().hex, owner, address, identity, known).run()
        if not session:
            raise RefusedError(
                f"node {node!r} lives already, at {taken_at.decode()}, and is another process: give another name "
                f"(--name), or end that one; a name is free {REMOVED_S:g} s after the last heartbeat"
            )
        return str(session.decode())

    @scripted
    def beat(self, node: str, session: str, state: pb.NodeState) -> Steps[None]:
        """Write a node's heartbeat with its state.

        Raises:
            InputError: the state is invalid.
            NotFoundError: the node is not registered, or was removed, and must register again.
            RefusedError: another node has registered under this name since.
        """
        check_state(state)
        self._check(node, (yield self._script("beat", node, session, state.SerializeToString())))

    def leave(self, node: str, session: str) -> None:
        """Remove a node; errors as for `beat`."""
        self._check(node, self._script("leave", node, session).run())

    def drain(self, node: str, draining: bool = True) -> None:
        """Mark a node as draining (it gets no new requests), or end that; a NotFoundError if there is no such node."""
        self._check(node, self._script("drain", node, "1" if draining else "0").run())

    def nodes(self) -> list[NodeRecord]:
        """Return the live nodes by name, and remove the others."""
        return self.changes().records

    @scripted
    def changes(self, since_ms: int = 0) -> Steps[NodeChanges]:
        """Return what has changed since an earlier reading, by name, and remove nodes that are silent; 0: all nodes.

        A change of the very ms of that reading comes again.
        """
        at_ms, found, gone, whole = yield self._script("list", str(since_ms))
        records = [
            NodeRecord(
                pb.NodeRegistration.FromString(registration),
                pb.NodeState.FromString(state),
                age_ms / 1_000,
                registered_ms / 1_000,
                draining == b"1",
            )
            for registration, state, age_ms, registered_ms, draining in found
        ]
        records.sort(key=lambda record: record.id)
        return NodeChanges(records, [name.decode() for name in gone], whole == 1, at_ms)

    def _script(self, script: str, *arguments: Word) -> Command:
        return self._scripts.command(script, _settings(self.clock_offset_ms), *arguments)

    def _check(self, node: str, found: bytes) -> None:
        if found == b"unknown":
            raise NotFoundError(
                f"node {node!r} is not registered, or sent no heartbeat for {REMOVED_S:g} s: register again"
            )
        if found == b"other":
            raise RefusedError(f"another process has registered as node {node!r} since: this session has ended")


@lru_cache(maxsize=8)
def _settings(clock_offset_ms: int) -> str:
    """Return what each script is told."""
    removed_ms = round(REMOVED_S * 1_000)
    return json.dumps({"clock_offset_ms": clock_offset_ms, "removed_ms": removed_ms, "most_step_ms": removed_ms // 2})


def check_registration(registration: pb.NodeRegistration) -> None:
    """Check a registration.

    Raises:
        InputError: a field is invalid; the message names the field and its value.
    """
    capabilities = registration.capabilities
    if not (registration.node.isprintable() and 0 < len(registration.node) <= MOST_NAME_CHARACTERS):
        raise InputError(f"node name {registration.node!r}: give 1 to {MOST_NAME_CHARACTERS} printable characters")
    if not registration.address.startswith("unix:"):
        read_host(registration.address)
    if not registration.identity:
        raise InputError(f"node {registration.node!r} has no identity: give a random text that only it knows")
    _check_size(f"registration of {registration.node}", registration)
    check_choice("node type", registration.type, NODE_TYPES)
    if capabilities.slots < 1:
        raise InputError(f"slots of {registration.node} is {capabilities.slots}: it must be at least 1")
    if not 0.0 < capabilities.tokens_per_s < math.inf:
        raise InputError(
            f"tokens_per_s of {registration.node} is {capabilities.tokens_per_s}: it must be a number above 0"
        )


def check_state(state: pb.NodeState) -> None:
    """Check a node's state; errors as for `check_registration`."""
    _check_size("state", state)
    for name in ("cpu_share", "memory_share"):
        if not 0.0 <= getattr(state, name) <= 1.0:
            raise InputError(f"{name} is {getattr(state, name)}: it must be 0 or more and 1 or less")


def _check_size(what: str, message: pb.NodeRegistration | pb.NodeState) -> None:
    if (size := message.ByteSize()) > MOST_BYTES:
        raise InputError(f"the {what} has {size:,} bytes: at most {MOST_BYTES:,} are allowed")


class RegistryService:
    """The gRPC service by which nodes register; with mutual TLS a node may only use the names of its certificate.

    `call` runs a blocking function in a thread; `on_change` is called after each call of a node. Nodes may listen at
    unix sockets in the folder `sockets` only.
    """

    def __init__(
        self,
        registry: Registry,
        call: Callable[..., Awaitable[Any]],
        on_change: Callable[[], None],
        sockets: Path | None = None,
    ) -> None:
        self._registry, self._call, self._on_change, self._sockets = registry, call, on_change, sockets

    async def Register(self, request: pb.NodeRegistration, context: Any) -> pb.Registered:
        """Register a node."""

        def register() -> str:
            names = peer_names(context)
            check_address(request.address, names, self._sockets)
            return self._registry.register(request, ",".join(sorted(names)))

        session = await self._checked(request.node, context, register)
        return pb.Registered(session=session, beat_every_s=HEARTBEAT_S)

    async def Beat(self, request: pb.Heartbeat, context: Any) -> pb.HeartbeatReply:
        """Write a heartbeat."""
        await self._checked(request.node, context, self._registry.beat, request.node, request.session, request.state)
        return pb.HeartbeatReply()

    async def Leave(self, request: pb.LeaveRequest, context: Any) -> pb.LeaveReply:
        """Remove a node."""
        await self._checked(request.node, context, self._registry.leave, request.node, request.session)
        return pb.LeaveReply()

    async def _checked(self, node: str, context: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            check_name(node, peer_names(context))
            found = await self._call(function, *arguments)
        except QubicLabError as error:
            await context.abort(status_of(error), str(error))
        self._on_change()
        return found


def socket_folder(address: str) -> Path | None:
    """Return the folder of a unix socket from `unix:PATH`; None for another address."""
    scheme, _, path = address.partition(":")
    return Path(unquote(path)).resolve().parent if scheme == "unix" else None


def check_address(address: str, names: frozenset[str], sockets: Path | None) -> None:
    """Check that a node may register an address, at which coordinators will call it.

    Args:
        address: HOST:PORT, of this host if the node has no certificate; or unix:PATH.
        names: the names in the node's certificate; the host must be one of them.
        sockets: the only folder whose sockets are allowed, for nodes without a certificate.

    Raises:
        InputError: it is malformed, or a socket elsewhere.
        RefusedError: it is of another host.
    """
    if address.startswith("unix:"):
        if names or sockets is None or not unquote(address).isprintable() or socket_folder(address) != sockets:
            where = f"HOST:PORT, or a socket in {sockets}" if sockets is not None and not names else "HOST:PORT"
            raise InputError(f"address {address!r} is not allowed for a node here: listen at {where}")
        return
    host = read_host(address)
    if host not in names if names else not is_loopback(host):
        raise RefusedError(
            f"address {address!r} is not of the host that registers it: listen at a name in its certificate"
            if names
            else f"address {address!r} is not of this host, and the node shows no certificate: listen at 127.0.0.1"
        )


def check_name(node: str, names: frozenset[str]) -> None:
    """Check that one of the names in a node's certificate allows its name, which must be `NAME` or `LABEL@NAME`.

    Without names there is no certificate, which is possible within one host only.

    Raises:
        RefusedError: the name is not allowed; the message has the certificate's names.
    """
    if names and node.rpartition("@")[2] not in names:
        raise RefusedError(
            f"node {node!r} shows a certificate for {', '.join(sorted(names))}: take one of these names, or LABEL@NAME"
        )
