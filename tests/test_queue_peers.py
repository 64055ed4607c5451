"""The comparison of queues: pairs alternate, all speeds come from one rule, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from qubic_lab.bench import queue_peers
from qubic_lab.bench.queue_peers import OURS, PEERS, End, Speed, plan_pairs, ratio_to, speed_of, sum_up
from qubic_lab.cli.main import run
from qubic_lab.errors import QubicLabError

COMPARE = ["bench", "queue", "--compare", "1", "--workers", "2", "--json"]


def test_each_peer_has_its_pairs_and_each_side_begins_as_often() -> None:
    pairs = plan_pairs(4)
    for peer in PEERS:
        assert [pair for pair in pairs if peer in pair] == [(OURS, peer), (peer, OURS)] * 2
    assert [set(pair) - {OURS} for pair in pairs[:2]] == [{"saq"}, {"dramatiq"}]


def test_the_clock_begins_when_every_worker_has_ended_a_task() -> None:
    early = [End("a", number, 0.1 * number, 0.05) for number in range(5)]
    both = [End("ab"[number % 2], 5 + number, 0.5 + 0.1 * (number // 2), 0.06) for number in range(22)]
    speed = speed_of([*reversed(both), *early], workers=2)
    assert speed.tasks_per_s == pytest.approx(20 / 1.0)
    assert speed.slept_ms == pytest.approx(60)
    assert speed.overhead_ms == pytest.approx(2 * 1_000 / 20 - 60)
    assert speed.repeated == 0


def test_a_task_that_ends_twice_counts_once() -> None:
    ends = [End(worker, number, 1.0 + number, 0.5) for number, worker in enumerate("abab")]
    again = End("a", 1, 9.0, 0.5)
    assert speed_of([*ends, again], 2) == Speed(**{**vars(speed_of(ends, 2)), "repeated": 1})


@pytest.mark.parametrize("workers", ["aaa", "aab"])
def test_a_run_in_which_a_worker_came_too_late_has_no_speed(workers: str) -> None:
    with pytest.raises(QubicLabError, match="3 tasks were done before all 2 workers had one: raise --tasks"):
        speed_of([End(worker, number, float(number), 0.5) for number, worker in enumerate(workers)], 2)


def test_a_ratio_is_taken_within_each_pair() -> None:
    def pair(ours: float, peer: str, theirs: float) -> dict[str, Speed]:
        return {OURS: Speed(ours, 1.0, 5.0, 0), peer: Speed(theirs, 2.0, 5.0, 1)}

    measured = [pair(100, "saq", 50), pair(7, "dramatiq", 1), pair(10, "saq", 10), pair(60, "saq", 40)]
    ratio = ratio_to("saq", measured)
    assert (ratio.median, ratio.low, ratio.high, ratio.pairs) == (1.5, 1.0, 2.0, (2.0, 1.0, 1.5))
    saq, ours = sum_up("saq", "1.0", measured), sum_up(OURS, "1.0", measured)
    assert (saq.tasks_per_s, saq.overhead_ms, saq.repeated, saq.tasks_per_s_runs) == (40, 2.0, 3, (50, 10, 40))
    assert (ours.tasks_per_s, ours.repeated, len(ours.tasks_per_s_runs)) == (35, 0, 4)


@pytest.mark.slow
def test_ours_and_the_peers_are_measured_and_judged(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*COMPARE, "--tasks", "60"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    result = json.loads(out)
    systems = {each["system"]: each for each in result["systems"]}
    assert list(systems) == [OURS, *PEERS]
    for each in systems.values():
        assert each["slept_ms"] >= 5
    first = {"saq": 0, "dramatiq": 1}
    for ratio in result["ratios"]:
        peer = ratio["peer"]
        theirs = systems[peer]
        assert theirs["overhead_ms"] == pytest.approx(2_000 / theirs["tasks_per_s"] - theirs["slept_ms"])
        ours = systems[OURS]["tasks_per_s_runs"][first[peer]]
        assert ratio["pairs"] == [pytest.approx(ours / theirs["tasks_per_s"])]
    faster = max(PEERS, key=lambda peer: systems[peer]["tasks_per_s"])
    assert result["faster_peer"] == faster
    assert result["ratio"] == result["ratios"][first[faster]]["median"]
    assert result["fast_enough"] == (result["ratio"] >= 0.95)


def test_a_worker_that_is_lost_is_an_error_of_one_line() -> None:
    with pytest.raises(QubicLabError, match="a worker of qubic-lab was lost: ValueError: sleep length must be"):
        queue_peers._run(OURS, 20, 2, work_s=-1.0)


def test_a_peer_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(queue_peers, "PEERS", ("saq", "no-such-queue"))
    assert run(COMPARE) == 1
    assert capfd.readouterr().err == 'error: not installed: no-such-queue; remedy: pip install "qubic-lab[dev]"\n'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stop"], "--compare disturbs no worker: leave out --kill-every and --stop"),
        (["--kill-every", "2s"], "--compare disturbs no worker"),
        (["--tasks", "19"], "--tasks is 19: it must be at least 20"),
        (["--tasks", "0"], "--tasks is 0: it must be at least 20"),
        (["--compare", "0"], "--compare is 0: it must be at least 1"),
        (["--workers", "0"], "--workers is 0: it must be at least 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    options: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*COMPARE, *options]) == 2
    assert message in capfd.readouterr().err


@pytest.fixture
def comparing(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A comparison of which the workers and the server are up, with its folders in `tmp_path`."""
    command = [sys.executable, "-m", "qubic_lab.cli.main", *COMPARE, "--tasks", "2000"]
    quiet = subprocess.DEVNULL
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet) as process:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob("*/ends")) and time.monotonic() < deadline:
            time.sleep(0.02)
        yield process
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_one_that_is_interrupted(
    how: signal.Signals, comparing: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    children = psutil.Process(comparing.pid).children(recursive=True)
    assert len(children) == 3  # two workers and the server
    comparing.send_signal(how)
    comparing.wait(20)
    assert psutil.wait_procs(children, timeout=10)[1] == []
    if how == signal.SIGINT:  # who is killed cannot remove a folder
        assert comparing.returncode == 130
        assert list(tmp_path.iterdir()) == []
