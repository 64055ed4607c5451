"""Run the fake on loopback: in this process until SIGTERM, or in a thread for tests."""

import asyncio
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from fake_source.app import PREFIXES, FakeApp, FakeConfig
from fake_source.feeds import NAMES
from fake_source.ledger import Ledger
from fake_source.world import WRITTEN_OF
from qubic_lab.oracle.model.timestamps import iso

HOST = "127.0.0.1"
TIMEOUT_S = 2.0
"""How long the collector waits for a hanging reply: far longer than a slow one takes, but no trial should wait long."""


def _registering(transports: dict[tuple[str, int], asyncio.Transport]) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol that also keeps its connections by their client's address."""

    class Registered(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            transports[transport.get_extra_info("peername")[:2]] = transport
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            if self.client is not None:
                transports.pop(self.client, None)
            super().connection_lost(exc)

    return Registered


class FakeServer(uvicorn.Server):
    """The fake on any free port of loopback; `serve_now` serves until a signal or `should_exit`."""

    def __init__(self, config: FakeConfig, ledger: Ledger) -> None:
        self.ledger = ledger
        self._transports: dict[tuple[str, int], asyncio.Transport] = {}
        self._listening = socket.create_server((HOST, 0))
        self.url = f"http://{HOST}:{self._listening.getsockname()[1]}"
        super().__init__(
            uvicorn.Config(
                FakeApp(config, ledger, self._close),
                http=_registering(self._transports),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                timeout_graceful_shutdown=1,
            )
        )

    def _close(self, scope: Scope, reset: bool) -> None:
        """Close a request's connection; `reset`: by RST, so that what was sent may be lost."""
        transport = self._transports.get(tuple(scope["client"]))
        if transport is not None and reset:
            linger = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.abort()
        elif transport is not None:
            transport.close()

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
        with self._listening:
            asyncio.run(self.serve(sockets=[self._listening]))
        self.ledger.close()


@contextmanager
def running_source(config: FakeConfig | None = None, file: Path | None = None) -> Iterator[FakeServer]:
    """Yield a fake source that runs in a thread of this process, and end it afterwards."""
    server = FakeServer(config or FakeConfig(), Ledger(file))
    thread = threading.Thread(target=server.serve_now)
    thread.start()
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


def collector_settings(config: FakeConfig, url: str) -> dict[str, Any]:
    """Return the collector's settings file for the fake: addresses, limits, and a fast clock if any."""
    limits = {"rate": config.per_s, "window_s": 1.0, "timeout_s": TIMEOUT_S, "attempts": 6}
    if config.per_s <= 5:
        limits["burst"] = 1  # some sources allow five at once by default
    sources: dict[str, Any] = {name: {"base_url": f"{url}/{prefix}", **limits} for name, prefix in PREFIXES.items()}
    settings: dict[str, Any] = {
        "coins": list(WRITTEN_OF),
        "sources": sources | {"feeds": dict(limits)},
        "feeds": [{"name": name, "url": f"{url}/feeds/{name}.{name.rpartition('-')[2]}"} for name in NAMES],
        "backfill_days": 30,
    }
    if config.clock.speed != 1.0:
        settings |= {"time_scale": 1.0 / config.clock.speed, "time_origin": iso(config.clock.origin_us)}
    return settings
