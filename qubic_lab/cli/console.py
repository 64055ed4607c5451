"""What all commands share: registration, output on stdout, progress and notes on stderr, and parsing of options."""

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from qubic_lab.errors import InputError, QubicLabError

if TYPE_CHECKING:
    from rich.console import Console

_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}

Commands = Mapping[str, tuple[Callable[..., None], str]]
"""Functions of commands by their names, each with the arguments of the example in its help text."""


def add_commands(app: typer.Typer, commands: Commands, group: str = "") -> None:
    """Add commands, each with an example in its help text."""
    for name, (function, arguments) in commands.items():
        example = " ".join(filter(None, ("qubic-lab", group, name, arguments)))
        app.command(name, epilog=f"Example: {example}")(function)


def add_group(app: typer.Typer, name: str, text: str, example: str, module: str = "") -> None:
    """Add a group of commands with a help text and an example.

    They are COMMANDS of a module of this package, by default the one of the group's name. It is imported when a command
    of the group, or the list of them, is asked for: the help of all groups needs none of them.
    """

    class Group(TyperGroup):
        def load(self) -> None:
            if not self.commands:
                loaded = typer.Typer(rich_markup_mode=None)
                loaded.callback()(lambda: None)  # otherwise typer replaces a group of one command by that command
                add_commands(loaded, import_module(f"qubic_lab.cli.{module or name}").COMMANDS, name)
                self.commands.update(get_group(loaded).commands)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            self.load()
            return super().get_command(ctx, cmd_name)

        def list_commands(self, ctx: Any) -> list[str]:
            self.load()
            return super().list_commands(ctx)

    group = typer.Typer(cls=Group, help=text, epilog=f"Example: qubic-lab {name} {example}", rich_markup_mode=None)
    app.add_typer(group, name=name)


@cache
def stderr() -> "Console":
    """Return the console for progress and notes: plain text where stderr is no terminal, or NO_COLOR is set."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, force_terminal=False if os.environ.get("NO_COLOR") else None)


def show_warnings() -> None:
    """Print log messages of level WARNING on stderr, for commands that keep running."""
    root = logging.getLogger()
    root.setLevel(min(root.level, logging.WARNING))


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    typer.echo(json.dumps(content, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that is readable on a terminal and valid Markdown."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows):
        typer.echo("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def print_tables(tables: Iterable[tuple[Sequence[str], Sequence[Sequence[str]]]]) -> None:
    """Print the tables that have rows, given as header and rows, each with an empty line after it."""
    for header, rows in tables:
        if rows:
            print_table(header, rows)
            typer.echo("")


def note(*texts: str) -> None:
    """Print remarks on stderr, each on a line of its own."""
    for text in texts:
        stderr().print(text, style="dim", markup=False, soft_wrap=True)


def note_meaningless(meaningless: bool) -> None:
    """Print a note if the model has random weights."""
    if meaningless:
        note("note: this model has random weights: its answers are meaningless, its speed and memory are not")


def print_pieces(pieces: Iterable[str]) -> str:
    """Print the pieces of an answer as they come, and return the whole.

    On a terminal control characters other than line breaks and tabs are replaced: they could move its cursor or set
    its title.
    """
    text, shown = "", sys.stdout.isatty()
    try:
        for piece in pieces:
            text += piece
            typer.echo(piece.translate(_CONTROLS) if shown else piece, nl=False)
    except BaseException:
        if text:
            typer.echo("")  # what comes next starts on a line of its own
        raise
    typer.echo("")
    return text


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar on a terminal while the block runs; yield the function that updates it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr(), transient=True, disable=not stderr().is_terminal) as progress:
        task = progress.add_task("starting", total=None)

        def update(text: str, done: int, total: int) -> None:
            progress.update(task, description=text, completed=done, total=total)

        yield update


def require(*modules: str, extra: str = "lab") -> None:
    """Check that packages of an extra are installed, by their import names.

    Raises:
        QubicLabError: some are missing; the message has the command that installs them.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise QubicLabError(f'not installed: {", ".join(missing)}; remedy: pip install "qubic-lab[{extra}]"')


def split_list(what: str, text: str) -> tuple[str, ...]:
    """Return the parts of a comma-separated option; an InputError if a part is empty."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise InputError(f"{what} is {text!r}: give values separated by single commas")
    return parts


def split_numbers(what: str, text: str) -> tuple[int, ...]:
    """Return the integers of a comma-separated option; an InputError if a part is not an integer."""
    try:
        return tuple(int(part) for part in split_list(what, text))
    except ValueError as error:
        raise InputError(f"{what} is {text!r}: give whole numbers separated by commas, such as 1,4") from error


def read_seconds(what: str, text: str) -> float:
    """Return the seconds of an option such as 2s, 0.5s or 2; an InputError if the value is not a number above 0."""
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"{what} is {text!r}: give seconds above 0, such as 2s")
    return seconds


def counts_text(counts: Mapping[str, int]) -> str:
    """Return names with their counts in one line."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def duration_text(seconds: float) -> str:
    """Return a duration in its largest fitting unit."""
    for unit_s, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if abs(seconds) >= unit_s:
            amount = seconds / unit_s
            return f"{amount:,.0f} {unit}" if amount >= 100 else f"{amount:.3g} {unit}"
    return f"{seconds:.3g} s"
