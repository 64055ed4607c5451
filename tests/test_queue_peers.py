"""The script that compares task queues: runs alternate, and one rule computes the speed of all systems."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from qubic_lab.errors import QubicLabError

SCRIPT = Path(__file__).parent.parent / "scripts" / "queue_peers.py"


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    spec = spec_from_file_location("queue_peers", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_side_runs_first_equally_often(peers: ModuleType) -> None:
    pairs = peers.plan_pairs(4)
    for peer in peers.PEERS:
        assert [pair for pair in pairs if peer in pair] == [(peers.OURS, peer), (peer, peers.OURS)] * 2
    assert [set(pair) - {peers.OURS} for pair in pairs[:2]] == [{"saq"}, {"dramatiq"}]


def test_the_clock_starts_when_every_worker_has_finished_a_task(peers: ModuleType) -> None:
    early = [peers.TaskEnd("a", number, 0.1 * number, 0.05) for number in range(5)]
    both = [peers.TaskEnd("ab"[number % 2], 5 + number, 0.5 + 0.1 * (number // 2), 0.06) for number in range(22)]
    speed = peers.speed_of([*reversed(both), *early], workers=2)
    assert speed.tasks_per_s == pytest.approx(20 / 1.0)
    assert speed.slept_ms == pytest.approx(60)
    assert speed.overhead_ms == pytest.approx(2 * 1_000 / 20 - 60)
    assert speed.repeated == 0
    again = peers.speed_of([*both, *early, peers.TaskEnd("a", 1, 9.0, 0.5)], workers=2)
    assert vars(again) == {**vars(speed), "repeated": 1}, "a task that ends twice counts once"


@pytest.mark.parametrize("workers", ["aaa", "aab"])
def test_a_run_in_which_a_worker_came_too_late_has_no_speed(peers: ModuleType, workers: str) -> None:
    ends = [peers.TaskEnd(worker, number, float(number), 0.5) for number, worker in enumerate(workers)]
    with pytest.raises(QubicLabError, match="3 tasks were done before all 2 workers had one: raise --tasks"):
        peers.speed_of(ends, 2)


def test_ratios_are_taken_within_each_pair(peers: ModuleType) -> None:
    def pair(ours: float, peer: str, theirs: float) -> dict[str, object]:
        return {peers.OURS: peers.RunSpeed(ours, 1.0, 5.0, 0), peer: peers.RunSpeed(theirs, 2.0, 5.0, 1)}

    measured = [pair(100, "saq", 50), pair(7, "dramatiq", 1), pair(10, "saq", 10), pair(60, "saq", 40)]
    assert peers.ratios_to("saq", measured) == [2.0, 1.0, 1.5]


@pytest.mark.slow
def test_the_script_measures_all_systems_and_ends_its_workers() -> None:
    command = [sys.executable, str(SCRIPT), "--tasks", "60", "--workers", "2", "--pairs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    systems, ratios, about = done.stdout.split("\n\n")
    assert [line.split()[1] for line in systems.splitlines()[2:]] == ["qubic-lab", "saq", "dramatiq"]
    assert [line.split()[1] for line in ratios.splitlines()[2:]] == ["saq", "dramatiq"]
    assert about.startswith("60 tasks of 5 ms a run, 2 workers, valkey")
    left = subprocess.run(["pgrep", "-f", f"{SCRIPT} --worker"], capture_output=True, text=True, check=False)
    assert left.stdout == ""
