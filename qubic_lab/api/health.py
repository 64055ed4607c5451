"""Routes for monitoring a coordinator (`/health`, `/ready`, `/metrics`) and its metrics."""

from collections import Counter

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest

from qubic_lab.api.http_metrics import METRICS, NAMESPACE, HttpMetrics
from qubic_lab.api.problems import problem
from qubic_lab.api.schemas import Liveness, Readiness
from qubic_lab.cluster.coordinator import Coordinator


class ApiMetrics(HttpMetrics):
    """The values of `/metrics`: requests are counted as they come; tasks and nodes are read on demand."""

    def __init__(self) -> None:
        super().__init__()
        all_ = self.registry
        self._tasks = Gauge("tasks", "Tasks by state.", ["state"], NAMESPACE, registry=all_)
        self._nodes = Gauge("nodes", "Nodes by gate.", ["gate"], NAMESPACE, registry=all_)
        self._score = Gauge("node_score", "Health of a node, 0 to 100.", ["node"], NAMESPACE, registry=all_)
        self._requests_there = Gauge(
            "node_outstanding_requests", "Requests that a node has.", ["node"], NAMESPACE, registry=all_
        )
        self._tokens = Gauge(
            "node_tokens", "Tokens that a node has given since it started.", ["node"], NAMESPACE, registry=all_
        )

    async def read(self, coordinator: Coordinator) -> bytes:
        """Return all metrics in Prometheus's text format."""
        counts = await coordinator.counts()
        for gauge in (self._tasks, self._nodes, self._score, self._requests_there, self._tokens):
            gauge.clear()
        for state in ("pending", "processing", "completed", "failed", "dead", "cancelled"):
            self._tasks.labels(state).set(getattr(counts, state))
        views = coordinator.nodes()
        for gate, number in Counter(str(view.gate or "open") for view in views).items():
            self._nodes.labels(gate).set(number)
        for view in views:
            self._score.labels(view.record.id).set(view.score)
            self._requests_there.labels(view.record.id).set(view.outstanding_requests)
            self._tokens.labels(view.record.id).set(view.record.state.tokens)
        return generate_latest(self.registry)


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
            return problem(503, "Not ready", "no node is available: /api/cluster/nodes says why")
        return Readiness(
            ready=True,
            nodes_open=nodes_open,
            redis_ping_ms=times.ping_ms,
            redis_set_ms=times.set_ms,
            redis_get_ms=times.get_ms,
        )

    @routes.get("/metrics", response_class=Response, responses=METRICS)
    @routes.get("/api/cluster/metrics", response_class=Response, responses=METRICS)
    async def tell() -> Response:
        """Return the metrics in Prometheus's text format."""
        return Response(await metrics.read(coordinator), media_type=CONTENT_TYPE_LATEST)

    return routes
