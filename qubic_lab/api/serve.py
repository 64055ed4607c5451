"""The coordinator's server: all routes behind access control, with what must run beside them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import redis
from fastapi import FastAPI
from limits.strategies import MovingWindowRateLimiter
from starlette.staticfiles import StaticFiles

from qubic_lab import __version__
from qubic_lab.api import ai, cluster, consensus, health
from qubic_lab.api import oracle as oracle_routes
from qubic_lab.api.access import make_limiter
from qubic_lab.api.http_server import Accesses, ServeConfig, guard, new_app, run_server
from qubic_lab.api.openai import embeddings as embedding_routes
from qubic_lab.api.openai import responses as response_routes
from qubic_lab.api.openai import routes as openai_routes
from qubic_lab.api.openai.consensus import ClusterElector
from qubic_lab.api.openai.coordinator import CoordinatorAnswerer
from qubic_lab.api.openai.embeddings import Embeddings
from qubic_lab.api.pages import Home, add_pages
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.errors import InputError
from qubic_lab.oracle.serving.service import Oracle
from qubic_lab.settings import settings
from qubic_lab.votes.service import VoteService

WHAT = "A coordinator: it lets the nodes of a cluster answer questions, alone or by vote."
SHOWN_VOTES = 5


def create_app(
    coordinator: Coordinator,
    accesses: Accesses | None = None,
    limiter: MovingWindowRateLimiter | None = None,
    votes: VoteService | None = None,
    oracle: Oracle | None = None,
    embeddings: Embeddings | None = None,
) -> FastAPI:
    """Return the application; the coordinator must be running while it serves (`Coordinator.running`).

    `accesses` returns the known tokens and needs a limiter of their rates; without it everybody may call, only for
    loopback. Without `votes`, `oracle` or `embeddings` their routes are missing.
    """
    app = new_app()
    metrics = health.ApiMetrics(coordinator, votes, oracle)
    app.include_router(ai.make_routes(coordinator, votes))
    if votes is not None:
        app.include_router(consensus.make_routes(coordinator, votes))
    if oracle is not None:
        app.include_router(oracle_routes.make_routes(oracle))
    answerer, elector = CoordinatorAnswerer(coordinator), ClusterElector(coordinator, votes) if votes else None
    app.include_router(openai_routes.make_routes(answerer, elector))
    app.include_router(response_routes.make_routes(answerer, elector))
    if embeddings is not None:
        app.include_router(embedding_routes.make_routes(embeddings))
    app.include_router(cluster.make_routes(coordinator))
    app.include_router(health.make_routes(coordinator, metrics))
    if (models := settings().models) is not None:
        app.mount("/models", StaticFiles(directory=models))  # with ranges, for downloads that were cut
    add_pages(app, WHAT, partial(look_at, coordinator, votes), "QUBIC_LAB_API_TOKEN" if accesses else None)
    assert accesses is None or limiter is not None
    guard(app, metrics, accesses, limiter)
    return app


async def look_at(coordinator: Coordinator, votes: VoteService | None) -> Home:
    """Return what the first page of a coordinator says."""
    views = coordinator.nodes()
    latest = [] if votes is None else (await asyncio.to_thread(lambda: votes.history.page(SHOWN_VOTES))).votes
    return Home(
        facts={"version": __version__, "coordinator": coordinator.name, "nodes": str(len(views))},
        answering=[
            (view.record.id, view.record.registration.capabilities.model, str(view.gate or "available"))
            for view in views
        ],
        votes=[(each.id, each.question) for each in latest],
    )


def serve(
    config: ServeConfig,
    coordinator: Coordinator,
    client: "redis.Redis",
    votes: VoteService | None = None,
    oracle: Oracle | None = None,
    listening: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGTERM or SIGINT; without `votes` or `oracle` their routes are missing.

    Calls `listening` with the URL for clients once they can connect.

    Raises:
        InputError: the address is in use, or the tokens or the folder of models cannot be read.
    """
    if (models := settings().models) is not None and not models.is_dir():
        raise InputError(f"QUBIC_LAB_MODELS is {str(models)!r}, which is no folder: make it, or unset this")
    accesses = config.accesses()
    embeddings = Embeddings()
    app = create_app(coordinator, accesses, make_limiter(client) if accesses else None, votes, oracle, embeddings)
    run_server(config, app, _working(coordinator, votes, oracle, embeddings), listening)


@asynccontextmanager
async def _working(
    coordinator: Coordinator, votes: VoteService | None, oracle: Oracle | None, embeddings: Embeddings
) -> AsyncIterator[None]:
    if votes is not None:
        votes.start()
    async with coordinator.running():
        try:
            yield
        finally:
            embeddings.end()
            if votes is not None:
                votes.end()
            if oracle is not None:
                await oracle.close()
