"""The task queue's speed beside SAQ's and dramatiq's: the same tasks, workers and server, in pairs of runs.

A task sleeps. Each run has a fresh embedded server, all its tasks waiting before any worker begins, and as many worker
processes, which do one task at a time and fetch none ahead. The tasks note their ends in one file, by a clock that all
processes share; speeds are read from there, by one rule for all.
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
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any, TypeVar

from qubic_lab.bench.queue import (
    MOST_TASKS,
    STUCK_S,
    Progress,
    beat_and_reclaim,
    describe_server,
)
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.cluster.tasks import QueueLimits, TaskQueue
from qubic_lab.errors import QubicLabError, check_at_least, check_range
from qubic_lab.lifeline import end_when_stdin_closes
from qubic_lab.provenance import machine, source_commit

if TYPE_CHECKING:
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker
    from saq.queue.redis import RedisQueue

OURS = "qubic-lab"
PEERS = ("saq", "dramatiq")
"""As their packages are called."""
LEAST_RATIO = 0.95
"""As fast as the faster peer, but for what pairs of runs on a shared machine cannot tell."""
FEWEST_TASKS = 10
"""For each worker of a run."""
_LOOK_S = 0.05
_ENDS = "ends"
_READY, _GO = b"r", b"g"

T = TypeVar("T")


@dataclass(frozen=True)
class End:
    """That a worker ended a task: which, when (`time.monotonic`), and how long the task really slept."""

    worker: str
    number: int
    ended_s: float
    slept_s: float


@dataclass(frozen=True)
class Speed:
    """Of one run, from the moment when every worker had ended a task to the last task's end.

    `overhead_ms`: what a worker spends on a task beside its sleep, workers × seconds / tasks - `slept_ms`. `repeated`:
    how many ends were not their task's first; they count for nothing else.
    """

    tasks_per_s: float
    overhead_ms: float
    slept_ms: float
    repeated: int


@dataclass(frozen=True)
class SystemResult:
    """The medians of a system's runs, the tasks/s of each, and how many tasks were done again in all of them."""

    system: str
    version: str
    tasks_per_s: float
    overhead_ms: float
    slept_ms: float
    repeated: int
    tasks_per_s_runs: tuple[float, ...]


@dataclass(frozen=True)
class PeerRatio:
    """Our tasks/s over a peer's: the median of the pairs' own ratios, the lowest, the highest, and all of them."""

    peer: str
    median: float
    low: float
    high: float
    pairs: tuple[float, ...]


@dataclass(frozen=True)
class QueueComparison:
    """All systems and ratios; `ratio` is the median against the peer with more tasks/s. `tasks` are those of a run."""

    tasks: int
    workers: int
    work_ms: float
    pairs: int
    systems: tuple[SystemResult, ...]
    ratios: tuple[PeerRatio, ...]
    faster_peer: str
    ratio: float
    least_ratio: float
    fast_enough: bool
    server: str
    machine: str
    commit: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def compare_queues(tasks: int, workers: int, work_ms: float, pairs: int, progress: Progress) -> QueueComparison:
    """Run ours beside each peer, pair by pair.

    Raises:
        InputError: a number is out of range.
        QubicLabError: SAQ or dramatiq is not installed, a worker was lost, or nothing went on for a minute.
    """
    check_at_least("--workers", workers, 1)
    check_range("--tasks", tasks, FEWEST_TASKS * workers, MOST_TASKS)
    check_at_least("--compare", pairs, 1)
    versions = {name: _version(name) for name in (OURS, *PEERS)}
    measured: list[dict[str, Speed]] = []
    for pair in (order := plan_pairs(pairs)):
        speeds: dict[str, Speed] = {}
        for name in pair:
            progress("runs", 2 * len(measured) + len(speeds), 2 * len(order))
            ends, server = _run(name, tasks, workers, work_ms / 1e3)
            speeds[name] = speed_of(ends, workers)
        measured.append(speeds)
    systems = tuple(sum_up(name, its_version, measured) for name, its_version in versions.items())
    ratios = tuple(ratio_to(peer, measured) for peer in PEERS)
    faster = max(systems[1:], key=lambda each: each.tasks_per_s).system
    ratio = ratios[PEERS.index(faster)].median
    return QueueComparison(
        tasks=tasks,
        workers=workers,
        work_ms=work_ms,
        pairs=pairs,
        systems=systems,
        ratios=ratios,
        faster_peer=faster,
        ratio=ratio,
        least_ratio=LEAST_RATIO,
        fast_enough=ratio >= LEAST_RATIO,
        server=server,
        machine=str(machine()),
        commit=str(source_commit()),
    )


def plan_pairs(pairs: int) -> list[tuple[str, str]]:
    """Return who runs beside whom, in order: the peers in turn, and of a pair now ours first and now the peer."""
    return [(OURS, peer) if number % 2 == 0 else (peer, OURS) for number in range(pairs) for peer in PEERS]


