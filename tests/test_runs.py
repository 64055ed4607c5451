"""Notebooks that run for real, through papermill, in a kernel of their own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import psutil
import pytest
import typer
from clusters import family, wait_until
from studies import Silent, write_notebook, write_study, write_week
from typer.testing import CliRunner, Result

from qubic_lab.cli import console
from qubic_lab.cli import runs as commands
from qubic_lab.cli.console import add_commands
from qubic_lab.database import open_database
from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.oracle.store.transactions import writing
from qubic_lab.runs import fingerprint, one_run
from qubic_lab.runs.batch import run_batch
from qubic_lab.runs.experiment import load
from qubic_lab.runs.notebook import record, record_figure
from qubic_lab.runs.one_run import PlannedRun, RunOutcome, plan_runs
from qubic_lab.runs.store import (
    keep,
    read_manifest,
    read_results,
    run_folder,
    somebody_runs,
    turn_to_run,
    unfinished_folder,
)
from qubic_lab.runs.week_index import WeekEntry, add_entry, days_of, latest_of_each_study, read_index, week_of

RECORD = "from qubic_lab.runs.notebook import record\nimport sys, os\n"
SLEEP = RECORD + "import time\nrecord('started', {'pid': os.getpid()})\ntime.sleep(600)"
WEEKS = ("2026-W48", "2026-W49")


def run(file: Path, watcher: Silent | None = None) -> list[RunOutcome]:
    return run_batch(load(file), full=False, watcher=watcher or Silent())


def plan(file: Path, iso_week: str = WEEKS[0], *, full: bool = False) -> tuple[PlannedRun, ...]:
    return tuple(plan_runs(load(file), full=full, iso_week=iso_week))


def invoke(*arguments: str) -> Result:
    """Run a command of the group `run`."""
    app = typer.Typer()
    add_commands(app, {"run": (commands.run, ""), "report": (commands.report, "")})
    return CliRunner().invoke(app, arguments)


def test_a_run_is_kept_with_its_results_and_reused_while_nothing_changes(lab_root: Path):
    # The kernel, and not only papermill, is this Python; it works in the root.
    code = RECORD + "record('sum', {'value': number + 1, 'python': sys.executable, 'cwd': os.getcwd(), 'threads': 3})"
    write_notebook(lab_root / "notebooks" / "tiny.ipynb", "print('on stdout')", code)
    watcher = Silent()
    (first,) = run(write_study(lab_root), watcher)

    assert first.error is None
    assert first.folder == run_folder("study", first.run.key)
    kept = {"executed.ipynb", "manifest.json", "notebook.log", "results"}
    assert {path.name for path in first.folder.iterdir()} == kept
    assert read_results(first.folder) == {
        "sum": {"value": 3, "python": sys.executable, "cwd": str(lab_root), "threads": 3}
    }
    assert watcher.cells == [(number, 4) for number in (1, 2, 3, 4)]
    outputs = nbformat.read(first.folder / "executed.ipynb", as_version=4).cells[2].outputs
    assert outputs[0].text == "on stdout\n"
    manifest = read_manifest(first.folder)
    assert manifest.parameters == {"number": 2, "share": 0.5, "names": ["a"], "threads": 0, "free": None}
    assert (manifest.circumstances, manifest.model_hash, manifest.error) == ({"threads": 3}, None, None)

    (again,) = run(write_study(lab_root))
    assert (again.reused, again.folder) == (True, first.folder)
    same = write_study(lab_root, full={"parameters": {"number": 2}})
    (whole,) = run_batch(load(same), full=True, watcher=Silent())
    entries = read_index(week_of(datetime.now(UTC))).runs
    assert {entry.key for entry in entries} == {first.run.key} == {whole.run.key}
    assert [(entry.reused, entry.full) for entry in entries] == [(False, False), (True, False), (True, True)]


def test_a_run_whose_results_were_deleted_or_changed_is_made_again(lab_root: Path):
    write_notebook(lab_root / "notebooks" / "tiny.ipynb", RECORD + "record('sum', {'value': number + 1})")
    (first,) = run(write_study(lab_root))
    result = first.folder / "results" / "sum.json"
    for damage in (result.unlink, lambda: result.write_text("{}")):
        damage()
        (again,) = run(write_study(lab_root))
        assert (again.reused, read_results(again.folder)) == (False, {"sum": {"value": 3}})
    (last,) = run(write_study(lab_root))
    assert last.reused


def test_a_failed_run_is_kept_and_the_others_go_on(lab_root: Path):
    write_notebook(lab_root / "notebooks" / "tiny.ipynb", "{2: 'known'}[number]", "print('reached')")
    write_study(lab_root, quick={"grid": {"number": [1, 2]}})
    result = invoke("run", str(write_week(lab_root, "study.yaml")))

    failed, working = read_index(week_of(datetime.now(UTC))).runs
    assert isinstance(result.exception, QubicLabError)
    assert result.exception.exit_status == 1
    assert str(result.exception) == f"A week: 1 of 2 runs failed: see executed.ipynb in {failed.folder}"
    assert result.stdout == f"{working.folder}\n"
    again = json.loads(invoke("run", str(lab_root / "experiments" / "weekly.yaml"), "--json").stdout)
    assert [(each["reused"], bool(each["error"])) for each in again["runs"]] == [(False, True), (True, False)]
    lines = result.stderr.splitlines()
    assert lines[0] == f"study (1 of 2): failed: tiny.ipynb: cell In [3]: KeyError: 1; kept in {failed.folder}"
    assert lines[1].startswith("study (2 of 2): done in ")

    assert failed.folder.name == f"failed-{failed.key}"
    assert read_manifest(failed.folder).error == "tiny.ipynb: cell In [3]: KeyError: 1"
    cells = nbformat.read(failed.folder / "executed.ipynb", as_version=4).cells
    assert [output.ename for cell in cells for output in cell.get("outputs", [])] == ["KeyError"]
    assert not run_folder(failed.study, failed.key).exists()


def test_a_killed_run_leaves_nothing_that_looks_finished_and_no_process(lab_root: Path):
    write_notebook(lab_root / "notebooks" / "tiny.ipynb", SLEEP)
    runs = lab_root / "runs" / "study"
    command = [sys.executable, "-m", "qubic_lab.cli.main", "run", str(write_study(lab_root))]
    with subprocess.Popen(command) as process:
        try:
            wait_until(lambda: list(runs.glob("*/results/started.json")) or process.poll() is not None)
            (started,) = runs.glob("*/results/started.json")
            processes = [psutil.Process(json.loads(started.read_text())["pid"]), *family(process.pid)[1:]]
        finally:
            process.kill()

    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []
    (left,) = runs.iterdir()
    assert left.name.startswith("unfinished-")
    assert not (lab_root / "runs" / "weeks").exists()
    with turn_to_run():
        assert list(runs.iterdir()) == []


def test_a_lost_kernel_is_a_failure_and_not_a_hang(lab_root: Path):
    write_notebook(lab_root / "notebooks" / "tiny.ipynb", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    (outcome,) = run(write_study(lab_root))
    assert outcome.error == "tiny.ipynb: cell In [3]: DeadKernelError: Kernel died"
    assert "DeadKernelError" in (outcome.folder / "notebook.log").read_text()


@pytest.mark.parametrize(("deaths", "error"), [(1, None), (3, "before the first cell: RuntimeError: Kernel died")])
def test_a_kernel_that_dies_before_its_first_cell_starts_again(
    deaths: int, error: str | None, lab_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As one does whose port another process has taken."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "deaths = Path(__file__).with_name('deaths')\n"
        "if 'ipykernel_launcher' in sys.orig_argv:\n"
        "    deaths.open('a').write('x')\n"
        f"    if len(deaths.read_text()) <= {deaths}:\n"
        "        os._exit(1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    write_notebook(lab_root / "notebooks" / "tiny.ipynb")
    (outcome,) = run(write_study(lab_root))
    assert (tmp_path / "deaths").read_text() == "x" * (deaths + (error is None))
    assert outcome.error is None if error is None else error in str(outcome.error)


def test_a_model_is_part_of_the_key_and_found_before_anything_runs(lab_root: Path, monkeypatch: pytest.MonkeyPatch):
    write_notebook(lab_root / "notebooks" / "tiny.ipynb", parameters='model: str = "toy"')
    file = write_study(lab_root, quick={}, full={})
    hashes = {"toy": "aa"}
    monkeypatch.setattr(fingerprint, "hash_model", hashes.__getitem__)
    (first,) = plan(file)
    hashes["toy"] = "bb"
    (second,) = plan(file)
    assert (first.model_hash, second.model_hash) == ("aa", "bb")
    assert first.key != second.key

    def unknown(name: str) -> str:
        raise InputError(f"unknown model {name!r}")

    monkeypatch.setattr(fingerprint, "hash_model", unknown)
    with pytest.raises(InputError, match="toy"):
        run(file)
    assert not (lab_root / "runs").exists()


def test_a_study_of_time_is_repeated_each_week_and_on_each_machine(lab_root: Path, monkeypatch: pytest.MonkeyPatch):
    write_notebook(lab_root / "notebooks" / "tiny.ipynb")
    timed = write_study(lab_root, "timed", measures_time=True)
    plain = write_study(lab_root, "plain")

    def keys(file: Path) -> list[str]:
        return [plan(file, iso_week)[0].key for iso_week in WEEKS]

    here = keys(timed)
    assert len(set(here)) == 2
    assert len(set(keys(plain))) == 1
    full = write_study(lab_root, "full", full={"measures_time": True})
    assert [len({plan(full, week, full=form)[0].key for week in WEEKS}) for form in (False, True)] == [1, 2]
    monkeypatch.setattr(one_run, "machine", lambda: "another machine")
    assert not set(keys(timed)) & set(here)


TRIES = """import numpy as np
from qubic_lab.oracle.backtest.ledger import Trial, open_ledger

