"""Measure what a run of a notebook takes beyond papermill: its key, a process of its own, records, manifest.

    python scripts/notebook_overhead.py --repeat 7

The study of `qubic-lab new-study` runs three ways in turn, A B C A B C: by a call of papermill, by its command, as a
batch of one run. In a round all three get the same parameters. The first round is not counted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import papermill

from qubic_lab.bench.result import Spread, seconds_of
from qubic_lab.cli.console import print_table
from qubic_lab.runs.batch import run_batch
from qubic_lab.runs.experiment import load
from qubic_lab.runs.project import new_study
from qubic_lab.runs.store import PROJECT_MARK


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that a call takes, and those of processor time, its processes included."""
    before = os.times()
    seconds = seconds_of(call)
    return seconds, sum(os.times()[:4]) - sum(before[:4])


def one_round(notebook: Path, experiment: Path, seed: int) -> list[tuple[float, float]]:
    """Time papermill by a call, by its command, and a batch of one run."""
    given = {"seed": seed}
    content = {"title": "Overhead", "notebook": notebook.stem, "quick": {"parameters": given}, "full": {}}
    experiment.write_text(json.dumps(content))
    begins = [sys.executable, "-m", "papermill", str(notebook), "b.ipynb"]
    command = [*begins, "--no-progress-bar", "-p", "seed", str(seed)]
    return [
        timed(lambda: papermill.execute_notebook(notebook, "a.ipynb", given, progress_bar=False)),
        timed(lambda: subprocess.run(command, check=True, capture_output=True)),
        timed(lambda: run_batch(load(experiment), full=False, watcher=Mock())),
    ]


def main() -> None:
    """Run the command line in an empty project."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=7, help="rounds that are counted")
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path(PROJECT_MARK).mkdir()
        notebook, experiment, _ = new_study("overhead")
        rounds = [one_round(notebook, experiment, seed) for seed in range(repeat + 1)][1:]
        failed = list(Path("runs").rglob("failed-*"))
        os.chdir("/")
    assert not failed, failed
    shown = []
    for place, name in enumerate(("papermill, called", "papermill, its command", "a batch of one run")):
        shown.append((name, *(Spread.of([each[place][of] for each in rounds]).text() for of in (0, 1))))
    for place, name in enumerate(("a batch beyond the call", "a batch beyond the command")):
        differences = ([each[2][of] - each[place][of] for each in rounds] for of in (0, 1))
        shown.append((name, *(Spread.of(each).text() for each in differences)))
    print_table(("way", "s: median (low to high)", "s of processor time"), shown)


if __name__ == "__main__":
    main()
