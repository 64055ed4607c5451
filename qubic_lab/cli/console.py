"""What commands share: progress and notes on stderr, one JSON object on stdout, lists as options."""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from qubic_lab.errors import InputError, QubicLabError

stderr = Console(stderr=True, highlight=False)


def show_warnings() -> None:
    """Let a command that runs for long say on stderr what goes wrong meanwhile; others end with their error."""
    root = logging.getLogger()
    root.setLevel(min(root.level, logging.WARNING))


def print_json(content: dict[str, Any]) -> None:
    """Put one JSON object on stdout."""
    typer.echo(json.dumps(content, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that reads well on a terminal and in Markdown."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows):
        typer.echo("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def note(text: str) -> None:
    """Say something beside the result."""
    stderr.print(text, style="dim", markup=False, soft_wrap=True)


def note_meaningless(meaningless: bool) -> None:
    """Say that a model's answers mean nothing, where they do."""
    if meaningless:
        note("note: this model has random weights: its answers are meaningless, its speed and memory are not")


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on a terminal while the block runs; yield a function that takes text, done and total."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task("starting", total=None)

        def update(text: str, done: int, total: int) -> None:
            progress.update(task, description=text, completed=done, total=total)

        yield update


def require(*modules: str, extra: str = "lab") -> None:
    """Make sure that packages of an extra, by the names that are imported, are here.

    Raises:
        QubicLabError: some are not; with the line that installs them.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise QubicLabError(f'not installed: {", ".join(missing)}; remedy: pip install "qubic-lab[{extra}]"')


def split_list(what: str, text: str) -> tuple[str, ...]:
    """Return the parts of a comma-separated option.

    Raises:
        InputError: a part is empty.
    """
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise InputError(f"{what} is {text!r}: give values separated by single commas")
    return parts


def split_numbers(what: str, text: str) -> tuple[int, ...]:
    """Return the whole numbers of a comma-separated option.

    Raises:
        InputError: a part is not a whole number.
    """
    try:
        return tuple(int(part) for part in split_list(what, text))
    except ValueError as error:
        raise InputError(f"{what} is {text!r}: give whole numbers separated by commas, such as 1,4") from error


def read_seconds(what: str, text: str) -> float:
    """Return the seconds of an option such as 2s, 0.5s or 2.

    Raises:
        InputError: it is no number above 0.
    """
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"{what} is {text!r}: give seconds above 0, such as 2s")
    return seconds
