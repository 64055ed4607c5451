"""A cluster on one machine by one command: what is killed comes back, what fails is told, and nothing stays behind.

The nodes are real processes whose engine is a wait; see dist/test_cluster_of_pipelines.py for real ones.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import httpx2
import psutil
import pytest
from clusters import WITHIN_S, all_gone, family, wait_until
from commands import Run
from forked_python import PYTHON

from qubic_lab.api.client import CoordinatorClient
from qubic_lab.api.schemas import QueryResponse
from qubic_lab.bench.echo_node import echo_tokens
from qubic_lab.bench.local_cluster import free_ports
from qubic_lab.cli import cluster as commands
from qubic_lab.cli.cluster import make_plan
from qubic_lab.cluster import background, supervisor
from qubic_lab.cluster.supervisor import (
    FIRST_PAUSE_S,
    FROZEN_S,
    LONGEST_PAUSE_S,
    STATE,
    STATE_JSON,
    ClusterPlan,
    ClusterState,
    MemberPlan,
    MemberState,
    _Member,
    next_pause_s,
)
from qubic_lab.errors import InputError, QubicLabError

CLI = [PYTHON, "-m", "qubic_lab.cli.main"]
ROOT = Path(__file__).resolve().parents[1]
SetSettings = Callable[..., None]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of our own, for this process and all that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("QUBIC_LAB_CACHE", str(folder))
        for name in ("QUBIC_LAB_COORDINATOR", "QUBIC_LAB_REDIS_URL"):
            patch.delenv(name, raising=False)
        yield folder


def echo_plan(folder: Path, nodes: int = 2, coordinators: int = 1, seconds: float = 0.1) -> ClusterPlan:
    """What `up` runs, but for the nodes' engine."""
    plan = make_plan(folder, free_ports(coordinators), "two-choices", nodes, ())
    options = ["--seconds", str(seconds)]
    for number in range(1, coordinators + 1):
        options += ["--coordinator", f"unix:{folder}/coordinator-{number}.sock"]

    def echo(member: MemberPlan) -> MemberPlan:
        who = ("--name", member.name, "--listen", f"unix:{folder}/{member.name}.sock")
        return replace(member, command=("qubic_lab.bench.echo_node", *who, *options))

    members = (echo(member) if member.kind == "node" else member for member in plan.members)
    return replace(plan, members=tuple(members))


@pytest.fixture(scope="module")
def folder(cache: Path) -> Iterator[Path]:
    """Where `qubic-lab cluster` has its cluster: one with two coordinators and two nodes is up there."""
    folder = cache / "cluster"
    wait_until_open(background.start(echo_plan(folder, coordinators=2)), 2)
    yield folder
    background.stop(folder, 0.1)


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Path]:
    """A folder for a cluster; at the end none runs there."""
    yield tmp_path
    background.stop(tmp_path, 0.1)


def state_of(folder: Path) -> ClusterState:
    state = background.running(folder)
    assert state is not None
    return state


def wait_until_open(state: ClusterState, nodes: int) -> None:
    """Wait until every coordinator has seen the nodes and may choose them."""
    for url in state.urls:
        with CoordinatorClient(url) as client:
            wait_until(lambda client=client: client.status().nodes == {"open": nodes})


def test_whatever_is_killed_comes_back_by_itself(folder: Path) -> None:
    before = state_of(folder)
    pids = {member.name: member.pid for member in before.members} | {"redis": before.redis_pid}
    with CoordinatorClient(before.urls[1]) as client:
        assert client.ask("hi", max_new_tokens=3).text
        for name in ("node-1", "coordinator-1", "redis"):
            os.kill(pids[name], signal.SIGKILL)

        def is_back() -> bool:
            now = state_of(folder)
            anew = {member.name for member in now.members if member.ready and member.pid != pids[member.name]}
            return anew == {"node-1", "coordinator-1"} and now.redis_pid not in (None, pids["redis"])

        wait_until(is_back)
        now = state_of(folder)
        assert {each.name: each.restarts for each in now.members if each.restarts} == {"node-1": 1, "coordinator-1": 1}
        assert (now.redis_restarts, now.phase, now.pid) == (1, "up", before.pid)
    wait_until_open(now, 2)
    for url in now.urls:
        with CoordinatorClient(url) as client:
            assert client.ask("hi", max_new_tokens=3).text


