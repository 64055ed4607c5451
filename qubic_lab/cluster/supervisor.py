"""The process above a cluster on one machine: it starts Redis, coordinators and nodes, and starts again what ends.

All of them end with it, however it ends. It tells how things are in a state file, by which others find and end it (see
`background`).
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from qubic_lab.cluster.node import DRAIN_S
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.cluster.registry import Registry
from qubic_lab.errors import QubicLabError

STATE, LOGS = "state.json", "logs"
START_S = 600.0
"""All is up within so long, or fails; more than the largest model takes to load."""
NODE_STOP_S = DRAIN_S + 15.0
COORDINATOR_STOP_S = 20.0
"""It gives open requests 10 s."""
GONE_S = 10.0
"""So long may what a member had started itself take to end after it."""
LOOK_S = 0.1
SHORT_LIFE_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
_CONNECT_S = 1.0

logger = logging.getLogger(__name__)
Kind = Literal["coordinator", "node"]


@dataclass(frozen=True)
class MemberPlan:
    """A process to be kept running.

    Attributes:
        name: unlike any other's; a node registers by it.
        kind: coordinator or node.
        command: a module to be run, and its arguments.
        address: HOST:PORT where a coordinator takes requests; empty for a node.
    """

    name: str
    kind: Kind
    command: tuple[str, ...]
    address: str = ""


@dataclass(frozen=True)
class ClusterPlan:
    """What to run: a Redis server in `folder`, where all that is written goes, coordinators at `urls`, and nodes."""

    folder: Path
    urls: tuple[str, ...]
    members: tuple[MemberPlan, ...]

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "ClusterPlan":
        """Return what `to_json` has written."""
        plan = json.loads(text)
        members = (MemberPlan(**member | {"command": tuple(member["command"])}) for member in plan["members"])
        return cls(Path(plan["folder"]), tuple(plan["urls"]), tuple(members))


@dataclass(frozen=True)
class MemberState:
    """A member as it is: its process while one runs, how often it was started again, and whether it can work.

    A coordinator is ready when it takes requests, a node when it has registered with its pipeline up.
    """

    name: str
    kind: Kind
    pid: int | None
    restarts: int
    ready: bool
    log: str


@dataclass(frozen=True)
class ClusterState:
    """A cluster as its supervisor tells of it.

    `started_s` is when process `pid` was started, as psutil tells it: another process may get the number later.
    `trouble`: why it failed to come up.
    """

    pid: int
    started_s: float
    phase: Literal["starting", "up", "ending", "failed"]
    trouble: str
    urls: tuple[str, ...]
    redis: str
    redis_pid: int | None
    redis_restarts: int
    members: tuple[MemberState, ...]

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ClusterState":
        """Return what `to_json` has written."""
        state = json.loads(text)
        members = tuple(MemberState(**member) for member in state["members"])
        return cls(**state | {"urls": tuple(state["urls"]), "members": members})

    def of_kind(self, kind: Kind) -> tuple[MemberState, ...]:
        """Return the members of one kind."""
        return tuple(member for member in self.members if member.kind == kind)


def next_pause_s(pause_s: float, lived_s: float) -> float:
    """Return the pause before a process that lived for so long is started again; `pause_s` was the one before."""
    return FIRST_PAUSE_S if lived_s > SHORT_LIFE_S else min(2 * pause_s, LONGEST_PAUSE_S)


class _Member:
    """A process of the plan, as it is now."""

    def __init__(self, plan: MemberPlan, log: Path, environment: dict[str, str]) -> None:
        self.plan = plan
        self.log = log
        self.ready = False
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = 0
        self._pause_s = FIRST_PAUSE_S / 2
        self._started_s = self._due_s = 0.0

    @property
    def lived_s(self) -> float:
        """How long its latest process has lived."""
        return time.monotonic() - self._started_s

    @property
    def ended(self) -> bool:
        """Whether its process has ended, or none runs."""
        return self._process is None or self._process.poll() is not None

    @property
    def failed(self) -> bool:
        """Whether its first process has ended before it was ready."""
        return self._process is not None and self.ended and not self.ready and not self._restarts

    def start(self) -> None:
        """Start it; the thread that calls must live as long: the kernel ends the process with it."""
        command = [sys.executable, "-m", "qubic_lab.lifeline", str(os.getpid()), *self.plan.command]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for us, who end them one after the other
            )
        self._started_s = time.monotonic()

    def start_again(self) -> None:
        """Start it once more, after a pause."""
        if self._process is not None:
            logger.warning("%s; it is started again", self.how_it_ended())
            self._close()
            self._pause()
        elif time.monotonic() >= self._due_s:
            self._restarts += 1
            try:
                self.start()
            except OSError as error:  # no memory, say
                logger.warning("%s does not start: %s", self.plan.name, error)
                self._pause()

    def ask_to_end(self) -> None:
        """Let it end what it has begun; where it has begun nothing, it ends at once."""
        if not self.ended:
            assert self._process is not None
            self._process.send_signal(signal.SIGTERM if self.ready else signal.SIGKILL)

    def end(self) -> None:
        """End it, if it has not ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._close()

    def family(self) -> list[psutil.Process]:
        """Return the processes that it has started."""
        if self._process is None:
            return []
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True)
        return []

    def how_it_ended(self) -> str:
        """Say how its process ended."""
        assert self._process is not None
        status = self._process.returncode
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"{self.plan.name} (process {self._process.pid}) {how}"

    def failure(self, what: str) -> QubicLabError:
        """Return an error with the last line that it printed, and where the others are."""
        lines = self.log.read_text(errors="replace").split("\n")
        last = next((line.removeprefix("error: ") for line in reversed(lines) if line.strip()), "it said nothing")
        return QubicLabError(f"{what}: {last}; its output is in {self.log}")

    def state(self) -> MemberState:
        """Return how it is."""
        pid = None if self._process is None else self._process.pid
        return MemberState(self.plan.name, self.plan.kind, pid, self._restarts, self.ready, str(self.log))

    def _pause(self) -> None:
        self._pause_s = next_pause_s(self._pause_s, self.lived_s)
        self._due_s = time.monotonic() + self._pause_s

    def _close(self) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.close()
        self._process, self.ready = None, False


