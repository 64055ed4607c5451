"""`qubic-lab init` and `new-study`: a folder in which the week loads, and a study that is green at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Run
from forked_python import PYTHON

from qubic_lab.runs import project
from qubic_lab.runs.experiment import load

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["checkout", "installed"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let `init` copy from the checkout, or from the wheel."""
    if request.param == "installed":
        monkeypatch.setattr(project, "PACKAGE", request.getfixturevalue("wheel") / "qubic_lab")
    return str(request.param)


def test_a_new_folder_has_a_week_that_loads(source: str, tmp_path: Path, here: Run):
    done = here(f"init {tmp_path / 'lab'}")
    assert (done.status, done.out.startswith(f"{tmp_path / 'lab'}: ")) == (0, True)
    week = load(tmp_path / "lab" / "experiments" / "weekly.yaml")
    assert [study.name for study in week.studies] == [
        study.name for study in load(ROOT / "experiments" / "weekly.yaml").studies
    ]
    made = {file.name for file in (tmp_path / "lab" / "notebooks").iterdir()}
    assert made == {file.name for file in (ROOT / "notebooks").glob("*.ipynb")}
    assert os.access(tmp_path / "lab" / "launch" / "two-hosts.sh", os.X_OK)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, here: Run):
    (tmp_path / "note.txt").touch()
    assert f"{tmp_path} is not an empty folder" in here(f"init {tmp_path}").failed(2)
    assert "is not an empty folder" in here(f"init {tmp_path / 'note.txt'}").failed(2)
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]


def test_a_new_study_is_green_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Run):
    (tmp_path / "experiments").mkdir()
    monkeypatch.chdir(tmp_path)
    made = [Path(line) for line in here("new-study coin_throws").out.splitlines()]
    assert [str(file.relative_to(tmp_path)) for file in made] == [
        "notebooks/coin_throws.ipynb",
        "experiments/coin_throws.yaml",
        "tests/test_coin_throws.py",
    ]
    assert load(made[1]).title == "Coin throws"
    assert subprocess.run([sys.executable, "-m", "nbstripout", "--verify", "--keep-id", made[0]]).returncode == 0
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{made[0]} exists: choose another name" in here("new-study coin_throws").failed(2)


@pytest.mark.parametrize("name", ["My-Study", "1st", "../up", "class", "a b"])
def test_a_name_that_python_does_not_take_is_refused(name: str, tmp_path: Path, monkeypatch, here: Run):
    (tmp_path / "experiments").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "cannot name a study: use lower-case letters" in here(f"new-study '{name}'").failed(2)
    assert list((tmp_path / "experiments").iterdir()) == []


def test_a_study_needs_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Run):
    monkeypatch.chdir(tmp_path)
    assert f"{tmp_path} is in no project" in here("new-study coin_throws").failed(2)


def test_the_weekly_service_runs_commands_that_exist(here: Run):
    folder = ROOT / "launch" / "systemd"
    service = (folder / "qubic-lab-week.service").read_text()
    commands = [
        line.split("qubic-lab/.venv/bin/qubic-lab ")[1].split() for line in service.splitlines() if "ExecStart" in line
    ]
    assert [command for command, *_ in commands] == ["run", "report"]
    assert (ROOT / commands[0][1]).is_file()
    for command, *_ in commands:
        assert here(f"{command} --help").status == 0
    assert "OnCalendar=Sun " in (folder / "qubic-lab-week.timer").read_text()
