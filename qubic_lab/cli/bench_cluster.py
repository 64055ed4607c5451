"""`qubic-lab bench …` of the cluster: balancers, queue, coordinator, what a failure costs, how far it reaches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from qubic_lab.cli import options
from qubic_lab.cli.console import (
    note_meaningless,
    print_json,
    print_table,
    progress_bar,
    read_seconds,
    samples_text,
    split_numbers,
)
from qubic_lab.errors import InputError

if TYPE_CHECKING:
    from qubic_lab.bench.balance import BalanceResult, Failover, Share
    from qubic_lab.bench.dispatch import DispatchResult, Load, Quantiles
    from qubic_lab.bench.failover import FailoverResult
    from qubic_lab.bench.scale import ProcessCosts, ScaleResult
    from qubic_lab.bench.scale import Spread as Windows


def balance(
    requests: Annotated[int, typer.Option(help="Requests while no node fails.")] = 50,
    nodes: Annotated[int, typer.Option(help="Simulated nodes, of weights 3, 2, 1, 3, 2, 1 and so on.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the requests' lengths and the balancers' draws.")] = 0,
    json: options.Json = False,
) -> None:
    """Show how each balancer shares requests, and how soon a failed node is left alone, on simulated nodes."""
    from qubic_lab.bench.balance import bench_balance

    result = bench_balance(requests, nodes, seed)
    if json:
        print_json(result.to_dict())
        return
    _show_balance(result)


def _show_balance(result: "BalanceResult") -> None:
    shares = [(share.balancer, " / ".join(map(str, share.counts)), _promise_text(share)) for share in result.shares]
    print_table(("balancer", "requests of each node", "promised"), shares)
    typer.echo("")
    failovers = [_failover_texts(each, result.limit_s) for each in result.failovers]
    header = ("balancer", "a node", "nothing after s", "ready after s", "chosen after s", "failed", "verdict")
    print_table(header, failovers)
    typer.echo("")
    typer.echo(
        f"Simulated: {result.nodes} nodes of weights {' / '.join(map(str, result.weights))} on simulated time, seed "
        f"{result.seed}; these are decisions, not speeds. {result.requests} requests while none fails; "
        f"{result.outage_requests} while one fails at {result.fails_at_s:g} s and returns at "
        f"{result.returns_at_s:g} s, the worst over nodes of each weight. Commit {result.commit}"
    )


def _promise_text(share: "Share") -> str:
    if share.expected is None:
        return "-"
    promised = " / ".join(f"{each:.1f}" for each in share.expected)
    return f"{promised}: {'kept within 1' if share.within_1 else 'missed by more than 1'}"


def _failover_texts(failover: "Failover", limit_s: float) -> tuple[str, ...]:
    return (
        *(failover.balancer, failover.kind, f"{failover.gone_s:.1f}"),
        *("never" if each is None else f"{each:.1f}" for each in (failover.ready_s, failover.back_s)),
        *(f"{failover.failed}", f"within {limit_s:g} s" if failover.within_limit else f"over {limit_s:g} s"),
    )


def dispatch(
    requests: Annotated[int, typer.Option(help="To echo nodes: real nodes with a wait in place of the engine.")] = 1000,
    concurrency: Annotated[int, typer.Option(help="Clients at once; each node has a slot for all of them.")] = 50,
    nodes: Annotated[int, typer.Option(help="Echo nodes.")] = 3,
    seconds: Annotated[float, typer.Option(help="Their wait.")] = 1.0,
    new_tokens: Annotated[int, typer.Option(help="Tokens of their answers, evenly over the wait.")] = 16,
    real_requests: Annotated[int, typer.Option(help="To real nodes, one for each of two cores; 0: none.")] = 100,
    model: options.Model = "smollm2",
    balancer: Annotated[str, typer.Option(help="How a node is chosen.")] = "two-choices",
    json: options.Json = False,
) -> None:
    """Show what a coordinator adds to the nodes' own time, for many clients at once."""
    from qubic_lab.bench.dispatch import bench_dispatch

    settings = (requests, concurrency, nodes, seconds, new_tokens, real_requests, model, balancer)
    with progress_bar() as progress:
        result = bench_dispatch(*settings, progress)
    note_meaningless(result.meaningless)
    if json:
        print_json(result.to_dict())
        return
    _show_dispatch(result)


