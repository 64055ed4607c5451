"""Several runs at once, limits of a run, and the time that is left."""

import json
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from clusters import wait_until
from forked_python import start_anew
from rich.console import Console
from studies import Silent, write_notebook, write_study, write_week

from qubic_lab.errors import InputError
from qubic_lab.runs.batch import run_batch
from qubic_lab.runs.experiment import load
from qubic_lab.runs.limits import Limits
from qubic_lab.runs.one_run import RunOutcome, plan_runs
from qubic_lab.runs.progress import LabProgress, TimeLeft, left_in_words

GIB = 2**30


class Noting(Silent):
    """Remembers when runs began and ended."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def begin(self, run: Any) -> None:
        self.events.append(f"{run.study.name} begins")

    def end(self, outcome: RunOutcome) -> None:
        assert outcome.error is None
        self.events.append(f"{outcome.run.study.name} ends{' reused' if outcome.reused else ''}")


def test_what_measures_time_runs_alone_and_the_same_run_once(lab_root: Path):
    write_notebook(lab_root / "notebooks" / "tiny.ipynb")
    write_study(lab_root, "timed", measures_time=True)
    write_study(lab_root, "plain", quick={"grid": {"number": [1, 1]}})
    watcher = Noting()
    outcomes = run_batch(load(write_week(lab_root, "timed.yaml", "plain.yaml")), full=False, watcher=watcher, jobs=3)
    assert [outcome.run.study.name for outcome in outcomes] == ["timed", "plain", "plain"]
    assert watcher.events == ["plain begins", "plain ends", "plain ends reused", "timed begins", "timed ends"]
    with pytest.raises(InputError, match="jobs is 0: it must be at least 1"):
        run_batch(load(write_week(lab_root, "plain.yaml")), full=False, watcher=watcher, jobs=0)


CHILD = """import json, os, subprocess, sys, time
from pathlib import Path
child = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!"], stdout=subprocess.PIPE, start_new_session=True, text=True)
Path(f"pids{number}.json").write_text(json.dumps([os.getpid(), int(child.stdout.readline())]))
"""


def runs(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_ctrl_c_ends_all_that_run(lab_root: Path):
    class Interrupting(Silent):
        def end(self, outcome: RunOutcome) -> None:
            wait_until(lambda: (lab_root / "pids2.json").exists())
            self.pids = json.loads((lab_root / "pids2.json").read_text())
            assert all(map(runs, self.pids))
            raise KeyboardInterrupt

    write_notebook(lab_root / "notebooks" / "tiny.ipynb", f"if number == 2:\n    exec({CHILD!r})\n    time.sleep(600)")
    file, watcher = write_study(lab_root, quick={"grid": {"number": [1, 2, 3]}}), Interrupting()
    with pytest.raises(KeyboardInterrupt):
        run_batch(load(file), full=False, watcher=watcher, jobs=2)
    assert not any(map(runs, watcher.pids))
    # The third may have begun; neither it nor the second looks finished or failed.
    assert len(list((lab_root / "runs" / "study").iterdir())) in (1, 2)
    assert not list((lab_root / "runs" / "study").glob("*-*"))


def test_a_run_beyond_its_limits_ends_with_all_its_processes_and_the_batch_goes_on(
    lab_root: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(subprocess.Popen, "_execute_child", start_anew)  # forks would have the memory of all tests
    write_notebook(lab_root / "notebooks" / "tiny.ipynb", f"{CHILD}much = b'x' * (800 << 20)\ntime.sleep(600)")
    write_notebook(lab_root / "notebooks" / "small.ipynb", "1 + 1")
    write_study(lab_root, "large", limits={"gib": 0.7})
    write_study(lab_root, "long", limits={"minutes": 0.001})
    write_study(lab_root, "small", notebook="small", limits={"minutes": 9, "gib": 9})
    week = load(write_week(lab_root, "large.yaml", "long.yaml", "small.yaml"))
    large, long, small = run_batch(week, full=False, watcher=Silent())
    assert large.error and large.error.startswith("tiny.ipynb: ended as it took ")
    assert large.error.endswith(" GiB, more than 0.7 GiB: raise gib under 'limits' in its experiment file")
    remedy = "raise minutes under 'limits' in its experiment file"
    assert long.error == f"tiny.ipynb: ended as it took longer than 0.001 minutes: {remedy}"
    assert (small.error, large.folder.name) == (None, f"failed-{large.run.key}")
    assert not any(map(runs, json.loads((lab_root / "pids2.json").read_text())))


def test_a_limit_is_named_with_its_remedy_and_the_default_ones_leave_room():
    default = Limits()
    memory = psutil.virtual_memory().total / GIB
    assert default.passed(8 * 3600, 0.89 * memory) is None
    assert str(default.passed(8 * 3600 + 1, 0)).startswith("ended as it took longer than 480 minutes")
    assert "GiB: raise gib" in str(default.passed(0, 0.91 * memory))
    assert Limits(gib=2.0).passed(0, 2.5) == (
        "ended as it took 2.50 GiB, more than 2 GiB: raise gib under 'limits' in its experiment file"
    )


def test_the_time_left_is_what_earlier_runs_took_and_else_what_runs_take_here():
    left = TimeLeft({1: 60.0, 2: 30.0, 3: None, 4: 90.0}, alone={4}, jobs=2)
    assert left.seconds(0) == 90 + (60 + 30 + 60) / 2  # the third as long as the known ones on average
    left.begin(1, 0)
    left.begin(2, 0)
    assert left.seconds(20) == 90 + max((40 + 10 + 60) / 2, 60)
    left.end(2, 40, reused=False)
    assert left.seconds(40) == 90 + max((20 + 40) / 2, 20, 40)
    left.end(1, 70, reused=False)
    left.begin(3, 70)
    assert left.seconds(100) == 90 + 25  # it has run for 30 s of the mean of 40 and 70
    left.end(3, 100, reused=True)
    left.end(4, 200, reused=False)
    assert left.seconds(200) == 0
    assert TimeLeft({1: None}, (), 1).seconds(5) is None
    words = [left_in_words(seconds) for seconds in (None, 20, 250, 7300)]
    assert words == [
        "time left unknown",
        "less than a minute left",
        "about 4 min left",
        "about 2 h 2 min left",
    ]


def test_progress_names_what_runs_and_follows_it_under_a_cell(lab_root: Path, monkeypatch: pytest.MonkeyPatch):
    shown: list[str] = []

    class Handle:
        def update(self, table: Any) -> None:
            console = Console(width=100)
            with console.capture() as capture:
                console.print(table)
            shown.append(" ".join(capture.get().split()))

    monkeypatch.setattr("IPython.display.display", lambda table, display_id: Handle())
    write_notebook(lab_root / "notebooks" / "tiny.ipynb")
    planned = plan_runs(load(write_study(lab_root, quick={"grid": {"number": [1, 2]}})), full=False, iso_week="")
    watcher = LabProgress()
    watcher.start(planned, jobs=2)
    watcher.begin(planned[0])
    watcher.cell(planned[1], 2, 3)
    watcher.end(RunOutcome(planned[0], lab_root, reused=False))
    watcher.cell(planned[0], 3, 3)  # told after the end
    assert "study (1 of 2)" in shown[1] and "study (2 of 2)" in shown[1] and "2/3" in shown[1]
    assert "all runs, time left unknown" in shown[1] and "0/2" in shown[1]
    for late in shown[2:]:
        assert "study (1 of 2)" not in late and "1/2" in late and "less than a minute left" in late


PAPERMILL = "import sys, papermill\npapermill.execute_notebook(*sys.argv[1:], progress_bar=False)"


@pytest.mark.slow
def test_a_run_takes_little_longer_than_papermill_alone(lab_root: Path):
    notebook = write_notebook(lab_root / "notebooks" / "tiny.ipynb", "number + 1")
    extra = []
    for number in range(5):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", PAPERMILL, notebook, lab_root / "out.ipynb"], check=True)
        alone = time.monotonic() - began
        week = load(write_study(lab_root, quick={"parameters": {"number": number}}))
        began = time.monotonic()
        run_batch(week, full=False, watcher=Silent())
        extra.append(time.monotonic() - began - alone)
    print("seconds beyond papermill:", *(f"{seconds:.2f}" for seconds in sorted(extra)))
    assert statistics.median(extra) < 1.5
