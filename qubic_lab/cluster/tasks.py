"""The task queue on Redis: what was accepted is answered once, or told why not, whoever dies meanwhile.

Every transition is one Lua script in `lua/tasks/`, so no crash leaves it half done:

    submit → pending → take → processing → complete, fail → completed, failed
                 ↑                  │
                 └── put back, or reclaimed from one that is gone; after the last try: dead

A consumer is a coordinator's dispatcher. It holds a lease on each task that it has taken, and each lease has a new
fencing token, which every write shows: what comes from an old lease changes nothing. Time is Redis's alone.

What is known of an answer before its end is kept as progress: whoever waits for the task reads it, and the next try
goes on from it. A bell (Redis's publish and subscribe) rings whenever a task has progress or its end. It may be missed
while the connection is lost: it says when to look, not what there is.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, cast

import redis

from qubic_lab.cluster.redis_calls import PATIENCE_S, Scripts
from qubic_lab.errors import BusyError, FencedError, InputError, NotFoundError, check_choice

Priority = Literal["high", "normal", "low"]
State = Literal["pending", "processing", "completed", "failed", "dead", "cancelled"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
FINAL: tuple[State, ...] = ("completed", "failed", "dead", "cancelled")
BEAT_S = 1.0
"""So often does a consumer beat and reclaim."""
_LONGEST_BLOCK_S = 1.0
"""One blocking read; well below the connection's own time-out."""
_PAGE = 1_000
_BELL_S = 0.25
_OUTCOME = ("state", "result", "why", "tries", "story")


@dataclass(frozen=True)
class QueueLimits:
    """When a lease ends, who counts as gone, and how much is kept.

    A consumer is gone `gone_s` after its last beat. One that was silent for `silent_s` had lost Redis; it waits
    `hold_s` before it reclaims, since the others may only just come back as well. `keep_s`: how long results and
    idempotency keys outlive their task. `patience_s`: how long a lost connection is waited out. `most_waiting`: of
    tasks. `most_bytes`: of one payload or result. `most_logged`, `most_dead`: entries of the log and of the dead
    letters, or a few more.

    Raises:
        InputError: a limit is zero or below, or a consumer could count as gone before it was silent.
    """

    lease_s: float = 30.0
    gone_s: float = 4.0
    silent_s: float = 2.0
    hold_s: float = 5.0
    keep_s: float = 3_600.0
    patience_s: float = PATIENCE_S
    retry_after_s: float = 1.0
    most_tries: int = 3
    most_waiting: int = 1_000
    most_bytes: int = 2**20
    most_logged: int = 100_000
    most_dead: int = 1_000

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise InputError(f"{name} is {value}: it must be above 0")
        if not self.silent_s < self.gone_s < self.lease_s:
            raise InputError(
                f"silent_s, gone_s and lease_s are {self.silent_s}, {self.gone_s} and {self.lease_s}: each must be "
                "longer than the one before"
            )


@dataclass(frozen=True)
class Lease:
    """The right to work on a task and to write its end; `attempt` counts from 1."""

    task_id: str
    payload: dict[str, Any]
    token: int
    attempt: int
    consumer: str


@dataclass(frozen=True)
class TaskOutcome:
    """How a task ended: with a result if `state` is completed, else with the reason.

    `story`: a line for each try that was lost.
    """

    task_id: str
    state: State
    result: dict[str, Any] | None
    why: str
    attempts: int
    story: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """What a reader of a task's progress gets: new items, where to read on, and the end if there is one."""

    items: list[Any]
    after: int
    outcome: TaskOutcome | None


@dataclass(frozen=True)
class Ring:
    """A bell's sound: which task, and whether it has progress or which end. An empty task: bells may have been missed.

    `what` is "progress" or a final state.
    """

    task_id: str
    what: str


MISSED = Ring("", "progress")


@dataclass(frozen=True)
class DeadLetter:
    """A task that had its last try, and what became of each."""

    task_id: str
    payload: dict[str, Any]
    story: tuple[str, ...]


