"""`qubic-lab init` and `new-study`: a project folder to run the week in, and a study of one's own."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

from qubic_lab.cli.console import note


def init(folder: Annotated[Path, Argument(metavar="DIR", help="A new or empty folder.")]) -> None:
    """Make a project folder in which the week runs.

    It holds notebooks, experiment files and their data, and needs no checkout. In it, `qubic-lab run
    experiments/weekly.yaml` runs the week and `qubic-lab report` writes its page.
    """
    from qubic_lab.runs import project

    made = project.init(folder)
    typer.echo(f"{folder}: {sum(file.suffix == '.ipynb' for file in made)} notebooks, {len(made)} files")
    note(f"next: cd {folder} && qubic-lab run experiments/weekly.yaml && qubic-lab report")


def new_study(name: Annotated[str, Argument(help="Lower-case letters, digits and underscores.")]) -> None:
    """Make a study of your own from a template.

    Its notebook, experiment file and test run as they are: change them step by step. Prints the files.
    """
    from qubic_lab.runs import project

    for file in project.new_study(name):
        typer.echo(file)
    note(
        f"try it: qubic-lab run experiments/{name}.yaml; for the weekly page add {name}.yaml to experiments/weekly.yaml"
    )
