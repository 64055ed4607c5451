"""The queue's invariants on a real Redis: a model predicts each answer while workers die, time jumps and links break.

Only which leases have run out is bounded from two sides instead, since some real time goes by as well.
"""

import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from qubic_lab.cluster.redis_calls import Scripts
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.cluster.tasks import FINAL, PRIORITIES, Priority, QueueLimits, State, TaskLease, TaskQueue
from qubic_lab.errors import BusyError, FencedError

LIMITS = QueueLimits(most_waiting=6)
WORKERS = ("a", "b", "c")
NAMES = count()


@dataclass
class Task:
    """What the model knows of a task; times are seconds since the queue was made."""

    task_id: str
    priority: Priority
    number: int
    state: State = "pending"
    attempts: int = 0
    token: int = 0
    consumer: str = ""
    renewed_s: float = 0.0
    result: int | None = None
    items: list[int] = field(default_factory=list)


class QueueMachine(RuleBasedStateMachine):
    """Workers, clients and disasters around one queue."""

    def __init__(self, server: RedisServer, client: redis.Redis) -> None:
        super().__init__()
        self.server, self.client = server, client
        name = f"machine-{next(NAMES)}"
        self.queue, self.redis = TaskQueue(client, name, LIMITS), Scripts(client, "tasks", name)
        self.started_s = time.monotonic()
        self.tasks: dict[str, Task] = {}
        self.leases: list[TaskLease] = []  # all that were ever given: the old ones' holders may wake up
        self.keys: dict[str, str] = {}
        self.beats_s: dict[str, float] = {}
        self.back_s: dict[str, float] = {}
        self.unsure: set[str] = set()  # who may have been silent for too long, if real time made up the rest
        self.fenced = self.taken = self.reclaimed = 0

    @property
    def jumped_s(self) -> float:
        return self.queue.clock_offset_ms / 1e3

    @property
    def slack_s(self) -> float:
        """How far the server's clock may be ahead of the jumps: the real time since the start."""
        return time.monotonic() - self.started_s + 0.01

    def in_state(self, state: State) -> list[Task]:
        return [task for task in self.tasks.values() if task.state == state]

    def beat_of(self, consumer: str) -> None:
        last_s = self.beats_s.get(consumer)
        if last_s is not None and self.jumped_s - last_s > LIMITS.silent_s:
            self.back_s[consumer] = self.jumped_s
        elif last_s is not None and self.jumped_s - last_s + self.slack_s > LIMITS.silent_s:
            self.unsure.add(consumer)
        self.beats_s[consumer] = self.jumped_s

    def write(self, lease: TaskLease, write: str, number: int) -> bool:
        """Let a holder write, and check that it may exactly if its lease is the task's last and was not taken back."""
        task = self.tasks[lease.task_id]
        may = task.state == "processing" and task.token == lease.token
        same = task.token == lease.token and task.state == {"complete": "completed", "fail": "failed"}.get(write)
        if write in ("renew", "progress"):
            self.beat_of(lease.consumer)
        try:
            if write == "complete":
                self.queue.complete(lease, {"number": number})
            elif write == "progress":
                self.queue.progress(lease, len(task.items), [number])
            elif write == "renew":
                self.queue.renew(lease)
            else:
                self.queue.fail(lease, "a reason", retry=write == "put back")
        except FencedError:
            assert not may and not same
            self.fenced += 1
            return False
        assert may or same
        return may

    def lose_try(self, task: Task) -> None:
        task.state = "dead" if task.attempts == LIMITS.most_tries else "pending"

    @rule(priority=st.sampled_from(PRIORITIES), key=st.sampled_from([None, None, "x", "y"]))
    def submit(self, priority: Priority, key: str | None) -> None:
        full = len(self.in_state("pending")) >= LIMITS.most_waiting
        number = len(self.tasks)
        payload = {"key": key} if key else {"number": number}
        try:
            task_id = self.queue.submit(payload, priority, key)
        except BusyError:
            assert full and key not in self.keys
            return
        if key in self.keys:
            assert task_id == self.keys[key]
            return
        assert not full and task_id not in self.tasks
        self.tasks[task_id] = Task(task_id, priority, number)
        if key:
            self.keys[key] = task_id

    @rule(worker=st.sampled_from(WORKERS))
    def take(self, worker: str) -> None:
        waiting = sorted(self.in_state("pending"), key=lambda task: (PRIORITIES.index(task.priority), task.number))
        self.beat_of(worker)
        lease = self.queue.take(worker)
        if lease is None:
            assert not waiting
            return
        task = waiting[0]
        assert lease.task_id == task.task_id
        assert lease.attempt == task.attempts + 1 <= LIMITS.most_tries
        assert all(lease.token > other.token for other in self.leases)
        task.state, task.attempts, task.token, task.consumer = "processing", lease.attempt, lease.token, worker
        task.renewed_s = self.jumped_s
        self.leases.append(lease)
        self.taken += 1

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), write=st.sampled_from(["complete", "complete", "renew", "progress", "fail", "put back"]))
    def write_by_any_holder(self, data: st.DataObject, write: str) -> None:
        lease = data.draw(st.sampled_from(self.leases[-8:]))
        if not self.write(lease, write, lease.token):
            return
        task = self.tasks[lease.task_id]
        if write in ("renew", "progress"):
            task.renewed_s = self.jumped_s
            task.items += [lease.token] if write == "progress" else []
        elif write == "complete":
            task.state, task.result = "completed", lease.token
        elif write == "fail":
            task.state = "failed"
        else:
            self.lose_try(task)

    def old_leases(self) -> list[TaskLease]:
        """Leases of tasks that somebody holds by a later one."""
        held = {task.task_id: task.token for task in self.in_state("processing")}
        return [lease for lease in self.leases if held.get(lease.task_id, lease.token) != lease.token]

    @precondition(lambda self: self.old_leases())
    @rule(data=st.data(), write=st.sampled_from(["complete", "renew", "progress", "fail", "put back"]))
    def write_by_an_old_holder(self, data: st.DataObject, write: str) -> None:
        assert not self.write(data.draw(st.sampled_from(self.old_leases())), write, -1)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(list(self.tasks.values())))
        expected = task.state not in FINAL or task.state == "cancelled"
        assert self.queue.cancel(task.task_id) is expected
        if task.state not in FINAL:
            task.state = "cancelled"

    @rule(worker=st.sampled_from(WORKERS))
    def beat(self, worker: str) -> None:
        self.beat_of(worker)
        self.queue.beat(worker)

    @rule(steps=st.sampled_from([1, 1, 3, 6, 34]), alive=st.sets(st.sampled_from(WORKERS)))
    def jump(self, steps: int, alive: set[str]) -> None:
        """Time goes by; those who are not alive are dead, stopped or cut off."""
        for _ in range(steps):
            self.queue.clock_offset_ms += 900  # no limit is a multiple of it
            for worker in sorted(alive):
                self.beat(worker)

    @rule(worker=st.sampled_from(WORKERS))
    def reclaim(self, worker: str) -> None:
        self.beat_of(worker)
        found = self.queue.reclaim(worker)
        assert len(found) == len(set(found))
        back_s = self.back_s.get(worker)
        slack_s = self.slack_s
        if back_s is not None and self.jumped_s - back_s + slack_s < LIMITS.hold_s:
            assert found == []
        surely_free = worker not in self.unsure and (back_s is None or self.jumped_s - back_s >= LIMITS.hold_s)
        for task in self.in_state("processing"):
            silent_s = self.jumped_s - self.beats_s[task.consumer]
            over_s = max(silent_s - LIMITS.gone_s, self.jumped_s - task.renewed_s - LIMITS.lease_s)
            if task.task_id in found:
                assert over_s + slack_s > 0
                self.lose_try(task)
                self.reclaimed += 1
            else:
                assert not surely_free or over_s <= 0
        self.forget_gone(slack_s)

    def forget_gone(self, slack_s: float) -> None:
        """A reclaim forgets whom it found gone; since real time may decide that, ask Redis."""
        beats = self.redis.call(lambda: self.client.zrange(self.redis.key("beats"), 0, -1))
        known = {name.decode() for name in beats}
        for worker in set(self.beats_s) - known:
            assert self.jumped_s - self.beats_s.pop(worker) + slack_s > LIMITS.gone_s
            self.back_s.pop(worker, None)

    @precondition(lambda self: self.in_state("processing"))
    @rule(steps=st.sampled_from([3, 6, 6]), outlives=st.booleans(), worker=st.sampled_from(WORKERS))
    def disaster(self, steps: int, outlives: bool, worker: str) -> None:
        """All are cut off for a while, or all but one; that one looks for lost tasks and goes on with them."""
        self.beat(worker)
        self.jump(steps, {worker} if outlives else set())
        self.reclaim(worker)
        self.take(worker)

    @rule(priority=st.sampled_from(PRIORITIES), tasks=st.integers(2, 8))
    def submit_many(self, priority: Priority, tasks: int) -> None:
        for _ in range(tasks):
            self.submit(priority, None)

    @precondition(lambda self: self.in_state("pending"))
    @rule(worker=st.sampled_from(WORKERS), tasks=st.integers(2, 3))
    def take_many(self, worker: str, tasks: int) -> None:
        for _ in range(tasks):
            self.take(worker)

    @precondition(lambda self: self.in_state("processing"))
    @rule(worker=st.sampled_from(WORKERS))
    def lose_node(self, worker: str) -> None:
        """A node is lost with all tasks of a dispatcher, which puts them back."""
        for task in self.in_state("processing"):
            if task.consumer == worker:
                lease = next(lease for lease in self.leases if lease.token == task.token)
                assert self.write(lease, "put back", lease.token)
                self.lose_try(task)

    @rule()
    def lose_connection(self) -> None:
        self.redis.call(lambda: self.client.client_kill_filter(_type="normal", skipme=False))

    @invariant()
    def counts_add_up(self) -> None:
        counts = self.queue.counts()
        for state in ("pending", "processing", *FINAL):
            assert getattr(counts, state) == len(self.in_state(state)), state
        assert counts.submitted == len(self.tasks)
        assert (counts.taken, counts.reclaimed, counts.fenced) == (self.taken, self.reclaimed, self.fenced)

    def teardown(self) -> None:
        """All workers die; one more comes, and when it has worked every task has one end, and nothing else is left."""
        self.queue.clock_offset_ms += 31_000
        self.queue.reclaim("late")
        while lease := self.queue.take("late"):
            assert lease.attempt <= LIMITS.most_tries
            self.queue.complete(lease, {"number": lease.token})
            self.tasks[lease.task_id].result = lease.token
        log = list(self.queue.log())
        assert sorted(entry.task_id for entry in log) == sorted(self.tasks)
        for task in self.tasks.values():
            outcome = self.queue.result(task.task_id)
            assert outcome is not None
            assert (outcome.result or {}).get("number") == task.result
            assert self.queue.look(task.task_id).items == task.items
        stories = {letter.task_id: letter.story for letter in self.queue.dead_letters()}
        assert sorted(stories) == sorted(entry.task_id for entry in log if entry.state == "dead")
        assert all(len(story) == LIMITS.most_tries for story in stories.values())


