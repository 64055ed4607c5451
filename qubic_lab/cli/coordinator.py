"""`qubic-lab coordinator`: takes questions over HTTP and gives them to nodes."""

from typing import TYPE_CHECKING, Annotated

import typer

from qubic_lab.cli.console import note, show_warnings
from qubic_lab.errors import ModelError

if TYPE_CHECKING:
    import redis as redis_client

    from qubic_lab.cluster.coordinator import Coordinator
    from qubic_lab.oracle.serving.service import Oracle
    from qubic_lab.votes.service import VoteService

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

    show_warnings()
    config = ServeConfig(listen, settings().api_tokens, tls_from_settings())
    with open_redis(redis) as client:
        note(f"clients: {config.url}, described at {config.url}/docs; nodes: {nodes}")
        serving = Coordinator(client, nodes, balancer)
        serve(config, serving, client, make_votes(serving), make_oracle(client))


def make_votes(coordinator: "Coordinator") -> "VoteService":
    """Return what holds votes: kept in the database, alike by embeddings where the embedder is installed."""
    from qubic_lab.consensus.confidence import load_calibrations
    from qubic_lab.database import check_url, open_database
    from qubic_lab.model.embeddings import Embedder, model_folder
    from qubic_lab.settings import settings
    from qubic_lab.votes.history import VoteHistory
    from qubic_lab.votes.service import VoteService

    check_url()  # it is opened with the first vote, when it is too late to tell whoever started this
    try:
        model_folder()
        embedder: Embedder | None = Embedder()
    except ModelError as error:
        note(f"answers are compared by words and structure alone: {error}")
        embedder = None
    calibrations = load_calibrations(settings().data / "calibrations")
    return VoteService(coordinator, lambda: VoteHistory(open_database()), calibrations, embedder)


def make_oracle(client: "redis_client.Redis") -> "Oracle":
    """Return what tells of coins, from the database that the collector fills, with its answers kept in Redis."""
    from qubic_lab.database import open_database
    from qubic_lab.oracle.config import read_config
    from qubic_lab.oracle.serving.price_parts import frequencies_of
    from qubic_lab.oracle.serving.service import Oracle

    config = read_config()
    sources = dict(config.sources) | {feed.name: config.sources["feeds"] for feed in config.feeds}
    return Oracle(
        open_database,  # with the first request, as for votes
        client,
        frequencies=frequencies_of(config),
        limits={name: source.quotas() for name, source in sources.items()},
        weighting=config.sentiment,
        rules=config.risk.rules,
    )
