"""A project folder: notebooks, experiments, their data, starts of hosts; `init` makes one, `new_study` extends it."""

import keyword
import re
import shutil
from pathlib import Path

from qubic_lab.checked_yaml import read_yaml
from qubic_lab.errors import InputError
from qubic_lab.runs.store import PROJECT_MARK, in_project

PACKAGE = Path(__file__).parents[1]
PACKAGED = "project"
"""The folder of an installed package that holds what `init` copies; a checkout has it beside the package."""
STARTS = ("hosts.sh", "two-hosts.sh", "three-hosts.sh")
"""Of launch/: what starts the ranks of several hosts."""
TEMPLATE = Path(__file__).parent / "templates" / "new_study"
PLACEHOLDER, TITLE = "new_study", "A new study"
"""What stands in the template for a study's name and its title."""
TARGETS = {
    "notebook.ipynb": "notebooks/{}.ipynb",
    "experiment.yaml": "experiments/{}.yaml",
    "test.py": "tests/test_{}.py",
}
"""The files of the template, and where they go in a project."""


def init(folder: Path) -> list[Path]:
    """Fill a new or empty folder with notebooks, experiments, their data and starts of hosts; return the files.

    Raises:
        InputError: the folder has something in it, or cannot be written.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder: give a new name, or an empty folder")
    source = _source()
    try:
        for file in (copied := _week_files(source)):
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, target)
            if file.suffix == ".sh":
                target.chmod(0o755)
    except OSError as error:
        raise InputError(f"{folder} cannot be filled ({error.strerror}): give another folder") from error
    return [folder / file for file in copied]


def _source() -> Path:
    checkout = PACKAGE.parent
    return checkout if (checkout / PROJECT_MARK / "weekly.yaml").is_file() else PACKAGE / PACKAGED


def _week_files(source: Path) -> list[Path]:
    """Return the files of a project that `init` copies, relative to it; data are those that a study names."""
    experiments = sorted((source / PROJECT_MARK).glob("*.yaml"))
    data = {Path(name) for file in experiments for name in read_yaml(file).get("data", ())}
    notebooks = sorted((source / "notebooks").glob("*.ipynb"))
    starts = [Path("launch", name) for name in STARTS]
    return [*(file.relative_to(source) for file in (*notebooks, *experiments)), *sorted(data), *starts]


def new_study(name: str) -> list[Path]:
    """Make a notebook, an experiment file and a test from the template, in the project of this folder; return them.

    Raises:
        InputError: the name is not one that Python takes, a file of this name exists, or no project is here.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise InputError(
            f"{name!r} cannot name a study: use lower-case letters, digits and underscores, as in my_study"
        )
    root = in_project(Path())
    if not (root / PROJECT_MARK).is_dir():
        raise InputError(f"{root} is in no project: make one with 'qubic-lab init DIR' and go there")
    made = {
        root / target.format(name): (TEMPLATE / file).read_text(encoding="utf-8") for file, target in TARGETS.items()
    }
    if existing := [path for path in made if path.exists()]:
        raise InputError(f"{existing[0]} exists: choose another name than {name}, or delete it")
    for path, text in made.items():
        path.parent.mkdir(exist_ok=True)
        text = text.replace(PLACEHOLDER, name).replace(TITLE, name.replace("_", " ").capitalize())
        path.write_text(text, encoding="utf-8")
    return list(made)
