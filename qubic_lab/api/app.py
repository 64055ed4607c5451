"""The application: a coordinator's routes behind access, limits and metrics."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from limits.strategies import MovingWindowRateLimiter

from qubic_lab import __version__
from qubic_lab.api import ai, cluster, health, network, problems
from qubic_lab.api.access import Access, AccessMiddleware, BodyLimitMiddleware
from qubic_lab.cluster.coordinator import Coordinator


def create_app(
    coordinator: Coordinator,
    accesses: Callable[[], list[Access]] | None = None,
    limiter: MovingWindowRateLimiter | None = None,
) -> FastAPI:
    """Return the application; the coordinator runs while it does.

    Args:
        coordinator: whose requests come in here.
        accesses: who may call; None: anybody, which is for loopback alone.
        limiter: of each one's rate; needed with `accesses`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with coordinator.running():
            yield

    app = FastAPI(title="Qubic Lab", version=__version__, lifespan=lifespan)
    problems.install(app)
    metrics = health.Metrics()
    app.include_router(ai.make_routes(coordinator))
    app.include_router(cluster.make_routes(coordinator))
    app.include_router(network.make_routes(coordinator))
    app.include_router(health.make_routes(coordinator, metrics))
    # The one added last is asked first.
    app.add_middleware(BodyLimitMiddleware)
    if accesses is not None:
        assert limiter is not None
        app.add_middleware(AccessMiddleware, accesses=accesses, limiter=limiter)
    app.add_middleware(health.MetricsMiddleware, metrics=metrics)
    return app
