"""The task queue on Redis: every accepted task gets exactly one outcome, whichever process dies.

Every transition is one Lua script in `lua/tasks/`, so that no crash leaves it half done:

    submit → pending → take → processing → complete, fail → completed, failed
                 ↑                  │
                 └── put back, or reclaimed from a lost consumer; after the last try: dead

A consumer is a coordinator's dispatcher. It holds a lease on each task that it has taken. Each lease has a new fencing
token, which every write carries: writes with an old token change nothing. All times come from Redis's clock, whose
steps are left out (`lua/base.lua`).

The known part of an answer is kept as progress: clients that wait for the task read it, and the next try continues from
it. A notification (Redis publish and subscribe) is sent when a task has progress or an outcome. Notifications may be
lost with the connection, so they say when to read, not what.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated, Any, Literal, cast

import redis
from pydantic import Field

from qubic_lab.cluster.redis_calls import PATIENCE_S, Command, Scripts, Steps, Word, scripted
from qubic_lab.errors import BusyError, ConflictError, FencedError, FullError, InputError, NotFoundError, check_choice

Priority = Literal["high", "normal", "low"]
State = Literal["pending", "processing", "completed", "failed", "dead", "cancelled"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
FINAL: tuple[State, ...] = ("completed", "failed", "dead", "cancelled")
BEAT_S = 1.0
"""Interval at which a consumer sends heartbeats and reclaims."""
_LONGEST_BLOCK_S = 1.0
"""Limit of one blocking read, well below the connection's own timeout."""
_PAGE = 1_000
_NOTIFICATION_S = 0.25
_SIZES = ("most_tries", "most_waiting", "most_memory_bytes", "most_logged", "most_dead")
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_OUTCOME = ("state", "result", "why", "code", "tries", "story")


@dataclass(frozen=True)
class QueueLimits:
    """Limits of leases, consumers and sizes.

    A consumer counts as lost `gone_s` after its last heartbeat. A consumer without a heartbeat for `silent_s` had
    itself lost the connection to Redis; it waits `hold_s` before it reclaims, because the others may be reconnecting as
    well. Results and idempotency keys are kept for `keep_s` after the task has ended. Calls wait `patience_s` for a
    lost connection. `most_waiting` limits the pending tasks, `most_bytes` a payload or progress, `most_result_bytes` a
    result, and `most_logged` and `most_dead` (approximately) the entries of the log and the dead letters. While Redis
    uses more than `most_memory_bytes` no task is accepted. `silent_s` < `gone_s` < `lease_s`.
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
    most_result_bytes: int = 2**26
    most_memory_bytes: int = 2**30
    most_logged: int = 100_000
    most_dead: int = 1_000


@dataclass(frozen=True)
class TaskLease:
    """The right to work on a task and to write its outcome; `attempt` counts from 1, `carried` as for `submit`."""

    task_id: str
    payload: dict[str, Any]
    token: int
    attempt: int
    consumer: str
    carried: Mapping[str, str]


@dataclass(frozen=True)
class TaskOutcome:
    """The outcome of a task: a result if `state` is completed, otherwise the reason in `why`.

    `code` is the name that programs know this reason by; empty: it has none. `story` has one line for each lost try.
    """

    task_id: str
    state: State
    result: dict[str, Any] | None
    why: str
    attempts: int
    story: tuple[str, ...]
    code: str = ""


@dataclass(frozen=True)
class TaskProgress:
    """New items of a task's progress, the position to continue reading from, and the outcome if there is one."""

    items: list[Any]
    after: int
    outcome: TaskOutcome | None


@dataclass(frozen=True)
class TaskNotification:
    """A task has progress or an outcome; `what` is "progress" or a final state.

    An empty `task_id` says that notifications may have been lost.
    """

    task_id: str
    what: str


MISSED = TaskNotification("", "progress")


@dataclass(frozen=True)
class DeadLetter:
    """A task whose last try was lost; `story` has one line for each try."""

    task_id: str
    payload: dict[str, Any]
    story: tuple[str, ...]


