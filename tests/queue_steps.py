"""Random steps of a queue and a registry, and a simulated Redis for them whose clock stands until it is set."""

import itertools
import random
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import redis

from qubic_lab.cluster import registry as registry_module
from qubic_lab.cluster import tasks as tasks_module
from qubic_lab.cluster.registry import NodeChanges, Registry
from qubic_lab.cluster.tasks import PRIORITIES, QueueLimits, TaskLease, TaskQueue
from qubic_lab.errors import QubicLabError
from qubic_lab.wire import cluster_pb2 as pb

if TYPE_CHECKING:
    from qubic_lab.simulation.redis import Fsync, SimulatedRedis


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.us = 1_800_000_000_000_000

    def monotonic(self) -> float:
        return self.us / 1e6


def simulated(clock: Clock, fsync: "Fsync" = "always") -> "SimulatedRedis":
    from qubic_lab.simulation.redis import SimulatedRedis

    return SimulatedRedis(lambda: clock.us, clock.monotonic, fsync)


class Direct:
    """A link, and a connection, without a network."""

    def __init__(self) -> None:
        self.is_open, self.messages = True, list[Any]()

    def call(self, work: Callable[[], Any], block_s: float = 0.0) -> Any:
        return work()

    def open(self) -> "Direct":
        return Direct()

    def push(self, message: Any) -> None:
        self.messages.append(message)

    def receive(self, seconds: float) -> Any:
        return self.messages.pop(0) if self.messages else None

    def close(self) -> None:
        self.is_open = False


def client_of(server: "SimulatedRedis") -> Any:
    from qubic_lab.simulation.redis import SimulatedClient

    return SimulatedClient(server, Direct())


