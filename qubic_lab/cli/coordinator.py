"""`qubic-lab coordinator`: takes questions over HTTP and gives them to nodes."""

from typing import Annotated

import typer

from qubic_lab.cli.console import note

HTTP = "127.0.0.1:5000"
NODES = "127.0.0.1:5001"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: qubic-lab coordinator --listen 127.0.0.1:5000 --nodes 127.0.0.1:5001")(coordinator)


def coordinator(
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where HTTP clients reach it.")] = HTTP,
    nodes: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where nodes register (gRPC).")] = NODES,
    balancer: Annotated[str, typer.Option(help="How a node is chosen.")] = "two-choices",
    redis: Annotated[
        str | None, typer.Option(metavar="URL", help="Of queue and registry.", show_default="an embedded server")
    ] = None,
) -> None:
    """Serve until SIGTERM. Several may run side by side on one Redis; beyond loopback it asks for tokens and TLS."""
    from qubic_lab.api.serve import ServeConfig, serve
    from qubic_lab.cluster.coordinator import Coordinator
    from qubic_lab.cluster.redis_server import open_redis
    from qubic_lab.settings import settings
    from qubic_lab.wire.channel import tls_from_settings

    config = ServeConfig(listen, settings().api_tokens, tls_from_settings())
    with open_redis(redis) as client:
        note(f"clients: {config.url}, described at {config.url}/docs; nodes: {nodes}")
        serve(config, Coordinator(client, nodes, balancer), client)
