"""`qubic-lab coordinator`: accepts requests over HTTP and dispatches them to nodes."""

from typing import TYPE_CHECKING, Annotated

from typer import Option

from qubic_lab.cli import options
from qubic_lab.cli.console import note, show_warnings
from qubic_lab.errors import ModelError

if TYPE_CHECKING:
    import redis as redis_client

    from qubic_lab.cluster.coordinator import Coordinator
    from qubic_lab.oracle.serving.service import Oracle
    from qubic_lab.votes.service import VoteService

HTTP = "127.0.0.1:5000"
NODES = "127.0.0.1:5001"


def coordinator(
    listen: Annotated[str, Option(metavar="HOST:PORT", help="Address for HTTP clients.")] = HTTP,
    nodes: Annotated[str, Option(metavar="HOST:PORT", help="Address for nodes (gRPC).")] = NODES,
    balancer: options.Balancer = "two-choices",
    redis: Annotated[
        str | None, Option(metavar="URL", help="Redis of queue and registry.", show_default="embedded")
    ] = None,
) -> None:
    """Serve HTTP clients and dispatch their requests to nodes.

    Runs until SIGTERM. Several coordinators may share one Redis. Beyond loopback it requires tokens and TLS.
    """
    from qubic_lab import tracing
    from qubic_lab.api.http_server import ServeConfig
    from qubic_lab.api.serve import serve
    from qubic_lab.cluster.coordinator import Coordinator
    from qubic_lab.cluster.redis_server import open_redis
    from qubic_lab.settings import settings
    from qubic_lab.wire.channel import tls_from_settings, with_port

    show_warnings()
    tracing.start("coordinator")
    config = ServeConfig(listen, settings().api_tokens, tls_from_settings())
    with open_redis(redis) as client:
        serving = Coordinator(client, nodes, balancer)

        def listening(url: str) -> None:
            registry = with_port(nodes, serving.port)
            note(f"serves clients at {url}, described at {url}/docs; nodes register at {registry}")

        serve(config, serving, client, make_votes(serving), make_oracle(client), listening)


def make_votes(coordinator: "Coordinator") -> "VoteService":
    """Return the service for votes, with the database, and with embeddings if the embedder is installed."""
    from qubic_lab.consensus.confidence import load_calibrations
    from qubic_lab.database import check_url, open_database
    from qubic_lab.model.embeddings import Embedder, model_folder
    from qubic_lab.settings import settings
    from qubic_lab.votes.history import VoteHistory
    from qubic_lab.votes.service import VoteService

    check_url()  # the database is opened with the first vote, too late to report a wrong URL
    try:
        model_folder()
        embedder: Embedder | None = Embedder()
    except ModelError as error:
        note(f"answers are compared without embeddings: {error}")
        embedder = None
    calibrations = load_calibrations(settings().data / "calibrations")
    return VoteService(coordinator, lambda: VoteHistory(open_database()), calibrations, embedder)


def make_oracle(client: "redis_client.Redis") -> "Oracle":
    """Return the market oracle, with the collector's database and a cache in Redis."""
    from qubic_lab.database import open_database
    from qubic_lab.oracle.config import read_config
    from qubic_lab.oracle.serving.service import Oracle

    config = read_config()
    sources = dict(config.sources) | {feed.name: config.sources["feeds"] for feed in config.feeds}
    return Oracle(
        open_database,  # called with the first request
        client,
        frequencies=config.frequencies,
        limits={name: source.quotas() for name, source in sources.items()},
        weighting=config.sentiment,
        rules=config.risk.rules,
    )
