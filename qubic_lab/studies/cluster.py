"""The cluster's shares, added latency, one failure and the cost of many nodes: in words, tables and pictures.

What is read are the plain values of `qubic_lab.bench.balance`, `qubic_lab.bench.dispatch`, `qubic_lab.bench.failover`
and `qubic_lab.bench.scale`.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qubic_lab.cluster.balance import DEFAULT_BALANCER
from qubic_lab.cluster.dispatcher import LOOK_S
from qubic_lab.cluster.registry import HEARTBEAT_S
from qubic_lab.errors import InputError
from qubic_lab.studies.style import DARK, INK, LINES, PALE, STYLE, WIDTH_INCHES, rows

Balance = Mapping[str, Any]
Dispatch = Mapping[str, Any]
Failover = Mapping[str, Any]
Calls = Mapping[str, Any]
Scale = Mapping[str, Any]
Row = dict[str, Any]

NODES_ON_PAPER = (10, 100, 1_000, 10_000)
MOST_NODES = 1_000_000
"""No limit is looked for beyond it."""
PARTS = ("look_at_nodes", "heartbeats", "choices", "queue")
QUANTILES = ("p50", "p95", "p99")
ABSENT = "#e6ebee"
"""The ground where a node is absent, or nothing was measured."""


def share_rows(balance: Balance) -> list[Row]:
    """Return one row a balancer: what each node got, and what was promised."""
    return [
        {
            "balancer": share["balancer"],
            **{f"node_{number}": count for number, count in enumerate(share["counts"], start=1)},
            "promised": None if share["expected"] is None else ", ".join(f"{due:.1f}" for due in share["expected"]),
            "within_1": share["within_1"],
        }
        for share in balance["shares"]
    ]


def outage_rows(balance: Balance) -> list[Row]:
    """Return one row a balancer and kind of failure: the worst over nodes of each weight."""
    return [
        {
            "balancer": each["balancer"],
            "the node": each["kind"],
            "last_request_s": each["gone_s"],
            "may_be_chosen_s": each["ready_s"],
            "chosen_again_s": each["back_s"],
            "failed": each["failed"],
        }
        for each in balance["failovers"]
    ]


def latency_rows(dispatch: Dispatch) -> list[Row]:
    """Return one row a quantile of the added latency, spread and in bursts, with 95 % intervals."""
    return [
        {
            "requests begin": name,
            "requests": load["requests"],
            "added": quantile,
            "added_ms": load["added_ms"][quantile],
            "low_ms": load["added_ms"][f"{quantile}_low"],
            "high_ms": load["added_ms"][f"{quantile}_high"],
            "whole_ms": load["total_ms"][quantile],
        }
        for name, load in _loads(dispatch).items()
        if load["added_ms"] is not None
        for quantile in QUANTILES
    ]


def _loads(dispatch: Dispatch) -> dict[str, Dispatch]:
    return {"spread": dispatch, "in bursts": dispatch["burst"]}


def latencies(dispatch: Dispatch) -> Figure:
    """Draw the quantiles of the added latency with 95 % intervals, beside the limit."""
    found = latency_rows(dispatch)
    fill = dict(zip(_loads(dispatch), (DARK, "white"), strict=True))
    with rows([f"{row['added']}, {row['requests begin']}" for row in found]) as (figure, axes):
        for place, row in enumerate(found):
            low, high = (row["added_ms"] if row[end] is None else row[end] for end in ("low_ms", "high_ms"))
            axes.plot([low, high], [place] * 2, "-", color=INK, linewidth=1.2)
            axes.plot(row["added_ms"], place, "o", color=DARK, markerfacecolor=fill[row["requests begin"]])
        limit_ms = dispatch["limit_ms"]
        axes.axvline(limit_ms, linestyle="--", color=INK, label=f"limit of p95: {limit_ms:g} ms")
        axes.set_xlim(left=0)
        axes.set_xlabel("time beyond the node's own (ms)")
    return figure


@dataclass(frozen=True)
class Segment:
    """That a request was on a node for a time, in seconds, with the tokens that came then; `lane` is its line there."""

    request: int
    node: str
    from_s: float
    to_s: float
    token_s: tuple[float, ...]
    lane: int = 0


def segments(failover: Failover) -> list[Segment]:
    """Return where each request was and when, by the time at which it came there.

    What was on the node that was killed was there until it was killed, and on no node until another began it.
    """
    failures = failover["failures"]
    found = []
    for stream in failover["streams"]:
        stays = stream["stays"]
        end_s = stream["ended_s"] if stream["ended_s"] is not None else max(stream["token_s"], default=None)
        for stay, later in zip(stays, [*stays[1:], None], strict=True):
            from_s = stay["from_s"]
            to_s = max(from_s, later["from_s"] if later else end_s or from_s)
            if stay["node"] == failures["node"] and from_s <= failures["killed_s"] < to_s:
                to_s = failures["killed_s"]
            until_s = later["from_s"] if later else math.inf  # what had left the node may come a little later
            tokens = tuple(at_s for at_s in stream["token_s"] if from_s <= at_s < until_s)
            found.append(Segment(stream["number"], stay["node"], from_s, to_s, tokens))
    return _in_lanes(sorted(found, key=lambda each: each.from_s))


def _in_lanes(found: Sequence[Segment]) -> list[Segment]:
    """Give each, in the order in which they begin, the first line of its node that is free."""
    free_s: dict[str, list[float]] = {}
    placed = []
    for each in found:
        ends = free_s.setdefault(each.node, [])
        lane = next((number for number, end_s in enumerate(ends) if end_s <= each.from_s), len(ends))
        ends[lane : lane + 1] = [max(each.to_s, *each.token_s)]
        placed.append(replace(each, lane=lane))
    return placed


def failure(failover: Failover) -> Figure:
    """Draw the nodes over time: requests as lines, tokens as marks, and when one was killed and came back."""
    failures = failover["failures"]
    drawn = segments(failover)
    names = [f"node-{number}" for number in range(1, failover["plan"]["nodes"] + 1)]
    lanes = {name: 1 + max((each.lane for each in drawn if each.node == name), default=0) for name in names}
    tops = {name: sum(lanes[other] + 1 for other in names[:place]) for place, name in enumerate(names)}
    with plt.rc_context(STYLE):
        height = 1.7 + 0.16 * sum(lanes[name] + 1 for name in names)
        figure, axes = plt.subplots(figsize=(1.4 * WIDTH_INCHES, height), layout="constrained")
        _draw_absence(axes, failover, tops, lanes)
        _draw_requests(axes, drawn, tops)
        for name, line, at_s in _moments(failover):
            axes.axvline(at_s, linestyle=line, color=INK, linewidth=1.0, label=f"{name} ({at_s:.1f} s)", zorder=0.5)
        labels = [f"{name}\n(killed)" if name == failures["node"] else name for name in names]
        axes.set_yticks([tops[name] + (lanes[name] - 1) / 2 for name in names], labels)
        axes.set_ylim(max(tops[name] + lanes[name] for name in names), -1)
        axes.set_xlim(left=0)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("time since the first request (s)")
        figure.legend(loc="outside upper left", ncols=3, fontsize=9)
    return figure


def _moments(failover: Failover) -> list[tuple[str, str, float]]:
    failures = failover["failures"]
    named = (
        ("killed", "-", failures["killed_s"]),
        ("started again", "--", failures["started_s"]),
        ("coordinator killed", "-.", failures["coordinator_killed_s"]),
    )
    return [(name, line, at_s) for name, line, at_s in named if at_s is not None]


def _draw_absence(axes: Axes, failover: Failover, tops: Mapping[str, int], lanes: Mapping[str, int]) -> None:
    failures, until_s = failover["failures"], failover["open_s"]
    if until_s is None:
        until_s = max(stream["ended_s"] or failures["killed_s"] for stream in failover["streams"])
    name = failures["node"]
    box = (tops[name] - 0.7, lanes[name] + 0.4)
    span = (failures["killed_s"], until_s - failures["killed_s"])
    axes.broken_barh([span], box, zorder=0.4, color=ABSENT, label="gets no requests")


def _draw_requests(axes: Axes, drawn: Sequence[Segment], tops: Mapping[str, int]) -> None:
    before: dict[int, Segment] = {}
    for each in drawn:
        place = tops[each.node] + each.lane
        moved = before.get(each.request)
        axes.plot([each.from_s, each.to_s], [place] * 2, "-", color=DARK if moved else PALE, linewidth=2.5)
        axes.plot(each.token_s, [place] * len(each.token_s), "|", color=INK, markersize=5, markeredgewidth=0.9)
        if moved:
            start = (moved.to_s, tops[moved.node] + moved.lane)
            axes.plot([start[0], each.from_s], [start[1], place], ":", color=DARK, linewidth=1.2)
            axes.plot(*start, "x", color=INK, markersize=6)
        before[each.request] = each
    axes.plot([], [], "-", color=PALE, linewidth=2.5, label="a request")
    axes.plot([], [], ":", color=DARK, linewidth=1.2, label="goes to another node")
    axes.plot([], [], "-", color=DARK, linewidth=2.5, label="goes on there")
    axes.plot([], [], "|", color=INK, markersize=5, label="a token")


def on_paper(calls: Sequence[Calls], requests_per_node_s: float) -> dict[str, Any]:
    """Return what calls of registry, balancer and queue cost of a core at numbers of nodes, measured and beyond.

    Between two measured numbers of nodes, and beyond the last two, each part's cost follows a power law.

    Args:
        calls: of `qubic_lab.bench.scale.CallCosts`, at two numbers of nodes at least, rising.
        requests_per_node_s: of each node: what is assumed of the load.

    Returns:
        Plain values: `calls`, `levels` (shares of a core, by part, and all of them), the number of nodes at which all
        together are one core (`full_at`; None: not within a million), and what was assumed.

    Raises:
        InputError: fewer than two numbers of nodes.
    """
    if len(calls) < 2:
        raise InputError(f"calls are of {len(calls)} numbers of nodes: give two at least, rising")
    measured = [each["nodes"] for each in calls]
    shares = [core_shares(each, requests_per_node_s) for each in calls]
    numbers = sorted({*measured, *(nodes for nodes in NODES_ON_PAPER if nodes > measured[-1])})
    levels = []
    for nodes in numbers:
        parts = {part: power_law(measured, [share[part] for share in shares], nodes) for part in PARTS}
        levels.append({"nodes": nodes, "measured": nodes in measured, **parts, "all": sum(parts.values())})
    return {
        "calls": list(calls),
        "levels": levels,
        "full_at": _full_at(measured, shares),
        "requests_per_node_s": requests_per_node_s,
        "look_every_s": LOOK_S,
        "beat_every_s": HEARTBEAT_S,
        "balancer": DEFAULT_BALANCER,
    }


def core_shares(calls: Calls, requests_per_node_s: float) -> dict[str, float]:
    """Return how much of a second one coordinator and its Redis spend, of each second, on calls of each part."""
    nodes = calls["nodes"]
    requests_per_s = nodes * requests_per_node_s
    return {
        "look_at_nodes": (calls["nodes_ms"]["median"] + calls["update_ms"]["median"]) / 1e3 / LOOK_S,
        "heartbeats": nodes / HEARTBEAT_S * calls["beat_ms"]["median"] / 1e3,
        "choices": requests_per_s * calls["choose_ms"][DEFAULT_BALANCER]["median"] / 1e3,
        "queue": requests_per_s / calls["tasks_per_s"],
    }


def power_law(measured: Sequence[int], values: Sequence[float], nodes: float) -> float:
    """Return the value at a number of nodes on the power law through the two measured numbers around it."""
    place = min(max(bisect_right(measured, nodes), 1), len(measured) - 1)
    (few, many), (less, more) = measured[place - 1 : place + 1], values[place - 1 : place + 1]
    exponent = math.log(more / less) / math.log(many / few)
    return float(less * (nodes / few) ** exponent)


def _full_at(measured: Sequence[int], shares: Sequence[Mapping[str, float]]) -> float | None:
    def is_full(nodes: float) -> bool:
        return sum(power_law(measured, [share[part] for share in shares], nodes) for part in PARTS) >= 1

    low, high = 1.0, float(MOST_NODES)
    if not is_full(high):
        return None
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_full(middle) else (middle, high)
    return high


def call_rows(paper: Scale) -> list[Row]:
    """Return one row a measured number of nodes: medians of the calls' times."""
    return [
        {
            "nodes": each["nodes"],
            "read_all_ms": each["nodes_ms"]["median"],
            "take_over_ms": each["update_ms"]["median"],
            "heartbeat_ms": each["beat_ms"]["median"],
            "choose_ms": each["choose_ms"][paper["balancer"]]["median"],
            "tasks_per_s": each["tasks_per_s"],
            "redis_bytes_a_node": each["redis_bytes"],
        }
        for each in paper["calls"]
    ]


