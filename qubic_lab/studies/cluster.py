"""The cluster's shares, added latency, one failure and the cost of many nodes: in words, tables and pictures.

The measurements are those of `qubic_lab.bench.balance`, `dispatch`, `failover`, `queue`,
`scale` and `vote_load`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qubic_lab.bench.balance import BalanceResult
from qubic_lab.bench.dispatch import DispatchResult, LoadResult
from qubic_lab.bench.failover import FailoverResult
from qubic_lab.bench.queue import QueueResult
from qubic_lab.bench.result import LEAST_FOR_P95
from qubic_lab.bench.scale import ScaleResult
from qubic_lab.bench.vote_load import VoteLoadResult, capacity
from qubic_lab.studies.acceptance import (
    AcceptanceRow,
    Criterion,
    Text,
    Verdict,
    WeekResults,
    joined,
    least_favourable,
    too_few,
    too_noisy,
)
from qubic_lab.studies.cluster_scale import ScaleOnPaper, paper_findings, process_finding
from qubic_lab.studies.finding import Finding, answering, estimate, say
from qubic_lab.studies.style import DARK, INK, OUTAGE, PALE, WIDE, Dot, dots, plot, rows

Row = dict[str, Any]

QUESTION = "loss"
BALANCED = "round-robin"
BALANCED_REQUESTS = 50
CONCURRENCY_TARGET = 50
ADDED_TARGET_MS = 100.0
INTERRUPTED_TARGET = 59
"""Of as many requests none lost says that fewer than 5 % are, with 95 % confidence: 0.95 ** 59 < 0.05."""
NODE_LIMIT_S = 10.0
"""A failed node must get no more requests after this time, and may be chosen again this long after its return."""
NOTHING_ON_IT = say("no request was on the node that was killed")
NOT_ONCE = say("not every request was answered once")
BALANCE = Criterion(
    "10.4",
    "Load balancing",
    f"{BALANCED_REQUESTS} requests over equal nodes: even within ±1 for round robin",
    "cluster",
)
QUEUE = Criterion("10.5", "Task queue", "nothing lost, nothing answered twice, when workers are killed", "cluster")
COORDINATOR = Criterion(
    "10.6",
    "Coordinator",
    f"{CONCURRENCY_TARGET} concurrent requests: added latency < {ADDED_TARGET_MS:g} ms at p95",
    "cluster",
)
FAILOVER = Criterion(
    "10.7",
    "Failover",
    f"failed node found, its work moved, node back by itself; each within {NODE_LIMIT_S:g} s",
    "cluster",
)


def share_rows(balance: BalanceResult) -> list[Row]:
    """Return one row a balancer: what each node got, and what was promised."""
    return [
        {
            "balancer": share.balancer,
            **{f"node_{number}": count for number, count in enumerate(share.counts, start=1)},
            "promised": None if share.expected is None else ", ".join(f"{due:.1f}" for due in share.expected),
            "within_1": share.within_1,
        }
        for share in balance.shares
    ]


def outage_rows(balance: BalanceResult) -> list[Row]:
    """Return one row a balancer and kind of failure: the worst over nodes of each weight."""
    return [
        {
            "balancer": each.balancer,
            "the node": each.kind,
            "last_request_s": each.gone_s,
            "may_be_chosen_s": each.ready_s,
            "chosen_again_s": each.back_s,
            "failed": each.failed,
        }
        for each in balance.failovers
    ]


def latency_rows(dispatch: DispatchResult) -> list[Row]:
    """Return one row a quantile of the added latency, spread and in bursts, with 95 % intervals."""
    return [
        {
            "requests begin": name,
            "requests": load.requests,
            "added": quantile,
            "added_ms": added.value,
            "low_ms": added.low,
            "high_ms": added.high,
            "whole_ms": getattr(load.total_ms, quantile),
        }
        for name, load, quantile, added in _added(dispatch)
    ]


def _added(dispatch: DispatchResult) -> list[tuple[str, LoadResult, str, Dot]]:
    return [
        (name, load, quantile, Dot(*(getattr(load.added_ms, quantile + end) for end in ("", "_low", "_high"))))
        for name, load in (("spread", dispatch), ("in bursts", dispatch.burst))
        if load.added_ms is not None
        for quantile in ("p50", "p95", "p99")
    ]


def latencies(dispatch: DispatchResult) -> Figure:
    """Draw the quantiles of the added latency with 95 % intervals, beside the limit."""
    measured = _added(dispatch)
    with rows([f"{quantile}, {name}" for name, _, quantile, _ in measured]) as (figure, axes):
        for place, (_, load, _, added) in enumerate(measured):
            dots(axes, [place], [added], "o", DARK if load is dispatch else "white", across=True)
        limit_ms = dispatch.limit_ms
        axes.axvline(limit_ms, linestyle="--", color=INK, label=f"limit of p95: {limit_ms:g} ms")
        axes.set_xlim(left=0)
        axes.set_xlabel("time beyond the node's own (ms)")
    return figure


@dataclass(frozen=True)
class NodeSegment:
    """A request's time on one node, in seconds, and the tokens that arrived then; `lane` is its line in the picture."""

    request: int
    node: str
    from_s: float
    to_s: float
    token_s: tuple[float, ...]
    lane: int = 0


