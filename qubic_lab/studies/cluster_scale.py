"""What many nodes cost one coordinator: calls on paper, whole processes, and the number that fills it."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from matplotlib.figure import Figure

from qubic_lab.bench.scale import CallCosts, ScaleResult
from qubic_lab.cluster.balance import DEFAULT_BALANCER
from qubic_lab.cluster.dispatcher import LOOK_S
from qubic_lab.cluster.registry import HEARTBEAT_S
from qubic_lab.errors import InputError
from qubic_lab.studies.finding import Finding, say
from qubic_lab.studies.style import DARK, INK, OUTAGE, WIDTH_INCHES, plot

Row = dict[str, Any]

NODES_ON_PAPER = (10, 100, 1_000, 10_000)
MOST_NODES = 1_000_000
"""The search for a limit ends here."""


@dataclass(frozen=True)
class CoreShares:
    """The share of a core that one coordinator and its Redis spend on the calls of each part."""

    look_at_nodes: float
    heartbeats: float
    choices: float
    queue: float

    @property
    def total(self) -> float:
        """Of all parts."""
        return self.look_at_nodes + self.heartbeats + self.choices + self.queue


PARTS = tuple(field.name for field in fields(CoreShares))
PART_NAMES = {
    "look_at_nodes": "looks at the nodes",
    "heartbeats": "heartbeats",
    "choices": "choices",
    "queue": "the queue",
}


@dataclass(frozen=True)
class PaperLevel(CoreShares):
    """The same at a number of nodes, `measured` or extrapolated; `all` parts together."""

    nodes: int
    measured: bool
    all: float


@dataclass(frozen=True)
class ScaleOnPaper:
    """What calls of registry, balancer and queue cost of a core at numbers of nodes, measured and beyond.

    `full_at`: the number of nodes at which all parts together take one core; None: not within a million.
    """

    calls: tuple[CallCosts, ...]
    levels: tuple[PaperLevel, ...]
    full_at: float | None
    requests_per_node_s: float
    look_every_s: float
    beat_every_s: float
    balancer: str


def on_paper(calls: Sequence[CallCosts], requests_per_node_s: float) -> ScaleOnPaper:
    """Return what calls at two or more rising numbers of nodes cost, by a power law between and beyond them."""
    if len(calls) < 2:
        raise InputError(f"calls are of {len(calls)} numbers of nodes: give two at least, rising")
    measured = [each.nodes for each in calls]
    shares = [core_shares(each, requests_per_node_s) for each in calls]

    def at(nodes: float) -> CoreShares:
        return CoreShares(*(power_law(measured, [getattr(share, part) for share in shares], nodes) for part in PARTS))

    levels = []
    for nodes in sorted({*measured, *(nodes for nodes in NODES_ON_PAPER if nodes > measured[-1])}):
        parts = at(nodes)
        levels.append(PaperLevel(**vars(parts), nodes=nodes, measured=nodes in measured, all=parts.total))
    low, high = 1.0, float(MOST_NODES)
    full_at = None
    if at(high).total >= 1:
        for _ in range(60):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if at(middle).total >= 1 else (middle, high)
        full_at = high
    assumed = (requests_per_node_s, LOOK_S, HEARTBEAT_S, DEFAULT_BALANCER)
    return ScaleOnPaper(tuple(calls), tuple(levels), full_at, *assumed)


def core_shares(calls: CallCosts, requests_per_node_s: float) -> CoreShares:
    """Return the share of each second that one coordinator and its Redis spend on calls of each part."""
    requests_per_s = calls.nodes * requests_per_node_s
    return CoreShares(
        look_at_nodes=(calls.nodes_ms.median + calls.update_ms.median) / 1e3 / LOOK_S,
        heartbeats=calls.nodes / HEARTBEAT_S * calls.beat_ms.median / 1e3,
        choices=requests_per_s * calls.choose_ms[DEFAULT_BALANCER].median / 1e3,
        queue=requests_per_s / calls.tasks_per_s,
    )


def power_law(measured: Sequence[int], values: Sequence[float], nodes: float) -> float:
    """Return the value at a number of nodes on the power law through the two measured numbers around it."""
    place = min(max(bisect_right(measured, nodes), 1), len(measured) - 1)
    (few, many), (less, more) = measured[place - 1 : place + 1], values[place - 1 : place + 1]
    exponent = math.log(more / less) / math.log(many / few)
    return float(less * (nodes / few) ** exponent)


def call_rows(paper: ScaleOnPaper) -> list[Row]:
    """Return one row a measured number of nodes: medians of the calls' times."""
    return [
        {
            "nodes": each.nodes,
            "read_all_ms": each.nodes_ms.median,
            "take_over_ms": each.update_ms.median,
            "heartbeat_ms": each.beat_ms.median,
            "choose_ms": each.choose_ms[paper.balancer].median,
            "tasks_per_s": each.tasks_per_s,
            "redis_bytes_a_node": each.redis_bytes,
        }
        for each in paper.calls
    ]


