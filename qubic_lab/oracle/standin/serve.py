"""Run the stand-in on loopback until SIGTERM."""

import asyncio
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from qubic_lab.errors import InputError, check_range
from qubic_lab.oracle.standin.app import Standin, StandinConfig
from qubic_lab.oracle.standin.ledger import Ledger

HOST = "127.0.0.1"
STOP_S = 1


class _Connections:
    """The open connections, by their client's address, which uvicorn itself does not tell the application."""

    def __init__(self) -> None:
        self._transports: dict[tuple[str, int], asyncio.Transport] = {}

    def protocol(self) -> type[H11Protocol]:
        """Return what uvicorn shall speak with each client: HTTP, and the connection is noted."""
        transports = self._transports

        class Noted(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                transports[transport.get_extra_info("peername")[:2]] = transport
                super().connection_made(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                if self.client is not None:
                    transports.pop(self.client, None)
                super().connection_lost(exc)

        return Noted

    def close(self, scope: Scope, reset: bool) -> None:
        """Close a request's connection; with `reset` without a goodbye, and what was sent may be lost."""
        transport = self._transports.get(tuple(scope["client"]))
        if transport is None:
            return
        if reset:
            linger = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.abort()
        else:
            transport.close()


class StandinServer(uvicorn.Server):
    """The stand-in on a socket that is bound to loopback; `run` serves until a signal or `should_exit`."""

    def __init__(self, config: StandinConfig, ledger: Ledger, listening: socket.socket) -> None:
        connections = _Connections()
        self.url = f"http://{HOST}:{listening.getsockname()[1]}"
        self._listening = listening
        super().__init__(
            uvicorn.Config(
                Standin(config, ledger, connections.close),
                http=connections.protocol(),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=STOP_S,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT end it and return, which uvicorn's own would not; only a main thread gets them."""
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    def serve_now(self) -> None:
        """Serve until it is told to end."""
        asyncio.run(self.serve(sockets=[self._listening]))


def listen(port: int = 0) -> socket.socket:
    """Return a socket that clients on this host can connect to from now on; 0: at any free port.

    Raises:
        InputError: the port is none, or is used.
    """
    check_range("port", port, 0, 65_535)
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise InputError(f"cannot listen at {HOST}:{port} ({error.strerror}): give another --port") from error
    return listening


def serve_standin(config: StandinConfig, port: int, file: Path | None, ready: Callable[[str], None]) -> Ledger:
    """Serve until SIGTERM or SIGINT, and return the ledger.

    Args:
        config: what it does.
        port: 0: any that is free.
        file: where the ledger is kept, too.
        ready: called with the URL once clients can connect.

    Raises:
        InputError: it cannot listen at the port, or not write the file.
    """
    with listen(port) as listening:
        try:
            ledger = Ledger(file)
        except OSError as error:
            raise InputError(f"ledger {file} cannot be written ({error.strerror}): give another --ledger") from error
        try:
            server = StandinServer(config, ledger, listening)
            ready(server.url)
            server.serve_now()
        finally:
            ledger.close()
    return ledger
