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
from pathlib import Path
from unittest.mock import Mock

import papermill

from qubic_lab.bench.result import Spread, seconds_of
from qubic_lab.cli.console import print_table
from qubic_lab.runs.batch import run_batch
from qubic_lab.runs.experiment import load
from qubic_lab.runs.project import new_study
from qubic_lab.runs.store import PROJECT_MARK


def one_round(notebook: Path, experiment: Path, seed: int) -> tuple[float, float, float]:
    """Return the seconds of papermill by a call, by its command, and of a batch of one run."""
    given = {"seed": seed}
    experiment.write_text(
        json.dumps({"title": "Overhead", "notebook": notebook.stem, "quick": {"parameters": given}, "full": {}})
    )
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(notebook),
        "b.ipynb",
        "--no-progress-bar",
        "-p",
        "seed",
        str(seed),
    ]
    return (
        seconds_of(
            lambda: papermill.execute_notebook(notebook, "a.ipynb", given, kernel_name="python3", progress_bar=False)
        ),
        seconds_of(lambda: subprocess.run(command, check=True, capture_output=True)),
        seconds_of(lambda: run_batch(load(experiment), full=False, watcher=Mock())),
    )


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
    calls, commands, batches = zip(*rounds, strict=True)
    figures = {
        "papermill, called": calls,
        "papermill, its command": commands,
        "a batch of one run": batches,
        "a batch beyond the call": [batch - call for call, _, batch in rounds],
        "a batch beyond the command": [batch - command for _, command, batch in rounds],
    }
    print_table(("way", "s: median (low to high)"), [(name, Spread.of(each).text()) for name, each in figures.items()])


if __name__ == "__main__":
    main()