def segments(failover: FailoverResult) -> list[NodeSegment]:
    """Return where each request was and when, by the time at which it came there.

    Requests on the killed node stay there until it is killed, and are on no node until another one begins them.
    """
    failures, found = failover.failures, []
    for stream in failover.streams:
        end_s = stream.ended_s if stream.ended_s is not None else max(stream.token_s, default=None)
        for stay, later in zip(stream.stays, [*stream.stays[1:], None], strict=True):
            to_s = max(stay.from_s, later.from_s if later else end_s or stay.from_s)
            if stay.node == failures.node and stay.from_s <= failures.killed_s < to_s:
                to_s = failures.killed_s
            until_s = later.from_s if later else math.inf  # what had left the node may come a little later
            tokens = tuple(at_s for at_s in stream.token_s if stay.from_s <= at_s < until_s)
            found.append(NodeSegment(stream.number, stay.node, stay.from_s, to_s, tokens))
    # Each gets, in the order in which they begin, the first line of its node that is free.
    free_s: dict[str, list[float]] = {}
    placed = []
    for each in sorted(found, key=lambda each: each.from_s):
        ends = free_s.setdefault(each.node, [])
        lane = next((number for number, end_s in enumerate(ends) if end_s <= each.from_s), len(ends))
        ends[lane : lane + 1] = [max((each.to_s, *each.token_s))]
        placed.append(replace(each, lane=lane))
    return placed


def failure(failover: FailoverResult) -> Figure:
    """Draw the nodes over time: requests as lines, tokens as marks, and when one was killed and came back."""
    failures, drawn = failover.failures, segments(failover)
    names = [f"node-{number}" for number in range(1, failover.plan.nodes + 1)]
    lanes = {name: 1 + max((each.lane for each in drawn if each.node == name), default=0) for name in names}
    tops = {name: sum(lanes[other] + 1 for other in names[:place]) for place, name in enumerate(names)}
    height = 1.7 + 0.16 * sum(lanes[name] + 1 for name in names)
    with plot(size=(WIDE, height), grid="x", fontsize=9) as (figure, axes):
        until_s = failover.open_s
        if until_s is None:
            until_s = max(stream.ended_s or failures.killed_s for stream in failover.streams)
        box = (tops[failures.node] - 0.7, lanes[failures.node] + 0.4)
        span = (failures.killed_s, until_s - failures.killed_s)
        axes.broken_barh([span], box, zorder=0.4, color=OUTAGE, label="gets no requests")
        _draw_requests(axes, drawn, tops)
        for name, line, at_s in (
            ("killed", "-", failures.killed_s),
            ("started again", "--", failures.started_s),
            ("coordinator killed", "-.", failures.coordinator_killed_s),
        ):
            if at_s is not None:
                axes.axvline(at_s, linestyle=line, color=INK, linewidth=1.0, label=f"{name} ({at_s:.1f} s)", zorder=0.5)
        labels = [f"{name}\n(killed)" if name == failures.node else name for name in names]
        axes.set_yticks([tops[name] + (lanes[name] - 1) / 2 for name in names], labels)
        axes.set_ylim(max(tops[name] + lanes[name] for name in names), -1)
        axes.set_xlim(left=0)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("time since the first request (s)")
    return figure


