"""Settings of every gRPC channel and server: who may connect, what stays alive, how the project's errors travel."""

import ipaddress
import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from qubic_lab.errors import (
    BusyError,
    DeadlineError,
    InputError,
    ModelError,
    NonFiniteError,
    QubicLabError,
    RankError,
    RequestCancelled,
)
from qubic_lab.settings import settings

MOST_BYTES = 64 * 2**20
"""The largest message that either side takes."""
_NEVER = 2**31 - 1

PING_AFTER_MS = 4_000
"""A side that has heard nothing for so long asks for a sign of life, whether or not a call runs: so nothing between the
two forgets an idle connection, and a peer that has vanished is noticed."""
PING_ANSWER_MS = 5_000
"""So long may the answer take; gRPC gives it itself, even while Python computes."""
_COMMON_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MOST_BYTES),
    ("grpc.keepalive_time_ms", PING_AFTER_MS),
    ("grpc.keepalive_timeout_ms", PING_ANSWER_MS),
    ("grpc.http2.ping_timeout_ms", PING_ANSWER_MS),  # the line above alone leaves it at a minute
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # as many as it takes
)
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *_COMMON_OPTIONS,
    ("grpc.so_reuseport", 0),  # without it a second server binds a used port without a word
    ("grpc.http2.min_ping_interval_without_data_ms", PING_AFTER_MS // 2),  # more often counts as an attack
)
CLIENT_OPTIONS: tuple[tuple[str, int], ...] = (
    *_COMMON_OPTIONS,
    ("grpc.client_idle_timeout_ms", _NEVER),  # else an unused channel hangs up after half an hour
    ("grpc.enable_http_proxy", 0),  # a proxy set for the web does not lead to our own hosts
)

