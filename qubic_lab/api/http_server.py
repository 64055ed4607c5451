"""A server process: where it listens, who may call, bounded connections, renewed certificates, and its end."""

import asyncio
import logging
import resource
import signal
import socket
import ssl
import sys
import time
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from limits.strategies import MovingWindowRateLimiter
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from qubic_lab import __version__
from qubic_lab.api import document, problems
from qubic_lab.api.access import (
    ApiToken,
    AuthMiddleware,
    BodyLimitMiddleware,
    BrowserGuardMiddleware,
    TokenFile,
    hash_token,
    read_origins,
)
from qubic_lab.api.bounded_http import MOST_CONNECTIONS, QUEUE, BoundedProtocol, listen_at, say_ending
from qubic_lab.api.http_metrics import HttpMetrics, MetricsMiddleware
from qubic_lab.api.request_id import HEADER, RequestIdMiddleware
from qubic_lab.api.shedding import SheddingMiddleware
from qubic_lab.errors import InputError
from qubic_lab.lifeline import CTRL_C_S
from qubic_lab.settings import settings
from qubic_lab.wire.channel import TlsFiles, is_loopback, read_host, with_port

RELOAD_S = 1.0
"""Interval of the check for renewed certificate files."""
SWITCH_S = 0.0005
"""Longest wait of a thread with an answer from Redis for the busy event loop; Python's default is 5 ms."""
STOP_S = 60
"""How long a server that ends goes on with the requests that it has, as nodes do."""
OTHER_FILES = 1_000
"""Open files of a coordinator apart from its clients: nodes, Redis, databases, worker processes."""
TLS_BUFFER_BYTES = 2**14
"""A record of TLS has no more; asyncio reserves 16 times as much for each connection."""
SELDOM_S = 10.0

TOKENS = "QUBIC_LAB_API_TOKENS (make the file with qubic-lab token add NAME)"
KEY = "QUBIC_LAB_API_KEY"
FEWEST_KEY_CHARACTERS = 16
"""Of a key, where others than this host can try keys."""

logger = logging.getLogger(__name__)
Accesses = Callable[[], list[ApiToken]]


@dataclass(frozen=True)
class ServeConfig:
    """Where a server listens, and who may call.

    Attributes:
        listen: HOST:PORT of the HTTP interface.
        tokens: the token file; without it and without a key everybody may call, only on loopback.
        tls: the host's certificate for HTTPS; None: plain HTTP, only on loopback.
        key: a key that any client may send; a token of the file is as good.
        guard: the variable that says who may call, for the error message.

    Raises:
        InputError: it listens beyond loopback without tokens or certificate, or with a short key; says what to set.
    """

    listen: str
    tokens: Path | None = None
    tls: TlsFiles | None = None
    key: str = field(default="", repr=False)
    guard: str = TOKENS

    def __post_init__(self) -> None:
        if is_loopback(self.host):
            return
        missing = []
        if self.tokens is None and not self.key:
            missing.append(self.guard)
        if self.tls is None:
            missing.append(
                "QUBIC_LAB_TLS_CERTIFICATE, QUBIC_LAB_TLS_KEY and QUBIC_LAB_TLS_AUTHORITY (make the files with "
                "qubic-lab certs make … --role coordinator)"
            )
        if missing:
            raise InputError(f"{self.listen} is not on this host: set {' and '.join(missing)}")
        if self.key and len(self.key) < FEWEST_KEY_CHARACTERS:
            raise InputError(
                f"{self.guard} has {len(self.key)} characters, and {self.listen} is not on this host: "
                f"give at least {FEWEST_KEY_CHARACTERS} (qubic-lab token new prints one)"
            )

    @property
    def host(self) -> str:
        """The host part of `listen`."""
        return read_host(self.listen)

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"{'https' if self.tls else 'http'}://{self.listen}"

    @property
    def port(self) -> int:
        """The port part of `listen`."""
        return int(self.listen.rpartition(":")[2])

    def accesses(self) -> Accesses | None:
        """Return the function that returns who may call; None: everybody.

        Raises:
            InputError: the token file cannot be read.
        """
        known = [ApiToken("key", hash_token(self.key))] if self.key else []
        if self.tokens is not None:
            file = TokenFile(self.tokens)
            return lambda: [*known, *file()]
        return (lambda: known) if known else None


def new_app() -> FastAPI:
    """Return an application without routes, with our errors and our description of the interface."""
    app = FastAPI(title="Qubic Lab", version=__version__, responses=problems.RESPONSES, docs_url=None, redoc_url=None)
    problems.install(app)
    document.install(app)
    return app


