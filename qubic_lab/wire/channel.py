"""Common settings of gRPC channels and servers: TLS, keep-alive, and the transport of the project's errors."""

import ipaddress
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from threading import Lock
from typing import Any, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from qubic_lab import errors
from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.settings import settings
from qubic_lab.wire.certificates import ROLE_URI, Pair, check_pair, describe, expiry_warning

_log = logging.getLogger(__name__)

MOST_BYTES = 64 * 2**20
"""Size limit of messages."""
_NEVER = 2**31 - 1

PING_AFTER_MS = 4_000
"""After this time without data a side sends a keep-alive ping, even without a running call, so that no device in
between drops an idle connection, and the loss of a peer is noticed."""
PING_ANSWER_MS = 5_000
"""Time limit for the answer to a ping, which gRPC sends itself even while Python computes."""
_COMMON_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MOST_BYTES),
    ("grpc.keepalive_time_ms", PING_AFTER_MS),
    ("grpc.keepalive_timeout_ms", PING_ANSWER_MS),
    ("grpc.http2.ping_timeout_ms", PING_ANSWER_MS),  # without this line it stays at a minute
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # no limit
)
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *_COMMON_OPTIONS,
    ("grpc.so_reuseport", 0),  # otherwise a second server can bind a used port unnoticed
    ("grpc.http2.min_ping_interval_without_data_ms", PING_AFTER_MS // 2),  # more frequent pings count as an attack
)
CLIENT_OPTIONS: tuple[tuple[str, int], ...] = (
    *_COMMON_OPTIONS,
    ("grpc.client_idle_timeout_ms", _NEVER),  # otherwise an unused channel closes after half an hour
    ("grpc.max_reconnect_backoff_ms", 2_000),  # otherwise a lost peer is retried only every two minutes
    ("grpc.enable_http_proxy", 0),  # an HTTP proxy does not lead to our own hosts
)

_SCHEMES = ("dns", "google-c2p", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")

_STATUS_OF_ERROR: dict[type[QubicLabError], grpc.StatusCode] = {
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ContextError: grpc.StatusCode.OUT_OF_RANGE,
    errors.ModelError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.RefusedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.NonFiniteError: grpc.StatusCode.DATA_LOSS,
    errors.RankError: grpc.StatusCode.ABORTED,
    errors.BusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.RequestCancelled: grpc.StatusCode.CANCELLED,
}
_ERROR_OF_STATUS = {status: error for error, status in _STATUS_OF_ERROR.items()}


Stamp = tuple[tuple[int, int, int] | None, ...]
"""Modification time, size and inode of each file; None if it is missing."""


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of one side of mutual TLS: its certificate, its key, and the authority of the other side's certificate.

    Raises:
        InputError: a file is missing, unreadable or not PEM, or the key belongs to another certificate.
    """

    certificate: Path
    key: Path
    authority: Path

    def __post_init__(self) -> None:
        self.read()

    def stamp(self) -> Stamp:
        """Return a value that changes with the files.

        A channel keeps the files that it was opened with. A long-lived client takes the stamp
        before it opens a channel, and opens a new one when the stamp has changed.
        """
        return tuple(_stamp(getattr(self, field.name)) for field in fields(self))

    def for_client(self) -> grpc.ChannelCredentials:
        """Return a client's credentials from the current files.

        Raises:
            InputError: as for TlsFiles.
        """
        pair, authority = _read_for_use(self)
        return grpc.ssl_channel_credentials(authority, pair.key, pair.certificate)

    def for_server(self) -> grpc.ServerCredentials:
        """Return a server's credentials, which require a certificate of the authority from every client.

        Each handshake uses the current files. While they do not match or are incomplete, the previous ones
        are used, and a warning is logged. gRPC calls Python for that: see GRPC_ENABLE_FORK_SUPPORT in docs/hosts.md.

        Raises:
            InputError: as for TlsFiles.
        """
        files = _ServerFiles(self)
        # The stubs do not know that None is allowed and means no change.
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", files.changed)
        return grpc.dynamic_ssl_server_credentials(files.first, fetch, require_client_authentication=True)

    def read(self) -> tuple[Pair, bytes]:
        """Return the pair and the authority from the current files.

        Raises:
            InputError: as for TlsFiles; gRPC itself would only report a failed handshake.
        """
        content = {}
        for field in fields(self):
            path = getattr(self, field.name)
            try:
                content[field.name] = path.read_bytes()
            except OSError as error:
                raise InputError(f"TLS {field.name} {path} cannot be read: give a PEM file") from error
        pair = Pair(content["certificate"], content["key"])
        try:
            check_pair(pair)
        except InputError as error:
            raise InputError(
                f"{self.certificate} and {self.key} are not a certificate and its unencrypted key ({error}): "
                "give the pair of PEM files that was made together"
            ) from error
        try:
            describe(content["authority"])
        except InputError as error:
            raise InputError(f"TLS authority {self.authority} is not a certificate: give a PEM file") from error
        return pair, content["authority"]


def _read_for_use(files: TlsFiles) -> tuple[Pair, bytes]:
    """Return the files' content; certificates that expire soon are logged."""
    pair, authority = files.read()
    for path, pem in ((files.certificate, pair.certificate), (files.authority, authority)):
        warning = expiry_warning(describe(pem), datetime.now(UTC))
        if warning is not None:
            _log.warning("%s: %s", path, warning)
    return pair, authority


class _ServerFiles:
    """The files that a listening server uses: the last ones that matched; `first` are the initial ones."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = Lock()  # gRPC calls from its own threads
        self._used = files.stamp()  # before reading, so that later changes are read again
        self._refused: Stamp | None = None
        self.first = self._configuration()

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the files' content if it has changed and is valid, else None."""
        with self._lock:
            stamp = self._files.stamp()
            if stamp == self._used:
                return None
            try:
                configuration = self._configuration()
            except InputError as error:
                # Retried with each handshake, because the stamp may not show why the files were unreadable.
                if stamp != self._refused:
                    _log.warning("TLS continues with the previous files: %s", error)
                    self._refused = stamp
                return None
            _log.info("TLS uses new files: %s", self._files.certificate)
            self._used = stamp
            return configuration

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        pair, authority = _read_for_use(self._files)
        return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], authority)