def speed_of(ends: Sequence[End], workers: int) -> Speed:
    """Return the speed of a run from the ends of its tasks.

    Raises:
        QubicLabError: a worker ended no task before all were done.
    """
    began_s: dict[str, float] = {}
    firsts: dict[int, End] = {}
    for end in sorted(ends, key=lambda end: end.ended_s):
        began_s.setdefault(end.worker, end.ended_s)
        firsts.setdefault(end.number, end)
    all_began_s = max(began_s.values())
    counted = [end for end in firsts.values() if end.ended_s > all_began_s]
    if len(began_s) < workers or not counted:
        raise QubicLabError(f"the {len(firsts)} tasks were done before all {workers} workers had one: raise --tasks")
    seconds = max(end.ended_s for end in counted) - all_began_s
    slept_s = mean(end.slept_s for end in counted)
    overhead_s = workers * seconds / len(counted) - slept_s
    return Speed(len(counted) / seconds, overhead_s * 1e3, slept_s * 1e3, len(ends) - len(firsts))


def sum_up(system: str, its_version: str, measured: Sequence[Mapping[str, Speed]]) -> SystemResult:
    """Return the medians of a system over all pairs that it was in."""
    speeds = [pair[system] for pair in measured if system in pair]
    return SystemResult(
        system=system,
        version=its_version,
        tasks_per_s=median(speed.tasks_per_s for speed in speeds),
        overhead_ms=median(speed.overhead_ms for speed in speeds),
        slept_ms=median(speed.slept_ms for speed in speeds),
        repeated=sum(speed.repeated for speed in speeds),
        tasks_per_s_runs=tuple(speed.tasks_per_s for speed in speeds),
    )


def ratio_to(peer: str, measured: Sequence[Mapping[str, Speed]]) -> PeerRatio:
    """Return our ratio to a peer over the pairs that it was in."""
    ratios = tuple(pair[OURS].tasks_per_s / pair[peer].tasks_per_s for pair in measured if peer in pair)
    return PeerRatio(peer, median(ratios), min(ratios), max(ratios), ratios)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise QubicLabError(f'not installed: {package}; remedy: pip install "qubic-lab[dev]"') from error


def _run(name: str, tasks: int, workers: int, work_s: float) -> tuple[list[End], str]:
    """Let a system's workers do all tasks on a fresh server; return the tasks' ends, and what the server is."""
    with tempfile.TemporaryDirectory() as place, RedisServer(Path(place)) as server, connect(server.url) as client:
        folder = Path(place)
        system = _SYSTEMS[name](server.url)
        system.submit(tasks)
        with _workers(name, server.url, workers, work_s, folder) as running:
            _wait_until_done(name, system, tasks, running, folder)
        return _read_ends(folder), describe_server(client)


