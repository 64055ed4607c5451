"""`qubic-lab verify`: check a weekly page against its runs, or the files of a split model against their manifests."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from qubic_lab.cli import options
from qubic_lab.cli.console import note, print_json, progress_bar, require
from qubic_lab.cli.runs import LAB_MODULES
from qubic_lab.core import MAX_COUNT
from qubic_lab.errors import InputError, NotFoundError, QubicLabError


def verify(
    path: Annotated[
        Path,
        Argument(metavar="PATH", help="A weekly page or its folder; or a split model, its rank, a converted model."),
    ],
    sample: Annotated[int, Option(help="Results of a page that are executed again.", min=0, max=MAX_COUNT)] = 20,
    every: Annotated[bool, Option("--all", help="Execute all results of a page again that are no times.")] = False,
    seed: Annotated[int | None, Option(help="Of the sample.", show_default="drawn, and printed", min=0)] = None,
    json: options.Json = False,
) -> None:
    """Check a weekly page against its runs, or a model's files.

    Of a page: the hashes of its files and of its runs, code, model and data, each number that it shows against its
    source, findings and verdicts, and a sample of answers, votes and backtests, which are executed again and must be
    equal bit for bit. Of a model's folder: each file against its manifest.
    """
    if not path.exists():
        raise NotFoundError(f"there is no {path}: give a week's page, its folder, or the folder of a split model")
    if path.suffix == ".html" or any(path.glob("*.html")) or (path / "week.json").is_file():
        _verify_page(path, None if every else sample, seed, json)
        return
    if every or seed is not None:
        raise InputError(f"{path} is no page of a week, and --all and --seed are of a page's sample: leave them out")
    _verify_model(path, json)


def _verify_page(path: Path, sample: int | None, seed: int | None, json: bool) -> None:
    require(*LAB_MODULES)
    require("aiolimiter", "pandera", "talib", extra="oracle")  # studies of markets are executed again, too
    from qubic_lab.runs.verify import verify_page

    with progress_bar() as progress:
        found = verify_page(path, sample, seed, progress)
    if json:
        print_json(asdict(found))
    else:
        for line in found.unchecked:
            note(f"not checked: {line}")
        for line in found.problems:
            typer.echo(line)
        typer.echo(found.summary())
    if count := len(found.problems):
        raise QubicLabError(f"{found.page}: {count} problem{'s' if count > 1 else ''}, named above")


def _verify_model(folder: Path, json: bool) -> None:
    from qubic_lab.model.split import verify as find_problems

    problems = find_problems(folder)
    if json:
        print_json({"folder": str(folder), "problems": problems})
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise QubicLabError(f"{problems[0]}{more}: split the model again or copy the folder again")
    if not json:
        typer.echo(f"{folder}: no file has changed")
