"""The service by which nodes register: who may take which name, and what a refusal says."""

from collections.abc import Awaitable, Callable
from typing import Any

from qubic_lab.cluster.registry import HEARTBEAT_S, Registry
from qubic_lab.errors import QubicLabError, RefusedError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import cluster_pb2_grpc
from qubic_lab.wire.channel import peer_names, status_of

Call = Callable[..., Awaitable[Any]]


class RegistryService(cluster_pb2_grpc.RegistryServicer):
    """Lets nodes register and beat; under mutual TLS each under its certificate's names alone.

    Args:
        registry: where they are kept.
        call: runs a blocking function in a thread.
        news: is called when a node has said something: others need not wait for the next look at the registry.
    """

    def __init__(self, registry: Registry, call: Call, news: Callable[[], None]) -> None:
        self._registry, self._call, self._news = registry, call, news

    async def Register(self, request: pb.NodeRegistration, context: Any) -> pb.Registered:
        """Make a node known."""
        session = await self._checked(request.node, context, self._registry.register, request, owner_of(context))
        return pb.Registered(session=session, beat_every_s=HEARTBEAT_S)

    async def Beat(self, request: pb.Heartbeat, context: Any) -> pb.HeartbeatReply:
        """Note that a node lives."""
        await self._checked(request.node, context, self._registry.beat, request.node, request.session, request.state)
        return pb.HeartbeatReply()

    async def Leave(self, request: pb.LeaveRequest, context: Any) -> pb.LeaveReply:
        """Take a node out."""
        await self._checked(request.node, context, self._registry.leave, request.node, request.session)
        return pb.LeaveReply()

    async def _checked(self, node: str, context: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            check_name(node, peer_names(context))
            found = await self._call(function, *arguments)
        except QubicLabError as error:
            await context.abort(status_of(error), str(error))
        self._news()
        return found


def owner_of(context: Any) -> str:
    """Return who the caller has proved to be."""
    return ",".join(sorted(peer_names(context)))


def check_name(node: str, names: frozenset[str]) -> None:
    """Refuse a node that takes a name which its certificate does not give it: `NAME`, or `LABEL@NAME`.

    Args:
        node: the name that it takes.
        names: those in its certificate; empty where there is none, which is so within one host alone.

    Raises:
        RefusedError: names the certificate's.
    """
    if names and node.rpartition("@")[2] not in names:
        raise RefusedError(
            f"node {node!r} shows a certificate for {', '.join(sorted(names))}: take one of these names, or LABEL@NAME"
        )
