"""What others use of a machine while something is measured."""

import subprocess
import sys

import psutil
import pytest

from qubic_lab.bench.noise import CpuReading, NoiseWatch, OwnProcesses, others_share, read_cpu_times

BURN_S = 0.3
BURN = f"import time\nwhile time.process_time() < {BURN_S}: pass"


@pytest.mark.parametrize(
    ("used_s", "own_s", "share"),
    [
        (10.0, 10.0, 0.0),  # all is ours
        (12.0, 10.0, 0.1),
        (20.0, 0.0, 1.0),  # two busy loops on two cores
        (9.9, 10.0, 0.0),  # clocks tick every 10 ms: ours may seem more than all
        (20.3, 0.0, 1.0),
    ],
)
def test_what_is_not_ours_is_others(used_s: float, own_s: float, share: float) -> None:
    begun = CpuReading(at_s=5.0, used_s=100.0, own_s=40.0)
    ended = CpuReading(at_s=15.0, used_s=100.0 + used_s, own_s=40.0 + own_s)
    assert others_share(begun, ended, cores=2) == pytest.approx(share)


def test_the_work_of_a_child_that_has_ended_is_ours() -> None:
    own = OwnProcesses()
    before = read_cpu_times(own)
    subprocess.run([sys.executable, "-c", BURN], check=True)
    after = read_cpu_times(own)
    assert after.own_s - before.own_s >= BURN_S - 0.02
    assert after.used_s - before.used_s >= BURN_S - 0.1


def test_the_work_of_a_child_whose_parent_did_not_wait_is_ours() -> None:
    own = OwnProcesses()
    before_s = own.cpu_s()
    then = "print(flush=True); time.sleep(60)"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN + chr(10) + then!r}])",
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        parent.stdout.readline()  # the grandchild has done its work
        assert own.cpu_s() - before_s >= BURN_S - 0.02
        grandchildren = psutil.Process(parent.pid).children()
        parent.kill()
        for each in grandchildren:
            each.kill()
    assert own.cpu_s() - before_s >= BURN_S - 0.02


def test_laps_begin_where_the_last_ended_and_the_noise_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    # Others use nothing before, one of two cores in the first second, and nothing in the next two.
    used_s = iter([0.0, 0.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr("qubic_lab.bench.noise.usable_cores", lambda: 2)
    times_s = iter([0.0, 1.0, 2.0, 4.0, 4.0])
    monkeypatch.setattr(
        "qubic_lab.bench.noise.read_cpu_times", lambda own: CpuReading(next(times_s), next(used_s), own_s=0.0)
    )
    watch = NoiseWatch()
    assert [watch.lap(), watch.lap()] == [0.5, 0.0]
    noise = watch.noise()
    assert (noise.before, noise.during) == (0.0, pytest.approx(1 / 6))