def guard(
    app: FastAPI, metrics: HttpMetrics, accesses: Accesses | None, limiter: MovingWindowRateLimiter | None = None
) -> None:
    """Put an application behind its limits: bodies, who may call and how often, foreign pages; count and name requests.

    Without `accesses` everybody may call, only for loopback; without a limiter, as often as they like.
    """
    # The last one added is the outermost.
    app.add_middleware(_HeadAsGet)
    app.add_middleware(BodyLimitMiddleware)
    if accesses is not None:
        app.add_middleware(AuthMiddleware, accesses=accesses, limiter=limiter)
    origins = read_origins(settings().browser_origins)
    app.add_middleware(BrowserGuardMiddleware, any_host=accesses is not None, origins=origins)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Retry-After", HEADER],
        )
    app.add_middleware(SheddingMiddleware)
    app.state.refused = metrics.requests.labels("none", 503).inc
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    app.add_middleware(RequestIdMiddleware)


class _HeadAsGet:
    """Answers HEAD as GET; uvicorn leaves out the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_head = scope["type"] == "http" and scope["method"] == "HEAD"
        await self._app({**scope, "method": "GET"} if is_head else scope, receive, send)


def run_server(
    config: ServeConfig, app: FastAPI, working: AbstractAsyncContextManager[object], listening: Callable[[str], None]
) -> None:
    """Serve while `working` is entered, until SIGTERM or SIGINT.

    The address is taken before `working` begins. Calls `listening` with the URL for clients once they can connect.

    Raises:
        InputError: the address is in use; errors of `working`.
    """
    certificate = {"ssl_certfile": config.tls.certificate, "ssl_keyfile": config.tls.key} if config.tls else {}
    options = server_options(app, **certificate)
    options.load()
    # Those that are refused or ended to make room are closed a moment later, when more may have been accepted.
    allow_files(MOST_CONNECTIONS + 3 * QUEUE + OTHER_FILES)
    for name in ("asyncio", "uvicorn.error"):
        logging.getLogger(name).addFilter(Seldom())
    SSLProtocol.max_size = TLS_BUFFER_BYTES  # of each connection, from its first byte on
    sys.setswitchinterval(SWITCH_S)
    refused = None if config.tls else app.state.refused
    asyncio.run(_serve(config, options, refused, working, listening))


def server_options(app: FastAPI, **more: Any) -> uvicorn.Config:
    """Return the options of a server whose connections are bounded."""
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=QUEUE,
        timeout_graceful_shutdown=STOP_S,
        **more,
    )


def allow_files(count: int) -> None:
    """Let this process have so many open files, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Seldom(logging.Filter):
    """Lets a message through once in SELDOM_S: of some, clients decide how often they are due."""

    def __init__(self) -> None:
        super().__init__()
        self._due_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log this; messages are the same if they begin alike."""
        what, now_s = str(record.msg)[:60], time.monotonic()
        if now_s < self._due_s.get(what, 0.0):
            return False
        if len(self._due_s) > 1_000:
            self._due_s.clear()
        self._due_s[what] = now_s + SELDOM_S
        return True


class _Server(uvicorn.Server):
    """Returns after a signal; uvicorn's own server would end the process before everything is shut down.

    Calls `listening` with its port once clients can connect.
    """

    def __init__(self, config: uvicorn.Config, listening: Callable[[int], None]) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening(self.servers[0].sockets[0].getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        say_ending(self.server_state)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and, hurried, on SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop, number)
        yield

    def _stop(self, number: int) -> None:
        if number == signal.SIGINT:
            self.config.timeout_graceful_shutdown = int(CTRL_C_S)
        self.handle_exit(number, None)


async def _serve(
    config: ServeConfig,
    options: uvicorn.Config,
    refused: Callable[[], object] | None,
    working: AbstractAsyncContextManager[object],
    listening: Callable[[str], None],
) -> None:
    server = _Server(options, lambda port: listening(with_port(config.url, port)))
    try:
        sockets = listen_at(config.host, config.port, server.server_state, refused)
    except OSError as error:
        raise InputError(
            f"cannot listen at {config.listen}: another process holds it, or it is not an address of this host"
        ) from error
    async with working:
        reloading = asyncio.ensure_future(_reload(options.ssl, config.tls))
        try:
            await server.serve([*sockets])
        finally:
            reloading.cancel()


async def _reload(context: ssl.SSLContext | None, tls: TlsFiles | None) -> None:
    """Use a renewed certificate for new connections."""
    if context is None or tls is None:
        return
    stamp = tls.stamp()
    while True:
        await asyncio.sleep(RELOAD_S)
        if tls.stamp() == stamp:
            continue
        try:
            TlsFiles(tls.certificate, tls.key, tls.authority)  # checks that they match
            context.load_cert_chain(tls.certificate, tls.key)
            stamp = tls.stamp()
        except (InputError, OSError) as error:  # from `ssl`: the files changed in between
            logger.warning("the certificate is not renewed yet: %s", error)
