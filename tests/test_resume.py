"""`qubic-lab run` killed at any moment, resumed, and run twice at once: the end is that of an undisturbed run."""

import os
import random
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from clusters import wait_until
from forked_python import PYTHON
from studies import Silent, everything_but_times, write_project

from qubic_lab.runs import batch
from qubic_lab.runs.batch import run_batch
from qubic_lab.runs.experiment import load
from qubic_lab.runs.week_index import WeekEntry, add_entry, read_index, weeks_with_runs

# As the command, but its keys do not change while somebody edits the package.
COMMAND = """from qubic_lab.runs import fingerprint
fingerprint.hash_package = lambda: "package"
from qubic_lab.cli.main import main
main()
"""


def start(file: Path, runs: Path, jobs: int = 1) -> subprocess.Popen[str]:
    environment = os.environ | {"QUBIC_LAB_RUNS": str(runs)}
    command = [PYTHON, "-c", COMMAND, "run", str(file), "--jobs", str(jobs)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(file: Path, runs: Path, jobs: int = 1) -> None:
    process = start(file, runs, jobs)
    _, errors = process.communicate(timeout=900)
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


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("whom", "runs", "jobs"), [("the command", 40, 2), ("everything", 4, 1)])
def test_a_run_killed_at_three_moments_ends_as_an_undisturbed_one(
    whom: str, runs: int, jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = write_project(tmp_path, runs)
    began = time.monotonic()
    finish(file, tmp_path / "undisturbed", jobs)
    seconds = time.monotonic() - began

    moments, kills = random.Random(whom), 0
    for _ in range(3):
        process = start(file, tmp_path / "killed", jobs)
        time.sleep(seconds * moments.uniform(0.1, 0.28))  # hardly long enough for all that is left
        if process.poll() is None:
            kill(process, whom)
            kills += 1
    assert kills
    finish(file, tmp_path / "killed", jobs)

    undisturbed = everything_but_times(tmp_path / "undisturbed", monkeypatch)
    assert len(undisturbed["entries"]) == runs
    assert everything_but_times(tmp_path / "killed", monkeypatch) == undisturbed


def test_two_at_once_killed_and_resumed_end_as_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, killed = write_project(tmp_path, runs=2), tmp_path / "killed"
    process = start(file, killed, jobs=2)
    wait_until(lambda: list(killed.glob("study/unfinished-*/results/square.json")) or process.poll() is not None)
    kill(process, "the command")
    finish(file, killed, jobs=2)
    finish(file, tmp_path / "undisturbed")
    undisturbed = everything_but_times(tmp_path / "undisturbed", monkeypatch)
    assert [entry["number"] for entry in undisturbed["entries"]] == [1, 2]
    assert everything_but_times(killed, monkeypatch) == undisturbed


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
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 1
    assert "its process ended with status -9" in errors
    assert "1 of 2 runs failed" in errors
    finish(file, tmp_path / "killed")
    undisturbed = everything_but_times(tmp_path / "undisturbed", monkeypatch)
    assert everything_but_times(tmp_path / "killed", monkeypatch) == undisturbed


def test_two_at_once_make_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write_project(tmp_path, runs=1)
    runs = tmp_path / "runs"
    processes = [start(file, runs, jobs) for jobs in (1, 2)]
    errors = [process.communicate(timeout=280)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    found = everything_but_times(runs, monkeypatch)
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
