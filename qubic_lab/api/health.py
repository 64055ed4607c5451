"""Routes for monitoring a coordinator (`/health`, `/ready`, `/metrics`) and its metrics."""

import asyncio
from collections.abc import Awaitable

from fastapi import APIRouter, Request, Response
from prometheus_client.metrics_core import Metric
from sqlalchemy.exc import SQLAlchemyError

from qubic_lab.api.cluster_metrics import answer_families, node_families, task_families
from qubic_lab.api.http_metrics import METRICS, HttpMetrics
from qubic_lab.api.problems import Problem
from qubic_lab.api.schemas import Liveness, Readiness
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.database import ERRORS as DATABASE_ERRORS
from qubic_lab.errors import QubicLabError
from qubic_lab.metrics import Latest, gauge
from qubic_lab.oracle.serving.service import Oracle
from qubic_lab.votes.service import VoteService

READ_S = 3.0
"""Time limit of what is read for a scrape; less than Prometheus waits."""


class ApiMetrics(HttpMetrics):
    """The values of `/metrics`: what comes is counted; tasks, nodes and sources are read when they are asked for."""

    def __init__(
        self, coordinator: Coordinator, votes: VoteService | None = None, oracle: Oracle | None = None
    ) -> None:
        super().__init__()
        self._coordinator, self._votes, self._oracle = coordinator, votes, oracle
        self._latest = Latest(self.registry)
        for each in (*coordinator.metrics, DATABASE_ERRORS, *(votes.metrics if votes else ())):
            self.registry.register(each)

    async def look(self) -> None:
        """Read tasks, nodes and sources; what cannot be read is missing until it can be again."""
        coordinator = self._coordinator
        families = node_families(coordinator.nodes()) + answer_families(coordinator.answers)
        if self._votes is not None:
            families.append(gauge("votes_running", "Votes that are held now.", [((), len(self._votes.running))]))
        reading = [self._tasks(), *([self._oracle.source_families()] if self._oracle else [])]
        for found in await asyncio.gather(*map(_in_time, reading)):
            families += found
        self._latest.families = families

    async def _tasks(self) -> list[Metric]:
        return task_families(await self._coordinator.counts(), self._coordinator.working)


async def _in_time(families: Awaitable[list[Metric]]) -> list[Metric]:
    """Return some families, or none if Redis or the database fails, which is counted, or does not answer in time."""
    try:
        async with asyncio.timeout(READ_S):
            return await families
    except (QubicLabError, SQLAlchemyError, TimeoutError):
        return []


def make_routes(coordinator: Coordinator, metrics: ApiMetrics) -> APIRouter:
    """Return the routes of a coordinator."""
    routes = APIRouter(tags=["health"])

    @routes.get("/health")
    async def health() -> Liveness:
        """Return that this process is alive."""
        return Liveness(coordinator=coordinator.name)

    @routes.get("/ready", response_model=Readiness)
    async def ready() -> Readiness | Response:
        """Return whether requests are accepted: Redis answers and a node is available."""
        times = await coordinator.redis_times()
        nodes_open = sum(view.gate is None for view in coordinator.nodes())
        if not nodes_open:
            return Problem(503, "Not ready", "no node is available: /api/cluster/nodes says why")
        return Readiness(
            ready=True,
            nodes_open=nodes_open,
            redis_ping_ms=times.ping_ms,
            redis_set_ms=times.set_ms,
            redis_get_ms=times.get_ms,
        )

    @routes.get("/metrics", response_class=Response, responses=METRICS)
    @routes.get("/api/cluster/metrics", response_class=Response, responses=METRICS)
    async def tell(request: Request) -> Response:
        """Return the metrics in Prometheus's text format, or as OpenMetrics for those who accept that."""
        await metrics.look()
        content, media_type = metrics.read(request.headers.get("accept", ""))
        return Response(content, media_type=media_type)

    return routes
