"""A simulated cluster: its parts, its clients, and the faults that strike it.

`World.run` runs a seed and returns a `Report`. A checker adds itself to `World.checkers`; its `see` gets each event,
its `end` is called when all has ended; both call `World.violate` with what must never be. `World.redis.server` has the
data, `World.coordinators` and `World.nodes` the living parts.
"""

import gc
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from qubic_lab.cluster.balance import BALANCERS
from qubic_lab.cluster.tasks import QueueLimits, TaskQueue
from qubic_lab.simulation import seams
from qubic_lab.simulation.clients import Clients
from qubic_lab.simulation.event_log import EventLog
from qubic_lab.simulation.faults import Fault, plan_faults
from qubic_lab.simulation.loop import Process, Scheduler
from qubic_lab.simulation.network import Network
from qubic_lab.simulation.places import CoordinatorPlace, NodePlace, Place, RedisPlace
from qubic_lab.simulation.proofs import Proofs
from qubic_lab.simulation.redis import SimulatedClient
from qubic_lab.simulation.striking import Striker

COORDINATORS = ("coordinator-1", "coordinator-2", "coordinator-3")
NODES = tuple(f"node-{number}" for number in range(1, 9))
RATE = 5.0
"""Requests a second."""
ENDS_WITHIN_S = 180.0
"""After the last fault everything ends within this time."""
_SLICE_S = 30.0
_COLLECT_S = 600.0


class Violation(Exception):
    """Something happened that must never happen; the text says what, and when."""


class Checker(Protocol):
    """Looks for violations in what happens."""

    def see(self, at_s: float, who: str, what: str) -> None:
        """Look at an event."""

    def end(self) -> None:
        """Look at the whole, when all has ended."""


@dataclass(frozen=True)
class Options:
    """What differs between runs beside their faults; it follows from the seed."""

    token_s: float
    slots: int
    balancer: str

    @classmethod
    def of(cls, seed: int) -> "Options":
        """Return the options of a seed."""
        draw = random.Random(f"{seed} options")
        token_s, slots = draw.choice(((0.02, 2), (0.05, 4), (0.2, 8), (2.0, 12)))
        return cls(token_s, slots, draw.choice(sorted(BALANCERS)))


@dataclass(frozen=True)
class Report:
    """What a run has shown.

    Attributes:
        seed: with `hours` and `faults` it replays the run.
        hours: virtual hours with requests.
        violation: what must never happen and happened; empty: nothing.
        requests: how many were sent.
        ended: how many of them ended how.
        struck: how often each kind of fault really struck.
        sometimes: how often each way of recovery was really taken.
        faults: numbers of the faults in the plan of the seed.
        events: lines of the event log.
        digest: SHA-256 of the event log.
        virtual_s: virtual time in all.
        cpu_s: time that it took.
    """

    seed: int
    hours: float
    violation: str
    requests: int
    ended: dict[str, int]
    struck: dict[str, int]
    sometimes: dict[str, int]
    faults: tuple[int, ...]
    events: int
    digest: str
    virtual_s: float
    cpu_s: float


