"""What the cluster tab shows, from the coordinator's answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from qubic_lab.api.schemas import NodeStatus
from qubic_lab.cluster.health import CPU_WEIGHT, ERROR_WEIGHT, MEMORY_WEIGHT, RESPONSE_WEIGHT, SLOW_RESPONSE_S
from qubic_lab.dashboard.watch import Course
from qubic_lab.metrics import NAMESPACE

HTTP_SECONDS = f"{NAMESPACE}_http_seconds"
HTTP_REQUESTS = f"{NAMESPACE}_http_requests"
ASKING = ("/api/ai/", "/v1/chat/", "/v1/completions", "/v1/responses")
"""Routes that answer questions, by their beginning; the times of the others would hide theirs."""
PERCENTILES = (50, 90, 99)
STATES = ("pending", "processing", "completed", "failed", "dead", "cancelled")
PARTS = ("processor", "memory", "response", "errors")
"""Of a node's health."""
RECENT_S = 300.0


@dataclass(frozen=True)
class HealthPart:
    """A part of a node's health: its points of `most`, and what they are for."""

    name: str
    points: float
    most: float
    value: str


@dataclass(frozen=True)
class NodeRow:
    """A node and the parts of its health."""

    node: NodeStatus
    parts: tuple[HealthPart, ...]


@dataclass(frozen=True)
class Percentile:
    """A percentile of the time to an answer; `at_least`: it is beyond the longest time that is told apart."""

    percent: int
    seconds: float
    at_least: bool


@dataclass(frozen=True)
class HttpCounts:
    """What a coordinator has counted since its start.

    `bounds_s` are the upper bounds of the times to an answer, the last one infinite, and `counts` how many answers took
    no longer than each. `errors` are the numbers of questions by status, from 400 on.
    """

    bounds_s: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()
    errors: Mapping[str, int] | None = None

    def since(self, before: "HttpCounts") -> "HttpCounts":
        """Return what was counted after an earlier look; all, if the coordinator was started again since."""
        pairs = list(zip(self.counts, before.counts, strict=False))
        if self.bounds_s != before.bounds_s or any(now < then for now, then in pairs):
            return self
        return HttpCounts(self.bounds_s, tuple(now - then for now, then in pairs), self.errors)


def node_rows(answer: Sequence[Mapping[str, Any]]) -> list[NodeRow]:
    """Return the rows of `/api/cluster/nodes`; those that get no requests come first."""
    nodes = [NodeStatus(**each) for each in answer]
    return [NodeRow(node, health_parts(node)) for node in sorted(nodes, key=lambda node: (not node.gate, node.name))]


def health_parts(node: NodeStatus) -> tuple[HealthPart, ...]:
    """Return the parts that a node's score is the sum of (`cluster.health`)."""
    slow = min(1.0, (node.response_s or 0.0) / SLOW_RESPONSE_S)
    response = "–" if node.response_s is None else f"{node.response_s:.2f} s"
    weights = (CPU_WEIGHT, MEMORY_WEIGHT, RESPONSE_WEIGHT, ERROR_WEIGHT)
    lost = (node.cpu_share, node.memory_share, slow, node.error_share)
    values = (f"{node.cpu_share:.0%}", f"{node.memory_share:.0%}", response, f"{node.error_share:.0%}")
    parts = zip(PARTS, weights, lost, values, strict=True)
    return tuple(HealthPart(name, weight * (1 - share), weight, value) for name, weight, share, value in parts)


def http_counts(text: str) -> HttpCounts:
    """Return what the metrics of a coordinator say of its answers to questions."""
    buckets: dict[float, float] = {}
    errors: dict[str, int] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"{HTTP_SECONDS}_bucket" and sample.labels["route"].startswith(ASKING):
                bound_s = float(sample.labels["le"])
                buckets[bound_s] = buckets.get(bound_s, 0.0) + sample.value
            elif (
                sample.name == f"{HTTP_REQUESTS}_total"
                and sample.labels["route"].startswith(ASKING)
                and sample.labels["status"] >= "400"
            ):
                status = sample.labels["status"]
                errors[status] = errors.get(status, 0) + int(sample.value)
    bounds_s = tuple(sorted(buckets))
    return HttpCounts(bounds_s, tuple(buckets[each] for each in bounds_s), dict(sorted(errors.items())))


def percentiles(counts: HttpCounts) -> list[Percentile]:
    """Return percentiles of the time to an answer, by a straight line within each bucket; none without answers."""
    total = counts.counts[-1] if counts.counts else 0.0
    return [_percentile(counts, percent, total) for percent in PERCENTILES] if total else []


def _percentile(counts: HttpCounts, percent: int, total: float) -> Percentile:
    wanted, low_s, below = total * percent / 100, 0.0, 0.0
    for high_s, count in zip(counts.bounds_s, counts.counts, strict=True):
        if count >= wanted:
            if math.isinf(high_s):
                break
            return Percentile(percent, low_s + (high_s - low_s) * (wanted - below) / (count - below), False)
        low_s, below = high_s, count
    return Percentile(percent, low_s, True)


def recent_percentiles(course: Course) -> list[Percentile]:
    """Return percentiles of the answers of the last five minutes, as far as they were watched; else of all."""
    if not course:
        return []
    (last_s, last), first = course[-1], course[0]
    before = next((counts for at_s, counts in course if at_s >= last_s - RECENT_S), first[1])
    return percentiles(last.since(before)) or percentiles(last)


def node_tokens(answer: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the tokens that each node of `/api/cluster/nodes` has given since its start."""
    return {each["name"]: each["tokens"] for each in answer}


def token_rates(course: Course) -> dict[str, list[float]]:
    """Return the tokens/s of all nodes at the beginning and the end of each time between two looks.

    A node that was started again counts from 0; one that comes or goes adds nothing to that look.
    """
    rates: dict[str, list[float]] = {"at_s": [], "tokens_per_s": []}
    for (then_s, then), (now_s, now) in pairwise(course):
        given = sum(now[name] - (then[name] if then[name] <= now[name] else 0) for name in now.keys() & then.keys())
        rates["at_s"] += [then_s, now_s]
        rates["tokens_per_s"] += [given / (now_s - then_s)] * 2
    return rates
