"""`qubic-lab bench compare`: whether a benchmark's figures have changed by more than noise."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

from qubic_lab.cli import bench, options
from qubic_lab.cli.console import print_json


def compare(
    before: Annotated[Path, Argument(metavar="A", help="JSON of a benchmark, or a folder of several runs.")],
    after: Annotated[Path, Argument(metavar="B", help="The same of another commit, machine or setting.")],
    json: options.Json = False,
) -> None:
    """Tell a change of a benchmark from noise.

    Compares medians with their intervals and says what differs of machine, commit and settings. Figures without an
    interval are judged from three runs a side on. The exit status is 0, or 1 if a figure got worse, or 2 if
    none could be judged.
    """
    from qubic_lab.bench.comparison import compare_results, read_side

    found = compare_results(read_side(before), read_side(after))
    if json:
        print_json(found.to_dict())
    else:
        bench.print_parts(found.report())
    if found.is_worse or not found.judged:
        raise typer.Exit(1 if found.judged else 2)
