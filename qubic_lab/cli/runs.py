"""`qubic-lab run` and `qubic-lab report`: the studies of an experiment file, and the week's page made from them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qubic_lab.cli.console import note, progress_bar, require, stderr
from qubic_lab.errors import QubicLabError

if TYPE_CHECKING:
    from qubic_lab.runs.batch import Outcome, PlannedRun

LAB_MODULES = ("ipykernel", "jinja2", "matplotlib", "pandas", "papermill", "pyarrow")
"""What these commands need beyond the core install, by the names that are imported."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: qubic-lab run experiments/weekly.yaml")(run)
    app.command(epilog="Example: qubic-lab report --week 2026-W48")(report)


def run(
    file: Annotated[Path, typer.Argument(help="A week's or a study's file, such as experiments/weekly.yaml.")],
    full: Annotated[bool, typer.Option("--full", help="Run the full form of each study, not the quick one.")] = False,
) -> None:
    """Run the notebooks of an experiment file, but none whose input has not changed; print the runs' folders."""
    require(*LAB_MODULES)
    from qubic_lab.runs.batch import run_batch
    from qubic_lab.runs.experiment import load

    week = load(file)
    with progress_bar() as progress:
        outcomes = run_batch(week, full=full, watcher=_Display(progress))
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    for outcome in outcomes:
        if outcome not in failed:
            typer.echo(outcome.folder)
    if failed:
        raise QubicLabError(
            f"{week.title}: {len(failed)} of {len(outcomes)} runs failed: see executed.ipynb in {failed[0].folder}"
            f"{' and the others named above' if len(failed) > 1 else ''}"
        )


def report(
    week: Annotated[
        str | None, typer.Option(help="ISO week, such as 2026-W48.", show_default="the latest with runs")
    ] = None,
) -> None:
    """Write a week's page from what its runs recorded, and print the page's path."""
    require(*LAB_MODULES)
    from qubic_lab.runs.report import build_page

    typer.echo(build_page(week))


class _Display:
    """Shows on stderr how a batch goes on: a bar while a notebook runs, then a line that stays."""

    def __init__(self, progress: Callable[[str, int, int], None]) -> None:
        self._progress = progress
        self._label = ""

    def wait(self) -> None:
        note("another qubic-lab is running a notebook here: waiting for its end")

    def begin(self, run: "PlannedRun", number: int, of: int) -> None:
        self._label = f"{run.study.name} ({number} of {of})"

    def cell(self, number: int, of: int) -> None:
        self._progress(f"{self._label}: cell", number, of)

    def end(self, outcome: "Outcome") -> None:
        stderr.print(f"{self._label}: {_in_words(outcome)}", markup=False, soft_wrap=True)


def _in_words(outcome: "Outcome") -> str:
    if outcome.error is not None:
        return f"failed: {outcome.error}; kept in {outcome.folder}"
    return "reused: nothing has changed" if outcome.reused else f"done in {outcome.seconds:.0f} s"
