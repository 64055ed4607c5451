"""Compares the speed of our task queue with SAQ and dramatiq: same tasks, same number of workers, same Redis server.

    python scripts/queue_peers.py --pairs 5

SAQ and dramatiq come with the `dev` extra. A task sleeps. Each run gets a fresh embedded Redis server; all tasks are
queued before the workers start, and each worker process handles one task at a time without prefetching more. Workers
append the end of each task to one file, with a clock that all processes share, and every speed is computed from it.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from qubic_lab.bench.queue import STUCK_S, describe_server, heartbeat_and_reclaim
from qubic_lab.bench.result import Spread
from qubic_lab.cli.console import print_table
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.cluster.tasks import QueueLimits, TaskQueue
from qubic_lab.errors import QubicLabError, check_at_least
from qubic_lab.lifeline import end_when_stdin_closes
from qubic_lab.provenance import machine, source_commit

if TYPE_CHECKING:
    import dramatiq
    from saq.queue.redis import RedisQueue

OURS = "qubic-lab"
PEERS = ("saq", "dramatiq")
"""Names of their packages."""
MIN_TASKS_PER_WORKER = 10
ENDS = "ends"


@dataclass(frozen=True)
class TaskEnd:
    """A worker finished a task at `ended_s` (`time.monotonic`), after a sleep that really took `slept_s`."""

    worker: str
    number: int
    ended_s: float
    slept_s: float


@dataclass(frozen=True)
class RunSpeed:
    """Speed of one run, measured from the moment when every worker had finished a task until the last task ended.

    `overhead_ms` is the time that a worker spends on a task beside its sleep: workers × seconds / tasks - `slept_ms`.
    `repeated` counts the tasks that ended more than once.
    """

    tasks_per_s: float
    overhead_ms: float
    slept_ms: float
    repeated: int


def plan_pairs(pairs: int) -> list[tuple[str, str]]:
    """Return the order of runs: the peers take turns, and so does which side of a pair runs first."""
    return [(OURS, peer) if number % 2 == 0 else (peer, OURS) for number in range(pairs) for peer in PEERS]


def speed_of(ends: Sequence[TaskEnd], workers: int) -> RunSpeed:
    """Return the speed of a run.

    Raises:
        QubicLabError: a worker finished no task before all tasks were done.
    """
    started_s: dict[str, float] = {}
    first_ends: dict[int, TaskEnd] = {}
    for end in sorted(ends, key=lambda end: end.ended_s):
        started_s.setdefault(end.worker, end.ended_s)
        first_ends.setdefault(end.number, end)
    all_started_s = max(started_s.values())
    counted = [end for end in first_ends.values() if end.ended_s > all_started_s]
    if len(started_s) < workers or not counted:
        raise QubicLabError(f"{len(first_ends)} tasks were done before all {workers} workers had one: raise --tasks")
    seconds = max(end.ended_s for end in counted) - all_started_s
    slept_s = mean(end.slept_s for end in counted)
    overhead_s = workers * seconds / len(counted) - slept_s
    return RunSpeed(len(counted) / seconds, overhead_s * 1e3, slept_s * 1e3, len(ends) - len(first_ends))


def ratios_to(peer: str, measured: Sequence[Mapping[str, RunSpeed]]) -> list[float]:
    """Return our tasks/s divided by the peer's, for each pair that the peer was in."""
    return [pair[OURS].tasks_per_s / pair[peer].tasks_per_s for pair in measured if peer in pair]


def show(measured: Sequence[Mapping[str, RunSpeed]]) -> None:
    """Print one table with the systems and one with the ratios."""
    rows = []
    for name in (OURS, *PEERS):
        speeds = [pair[name] for pair in measured if name in pair]
        rates = [speed.tasks_per_s for speed in speeds]
        times = (median(s.overhead_ms for s in speeds), median(s.slept_ms for s in speeds))
        repeated = sum(speed.repeated for speed in speeds)
        rows.append((name, version(name), Spread.of(rates).text(".1f"), *(f"{ms:.2f}" for ms in times), str(repeated)))
    print_table(("system", "version", "tasks/s (low to high)", "overhead ms", "slept ms", "repeated"), rows)
    print()
    by_peer = {peer: ratios_to(peer, measured) for peer in PEERS}
    ratios = [
        (peer, f"{median(each):.2f} ({min(each):.2f} to {max(each):.2f})", str(len(each)))
        for peer, each in by_peer.items()
    ]
    print_table(("our tasks/s divided by those of", "median (low to high)", "pairs"), ratios)