def tls_from_settings() -> TlsFiles | None:
    """Return the files that QUBIC_LAB_TLS_CERTIFICATE, _KEY and _AUTHORITY name, or None if none is set.

    Raises:
        InputError: only some of them are set, or as for TlsFiles.
    """
    named = {name: getattr(settings(), f"tls_{name}") for name in ("certificate", "key", "authority")}
    missing = [f"QUBIC_LAB_TLS_{name.upper()}" for name, path in named.items() if path is None]
    if len(missing) == len(named):
        return None
    if missing:
        raise InputError(f"mutual TLS needs three files: set {' and '.join(missing)} too")
    return TlsFiles(**named)


def certificate_ends_s() -> int:
    """Return when the certificate of the settings expires, in seconds since 1970; 0 without one that can be read."""
    try:
        tls = tls_from_settings()
        return 0 if tls is None else int(describe(tls.certificate.read_bytes()).valid_to_utc.timestamp())
    except (InputError, OSError):  # it is just being renewed
        return 0


def open_channel(address: str, tls: TlsFiles | None = None) -> grpc.Channel:
    """Open a channel to `unix:PATH` or `HOST:PORT`; it connects with the first call.

    With TLS the server's certificate must be for this host name or address. The files are by default those of the
    settings, except for unix sockets.

    Raises:
        InputError: the address is malformed, or is of another host and there is no TLS.
    """
    tls = required_tls(address, tls)
    if tls is None:
        return grpc.insecure_channel(address, options=CLIENT_OPTIONS)
    return grpc.secure_channel(address, tls.for_client(), options=CLIENT_OPTIONS)


def open_async_channel(
    address: str, tls: TlsFiles | None = None, interceptors: Sequence[grpc.aio.ClientInterceptor] = ()
) -> grpc.aio.Channel:
    """Open a channel for an event loop, with interceptors of its calls; the rest as for open_channel."""
    tls = required_tls(address, tls)
    if tls is None:
        return grpc.aio.insecure_channel(address, options=CLIENT_OPTIONS, interceptors=interceptors)
    return grpc.aio.secure_channel(address, tls.for_client(), options=CLIENT_OPTIONS, interceptors=interceptors)


def listen(server: grpc.Server | grpc.aio.Server, address: str, tls: TlsFiles | None = None) -> int:
    """Let a server made with SERVER_OPTIONS listen at an address and return the port (chosen by the system for port 0).

    The server is not started yet. With TLS each client needs a certificate of the authority, and renewed files are used
    from the next handshake on.

    Raises:
        InputError: as for open_channel; or the port is in use, or the address is not this host's, or its certificate is
            only a client's.
    """
    tls = required_tls(address, tls)
    if tls is not None and not describe(tls.certificate.read_bytes()).may_serve:
        raise InputError(
            f"{tls.certificate} is a client's certificate and cannot serve at {address}: make one with "
            "`qubic-lab certs make … --role node`, or `--role coordinator`"
        )
    # `localhost` has two addresses, and gRPC succeeds if one of them is free.
    address = re.sub(r"^localhost:", "127.0.0.1:", address)
    try:
        if tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, tls.for_server())
    except RuntimeError as error:
        raise InputError(
            f"cannot listen at {address}: another process uses it, or it is not an address of this host; give another"
        ) from error


