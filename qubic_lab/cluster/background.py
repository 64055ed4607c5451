"""Clusters in the background of this machine: start, find and end their supervisors. Each cluster has one folder."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from qubic_lab.cluster.redis_server import open_lock
from qubic_lab.cluster.supervisor import (
    PLAN_JSON,
    RESTART,
    STATE,
    STATE_JSON,
    ClusterPlan,
    ClusterState,
    MemberState,
    wait_gone,
)
from qubic_lab.errors import InputError, QubicLabError

LOG = "supervisor.log"
HURRY_S = 15.0
"""A supervisor ends within this time after a second signal."""
LOOK_S = 0.1
_SAME_S = 2.0
"""Tolerance for two readings of a process's start time, because the system's clock may have been set."""


@contextmanager
def claimed(folder: Path) -> Iterator[int]:
    """Make a folder private and lock it while the block runs; yield the lock, which a supervisor can inherit.

    Raises:
        InputError: a cluster uses the folder, or it cannot be created.
    """
    lock = open_lock(folder)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            check_none_runs(folder)
            raise InputError("a cluster is starting or ending here: wait a moment") from None
        (folder / STATE).unlink(missing_ok=True)  # left by a killed supervisor
        yield lock
    finally:
        os.close(lock)


def start(plan: ClusterPlan, watch: Callable[[ClusterState], None] = lambda state: None) -> ClusterState:
    """Start a supervisor that outlives this process, and return when all members are ready.

    `watch` is called with the current state while members start.

    Raises:
        InputError: a cluster uses the folder, or the plan cannot be run.
        QubicLabError: a member does not start; all others were ended.
    """
    with claimed(plan.folder) as lock, (plan.folder / LOG).open("wb") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "qubic_lab.cluster.supervisor"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
            start_new_session=True,
        )
        try:
            assert supervisor.stdin is not None
            with suppress(BrokenPipeError), supervisor.stdin as stdin:
                stdin.write(PLAN_JSON.dump_json(plan))
            return _wait_until_up(supervisor, plan.folder, watch)
        except BaseException:
            if supervisor.poll() is None:
                end(psutil.Process(supervisor.pid), 0.0)
            raise


def check_none_runs(folder: Path) -> None:
    """Check that no cluster runs in a folder; an InputError if one does."""
    if (state := running(folder)) is not None:
        raise InputError(f"a cluster runs here already, at {state.urls[0]}: end it with qubic-lab cluster down")


def running(folder: Path) -> ClusterState | None:
    """Return the state of the cluster that runs in a folder, or None."""
    state = read_state(folder)
    return None if state is None or _process(state) is None else state


def read_state(folder: Path) -> ClusterState | None:
    """Return the last state that a supervisor has written; it may have ended since.

    Raises:
        InputError: another version of this project has written the state.
    """
    path = folder / STATE
    try:
        return STATE_JSON.validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise InputError(f"{path} is of another version: end the process that it names, then remove it") from error


def stop(folder: Path, timeout_s: float) -> ClusterState | None:
    """End the cluster of a folder and return its last state, or None if none runs; requests get `timeout_s` to end."""
    state = read_state(folder)
    supervisor = None if state is None else _process(state)
    if supervisor is None:
        return None
    end(supervisor, timeout_s)
    return state


def restart_member(folder: Path, name: str, within_s: float) -> None:
    """Let a member of the cluster of a folder finish its requests and end, and wait until it is ready again.

    Raises:
        QubicLabError: there is no such member, or it is not back in time.
    """

    def state_of() -> MemberState:
        members = (state := running(folder)) and [member for member in state.members if member.name == name]
        if not members:
            raise QubicLabError(f"no member {name!r} of a cluster runs in {folder}: see qubic-lab cluster status")
        return members[0]

    before = state_of()
    new = folder / f"{RESTART}.new"
    new.write_text(name)
    new.replace(folder / RESTART)
    deadline = time.monotonic() + within_s
    while not ((after := state_of()).ready and after.restarts > before.restarts):
        if time.monotonic() > deadline:
            raise QubicLabError(f"{name} was not ready within {within_s:g} s of its restart: see {after.log}")
        time.sleep(LOOK_S)


def end(supervisor: psutil.Process, timeout_s: float) -> None:
    """End a supervisor and all its processes, within `timeout_s` and a little more."""
    with suppress(psutil.NoSuchProcess):
        family = [supervisor, *supervisor.children(recursive=True)]
        for within_s in (timeout_s, HURRY_S):
            supervisor.send_signal(signal.SIGTERM)
            with suppress(psutil.TimeoutExpired):
                supervisor.wait(within_s)
                break
        else:
            supervisor.kill()  # the kernel ends its members
        wait_gone(family)


def _wait_until_up(
    supervisor: "subprocess.Popen[bytes]", folder: Path, watch: Callable[[ClusterState], None]
) -> ClusterState:
    while True:
        status = supervisor.poll()
        state = read_state(folder)
        if status is not None:
            raise _failure(status, state, folder)
        if state is not None:
            watch(state)
            if state.phase == "up":
                return state
        time.sleep(LOOK_S)


def _failure(status: int, state: ClusterState | None, folder: Path) -> QubicLabError:
    """Return the error that says why a supervisor has ended before all members were ready."""
    if status == 0:
        return QubicLabError("the cluster was ended before it was ready: start it again")
    if state is None or not state.trouble:
        return QubicLabError(f"the supervisor ended with status {status}; its output is in {folder / LOG}")
    return (InputError if status == InputError.exit_status else QubicLabError)(state.trouble)


def _process(state: ClusterState) -> psutil.Process | None:
    """Return the supervisor's process, unless another process has its id now."""
    try:
        process = psutil.Process(state.pid)
        same = abs(process.create_time() - state.started_s) < _SAME_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None
