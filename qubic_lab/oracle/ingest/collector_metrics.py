"""The metrics of a collector, read when they are asked for."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector as MetricCollector
from sqlalchemy import Engine

from qubic_lab.database import ERRORS
from qubic_lab.metrics import counter, gauge, new_registry
from qubic_lab.oracle.ingest.collector import Collector
from qubic_lab.oracle.store.source_metrics import source_families


def make_registry(collector: Collector, engine: Engine) -> CollectorRegistry:
    """Return the metrics of a collector and of the sources in its database."""
    registry = new_registry()
    registry.register(ERRORS)
    registry.register(_Progress(collector, engine))
    return registry


class _Progress(MetricCollector):
    def __init__(self, collector: Collector, engine: Engine) -> None:
        self._collector, self._engine = collector, engine
        self._now_us = collector.config.clock.now_us
        self._began_us = self._now_us()

    def describe(self) -> list[Metric]:
        """Return nothing, so that nothing is read before it is asked for."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield what the collector has done, and how its sources are."""
        done = self._collector.progress
        yield counter("collector_requests", "Requests, without retries.", [((), done.requests)])
        yield counter("collector_failed_requests", "Requests that failed.", [((), done.failed)])
        yield counter("collector_rows", "Rows that were new: prices and texts.", [((), done.added)])
        yield counter("collector_corrected_rows", "New rows that correct others.", [((), done.corrected)])
        yield gauge("collector_failing_jobs", "Jobs that failed the last time.", [((), len(done.troubles))])
        yield gauge("collector_history_slices_left", "Requests that the history needs.", [((), done.slices_left)])
        yield from (each for each in source_families(self._engine, self._now_us(), self._began_us) if each.samples)
