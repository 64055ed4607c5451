"""`qubic-lab bench …`: what a model costs on this machine."""

from typing import Annotated

import typer

from qubic_lab.cli import options
from qubic_lab.cli.console import note_meaningless, print_json, progress_bar
from qubic_lab.errors import check_at_least


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Measure what a model costs on this machine.",
        epilog="Example: qubic-lab bench memory --model smollm2 --ranks 2",
        rich_markup_mode=None,
    )
    # A callback keeps `bench memory` a command of its own while it is the only one.
    group.callback()(lambda: None)
    group.command(epilog="Example: qubic-lab bench memory --model smollm2 --ranks 2")(memory)
    app.add_typer(group, name="bench")


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