class Supervisor:
    """Runs a plan; `run` is all of its life, in the main thread of a process. `when_up` is called when all is ready."""

    def __init__(self, plan: ClusterPlan, when_up: Callable[[], None] = lambda: None) -> None:
        self._plan = plan
        self._when_up = when_up
        self._ending, self._hurry = threading.Event(), threading.Event()
        started_s = psutil.Process().create_time()
        self._state = ClusterState(os.getpid(), started_s, "starting", "", plan.urls, "", None, 0, ())
        self._members: list[_Member] = []

    def run(self) -> None:
        """Keep everything running until SIGTERM, SIGINT or SIGHUP, then end it; a second signal ends it at once.

        Raises:
            QubicLabError: something did not come up; what did has been ended.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._told_to_end)
        try:
            self._clear_sockets()
            with RedisServer(self._plan.folder / "redis") as server, connect(server.url) as client:
                self._tell(redis=server.url)
                try:
                    self._start(server)
                    self._keep(server, Registry(client))
                finally:
                    self._end()
        except QubicLabError as error:
            self._tell(phase="failed", trouble=str(error))  # the file stays, for whoever waits for us
            raise
        finally:
            self._clear_sockets()
        (self._plan.folder / STATE).unlink(missing_ok=True)

    def _told_to_end(self, *_: Any) -> None:
        (self._hurry if self._ending.is_set() else self._ending).set()

    def _clear_sockets(self) -> None:
        """Remove the sockets of members that were killed."""
        for left in self._plan.folder.glob("*.sock"):
            left.unlink()

    def _start(self, server: RedisServer) -> None:
        logs = self._plan.folder / LOGS
        logs.mkdir(exist_ok=True)
        for log in logs.iterdir():  # of the cluster before
            log.unlink()
        for plan in self._plan.members:
            environment = dict(os.environ)
            if plan.kind == "coordinator":  # nodes never reach Redis
                environment["QUBIC_LAB_REDIS_URL"] = server.url
            member = _Member(plan, logs / f"{plan.name}.log", environment)
            self._members.append(member)
            member.start()

    def _keep(self, server: RedisServer, registry: Registry) -> None:
        """Look after everything until the end.

        Raises:
            QubicLabError: something ended before it was ready for the first time, or was not ready in time.
        """
        deadline = time.monotonic() + START_S
        while not self._ending.is_set():
            if self._state.phase == "starting":
                self._check_start(time.monotonic() > deadline)
            for member in self._members:
                if member.ended:
                    member.start_again()
            self._find_ready(registry)
            self._tell(redis_pid=server.pid, redis_restarts=server.restarts)
            if self._state.phase == "starting" and all(member.ready for member in self._members):
                self._tell(phase="up")
                self._when_up()
            self._ending.wait(LOOK_S)

    def _check_start(self, late: bool) -> None:
        """Raise what goes wrong while all come up, as `_keep` does."""
        for member in self._members:
            if member.failed:
                raise member.failure(f"{member.how_it_ended()} before it was ready")
            if late and not member.ready:
                raise member.failure(f"{member.plan.name} was not ready within {START_S:g} s")

    def _find_ready(self, registry: Registry) -> None:
        """Note who has become ready; asks nobody where all are."""
        waiting = [member for member in self._members if not (member.ready or member.ended)]
        nodes = [member for member in waiting if member.plan.kind == "node"]
        for member in waiting:
            if member.plan.kind == "coordinator":
                member.ready = _listens(member.plan.address)
        if not nodes:
            return
        try:
            records = {record.id: record for record in registry.nodes()}
        except QubicLabError as error:
            if self._state.phase == "starting":
                raise
            logger.warning("%s", error)
            return
        for member in nodes:
            record = records.get(member.plan.name)
            # One that registered before this process was started is the one before it.
            member.ready = bool(record and record.state.ready and record.registered_s <= member.lived_s)

    def _end(self) -> None:
        """End nodes, which finish what they have, then coordinators, which can pass that on until then."""
        self._tell(phase="ending")
        nodes = [member for member in self._members if member.plan.kind == "node"]
        others = [member for member in self._members if member.plan.kind != "node"]
        self._end_members(nodes, NODE_STOP_S)
        self._end_members(others, COORDINATOR_STOP_S)
        self._tell()

    def _end_members(self, members: Sequence[_Member], within_s: float) -> None:
        deadline = time.monotonic() + within_s
        families = [process for member in members for process in member.family()]
        for member in members:
            member.ask_to_end()
        while not all(member.ended for member in members):
            if time.monotonic() > deadline or self._hurry.is_set():
                break
            time.sleep(LOOK_S)
        for member in members:
            member.end()
        wait_gone(families)

    def _tell(self, **changes: Any) -> None:
        """Tell how things are, where that has changed."""
        members = tuple(member.state() for member in self._members)
        before, self._state = self._state, replace(self._state, members=members, **changes)
        if self._state != before:
            path = self._plan.folder / STATE
            new = path.with_name(f"{STATE}.new")
            try:
                new.write_text(self._state.to_json())
                new.replace(path)
            except OSError as error:  # a full disk is no reason to end a cluster
                logger.warning("%s cannot be written: %s", path, error)


def wait_gone(processes: Iterable[psutil.Process]) -> None:
    """Wait until all of them have ended; end those that take too long."""
    _, left = psutil.wait_procs(processes, GONE_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, GONE_S)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _CONNECT_S).close()
    except OSError:
        return False
    return True


def main() -> None:
    """Run the plan on standard input."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        Supervisor(ClusterPlan.from_json(sys.stdin.read())).run()
    except QubicLabError as error:
        logger.error("%s", error)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