class CrashingMachine(QueueMachine):
    """The same, and now and then the server itself is killed."""

    @precondition(lambda self: len(self.tasks) % 5 == 4)
    @rule()
    def kill_server(self) -> None:
        if (pid := self.server.pid) is not None:
            os.kill(pid, signal.SIGKILL)

    def teardown(self) -> None:
        if self.server.restarts == 0:  # the draws may have left it alone
            self.kill_server()
        super().teardown()


LONG = (pytest.mark.slow, pytest.mark.timeout(900))


@pytest.mark.parametrize(
    ("machine", "server_name", "examples", "steps"),
    [
        (QueueMachine, "", 30, 40),
        pytest.param(QueueMachine, "", 800, 60, marks=LONG),
        pytest.param(QueueMachine, "redis-server", 200, 50, marks=LONG),
        pytest.param(QueueMachine, "valkey-server", 200, 50, marks=LONG),
        pytest.param(CrashingMachine, "", 20, 40, marks=LONG),
    ],
)
def test_the_invariants_hold(
    machine: type[QueueMachine], server_name: str, examples: int, steps: int, tmp_path: Path
) -> None:
    """On the embedded server, or on the system's own of this name."""
    if server_name and not shutil.which(server_name):
        pytest.skip(f"no {server_name} on PATH")
    binary = Path(shutil.which(server_name) or "") if server_name else None
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    effort = settings(max_examples=examples, stateful_step_count=steps, suppress_health_check=checks)
    with RedisServer(tmp_path / "redis", binary) as server, connect(server.url) as client:
        run_state_machine_as_test(lambda: machine(server, client), settings=effort)
        assert (server.restarts > 0) == (machine is CrashingMachine)
