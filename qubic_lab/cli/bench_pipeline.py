"""`qubic-lab bench …` of pipelines: what a model costs on this machine."""

from typing import TYPE_CHECKING, Annotated

import typer

from qubic_lab.cli import options
from qubic_lab.cli.console import (
    note_meaningless,
    print_json,
    print_table,
    progress_bar,
    require,
    samples_text,
    split_list,
    split_numbers,
)
from qubic_lab.errors import check_at_least

if TYPE_CHECKING:
    from qubic_lab.bench.concurrency import ConcurrencyResult
    from qubic_lab.bench.engine import EngineResult, Spread


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
            samples_text(level.tokens_per_s, level.tokens_per_s_samples),
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


def _end_text(end_s: float | None) -> str:
    return "?" if end_s is None else f"{end_s:.2f}"


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