@contextmanager
def worker_processes(command: Sequence[str], workers: int, folder: Path) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Start workers, let all of them begin together once all are ready, and kill them when the block ends."""
    with ExitStack() as stack:
        running = []
        for number in range(workers):
            log = stack.enter_context((folder / f"worker-{number}.log").open("wb"))
            process = subprocess.Popen(
                [*command, "--name", f"worker-{number}"],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "dramatiq_queue_prefetch": "1"},
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            running.append(process)
        for process in running:
            assert process.stdout is not None
            process.stdout.read(1)  # returns nothing if the worker was lost, which `wait_until_done` reports
        for process in running:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.write(b"g")
        yield running


def measure(name: str, tasks: int, workers: int, work_s: float) -> tuple[list[TaskEnd], str]:
    """Let a system's workers do all tasks on a fresh server; return the ends and the server's name and version."""
    with tempfile.TemporaryDirectory() as place, RedisServer(Path(place)) as server, connect(server.url) as client:
        folder = Path(place)
        system = SYSTEMS[name](server.url)
        system.submit(tasks)
        command = [sys.executable, __file__, "--worker", name, "--url", server.url, "--folder", place]
        with worker_processes([*command, "--work-ms", str(1e3 * work_s)], workers, folder) as running:
            wait_until_done(name, system, tasks, running, folder)
        lines = (line.split() for line in (folder / ENDS).read_text().splitlines())
        ends = [TaskEnd(worker, int(number), float(ended), float(slept)) for worker, number, ended, slept in lines]
        return ends, describe_server(client)


def wait_until_done(
    name: str, system: "System", tasks: int, running: Sequence["subprocess.Popen[bytes]"], folder: Path
) -> None:
    """Wait until all tasks have ended and the system has no open task left."""
    before, progress_s, ends = -1, time.monotonic(), folder / ENDS
    while (ended := ends.read_bytes().count(b"\n") if ends.exists() else 0) < tasks or system.count_left():
        for number, worker in enumerate(running):
            if worker.poll() is not None:
                last_line = (folder / f"worker-{number}.log").read_text(errors="replace").strip().rpartition("\n")[2]
                raise QubicLabError(f"a worker of {name} was lost: {last_line or 'it printed nothing'}")
        if ended > before:
            before, progress_s = ended, time.monotonic()
        elif time.monotonic() - progress_s > STUCK_S:
            raise QubicLabError(f"{name} ended {ended} of {tasks} tasks, and none for {STUCK_S:g} s")
        time.sleep(0.05)


@dataclass(frozen=True)
class SleepTask:
    """The work: a sleep, whose end is appended to a file as one line."""

    worker: str
    work_s: float
    file: int

    def square(self, number: int) -> int:
        """Sleep in this thread."""
        started_s = time.monotonic()
        time.sleep(self.work_s)
        return self._end(number, started_s)

    async def square_async(self, number: int) -> int:
        """Sleep in the event loop."""
        started_s = time.monotonic()
        await asyncio.sleep(self.work_s)
        return self._end(number, started_s)

    def _end(self, number: int, started_s: float) -> int:
        ended_s = time.monotonic()
        os.write(self.file, f"{self.worker} {number} {ended_s:.6f} {ended_s - started_s:.6f}\n".encode())
        return number**2


class System(ABC):
    """One queue on the Redis server at `url`; workers import `modules` before the clock starts."""

    modules: tuple[str, ...] = ()

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    def submit(self, tasks: int) -> None:
        """Queue the numbers below `tasks`."""

    @abstractmethod
    def count_left(self) -> int:
        """Return how many tasks the system itself counts as not ended."""

    @abstractmethod
    def work(self, task: SleepTask) -> None:
        """Do tasks until the process is killed."""


class OurQueue(System):
    """A consumer like a coordinator's, which sends heartbeats and reclaims; it keeps results and a log."""

    def submit(self, tasks: int) -> None:
        with connect(self.url) as client:
            queue = TaskQueue(client, limits=QueueLimits(most_waiting=tasks))
            for number in range(tasks):
                queue.submit({"number": number})

    def count_left(self) -> int:
        with connect(self.url) as client:
            counts = TaskQueue(client).counts()
        return counts.pending + counts.processing

    def work(self, task: SleepTask) -> None:
        with connect(self.url) as client:
            queue = TaskQueue(client)
            threading.Thread(target=heartbeat_and_reclaim, args=(queue, task.worker), daemon=True).start()
            while True:
                if lease := queue.take(task.worker, block_s=1.0):
                    queue.complete(lease, {"square": task.square(lease.payload["number"])})


