"""The simulated cluster: virtual time, processes that crash and pause, links that break, and whole runs from seeds."""

import ast
import asyncio
import json
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

import qubic_lab
from qubic_lab.bench.noise import MachineNoise
from qubic_lab.cli.main import run as run_command
from qubic_lab.cluster import tasks
from qubic_lab.simulation import runs
from qubic_lab.simulation.faults import KINDS, plan_faults
from qubic_lab.simulation.loop import Process, Scheduler, Signal
from qubic_lab.simulation.network import GIVEN_UP_S, Network
from qubic_lab.simulation.transport import Channel, Server
from qubic_lab.simulation.world import COORDINATORS, NODES, World

SHORT_H = 0.006
ADDRESS = "127.0.0.1:7000"


class Two:
    """A client and a server on two hosts; the server's method gives a message each second."""

    def __init__(self) -> None:
        self.scheduler = Scheduler()
        self.network = Network(self.scheduler, random.Random(1))
        self.client, self.server = (Process(self.scheduler, name) for name in ("client", "server"))  # type: ignore[abstract]
        self.server.on_crash.append(lambda: self.network.crashed(self.server))
        self.serving: Server | None = None
        self.ended: list[str] = []
        self.server.spawn(self._serve())
        self.scheduler.run(0.0)

    async def _serve(self) -> None:
        async def count(request: bytes, context: Any) -> None:
            try:
                for number in range(int(request)):
                    await asyncio.sleep(1.0)
                    await context.write(str(number).encode())
            finally:
                self.ended.append("handler")

        self.serving = Server(self.network, self.server)
        handler = grpc.unary_stream_rpc_method_handler(count, bytes, bytes)
        self.serving.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test", {"Count": handler})])
        self.serving.add_insecure_port(ADDRESS)
        await self.serving.start()

    def ask(
        self, count: int, until_s: float, timeout_s: float | None = None, at: str = ADDRESS
    ) -> tuple[list[str], Any]:
        """Ask for messages and return those that have come by a time, and the status: None while the call goes on."""
        got: list[str] = []
        note = got.append
        status: list[Any] = []

        async def read() -> None:
            call = Channel(self.network, self.client, at).unary_stream("/test/Count", bytes, bytes)
            try:
                async for message in call(str(count).encode(), timeout=timeout_s):
                    note(message.decode())
                status.append(grpc.StatusCode.OK)
            except grpc.aio.AioRpcError as error:
                status.append(error.code())

        self.client.spawn(read())
        self.scheduler.run(until_s)
        return got, status[0] if status else None


def after(seconds: float, two: Two, react: Callable[[], Any]) -> None:
    two.scheduler.later(two.client, seconds, react)


def test_a_stream_comes_in_order_and_takes_only_virtual_time() -> None:
    two = Two()
    assert two.ask(3_600, 4_000.0) == ([str(number) for number in range(3_600)], grpc.StatusCode.OK)


def test_nobody_at_an_address_is_unavailable() -> None:
    assert Two().ask(1, 5.0, at="127.0.0.1:7001") == ([], grpc.StatusCode.UNAVAILABLE)


def test_a_call_ends_at_its_deadline_and_so_does_its_handler() -> None:
    two = Two()
    assert two.ask(9, 5.0, timeout_s=2.5) == (["0", "1"], grpc.StatusCode.DEADLINE_EXCEEDED)
    assert two.ended == ["handler"]


def test_a_crashed_server_runs_no_finally_and_breaks_its_calls() -> None:
    two = Two()
    after(2.5, two, two.server.crash)
    assert two.ask(9, 5.0) == (["0", "1"], grpc.StatusCode.UNAVAILABLE)
    assert two.ended == []


def test_a_cut_link_is_silent_until_it_is_given_up() -> None:
    two = Two()
    after(2.5, two, lambda: two.network.cut("server", "client"))
    assert two.ask(99, 6.0) == (["0", "1"], None)
    two = Two()
    after(2.5, two, lambda: two.network.cut("server", "client"))
    assert two.ask(99, 2.5 + GIVEN_UP_S) == (["0", "1"], grpc.StatusCode.UNAVAILABLE)