def level_rows(paper: Scale) -> list[Row]:
    """Return one row a number of nodes: which part of a core goes to what, in %."""
    return [
        {
            "nodes": level["nodes"],
            "known": "measured" if level["measured"] else "extrapolated",
            **{f"{part}_pct": 100 * level[part] for part in (*PARTS, "all")},
        }
        for level in paper["levels"]
    ]


def process_rows(scale: Scale) -> list[Row]:
    """Return one row a number of nodes: what the processes used of a core, and could take, by medians."""
    return [
        {
            "nodes": each["nodes"],
            "heartbeats_per_s": each["beats_per_s"],
            "coordinator_idle_pct": 100 * each["coordinator_idle"]["median"],
            "redis_idle_pct": 100 * each["redis_idle"]["median"],
            "requests_per_s": each["requests_per_s"]["median"],
            "requests_low": each["requests_per_s"]["low"],
            "requests_high": each["requests_per_s"]["high"],
        }
        for each in scale["processes"]
    ]


def costs(paper: Scale) -> Figure:
    """Draw each part's share of a core against the number of nodes: marks where it was measured."""
    levels = paper["levels"]
    measured = sum(level["measured"] for level in levels)
    looks = [*zip(PARTS, (*LINES[1:], (0, (1, 4))), ("s", "^", "D", "v"), strict=True), ("all", "-", "o")]
    with plt.rc_context(STYLE | {"axes.grid.axis": "both"}):
        figure, axes = plt.subplots(figsize=(WIDTH_INCHES, 3.6), layout="constrained")
        for part, line, mark in looks:
            shares = [100 * level[part] for level in levels]
            numbers = [level["nodes"] for level in levels]
            name, fill = part.replace("_", " "), DARK if part == "all" else "white"
            axes.plot(numbers, shares, linestyle=line, color=DARK, linewidth=2.0 if part == "all" else 1.2)
            axes.plot(numbers[:measured], shares[:measured], mark, color=DARK, markerfacecolor=fill, markersize=5)
            axes.plot([], [], linestyle=line, marker=mark, color=DARK, markerfacecolor=fill, markersize=5, label=name)
        axes.axhline(100, color=INK, linewidth=1.0)
        axes.annotate("one core", (levels[0]["nodes"], 100), xytext=(0, 3), textcoords="offset points", fontsize=9)
        if len(levels) > measured:
            axes.axvspan(levels[measured - 1]["nodes"], levels[-1]["nodes"], color=ABSENT, label="extrapolated")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.set_xlabel("nodes (number)")
        axes.set_ylabel("time spent, of a core (%)")
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def findings(
    balance: Balance, dispatch: Dispatch, failover: Failover, paper: Scale, scale: Scale | None = None
) -> list[str]:
    """Say what was shared, added, lost and how many nodes one coordinator would serve; `scale`: by its processes."""
    return [
        _failover_sentence(failover),
        _return_sentence(failover),
        _latency_sentence(dispatch),
        _balance_sentence(balance),
        _scale_sentence(paper),
        *([] if scale is None else [_process_sentence(scale)]),
    ]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _failover_sentence(failover: Failover) -> str:
    failures, left = failover["failures"], failover["left_node"]
    lost, twice, wrong = failover["lost"], failover["duplicated"], len(failover["wrong"])
    whose = f"{failures['node']} was killed with {_count(len(left), 'request')} in mid-answer"
    gaps = f", and these had no news for {max(failover['node_gaps_s']):.1f} s at most" if left else ""
    asked = _count(failover["plan"]["requests"], "request")
    if lost == twice == wrong == 0:
        return f"{whose}: each of the {asked} got every token once and in order{gaps}."
    return f"{whose}: of {asked} {lost} were lost, {twice} answered twice, and {wrong} streams were not right."