def _draw_requests(axes: Axes, drawn: Sequence[NodeSegment], tops: Mapping[str, int]) -> None:
    before: dict[int, NodeSegment] = {}
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


def findings(
    balance: BalanceResult,
    dispatch: DispatchResult,
    failover: FailoverResult,
    paper: ScaleOnPaper,
    scale: ScaleResult | None = None,
    votes: VoteLoadResult | None = None,
) -> list[Finding]:
    """Say what was lost, added and shared, and how many nodes and votes a coordinator serves; `scale`: by processes."""
    said = [_headline(failover, dispatch), *_failover_findings(failover), *_return_findings(failover)]
    said += [*_latency_findings(dispatch), *_balance_findings(balance), *paper_findings(paper)]
    said += [] if scale is None else [process_finding(scale)]
    said += [] if votes is None else _vote_findings(votes)
    return answering(QUESTION, said)


def _headline(failover: FailoverResult, dispatch: DispatchResult) -> Finding:
    """Say what a killed node cost, and how long the coordinator keeps a request."""
    added, wrong = dispatch.added_ms, len(failover.wrong)
    values: Row = {"node": failover.failures.node, "requests": failover.plan.requests}
    if failover.lost or failover.duplicated or wrong:
        return say(
            "{key} of {requests:request} were not answered whole and once when {node} died ({lost} lost, {twice} "
            "twice).",
            key=wrong,
            unit=say("requests"),
            lost=failover.lost,
            twice=failover.duplicated,
            **values,
        )
    if added is None:
        return say(
            "None of {requests:request} was lost when {node} died; without a failure, none got its right answer.",
            **values,
        )
    text = "Coordinators add over {limit:g} ms; none of {requests:request} was lost when {node} died."
    if added.p95 < dispatch.limit_ms:
        text = "None of {requests:request} was lost when {node} died; coordinators add less than {limit:g} ms."
    return say(
        text,
        key=added.p95,
        limit=dispatch.limit_ms,
        low=added.p95_low,
        high=added.p95_high,
        unit=say("ms at p95"),
        rule=".0f",
        **values,
    )


def _failover_findings(failover: FailoverResult) -> list[Finding]:
    left = len(failover.left_node)
    said = [say("{node} was killed while it answered {left:request}.", node=failover.failures.node, left=left)]
    if left:
        said.append(say("The interrupted requests paused for {pause:.1f} s at most.", pause=max(failover.node_gaps_s)))
    return said


def _return_findings(failover: FailoverResult) -> list[Finding]:
    noticed_s, back_s = _after_failure_s(failover)
    if noticed_s is None:
        return [say("No coordinator noticed during the run that {node} was gone.", node=failover.failures.node)]
    said = [say("Every coordinator noticed the failure after {seconds:.1f} s.", seconds=noticed_s)]
    if back_s is None:
        return [*said, say("The node was not back when the last request ended.")]
    if failover.chosen_s is None:
        text = "After its restart the node was available again after {seconds:.1f} s, but got no further request."
        return [*said, say(text, seconds=back_s)]
    return [
        *said,
        say(
            "After its restart the node was available again after {seconds:.1f} s and got a request after {chosen:.1f} "
            "s.",
            seconds=back_s,
            chosen=failover.chosen_s - failover.failures.started_s,
        ),
    ]


def _latency_findings(dispatch: DispatchResult) -> list[Finding]:
    added, burst = dispatch.added_ms, dispatch.burst.added_ms
    if added is None:
        text = "None of {requests:request} got its right answer: {error}."
        return [say(text, requests=dispatch.requests, error=dispatch.first_error)]
    values = {"clients": dispatch.concurrency, "limit": dispatch.limit_ms, "added": added.p95}
    if added.p95 < dispatch.limit_ms:
        text = "With {clients:client} the coordinator adds {added:.0f} ms at p95, within the {limit:g} ms target."
    else:
        text = "With {clients:client} the coordinator adds {added:.0f} ms at p95, over the {limit:g} ms target."
    said = [say(text, **values)]
    if burst:
        text = "When all clients ask at the same moment it adds {added:.0f} ms at p95."
        said.append(say(text, added=burst.p95))
    errors = dispatch.errors + dispatch.burst.errors
    right = say("{errors:answer} were missing or wrong.", errors=errors) if errors else say("Every answer was right.")
    return [*said, right]


