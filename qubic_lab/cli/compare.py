"""`qubic-lab compare`: is the split model still the same model?"""

from pathlib import Path
from typing import Annotated

import typer

from qubic_lab.cli import options
from qubic_lab.cli.console import note_meaningless, print_json, progress_bar, split_list, split_numbers


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: qubic-lab compare --ranks 2 --strategy A,B,C --batch 1,4 --dtype fp32,bf16")(compare)


def compare(
    model: options.Model = "smollm2",
    ranks: Annotated[str, typer.Option(help="Numbers of ranks, such as 2 or 2,3.")] = "2",
    strategy: Annotated[
        str | None, typer.Option(help="Strategies.", show_default="A,B,C; A for two ranks only")
    ] = None,
    batch: Annotated[str, typer.Option(help="Requests that decode together in a lane.")] = "1,4",
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16.")] = "fp32,bf16",
    questions: Annotated[
        Path | None,
        typer.Option(help="A file of questions, one JSON object a line.", show_default="the committed ones"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many of the first questions.", show_default="all")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 32,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Compare N ranks with one rank, token by token and bit by bit, and one rank with transformers."""
    from qubic_lab.evals.compare import compare as run_comparison

    numbers = split_numbers("--ranks", ranks)
    strategies = split_list("--strategy", strategy) if strategy is not None else None
    batches = split_numbers("--batch", batch)
    dtypes = split_list("--dtype", dtype)
    with progress_bar() as progress:
        comparison = run_comparison(
            model, numbers, strategies, batches, dtypes, questions, limit, max_new_tokens, threads, progress
        )
    note_meaningless(comparison.meaningless)
    if json:
        print_json(comparison.to_dict())
        return
    for case in comparison.cases:
        same = f" (same layers as {case.measured_as})" if case.measured_as else ""
        typer.echo(
            f"{case.ranks} ranks, strategy {case.strategy}{same}, layers {'/'.join(map(str, case.layers))}, "
            f"{case.dtype}, batch {case.batch}: {case.token_identity:.2%} of {case.tokens} tokens equal, "
            f"logits differ by at most {case.logits_max_abs:g}"
        )
    for reference in comparison.reference:
        typer.echo(
            f"against {reference.library}, {reference.dtype}: {reference.token_identity:.2%} of {reference.tokens} "
            f"tokens equal, logits differ by at most {reference.logits_max_abs:.3g}"
        )
        for d in reference.differences:
            typer.echo(f"  {d.id}, token {d.position}: ours {d.ours!r}, theirs {d.theirs!r}, margin {d.margin:.2g}")
    typer.echo(
        f"{comparison.model}, questions: {comparison.questions}, {comparison.device}, "
        f"threads a rank: {comparison.threads}, commit {comparison.commit}"
    )