def _show_dispatch(result: "DispatchResult") -> None:
    loads = [("echo", result.echo), ("echo, bursts", result.burst)]
    if result.real is not None:
        loads.append(("real", result.real))
    counts, added = ("nodes", "clients", "requests", "errors"), ("added p50 ms", "p95 (95 % interval)", "p99")
    header = ("kind", *counts, *added, "node p50 ms", "requests/s", "tokens/s")
    print_table(header, [(name, *_load_texts(load)) for name, load in loads])
    typer.echo("")
    for name, load in loads:
        if load.first_error:
            typer.echo(f"an error of {name}: {load.first_error}")
    verdict = "below" if result.within_limit else "NOT below, or with errors,"
    typer.echo(f"echo nodes: p95 {verdict} {result.limit_ms:g} ms and no errors is what is asked")
    real = f"{result.model}, {result.dtype}, threads of a real node: {result.threads}, " if result.real else ""
    typer.echo(
        f"echo nodes wait {result.seconds:g} s for {result.echo.new_tokens} tokens; {real}{result.balancer}, "
        f"{result.machine}, commit {result.commit}"
    )


def _load_texts(load: "Load") -> tuple[str, ...]:
    def ms(quantiles: "Quantiles | None", name: str) -> str:
        return "-" if quantiles is None else f"{getattr(quantiles, name):.1f}"

    interval = "-"
    if (added := load.added_ms) is not None:
        low, high = ("?" if end is None else f"{end:.1f}" for end in (added.p95_low, added.p95_high))
        interval = f"{added.p95:.1f} ({low} to {high})"
    return (
        *(f"{load.nodes}", f"{load.concurrency}", f"{load.requests}", f"{load.errors}", ms(added, "p50"), interval),
        *(ms(added, "p99"), ms(load.node_ms, "p50"), f"{load.requests_per_s:.1f}", f"{load.tokens_per_s:.0f}"),
    )