def _balance_findings(balance: BalanceResult) -> list[Finding]:
    kept = [share.balancer for share in balance.shares if share.within_1]
    broken = [share.balancer for share in balance.shares if share.within_1 is False]
    late = [each for each in balance.failovers if not each.within_limit]
    said = say(
        "With {balancers}, each simulated node got its promised share of {requests:request} within 1.",
        balancers=kept,
        requests=balance.requests,
    )
    if broken:
        said = say("With {balancers}, simulated nodes did not get their promised share within 1.", balancers=broken)
    if late:
        text = "In {late:case} a failed node still got requests or was not back in {limit:g} s."
        return [said, say(text, late=len(late), limit=balance.limit_s)]
    return [
        said,
        say(
            "A failed node got its last request after {worst:.1f} s at most, and was back within {limit:g} s.",
            worst=max(each.gone_s for each in balance.failovers),
            limit=balance.limit_s,
        ),
    ]


def _vote_findings(votes: VoteLoadResult) -> list[Finding]:
    said = []
    for kind, loads in votes.loads.items():
        at, rising = capacity(loads)
        values = {
            "kind": kind,
            "rate": at.requests_per_s,
            "each": at.requests_per_s / at.nodes,
            "votes": at.concurrency,
        }
        if rising:
            text = (
                "Votes on {kind} nodes: {rate:.2f} votes/s, {each:.2f} a node, still rising at {votes:concurrent vote}."
            )
        else:
            text = "Votes on {kind} nodes: {rate:.2f} votes/s, {each:.2f} a node, saturated at {votes:concurrent vote}."
        said.append(say(text, **values))
    return said


def acceptance(week: WeekResults) -> list[AcceptanceRow]:
    """Judge load balancing, the task queue, the coordinator's added latency and the failover."""
    return [_balance_row(week), _queue_row(week), _coordinator_row(week), _failover_row(week)]


def _balance_row(week: WeekResults) -> AcceptanceRow:
    results = week.read("balance", BalanceResult)
    found = [
        (bool(share.within_1), result.requests, run, share.counts)
        for run, result in results.items()
        for share in result.shares
        if share.balancer == BALANCED
    ]
    if not found:
        return BALANCE.not_measured()
    even, requests, run, counts = min(found)
    measured = say("{counts} of {requests:request}", counts=counts, requests=requests)
    few = too_few(requests, BALANCED_REQUESTS, say("requests"))
    return BALANCE.row(measured, even, say("the coordinator's balancer, simulated nodes"), run, few=few)


def _queue_row(week: WeekResults) -> AcceptanceRow:
    failovers, queues = week.read("failover", FailoverResult), week.read("queue", QueueResult)
    if not failovers and not queues:
        return QUEUE.not_measured()
    # All runs count together; the one that is named is the one with a loss, or else the one with most requests.
    all_runs: list[tuple[str, FailoverResult | QueueResult]] = [*failovers.items(), *queues.items()]
    run, _ = max(all_runs, key=lambda item: (item[1].lost + item[1].duplicated, _requests(item[1])))
    results = [each for _, each in all_runs]
    lost, twice = sum(each.lost for each in results), sum(each.duplicated for each in results)
    interrupted = sum(
        each.reclaimed if isinstance(each, QueueResult) else len({*each.left_node, *each.left_coordinator})
        for each in results
    )
    killed = [say("{workers:worker} killed", workers=each.disturbed) for each in queues.values()]
    counted = say(
        "{lost} lost, {twice} answered twice of {requests:request}, {interrupted} of them interrupted",
        lost=lost,
        twice=twice,
        requests=sum(map(_requests, results)),
        interrupted=interrupted,
    )
    measured = joined(counted, *map(_killed, failovers.values()), *killed)
    if not (lost or twice or interrupted):
        return QUEUE.row(measured, "not measured here", NOTHING_ON_IT, run)
    few = too_few(interrupted, INTERRUPTED_TARGET, say("interrupted requests"))
    return QUEUE.row(measured, not (lost or twice), "", run, few=few)


def _requests(result: FailoverResult | QueueResult) -> int:
    return result.tasks if isinstance(result, QueueResult) else result.plan.requests