def process_rows(scale: ScaleResult) -> list[Row]:
    """Return one row a number of nodes: what the processes used of a core, and could take, by medians."""
    return [
        {
            "nodes": each.nodes,
            "heartbeats_per_s": each.beats_per_s,
            "coordinator_idle_pct": 100 * each.coordinator_idle.median,
            "redis_idle_pct": 100 * each.redis_idle.median,
            "requests_per_s": each.requests_per_s.median,
            "requests_low": each.requests_per_s.low,
            "requests_high": each.requests_per_s.high,
        }
        for each in scale.processes
    ]


def costs(paper: ScaleOnPaper) -> Figure:
    """Draw each part's share of a core against the number of nodes: marks where it was measured."""
    numbers = [level.nodes for level in paper.levels]
    measured = sum(level.measured for level in paper.levels)
    looks = zip((*PARTS, "all"), ("--s", ":^", "-.D", ":v", "-o"), strict=True)
    with plot(size=(WIDTH_INCHES, 3.6)) as (figure, axes):
        for part, look in looks:
            shares = [100 * getattr(level, part) for level in paper.levels]
            fill = DARK if part == "all" else "white"
            name = part.replace("_", " ")
            axes.plot(numbers, shares, look, color=DARK, markerfacecolor=fill, markevery=range(measured), label=name)
        axes.axhline(100, color=INK, linewidth=1.0)
        axes.annotate("one core", (numbers[0], 100), xytext=(0, 3), textcoords="offset points", fontsize=9)
        if len(numbers) > measured:
            axes.axvspan(numbers[measured - 1], numbers[-1], color=OUTAGE, label="extrapolated")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.set_xlabel("nodes (number)")
        axes.set_ylabel("time spent, of a core (%)")
    return figure


def paper_findings(paper: ScaleOnPaper) -> list[Finding]:
    """Say what the calls take of a core at the most nodes measured, and when they would fill it."""
    largest = [level for level in paper.levels if level.measured][-1]
    most = max(PARTS, key=lambda part: float(getattr(largest, part)))
    if paper.full_at is None:
        limit = say("They take less than a core even at {most:node}.", most=MOST_NODES)
    elif paper.full_at > largest.nodes:
        limit = say("They would fill a core at about {nodes:,.0f} nodes (extrapolated).", nodes=_rounded(paper.full_at))
    else:
        limit = say("They would fill a core at about {nodes:,.0f} nodes.", nodes=_rounded(paper.full_at))
    return [
        say(
            "Calls of registry, balancer and queue take {share:percent} of a core at {nodes:node}, most of it for "
            "{part}.",
            share=round(largest.all, 2),
            nodes=largest.nodes,
            part=say(PART_NAMES[most]),
        ),
        limit,
        say("HTTP, gRPC and Python's work between the calls are not included."),
    ]


def process_finding(scale: ScaleResult) -> Finding:
    """Say how many nodes one coordinator serves by what whole processes use."""
    limit = scale.limit
    if limit.nodes is None:
        text = "It is not known how many nodes one coordinator serves by whole processes; the {process} is full first."
        return say(text, process=limit.process)
    ends = say("no end is known")
    if limit.low is not None and limit.high is not None:
        ends = say("{low} to {high}", low=_rounded(limit.low), high=_rounded(limit.high))
    elif limit.low is not None:
        ends = say("{low} at least, the most is unknown", low=_rounded(limit.low))
    text = (
        "Measured by whole processes, one coordinator serves about {nodes:,.0f} nodes ({ends:,.0f}); the {process} "
        "is the bottleneck."
    )
    if limit.beyond:
        text = (
            "Measured by whole processes, one coordinator serves about {nodes:,.0f} nodes ({ends:,.0f}, extrapolated); "
            "the {process} is the bottleneck."
        )
    return say(text, nodes=_rounded(limit.nodes), ends=ends, process=limit.process)


def _rounded(nodes: float) -> float:
    return float(f"{nodes:.2g}")
