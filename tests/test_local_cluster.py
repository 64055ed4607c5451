"""Clusters of processes for measurements: they come up, say why if they do not, and leave nothing behind."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from clusters import wait_until

from qubic_lab.bench.echo_node import read_begun
from qubic_lab.bench.local_cluster import child_environment, local_cluster, run_apart
from qubic_lab.errors import QubicLabError

FAILOVER = ("bench", "failover", "--requests", "4", "--every", "20", "--nodes", "2", "--seconds", "30")


@pytest.mark.slow
def test_a_coordinator_that_does_not_come_up_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = "coordinator-1 ended with status 2: error: unknown balancer 'nonsense'"
    with pytest.raises(QubicLabError, match=said), local_cluster(balancer="nonsense"):
        pass
    assert not any(tmp_path.iterdir())


def test_the_processes_see_none_of_our_settings_but_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUBIC_LAB_REDIS_URL", "QUBIC_LAB_API_TOKENS", "qubic_lab_tls_key"):
        monkeypatch.setenv(name, str(tmp_path))
    environment = child_environment()
    assert [name for name in environment if name.upper().startswith("QUBIC_LAB_")] == ["QUBIC_LAB_CACHE"]
    assert environment["PATH"] == os.environ["PATH"]


def test_a_coroutine_runs_beside_a_loop_that_runs_already() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    async def in_a_notebook() -> int:
        return run_apart(answer())

    assert asyncio.run(in_a_notebook()) == 42


@pytest.fixture
def asking(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A benchmark with a client that reads a stream, and its folder in `tmp_path`."""
    command = [sys.executable, "-m", "qubic_lab.cli.main", *FAILOVER]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: any(map(begun, tmp_path.glob("*/node-?.log"))), 60)
        yield process
        process.kill()


def begun(log: Path) -> bool:
    return any(each.prompt == "request 0" for each in read_begun(log.read_text().splitlines()))


@pytest.mark.slow
@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_nothing_is_left_of_one_that_is_interrupted(
    how: signal.Signals, status: int, asking: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    children = psutil.Process(asking.pid).children(recursive=True)
    assert len(children) == 4  # the server, the coordinator and two nodes
    asking.send_signal(how)
    assert asking.wait(60) == status
    assert psutil.wait_procs(children, timeout=60)[1] == []
    if how != signal.SIGKILL:  # who is killed cannot remove a folder
        assert list(tmp_path.iterdir()) == []