def _return_sentence(failover: Failover) -> str:
    failures = failover["failures"]
    if failover["shut_s"] is None:
        return f"That {failures['node']} was gone was not noticed while this was measured."
    shut_s = failover["shut_s"] - failures["killed_s"]
    said = f"Every coordinator had noticed {shut_s:.1f} s after its end that {failures['node']} was gone"
    if failover["open_s"] is None:
        return f"{said}; it was not back when the last request ended."
    back = f"{failover['open_s'] - failures['started_s']:.1f} s after its start it was back by itself"
    if failover["chosen_s"] is None:
        return f"{said}; {back}, and was not chosen any more."
    return f"{said}; {back}, and {failover['chosen_s'] - failures['started_s']:.1f} s after it had a request."


def _latency_sentence(dispatch: Dispatch) -> str:
    added = dispatch["added_ms"]
    if added is None:
        return f"None of {_count(dispatch['requests'], 'request')} had its own right answer: {dispatch['first_error']}."
    low, high = added["p95_low"], added["p95_high"]
    interval = "too few for an interval" if low is None or high is None else f"95 % interval {low:.0f} to {high:.0f} ms"
    burst = dispatch["burst"]["added_ms"]
    at_once = f"; where all ask in the same moment it is {burst['p95']:.0f} ms" if burst else ""
    errors = dispatch["errors"] + dispatch["burst"]["errors"]
    right = f"{_count(errors, 'answer')} did not come or not right" if errors else "every answer was right"
    per_s = dispatch["concurrency"] / dispatch["seconds"]
    return (
        f"With {_count(dispatch['concurrency'], 'client')} at once, up to {per_s:.0f} requests/s, the coordinator and "
        f"the way there add {added['p95']:.0f} ms at p95 ({_count(dispatch['requests'], 'request')}, {interval}), "
        f"{'within' if added['p95'] < dispatch['limit_ms'] else 'over'} the {dispatch['limit_ms']:g} ms aimed at"
        f"{at_once}; {right}."
    )


