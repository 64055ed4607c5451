"""Many clients at one pipeline (`qubic_lab.bench.concurrency`): latencies and speeds in words and pictures."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qubic_lab.bench.concurrency import ConcurrencyLevel, ConcurrencyResult
from qubic_lab.bench.memory import MemoryResult
from qubic_lab.bench.pace import Pace
from qubic_lab.bench.prediction_result import PredictionResult
from qubic_lab.bench.result import LEAST_FOR_P95
from qubic_lab.studies.acceptance import (
    AcceptanceRow,
    Criterion,
    WeekResults,
    joined,
    meaningless_note,
    too_few,
    too_noisy,
)
from qubic_lab.studies.finding import Finding, answering, estimate, extent, say
from qubic_lab.studies.style import DARK, INK, PALE, Dot, columns, dots, plot

QUESTION = "speed"
Measure = tuple[str, Sequence[float], str, str, Sequence[float]]
"""Name, samples, unit, which is better, and the machine's speed beside each sample, if it was probed."""

P95_TARGET_S = 10.0
CLIENTS_TARGET = 10
REPLICAS = "D"
LATENCY = Criterion(
    "11.7",
    "Latency and concurrency",
    f"p95 < {P95_TARGET_S:g} s end to end, {CLIENTS_TARGET} clients at once, answers unchanged",
    "concurrency",
)
BENCHMARK = Criterion(
    "11.8",
    "Benchmark report",
    "single against concurrent, resource use, against one node and against replicas",
    "concurrency and split_strategies",
)
_LISTS = ("tokens_per_s_samples", "compute_shares", "changed", "latencies_s")


def level_rows(result: ConcurrencyResult) -> list[dict[str, Any]]:
    """Return one row a level: latencies, waits and speeds, and the share of time that each rank computed."""
    return [
        {
            **{name: value for name, value in asdict(level).items() if name not in _LISTS},
            **{f"rank_{rank}_compute_share": share for rank, share in enumerate(level.compute_shares)},
        }
        for level in result.levels
    ]


def findings(result: ConcurrencyResult) -> list[Finding]:
    """Say how concurrent clients change the answers, the waiting time and the speed."""
    few, many = _ends(result)
    said = [_latency_finding(result), _answers_finding(result)]
    shares = {each.clients: [round(share, 2) for share in each.compute_shares] for each in (few, many)}
    if few is many:
        text = "With {clients:client}, the ranks computed for {shares:percent} of a block's time."
        said.append(say(text, clients=few.clients, shares=shares[few.clients]))
        return answering(QUESTION, said)
    ends = {"few": few.clients, "many": many.clients}
    said.append(
        say(
            "{few:client} got {slow:.1f} tokens/s, {many:client} together {fast:.1f} ({speed:.1f} times as many); the "
            "median answer took {time:.1f} times as long.",
            slow=few.tokens_per_s,
            fast=many.tokens_per_s,
            speed=many.tokens_per_s / few.tokens_per_s,
            time=many.p50_s / few.p50_s,
            **ends,
        )
    )
    said.append(
        say(
            "The ranks computed for this share of a block's time: {alone:percent} with {few:client}, "
            "{together:percent} with {many:client}.",
            alone=shares[few.clients],
            together=shares[many.clients],
            **ends,
        )
    )
    return answering(QUESTION, said)


def _answers_finding(result: ConcurrencyResult) -> Finding:
    few, many = _ends(result)
    worst = max(result.levels, key=lambda level: len(level.changed))
    if all(level.answers_unchanged for level in result.levels):
        return say(
            "All {answers} answers to {clients} clients equal, token for token, the answers given to a single client.",
            answers=sum(level.requests for level in result.levels),
            clients=extent([few.clients, many.clients]),
        )
    return say(
        "Concurrency changes answers: with {clients:client}, {changed} of {requests} questions got other tokens than "
        "alone.",
        clients=worst.clients,
        changed=len(worst.changed),
        requests=result.requests,
    )


def target_level(result: ConcurrencyResult) -> ConcurrencyLevel:
    """Return the level that the target is about: the first with ten clients or more, or else the one with most."""
    enough = (level for level in result.levels if level.clients >= CLIENTS_TARGET)
    return min(enough, key=lambda level: level.clients, default=_ends(result)[1])


def _latency_finding(result: ConcurrencyResult) -> Finding:
    level = target_level(result)
    values: dict[str, Any] = {"key": level.p95_s, "low": level.p95_low_s, "high": level.p95_high_s}
    values |= {"clients": level.clients, "unit": say("s at p95"), "limit": P95_TARGET_S}
    if level.p95_s < P95_TARGET_S:
        return say("With {clients:client}, p95 latency is {key:.2f} s, within the {limit:g} s target.", **values)
    return say("With {clients:client}, p95 latency is {key:.2f} s, over the {limit:g} s target.", **values)


