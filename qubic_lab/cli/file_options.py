"""Options of commands that read somebody's file of bars or texts: what its columns, times and numbers mean."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from qubic_lab.errors import InputError

Stamp = Annotated[str, typer.Option(help="What a row's time is: the bar's open, its close, or auto.")]
Zone = Annotated[
    str | None, typer.Option(help="Of times that name none, such as UTC or Europe/Berlin.", show_default=False)
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="OURS=THEIRS", help="A column by its name in the file; may be repeated."),
]
Interval = Annotated[int | None, typer.Option(metavar="SECONDS", help="A bar's length.", show_default="from the file")]
Decimal = Annotated[str, typer.Option(metavar="MARK", help="The decimal mark: '.', ',' or auto.")]
DateOrder = Annotated[str, typer.Option(help="Of dates such as 03/04/2021: dmy, mdy or auto.")]
Duplicates = Annotated[str, typer.Option(help="Of rows that contradict each other: refuse, or take the first or last.")]

_ASKED = re.compile("`(date_order|decimal|duplicates|interval|stamp|zone)`")


def read_columns(pairs: Sequence[str]) -> dict[str, str]:
    """Return the columns that options name, ours to theirs.

    Raises:
        InputError: one that is no pair.
    """
    columns: dict[str, str] = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise InputError(f"--map is {pair!r}: give OURS=THEIRS, such as close=Last")
        columns[ours] = theirs
    return columns


@contextmanager
def named_as_options() -> Iterator[None]:
    """Name what a reader of files asks for as the command line spells it: `date_order` is --date-order."""
    try:
        yield
    except InputError as error:
        raise InputError(_ASKED.sub(lambda found: f"--{found[1].replace('_', '-')}", str(error))) from error
