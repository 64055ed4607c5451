"""Who takes part in a cluster: roles in certificates, and proofs of the token that its members share.

With TLS a method is only for callers whose certificate states one of its roles, as a URI among the alternative names
(RFC 5280, 4.2.1.6). With a node token each call proves that the caller knows it, and each answer that the server does.
The token itself is never sent: on loopback another process may have taken the port of a member that has ended. A proof
is an HMAC-SHA256 over direction, method, the called address, a nonce and, of a call, the request.
"""

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from qubic_lab.errors import InputError, RefusedError
from qubic_lab.settings import settings
from qubic_lab.wire.certificates import Role, describe
from qubic_lab.wire.channel import (
    TlsFiles,
    listen,
    open_async_channel,
    peer_names,
    peer_roles,
    required_tls,
    status_of,
)

LEAST_CHARACTERS = 32
"""Of a node token: a shorter one could be guessed from a proof."""
END_S = 1.0
"""How long the end of a call without a proof is awaited, which says whether anybody answered."""
_REGISTRY, _NODE = "/qubic_lab.cluster.v1.Registry/", "/qubic_lab.cluster.v1.Node/"
_CALLERS: dict[str, tuple[Role, ...]] = {
    f"{_REGISTRY}Register": ("node",),
    f"{_REGISTRY}Beat": ("node",),
    f"{_REGISTRY}Leave": ("node",),
    f"{_NODE}Run": ("coordinator",),
    f"{_NODE}MeasureLinks": ("coordinator",),
    f"{_NODE}OpenMeter": ("node",),
    f"{_NODE}Echo": ("coordinator", "node"),
}
_FOR_ALL = "/grpc.health.v1.Health/"
_PROOF, _NONCE, _ADDRESS = "qubic-lab-proof", "qubic-lab-nonce", "qubic-lab-address"
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


def new_node_token() -> str:
    """Return a new random node token."""
    return secrets.token_urlsafe(LEAST_CHARACTERS)


def node_token() -> bytes | None:
    """Return QUBIC_LAB_NODE_TOKEN, or None if it is not set; an InputError if it is too short."""
    secret = settings().node_token
    token = secret.get_secret_value().encode() if secret is not None else None
    if token is not None and len(token) < LEAST_CHARACTERS:
        raise InputError(
            f"QUBIC_LAB_NODE_TOKEN has {len(token)} characters: give at least {LEAST_CHARACTERS}, such as "
            "`qubic-lab token new` prints"
        )
    return token


def open_member_channel(address: str, tls: TlsFiles | None = None) -> grpc.aio.Channel:
    """Open a channel to a coordinator or node; arguments as for `channel.open_channel`.

    With a node token an answer without its proof is an error, UNAUTHENTICATED.

    Raises:
        InputError: as for `channel.open_channel` and `node_token`.
    """
    token = node_token()
    provers = () if token is None else (_UnaryProver(token, address), _StreamProver(token, address))
    return open_async_channel(address, tls, provers)


def listen_as(role: Role, server: grpc.aio.Server, address: str, tls: TlsFiles | None = None) -> int:
    """Let a server with a `MemberGuard` listen; arguments and result as for `channel.listen`.

    Raises:
        InputError: as for `channel.listen`; or this host's certificate does not have the role; or HTTP clients need
            tokens, but any process of this host could call as a member.
    """
    tls = required_tls(address, tls)
    if tls is not None:
        info = describe(tls.certificate.read_bytes())
        if role not in info.roles:
            raise InputError(_lacks_role(str(tls.certificate), info.roles, (role,)))
    elif settings().api_tokens is not None and node_token() is None and not address.startswith("unix:"):
        raise InputError(
            f"QUBIC_LAB_API_TOKENS is set, but any process of this host could call {address}: set QUBIC_LAB_NODE_TOKEN "
            "for coordinators and nodes, to what `qubic-lab token new` prints"
        )
    return listen(server, address, tls)