@contextmanager
def _workers(
    name: str, url: str, workers: int, work_s: float, folder: Path
) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Yield workers that were let go together when all were ready; end them afterwards."""
    command = [sys.executable, "-m", __name__, "--system", name, "--url", url, "--folder", str(folder)]
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                _process([*command, "--work-s", str(work_s), "--name", f"worker-{number}"], folder / _log(number))
            )
            for number in range(workers)
        ]
        for worker in running:
            assert worker.stdout is not None
            worker.stdout.read(1)  # nothing comes from one that was lost: that is seen later
        for worker in running:
            assert worker.stdin is not None
            with suppress(BrokenPipeError):
                worker.stdin.write(_GO)
        yield running


@contextmanager
def _process(command: Sequence[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as words:
        process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            env={**os.environ, "dramatiq_queue_prefetch": "1"},
        )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _wait_until_done(
    name: str, system: "_System", tasks: int, running: Sequence["subprocess.Popen[bytes]"], folder: Path
) -> None:
    """Return when so many tasks have ended, and the system holds all for ended."""
    before, moved_s = -1, time.monotonic()
    while (ended := _count_ends(folder)) < tasks or system.count_left():
        for number, worker in enumerate(running):
            if worker.poll() is not None:
                raise QubicLabError(f"a worker of {name} was lost: {_last_word(folder / _log(number))}")
        if ended > before:
            before, moved_s = ended, time.monotonic()
        elif time.monotonic() - moved_s > STUCK_S:
            raise QubicLabError(f"{name} ended {ended} of {tasks} tasks, and none for {STUCK_S:g} s")
        time.sleep(_LOOK_S)


def _count_ends(folder: Path) -> int:
    return (folder / _ENDS).read_bytes().count(b"\n") if (folder / _ENDS).exists() else 0


def _read_ends(folder: Path) -> list[End]:
    lines = (line.split() for line in (folder / _ENDS).read_text().splitlines())
    return [End(worker, int(number), float(ended_s), float(slept_s)) for worker, number, ended_s, slept_s in lines]


def _log(worker: int) -> str:
    return f"worker-{worker}.log"


def _last_word(log: Path) -> str:
    return log.read_text(errors="replace").strip().rpartition("\n")[2] or "it said nothing"


@dataclass(frozen=True)
class _Task:
    """What is done: a sleep, whose end is noted in a file, a line at once."""

    worker: str
    work_s: float
    file: int

    def square(self, number: int) -> int:
        started_s = time.monotonic()
        time.sleep(self.work_s)
        self._end(number, started_s)
        return number**2

    async def square_async(self, number: int) -> int:
        started_s = time.monotonic()
        await asyncio.sleep(self.work_s)
        self._end(number, started_s)
        return number**2

    def _end(self, number: int, started_s: float) -> None:
        ended_s = time.monotonic()
        os.write(self.file, f"{self.worker} {number} {ended_s:.6f} {ended_s - started_s:.6f}\n".encode())


class _System(ABC):
    """One of those that are compared, on the server at `url`; `modules`: what its workers import before they begin."""

    modules: tuple[str, ...] = ()

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    def submit(self, tasks: int) -> None:
        """Put in the numbers below `tasks`."""

    @abstractmethod
    def count_left(self) -> int:
        """Return how many tasks are not yet ended, as the system itself has it."""

    @abstractmethod
    def work(self, task: _Task) -> None:
        """Do tasks, for ever."""


class _Ours(_System):
    """A coordinator's consumer, which beats and reclaims each second; results and a log are kept."""

    def submit(self, tasks: int) -> None:
        with connect(self.url) as client:
            queue = TaskQueue(client, limits=QueueLimits(most_waiting=tasks))
            for number in range(tasks):
                queue.submit({"number": number})

    def count_left(self) -> int:
        with connect(self.url) as client:
            counts = TaskQueue(client).counts()
        return counts.pending + counts.processing

    def work(self, task: _Task) -> None:
        with connect(self.url) as client:
            queue = TaskQueue(client)
            threading.Thread(target=beat_and_reclaim, args=(queue, task.worker), daemon=True).start()
            while True:
                if lease := queue.take(task.worker, block_s=1.0):
                    queue.complete(lease, {"square": task.square(lease.payload["number"])})


class _Saq(_System):
    """Its Worker of concurrency 1 with a coroutine for a task; results are kept. It never fetches ahead."""

    modules = ("saq", "saq.queue.redis")

    def submit(self, tasks: int) -> None:
        async def submit(queue: "RedisQueue") -> None:
            for number in range(tasks):
                await queue.enqueue("square", number=number)

        self._run(submit)

    def count_left(self) -> int:
        return self._run(lambda queue: queue.count("incomplete"))

    def work(self, task: _Task) -> None:
        from saq import Worker

        async def square(_: object, *, number: int) -> int:
            return await task.square_async(number)

        self._run(lambda queue: Worker(queue, [("square", square)], id=task.worker, concurrency=1).start())

    def _run(self, call: "Callable[[RedisQueue], Awaitable[T]]") -> T:
        from saq.queue.redis import RedisQueue

        async def run() -> T:
            queue = RedisQueue.from_url(self.url)
            try:
                return await call(queue)
            finally:
                await queue.disconnect()

        return asyncio.run(run())


class _Dramatiq(_System):
    """Its Worker of one thread and a prefetch of 1; no results are kept, so it has less to do than the others."""

    modules = ("dramatiq", "dramatiq.brokers.redis")

    def submit(self, tasks: int) -> None:
        actor = self._actor(lambda number: None)
        for number in range(tasks):
            actor.send(number)

    def count_left(self) -> int:
        return int(self._broker().do_qsize("default"))  # as its own `join` asks

    def work(self, task: _Task) -> None:
        import dramatiq

        def square(number: int) -> None:
            task.square(number)

        dramatiq.Worker(self._actor(square).broker, worker_threads=1).start()
        threading.Event().wait()

    def _actor(self, square: Callable[[int], None]) -> "dramatiq.Actor[[int], None]":
        import dramatiq

        return dramatiq.actor(actor_name="square", broker=self._broker())(square)

    def _broker(self) -> "RedisBroker":
        from dramatiq.brokers.redis import RedisBroker

        return RedisBroker(url=self.url)  # type: ignore[no-untyped-call]


_SYSTEMS: Mapping[str, type[_System]] = {OURS: _Ours, "saq": _Saq, "dramatiq": _Dramatiq}


def main() -> None:
    """Be one worker, until it is killed or its standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--work-s", type=float, required=True)
    options = parser.parse_args()
    system = _SYSTEMS[options.system](options.url)
    for module in system.modules:
        import_module(module)
    file = os.open(options.folder / _ENDS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(sys.stdout.fileno(), _READY)
    if os.read(sys.stdin.fileno(), 1) != _GO:
        return
    end_when_stdin_closes()
    system.work(_Task(options.name, options.work_s, file))


if __name__ == "__main__":
    main()
