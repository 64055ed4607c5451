"""Chaos on real processes: three cases always, and all of them in a long run."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from clusters import all_gone, family, wait_until

from qubic_lab.chaos.run import CASES, run_chaos

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]
OFTEN = ("node-killed", "coordinator-killed", "poison-task")


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in CASES]
)
def test_nothing_is_lost_doubled_or_wrong(case: str) -> None:
    [found] = run_chaos([case], requests=30).cases
    if found.skipped:
        pytest.skip(found.skipped)
    assert (found.sent >= 30, found.answered) == (True, found.sent), found
    assert (found.lost, found.duplicated, found.wrong) == (0, 0, 0), found
    assert found.recovery_s is not None, found


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind() -> None:
    command = [sys.executable, "-m", "qubic_lab.cli.main", "chaos", "--case", "node-stopped"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ, start_new_session=True) as process:

        def has_stopped_one() -> bool:
            return any(each.status() == psutil.STATUS_STOPPED for each in family(process.pid))

        wait_until(has_stopped_one)
        processes = family(process.pid)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130 and b"interrupted" in said
    wait_until(lambda: all_gone(processes))
