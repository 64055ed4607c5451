"""The process that serves the interface: where it listens, and what has to be set before it may."""

import asyncio
import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

import redis
import uvicorn

from qubic_lab.api.access import AccessFile, make_limiter
from qubic_lab.api.app import create_app
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.errors import InputError
from qubic_lab.wire.channel import TlsFiles, is_loopback, read_host

RELOAD_S = 10.0
"""So often is looked whether the certificate's files have changed."""
STOP_S = 10

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeConfig:
    """Where a coordinator listens, and who may call.

    Attributes:
        listen: HOST:PORT of the HTTP interface.
        tokens: the file of tokens; None: anybody may call, which is for loopback alone.
        tls: the host's certificate for HTTPS; None: plain HTTP, which is for loopback alone.

    Raises:
        InputError: it listens beyond loopback without tokens or certificate; says what to set.
    """

    listen: str
    tokens: Path | None = None
    tls: TlsFiles | None = None

    def __post_init__(self) -> None:
        if is_loopback(self.host):
            return
        missing = []
        if self.tokens is None:
            missing.append("QUBIC_LAB_API_TOKENS (make the file with qubic-lab token add NAME)")
        if self.tls is None:
            missing.append(
                "QUBIC_LAB_TLS_CERTIFICATE, QUBIC_LAB_TLS_KEY and QUBIC_LAB_TLS_AUTHORITY (make the files with "
                "qubic-lab certs make)"
            )
        if missing:
            raise InputError(f"{self.listen} is beyond this host: set {' and '.join(missing)}")

    @property
    def host(self) -> str:
        """The host part of `listen`."""
        return read_host(self.listen)

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"{'https' if self.tls else 'http'}://{self.listen}"

    @property
    def port(self) -> int:
        """The port part of `listen`."""
        return int(self.listen.rpartition(":")[2])


def serve(config: ServeConfig, coordinator: Coordinator, client: "redis.Redis") -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InputError: the address is used, or the tokens cannot be read.
    """
    accesses = AccessFile(config.tokens) if config.tokens else None
    app = create_app(coordinator, accesses, make_limiter(client) if accesses else None)
    options = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_S,
        ssl_certfile=config.tls.certificate if config.tls else None,
        ssl_keyfile=config.tls.key if config.tls else None,
    )
    options.load()
    server = uvicorn.Server(options)
    asyncio.run(_serve(server, options.ssl, config.tls))
    if not server.started:
        raise InputError(
            f"cannot listen at {config.listen}: another process holds it, or it is no address of this host"
        )


async def _serve(server: uvicorn.Server, context: ssl.SSLContext | None, tls: TlsFiles | None) -> None:
    reloading = asyncio.ensure_future(_reload(context, tls)) if context and tls else None
    try:
        await server.serve()
    except SystemExit:  # how uvicorn says that it cannot listen; `serve` tells it
        logger.info("the server did not start")
    finally:
        if reloading is not None:
            reloading.cancel()


async def _reload(context: ssl.SSLContext, tls: TlsFiles) -> None:
    """Show new connections a renewed certificate."""
    stamp = tls.stamp()
    while True:
        await asyncio.sleep(RELOAD_S)
        if tls.stamp() == stamp:
            continue
        try:
            TlsFiles(tls.certificate, tls.key, tls.authority)  # do they fit together?
            context.load_cert_chain(tls.certificate, tls.key)
            stamp = tls.stamp()
        except InputError as error:
            logger.warning("the certificate is not renewed yet: %s", error)
