"""Commands about a model's files: model-path, split, verify, random-model."""

from pathlib import Path
from typing import Annotated

import typer

from qubic_lab.cli import options
from qubic_lab.cli.console import progress_bar
from qubic_lab.errors import InputError, QubicLabError


def _new_folder(out: Path) -> Path:
    """Refuse an empty name and `.`, which mean the folder that the user's shell stands in."""
    if out == Path():
        raise InputError(f"--out is {str(out)!r}, the current folder: give a new one")
    return out


Out = Annotated[Path, typer.Option(help="A new folder.", show_default=False, callback=_new_folder)]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    app.command("model-path", epilog="Example: qubic-lab model-path smollm2")(model_path)
    app.command("split", epilog="Example: qubic-lab split --model smollm2 --ranks 2 --out parts")(split)
    app.command("verify", epilog="Example: qubic-lab verify parts")(verify)
    app.command("random-model", epilog="Example: qubic-lab random-model --config deepseek --out random")(random_model)


def model_path(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Alias, hub id, folder or .gguf file.")],
) -> None:
    """Print a model's local folder; fetches or converts it where that has not been done."""
    from qubic_lab.model.resolve import resolve_model

    typer.echo(resolve_model(model))


def split(
    out: Out,
    model: options.Model = "smollm2",
    ranks: Annotated[int, typer.Option(help="Number of parts.")] = 2,
    strategy: Annotated[
        str, typer.Option(help="A: cut in two; B: equal layer counts; C: equal bytes read a step.")
    ] = "C",
    cut: options.Cut = None,
) -> None:
    """Write one folder a rank, with its own weights, config, tokenizer and a manifest of hashes."""
    from qubic_lab.model.config import load_config
    from qubic_lab.model.folders import check_new
    from qubic_lab.model.layout import stage_ranges
    from qubic_lab.model.plan import check_strategy, plan_layers
    from qubic_lab.model.resolve import resolve_whole
    from qubic_lab.model.split import split_checkpoint

    check_new(out)  # before a model is fetched or converted, which takes time
    check_strategy(ranks, strategy, cut)
    source = resolve_whole(model)
    layers = plan_layers(load_config(source), ranks, strategy, cut)
    with progress_bar() as progress:
        split_checkpoint(source, out, layers, strategy, lambda share: progress("splitting", round(100 * share), 100))
    typer.echo(f"{out}: " + "; ".join(f"rank {rank}: {stage}" for rank, stage in enumerate(stage_ranges(layers))))


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A split, one rank of it, or a converted model.")],
) -> None:
    """Compare every file of a split with the hashes in its manifests."""
    from qubic_lab.model.split import verify as find_problems

    problems = find_problems(folder)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise QubicLabError(f"{problems[0]}{more}: split the model again or copy the folder again")
    typer.echo(f"{folder}: every file is as it was written")


def random_model(
    out: Out,
    config: Annotated[str, typer.Option(help="deepseek, smollm2, a config.json or a folder with one.")] = "deepseek",
    layers: Annotated[int | None, typer.Option(help="Number of layers.", show_default="the config's")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
) -> None:
    """Write a model of true shapes with random weights, to measure speed and memory; its answers mean nothing."""
    from qubic_lab.model.random_model import write_random_model

    with progress_bar() as progress:
        write_random_model(config, out, layers, seed, lambda share: progress("writing", round(100 * share), 100))
    typer.echo(f"{out}: random weights, its answers mean nothing")