def measures(result: ConcurrencyResult, pace: Pace) -> list[Measure]:
    """Return what is compared week by week: the speeds with fewest and with most clients, and the CPU time.

    Few on purpose: the more a week compares, the larger a change must be to stand out.
    """
    speeds: list[Measure] = [
        (f"tokens_per_s_{level.clients}_clients", level.tokens_per_s_samples, "tokens/s", "higher", ())
        for level in dict.fromkeys(_ends(result))
    ]
    return [*speeds, ("cpu_ms_of_the_engine", pace.cpu_ms, "ms", "lower", pace.fixed_per_s)]


def _ends(result: ConcurrencyResult) -> tuple[ConcurrencyLevel, ConcurrencyLevel]:
    levels = sorted(result.levels, key=lambda level: level.clients)
    return levels[0], levels[-1]


def acceptance(week: WeekResults) -> list[AcceptanceRow]:
    """Judge latency with many clients, and whether the benchmark has all that it must compare."""
    return [_latency_row(week), _benchmark_row(week)]


def _latency_row(week: WeekResults) -> AcceptanceRow:
    results = week.read("concurrency", ConcurrencyResult)
    if not results:
        return LATENCY.not_measured()
    # The target names ten clients: the level of each run that is next to it, and of those the least favourable.
    nearest = {run: target_level(result) for run, result in results.items()}
    nearest = {run: level for run, level in nearest.items() if level.clients >= CLIENTS_TARGET} or nearest
    run, level = max(nearest.items(), key=lambda item: item[1].p95_s)
    unchanged = all(each.answers_unchanged for result in results.values() for each in result.levels)
    few = (
        too_few(level.clients, CLIENTS_TARGET, say("clients")),
        too_few(level.requests, LEAST_FOR_P95, say("requests")),
    )
    p95 = level.p95_s if few[1] else estimate(level.p95_s, level.p95_low_s, level.p95_high_s)
    measured = joined(
        say(
            "p95 {p95:.2f} s of {requests:request} from {clients:client}",
            p95=p95,
            **columns(level, "requests", "clients"),
        ),
        say("answers unchanged at every level" if unchanged else "answers changed by concurrency"),
    )
    return LATENCY.row(
        measured,
        level.p95_s < P95_TARGET_S and unchanged,
        meaningless_note(results[run].meaningless),
        run,
        few=joined(*few),
        noisy=too_noisy(results[run].noise) if unchanged else "",
    )


def _benchmark_row(week: WeekResults) -> AcceptanceRow:
    levels = {
        level.clients: (run, level)
        for run, result in week.read("concurrency", ConcurrencyResult).items()
        for level in result.levels
    }
    predictions, memories = week.read("prediction", PredictionResult), week.read("memory", MemoryResult)
    cells = [cell for result in predictions.values() for cell in result.cells]
    several = 1 in levels and len(levels) > 1
    has = (
        (say("single against concurrent"), several),
        (say("memory of each rank"), bool(memories)),
        (say("one node"), any(cell.ranks == 1 for cell in cells)),
        (say("replicas"), any(cell.strategy == REPLICAS for cell in cells)),
    )
    measured = [what for what, there in has if there]
    if not measured:
        return BENCHMARK.not_measured()
    if several:
        ratio = levels[max(levels)][1].tokens_per_s / levels[1][1].tokens_per_s
        measured.append(say("{clients:client} get {ratio:.1f} × the tokens/s of one", clients=max(levels), ratio=ratio))
    sources = [*(run for run, _ in levels.values()), *predictions, *memories]
    return BENCHMARK.complete(joined(*measured), [what for what, there in has if not there], sources[0])


def latencies(result: ConcurrencyResult) -> Figure:
    """Draw the quantiles of latency and of the wait for a first token against the number of clients."""
    levels = result.levels
    clients = [level.clients for level in levels]
    with plot(ncols=2) as (figure, axes):
        p99, p95, p50 = (
            [Dot(level.p99_s, None, None) for level in levels],
            [Dot(level.p95_s, level.p95_low_s, level.p95_high_s) for level in levels],
            [Dot(level.p50_s, level.p50_low_s, level.p50_high_s) for level in levels],
        )
        dots(axes, clients, p99, ":^", "white", "99 % of answers")
        dots(axes, clients, p95, "--s", PALE, "95 % of answers")
        dots(axes, clients, p50, "-o", DARK, "50 % of answers")
        first = [level.ttft_p50_s for level in levels]
        axes.plot(clients, first, "-.x", color=INK, label="50 % of first tokens")
        _label(axes, clients, "time from the question on (s)")
    return figure


def throughput(result: ConcurrencyResult) -> Figure:
    """Draw the tokens per second of all clients together against their number, with each block as a dot."""
    clients = [level.clients for level in result.levels]
    with plot(ncols=2) as (figure, axes):
        for level in result.levels:
            samples = level.tokens_per_s_samples
            axes.plot([level.clients] * len(samples), samples, "o", color=PALE, markeredgecolor=DARK, label="a block")
        speeds = [level.tokens_per_s for level in result.levels]
        axes.plot(clients, speeds, "-", color=DARK, label="median of blocks")
        _label(axes, clients, "new tokens of all clients (tokens/s)")
    return figure


def _label(axes: Axes, clients: Sequence[int], what: str) -> None:
    axes.set_xticks(clients, [str(count) for count in clients])
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("clients at once (number)")
    axes.set_ylabel(what)
