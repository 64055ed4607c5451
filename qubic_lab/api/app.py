"""The application: a coordinator's routes behind access control, limits and metrics."""

from collections.abc import Callable

from fastapi import FastAPI
from limits.strategies import MovingWindowRateLimiter

from qubic_lab import __version__
from qubic_lab.api import ai, cluster, consensus, health, problems
from qubic_lab.api import oracle as oracle_routes
from qubic_lab.api.access import ApiToken, AuthMiddleware, BodyLimitMiddleware
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.oracle.serving.service import Oracle
from qubic_lab.votes.service import VoteService


def create_app(
    coordinator: Coordinator,
    accesses: Callable[[], list[ApiToken]] | None = None,
    limiter: MovingWindowRateLimiter | None = None,
    votes: VoteService | None = None,
    oracle: Oracle | None = None,
) -> FastAPI:
    """Return the application; the coordinator must be running while it serves (`Coordinator.running`).

    `accesses` returns the known tokens and needs a limiter of their rates; without it everybody may call, only for
    loopback. Without `votes` or `oracle` their routes are missing.
    """
    app = FastAPI(title="Qubic Lab", version=__version__, responses={"4XX": problems.DESCRIPTION})
    problems.install(app)
    metrics = health.ApiMetrics()
    app.include_router(ai.make_routes(coordinator))
    if votes is not None:
        app.include_router(consensus.make_routes(coordinator, votes))
    if oracle is not None:
        app.include_router(oracle_routes.make_routes(oracle))
    app.include_router(cluster.make_routes(coordinator))
    app.include_router(health.make_routes(coordinator, metrics))
    # The last one added is the outermost.
    app.add_middleware(BodyLimitMiddleware)
    if accesses is not None:
        assert limiter is not None
        app.add_middleware(AuthMiddleware, accesses=accesses, limiter=limiter)
    app.add_middleware(health.MetricsMiddleware, metrics=metrics)
    return app