def ask_all_along(url: str, number: int, ended: threading.Event) -> list[str]:
    """Ask over one connection, with neither keys nor repetitions, until the end; return "right" or what went wrong."""
    said = []
    with httpx2.Client(base_url=url, timeout=WITHIN_S, trust_env=False) as client:
        for asked in count():
            seed, tokens = 1_000 * number + asked, 300 if asked % 10 == number else 4
            body = {"prompt": "hi", "max_new_tokens": tokens, "seed": seed}
            try:
                answer = client.post("/api/ai/query", json=body)
                wanted = "".join(f"{each} " for each in echo_tokens(seed, tokens))
                right = answer.status_code == 200 and answer.json()["text"] == wanted
                said.append("right" if right else f"{answer.status_code} {answer.text[:200]}")
            except httpx2.HTTPError as error:
                said.append(repr(error))
            if ended.is_set():
                return said
    raise AssertionError


@pytest.mark.slow  # test_upgrade.py has a form within one process
def test_an_upgrade_under_load_loses_no_request(folder: Path, here: Run) -> None:
    before, ended = state_of(folder), threading.Event()
    with ThreadPoolExecutor(6) as clients:
        asking = [clients.submit(ask_all_along, before.urls[each % 2], each, ended) for each in range(6)]
        try:
            done = here("cluster upgrade --timeout 120s")
        finally:
            ended.set()
    assert (done.status, done.out.splitlines()) == (0, ["node-1", "node-2", *before.urls])
    said = Counter(line for each in asking for line in each.result())
    assert said.pop("right") > 20 and not said
    now = state_of(folder)
    assert all(old.pid != new.pid and new.ready for old, new in zip(before.members, now.members, strict=True))
    assert (now.pid, now.redis_pid) == (before.pid, before.redis_pid)
    wait_until_open(now, 2)


def test_an_upgrade_that_fails_ends_and_leaves_the_others(folder: Path, set_settings: SetSettings, here: Run) -> None:
    before = state_of(folder)
    set_settings(coordinator=before.urls[0])
    said = here("cluster upgrade --node 'sh -c \"echo no >&2; exit 3\" {name} {host}'").err
    assert "error: 'sh -c 'echo no >&2; exit 3' node-1" in said and "ended with status 3: no" in said
    assert "node-2" not in said
    assert "only {host} and {name} are known" in here("cluster upgrade --node 'ssh {hots}'").err
    assert "--only 'node-3'" in here("cluster upgrade --only node-3").failed(2)
    assert "did not return within 1 s" in here("cluster upgrade --node true --only node-2 --timeout 1s").err
    wait_until_open(state_of(folder), 2)
    assert [each.pid for each in state_of(folder).members] == [each.pid for each in before.members]


