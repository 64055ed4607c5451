"""A small project folder with one notebook and one study, and what its runs leave, for tests of runs and reports."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nbformat
import pytest
from examples import example

from qubic_lab.runs.one_run import PlannedRun, RunOutcome
from qubic_lab.runs.store import Manifest
from qubic_lab.runs.week_index import latest_of_each_study, read_index, weeks_with_runs
from qubic_lab.settings import settings

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

    def start(self, runs: Sequence[PlannedRun], jobs: int) -> None: ...

    def wait(self) -> None: ...

    def begin(self, run: PlannedRun) -> None: ...

    def cell(self, run: PlannedRun, number: int, of: int) -> None:
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


CELLS = (
    "import pandas as pd\nfrom qubic_lab.runs import notebook",
    "notebook.record('square', {'value': number**2, 'seed': 0})",
    "notebook.record_table('powers', pd.DataFrame({'power': [float(number)**k for k in range(20)]}), 'Powers')",
    "notebook.record_measure('steps', [1.0 * number] * 5, 'steps', 'lower')",
    "notebook.record_findings([f'The square is {number**2}.'])\nnumber**3",
)
TIMES = ("started_utc", "finished_utc", "seconds", "commit", "dirty")  # also what changes while somebody edits


def write_project(root: Path, runs: int) -> Path:
    """Write a week of one study with so many runs that record something of each kind."""
    write_notebook(root / "notebooks" / "tiny.ipynb", *CELLS)
    write_study(root, quick={"grid": {"number": list(range(1, runs + 1))}})
    return write_week(root, "study.yaml", progress={"done": ["something"]})


def everything_but_times(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return all that a folder of runs says, except times."""
    monkeypatch.setenv("QUBIC_LAB_RUNS", str(root))
    settings.cache_clear()
    (week,) = weeks_with_runs()
    latest = latest_of_each_study(read_index(week).runs)
    entries = [asdict(entry) | {"batch": "", "reused": False} for of_study in latest.values() for entry in of_study]
    files = sorted(path for path in root.rglob("*") if path.is_file())
    names = [str(path.relative_to(root)) for path in files]
    contents = {name: _without_times(path) for name, path in zip(names, files, strict=True) if "weeks" not in name}
    return {"entries": entries, "status": read_index(week).status, "files": names, "contents": contents}


def _without_times(path: Path) -> Any:
    if path.name == "manifest.json":
        known = {name: value for name, value in json.loads(path.read_text()).items() if name not in TIMES}
        return known | {"files": sorted(known["files"])}  # a notebook's hash has its times in it
    if path.suffix == ".ipynb":
        return [(cell.source, cell.get("outputs")) for cell in nbformat.read(path, as_version=4).cells]
    return None if path.name == "notebook.log" else path.read_bytes()