@dataclass(frozen=True)
class LogEntry:
    """An outcome of a task as the script logged it."""

    task_id: str
    state: State
    token: int
    consumer: str


@dataclass(frozen=True)
class SavedKey:
    """A key of Redis, the time that it still lives (-1: for ever), and its content as Redis writes it."""

    key: bytes
    lives_ms: int
    content: bytes


@dataclass(frozen=True)
class TaskCounts:
    """Numbers of tasks: pending and processing now, the others since the queue was created."""

    pending: Annotated[int, Field(description="waiting now")]
    processing: Annotated[int, Field(description="given to nodes now")]
    completed: Annotated[int, Field(description="answered")]
    failed: Annotated[int, Field(description="wrong themselves")]
    dead: Annotated[int, Field(description="with their last attempt lost")]
    cancelled: Annotated[int, Field(description="before their end")]
    submitted: Annotated[int, Field(description="the sum of these six")]
    taken: Annotated[int, Field(description="started attempts")]
    reclaimed: Annotated[int, Field(description="leases that were taken back from lost consumers")]
    fenced: Annotated[int, Field(description="refused writes of lost consumers")]


class TaskQueue:
    """A named queue on a Redis connection from `connect`; threads may share it.

    All methods wait up to `limits.patience_s` for a lost connection to come back.

    Raises, in every method:
        QubicLabError: Redis cannot be reached in that time, or refuses (out of memory, disk full).
    """

    def __init__(self, client: "redis.Redis", name: str = "tasks", limits: QueueLimits | None = None) -> None:
        self._limits = limits or QueueLimits()
        self._scripts = Scripts(client, "tasks", name, self._limits.patience_s)
        self._redis = client
        self.clock_offset_ms = 0
        """For tests: added to the queue's clock."""

    @scripted
    def submit(
        self,
        payload: dict[str, Any],
        priority: Priority = "normal",
        idempotency_key: str | None = None,
        carried: Mapping[str, str] | None = None,
        asker: str = "",
        new_id: str | None = None,
        patience_s: float | None = None,
        held_s: float | None = None,
        free: int = 0,
    ) -> Steps[str]:
        """Add a task at the end of its priority and return its id; a repeated key returns the id of the first task.

        What is `carried` comes with its leases, and is not compared when a key is repeated. The `asker` is who asks for
        the client, as `cancel` knows it.

        Raises:
            InputError: the priority is unknown, or the payload is not JSON or too large.
            ConflictError: the key has another payload.
            BusyError: too many tasks are pending, or it would wait for longer than `patience_s` if as many as are
                processed, and `free` more, are held for `held_s` each; `retry_after_s` says when to try again.
            FullError: Redis uses too much memory.
        """
        check_choice("priority", priority, PRIORITIES)
        if idempotency_key == "":
            raise InputError("the idempotency key is empty: give a unique one, or None")
        new = new_id or uuid.uuid4().hex
        text, beside = self._encode("payload", payload), json.dumps(dict(carried or {}))
        # Without a key the id serves as one, so that a call repeated after a lost answer adds no second task.
        times = ("" if seconds is None else _ms(seconds) for seconds in (patience_s, held_s))
        what, task_id = yield self._script(
            "submit", new, text, priority, idempotency_key or new, beside, asker, *times, free
        )
        if what == b"busy":
            raise BusyError(
                f"{self._limits.most_waiting} tasks are waiting: try again after {self._limits.retry_after_s:g} s",
                self._limits.retry_after_s,
            )
        if what == b"late":
            wait_s = int(task_id) / 1_000
            why = f"it would wait for about {wait_s:.1f} s, and may wait for {patience_s:g} s: try again later"
            raise BusyError(why, max(self._limits.retry_after_s, wait_s - (patience_s or 0.0)))
        if what == b"full":
            raise FullError(
                f"Redis uses more than {self._limits.most_memory_bytes:,} bytes: try again later; answers are kept for "
                f"{self._limits.keep_s:g} s",
                self._limits.retry_after_s,
            )
        if what == b"differs":
            raise ConflictError("the idempotency key was used with another payload: give a new key")
        return cast(bytes, task_id).decode()

    @scripted
    def take(self, consumer: str, block_s: float = 0.0) -> Steps[TaskLease | None]:
        """Lease the oldest task of the highest priority; return None if there is none within `block_s`.

        If the answer is lost with the connection, the lease runs out and the task is tried again.
        """
        deadline = time.monotonic() + block_s
        while True:
            found = yield self._script("take", consumer)
            if len(found) > 1:
                task_id, payload, token, attempt, beside = found
                carried = json.loads(beside or "{}")  # none with a task of an earlier version
                return TaskLease(task_id.decode(), json.loads(payload), token, attempt, consumer, carried)
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not (yield from self._wait_for_entry("wake", after=found[0], most_s=left_s)):
                return None

    @scripted
    def renew(self, lease: TaskLease) -> Steps[None]:
        """Extend a lease to `limits.lease_s` from now; called on each token or keep-alive of the node.

        Raises:
            FencedError: the task was taken back or cancelled: stop working on it.
        """
        self._check_written(lease, (yield self._script("renew", lease.task_id, lease.token, lease.consumer)))

    @scripted
    def progress(self, lease: TaskLease, start: int, items: Sequence[Any]) -> Steps[None]:
        """Add items of the answer from item number `start` on, and renew the lease.

        Items are JSON values such as tokens. They are kept if the try is lost; the next try continues after them.

        Raises:
            FencedError, InputError: as for `complete`.
        """
        arguments = (lease.task_id, lease.token, lease.consumer, start, len(items), self._encode_items(items))
        self._check_written(lease, (yield self._script("progress", *arguments)))

    @scripted
    def complete(
        self, lease: TaskLease, result: dict[str, Any], start: int = 0, items: Sequence[Any] = ()
    ) -> Steps[None]:
        """Write the result, and the last items of the answer as `progress` does.

        Raises:
            FencedError: the task was taken back or cancelled; nothing was changed.
            InputError: the result is not JSON or too large; the lease is still held.
        """
        text = self._encode("result", result)
        yield from self._finish(lease, "completed", "result", text, "", start, len(items), self._encode_items(items))

    @scripted
    def fail(self, lease: TaskLease, why: str, retry: bool = False, code: str = "") -> Steps[None]:
        """End a try without an answer: for good if the task itself is at fault, or put the task back with `retry`.

        A task that is put back keeps its place in the queue. After its last try it is dead and gets a dead letter.

        Raises:
            FencedError: the task was taken back or cancelled; nothing was changed.
        """
        line = " ".join(why.split())
        if retry:
            self._check_written(lease, (yield self._script("put_back", lease.task_id, lease.token, line)))
        else:
            yield from self._finish(lease, "failed", "why", line, code, 0, 0, "[]")

    @scripted
    def cancel(self, task_id: str, asker: str = "") -> Steps[bool]:
        """Cancel a task that has not ended; return whether it is cancelled now.

        With `asker` it is because the client has left: the task goes on if anybody else was the last one to ask for it,
        as the client has only gone elsewhere; and a client that comes back with its key gets a new task.

        Raises:
            NotFoundError: there is no such task, or its outcome is no longer kept.
        """
        state = yield self._script("cancel", task_id, asker)
        if not state:
            raise self._unknown(task_id)
        return cast(bytes, state) == b"cancelled"

    def forget(self, task_id: str) -> None:
        """Delete a task that has ended, and its result, before its time: whoever may ask for it has it."""
        keys = [self._scripts.key(kind, task_id) for kind in ("task", "done", "progress", "key")]  # no key: its id
        self._scripts.call(lambda: self._redis.delete(*keys))

    def state(self, task_id: str) -> State:
        """Return the state of a task; a NotFoundError if there is no such task, or its outcome is no longer kept."""
        found = self._scripts.call(lambda: self._redis.hget(self._scripts.key("task", task_id), "state"))
        if found is None:
            raise self._unknown(task_id)
        return cast(State, found.decode())

    def look(self, task_id: str, after: int = 0) -> TaskProgress:
        """Return a task's progress after its first `after` parts, and its outcome if it has one.

        Raises:
            NotFoundError: there is no such task, or its outcome is no longer kept.
        """

        def read() -> list[Any]:
            with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.lrange(self._scripts.key("progress", task_id), after, -1)
                pipeline.hmget(self._scripts.key("task", task_id), _OUTCOME)
                return pipeline.execute()

        parts, found = self._scripts.call(read)
        outcome = self._outcome(task_id, found)
        items = [item for part in parts for item in json.loads(part)]
        return TaskProgress(items, after + len(parts), outcome if outcome.state in FINAL else None)

    def result(self, task_id: str, wait_s: float = 0.0) -> TaskOutcome | None:
        """Return the outcome of a task, or None if it has none within `wait_s`.

        Raises:
            NotFoundError: there is no such task, or its outcome is no longer kept.
        """
        deadline = time.monotonic() + wait_s
        while self.state(task_id) not in FINAL:
            if (left_s := deadline - time.monotonic()) <= 0:
                return None
            self._wait("done", task_id, after=b"0-0", most_s=left_s)
        found = self._scripts.call(lambda: self._redis.hmget(self._scripts.key("task", task_id), _OUTCOME))
        return self._outcome(task_id, found)

    def beat(self, consumer: str) -> None:
        """Send a consumer's heartbeat, every `BEAT_S`; `take`, `renew` and `reclaim` count as heartbeats too."""
        self._script("beat", consumer).run()

    @scripted
    def reclaim(self, consumer: str) -> Steps[list[str]]:
        """Take back the tasks of lost consumers and of expired leases; return their ids.

        They are put back, or end as dead. Each consumer calls this every `BEAT_S`; one that has itself just reconnected
        gets an empty list.
        """
        return [task_id.decode() for task_id in (yield self._script("reclaim", consumer))]

    def notifications(self, ended: Callable[[], bool]) -> Iterator[TaskNotification | None]:
        """Yield a notification for each progress and outcome of any task, and None a few times a second, until `ended`.

        The first one, and the first one after a lost connection, is MISSED.
        """
        while not ended():
            subscription: Any = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
            try:
                self._scripts.call(partial(subscription.subscribe, self._scripts.key("bell")))
                yield MISSED
                while not ended():
                    message = subscription.get_message(timeout=_NOTIFICATION_S)
                    yield None if message is None else TaskNotification(*message["data"].decode().split(" "))
            except (redis.ConnectionError, redis.TimeoutError):
                continue
            finally:
                subscription.close()

    def counts(self) -> TaskCounts:
        """Return the numbers of tasks at one moment."""

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
        return TaskCounts(pending=sum(lengths) - processing, processing=processing, **since)

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Return the dead letters, oldest first."""
        for entry in self._entries("dead"):
            yield DeadLetter(
                entry[b"task"].decode(), json.loads(entry[b"payload"]), tuple(entry[b"story"].decode().splitlines())
            )

    def log(self) -> Iterator[LogEntry]:
        """Return the ends of tasks, oldest first, as long as they are kept: a task that has two was answered twice."""
        for entry in self._entries("log"):
            state = cast(State, entry[b"state"].decode())
            yield LogEntry(entry[b"task"].decode(), state, int(entry[b"token"]), entry[b"consumer"].decode())

    def save(self) -> list[SavedKey]:
        """Return all that the queue holds, of one moment; Redis answers nobody else meanwhile."""
        found = self._script("save").run()
        return [SavedKey(*found[place : place + 3]) for place in range(0, len(found), 3)]

    def restore(self, saved: Sequence[SavedKey]) -> None:
        """Write what `save` has returned in place of all that the queue holds, at once.

        Raises:
            QubicLabError: a later version of Redis saved it.
        """

        def write() -> None:
            with self._redis.pipeline(transaction=True) as pipeline:
                for key in self._redis.scan_iter(f"{self._scripts.prefix}:*", _PAGE):
                    pipeline.delete(key)
                for each in saved:
                    pipeline.restore(each.key, max(0, each.lives_ms), each.content)
                pipeline.execute()

        self._scripts.call(write)

    def _entries(self, stream: str) -> Iterator[dict[bytes, bytes]]:
        key, start = self._scripts.key(stream), "-"
        while page := self._scripts.call(partial(self._redis.xrange, key, start, "+", _PAGE)):
            for _, entry in page:
                yield entry
            start = f"({page[-1][0].decode()}"

    def _script(self, script: str, *arguments: Word) -> Command:
        return self._scripts.command(script, _settings(self._limits, self.clock_offset_ms), *arguments)

    @scripted
    def _wait(self, *stream: str, after: bytes, most_s: float) -> Steps[bool]:
        return (yield from self._wait_for_entry(*stream, after=after, most_s=most_s))

    def _wait_for_entry(self, *stream: str, after: bytes, most_s: float) -> Steps[bool]:
        """Wait for at most `most_s` until a stream has an entry later than `after`; return whether it may have one."""
        key, block_ms = self._scripts.key(*stream), max(1, _ms(min(most_s, _LONGEST_BLOCK_S)))
        read = partial(self._redis.xread, {key: after}, count=1, block=block_ms)
        words = ("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", key, after)
        found = yield Command(words, partial(self._scripts.call, read), waits=True)
        return bool(found) or most_s > _LONGEST_BLOCK_S

    def _finish(self, lease: TaskLease, *arguments: Word) -> Steps[None]:
        self._check_written(lease, (yield self._script("finish", lease.task_id, lease.token, *arguments)))

    def _encode_items(self, items: Sequence[Any]) -> bytes:
        return self._encode("progress", list(items))

    def _encode(self, what: str, value: dict[str, Any] | list[Any]) -> bytes:
        try:
            text = _JSON.encode(value).encode()
        except (TypeError, ValueError) as error:
            raise InputError(f"the {what} is not JSON ({error}): give numbers, texts, lists and dicts") from error
        most = self._limits.most_result_bytes if what == "result" else self._limits.most_bytes
        if len(text) > most:
            raise InputError(
                f"the {what} has {len(text):,} bytes: at most {most:,} are allowed, so give a shorter prompt, or ask "
                "for fewer log-probabilities"
            )
        return text

    def _outcome(self, task_id: str, found: Sequence[bytes | None]) -> TaskOutcome:
        if found[0] is None:
            raise self._unknown(task_id)
        state, result, why, code, tries, story = ("" if value is None else value.decode() for value in found)
        answer = json.loads(result) if result else None
        return TaskOutcome(task_id, cast(State, state), answer, why, int(tries), tuple(story.splitlines()), code)

    def _check_written(self, lease: TaskLease, written: int) -> None:
        if not written:
            raise FencedError(f"task {lease.task_id} is no longer held by {lease.consumer}: nothing was changed")

    def _unknown(self, task_id: str) -> NotFoundError:
        return NotFoundError(
            f"no task {task_id!r} is known: outcomes are kept for {self._limits.keep_s:g} s; submit it again"
        )


def count_lost_and_duplicated(submitted: Sequence[str], log: Sequence[LogEntry]) -> tuple[int, int]:
    """Return how many tasks have no outcome in the log, and how many further outcomes tasks have."""
    ended = {entry.task_id for entry in log}
    return len(set(submitted) - ended), len(log) - len(ended)


@lru_cache(maxsize=8)
def _settings(limits: QueueLimits, clock_offset_ms: int) -> str:
    """Return what each script is told."""
    return json.dumps(
        {
            "clock_offset_ms": clock_offset_ms,
            # More than the silence that a consumer notices in itself, less than that which others take for its end.
            "most_step_ms": _ms((limits.silent_s + limits.gone_s) / 2),
            **{f"{name}_ms": _ms(getattr(limits, f"{name}_s")) for name in ("lease", "gone", "silent", "hold", "keep")},
            **{name: getattr(limits, name) for name in _SIZES},
        }
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1_000)