def failover(
    requests: Annotated[int, typer.Option(help="Streams, one after the other.")] = 24,
    every: Annotated[float, typer.Option(help="Seconds between two of them.")] = 0.75,
    nodes: Annotated[int, typer.Option(help="Echo nodes: real nodes with a wait in place of the engine.")] = 3,
    new_tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 40,
    seconds: Annotated[float, typer.Option(help="An answer takes.")] = 4.0,
    kill_coordinator: Annotated[
        bool, typer.Option("--kill-coordinator", help="Start two coordinators, and kill one later.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Kill a node in the middle of its answers, start it again, and show what each client saw, token by token."""
    from qubic_lab.bench.failover import FailoverPlan, bench_failover

    plan = FailoverPlan(requests, every, nodes, new_tokens, seconds, kill_coordinator)
    with progress_bar() as progress:
        result = bench_failover(plan, progress)
    if json:
        print_json(result.to_dict())
        return
    _show_failover(result)


def _show_failover(result: "FailoverResult") -> None:
    failures = result.failures
    streams = [
        (
            *(f"{s.number}", f"{s.begun_s:.2f}", "never" if s.ended_s is None else f"{s.ended_s:.2f}"),
            *(f"{len(s.token_ids)}", f"{s.attempts}", f"{s.longest_gap_s:.2f}"),
            " → ".join(f"{stay.node} from token {stay.known}" for stay in s.stays),
            " → ".join(s.coordinators),
        )
        for s in result.streams
    ]
    header = ("request", "begun s", "ended s", "tokens", "tries", "longest gap s", "nodes", "coordinators asked")
    print_table(header, streams)
    typer.echo("")
    typer.echo(
        f"{failures.node} killed at {failures.killed_s:.2f} s, noticed by all coordinators at "
        f"{_moment(result.shut_s)}, started again at {failures.started_s:.2f} s, may be chosen at "
        f"{_moment(result.open_s)}, chosen at {_moment(result.chosen_s)}; {len(result.left_node)} streams moved, gaps "
        f"{_gaps(result.node_gaps_s)}"
    )
    if failures.coordinator is not None:
        typer.echo(
            f"{failures.coordinator} killed at {_moment(failures.coordinator_killed_s)}; the other one went on with "
            f"{len(result.left_coordinator)} streams, gaps {_gaps(result.coordinator_gaps_s)}; "
            f"{len(result.asked_again)} clients asked it"
        )
    typer.echo(f"{result.lost} lost, {result.duplicated} answered twice, {len(result.wrong)} streams not right")
    typer.echo(f"{result.machine}, commit {result.commit}")


def _moment(at_s: float | None) -> str:
    return "no time" if at_s is None else f"{at_s:.2f} s"


def _gaps(gaps_s: Sequence[float]) -> str:
    return f"{min(gaps_s):.2f} to {max(gaps_s):.2f} s" if gaps_s else "none"


def scale(
    nodes: Annotated[str, typer.Option(help="Numbers of registered nodes, rising.")] = "10,100,300,1000",
    real: Annotated[str, typer.Option(help="Numbers of real nodes, as a check; empty: none.")] = "3,6,12",
    requests_per_node: Annotated[float, typer.Option(help="The load that is assumed: of a node in a second.")] = 0.1,
    window: Annotated[float, typer.Option(help="Seconds of a look at the processes; three each.")] = 5.0,
    json: options.Json = False,
) -> None:
    """Show what registry, queue and choice cost with many nodes, and which process first needs a whole core."""
    from qubic_lab.bench.scale import bench_scale

    levels = split_numbers("--nodes", nodes)
    reals = split_numbers("--real", real) if real else ()
    with progress_bar() as progress:
        result = bench_scale(levels, reals, requests_per_node, window, progress)
    if json:
        print_json(result.to_dict())
        return
    _show_scale(result)


def _show_scale(result: "ScaleResult") -> None:
    choices = tuple(result.calls[0].choose_ms)
    calls = [
        (
            *(f"{c.nodes}", _windows_text(c.nodes_ms), _windows_text(c.update_ms), _windows_text(c.beat_ms)),
            *(f"{c.choose_ms[name].median:.2f}" for name in choices),
            *(f"{c.tasks_per_s:.0f}", f"{c.redis_bytes:.0f}"),
        )
        for c in result.calls
    ]
    header = ("nodes", "read all ms", "take over ms", "heartbeat ms", *choices, "tasks/s", "bytes a node")
    print_table(header, calls)
    typer.echo("")
    idle = ("coordinator idle", "Redis idle")
    header = ("nodes", "of them names", "heartbeats/s", *idle, "requests/s", "coordinator busy", "Redis busy")
    print_table(header, [_process_texts(each) for each in (*result.processes, *result.check)])
    typer.echo("")
    limit = result.limit
    typer.echo(
        f"at {result.requests_per_node_s:g} requests/s a node one coordinator can serve {limit.nodes:.0f} nodes "
        f"({limit.low:.0f} to {limit.high:.0f}{', extrapolated' if limit.beyond else ''}); the first at its end: "
        f"{limit.process}"
    )
    typer.echo(f"a heartbeat every {result.beat_every_s:g} s, {result.machine}, commit {result.commit}")


def _process_texts(costs: "ProcessCosts") -> tuple[str, ...]:
    return (
        *(f"{costs.nodes}", f"{costs.names}", f"{costs.beats_per_s:.1f}"),
        *(_windows_text(each, ".1%") for each in (costs.coordinator_idle, costs.redis_idle)),
        _windows_text(costs.requests_per_s, ".1f"),
        *(_windows_text(each, ".0%") for each in (costs.coordinator_busy, costs.redis_busy)),
    )


def _windows_text(windows: "Windows", form: str = ".2f") -> str:
    return f"{windows.median:{form}} ({windows.low:{form}} to {windows.high:{form}})"


def queue(
    tasks: Annotated[int | None, typer.Option(help="Tasks to do: 20000, or 2000 in a run of --compare.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that do them.")] = 4,
    kill_every: Annotated[str | None, typer.Option(help="Kill a worker so often, and start another: 2s.")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="Stop it for 8 s (SIGSTOP) instead.")] = False,
    compare: Annotated[
        int | None, typer.Option(metavar="PAIRS", help="Disturb none: run so often beside SAQ, and beside dramatiq.")
    ] = None,
    work_ms: Annotated[float | None, typer.Option(min=0, help="Time of a task: 2, or 5 with --compare.")] = None,
    json: options.Json = False,
) -> None:
    """Show whether the task queue loses a task or answers one twice while its workers are killed or stopped.

    With --compare: how fast it is beside SAQ and dramatiq.
    """
    from qubic_lab.bench.queue import bench_queue

    if compare is not None:
        if stop or kill_every is not None:
            raise InputError("--compare disturbs no worker: leave out --kill-every and --stop")
        _compare_queues(tasks, workers, work_ms, compare, json)
        return
    tasks = 20_000 if tasks is None else tasks
    work_ms = 2.0 if work_ms is None else work_ms
    every_s = read_seconds("--kill-every", "2s" if kill_every is None else kill_every)
    with progress_bar() as progress:
        result = bench_queue(tasks, workers, "stop" if stop else "kill", every_s, work_ms, progress)
    if json:
        print_json(result.to_dict())
        return
    typer.echo(
        f"{result.tasks} tasks: {result.lost} lost, {result.duplicated} duplicated, {result.wrong} wrong, "
        f"{result.dead} dead; {result.executed} tries, {result.reclaimed} leases taken back, "
        f"{result.fenced} writes refused"
    )
    typer.echo(
        f"{result.disturbed} times a worker of {result.workers} was {'stopped' if stop else 'killed'}, every "
        f"{result.every_s:g} s; {result.seconds:.1f} s, {result.tasks_per_s:.0f} tasks/s, {result.server}, "
        f"{result.machine}, commit {result.commit}"
    )


def _compare_queues(tasks: int | None, workers: int, work_ms: float | None, pairs: int, json: bool) -> None:
    from qubic_lab.bench.queue_peers import compare_queues

    tasks = 2_000 if tasks is None else tasks
    work_ms = 5.0 if work_ms is None else work_ms
    with progress_bar() as progress:
        result = compare_queues(tasks, workers, work_ms, pairs, progress)
    if json:
        print_json(result.to_dict())
        return
    systems = [
        (
            *(s.system, s.version, samples_text(s.tasks_per_s, s.tasks_per_s_runs)),
            *(f"{s.overhead_ms:.2f}", f"{s.slept_ms:.2f}", f"{s.repeated}"),
        )
        for s in result.systems
    ]
    print_table(("system", "version", "tasks/s (low to high)", "overhead ms", "slept ms", "done again"), systems)
    typer.echo("")
    ratios = [(r.peer, f"{r.median:.2f} ({r.low:.2f} to {r.high:.2f})", f"{len(r.pairs)}") for r in result.ratios]
    print_table(("tasks/s ÷ those of", "median (low to high)", "pairs"), ratios)
    typer.echo("")
    typer.echo(
        f"{result.ratio:.2f} times the tasks/s of the faster peer, {result.faster_peer}: "
        f"{'at least' if result.fast_enough else 'below'} {result.least_ratio:g}"
    )
    typer.echo(
        f"{result.tasks} tasks of {result.work_ms:g} ms a run, {result.workers} workers, {result.server}, "
        f"{result.machine}, commit {result.commit}"
    )
