"""Commands about a model's files: model-path, split, verify, random-model."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from qubic_lab.cli import options
from qubic_lab.cli.console import Commands, add_commands, progress_bar
from qubic_lab.errors import InputError, QubicLabError


def _new_folder(out: Path) -> Path:
    """Refuse an empty name and `.`, which mean the current folder."""
    if out == Path():
        raise InputError(f"--out is {str(out)!r}, the current folder: give a new one")
    return out


Out = Annotated[Path, Option(help="A new folder.", show_default=False, callback=_new_folder)]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    commands: Commands = {
        "model-path": (model_path, "smollm2"),
        "split": (split, "--model smollm2 --ranks 2 --out parts"),
        "verify": (verify, "parts"),
        "random-model": (random_model, "--config deepseek --out random"),
    }
    add_commands(app, commands)


def model_path(
    model: Annotated[str, Argument(metavar="MODEL", help="Alias, hub id, folder or .gguf file.")],
) -> None:
    """Print a model's local folder; fetch or convert it if needed."""
    from qubic_lab.model.resolve import resolve_model

    typer.echo(resolve_model(model))


def split(
    out: Out,
    model: options.Model = "smollm2",
    ranks: Annotated[int, Option(help="Number of parts.")] = 2,
    strategy: Annotated[str, Option(help=options.STRATEGIES)] = "C",
    cut: options.Cut = None,
) -> None:
    """Write one folder per rank with its part of the model.

    Each folder has its own weights, config, tokenizer and a manifest of hashes.
    """
    from qubic_lab.model.config import load_config
    from qubic_lab.model.folders import check_new
    from qubic_lab.model.layout import stage_ranges
    from qubic_lab.model.plan import check_strategy, plan_layers
    from qubic_lab.model.resolve import resolve_whole
    from qubic_lab.model.split import split_checkpoint

    check_new(out)  # before the model is fetched or converted, which takes time
    check_strategy(ranks, strategy, cut)
    source = resolve_whole(model)
    layers = plan_layers(load_config(source), ranks, strategy, cut)
    with progress_bar() as progress:
        split_checkpoint(source, out, layers, strategy, lambda share: progress("splitting", round(100 * share), 100))
    typer.echo(f"{out}: " + "; ".join(f"rank {rank}: {stage}" for rank, stage in enumerate(stage_ranges(layers))))


def verify(
    folder: Annotated[Path, Argument(metavar="DIR", help="A split, one rank of it, or a converted model.")],
) -> None:
    """Check the files of a split against its manifests."""
    from qubic_lab.model.split import verify as find_problems

    problems = find_problems(folder)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise QubicLabError(f"{problems[0]}{more}: split the model again or copy the folder again")
    typer.echo(f"{folder}: no file has changed")


def random_model(
    out: Out,
    config: Annotated[str, Option(help="deepseek, smollm2, a config.json or a folder with one.")] = "deepseek",
    layers: Annotated[int | None, Option(help="Number of layers.", show_default="as in the config")] = None,
    seed: options.Seed = 0,
) -> None:
    """Write a model with random weights, to measure speed.

    Its shapes are those of the config; its answers are meaningless.
    """
    from qubic_lab.model.random_model import write_random_model

    with progress_bar() as progress:
        write_random_model(config, out, layers, seed, lambda share: progress("writing", round(100 * share), 100))
    typer.echo(f"{out}: random weights, its answers are meaningless")
