"""Metrics by Prometheus's conventions: what all processes share, and how values are shown that are read on demand.

Names begin with `qubic_lab_`, have base units (seconds, bytes, ratios from 0 to 1), and counters end with `_total`. A
label has at most `MOST_VALUES` values, so that a large cluster or a long list of feeds does not fill a database.
"""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Info, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qubic_lab import __version__

NAMESPACE = "qubic_lab"
MOST_VALUES = 50
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Buckets of times that people wait."""
disable_created_metrics()  # type: ignore[no-untyped-call] # else each counter has a second series
Sample = tuple[Sequence[str], float]
"""Values of the labels, and that of the metric."""


def new_registry() -> CollectorRegistry:
    """Return a registry with the version and, on Linux, what the system knows of this process."""
    registry = CollectorRegistry()
    build = Info("build", "Version of this process.", [], NAMESPACE, registry=registry)
    build.info({"version": __version__})
    ProcessCollector(registry=registry)
    return registry


def gauge(name: str, text: str, samples: Iterable[Sample], labels: Sequence[str] = ()) -> Metric:
    """Return a metric whose values may rise and fall."""
    return _filled(GaugeMetricFamily(f"{NAMESPACE}_{name}", text, labels=labels), samples)


def counter(name: str, text: str, samples: Iterable[Sample], labels: Sequence[str] = ()) -> Metric:
    """Return a metric whose values only rise, until their source starts anew; `_total` is added to its name."""
    return _filled(CounterMetricFamily(f"{NAMESPACE}_{name}", text, labels=labels), samples)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, samples: Iterable[Sample]) -> Metric:
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


class Latest(Collector):
    """Shows the families that were set last; what is gone from its source is gone from here."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.families: list[Metric] = []
        registry.register(self)

    def describe(self) -> list[Metric]:
        """Return nothing: names are known with the values."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the families that have values."""
        return (family for family in self.families if family.samples)


def expose(registry: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """Return all metrics and their media type: OpenMetrics, which has exemplars, for those who accept it."""
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type
