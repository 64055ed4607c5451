"""`qubic-lab run` and `qubic-lab report`: run the studies of an experiment file, and make the week's page."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from qubic_lab.cli.console import add_commands, note, progress_bar, require, stderr
from qubic_lab.errors import QubicLabError

if TYPE_CHECKING:
    from qubic_lab.runs.batch import PlannedRun, RunOutcome

LAB_MODULES = ("ipykernel", "jinja2", "matplotlib", "pandas", "papermill", "pyarrow")
"""Packages that these commands need beyond the core install, by their import names."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    add_commands(app, {"run": (run, "experiments/weekly.yaml"), "report": (report, "--week 2026-W48")})


def run(
    file: Annotated[Path, Argument(help="A week's or a study's file, such as experiments/weekly.yaml.")],
    full: Annotated[bool, Option("--full", help="Run the full form of each study.")] = False,
) -> None:
    """Run the notebooks of an experiment file.

    Notebooks whose inputs have not changed are not run again. Prints the folders of the runs.
    """
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
    week: Annotated[str | None, Option(help="ISO week, such as 2026-W48.", show_default="the latest with runs")] = None,
) -> None:
    """Write the page of a week from its runs, and print its path."""
    require(*LAB_MODULES)
    from qubic_lab.runs.report import build_page

    typer.echo(build_page(week))


class _Display:
    """Shows the progress of a batch on stderr: a bar while a notebook runs, and then a line."""

    def __init__(self, progress: Callable[[str, int, int], None]) -> None:
        self._progress = progress
        self._label = ""

    def wait(self) -> None:
        note("another qubic-lab is running a notebook here: waiting for it to end")

    def begin(self, run: "PlannedRun", number: int, of: int) -> None:
        self._label = f"{run.study.name} ({number} of {of})"

    def cell(self, number: int, of: int) -> None:
        self._progress(f"{self._label}: cell", number, of)

    def end(self, outcome: "RunOutcome") -> None:
        stderr.print(f"{self._label}: {_in_words(outcome)}", markup=False, soft_wrap=True)


def _in_words(outcome: "RunOutcome") -> str:
    if outcome.error is not None:
        return f"failed: {outcome.error}; kept in {outcome.folder}"
    return "reused: nothing has changed" if outcome.reused else f"done in {outcome.seconds:.0f} s"