def peer_names(context: grpc.ServicerContext | grpc.aio.ServicerContext[Any, Any]) -> frozenset[str]:
    """Return the host names and IP addresses in a caller's certificate; none without TLS.

    Its common name counts only if it has no other names, because it may be the same for all hosts.
    """
    shown = context.auth_context()  # its `x509_subject_alternative_name` includes mail addresses and URIs

    def values(*keys: str) -> frozenset[str]:
        return frozenset(name.decode() for key in keys for name in shown.get(key, ()) if isinstance(name, bytes))

    return values("peer_dns", "peer_ip") or values("x509_common_name")


def peer_roles(context: grpc.ServicerContext | grpc.aio.ServicerContext[Any, Any]) -> frozenset[str] | None:
    """Return the roles in a caller's certificate; None without TLS."""
    shown = context.auth_context()
    if shown.get("transport_security_type", [b"insecure"]) == [b"insecure"]:
        return None
    uris = [uri.decode() for uri in shown.get("peer_uri", ()) if isinstance(uri, bytes)]
    return frozenset(uri.removeprefix(ROLE_URI) for uri in uris if uri.startswith(ROLE_URI))


class RefuseMalformed(grpc.ServerInterceptor):
    """Answers malformed messages with INVALID_ARGUMENT; otherwise they would count as internal errors."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "grpc.RpcMethodHandler[Any, Any] | None"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the method's handler with a check before it; all methods take one message."""
        handler = continuation(handler_call_details)
        if handler is None:  # no such method: gRPC answers UNIMPLEMENTED
            return None
        parse = handler.request_deserializer
        assert parse is not None

        def try_parse(content: bytes) -> Any:
            try:
                return parse(content)
            except DecodeError as error:
                return error

        def checked(answer: Any) -> Any:
            @wraps(answer)  # keeps attributes: the health service's Watch is marked as not blocking
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
    """Return the status code of an error; its message is sent as the details."""
    return _STATUS_OF_ERROR.get(type(error), grpc.StatusCode.INTERNAL)


def error_of(error: grpc.RpcError) -> QubicLabError:
    """Return the project's error for a failed call, with the server's message."""
    return _ERROR_OF_STATUS.get(error.code(), QubicLabError)(error.details())


def error_of_number(status: int, text: str) -> QubicLabError:
    """Return the project's error for the number of a status and a message."""
    return next((error for code, error in _ERROR_OF_STATUS.items() if code.value[0] == status), QubicLabError)(text)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def required_tls(address: str, tls: TlsFiles | None) -> TlsFiles | None:
    """Return the TLS files for an address: given ones, those of the settings, or None if only this host reaches it.

    Raises:
        InputError: as for open_channel.
    """
    if address.startswith("unix:"):
        return tls
    host = read_host(address, ", or unix:PATH")
    tls = tls or tls_from_settings()
    if tls is None and not is_loopback(host):
        raise InputError(
            f"{address} is not on this host, which requires mutual TLS: set QUBIC_LAB_TLS_CERTIFICATE, "
            "QUBIC_LAB_TLS_KEY and QUBIC_LAB_TLS_AUTHORITY (`qubic-lab certs make` makes the files)"
        )
    return tls


def read_host(address: str, or_else: str = "") -> str:
    """Return the host of `HOST:PORT`; an InputError, with what else can be given, if the address is malformed."""
    match = re.fullmatch(r"([\w.-]+|\[[\w:.%]+\]):(\d{1,5})", address)
    # Before a colon gRPC would take the name of a scheme for that scheme: `unix-abstract:80` is a socket.
    if match is None or int(match[2]) > 65535 or match[1] in _SCHEMES:
        raise InputError(f"address {address!r} is not understood: give HOST:PORT, as in 127.0.0.1:7700{or_else}")
    return match[1].strip("[]")


def with_port(address: str, port: int) -> str:
    """Return an address or URL with the `port` that was taken, if it asked for a free one by port 0."""
    return f"{address[:-1]}{port}" if address.endswith(":0") else address


def is_loopback(host: str) -> bool:
    """Return whether a name or address is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