@dataclass
class World:
    """One run; `kept` are the numbers of the faults that strike, by default all of the seed's plan."""

    seed: int
    hours: float
    kept: frozenset[int] | None = None
    log_path: Path | None = None
    checkers: list[Checker] = field(default_factory=list)
    on_progress: Callable[[float], None] = lambda share: None

    def __post_init__(self) -> None:
        self.options = Options.of(self.seed)
        self.scheduler = Scheduler()
        self.network = Network(self.scheduler, self.draw("network"))
        self.log = EventLog(self.log_path)
        self.limits = QueueLimits()
        self.violation = ""
        self.sometimes = Counter[str]()
        self.struck = Counter[str]()
        self.calm = False
        """Whether no fault strikes any more."""
        self.redis = RedisPlace(self)
        fronts = tuple(f"127.0.0.1:{8_000 + number}" for number in range(len(COORDINATORS)))
        listens = tuple(f"127.0.0.1:{7_000 + number}" for number in range(len(COORDINATORS)))
        self.coordinators = {
            name: CoordinatorPlace(self, name, *where)
            for name, *where in zip(COORDINATORS, listens, fronts, strict=True)
        }
        self.nodes = {
            name: NodePlace(self, name, f"127.0.0.1:{9_000 + number}", listens[number % 3 :] + listens[: number % 3])
            for number, name in enumerate(NODES)
        }
        self.clients_process = self.new_process("clients", "clients")
        self.clients = Clients(
            self.network, self.clients_process, fronts, self.draw("clients"), self.note, self.violate
        )
        self._is_over = False
        self._ended_tasks: set[str] = set()
        self._last_entry = b"0-0"

    def draw(self, what: str) -> random.Random:
        """Return a source of chance of its own, so that one part's draws do not change another's."""
        return random.Random(f"{self.seed} {what}")

    @property
    def places(self) -> dict[str, Place]:
        """All parts by their names."""
        return {"redis": self.redis, **self.coordinators, **self.nodes}

    def new_process(self, name: str, host: str) -> Process:
        """Return a process whose errors are violations."""
        process = Process(self.scheduler, name, host)  # type: ignore[abstract]  # the rest is never asked for
        process.on_error = lambda message, error: self.violate(f"{name}: {message}: {error!r}")
        process.on_crash.append(lambda: self.network.crashed(process))
        return process

    def later(self, seconds: float, react: Callable[[], None]) -> None:
        """Do something after a time, whatever happens to the cluster's parts."""
        self.scheduler.later(self.clients_process, self.scheduler.now + seconds, react)

    def happened(self, what: str, times: int = 1) -> None:
        """Count a way of recovery."""
        if not self._is_over:
            self.sometimes[what] += times

    def note(self, process: Process, what: str) -> None:
        """Add an event of a process to the log."""
        self.event(process.name, what)

    def event(self, who: str, what: str) -> None:
        """Add an event to the log, and show it to the checkers."""
        if self._is_over:
            return
        at_s = self.scheduler.now
        self.log.add(at_s, who, what)
        for checker in self.checkers:
            checker.see(at_s, who, what)

    def violate(self, what: str) -> None:
        """Note what must never happen, and end the run."""
        if not (self.violation or self._is_over):
            self.violation = f"at {self.scheduler.now:.3f} s: {what}"
            self.log.add(self.scheduler.now, "violation", what)
            self.scheduler.fail(Violation(self.violation))

    def run(self) -> Report:
        """Run until all has ended, or something is violated."""
        started_s = time.process_time()
        seconds = self.hours * 3_600
        plan = plan_faults(self.seed, seconds, COORDINATORS, NODES)
        faults = [fault for fault in plan if self.kept is None or fault.number in self.kept]
        pairs = seams.stands_for(self.scheduler, self.network, self.draw("names"), self.draw("load"))
        with _undisturbed(), seams.replaced(pairs), _errors_as_violations(self), Proofs(self).watching():
            try:
                self._live(faults, seconds)
            except Violation:
                pass
            finally:
                self._is_over, ended_s = True, self.scheduler.now
                for process in (self.clients_process, *(place.process for place in self.places.values())):
                    if process is not None:
                        process.crash()
                self.scheduler.bury()
        return Report(
            seed=self.seed,
            hours=self.hours,
            violation=self.violation,
            requests=self.clients.sent,
            ended=dict(sorted(self.clients.ended.items())),
            struck=dict(sorted(self.struck.items())),
            sometimes=dict(sorted(self.sometimes.items())),
            faults=tuple(fault.number for fault in faults),
            events=self.log.count,
            digest=self.log.close(),
            virtual_s=round(ended_s, 3),
            cpu_s=time.process_time() - started_s,
        )

    def _live(self, faults: Sequence[Fault], seconds: float) -> None:
        for place in self.places.values():
            place.start()
        striker = Striker(self)
        striker.plan(faults)
        self.clients_process.spawn(self.clients.send(seconds, RATE))
        while self.scheduler.now < seconds:
            self._run(min(seconds, self.scheduler.now + _SLICE_S))
            self.on_progress(self.scheduler.now / seconds)
        self.event("world", "no more faults")
        self.calm = True
        striker.end_all()
        deadline_s = self.scheduler.now + ENDS_WITHIN_S
        while self.clients.waiting and self.scheduler.now < deadline_s:
            self._run(self.scheduler.now + 1.0)
        self._check_end()

    def _run(self, until_s: float) -> None:
        before_s = self.scheduler.now
        self.scheduler.run(until_s)
        self._check_log()
        if before_s // _COLLECT_S != until_s // _COLLECT_S:
            gc.collect()

    def _check_log(self) -> None:
        """Check that no task ends twice."""
        if not self.redis.server.up:
            return
        client = SimulatedClient(self.redis.server, _Direct())
        for name, entry in client.xrange("{tasks}:log", f"({self._last_entry.decode()}", "+", 1_000_000):
            self._last_entry = name
            task = entry[b"task"].decode()
            if task in self._ended_tasks:
                self.violate(f"task {task} has a second end: {entry}")
            self._ended_tasks.add(task)
            self.sometimes[f"task {entry[b'state'].decode()}"] += 1
        if self.violation:
            raise Violation(self.violation)

    def _queue(self) -> TaskQueue:
        client: Any = SimulatedClient(self.redis.server, _Direct())
        return TaskQueue(client, limits=self.limits)

    def _check_end(self) -> None:
        """Check that all has ended, and that nothing is left anywhere."""
        if self.clients.waiting:
            left = ", ".join(f"{asked.number} ({asked.kind})" for asked in list(self.clients.waiting.values())[:5])
            self.violate(
                f"{len(self.clients.waiting)} requests have not ended after {ENDS_WITHIN_S:g} s of calm: {left}"
            )
            raise Violation(self.violation)
        deadline_s = self.scheduler.now + ENDS_WITHIN_S
        while (counts := self._queue().counts()).pending + counts.processing and self.scheduler.now < deadline_s:
            self._run(self.scheduler.now + 1.0)
        if counts.pending + counts.processing:
            self.violate(f"{counts.pending} tasks wait and {counts.processing} run after {ENDS_WITHIN_S:g} s of calm")
            raise Violation(self.violation)
        for name in ("taken", "reclaimed", "fenced"):
            self.sometimes[f"lease {name}"] = getattr(counts, name)
        self.sometimes["client asked again"] = self.clients.asked_again
        for checker in self.checkers:
            checker.end()
        if self.violation:
            raise Violation(self.violation)


class _Direct:
    """A link of the world's own, without a network."""

    def call(self, work: Callable[[], Any], block_s: float = 0.0) -> Any:
        """Do it."""
        return work()

    def open(self) -> Any:
        """Refuse: the world subscribes to nothing."""
        raise NotImplementedError


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let Python collect garbage only where the world asks for it: else finalizers would run at any time."""
    was_enabled = gc.isenabled()
    gc.disable()
    gc.freeze()  # what is there already, so that collections look at the world alone
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
        if was_enabled:
            gc.enable()


class _Errors(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        """Take a traceback in the log for a violation."""
        if record.exc_info:
            self._world.violate(f"{record.getMessage()} {record.exc_info[1]!r}")


@contextmanager
def _errors_as_violations(world: World) -> Iterator[None]:
    """Let what the cluster's code logs as an error be a violation, and keep the rest of its log away."""
    logger, handler = logging.getLogger("qubic_lab"), _Errors(world)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