def _killed(failover: FailoverResult) -> str:
    killed = [(failover.failures.node, failover.left_node)]
    if failover.failures.coordinator:
        killed.append((failover.failures.coordinator, failover.left_coordinator))
    text = "{member} was killed while it answered {left:request}"
    return joined(*(say(text, member=member, left=len(left)) for member, left in killed))


def _coordinator_row(week: WeekResults) -> AcceptanceRow:
    results = week.read("dispatch", DispatchResult)
    if not results:
        return COORDINATOR.not_measured()
    results = {run: each for run, each in results.items() if each.concurrency >= CONCURRENCY_TARGET} or results
    # No right answer, no latency: that is the least favourable.
    p95_ms = {run: result.added_ms.p95 if result.added_ms else math.inf for run, result in results.items()}
    run = max(p95_ms, key=lambda run: (results[run].errors, p95_ms[run]))
    worst = results[run]
    values: Row = {"requests": worst.requests, "clients": worst.concurrency}
    said = say("no latency of {requests:request} from {clients:client}", **values)
    low = worst.added_ms.p95_low if worst.added_ms else None
    if added := worst.added_ms:
        p95 = estimate(added.p95, added.p95_low, added.p95_high)
        said = say("p95 {p95:.0f} ms of {requests:request} from {clients:client}", p95=p95, **values)
    few = (
        too_few(worst.concurrency, CONCURRENCY_TARGET, say("clients")),
        too_few(worst.requests, LEAST_FOR_P95, say("requests")),
    )
    shared = "clients, coordinator and nodes, whose model is a wait of {seconds:g} s, share one machine"
    return COORDINATOR.row(
        joined(said, say("{errors} without their right answer", errors=worst.errors)),
        p95_ms[run] < ADDED_TARGET_MS and not worst.errors,
        say(shared, seconds=worst.seconds),
        run,
        few=joined(*few),
        noisy="" if worst.errors else too_noisy(worst.noise),
        certain=bool(worst.errors) or (None if low is None else low > ADDED_TARGET_MS),
    )


def _failover_row(week: WeekResults) -> AcceptanceRow:
    results = week.read("failover", FailoverResult)
    return least_favourable(_row_of(run, each) for run, each in results.items()) or FAILOVER.not_measured()


def _row_of(run: str, failover: FailoverResult) -> AcceptanceRow:
    noticed_s, back_s = _after_failure_s(failover)
    requests = failover.plan.requests
    whole = say(
        "{whole} of {requests:request} answered whole and once", whole=requests - len(failover.wrong), requests=requests
    )
    noticed = say("not noticed in the run") if noticed_s is None else say("noticed after {s:.1f} s", s=noticed_s)
    back = say("not back in the run") if back_s is None else say("back after {s:.1f} s", s=back_s)
    measured = joined(whole, _killed(failover), noticed, back)
    verdict, reason = _judge_failover(failover)
    # Only of times is nothing said; what was lost is lost on any machine.
    noisy = "" if reason == NOT_ONCE else too_noisy(failover.noise)
    return FAILOVER.row(measured, verdict, reason, run, noisy=noisy)


def _judge_failover(failover: FailoverResult) -> tuple[Verdict, Text]:
    if failover.wrong or failover.lost or failover.duplicated:
        return "fail", NOT_ONCE
    times_s = _after_failure_s(failover)
    if any(each is not None and each > NODE_LIMIT_S for each in times_s):
        return "fail", ""
    if not failover.left_node:
        return "not measured here", NOTHING_ON_IT
    if None in times_s:
        # Nobody looks at the nodes any more once the last stream has ended.
        looked_s = max(stream.ended_s or 0.0 for stream in failover.streams) - failover.failures.started_s
        if looked_s >= NODE_LIMIT_S:
            return "fail", ""
        return "not measured here", say("the run ended {s:.1f} s after the node was started again", s=looked_s)
    return "pass", say("the nodes' model is a wait")


def _after_failure_s(failover: FailoverResult) -> tuple[float | None, float | None]:
    """Return how long after its end a node was left alone, and how long after its start it might be chosen."""
    failures, shut_s, open_s = failover.failures, failover.shut_s, failover.open_s
    noticed_s = None if shut_s is None else shut_s - failures.killed_s
    return noticed_s, None if open_s is None else open_s - failures.started_s
