"""`qubic-lab run` killed at any moment, resumed, and run twice at once: the end is that of an undisturbed run."""

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from studies import Silent, write_notebook, write_study, write_week

from qubic_lab.runs import batch
from qubic_lab.runs.batch import run_batch
from qubic_lab.runs.experiment import load
from qubic_lab.runs.week_index import WeekEntry, add_entry, latest_of_each_study, read_index, weeks_with_runs
from qubic_lab.settings import settings

# As the command, but its keys do not change while somebody edits the package.
COMMAND = """from qubic_lab.runs import fingerprint
fingerprint.hash_package = lambda: "package"
from qubic_lab.cli.main import main
main()
"""
CELLS = (
    "import pandas as pd\nfrom qubic_lab.runs import notebook",
    "notebook.record('square', {'value': number**2, 'seed': 0})",
    "notebook.record_table('powers', pd.DataFrame({'power': [number**k for k in range(20)]}), 'Powers')",
    "notebook.record_measure('steps', [1.0 * number] * 5, 'steps', 'lower')",
    "notebook.record_findings([f'The square is {number**2}.'])\nnumber**3",
)
RUNS = 4
TIMES = ("started_utc", "finished_utc", "seconds")


def write_project(root: Path, runs: int = RUNS) -> Path:
    write_notebook(root / "notebooks" / "tiny.ipynb", *CELLS)
    write_study(root, quick={"grid": {"number": list(range(1, runs + 1))}})
    return write_week(root, "study.yaml", progress={"done": ["something"]})


def start(file: Path, runs: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"QUBIC_LAB_RUNS": str(runs)}
    command = [sys.executable, "-c", COMMAND, "run", str(file)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(file: Path, runs: Path) -> None:
    process = start(file, runs)
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors


def kill(process: subprocess.Popen[str], whom: str) -> None:
    """Kill the command, or with all that it has started, and wait until all of it is gone."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    if whom == "everything":
        for member in family:
            member.kill()
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


def outcome(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
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
        return {name: value for name, value in json.loads(path.read_text()).items() if name not in TIMES}
    if path.suffix == ".ipynb":
        return [(cell.source, cell.get("outputs")) for cell in nbformat.read(path, as_version=4).cells]
    return None if path.name == "notebook.log" else path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["the command", "everything"])
def test_a_run_killed_at_three_moments_ends_as_an_undisturbed_one(
    whom: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = write_project(tmp_path)
    began = time.monotonic()
    finish(file, tmp_path / "undisturbed")
    seconds = time.monotonic() - began

    moments, kills = random.Random(whom), 0
    for _ in range(3):
        process = start(file, tmp_path / "killed")
        time.sleep(seconds * moments.uniform(0.1, 0.28))  # hardly long enough for all that is left
        if process.poll() is None:
            kill(process, whom)
            kills += 1
    assert kills
    finish(file, tmp_path / "killed")

    undisturbed = outcome(tmp_path / "undisturbed", monkeypatch)
    assert len(undisturbed["entries"]) == RUNS
    assert outcome(tmp_path / "killed", monkeypatch) == undisturbed


@pytest.mark.slow
def test_a_killed_worker_is_a_failed_run_and_the_next_batch_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = write_project(tmp_path, runs=2)
    finish(file, tmp_path / "undisturbed")
    process = start(file, tmp_path / "killed")
    while not (workers := psutil.Process(process.pid).children()):
        time.sleep(0.05)
        assert process.poll() is None
    time.sleep(0.5)
    workers[0].kill()
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 1
    assert "its process ended with status -9" in errors
    assert "1 of 2 runs failed" in errors
    finish(file, tmp_path / "killed")
    assert outcome(tmp_path / "killed", monkeypatch) == outcome(tmp_path / "undisturbed", monkeypatch)


def test_two_at_once_make_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write_project(tmp_path, runs=1)
    runs = tmp_path / "runs"
    processes = [start(file, runs) for _ in range(2)]
    errors = [process.communicate(timeout=280)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    found = outcome(runs, monkeypatch)
    (week,) = weeks_with_runs()
    assert sorted(entry.reused for entry in read_index(week).runs) == [False, True]
    assert len(found["entries"]) == 1
    assert not [name for name in found["files"] if "unfinished-" in name or "/." in name]


class Stopped(BaseException):
    """Stands for a kill at one certain moment."""


def test_a_run_that_ended_just_before_the_kill_gets_its_entry_by_the_next(
    lab_root: Path, monkeypatch: pytest.MonkeyPatch
):
    week = load(write_project(lab_root, runs=1))

    def stop(week: str, entry: WeekEntry) -> None:
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(batch, "add_entry", stop)
        run_batch(week, full=False, watcher=Silent())
    assert weeks_with_runs() == []
    (resumed,) = run_batch(week, full=False, watcher=Silent())
    assert resumed.reused
    (name,) = weeks_with_runs()
    assert [(entry.key, entry.of) for entry in read_index(name).runs] == [(resumed.run.key, 1)]


def test_half_written_files_of_an_index_go_with_the_next_entry(lab_root: Path):
    left = lab_root / "runs" / "weeks" / ".2026-W48.json.4711"
    left.parent.mkdir(parents=True)
    left.write_text('{"week": "2026')
    entry = WeekEntry("study", "key", "2026-11-24T08:00:00+00:00", of=1, reused=False, failed=True)
    add_entry("2026-W48", entry)
    assert [path.name for path in left.parent.iterdir()] == ["2026-W48.json"]

    # A failure that has succeeded since is looked for where it succeeded.
    assert entry.folder.name == "failed-key"
    (lab_root / "runs" / "study" / "key").mkdir(parents=True)
    assert replace(entry).folder.name == "key"