def test_nobody_else_reaches_what_is_within(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    listening = {
        connection.laddr.port
        for process in family(state_of(folder).pid)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    served = {int(url.rpartition(":")[2]) for url in state_of(folder).urls}
    assert served < listening and len(listening - served) == 2  # /health of each node, on loopback


@pytest.mark.parametrize(("number", "kind", "told"), [(0, "coordinator", True), (-1, "node", False)])
def test_coordinators_alone_are_told_where_redis_is(empty: Path, number: int, kind: str, told: bool) -> None:
    plan = echo_plan(empty)
    tell = "import os; print('told:', 'QUBIC_LAB_REDIS_URL' in os.environ)"
    telling = replace(plan.members[number], command=("timeit", "-n1", "-r1", tell))
    assert telling.kind == kind
    with pytest.raises(QubicLabError, match="ended with status 0 before it was ready"):
        background.start(replace(plan, members=(telling,)))
    assert f"told: {told}" in (empty / "logs" / f"{telling.name}.log").read_text()


def test_a_coordinator_says_its_addresses_once_it_serves(tmp_path: Path) -> None:
    environment = os.environ | {f"QUBIC_LAB_{name}": str(tmp_path / name.lower()) for name in ("CACHE", "DATA")}
    command = [*CLI, "coordinator", "--listen", "127.0.0.1:0", "--nodes", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as coordinator:
        try:
            assert coordinator.stderr
            said = next(line for line in coordinator.stderr if "serves clients" in line)
            found = re.search(
                r"at http://127\.0\.0\.1:(\d+), described at .*; nodes register at 127\.0\.0\.1:(\d+)\n", said
            )
            assert found, said
            for port in map(int, found.groups()):
                socket.create_connection(("127.0.0.1", port), timeout=60).close()
        finally:
            coordinator.terminate()
    assert coordinator.returncode == 0


def test_one_cluster_at_a_time(folder: Path, here: Run) -> None:
    processes = family(state_of(folder).pid)
    said = here("cluster up --port 0").failed(2)
    assert f"at {state_of(folder).urls[0]}: end it with qubic-lab cluster down" in said
    with pytest.raises(InputError, match="qubic-lab cluster down"):
        background.start(echo_plan(folder))
    assert family(state_of(folder).pid) == processes


def test_status_is_a_table_or_one_object_of_the_coordinator_that_is_named(
    folder: Path, set_settings: SetSettings, here: Run
) -> None:
    shown = here("cluster status").out
    assert all(each in shown for each in ("node-1", "node-2", "Redis", "supervisor", *state_of(folder).urls))
    told = here("cluster status --json").json
    assert [node["name"] for node in told["nodes"]] == ["node-1", "node-2"]
    assert list(told["coordinators"]) == list(state_of(folder).urls)
    assert told["redis"].keys() == {"ping_ms", "set_ms", "get_ms"}
    assert told["supervisor"]["pid"] == state_of(folder).pid
    set_settings(coordinator=(url := state_of(folder).urls[1]))
    assert list(here("cluster status --json").json["coordinators"]) == [url]
    set_settings(coordinator="http://127.0.0.1:1")
    assert "no coordinator answers at http://127.0.0.1:1" in here("cluster status --json").failed(1)


@pytest.mark.slow
def test_on_a_terminal_status_looks_again_until_ctrl_c(folder: Path) -> None:
    terminal, its_side = os.openpty()
    environment = {**os.environ, "COLUMNS": "160"}
    with subprocess.Popen([*CLI, "cluster", "status"], stdout=its_side, env=environment, cwd=ROOT) as watching:
        os.close(its_side)
        shown = b""
        while shown.count(b"heartbeat") < 3:
            shown += os.read(terminal, 65_536)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 0
    os.close(terminal)
    assert b"node-1" in shown and b"node-2" in shown


def test_down_lets_answers_end_and_leaves_nothing(empty: Path) -> None:
    state = background.start(echo_plan(empty, nodes=1, seconds=0.5))
    wait_until_open(state, 1)
    processes = family(state.pid)
    assert len(processes) >= 4
    with CoordinatorClient(state.urls[0]) as client, ThreadPoolExecutor(1) as pool:
        parts = client.stream("hi", max_new_tokens=20)
        next(parts)  # the node has begun
        stopping = pool.submit(background.stop, empty, 30.0)
        *_, answer = parts
        assert isinstance(answer, QueryResponse) and len(answer.token_ids) == 20
        ended = stopping.result()
    assert ended is not None and ended.pid == state.pid
    assert all_gone(processes)
    assert background.running(empty) is None
    assert background.stop(empty, 30.0) is None
    assert not list(empty.glob("*.sock")) and not (empty / STATE).exists()


@pytest.mark.slow
def test_down_waits_no_longer_than_it_is_told_and_questions_outlive_it(empty: Path) -> None:
    for seconds, within_s in ((600.0, 0.3), (0.1, 30.0)):
        state = background.start(echo_plan(empty, nodes=1, seconds=seconds))
        processes = family(state.pid)
        with CoordinatorClient(state.urls[0]) as client, ThreadPoolExecutor(1) as pool:
            wait_until_open(state, 1)
            answer = pool.submit(client.ask, "hi", key="mine", max_new_tokens=20)
            if seconds < within_s:
                assert len(answer.result().token_ids) == 20
                assert client.status().tasks.submitted == 1
            else:
                wait_until(lambda client=client: client.status().tasks.processing == 1)
            background.stop(empty, within_s)
            assert all_gone(processes)
            assert (answer.exception() is None) == (seconds < within_s)


@pytest.mark.slow
def test_nothing_outlives_a_supervisor_that_is_killed(empty: Path) -> None:
    state = background.start(echo_plan(empty, nodes=1))
    processes = family(state.pid)
    os.kill(state.pid, signal.SIGKILL)
    wait_until(lambda: all_gone(processes))
    assert background.running(empty) is None
    assert background.stop(empty, 1.0) is None
    with background.claimed(empty):  # the next one may have the folder
        pass


def test_another_process_with_the_supervisors_number_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        started_s = psutil.Process(other.pid).create_time()
        state = ClusterState(other.pid, started_s - 60.0, "up", "", ("http://127.0.0.1:5000",), "", None, 0, ())
        (tmp_path / STATE).write_bytes(STATE_JSON.dump_json(state))
        assert background.stop(tmp_path, 1.0) is None
        assert other.poll() is None
        (tmp_path / STATE).write_bytes(STATE_JSON.dump_json(replace(state, started_s=started_s)))
        assert background.stop(tmp_path, 10.0) is not None
        assert not psutil.pid_exists(other.pid)


def test_what_does_not_come_up_is_told_in_one_line_and_leaves_nothing(empty: Path) -> None:
    before = psutil.Process().children(recursive=True)
    plan = echo_plan(empty, nodes=1)
    wrong = MemberPlan("node-2", "node", ("qubic_lab.cli.main", "node", "--coordinator", "here", "--slots", "0"))
    with pytest.raises(QubicLabError) as caught:
        background.start(replace(plan, members=(plan.members[-1], wrong)))
    assert re.fullmatch(
        r"node-2 \(process \d+\) ended with status 2 before it was ready: slots is 0: it must be at least 1; "
        r"its output is in (\S+/node-2\.log)",
        str(caught.value),
    )
    assert psutil.Process().children(recursive=True) == before
    assert background.running(empty) is None


@pytest.mark.slow
def test_while_others_come_up_what_is_killed_comes_back_and_down_ends_all(empty: Path) -> None:
    plan = echo_plan(empty, nodes=1)
    never_ready = MemberPlan("node-2", "node", ("http.server", "--bind", "127.0.0.1", "0"))
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(background.start, replace(plan, members=(*plan.members, never_ready)))

        def node() -> MemberState | None:
            state = background.running(empty)
            return next((each for each in state.of_kind("node") if each.ready), None) if state else None

        wait_until(lambda: node() is not None)
        first = node()
        assert first is not None and first.name == "node-1" and first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        wait_until(lambda: (again := node()) is not None and again.restarts == 1)
        state = state_of(empty)
        assert state.phase == "starting"
        processes = family(state.pid)
        background.stop(empty, 10.0)
        assert re.search("ended before it was ready", str(starting.exception()))
    assert all_gone(processes)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("up --model smolm2 --port 0", "unknown model 'smolm2'.*did you mean 'smollm2'"),
        ("up --model tiny --nodes 0", "--nodes is 0: it must be at least 1"),
        ("up --model tiny --coordinators 2 --port 65535", "--port is 65535: it must be at most 65534"),
        ("up --model tiny --balancer two-choises", "unknown balancer 'two-choises': did you mean 'two-choices'"),
        ("up --model tiny --port TAKEN", r"--port \d+ cannot be used \(Address already in use\): give another one"),
        ("up --model tiny --coordinators 2 --port BEFORE", r"--port \d+ cannot be used \(Address already in use\)"),
        ("down --timeout -1", "--timeout is '-1': give seconds above 0"),
        ("status --json --watch", "--json and --watch: give one of the two"),
    ],
)
def test_what_is_asked_wrongly_is_one_line_and_starts_nothing(
    line: str, said: str, tiny: Path, tmp_path: Path, set_settings: SetSettings, here: Run
) -> None:
    set_settings(cache=tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = line.replace("TAKEN", str(port)).replace("BEFORE", str(port - 1)).replace("tiny", str(tiny))
        assert re.search(said, here(f"cluster {line}").failed(2))
    assert not (tmp_path / "cluster").exists()
    assert here("cluster down") == (0, "", "no cluster runs here\n")


def test_up_says_where_the_cluster_is_as_json(
    tiny: Path, tmp_path: Path, set_settings: SetSettings, here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_settings(cache=tmp_path, coordinator=None)
    started: list[ClusterPlan] = []
    monkeypatch.setattr(background, "start", lambda plan, show: started.append(plan))
    monkeypatch.setattr(commands, "_wait_until_seen", lambda urls, nodes: None)
    told = here(f"cluster up --nodes 2 --coordinators 2 --port 0 --model {tiny} --json").json
    assert told == {"urls": list(started[0].urls), "nodes": 2, "folder": str(tmp_path / "cluster")}
    assert len(told["urls"]) == 2


@pytest.mark.slow
def test_ctrl_c_while_it_comes_up_takes_everything_down(tiny: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "QUBIC_LAB_CACHE": str(tmp_path)}
    command = [*CLI, "cluster", "up", "--nodes", "1", "--port", "0", "--model", str(tiny)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        wait_until(lambda: bool((state := background.running(tmp_path / "cluster")) and state.of_kind("node")))
        processes = family(state_of(tmp_path / "cluster").pid)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "error: interrupted\n")
    assert all_gone(processes)


def test_a_process_that_keeps_ending_is_started_ever_less_often() -> None:
    pauses_s = [FIRST_PAUSE_S]
    for _ in range(10):
        pauses_s.append(next_pause_s(pauses_s[-1], lived_s=0.1))
    assert pauses_s == sorted(pauses_s)
    assert (pauses_s[1], pauses_s[-1]) == (2 * FIRST_PAUSE_S, LONGEST_PAUSE_S)
    assert next_pause_s(LONGEST_PAUSE_S, lived_s=60.0) == FIRST_PAUSE_S


@pytest.fixture
def member(tmp_path: Path) -> Iterator[_Member]:
    """A running member that does nothing."""
    plan = MemberPlan("idle", "node", ("http.server", "--bind", "127.0.0.1", "0"))
    member = _Member(plan, tmp_path / "idle.log", dict(os.environ))
    member.start()
    yield member
    member.end()


def test_a_member_that_does_not_answer_for_long_is_killed(member: _Member) -> None:
    member.end_if_frozen()
    assert not member.ended, "it may take its time until it is ready"
    member.become_ready()
    member.end_if_frozen()
    assert not member.ended
    member.answered_s -= FROZEN_S
    member.end_if_frozen()
    assert member.ended


def test_a_long_log_is_moved_away_while_its_process_writes(member: _Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "MOST_LOG_BYTES", 100)
    with member.log.open("ab") as log:
        log.write(b"x" * 99 + b"\n")
        log.flush()
        member.shorten_log()
        assert not (member.log.parent / "idle.log.1").exists() or member.log.stat().st_size < 100
        log.write(b"y" * 101)
        log.flush()
        member.shorten_log()
        log.write(b"the last")
    assert (member.log.parent / "idle.log.1").read_bytes().endswith(b"y" * 101)
    assert member.log.read_bytes().endswith(b"the last") and member.log.stat().st_size < 100


def test_a_coordinator_that_takes_connections_and_says_nothing_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "ANSWER_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert not supervisor._answers(address, encrypted=False)
        assert not supervisor._answers(address, encrypted=True)
    assert not supervisor._answers(address, encrypted=False)


@pytest.mark.slow
def test_a_frozen_coordinator_comes_back(folder: Path) -> None:
    before = state_of(folder)
    [frozen, *_] = before.of_kind("coordinator")
    assert frozen.pid is not None
    os.kill(frozen.pid, signal.SIGSTOP)
    wait_until(lambda: state_of(folder).of_kind("coordinator")[0].restarts > frozen.restarts)
    wait_until(lambda: state_of(folder).of_kind("coordinator")[0].ready)