def reply_of(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except redis.ResponseError as error:
        return type(error).__name__, str(error)
    except QubicLabError as error:
        return type(error).__name__, str(error).partition(" script: ")[0]


class Queues:
    """Queues and registries, to all of which the same happens; ids count up."""

    def __init__(self, clients: Sequence[Any], name: str, nodes: str, limits: QueueLimits) -> None:
        self.clock = Clock()
        self.name, self.clients = name, clients
        self.queues = [TaskQueue(each, name, limits) for each in clients]
        self.registries = [Registry(each, nodes) for each in clients]
        self._uuids = itertools.count(1)
        self._number = 0
        self.read_ms: list[int] = []
        """When the registry was read."""

    def uuid4(self) -> uuid.UUID:
        return uuid.UUID(int=self._number)

    def same_ids(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the modules take their ids from here."""
        for module in (tasks_module, registry_module):
            monkeypatch.setattr(module, "uuid", self)

    def each(self, call: Callable[[Any], Any], of: list[Any]) -> Any:
        """Call each of the queues or registries; return what they gave."""
        raise NotImplementedError

    def pass_ms(self, ms: int) -> None:
        """Let time go by on the clocks of all."""
        raise NotImplementedError

    def wrote(self, lease: TaskLease | None, found: Any) -> None:
        """Hear what a write by a lease gave."""

    def told(self, node: str, session: str, found: Any) -> None:
        """Hear what a node's heartbeat or leave gave."""


class Alone(Queues):
    """A simulated queue and registry that a model follows; `violations` are what the model did not expect."""

    def __init__(self, limits: QueueLimits) -> None:
        from qubic_lab.simulation.queue_model import RedisModel

        clock = Clock()
        self.server = simulated(clock)
        super().__init__([client_of(self.server)], "tasks", "nodes", limits)
        self.clock = clock
        self.violations: list[str] = []
        self.model = RedisModel(self.server, limits, self._violate)

    def _violate(self, what: str) -> None:
        if "leaves a gap" not in what and "from item" not in what:  # the steps do both
            self.violations.append(what)

    def each(self, call: Callable[[Any], Any], of: list[Any]) -> Any:
        """Call the only one."""
        self._number = next(self._uuids)
        return reply_of(lambda: call(of[0]))

    def pass_ms(self, ms: int) -> None:
        """Let time go by."""
        self.clock.us += ms * 1_000

    def wrote(self, lease: TaskLease | None, found: Any) -> None:
        """A write that was confirmed must have been by the latest lease."""
        assert lease is not None
        task = self.model.queue.tasks.get(lease.task_id.encode())
        if found is None and task is not None and task.token not in (lease.token, 0):
            self.violations.append(f"a write by token {lease.token} was confirmed, the task's is {task.token}")

    def told(self, node: str, session: str, found: Any) -> None:
        """Only the node's latest session may be told that all is well."""
        known = self.model.registry.nodes.get(node.encode())
        if found is None and known is not None and known.session != session.encode():
            self.violations.append(f"node {node} is told that all is well in session {session}")


def _seen(changes: NodeChanges) -> tuple[Any, ...]:
    records = [(each.id, each.age_s, each.registered_s, each.draining) for each in changes.records]
    return changes.at_ms, changes.whole, records, changes.gone


def violation_of(seed: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what a model did not expect of a queue and registry in random steps; empty: nothing."""
    chance = random.Random(seed)
    lease_s, tries = chance.choice((30.0, 6.3)), chance.choice((2, 3))
    limits = QueueLimits(lease_s=lease_s, most_waiting=6, keep_s=3_600.0, most_tries=tries)
    alone, leases, tasks = Alone(limits), list[TaskLease](), ["nothing"]
    alone.same_ids(monkeypatch)
    pauses_ms = chance.choice(((0, 300), (0, 1, 300), (0, 50, 1_000)))  # with few of them times are often equal
    for _ in range(steps):
        if chance.random() < 0.02:
            alone.pass_ms(chance.choice((-3_000_000, -5_000, 5_000, 100_000)))
        alone.pass_ms(chance.choice(pauses_ms))
        try:
            step(alone, chance, leases, tasks)
        except Exception as error:  # of code that no longer understands its own replies
            alone.violations.append(repr(error))
        if alone.violations:
            return alone.violations[0]
    return ""


def step(twins: Queues, chance: random.Random, leases: list[TaskLease], tasks: list[str]) -> None:
    """Do something at random with both."""
    worker, task, number = chance.choice("xyz"), chance.choice(tasks), chance.randint(0, 9)
    key, owner, retry = chance.choice([None, None, "k1", "k2"]), chance.choice(["", "", "owner"]), chance.random() < 0.7
    node, session, state = (
        chance.choice(["n1", "n2", "n3"]),
        f"{chance.randint(1, 9):032x}",
        pb.NodeState(cpu_share=0.5),
    )
    lease = chance.choice(leases[-6:]) if leases else None
    queues, nodes = twins.queues, twins.registries
    what = chance.randrange(18 if lease else 12)
    if what <= 2:
        payload = {"n": number % 2 if key else number}
        most_s = chance.choice([None, None, 0.5])
        found = twins.each(
            lambda queue: queue.submit(payload, PRIORITIES[number % 3], key, {"c": "d"}, patience_s=most_s, held_s=1.0),
            queues,
        )
        tasks += [found] if isinstance(found, str) else []
    elif what <= 4:
        found = twins.each(lambda queue: queue.take(worker), queues)
        leases += [found] if isinstance(found, TaskLease) else []
    elif what == 5:
        for _ in range(chance.choice([1, 1, 3, 7, 36])):
            twins.pass_ms(900)
            twins.each(lambda queue: queue.beat(worker), queues)
    elif what == 6:
        twins.each(lambda queue: sorted(queue.reclaim(worker)), queues)
    elif what == 7:
        call: Any = chance.choice([TaskQueue.cancel, TaskQueue.state, TaskQueue.look, TaskQueue.result])
        twins.each(lambda queue: call(queue, task), queues)
    elif what == 8:
        twins.each(lambda queue: (queue.counts(), list(queue.log()), list(queue.dead_letters())), queues)
    elif what == 9:
        address, identity = f"127.0.0.1:{chance.randint(1, 2)}", chance.choice("ab")
        registration = pb.NodeRegistration(node=node, address=address, identity=identity, type="whole")
        registration.capabilities.slots, registration.capabilities.tokens_per_s = 2, 5.0
        twins.each(lambda registry: registry.register(registration, owner), nodes)
    elif what == 10:
        call = Registry.beat if number else Registry.leave
        twins.told(
            node,
            session,
            twins.each(lambda registry: call(registry, node, session, *([state] if number else [])), nodes),
        )
    elif what == 11:
        twins.each(lambda registry: registry.drain(node, number > 4), nodes)
        read = chance.choice([0, *twins.read_ms[-3:]])
        found = twins.each(lambda registry: _seen(registry.changes(read)), nodes)
        twins.read_ms.append(found[0])
    else:
        start = number % 4
        write: Callable[[Any], Any] = {
            12: lambda queue: queue.complete(
                lease, {"text": "ü" * number}, start, list(range(start, start + number % 3))
            ),
            13: lambda queue: queue.complete(lease, {"text": "ü"}),
            14: lambda queue: queue.progress(lease, start, list(range(start, start + number % 3))),
            15: lambda queue: queue.renew(lease),
            16: lambda queue: queue.fail(lease, "a\nreason", retry, "code"),
            17: lambda queue: queue.fail(lease, "a\nreason", retry=True),
        }[what]
        for _ in range(1 if number else 2):  # again after a lost answer
            twins.wrote(lease, twins.each(write, queues))
