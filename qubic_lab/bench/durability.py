"""What a power failure takes from the task queue: its log is cut behind every record, and a new server reads the rest.

A power failure leaves of Redis's append-only file what had reached the disk. With `appendfsync always` that is at least
all that was acknowledged; with `everysec`, at least what was acknowledged a second before. So a cut stands for a
failure: whatever was acknowledged before it must be there, whole, and the queue must go on from it.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qubic_lab.bench.queue import describe_server
from qubic_lab.bench.result import MeasuredResult, Table
from qubic_lab.cluster.redis_server import RedisServer, bare_server, connect, embedded_binary
from qubic_lab.cluster.tasks import FINAL, TaskQueue
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import NotFoundError, QubicLabError, check_range

MOST_TASKS = 200
EVERYSEC_S = 1.0
"""What `appendfsync everysec` may leave unwritten, in time; Redis waits a second longer while the disk is slow."""
_TOKENS = 2
_LATER_MS = 600_000
"""The holders of all leases are lost after this time."""


@dataclass(frozen=True)
class Acknowledged:
    """A call that was answered at `at_s`, when the log had `bytes`: a task was accepted, has `tokens`, or has ended."""

    at_s: float
    bytes: int
    task: str
    tokens: int = 0
    ended: bool = False


@dataclass(frozen=True)
class DurabilityResult(MeasuredResult):
    """What was missing after each cut.

    Attributes:
        tasks: tasks that were submitted, `per_s` a second, each taken, written to twice and completed.
        records: of the log; a cut is behind each of them, and one within it.
        cuts: how many logs were read.
        lost: acknowledged calls before a cut whose effect was missing behind it.
        twice: tasks with two ends after all were done.
        stuck: tasks that did not end when others went on with them.
        unreadable: logs that no server read.
        everysec_accepted, everysec_ended: the most accepted tasks and ends that `appendfsync everysec` would lose.
    """

    tasks: int
    per_s: float
    records: int
    cuts: int
    lost: int
    twice: int
    stuck: int
    unreadable: int
    everysec_accepted: int
    everysec_ended: int
    server: str

    def report(self) -> Iterator[Table | str]:
        yield (
            f"{self.cuts} logs, cut behind and within each of {self.records} records: {self.lost} acknowledged calls "
            f"lost, {self.twice} tasks with two ends, {self.stuck} stuck, {self.unreadable} logs not readable"
        )
        yield (
            f"appendfsync always loses nothing that was acknowledged; everysec would lose up to "
            f"{self.everysec_accepted} accepted tasks and {self.everysec_ended} ends at {self.per_s:g} tasks a second"
        )


def bench_durability(tasks: int = 3, per_s: float = 5.0, progress: Progress = no_progress) -> DurabilityResult:
    """Let a queue work, and read its log cut behind every record.

    Raises:
        InputError: a number is out of range.
        QubicLabError: the server does not start.
    """
    check_range("--tasks", tasks, 1, MOST_TASKS)
    with tempfile.TemporaryDirectory(prefix="qubic-lab-") as temporary:
        folder = Path(temporary) / "first"
        with RedisServer(folder) as server, connect(server.url) as client:
            known = _work(TaskQueue(client), folder, tasks, per_s)
            version = describe_server(client)
        whole = _log_of(folder).read_bytes()
        ends = record_ends(whole)
        cuts = sorted({*ends, *((before + after) // 2 for before, after in zip([0, *ends], ends, strict=False))})
        found: list[tuple[int, int, int]] = []
        for number, cut in enumerate(cuts, 1):
            progress("logs", number, len(cuts))
            with suppress(QubicLabError):
                found.append(_read_back(folder, Path(temporary) / "second", cut, known))
    accepted = [call.at_s for call in known if not (call.tokens or call.ended)]
    ended = [call.at_s for call in known if call.ended]
    return DurabilityResult(
        tasks=tasks,
        per_s=per_s,
        records=len(ends),
        cuts=len(cuts),
        lost=sum(lost for lost, _, _ in found),
        twice=sum(twice for _, twice, _ in found),
        stuck=sum(stuck for _, _, stuck in found),
        unreadable=len(cuts) - len(found),
        everysec_accepted=most_within(accepted, EVERYSEC_S),
        everysec_ended=most_within(ended, EVERYSEC_S),
        server=version,
    )


def record_ends(log: bytes) -> list[int]:
    """Return where each record of an append-only file ends; a record is a command, `*N` and N strings `$LENGTH`."""
    ends, place = [], 0
    while place < len(log):
        line = log.index(b"\r\n", place)
        count, place = int(log[place + 1 : line]), line + 2
        for _ in range(count):
            line = log.index(b"\r\n", place)
            place = line + 2 + int(log[place + 1 : line]) + 2
        ends.append(place)
    return ends


def most_within(at_s: Sequence[float], seconds: float) -> int:
    """Return the most of some rising moments that lie within a time."""
    return max((sum(first <= each < first + seconds for each in at_s) for first in at_s), default=0)


def _work(queue: TaskQueue, folder: Path, tasks: int, per_s: float) -> list[Acknowledged]:
    """Submit, take, write and complete tasks at an even pace, one after another; return all that was acknowledged."""
    known: list[Acknowledged] = []

    def note(task: str, tokens: int = 0, ended: bool = False) -> None:
        known.append(Acknowledged(time.monotonic(), _log_of(folder).stat().st_size, task, tokens, ended))

    first_s = time.monotonic()
    for number in range(tasks):
        time.sleep(max(0.0, first_s + number / per_s - time.monotonic()))
        note(queue.submit({"number": number}))
        lease = queue.take("worker")
        assert lease is not None
        for token in range(_TOKENS):
            queue.progress(lease, token, [token])
            note(lease.task_id, tokens=token + 1)
        queue.complete(lease, {"number": number})
        note(lease.task_id, ended=True)
    return known


def _read_back(folder: Path, copy: Path, cut: int, known: Sequence[Acknowledged]) -> tuple[int, int, int]:
    """Let a server read a log up to a cut, and others go on; return what is lost, ended twice, and stuck."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.sock", "*.log", "lock"))
    try:
        log = _log_of(copy)
        with log.open("r+b") as file:
            file.truncate(cut)
        with bare_server(embedded_binary(), copy) as url, connect(url) as client:
            queue = TaskQueue(client)
            lost = sum(not _is_there(queue, call) for call in known if call.bytes <= cut)
            queue.clock_offset_ms += _LATER_MS
            queue.reclaim("another")
            while (lease := queue.take("another")) is not None:
                queue.complete(lease, lease.payload)
            ends = [entry.task_id for entry in queue.log()]
            counts = queue.counts()
            return lost, len(ends) - len(set(ends)), counts.submitted - len(set(ends))
    finally:
        shutil.rmtree(copy)


def _is_there(queue: TaskQueue, call: Acknowledged) -> bool:
    try:
        found = queue.look(call.task)
        return len(found.items) >= call.tokens and (not call.ended or queue.state(call.task) in FINAL)
    except NotFoundError:
        return False


def _log_of(folder: Path) -> Path:
    """Return the append-only file of a folder: since Redis 7 one of several, before that the only one."""
    [log] = [*folder.glob("appendonlydir/*.incr.aof"), *folder.glob("appendonly.aof")]
    return log