_STATUS_OF_ERROR: dict[type[QubicLabError], grpc.StatusCode] = {
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    ModelError: grpc.StatusCode.FAILED_PRECONDITION,
    NonFiniteError: grpc.StatusCode.DATA_LOSS,
    RankError: grpc.StatusCode.ABORTED,
    BusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    RequestCancelled: grpc.StatusCode.CANCELLED,
}
_ERROR_OF_STATUS = {status: error for error, status in _STATUS_OF_ERROR.items()}


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of one side of mutual TLS: its certificate, the key to it, the authority that signed the other side's.

    Raises:
        InputError: a file is missing or unreadable, is no PEM file, or the key is another certificate's.
    """

    certificate: Path
    key: Path
    authority: Path

    def __post_init__(self) -> None:
        for field in fields(self):
            path = getattr(self, field.name)
            if not (path.is_file() and os.access(path, os.R_OK)):
                raise InputError(f"TLS {field.name} {path} is no file that can be read: give a PEM file")
        # gRPC would say no more than that a handshake failed.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_cert_chain(self.certificate, self.key, password="")
        except ssl.SSLError as error:
            raise InputError(
                f"{self.certificate} and {self.key} are no certificate and its unencrypted key ({error.reason}): "
                "give the pair of PEM files that was made together"
            ) from error
        try:
            context.load_verify_locations(self.authority)
        except ssl.SSLError as error:
            raise InputError(f"TLS authority {self.authority} is no certificate: give a PEM file") from error

    def for_client(self) -> grpc.ChannelCredentials:
        """Return what a client shows and whom it believes."""
        return grpc.ssl_channel_credentials(
            self.authority.read_bytes(), self.key.read_bytes(), self.certificate.read_bytes()
        )

    def for_server(self) -> grpc.ServerCredentials:
        """Return what a server shows and asks of every client: a certificate by the authority."""
        pair = (self.key.read_bytes(), self.certificate.read_bytes())
        return grpc.ssl_server_credentials([pair], self.authority.read_bytes(), require_client_auth=True)


def tls_from_settings() -> TlsFiles | None:
    """Return the files that QUBIC_LAB_TLS_CERTIFICATE, _KEY and _AUTHORITY name; None where none is set.

    Raises:
        InputError: only some of them are set, or as TlsFiles.
    """
    named = {name: getattr(settings(), f"tls_{name}") for name in ("certificate", "key", "authority")}
    missing = [f"QUBIC_LAB_TLS_{name.upper()}" for name, path in named.items() if path is None]
    if len(missing) == len(named):
        return None
    if missing:
        raise InputError(f"mutual TLS takes three files: set {' and '.join(missing)} too")
    return TlsFiles(**named)


def open_channel(address: str, tls: TlsFiles | None = None) -> grpc.Channel:
    """Open a channel to `unix:PATH` or `HOST:PORT`; whether anybody is there shows with the first call.

    Args:
        address: where the server listens; under TLS its certificate must be for this very host name or address.
        tls: files for mutual TLS; by default, but for a unix socket, those of the settings.

    Raises:
        InputError: the address is malformed, or of another host and there is no TLS.
    """
    tls = _required_tls(address, tls)
    if tls is None:
        return grpc.insecure_channel(address, options=CLIENT_OPTIONS)
    return grpc.secure_channel(address, tls.for_client(), options=CLIENT_OPTIONS)


def open_async_channel(address: str, tls: TlsFiles | None = None) -> grpc.aio.Channel:
    """Open a channel for an event loop; arguments and errors as of open_channel."""
    tls = _required_tls(address, tls)
    if tls is None:
        return grpc.aio.insecure_channel(address, options=CLIENT_OPTIONS)
    return grpc.aio.secure_channel(address, tls.for_client(), options=CLIENT_OPTIONS)


def listen(server: grpc.Server, address: str, tls: TlsFiles | None = None) -> int:
    """Let a server made with SERVER_OPTIONS listen at an address and return the port (chosen by the system for port 0).

    Args:
        server: not started yet.
        address: as in open_channel.
        tls: as in open_channel; each client must show a certificate by the authority.

    Raises:
        InputError: as open_channel; or the port is used, or the address is not this host's.
    """
    tls = _required_tls(address, tls)
    # `localhost` are two addresses, and gRPC is content when one of them is free.
    address = re.sub(r"^localhost:", "127.0.0.1:", address)
    try:
        if tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, tls.for_server())
    except RuntimeError as error:
        raise InputError(
            f"cannot listen at {address}: another process holds it, or it is no address of this host; give another"
        ) from error


class RefuseMalformed(grpc.ServerInterceptor):
    """Answers bytes that are no message of the method with INVALID_ARGUMENT; without it they count as a fault here."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "grpc.RpcMethodHandler[Any, Any] | None"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the method's handler with a check before it; all methods here take one message."""
        handler = continuation(handler_call_details)
        if handler is None:  # no such method: gRPC says UNIMPLEMENTED
            return None
        parse = handler.request_deserializer
        assert parse is not None

        def try_parse(content: bytes) -> Any:
            try:
                return parse(content)
            except DecodeError as error:
                return error

        def checked(answer: Any) -> Any:
            @wraps(answer)  # with its marks: the health service's Watch is one that does not block
            def check_first(message: Any, context: grpc.ServicerContext, *rest: Any) -> Any:
                if isinstance(message, DecodeError):
                    name = handler_call_details.method
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the bytes are no message for {name}")
                return answer(message, context, *rest)

            return check_first

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                checked(handler.unary_stream), try_parse, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(checked(handler.unary_unary), try_parse, handler.response_serializer)


def status_of(error: QubicLabError) -> grpc.StatusCode:
    """Return the status that carries an error; its message travels as the details."""
    return _STATUS_OF_ERROR.get(type(error), grpc.StatusCode.INTERNAL)


def error_of(error: grpc.RpcError) -> QubicLabError:
    """Return the project's error for a failed call, with the server's message."""
    return _ERROR_OF_STATUS.get(error.code(), QubicLabError)(error.details())


def _required_tls(address: str, tls: TlsFiles | None) -> TlsFiles | None:
    """Return the TLS files to use at an address: given, or of the settings, or None where nobody else can reach it."""
    if address.startswith("unix:"):
        return tls
    host = _host(address)
    tls = tls or tls_from_settings()
    if tls is None and not _is_loopback(host):
        raise InputError(
            f"{address} is beyond this host, where only mutual TLS is spoken: set QUBIC_LAB_TLS_CERTIFICATE, "
            "QUBIC_LAB_TLS_KEY and QUBIC_LAB_TLS_AUTHORITY (launch/certificates.sh makes the files)"
        )
    return tls


def _host(address: str) -> str:
    match = re.fullmatch(r"([\w.-]+|\[[\w:.%]+\]):(\d{1,5})", address)
    if match is None or int(match[2]) > 65535:
        raise InputError(f"address {address!r} is not understood: give HOST:PORT, as in 127.0.0.1:7700, or unix:PATH")
    return match[1].strip("[]")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