def test_after_a_short_cut_all_arrives_in_order() -> None:
    two = Two()
    after(2.5, two, lambda: two.network.cut("server", "client"))
    after(5.5, two, lambda: two.network.heal("server", "client"))
    assert two.ask(9, 20.0) == (list("012345678"), grpc.StatusCode.OK)


def test_a_paused_process_does_nothing_and_goes_on() -> None:
    two = Two()
    after(2.5, two, two.server.pause)
    after(5.5, two, two.server.resume)
    assert two.ask(9, 5.0)[0] == ["0", "1"]
    two.scheduler.run(20.0)
    assert two.ended == ["handler"]


def test_a_server_that_stops_cancels_what_still_runs() -> None:
    two = Two()
    assert two.serving is not None
    after(2.5, two, lambda: two.server.spawn(two.serving.stop(1.0)))  # type: ignore[union-attr]
    assert two.ask(9, 5.0) == (["0", "1", "2"], grpc.StatusCode.CANCELLED)


def test_an_expired_certificate_admits_nobody_new() -> None:
    two = Two()
    two.server.certificate_ends_s = two.client.wall_s() + 10
    assert two.ask(1, 2.0)[1] is grpc.StatusCode.OK
    two.client.clock_offset_s = 3_600
    assert two.ask(1, 4.0)[1] is grpc.StatusCode.UNAVAILABLE


def test_blocking_code_waits_in_virtual_time_for_time_and_signals() -> None:
    scheduler = Scheduler()
    process = Process(scheduler, "process")  # type: ignore[abstract]
    signal = Signal(scheduler, process)
    seen: list[tuple[object, float]] = []

    def block() -> str:
        scheduler.sleep(3.0)
        seen.append((signal.wait(1.0), scheduler.now))
        seen.append((signal.wait(), scheduler.now))
        return "done"

    async def main() -> None:
        seen.append((await asyncio.to_thread(block), scheduler.now))

    process.spawn(main())
    scheduler.later(process, 7.0, signal.set)
    scheduler.run(10.0)
    assert seen == [(False, 4.0), (True, 7.0), ("done", 7.0)]


