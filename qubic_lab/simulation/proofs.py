"""What must always be so in a simulated cluster, checked after every step of its Redis and at every event.

Each answer of Redis is compared with a model's (`queue_model`), each task's calls are checked to be linearizable
(`histories`), no coordinator gives a node more requests than it has slots, each try begins after all tokens that are
known, and in the end nothing is held.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from qubic_lab.chaos.simulated import UNDECIDED
from qubic_lab.cluster.dispatcher import Dispatcher
from qubic_lab.cluster.fleet import Fleet
from qubic_lab.cluster.tasks import TaskLease
from qubic_lab.simulation.histories import Histories
from qubic_lab.simulation.queue_model import RedisModel

if TYPE_CHECKING:
    from qubic_lab.simulation.world import World

_CHECK_S = 60.0


class Proofs:
    """A checker of a world; use `watching` around its run."""

    def __init__(self, world: "World") -> None:
        self.histories = Histories(lambda: world.scheduler.now, world.limits.most_tries, world.violate)
        self.model = RedisModel(world.redis.server, world.limits, world.violate)
        self._world = world
        self._next_s = _CHECK_S
        self._running = Counter[tuple[str, str]]()  # requests by coordinator and node

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch all that the world does while the block runs."""
        self._world.checkers.append(self)
        with self.histories.recording(), self._counting():
            yield

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Count the requests that each coordinator has at each node, and see where tries begin."""
        fleet_of, dispatcher_of = cast(Any, Fleet), cast(Any, Dispatcher)  # whose methods are replaced
        begin, end, run_try = Fleet.begin, Fleet.end, Dispatcher._try

        def counted_begin(fleet: Fleet, node: str, *rest: Any) -> None:
            self._running[fleet.coordinator, node] += 1
            if self._running[fleet.coordinator, node] > self._world.options.slots:
                self._world.violate(f"{fleet.coordinator} gives {node} more than its {self._world.options.slots} slots")
            begin(fleet, node, *rest)

        def counted_end(fleet: Fleet, node: str, tokens: int) -> None:
            self._running[fleet.coordinator, node] -= 1
            end(fleet, node, tokens)

        def checked_try(dispatcher: Dispatcher, lease: TaskLease, request: Any, progress: Any) -> Any:
            task = self.model.queue.processing.get(lease.task_id.encode())
            if task is not None and task.token == lease.token and progress.known != len(task.items):
                self._world.violate(
                    f"a try of task {lease.task_id} begins after {progress.known} of {len(task.items)} tokens"
                )
            return run_try(dispatcher, lease, request, progress)

        fleet_of.begin, fleet_of.end, dispatcher_of._try = counted_begin, counted_end, checked_try
        try:
            yield
        finally:
            fleet_of.begin, fleet_of.end, dispatcher_of._try = begin, end, run_try

    def see(self, at_s: float, who: str, what: str) -> None:
        """Look at the histories that have ended, now and then."""
        if at_s >= self._next_s:
            self._next_s = at_s + _CHECK_S
            self.histories.check()

    def end(self) -> None:
        """Look at the whole, when all has ended."""
        self.histories.check(is_end=True)
        self._world.sometimes["history linearizable"] = self.histories.checked
        self._world.sometimes[UNDECIDED] = self.histories.undecided
        if left := [task.task_id.decode() for task in self.model.queue.tasks.values() if not task.is_final]:
            self._world.violate(f"{len(left)} tasks have not ended: {left[:3]}")
