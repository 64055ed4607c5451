"""Commands that are killed (SIGKILL) leave no process behind, whatever they have started."""

import signal
from pathlib import Path

import psutil
import pytest
from clusters import all_gone, cache_with_kernels, family, processes, wait_until

slow = pytest.mark.slow
COMMANDS = [
    pytest.param(2, "bench backtest --null 2000 --effect 0", id="a pool of processes, and its tracker"),
    pytest.param(
        2, "bench queue --tasks 500 --workers 2 --work-ms 500", id="workers and an embedded Redis", marks=slow
    ),
    pytest.param(1, "bench link --repeat 1000000", id="a peer", marks=slow),
    pytest.param(4, "bench serving --model MODEL --pairs 1000", id="ranks, their launchers, a server", marks=slow),
    pytest.param(5, "bench dispatch --real-requests 0 --requests 100000", id="a cluster", marks=slow),
    pytest.param(5, "bench failover", id="a cluster whose members are killed", marks=slow),
]


@pytest.mark.parametrize(("least", "command"), COMMANDS)
def test_nothing_outlives_a_command_that_is_killed(
    least: int, command: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    words = [str(request.getfixturevalue("tiny")) if word == "MODEL" else word for word in command.split()]
    with processes() as start:
        environment = {"QUBIC_LAB_DATA": str(tmp_path), "QUBIC_LAB_CACHE": str(cache_with_kernels(tmp_path / "c"))}
        running = start(tmp_path, "command", "qubic_lab.cli.main", *words, **environment)
        started: list[psutil.Process] = []

        def has_started() -> bool:
            assert not running.ended, running.log
            started[:] = family(running.pid)
            return len(started) > least

        wait_until(has_started)
        running.send(signal.SIGKILL)
        wait_until(lambda: all_gone(started))
