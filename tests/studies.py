"""A small project folder with one notebook and one study, and what its runs leave, for tests of runs and reports."""

import json
from pathlib import Path
from typing import Any

from examples import example

from qubic_lab.runs.batch import PlannedRun, RunOutcome
from qubic_lab.runs.store import Manifest

PARAMETERS = """number: int = 1
share: float = 0.5
names: list[str] = ["a"]
threads: int = 0
free = None
"""


def write_notebook(path: Path, *code: str, parameters: str = PARAMETERS, tag: str = "parameters") -> Path:
    """Write a notebook with a parameters cell and the given cells of code."""
    cells = [
        {
            "cell_type": "code",
            "id": f"cell-{number}",
            "metadata": {"tags": [tag]} if number == 0 else {},
            "source": source,
            "execution_count": None,
            "outputs": [],
        }
        for number, source in enumerate([parameters, *code])
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_study(root: Path, name: str = "study", **changes: Any) -> Path:
    """Write `experiments/<name>.yaml` (JSON is YAML) with the changes; None leaves a key out."""
    content = {
        "title": "A study",
        "notebook": "tiny",
        "quick": {"parameters": {"number": 2}},
        "full": {"grid": {"number": [1, 2], "names": [["a"], ["b", "c"]]}},
    } | changes
    return _write(root / "experiments" / f"{name}.yaml", {k: v for k, v in content.items() if v is not None})


def write_week(root: Path, *studies: str, **changes: Any) -> Path:
    """Write `experiments/weekly.yaml` with the changes."""
    return _write(root / "experiments" / "weekly.yaml", {"title": "A week", "studies": list(studies)} | changes)


def _write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


class Silent:
    """A watcher of a batch that only remembers the cells."""

    def __init__(self) -> None:
        self.cells: list[tuple[int, int]] = []

    def wait(self) -> None: ...

    def begin(self, run: PlannedRun, number: int, of: int) -> None: ...

    def cell(self, number: int, of: int) -> None:
        self.cells.append((number, of))

    def end(self, outcome: RunOutcome) -> None: ...


def make_manifest(**changes: Any) -> Manifest:
    """Return the manifest of a run of this machine, but for the changes."""
    times = {"started_utc": "2026-11-24T08:00:00.5+00:00", "finished_utc": "2026-11-24T08:01:11+00:00", "seconds": 71.4}
    plain = {
        "key": "key",
        "study": "study",
        "title": "A study",
        "notebook": "tiny.ipynb",
        "machine": "this one",
        **times,
    }
    return example(Manifest, **plain | changes)