with open_ledger() as ledger:
    trial = Trial("f", "up", "c" * 64, "d" * 64, 0, 9, {"number": number})
    print(ledger.record(trial, np.arange(1, 4) * 86_400_000_000, np.zeros(3)).family_trials)
"""


def test_a_study_that_uses_the_ledger_is_repeated_once_others_have_tried(lab_root: Path):
    write_notebook(lab_root / "notebooks" / "tiny.ipynb", TRIES)
    first = write_study(lab_root, "first", uses_ledger=True)
    other = write_study(lab_root, "other", uses_ledger=True, quick={"parameters": {"number": 3}})
    runs = [run(file)[0] for file in (first, first, other, first, first)]
    assert [(each.error, each.reused) for each in runs] == [
        (None, reused) for reused in (False, True, False, False, True)
    ]
    assert len({runs[place].folder for place in (0, 2, 3)}) == 3
    assert (runs[1].folder, runs[4].folder) == (runs[0].folder, runs[3].folder)
    assert all(read_manifest(each.folder).key == each.run.key == each.folder.name for each in runs)
    for file in lab_root.glob("ledger.db*"):  # with the log that a process which ends may leave
        file.unlink()
    again = run(first)[0]  # a new ledger, in which only this run has tried, as at first
    assert (again.error, again.reused, again.folder) == (None, False, runs[0].folder)
    assert read_index(week_of(datetime.now(UTC))).runs[-1].key == runs[0].run.key


def test_changed_parameters_and_data_touch_their_own_study_alone(lab_root: Path):
    write_notebook(lab_root / "notebooks" / "tiny.ipynb")
    write_study(lab_root, "first")
    write_study(lab_root, "second")
    file = write_week(lab_root, "first.yaml", "second.yaml")
    first, second = plan(file)
    keys = [second.key]
    write_study(lab_root, "second", quick={"parameters": {"number": 3}}, data=["data.jsonl"])
    for content in ("1", "2"):
        (lab_root / "data.jsonl").write_text(content)
        again, changed = plan(file)
        assert again.key == first.key
        assert list(changed.data_hashes) == ["data.jsonl"]
        keys.append(changed.key)
    write_study(lab_root, "second", data=["data.jsonl"])
    keys.append(plan(file)[1].key)
    assert len(set(keys)) == 4


def test_every_file_that_a_parameter_names_counts_by_its_content(lab_root: Path):
    parameters = (
        'file: str = ""\nrules: list[str] = []\nsignals: list[str] = []\nscorer: str = ""\ncalibrations: str = ""'
    )
    write_notebook(lab_root / "notebooks" / "tiny.ipynb", parameters=parameters)
    named = {
        "file": "bars.csv",
        "rules": [str(lab_root / "rules.yaml")],
        "signals": ["mine.deep:momentum", "no path at all " * 30],
        "scorer": "finbert:weights",
        "calibrations": "out",
    }
    file = write_study(lab_root, quick={"parameters": named}, full={})
    for folder in ("mine", "weights", "out"):
        (lab_root / folder).mkdir()
    inputs = ["bars.csv", "rules.yaml", "mine/deep.py", "weights/model.bin"]
    keys = [plan(file)[0].key]
    for path in [*inputs, *inputs]:  # each is made, then changed
        with (lab_root / path).open("a") as stream:
            stream.write("1")
        keys.append(plan(file)[0].key)
    assert len(set(keys)) == len(keys) == 9
    (lab_root / "out" / "written.json").write_text("{}")
    assert plan(file)[0].key == keys[-1], "what a run writes is no input"


def test_a_database_that_a_parameter_names_counts_by_its_newest_entry(lab_root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir("/")
    write_notebook(lab_root / "notebooks" / "tiny.ipynb", parameters='collected: str = ""')
    file = write_study(lab_root, quick={"parameters": {"collected": "sqlite:///prices.db"}}, full={})
    with pytest.raises(InputError, match=r"prices\.db does not exist"):
        plan(file)
    engine = open_database(f"sqlite:///{lab_root / 'prices.db'}")
    keys = []
    for _ in range(2):
        with writing(engine) as writer:
            writer.wrote("bitcoin")
        first, again = plan(file)[0], plan(file)[0]
        assert first.key == again.key and list(first.data_hashes) == ["collected"]
        keys.append(first.key)
    assert keys[0] != keys[1]


def test_an_adapted_sentiment_model_counts(lab_root: Path, set_settings: Callable[..., None]):
    write_notebook(lab_root / "notebooks" / "tiny.ipynb")
    file = write_study(lab_root)
    keys = [plan(file)[0].key]
    set_settings(sentiment_head=lab_root / "head.json")
    for content in ("1", "2"):
        (lab_root / "head.json").write_text(content)
        keys.append(plan(file)[0].key)
    assert len(set(keys)) == 3


def test_one_process_at_a_time_runs_notebooks(lab_root: Path):
    code = "from qubic_lab.runs.store import turn_to_run\nwith turn_to_run(): print('my turn')"
    assert not somebody_runs()
    with turn_to_run():
        assert somebody_runs()
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=1.5)
    assert other.communicate(timeout=60)[0] == "my turn\n"
    assert not somebody_runs()


def test_a_kernel_outside_of_its_run_makes_no_folder(lab_root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(lab_root)
    assert record("result", {"a": 1}) == {"a": 1}
    monkeypatch.setenv("QUBIC_LAB_RUN_DIR", str(lab_root / "runs" / "study" / "unfinished-key-1"))
    record("late", {"value": 1})
    assert list(lab_root.iterdir()) == []


def test_a_success_clears_the_failure_of_the_same_run(lab_root: Path):
    for failed in (True, True, False):
        with unfinished_folder("study", "key") as folder:
            keep(folder, "study", "key", failed=failed)
    assert [path.name for path in (lab_root / "runs" / "study").iterdir()] == ["key"]


def test_only_the_last_batch_of_a_study_counts(lab_root: Path):
    def entry(study: str, key: str, day: int) -> WeekEntry:
        return WeekEntry(study, key, f"2026-11-2{day}T08:00:00+00:00", of=2, reused=False, failed=False)

    entries = [entry("a", "1", 4), entry("b", "3", 4), entry("a", "4", 5), entry("a", "5", 5)]
    for each in entries:
        add_entry("2026-W48", each)
    assert read_index("2026-W48").runs == tuple(entries)
    latest = latest_of_each_study(entries)
    assert {study: [each.key for each in of_study] for study, of_study in latest.items()} == {
        "a": ["4", "5"],
        "b": ["3"],
    }


def test_iso_weeks_turn_the_year_where_they_should():
    assert week_of(datetime(2027, 1, 3, tzinfo=UTC)) == "2026-W53"
    assert week_of(datetime(2024, 12, 30, tzinfo=UTC)) == "2025-W01"
    assert [day.isoformat() for day in days_of("2026-W48")] == ["2026-11-23", "2026-11-29"]
    for wrong in ("2026-48", "2026-W54", "2026-W00", "latest"):
        with pytest.raises(ValueError, match=r".*"):
            days_of(wrong)


def test_a_figure_is_kept_in_both_forms_and_twice_the_same(lab_root: Path, monkeypatch: pytest.MonkeyPatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    contents = []
    for name in ("one", "two"):
        (lab_root / name).mkdir()
        monkeypatch.setenv("QUBIC_LAB_RUN_DIR", str(lab_root / name))
        figure, axes = pyplot.subplots()
        axes.bar(["a"], [1], hatch="/")
        assert record_figure("bars", figure, "Bars & more").figure is figure
        assert sorted(path.name for path in (lab_root / name / "figures").iterdir()) == ["bars.png", "bars.svg"]
        contents.append((lab_root / name / "figures" / "bars.svg").read_text())
    assert contents[0] == contents[1]
    assert "Bars &amp; more" in contents[0] and ">a</text>" in contents[0]
    assert not pyplot.fignum_exists(figure.number)


@pytest.mark.parametrize("name", ["", "../x", "a b", "A"])
def test_a_name_that_is_no_file_name_is_refused(name: str):
    with pytest.raises(InputError, match="cannot name a result"):
        record(name, {})


def test_a_missing_lab_extra_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(console, "find_spec", lambda name: None if name == "papermill" else object())
    result = invoke("run", "any.yaml")
    assert isinstance(result.exception, QubicLabError)
    assert str(result.exception) == 'not installed: papermill; remedy: pip install "qubic-lab[lab]"'


def test_a_candidate_counts_by_its_files_and_not_by_what_its_manifest_says(lab_root: Path, tiny: Path):
    candidate = lab_root / "candidate"
    shutil.copytree(tiny, candidate)
    write_notebook(lab_root / "notebooks" / "tiny.ipynb", parameters='candidate: str = ""')
    file = write_study(lab_root, quick={"parameters": {"candidate": str(candidate)}}, full={})
    (first,) = plan(file)
    weights = candidate / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (second,) = plan(file)
    assert first.key != second.key
    assert first.data_hashes["candidate"] != second.data_hashes["candidate"]