def _balance_sentence(balance: Balance) -> str:
    kept = [share["balancer"] for share in balance["shares"] if share["within_1"]]
    broken = [share["balancer"] for share in balance["shares"] if share["within_1"] is False]
    worst_gone_s = max(each["gone_s"] for each in balance["failovers"])
    late = [each for each in balance["failovers"] if not each["within_limit"]]
    limit = f"{balance['limit_s']:g} s"
    if broken:
        said = f"Nodes did not get their promised share within 1 with {' and '.join(broken)}"
    else:
        asked = _count(balance["requests"], "request")
        said = f"Of {asked} each node got its promised share within 1 with {' and '.join(kept)}"
    if late:
        outcome = f"in {_count(len(late), 'case')} a failed node was not left alone or chosen again within {limit}"
    else:
        outcome = f"a failed node got no request {worst_gone_s:.1f} s later, and was chosen again within {limit}"
    return f"{said}; {outcome} (simulated time and nodes, the real balancers)."


def _scale_sentence(paper: Scale) -> str:
    largest = [level for level in paper["levels"] if level["measured"]][-1]
    most = max(PARTS, key=lambda part: float(largest[part])).replace("_", " ")
    full_at, beyond = paper["full_at"], ""
    if full_at is None:
        limit = f"less than a core at {MOST_NODES:,} nodes"
    else:
        beyond = ", which is extrapolated" if full_at > largest["nodes"] else ""
        limit = f"a whole core at about {float(f'{full_at:.2g}'):,.0f} nodes{beyond}"
    return (
        f"On paper, with a request every {1 / paper['requests_per_node_s']:g} s for each node: calls of registry, "
        f"balancer and queue take {largest['all']:.0%} of a core at {largest['nodes']:,} nodes, most of it for {most}, "
        f"and {limit}. HTTP, gRPC and Python's work between the calls are not in it, so one coordinator serves fewer."
    )


def _process_sentence(scale: Scale) -> str:
    limit, beyond = scale["limit"], ", which is extrapolated" if scale["limit"]["beyond"] else ""
    nodes, low, high = (f"{float(f'{limit[name]:.2g}'):,.0f}" for name in ("nodes", "low", "high"))
    return (
        f"By whole processes, at the same load, one coordinator serves about {nodes} nodes ({low} to {high} by the "
        f"lowest and the highest of three measurements){beyond}; what is at its end first is {limit['process']}."
    )
