"""The supervisor of a cluster on one machine: starts Redis, coordinators and nodes, and restarts those that end.

All of them end with it, however it ends. It writes its state to a file, by which others find and end it (see
`background`).
"""

import logging
import math
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import TypeAdapter

from qubic_lab import logs
from qubic_lab.cluster.node import DRAIN_S
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.cluster.registry import Registry
from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.lifeline import CTRL_C_S, LISTENER
from qubic_lab.settings import settings
from qubic_lab.wire.channel import tls_from_settings

STATE, LOGS = "state.json", "logs"
START_S = 600.0
"""Time limit for all members to be ready; it is more than the largest model takes to load."""
NODE_STOP_S = DRAIN_S + 15.0
COORDINATOR_STOP_S = 20.0
HURRY_S = 10.0
"""A member is told to be quick this long before its time is up: a coordinator would wait for requests without nodes."""
RESTART = "restart"
"""File in the folder of a cluster with the name of a member that is to end, and so is started again."""
GONE_S = 10.0
"""Time limit for the children of a member to end after it."""
LOOK_S = 0.1
ALIVE_LOOK_S = 1.0
ANSWER_S = 5.0
"""Time limit of a coordinator's answer to the question whether it is alive."""
SOON_S = 0.2
"""The same while it starts: others wait then, too."""
BACKLOG = 1_024
FROZEN_S = 20.0
"""A member that was ready and has not answered for this time is killed, and so restarted."""
MOST_LOG_BYTES = 16 * 2**20
"""A longer log is moved to `….log.1`, in place of the one before."""
SHORT_LIFE_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0

logger = logging.getLogger(__name__)
Kind = Literal["coordinator", "node"]


@dataclass(frozen=True)
class MemberPlan:
    """A process to keep running: its unique name, under which a node registers, and the module with its arguments.

    `address` is HOST:PORT of a coordinator's HTTP service, and empty for a node.
    """

    name: str
    kind: Kind
    command: tuple[str, ...]
    address: str = ""


@dataclass(frozen=True)
class ClusterPlan:
    """What to run: a Redis server, coordinators at `urls`, and nodes; all files go to `folder`."""

    folder: Path
    urls: tuple[str, ...]
    members: tuple[MemberPlan, ...]


@dataclass(frozen=True)
class MemberState:
    """The state of a member: its process id while it runs, its number of restarts, and whether it is ready.

    A coordinator is ready when it answers, a node when it has registered with a running pipeline.
    """

    name: str
    kind: Kind
    pid: int | None
    restarts: int
    ready: bool
    log: str


@dataclass(frozen=True)
class ClusterState:
    """The state of a cluster as its supervisor writes it.

    `started_s` is the start time of process `pid` by psutil, because another process may get the same id later.
    `trouble` says why the start failed.
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

    def of_kind(self, kind: Kind) -> tuple[MemberState, ...]:
        """Return the members of one kind."""
        return tuple(member for member in self.members if member.kind == kind)


PLAN_JSON, STATE_JSON = TypeAdapter(ClusterPlan), TypeAdapter(ClusterState)
"""Write a plan for the supervisor's standard input, and a state for its file, and read them back."""


def next_pause_s(pause_s: float, lived_s: float) -> float:
    """Return the pause before a restart of a process that lived for `lived_s`; `pause_s` was the previous pause."""
    return FIRST_PAUSE_S if lived_s > SHORT_LIFE_S else min(2 * pause_s, LONGEST_PAUSE_S)


