"""What the scripts of the queue and the registry must answer: a model that follows each command at the simulated Redis.

It is written from what `cluster/tasks.py` and `cluster/registry.py` promise, not from the scripts: a task has one end;
a lease ends by itself, by its time or with its consumer, and never earlier; only the latest token writes; tokens come
in order and once. Time is that of `lua/base.lua`: it only goes forward, and a step of the clock counts little.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import redis

from qubic_lab.cluster.redis_calls import _source
from qubic_lab.cluster.registry import REMOVED_S
from qubic_lab.cluster.tasks import FINAL, PRIORITIES, QueueLimits
from qubic_lab.simulation.redis import SimulatedRedis, sha_of

QUEUE, REGISTRY = b"{tasks}", b"{nodes}"
_SCRIPTS = {
    "tasks": ("submit", "take", "renew", "progress", "finish", "put_back", "cancel", "beat", "reclaim"),
    "registry": ("register", "beat", "leave", "drain", "list"),
}
_ENDS = tuple(state.encode() for state in FINAL)


class _Clock:
    """The time of one prefix: what passes on Redis's clock between two scripts, within 0 and `most_step_ms`."""

    def __init__(self, most_step_ms: int) -> None:
        self._most_step_ms = most_step_ms
        self._wall_ms: int | None = None
        self.ms = 0

    def read(self, wall_ms: int) -> int:
        if self._wall_ms is None:
            self.ms = wall_ms
        else:
            self.ms += max(0, min(wall_ms - self._wall_ms, self._most_step_ms))
        self._wall_ms = wall_ms
        return self.ms


@dataclass(slots=True)
class _Task:
    task_id: bytes
    key: bytes
    payload: bytes
    carried: bytes
    asker: bytes
    priority: int
    sequence: int
    state: bytes = b"pending"
    token: int = 0
    tries: int = 0
    consumer: bytes = b""
    ends_ms: int = 0
    items: list[Any] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    kept_until_ms: int = 0

    @property
    def is_final(self) -> bool:
        return self.state in _ENDS


