"""Metrics of all that comes over HTTP: requests by route and status, and the time to a whole response.

Beside them what every server has: its process, its disk and its certificate.
"""

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qubic_lab.cluster.vitals import disk_bytes
from qubic_lab.metrics import NAMESPACE, SECONDS, expose, gauge, new_registry
from qubic_lab.settings import settings
from qubic_lab.tracing import exemplar
from qubic_lab.wire.channel import certificate_ends_s

METRICS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
"""The description of metrics in OpenAPI."""


class HttpMetrics:
    """Counts requests as they come; `registry` may hold further metrics."""

    def __init__(self) -> None:
        self.registry = new_registry()
        self.requests = Counter(
            "http_requests", "Requests by route and status.", ["route", "status"], NAMESPACE, registry=self.registry
        )
        self.seconds = Histogram(
            "http_seconds", "Time to a whole response.", ["route"], NAMESPACE, registry=self.registry, buckets=SECONDS
        )
        self.registry.register(_Host())

    def read(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics and their media type, by what the client accepts."""
        return expose(self.registry, accept)


class _Host(Collector):
    """Disk and certificate, read when they are asked for."""

    def describe(self) -> list[Metric]:
        """Return nothing, so that nothing is read before it is asked for."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield what is known."""
        free, size = disk_bytes(settings().data)
        yield gauge("disk_free_bytes", "Free space of the disk with the data folder.", [((), free)])
        yield gauge("disk_size_bytes", "Size of the disk with the data folder.", [((), size)])
        if ends_s := certificate_ends_s():
            text = "When the certificate of this process expires, since 1970."
            yield gauge("certificate_expiry_timestamp_seconds", text, [((), ends_s)])


class MetricsMiddleware:
    """Counts and times requests by route; the latest in each bucket can be found again by its id."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, seen)
        finally:
            route = getattr(scope.get("route"), "path", "none")  # not the path itself, which clients can make up
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started, exemplar())
