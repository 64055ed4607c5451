"""Checks that the task queue loses no task and answers none twice while its workers are killed or stopped.

Each worker is a process with a consumer's duties: it sends heartbeats and reclaims each second, and holds one task at a
time. The verdict comes from the log that the queue's scripts keep in Redis, not from the workers.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis

from qubic_lab.bench.result import MeasuredResult, Table
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.cluster.tasks import BEAT_S, FINAL, QueueLimits, TaskQueue, count_lost_and_duplicated
from qubic_lab.core import Progress
from qubic_lab.errors import FencedError, QubicLabError, check_at_least, check_choice, check_range
from qubic_lab.lifeline import end_when_stdin_closes

SIGNALS = ("kill", "stop")
MOST_TASKS = 100_000
STOPPED_S = 8.0
"""Time after which a stopped worker continues; by then others have taken its task."""
STUCK_S = 60.0
_LOOK_S = 0.2


@dataclass(frozen=True)
class QueueResult(MeasuredResult):
    """The outcome of all tasks.

    `disturbed` counts the workers that were killed or stopped, `wrong` the tasks without their right answer, `executed`
    the tries, `fenced` the refused writes, and `reclaimed` the leases that were taken back.
    """

    tasks: int
    workers: int
    signal: str
    every_s: float
    disturbed: int
    lost: int
    duplicated: int
    wrong: int
    dead: int
    executed: int
    fenced: int
    reclaimed: int
    seconds: float
    tasks_per_s: float
    server: str

    def report(self) -> Iterator[Table | str]:
        yield (
            f"{self.tasks} tasks: {self.lost} lost, {self.duplicated} duplicated, {self.wrong} wrong, "
            f"{self.dead} dead; {self.executed} tries, {self.reclaimed} leases taken back, {self.fenced} writes refused"
        )


@dataclass
class _Workers:
    """The worker processes, and the times at which stopped ones continue."""

    url: str
    work_s: float
    running: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    stopped: list[tuple[float, "subprocess.Popen[bytes]"]] = field(default_factory=list)
    started: int = 0

    def start(self) -> None:
        self.started += 1
        command = [sys.executable, "-m", __name__, "--url", self.url, "--name", f"worker-{self.started}"]
        self.running.append(subprocess.Popen([*command, "--work-s", str(self.work_s)], stdin=subprocess.PIPE))

    def disturb(self, how: str, choose: random.Random) -> None:
        """Kill a worker and start another one in its place, or stop a worker."""
        worker = choose.choice(self.running)
        self.running.remove(worker)
        if how == "kill":
            worker.kill()
            worker.wait()
            self.start()
        else:
            worker.send_signal(signal.SIGSTOP)
            self.stopped.append((time.monotonic() + STOPPED_S, worker))

    def wake(self, now_s: float) -> None:
        """Continue the workers that were stopped for long enough."""
        for until_s, worker in [each for each in self.stopped if each[0] <= now_s]:
            worker.send_signal(signal.SIGCONT)
            self.stopped.remove((until_s, worker))
            self.running.append(worker)

    def end(self) -> None:
        """Let all workers finish their tasks, and end them."""
        self.wake(float("inf"))
        for worker in self.running:
            worker.terminate()
        for worker in self.running:
            try:
                worker.wait(STUCK_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def bench_queue(
    tasks: int, workers: int, how: str, every_s: float, work_ms: float, progress: Progress, seed: int = 0
) -> QueueResult:
    """Let workers do all tasks while one of them is killed, or stopped for a while, every few seconds.

    The Redis server is an embedded one in a temporary folder. A task is a number, and its result is the square.

    Raises:
        InputError: a number is out of range, or the signal is unknown.
        QubicLabError: the server was lost, or no task ended for a minute.
    """
    check_range("--tasks", tasks, 1, MOST_TASKS)
    check_at_least("--workers", workers, 1 if how == "kill" else 2)
    check_choice("signal", how, SIGNALS)
    limits = QueueLimits(most_waiting=tasks, most_logged=2 * MOST_TASKS)
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server, connect(server.url) as client:
        queue = TaskQueue(client, limits=limits)
        submitted = [queue.submit({"number": number}) for number in range(tasks)]
        group = _Workers(server.url, work_ms / 1e3)
        started = time.monotonic()
        try:
            for _ in range(workers):
                group.start()
            disturbed = _disturb_all(queue, group, how, every_s, seed, progress)
            seconds = time.monotonic() - started
        finally:
            group.end()
        counts = queue.counts()
        outcomes = enumerate(queue.result(task) for task in submitted)
        lost, duplicated = count_lost_and_duplicated(submitted, list(queue.log()))
        return QueueResult(
            tasks=tasks,
            workers=workers,
            signal=how,
            every_s=every_s,
            disturbed=disturbed,
            lost=lost,
            duplicated=duplicated,
            wrong=sum(each is None or each.result != {"square": number**2} for number, each in outcomes),
            dead=counts.dead,
            executed=counts.taken,
            fenced=counts.fenced,
            reclaimed=counts.reclaimed,
            seconds=seconds,
            tasks_per_s=tasks / seconds,
            server=describe_server(client),
        )


def describe_server(client: redis.Redis) -> str:
    """Return the name and version of a Redis server."""
    info = client.info("server")
    return f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}"


def _disturb_all(queue: TaskQueue, group: _Workers, how: str, every_s: float, seed: int, progress: Progress) -> int:
    """Disturb workers until the last task has ended; return how many were disturbed."""
    choose = random.Random(seed)
    total, disturbed, before = queue.counts().submitted, 0, -1
    moved_s = next_s = time.monotonic()
    while True:
        now_s = time.monotonic()
        counts = queue.counts()
        done = sum(getattr(counts, state) for state in FINAL)
        progress("tasks", done, total)
        if done == total:
            return disturbed
        if done > before:
            before, moved_s = done, now_s
        elif now_s - moved_s > STUCK_S:
            raise QubicLabError(f"{total - done} tasks did not end within {STUCK_S:g} s: {counts}")
        group.wake(now_s)
        if done and now_s - next_s > every_s and len(group.running) > (how == "stop"):
            group.disturb(how, choose)
            next_s, disturbed = now_s, disturbed + 1
        time.sleep(_LOOK_S)


def main() -> None:
    """Run one worker until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--work-s", type=float, required=True)
    options = parser.parse_args()
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    end_when_stdin_closes()
    with connect(options.url) as client:
        queue = TaskQueue(client)
        threading.Thread(target=heartbeat_and_reclaim, args=(queue, options.name), daemon=True).start()
        while not ending.is_set():
            if (lease := queue.take(options.name, block_s=0.5)) is None:
                continue
            time.sleep(options.work_s)
            with suppress(FencedError):  # another worker has the task; Redis counts the refused write
                queue.complete(lease, {"square": lease.payload["number"] ** 2})


def heartbeat_and_reclaim(queue: TaskQueue, name: str) -> None:
    """Do a consumer's duties until the process ends."""
    while True:
        queue.beat(name)
        queue.reclaim(name)
        time.sleep(BEAT_S)


if __name__ == "__main__":
    main()