class QueueModel:
    """Follows the queue; `violate` gets what the real one must not have answered.

    `last_wake` reads the id of the last entry by which those who wait for a task are woken.
    """

    def __init__(self, limits: QueueLimits, violate: Callable[[str], None], last_wake: Callable[[], Any]) -> None:
        self.tasks: dict[bytes, _Task] = {}
        self.processing: dict[bytes, _Task] = {}
        self._limits, self._violate, self._last_wake = limits, violate, last_wake
        self._woken, self._must_wake = None, False
        self._lease_ms, self._gone_ms, self._silent_ms, self._hold_ms, self._keep_ms = (
            round(1_000 * seconds)
            for seconds in (limits.lease_s, limits.gone_s, limits.silent_s, limits.hold_s, limits.keep_s)
        )
        self._clock = _Clock(round(500 * (limits.silent_s + limits.gone_s)))
        self._keys: dict[bytes, _Task] = {}
        self._pending: tuple[dict[bytes, _Task], ...] = tuple({} for _ in PRIORITIES)
        self._beats: dict[bytes, int] = {}
        self._back: dict[bytes, int] = {}
        self._sequence = self._token = 0
        self._latest_ms = 0
        self._forgotten = False  # by us, while Redis may still know it: its clock was set back before it looked

    def script(self, name: str, arguments: tuple[bytes, ...], reply: Any, wall_ms: int) -> None:
        """Follow a script."""
        self._latest_ms = max(self._latest_ms, wall_ms)
        expected = getattr(self, f"_{name}")(*arguments, wall_ms=wall_ms, reply=reply)
        if expected is not None and reply != expected:
            self._violate(f"{name}{arguments} answered {reply!r}, not {expected!r}")
        if self._must_wake:
            before, self._woken, self._must_wake = self._woken, self._last_wake(), False
            if self._woken == before:
                self._violate(f"after {name}{arguments} a task waits, and nobody was woken")

    def read(self, command: tuple[bytes, ...], reply: Any, wall_ms: int) -> None:
        """Follow a read of one task."""
        self._latest_ms = max(self._latest_ms, wall_ms)
        kind, _, task_id = command[1].removeprefix(QUEUE + b":").partition(b":")
        task = self.tasks.get(task_id)
        if task is None or self._may_be_gone(task):
            return
        if command[0] == b"LRANGE" and kind == b"progress":
            if reply != task.parts[int(command[2]) :]:
                self._violate(f"progress of {task_id!r} is {reply!r}, not {task.parts[int(command[2]) :]!r}")
        elif command[0] in (b"HGET", b"HMGET") and kind == b"task":
            state = reply if command[0] == b"HGET" else reply[0]
            if state != task.state:
                self._violate(f"task {task_id!r} is {state!r}, not {task.state!r}")
        elif command[0] == b"DEL" and kind == b"task":
            if not task.is_final:
                self._violate(f"task {task_id!r} was deleted before its end")
            self._forget(task)

    def _may_be_gone(self, task: _Task) -> bool:
        return task.is_final and self._latest_ms >= task.kept_until_ms

    def _beat_of(self, consumer: bytes, wall_ms: int) -> int:
        now = self._clock.read(wall_ms)
        last = self._beats.get(consumer)
        if last is not None and now - last > self._silent_ms:
            self._back[consumer] = now
        self._beats[consumer] = now
        return now

    def _holds(self, task_id: bytes, token: bytes) -> _Task | None:
        task = self.processing.get(task_id)
        return task if task is not None and task.token == int(token) else None

    def _end(self, task: _Task, state: bytes, wall_ms: int) -> None:
        if task.is_final:
            self._violate(f"task {task.task_id!r} ends as {state!r} after {task.state!r}")
        self.processing.pop(task.task_id, None)
        self._pending[task.priority].pop(task.task_id, None)
        task.state, task.kept_until_ms = state, wall_ms + self._keep_ms

    def _lose_try(self, task: _Task, wall_ms: int) -> None:
        if task.tries >= self._limits.most_tries:
            self._end(task, b"dead", wall_ms)
            return
        del self.processing[task.task_id]
        task.state = b"pending"
        self._wait(task)

    def _wait(self, task: _Task) -> None:
        self._pending[task.priority][task.task_id] = task
        self._must_wake = True

    # One method for each script: its arguments, and what it must answer; None: anything.

    def _submit(
        self,
        task_id: bytes,
        payload: bytes,
        priority: bytes,
        key: bytes,
        carried: bytes,
        asker: bytes,
        patience: bytes,
        held: bytes,
        free: bytes,
        *,
        wall_ms: int,
        reply: Any,
    ) -> Any:
        self._clock.read(wall_ms)
        known = self._keys.get(key)
        if known is not None and not (self._may_be_gone(known) and reply[0] not in (b"known", b"differs")):
            known.asker = asker
            return [b"known" if known.payload == payload else b"differs", known.task_id]
        if reply[0] in (b"known", b"differs") and reply[1] not in self.tasks and self._forgotten:
            return None
        if sum(map(len, self._pending)) >= self._limits.most_waiting:
            return [b"busy", b""]
        if reply[0] == b"full" or (reply[0] == b"late" and patience and int(reply[1]) > int(patience)):
            return None  # by the memory that Redis uses; by the tasks before it
        self._sequence += 1
        place = PRIORITIES.index(priority.decode())
        task = _Task(task_id, key, payload, carried, asker, place, self._sequence)
        self.tasks[task_id] = self._keys[key] = task
        self._wait(task)
        if len(self.tasks) > 2 * self._limits.most_waiting and self._sequence % self._limits.most_waiting == 0:
            self._forget_old()
        return [b"new", task_id]

    def _forget_old(self) -> None:
        for task in [task for task in self.tasks.values() if self._may_be_gone(task)]:
            self._forgotten = True
            self._forget(task)

    def _forget(self, task: _Task) -> None:
        del self.tasks[task.task_id]
        if self._keys.get(task.key) is task:
            del self._keys[task.key]

    def _take(self, consumer: bytes, *, wall_ms: int, reply: Any) -> Any:
        now = self._beat_of(consumer, wall_ms)
        pending = next((each for each in self._pending if each), None)
        if pending is None:
            if len(reply) != 1:
                self._violate(f"take by {consumer!r} answered {reply!r} with nothing waiting")
            return None
        if len(reply) == 1:
            return [b"a task"]
        task = min(pending.values(), key=lambda task: task.sequence)
        del pending[task.task_id]
        self._token += 1
        task.state, task.token, task.consumer, task.ends_ms = b"processing", self._token, consumer, now + self._lease_ms
        task.tries += 1
        self.processing[task.task_id] = task
        return [task.task_id, task.payload, task.token, task.tries, task.carried]

    def _beat(self, consumer: bytes, *, wall_ms: int, reply: Any) -> Any:
        self._beat_of(consumer, wall_ms)

    def _renew(self, task_id: bytes, token: bytes, consumer: bytes, *, wall_ms: int, reply: Any) -> Any:
        now = self._beat_of(consumer, wall_ms)
        task = self._holds(task_id, token)
        if task is not None:
            task.ends_ms = now + self._lease_ms
        return int(task is not None)

    def _progress(
        self,
        task_id: bytes,
        token: bytes,
        consumer: bytes,
        start: bytes,
        count: bytes,
        text: bytes,
        *,
        wall_ms: int,
        reply: Any,
    ) -> Any:
        if not self._renew(task_id, token, consumer, wall_ms=wall_ms, reply=reply):
            return 0
        if isinstance(reply, redis.ResponseError):
            self._violate(f"progress of {task_id!r} leaves a gap: {reply}")
            return None
        self._add(self.tasks[task_id], int(start), text)
        return 1

    def _add(self, task: _Task, place: int, text: bytes) -> None:
        items = json.loads(text)
        if place == len(task.items) and items:
            task.items += items
            task.parts.append(text)
        elif task.items[place : place + len(items)] != items:
            self._violate(f"progress of {task.task_id!r} from item {place} is {items!r}, not {task.items[place:]!r}")

    def _finish(
        self,
        task_id: bytes,
        token: bytes,
        state: bytes,
        name: bytes,
        text: bytes,
        code: bytes,
        start: bytes,
        count: bytes,
        items: bytes,
        *,
        wall_ms: int,
        reply: Any,
    ) -> Any:
        task = self.tasks.get(task_id)
        if task is None and self._forgotten:
            return None
        if task is not None and task.state == state and task.token == int(token):
            return None if self._may_be_gone(task) else 1
        if (held := self._holds(task_id, token)) is None:
            return 0
        if isinstance(reply, redis.ResponseError):
            self._violate(f"the end of {task_id!r} leaves a gap: {reply}")
            return None
        self._add(held, int(start), items)
        self._end(held, state, wall_ms)
        return 1

    def _put_back(self, task_id: bytes, token: bytes, why: bytes, *, wall_ms: int, reply: Any) -> Any:
        if (held := self._holds(task_id, token)) is None:
            return 0
        self._lose_try(held, wall_ms)
        return 1

    def _cancel(self, task_id: bytes, asker: bytes, *, wall_ms: int, reply: Any) -> Any:
        task = self.tasks.get(task_id)
        if task is None or (self._may_be_gone(task) and reply == b""):
            return None if self._forgotten else b""
        if not task.is_final and asker in (b"", task.asker):
            self._end(task, b"cancelled", wall_ms)
            if asker:
                del self._keys[task.key]
        return task.state

    def _reclaim(self, consumer: bytes, *, wall_ms: int, reply: Any) -> Any:
        now = self._beat_of(consumer, wall_ms)
        if now - self._back.get(consumer, now - self._hold_ms) < self._hold_ms:
            return []
        gone = {name for name, beat_ms in self._beats.items() if beat_ms < now - self._gone_ms}
        lost = [task for task in self.processing.values() if task.ends_ms < now or task.consumer in gone]
        for task in lost:
            self._lose_try(task, wall_ms)
        for name in gone:
            del self._beats[name]
            self._back.pop(name, None)
        ids = sorted(task.task_id for task in lost)
        return reply if sorted(reply) == ids else ids