class Saq(System):
    """Its Worker with a concurrency of 1 and a coroutine as the task; it keeps results and never prefetches."""

    modules = ("saq", "saq.queue.redis")

    def submit(self, tasks: int) -> None:
        async def submit(queue: "RedisQueue") -> None:
            for number in range(tasks):
                await queue.enqueue("square", number=number)

        self._run(submit)

    def count_left(self) -> int:
        return int(self._run(lambda queue: queue.count("incomplete")))

    def work(self, task: SleepTask) -> None:
        from saq import Worker

        async def square(_: object, *, number: int) -> int:
            return await task.square_async(number)

        self._run(lambda queue: Worker(queue, [("square", square)], id=task.worker, concurrency=1).start())

    def _run(self, call: "Callable[[RedisQueue], Awaitable[Any]]") -> Any:
        from saq.queue.redis import RedisQueue

        async def run() -> Any:
            queue = RedisQueue.from_url(self.url)
            try:
                return await call(queue)
            finally:
                await queue.disconnect()

        return asyncio.run(run())


class Dramatiq(System):
    """Its Worker with one thread and a prefetch of 1; it keeps no results, so it does less than the others."""

    modules = ("dramatiq", "dramatiq.brokers.redis")

    def submit(self, tasks: int) -> None:
        actor = self._actor(lambda number: None)
        for number in range(tasks):
            actor.send(number)

    def count_left(self) -> int:
        broker: Any = self._actor(lambda number: None).broker
        return int(broker.do_qsize("default"))  # the call that its own `join` uses

    def work(self, task: SleepTask) -> None:
        import dramatiq

        def square(number: int) -> None:
            task.square(number)

        dramatiq.Worker(self._actor(square).broker, worker_threads=1).start()
        threading.Event().wait()

    def _actor(self, square: Callable[[int], None]) -> "dramatiq.Actor[[int], None]":
        import dramatiq
        from dramatiq.brokers.redis import RedisBroker

        broker: Any = RedisBroker
        return dramatiq.actor(actor_name="square", broker=broker(url=self.url))(square)


SYSTEMS: Mapping[str, type[System]] = {OURS: OurQueue, "saq": Saq, "dramatiq": Dramatiq}


def be_worker(options: argparse.Namespace) -> None:
    """Run one worker until it is killed or its standard input ends."""
    system = SYSTEMS[options.worker](options.url)
    for module in system.modules:
        import_module(module)
    file = os.open(options.folder / ENDS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(sys.stdout.fileno(), b"r")
    if os.read(sys.stdin.fileno(), 1) == b"g":
        end_when_stdin_closes()
        system.work(SleepTask(options.name, options.work_ms / 1e3, file))


def compare(tasks: int, workers: int, work_ms: float, pairs: int) -> None:
    """Run all pairs and print the comparison.

    Raises:
        InputError: a number is out of range.
        QubicLabError: SAQ or dramatiq is not installed, a worker was lost, or nothing ended for a minute.
    """
    check_at_least("--workers", workers, 1)
    check_at_least("--tasks", tasks, MIN_TASKS_PER_WORKER * workers)
    check_at_least("--pairs", pairs, 1)
    for package in PEERS:
        try:
            version(package)
        except PackageNotFoundError as error:
            raise QubicLabError(f'not installed: {package}; remedy: pip install "qubic-lab[dev]"') from error
    measured: list[dict[str, RunSpeed]] = []
    for pair in plan_pairs(pairs):
        measured.append({})
        for name in pair:
            ends, server = measure(name, tasks, workers, work_ms / 1e3)
            measured[-1][name] = speed_of(ends, workers)
    show(measured)
    print(
        f"\n{tasks} tasks of {work_ms:g} ms a run, {workers} workers, {server}, {machine()}, commit {source_commit()}"
    )


def main() -> None:
    """Compare the queues, or be one worker of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=2_000, help="tasks of each run")
    parser.add_argument("--workers", type=int, default=4, help="worker processes of each run")
    parser.add_argument("--work-ms", type=float, default=5.0, help="sleep of a task")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs with each peer")
    for option in ("--worker", "--url", "--name"):
        parser.add_argument(option, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        be_worker(options)
        return
    try:
        compare(options.tasks, options.workers, options.work_ms, options.pairs)
    except QubicLabError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