def test_a_seed_does_the_same_twice_byte_by_byte(tmp_path: Path) -> None:
    logs = [tmp_path / name for name in ("first", "second")]
    first, second = (World(1, SHORT_H, log_path=path).run() for path in logs)
    assert first.struck and not first.violation
    assert (first.digest, first.requests) == (second.digest, second.requests)
    assert logs[0].read_bytes() == logs[1].read_bytes()
    assert World(2, SHORT_H).run().digest != first.digest


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is raised where garbage is collected; warnings are errors."""
    found: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda each: found.append(f"{each.exc_value!r} in {each.object!r}"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield found


def test_seeds_keep_what_is_promised_while_faults_strike_and_leave_nothing_to_the_collector(
    unraisable: list[str],
) -> None:
    found = [runs.run_seed(seed, SHORT_H) for seed in range(100, 118)]
    summary = runs.summed(found, [], MachineNoise(0.0, 0.0))
    assert summary.violations == ()
    assert summary.ended["answered"] > 0.9 * summary.requests
    assert sum(summary.struck.values()) > 30
    assert summary.sometimes["answer continued elsewhere"] and summary.sometimes["client asked again"]
    assert summary.undecided == 0
    assert unraisable == []


def test_a_client_that_asks_the_same_coordinator_again_keeps_its_request() -> None:
    """Redis was away for long: the cancelling of the first call came after the second one."""
    assert runs.run_seed(20_044, 0.03).violation == ""


def test_a_broken_promise_names_the_command_that_replays_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    look = tasks.TaskQueue.look

    def forgets(queue: tasks.TaskQueue, task_id: str, after: int = 0) -> tasks.TaskProgress:
        found = look(queue, task_id, after)
        return tasks.TaskProgress(found.items[1:], found.after, found.outcome)

    monkeypatch.setattr(tasks.TaskQueue, "look", forgets)
    assert run_command(["simulate", "--seed", "5", "--hours", "0.002", "--shrink"]) == 1
    shown = capsys.readouterr()
    assert "seed 5, at " in shown.out and "replay: qubic-lab simulate --seed 5 --hours 0.002" in shown.out
    assert "1 of 1 seeds broke a promise" in shown.err


def test_seeds_on_several_cores_show_the_same_as_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["simulate", "--seeds", "2", "--jobs", "2", "--hours", "0.001", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["violations"] == [] and shown["seeds"] == 2 and set(shown["struck"]) == set(KINDS)
    alone = runs.summed([runs.run_seed(seed, 0.001) for seed in (1, 2)], [], MachineNoise(0.0, 0.0))
    assert shown["digest"] == alone.digest


def test_ctrl_c_shows_what_is_known_and_the_command_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    live = World.run

    def interrupted(world: World) -> runs.Report:
        if world.seed == 8:
            raise KeyboardInterrupt
        return live(world)

    monkeypatch.setattr(World, "run", interrupted)
    assert run_command(["simulate", "--seed", "7", "--seeds", "9", "--hours", "0.001"]) == 130
    shown = capsys.readouterr()
    assert "1 seed, " in shown.out and "Violations: none" in shown.out
    assert "Stopped after 1 of 9 seeds; the rest: qubic-lab simulate --seed 8 --seeds 8 --hours 0.001" in shown.err


@pytest.mark.parametrize("guilty", [(), (3,), (2, 9), (0, 5, 11)])
def test_a_failure_shrinks_to_the_faults_that_it_needs(guilty: tuple[int, ...]) -> None:
    assert runs.fewest(range(12), lambda numbers: set(guilty) <= set(numbers)) == list(guilty)


def test_a_plan_has_all_kinds_of_faults_and_a_longer_run_begins_alike() -> None:
    plan = plan_faults(1, 36_000, COORDINATORS, NODES)
    assert {fault.kind for fault in plan} == set(KINDS)
    assert plan[:5] == plan_faults(1, plan[5].at_s, COORDINATORS, NODES)


CLOCKS = {"time", "uuid", "secrets", "random", "threading", "os", "datetime", "socket", "subprocess"}
ELSEWHERE = {  # of these no function runs in a simulated process
    "cluster/background.py": "processes of `cluster up`",
    "cluster/supervisor.py": "processes of `cluster up`",
    "cluster/redis_server.py": "the server's process",
    "cluster/identity.py": "names on a host; identities are given",
    "cluster/meter.py": "plain sockets",
    "cluster/links.py": "measurements on demand",
    "cluster/shared_stream.py": "between a node and its ranks",
    "wire/certificates.py": "certificates are made beforehand",
}
REPLACED = {"time", "uuid", "secrets", "threading", "random"}


def test_no_clock_and_no_chance_beside_the_seams() -> None:
    """A new use of a clock in a module that runs in the simulation must be one that `seams` replaces."""
    found = Counter[str]()
    root = Path(qubic_lab.__file__).parent
    for path in sorted([*(root / "cluster").glob("*.py"), *(root / "wire").glob("*.py")]):
        name = f"{path.parent.name}/{path.name}"
        if name in ELSEWHERE or path.stem.endswith("_pb2"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(f"{name}: {each.name}" for each in node.names if each.name in CLOCKS - REPLACED)
            elif isinstance(node, ast.ImportFrom) and node.module in CLOCKS:
                found.update(f"{name}: {node.module}.{each.name}" for each in node.names)
    # Certificates' dates, which only handshakes need, and a lock of gRPC's own threads.
    assert set(found) == {
        "wire/channel.py: datetime.UTC",
        "wire/channel.py: datetime.datetime",
        "wire/channel.py: threading.Lock",
    }
    assert "qubic_lab.cluster.dispatcher" in sys.modules