@dataclass(slots=True)
class _Node:
    session: bytes
    owner: bytes
    address: bytes
    identity: bytes
    registration: bytes
    since_ms: int
    beat_ms: int
    draining: bytes
    state: bytes = b""


class RegistryModel:
    """Follows the registry."""

    def __init__(self, violate: Callable[[str], None]) -> None:
        self.nodes: dict[bytes, _Node] = {}
        self._changed_ms: dict[bytes, int] = {}  # when a node was told to drain, or has gone
        self._violate = violate
        self._removed_ms = round(REMOVED_S * 1_000)
        self._clock = _Clock(self._removed_ms // 2)

    def script(self, name: str, arguments: tuple[bytes, ...], reply: Any, wall_ms: int) -> None:
        """Follow a script."""
        expected = getattr(self, f"_{name}")(*arguments, wall_ms=wall_ms)
        if reply != expected:
            self._violate(f"registry's {name}{arguments} answered {reply!r}, not {expected!r}")

    def _check(self, node: bytes, session: bytes) -> bytes:
        known = self.nodes.get(node)
        return b"unknown" if known is None else b"ok" if known.session == session else b"other"

    def _register(
        self, node: bytes, session: bytes, owner: bytes, address: bytes, identity: bytes, text: bytes, *, wall_ms: int
    ) -> Any:
        now, known = self._clock.read(wall_ms), self.nodes.get(node)
        if known is not None and now - known.beat_ms < self._removed_ms:
            if (known.owner, known.identity) != (owner, identity):
                return [b"", known.address]
            session = known.session if known.address == address else session
        draining = b"0" if known is None else known.draining
        self.nodes[node] = _Node(session, owner, address, identity, text, now, now, draining)
        return [session, address]

    def _beat(self, node: bytes, session: bytes, state: bytes, *, wall_ms: int) -> Any:
        if (found := self._check(node, session)) == b"ok":
            self.nodes[node].state, self.nodes[node].beat_ms = state, self._clock.read(wall_ms)
        return found

    def _leave(self, node: bytes, session: bytes, *, wall_ms: int) -> Any:
        if (found := self._check(node, session)) == b"ok":
            self._forget(node, self._clock.read(wall_ms))
        return found

    def _forget(self, node: bytes, now: int) -> None:
        del self.nodes[node]
        self._changed_ms[node] = now

    def _drain(self, node: bytes, draining: bytes, *, wall_ms: int) -> Any:
        if node not in self.nodes:
            return b"unknown"
        self.nodes[node].draining, self._changed_ms[node] = draining, self._clock.read(wall_ms)
        return b"ok"

    def _list(self, since: bytes, *, wall_ms: int) -> Any:
        now, since_ms = self._clock.read(wall_ms), int(since)
        oldest = now - self._removed_ms
        for name in [name for name, node in self.nodes.items() if node.beat_ms <= oldest]:
            self._forget(name, now)
        changed = sorted((at_ms, name) for name, at_ms in self._changed_ms.items() if since_ms <= at_ms > oldest)
        if whole := not oldest < since_ms <= now:
            since_ms, changed = 0, []
        beating = sorted((node.beat_ms, name) for name, node in self.nodes.items() if node.beat_ms >= since_ms)
        names = [name for _, name in (*beating, *changed) if name in self.nodes]
        found = [self.nodes[name] for name in dict.fromkeys(names)]
        nodes = [
            [each.registration, each.state, now - each.beat_ms, now - each.since_ms, each.draining] for each in found
        ]
        return [now, nodes, [name for _, name in changed if name not in self.nodes], int(whole)]


class RedisModel:
    """Follows all commands at a simulated server from now on."""

    def __init__(self, server: SimulatedRedis, limits: QueueLimits, violate: Callable[[str], None]) -> None:
        def last_wake() -> Any:
            return server.execute("XINFO", "STREAM", QUEUE + b":wake")[3]

        self.queue, self.registry = QueueModel(limits, violate, last_wake), RegistryModel(violate)
        server.seen = self.see
        models: dict[str, Any] = {"tasks": self.queue, "registry": self.registry}
        self._scripts = {
            sha_of(_source(folder, name)): (models[folder], name)
            for folder, names in _SCRIPTS.items()
            for name in names
        }

    def see(self, command: tuple[bytes, ...], reply: Any, time_us: int) -> None:
        """Follow a command; `reply` may be the error that it gave."""
        if command[0] == b"EVALSHA":
            known = self._scripts.get(command[1])
            if known is not None and (not isinstance(reply, redis.RedisError) or "progress" in str(reply)):
                known[0].script(known[1], command[5:], reply, time_us // 1_000)
        elif len(command) > 1 and command[1].startswith(QUEUE) and not isinstance(reply, redis.RedisError):
            self.queue.read(command, reply, time_us // 1_000)