@dataclass(frozen=True)
class LogEntry:
    """One end of a task, as the script that wrote it logged it."""

    task_id: str
    state: State
    token: int
    consumer: str


@dataclass(frozen=True)
class Counts:
    """How many tasks are pending or processing now; the rest are sums since the queue was made.

    `taken`: tries begun. `reclaimed`: leases taken back from those who were gone. `fenced`: writes refused.
    `submitted` is the sum of the first six.
    """

    pending: int
    processing: int
    completed: int
    failed: int
    dead: int
    cancelled: int
    submitted: int
    taken: int
    reclaimed: int
    fenced: int


class TaskQueue:
    """A queue of one name on a Redis connection made by `connect`; may be shared by threads.

    All methods wait out a lost connection, for up to `limits.patience_s`.

    Raises, in every method:
        QubicLabError: Redis cannot be reached for so long, or refuses (out of memory, disk full).
    """

    def __init__(self, client: "redis.Redis", name: str = "tasks", limits: QueueLimits | None = None) -> None:
        self._limits = limits or QueueLimits()
        self._scripts = Scripts(client, "tasks", name, self._limits.patience_s)
        self._redis = client
        self.clock_offset_ms = 0
        """For tests: added to Redis's clock."""

    def submit(self, payload: dict[str, Any], priority: Priority = "normal", idempotency_key: str | None = None) -> str:
        """Put a task at the end of its priority and return its id; a repeated key returns the first task's.

        Raises:
            InputError: an unknown priority, a payload that is no JSON or too large, a key that another payload has.
            BusyError: too many tasks wait; `retry_after_s` says when to come again.
        """
        check_choice("priority", priority, PRIORITIES)
        if idempotency_key == "":
            raise InputError("the idempotency key is empty: give one that only this request has, or None")
        new = uuid.uuid4().hex
        text = self._encode("payload", payload)
        # Where the client has no key the id is one: a call repeated after a lost answer makes no second task.
        what, task_id = self._run("submit", new, text, priority, idempotency_key or new)
        if what == b"busy":
            raise BusyError(
                f"{self._limits.most_waiting} tasks wait: try again after {self._limits.retry_after_s:g} s",
                self._limits.retry_after_s,
            )
        if what == b"differs":
            raise InputError(f"idempotency key {idempotency_key!r} came with another payload before: give a new key")
        return cast(bytes, task_id).decode()

    def take(self, consumer: str, block_s: float = 0.0) -> Lease | None:
        """Lease the next task: the longest waiting of the highest priority; None where none comes within `block_s`.

        A lease whose answer is lost with the connection runs out, and its task is tried again.
        """
        deadline = time.monotonic() + block_s
        while True:
            found = self._run("take", consumer)
            if len(found) > 1:
                task_id, payload, token, attempt = found
                return Lease(task_id.decode(), json.loads(payload), token, attempt, consumer)
            if (left_s := deadline - time.monotonic()) <= 0:
                return None
            self._wait_for_entry("wake", after=found[0], most_s=left_s)

    def renew(self, lease: Lease) -> None:
        """Make a lease last `limits.lease_s` from now; to be called on each token or sign of life from the node.

        Raises:
            FencedError: the task was taken back or cancelled: stop working on it.
        """
        self._check_written(lease, self._run("renew", lease.task_id, lease.token, lease.consumer))

    def progress(self, lease: Lease, start: int, items: Sequence[Any]) -> None:
        """Keep what has become known of the answer since item number `start`, and renew the lease.

        Items are JSON values, tokens say. They stay when the try is lost: the next one begins with `known_items`.

        Raises:
            FencedError, InputError: as `complete`.
        """
        text = self._encode("progress", list(items))
        arguments = (lease.task_id, lease.token, lease.consumer, start, len(items), text)
        self._check_written(lease, self._run("progress", *arguments))

    def complete(self, lease: Lease, result: dict[str, Any]) -> None:
        """Write the result, once.

        Raises:
            FencedError: the task was taken back or cancelled; nothing was changed.
            InputError: the result is no JSON or too large; the lease is still held.
        """
        text = self._encode("result", result)
        self._check_written(lease, self._run("finish", lease.task_id, lease.token, "completed", "result", text))

    def fail(self, lease: Lease, why: str, retry: bool = False) -> None:
        """End a try without an answer: for good where the task itself is at fault, else `retry` puts it back.

        A task put back waits before those that came after it. After its last try it is dead, with a dead letter.

        Raises:
            FencedError: the task was taken back or cancelled; nothing was changed.
        """
        line = " ".join(why.split())
        if retry:
            written = self._run("put_back", lease.task_id, lease.token, line)
        else:
            written = self._run("finish", lease.task_id, lease.token, "failed", "why", line)
        self._check_written(lease, written)

    def cancel(self, task_id: str) -> bool:
        """End a task that has not ended yet, whoever works on it; tell whether it is cancelled now.

        Raises:
            NotFoundError: there is no such task, or its end is no longer kept.
        """
        state = self._run("cancel", task_id)
        if not state:
            raise self._unknown(task_id)
        return cast(bytes, state) == b"cancelled"

    def state(self, task_id: str) -> State:
        """Return where a task is.

        Raises:
            NotFoundError: there is no such task, or its end is no longer kept.
        """
        found = self._scripts.call(lambda: self._redis.hget(self._scripts.key("task", task_id), "state"))
        if found is None:
            raise self._unknown(task_id)
        return cast(State, found.decode())

    def look(self, task_id: str, after: int = 0) -> Progress:
        """Return a task's progress after the first `after` parts of it, and its end if it has one.

        Raises:
            NotFoundError: there is no such task, or its end is no longer kept.
        """

        def read() -> list[Any]:
            with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.lrange(self._scripts.key("progress", task_id), after, -1)
                pipeline.hmget(self._scripts.key("task", task_id), _OUTCOME)
                return pipeline.execute()

        parts, found = self._scripts.call(read)
        outcome = self._outcome(task_id, found)
        items = [item for part in parts for item in json.loads(part)]
        return Progress(items, after + len(parts), outcome if outcome.state in FINAL else None)

    def known_items(self, task_id: str) -> list[Any]:
        """Return all that earlier tries have made known of a task's answer."""
        return self.look(task_id).items

    def result(self, task_id: str, wait_s: float = 0.0) -> TaskOutcome | None:
        """Return how a task ended; None if it has not within `wait_s`.

        Raises:
            NotFoundError: there is no such task, or its end is no longer kept.
        """
        deadline = time.monotonic() + wait_s
        while self.state(task_id) not in FINAL:
            if (left_s := deadline - time.monotonic()) <= 0:
                return None
            self._wait_for_entry("done", task_id, after=b"0-0", most_s=left_s)
        found = self._scripts.call(lambda: self._redis.hmget(self._scripts.key("task", task_id), _OUTCOME))
        return self._outcome(task_id, found)

    def beat(self, consumer: str) -> None:
        """Say that a consumer lives; to be called every `BEAT_S`. `take`, `renew` and `reclaim` say so too."""
        self._run("beat", consumer)

    def reclaim(self, consumer: str) -> list[str]:
        """Put back, or end as dead, what others hold who are gone, and all whose lease ran out; return the tasks' ids.

        To be called every `BEAT_S` by each consumer. One that has just come back itself gets an empty list.
        """
        return [task_id.decode() for task_id in self._run("reclaim", consumer)]

    def bells(self, ended: Callable[[], bool]) -> Iterator[Ring | None]:
        """Yield a ring for each progress and each end of any task, and None a few times a second, until `ended`.

        The first ring, and the first after a lost connection, is of no task: look at all.
        """
        while not ended():
            subscription: Any = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
            try:
                self._scripts.call(partial(subscription.subscribe, self._scripts.key("bell")))
                yield MISSED
                while not ended():
                    message = subscription.get_message(timeout=_BELL_S)
                    yield None if message is None else Ring(*message["data"].decode().split(" "))
            except (redis.ConnectionError, redis.TimeoutError):
                continue
            finally:
                subscription.close()

    def counts(self) -> Counts:
        """Return how many tasks are where, all at one moment."""

        def read() -> list[Any]:
            with self._redis.pipeline(transaction=True) as pipeline:
                for priority in PRIORITIES:
                    pipeline.xlen(self._scripts.key("stream", priority))
                pipeline.zcard(self._scripts.key("leases"))
                pipeline.hgetall(self._scripts.key("counts"))
                return pipeline.execute()

        *lengths, processing, counted = self._scripts.call(read)
        names = ("completed", "failed", "dead", "cancelled", "submitted", "taken", "reclaimed", "fenced")
        since = {name: int(counted.get(name.encode(), 0)) for name in names}
        return Counts(pending=sum(lengths) - processing, processing=processing, **since)

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Return the tasks that had their last try, oldest first."""
        for entry in self._entries("dead"):
            yield DeadLetter(
                entry[b"task"].decode(), json.loads(entry[b"payload"]), tuple(entry[b"story"].decode().splitlines())
            )

    def log(self) -> Iterator[LogEntry]:
        """Return the ends of tasks, oldest first, as long as they are kept: a task that has two was answered twice."""
        for entry in self._entries("log"):
            state = cast(State, entry[b"state"].decode())
            yield LogEntry(entry[b"task"].decode(), state, int(entry[b"token"]), entry[b"consumer"].decode())

    def _entries(self, stream: str) -> Iterator[dict[bytes, bytes]]:
        key, start = self._scripts.key(stream), "-"
        while page := self._scripts.call(partial(self._redis.xrange, key, start, "+", _PAGE)):
            for _, entry in page:
                yield entry
            start = f"({page[-1][0].decode()}"

    def _run(self, script: str, *arguments: str | bytes | int) -> Any:
        limits = self._limits
        shared = {
            "clock_offset_ms": self.clock_offset_ms,
            **{f"{name}_ms": _ms(getattr(limits, f"{name}_s")) for name in ("lease", "gone", "silent", "hold", "keep")},
            **{name: getattr(limits, name) for name in ("most_tries", "most_waiting", "most_logged", "most_dead")},
        }
        return self._scripts.run(script, shared, *arguments)

    def _wait_for_entry(self, *stream: str, after: bytes, most_s: float) -> None:
        """Return when the stream has an entry later than `after`, or a while has gone by."""
        block_ms = max(1, _ms(min(most_s, _LONGEST_BLOCK_S)))
        self._scripts.call(lambda: self._redis.xread({self._scripts.key(*stream): after}, count=1, block=block_ms))

    def _encode(self, what: str, value: dict[str, Any] | list[Any]) -> bytes:
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise InputError(f"the {what} is no JSON ({error}): give numbers, texts, lists and dicts") from error
        if len(text) > self._limits.most_bytes:
            raise InputError(f"the {what} has {len(text):,} bytes: at most {self._limits.most_bytes:,} are taken")
        return text

    def _outcome(self, task_id: str, found: Sequence[bytes | None]) -> TaskOutcome:
        if found[0] is None:
            raise self._unknown(task_id)
        state, result, why, tries, story = ("" if value is None else value.decode() for value in found)
        answer = json.loads(result) if result else None
        return TaskOutcome(task_id, cast(State, state), answer, why, int(tries), tuple(story.splitlines()))

    def _check_written(self, lease: Lease, written: int) -> None:
        if not written:
            raise FencedError(f"task {lease.task_id} is no longer held by {lease.consumer}: nothing was changed")

    def _unknown(self, task_id: str) -> NotFoundError:
        return NotFoundError(
            f"no task {task_id!r} is known: ends are kept for {self._limits.keep_s:g} s; submit it again"
        )


def count_lost_and_duplicated(submitted: Sequence[str], log: Sequence[LogEntry]) -> tuple[int, int]:
    """Return how many tasks have no end in the log, and how many ends come after a task's first."""
    ended = {entry.task_id for entry in log}
    return len(set(submitted) - ended), len(log) - len(ended)


def _ms(seconds: float) -> int:
    return round(seconds * 1_000)
