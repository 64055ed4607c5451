"""`qubic-lab cluster up` with real pipelines: it answers, what is lost comes back by itself, nothing is left."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import all_gone, family, wait_until

from qubic_lab.api.client import CoordinatorClient
from qubic_lab.cluster import background
from qubic_lab.cluster.supervisor import ClusterState

pytestmark = pytest.mark.dist

CLI = [sys.executable, "-m", "qubic_lab.cli.main", "cluster"]
ROOT = Path(__file__).resolve().parents[2]


def environment(cache: Path) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "QUBIC_LAB_COORDINATOR"} | {
        "QUBIC_LAB_CACHE": str(cache)
    }


def cluster(cache: Path, line: str) -> "subprocess.CompletedProcess[str]":
    command = [*CLI, *line.split()]
    return subprocess.run(command, env=environment(cache), capture_output=True, text=True, cwd=ROOT, timeout=100)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    background.stop(tmp_path / "cluster", 0.1)


def state_of(cache: Path) -> ClusterState:
    state = background.running(cache / "cluster")
    assert state is not None
    return state


@pytest.mark.slow
def test_up_answers_and_down_leaves_nothing(tiny: Path, cache: Path) -> None:
    up = cluster(cache, f"up --nodes 1 --model {tiny} --port 0 --threads 1")
    assert up.returncode == 0, up.stderr
    [url] = re.findall(r"^1 node: (http://127\.0\.0\.1:\d+) ", up.stdout)
    with CoordinatorClient(url) as client:
        assert len(client.ask("Why?", max_new_tokens=8, ignore_eos=True).token_ids) == 8
    [line] = [line for line in up.stdout.splitlines() if line.startswith("curl ")]
    asked = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert '"finish_reason":' in asked.stdout
    processes = family(state_of(cache).pid)
    down = cluster(cache, "down")
    assert (down.returncode, down.stdout) == (0, "ended 1 node, 1 coordinator and Redis\n")
    assert all_gone(processes)
    assert background.running(cache / "cluster") is None


@pytest.mark.slow
def test_a_node_and_a_rank_that_are_killed_come_back(tiny: Path, cache: Path) -> None:
    up = cluster(cache, f"up --nodes 2 --ranks 2 --model {tiny} --port 0 --threads 1")
    assert up.returncode == 0, up.stderr
    pids = {member.name: member.pid for member in state_of(cache).members}
    with CoordinatorClient(state_of(cache).urls[0]) as client:
        before = client.ask("Why?", max_new_tokens=8, ignore_eos=True).token_ids
        ranks = [p for p in family(pids["node-2"] or 0) if "qubic_lab.pipeline.rank" in p.cmdline()]
        assert len(ranks) == 2
        os.kill(pids["node-1"] or 0, signal.SIGKILL)
        ranks[1].kill()

        def are_back() -> bool:
            restarts = {node.name: node.restarts for node in client.nodes() if node.gate is None}
            return restarts == {"node-1": 0, "node-2": 1} and state_of(cache).members[1].restarts == 1

        wait_until(are_back)
        assert {member.name: member.restarts for member in state_of(cache).members} == {
            "coordinator-1": 0,
            "node-1": 1,  # the process; node-2 has started its pipeline again itself
            "node-2": 0,
        }
        for _ in range(6):
            assert client.ask("Why?", max_new_tokens=8, ignore_eos=True).token_ids == before
    processes = family(state_of(cache).pid)
    os.kill(state_of(cache).pid, signal.SIGKILL)
    wait_until(lambda: all_gone(processes))
    assert cluster(cache, "down").stderr == "no cluster runs here\n"


@pytest.mark.slow
def test_in_the_foreground_it_runs_until_ctrl_c(tiny: Path, cache: Path) -> None:
    command = [*CLI, "up", "--foreground", "--nodes", "1", "--model", str(tiny), "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment(cache), stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("1 node: http://127.0.0.1:")
        state = state_of(cache)
        assert state.pid == process.pid
        processes = family(state.pid)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert all_gone(processes)