class _Member:
    """A process of the plan."""

    def __init__(self, plan: MemberPlan, log: Path, environment: dict[str, str]) -> None:
        self.plan = plan
        self.log = log
        self.ready = False
        self.answered_s = 0.0
        """When it last answered, or became ready; monotonic time in seconds."""
        self.listener: socket.socket | None = None
        """Held for a coordinator, so that its clients wait while it is started again."""
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = 0
        self._pause_s = FIRST_PAUSE_S / 2
        self._started_s = self._due_s = 0.0

    @property
    def lived_s(self) -> float:
        """Age of its latest process in seconds."""
        return time.monotonic() - self._started_s

    @property
    def ended(self) -> bool:
        """Whether no process of it runs."""
        return self._process is None or self._process.poll() is not None

    @property
    def failed(self) -> bool:
        """Whether its first process ended before it was ready."""
        return self._process is not None and self.ended and not self.ready and not self._restarts

    def start(self) -> None:
        """Start the process; the calling thread must live as long, because the kernel ends the process with it."""
        command = [sys.executable, "-m", "qubic_lab.lifeline", str(os.getpid()), *self.plan.command]
        held, environment = [], self._environment
        if self.listener is not None:
            held = [self.listener.fileno()]
            environment = environment | {LISTENER: str(held[0])}
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=held,
                start_new_session=True,  # Ctrl-C must not reach the members, which we end in order
            )
        self._started_s = time.monotonic()

    def start_again(self) -> None:
        """Restart the process after a pause."""
        if self._process is not None:
            logger.warning("%s; it will be restarted", self.how_it_ended())
            self._close()
            self._pause()
        elif time.monotonic() >= self._due_s:
            self._restarts += 1
            try:
                self.start()
            except OSError as error:  # for example no memory
                logger.warning("%s does not start: %s", self.plan.name, error)
                self._pause()

    def become_ready(self) -> None:
        """Note that it is ready."""
        self.ready, self.answered_s = True, time.monotonic()

    def end_if_frozen(self) -> None:
        """Kill the process if it has not answered for long."""
        silent_s = time.monotonic() - self.answered_s
        if self.ready and not self.ended and silent_s > FROZEN_S:
            assert self._process is not None
            logger.warning("%s has not answered for %.0f s: it is killed", self.plan.name, silent_s)
            self._process.kill()
            self._process.wait()

    def shorten_log(self) -> None:
        """Move a long log away; the process goes on writing at the new end. Lines written meanwhile are lost."""
        with suppress(OSError):
            if self.log.stat().st_size > MOST_LOG_BYTES:
                shutil.copyfile(self.log, self.log.with_name(f"{self.log.name}.1"))
                os.truncate(self.log, 0)

    def ask_to_end(self) -> None:
        """Let it finish its requests and end, or end it at once if it is not ready."""
        if not self.ended:
            assert self._process is not None
            self._process.send_signal(signal.SIGTERM if self.ready else signal.SIGKILL)

    def ask_to_hurry(self) -> None:
        """Let it end soon, whatever it still has."""
        if not self.ended:
            assert self._process is not None
            self._process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """Kill the process if it has not ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._close()

    def family(self) -> list[psutil.Process]:
        """Return the children of its process."""
        if self._process is None:
            return []
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True)
        return []

    def how_it_ended(self) -> str:
        """Describe how its process ended."""
        assert self._process is not None
        status = self._process.returncode
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"{self.plan.name} (process {self._process.pid}) {how}"

    def failure(self, what: str) -> QubicLabError:
        """Return an error with the last line of its output, and the path of all output."""
        lines = self.log.read_text(errors="replace").split("\n")
        last = next((line.removeprefix("error: ") for line in reversed(lines) if line.strip()), "it printed nothing")
        return QubicLabError(f"{what}: {last}; its output is in {self.log}")

    def state(self) -> MemberState:
        """Return the state of the member."""
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
    """Runs a plan by `run`, in the main thread of a process; `when_up` is called when all members are ready."""

    def __init__(self, plan: ClusterPlan, when_up: Callable[[], None] = lambda: None) -> None:
        self._plan = plan
        self._when_up = when_up
        self._ending, self._end_by_s = threading.Event(), math.inf
        started_s = psutil.Process().create_time()
        self._state = ClusterState(os.getpid(), started_s, "starting", "", plan.urls, "", None, 0, ())
        self._members: list[_Member] = []
        self._held = ExitStack()
        self._encrypted = tls_from_settings() is not None

    def run(self) -> None:
        """Keep all members running until SIGTERM, SIGHUP or SIGINT (hurried), then end them; a second one kills them.

        Raises:
            QubicLabError: a member did not start; the others were ended.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        try:
            self._clear_sockets()
            with RedisServer(self._plan.folder / "redis") as server, connect(server.url) as client:
                self._write_state(redis=server.url)
                with self._held:
                    try:
                        self._start(server)
                        self._keep(server, Registry(client))
                    finally:
                        self._end()
        except QubicLabError as error:
            self._write_state(phase="failed", trouble=str(error))  # the file stays for the waiting command
            raise
        finally:
            self._clear_sockets()
        (self._plan.folder / STATE).unlink(missing_ok=True)

    def _on_signal(self, number: int, _: Any) -> None:
        hurried_s = 0.0 if self._ending.is_set() else CTRL_C_S if number == signal.SIGINT else math.inf
        self._end_by_s = min(self._end_by_s, time.monotonic() + hurried_s)
        self._ending.set()

    def _clear_sockets(self) -> None:
        """Remove the sockets of killed members."""
        for left in self._plan.folder.glob("*.sock"):
            left.unlink()

    def _start(self, server: RedisServer) -> None:
        logs = self._plan.folder / LOGS
        logs.mkdir(exist_ok=True)
        for log in logs.iterdir():  # left by the previous cluster
            log.unlink()
        for plan in self._plan.members:
            environment = dict(os.environ)
            if plan.kind == "coordinator":  # nodes never connect to Redis
                environment["QUBIC_LAB_REDIS_URL"] = server.url
            member = _Member(plan, logs / f"{plan.name}.log", environment)
            self._members.append(member)
            if plan.address:
                member.listener = self._held.enter_context(_listen(plan.address))
            member.start()

    def _keep(self, server: RedisServer, registry: Registry) -> None:
        """Supervise all members until the end.

        Raises:
            QubicLabError: a member ended before it was ready for the first time, or was not ready in time.
        """
        deadline = time.monotonic() + START_S
        threading.Thread(target=self._watch, args=(registry,), name="watch", daemon=True).start()
        while not self._ending.is_set():
            if self._state.phase == "starting":
                self._check_start(time.monotonic() > deadline)
            self._restart_asked()
            for member in self._members:
                member.end_if_frozen()
                if member.ended:
                    member.start_again()
            self._find_ready(registry)
            self._write_state(redis_pid=server.pid, redis_restarts=server.restarts)
            if self._state.phase == "starting" and all(member.ready for member in self._members):
                self._write_state(phase="up")
                self._when_up()
            self._ending.wait(LOOK_S)

    def _restart_asked(self) -> None:
        """Let the member end that `background.restart` names; it is started again as any that ends."""
        asked = self._plan.folder / RESTART
        with suppress(FileNotFoundError):
            name = asked.read_text()
            asked.unlink()
            for member in self._members:
                if member.plan.name == name and member.ready:
                    member.ask_to_end()
                    member.ready = False  # it no longer answers, and is not frozen

    def _check_start(self, late: bool) -> None:
        """Raise an error if a member has failed to start, as `_keep` says."""
        for member in self._members:
            if member.failed:
                raise member.failure(f"{member.how_it_ended()} before it was ready")
            if late and not member.ready:
                raise member.failure(f"{member.plan.name} was not ready within {START_S:g} s")

    def _find_ready(self, registry: Registry) -> None:
        """Update which members are ready; nothing is asked if all are."""
        waiting = [member for member in self._members if not (member.ready or member.ended)]
        nodes = [member for member in waiting if member.plan.kind == "node"]
        for member in waiting:
            if member.plan.kind == "coordinator" and _answers(member.plan.address, self._encrypted, SOON_S):
                member.become_ready()
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
            # A registration older than this process is that of the previous process.
            if record and record.state.ready and record.registered_s <= member.lived_s:
                member.become_ready()

    def _watch(self, registry: Registry) -> None:
        """Note who answers: a coordinator by HTTP, a node by its heartbeats. This may wait, so a thread does it."""
        while not self._ending.wait(ALIVE_LOOK_S):
            ready = [member for member in self._members if member.ready]
            coordinators = [member for member in ready if member.plan.kind == "coordinator"]
            answering = [member for member in coordinators if _answers(member.plan.address, self._encrypted)]
            # Without a coordinator, or without Redis, no heartbeat arrives, and no node is to blame.
            beating = {member.plan.name for member in ready}
            if coordinators and len(answering) == len(coordinators):
                with suppress(QubicLabError):
                    beating = {record.id for record in registry.nodes()}
            now_s = time.monotonic()
            for member in ready:
                if member in answering or (member.plan.kind == "node" and member.plan.name in beating):
                    member.answered_s = now_s
            for member in self._members:
                member.shorten_log()

    def _end(self) -> None:
        """End the nodes, which finish their requests, and then the coordinators, which pass on the answers."""
        self._write_state(phase="ending")
        nodes = [member for member in self._members if member.plan.kind == "node"]
        others = [member for member in self._members if member.plan.kind != "node"]
        self._end_members(nodes, NODE_STOP_S)
        self._end_members(others, COORDINATOR_STOP_S)
        self._write_state()

    def _end_members(self, members: Sequence[_Member], within_s: float) -> None:
        deadline_s = time.monotonic() + within_s
        families = [process for member in members for process in member.family()]
        for member in members:
            member.ask_to_end()
        hurried = False
        while not all(member.ended for member in members):
            if time.monotonic() > min(deadline_s, self._end_by_s):
                break
            if not hurried and time.monotonic() > deadline_s - HURRY_S:
                hurried = True
                for member in members:
                    member.ask_to_hurry()
            time.sleep(LOOK_S)
        for member in members:
            member.end()
        wait_gone(families)

    def _write_state(self, **changes: Any) -> None:
        """Write the state to its file if it has changed."""
        members = tuple(member.state() for member in self._members)
        before, self._state = self._state, replace(self._state, members=members, **changes)
        if self._state != before:
            path = self._plan.folder / STATE
            new = path.with_name(f"{STATE}.new")
            try:
                new.write_bytes(STATE_JSON.dump_json(self._state))
                new.replace(path)
            except OSError as error:  # a full disk must not end the cluster
                logger.warning("%s cannot be written: %s", path, error)


def wait_gone(processes: Iterable[psutil.Process]) -> None:
    """Wait until all processes have ended; kill those that take too long."""
    _, left = psutil.wait_procs(processes, GONE_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, GONE_S)


def _listen(address: str) -> socket.socket:
    """Return a socket that listens; an InputError if the address is in use."""
    host, _, port = address.rpartition(":")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port)))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(f"{address} cannot be used ({error.strerror}): give another --port") from error
    return listener


def _answers(address: str, encrypted: bool, within_s: float = ANSWER_S) -> bool:
    """Return whether a coordinator answers a request in time, with whatever status."""
    host, _, port = address.rpartition(":")
    try:
        with ExitStack() as stack:
            connection = stack.enter_context(socket.create_connection((host, int(port)), within_s))
            if encrypted:  # whoever listens there is our own process, so its certificate does not matter
                connection = stack.enter_context(ssl._create_unverified_context().wrap_socket(connection))
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(1) != b""
    except OSError:
        return False


def main() -> None:
    """Run the plan on standard input."""
    logs.configure(logging.INFO, settings().log_format, timed=True)
    try:
        Supervisor(PLAN_JSON.validate_json(sys.stdin.read())).run()
    except QubicLabError as error:
        logger.error("%s", error)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