class MemberGuard(grpc.aio.ServerInterceptor):
    """Refuses calls of others than members, and proves the node token with each answer.

    Where `address` is set, calls must have been meant for this address, so that nobody can pass them on.

    Raises:
        InputError: as for `node_token`.
    """

    def __init__(self) -> None:
        self._token = node_token()
        self.address = ""

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Return the method's handler with a check before it."""
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method: gRPC answers UNIMPLEMENTED
            return None
        method, shown = str(handler_call_details.method), dict(handler_call_details.invocation_metadata or ())

        def checked(answer: Any) -> Any:
            async def check_first(request: Message, context: Any) -> Any:
                try:
                    self._check(method, shown, request, context)
                except RefusedError as error:
                    await context.abort(status_of(error), str(error))
                if self._token is not None and not method.startswith(_FOR_ALL):
                    proof = _proof(self._token, "answer", method, shown.get(_ADDRESS), shown.get(_NONCE))
                    await context.send_initial_metadata(((_PROOF, proof),))
                return await answer(request, context)

            return check_first

        kinds = (handler.request_deserializer, handler.response_serializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(checked(handler.unary_stream), *kinds)
        return grpc.unary_unary_rpc_method_handler(checked(handler.unary_unary), *kinds)

    def _check(self, method: str, shown: dict[str, Any], request: Message, context: Any) -> None:
        if method.startswith(_FOR_ALL):
            return
        callers, roles = _CALLERS.get(method, ()), peer_roles(context)
        if roles is not None and roles.isdisjoint(callers):
            raise RefusedError(_lacks_role(", ".join(sorted(peer_names(context))), sorted(roles), callers))
        if self._token is None:
            return
        if not _same(shown.get(_PROOF), _proof_of_call(self._token, method, shown, request)):
            raise RefusedError(
                "the call does not prove the node token: set QUBIC_LAB_NODE_TOKEN to that of the coordinators"
            )
        if self.address and shown.get(_ADDRESS) != self.address:
            raise RefusedError(f"the call was meant for {shown.get(_ADDRESS)}, and this is {self.address}")


class _Prover:
    """Proves the node token with each call, and checks the proof of each answer."""

    def __init__(self, token: bytes, address: str) -> None:
        self._token, self._address = token, address

    async def _prove(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        method = details.method.decode()
        if method.startswith(_FOR_ALL):
            return await continuation(details, request)
        shown = {_ADDRESS: self._address, _NONCE: secrets.token_hex(16)}
        shown[_PROOF] = _proof_of_call(self._token, method, shown, request)
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *shown.items())
        call = await continuation(details._replace(metadata=metadata), request)
        answered = dict(await call.initial_metadata())
        expected = _proof(self._token, "answer", method, self._address, shown[_NONCE])
        if _same(answered.get(_PROOF), expected):
            return call
        with suppress(TimeoutError):  # the end of a stream comes only after its messages
            async with asyncio.timeout(END_S):
                if await call.code() in _NO_ANSWER:
                    return call
        call.cancel()
        why = f"{self._address} does not prove the node token: set QUBIC_LAB_NODE_TOKEN to the same for all members"
        nothing = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAUTHENTICATED, nothing, nothing, details=why)


class _UnaryProver(_Prover, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Send the call with a proof."""
        return await self._prove(continuation, client_call_details, request)


class _StreamProver(_Prover, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Send the call with a proof."""
        return await self._prove(continuation, client_call_details, request)


def _proof_of_call(token: bytes, method: str, shown: dict[str, Any], request: Message) -> str:
    digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
    return _proof(token, "call", method, shown.get(_ADDRESS), shown.get(_NONCE), digest)


def _proof(token: bytes, *parts: Any) -> str:
    return hmac.new(token, "\0".join(map(str, parts)).encode(), "sha256").hexdigest()


def _same(shown: Any, expected: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(str(shown).encode(), expected.encode())


def _lacks_role(whose: str, has: Sequence[str], needed: Sequence[Role]) -> str:
    """Return the message on a certificate without one of the needed roles."""
    roles = f"the role {', '.join(has)}" if has else "no role"
    return (
        f"the certificate of {whose} has {roles}, and this is for a {' or '.join(needed)}: give it that role with "
        f"`qubic-lab certs renew FOLDER NAME --role {needed[0]}`, and copy the new NAME.pem there"
    )
