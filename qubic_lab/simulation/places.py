"""Where the parts of a simulated cluster run: each place starts its process again when it has ended."""

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.cluster.node import NodeConfig
from qubic_lab.simulation.loop import EPOCH_S, Process
from qubic_lab.simulation.parts import WaitingReplica, run_coordinator, run_node
from qubic_lab.simulation.redis import SimulatedClient, SimulatedRedis
from qubic_lab.simulation.redis_link import RedisLink, RedisSide

if TYPE_CHECKING:
    from qubic_lab.simulation.world import World

AGAIN_S = 2.0
"""A part that ended by itself is started again after this time, as systemd does."""


class Place:
    """A host with one part; clock and certificate are the host's and outlive the process."""

    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name = world, name
        self.process: Process | None = None
        self.clock_offset_s = 0.0
        self.certificate_ends_s = 0.0
        self.slow = 1.0
        self.runs = 0
        self.held_down = False
        """Whether a fault keeps it from being started again."""

    @property
    def alive(self) -> bool:
        """Whether its process runs, or is paused."""
        return self.process is not None and self.process.alive

    def start(self) -> None:
        """Start its process, unless it runs or a fault keeps it down."""
        if self.alive or self.held_down:
            return
        self.runs += 1
        self.process = self.world.new_process(self.name, self.name)
        self.process.on_crash.append(lambda: self.world.later(AGAIN_S, self.start))
        self.apply()
        self.world.event(self.name, f"starts, run {self.runs}")
        self.world.scheduler.soon(self.process, self.begin)

    def apply(self) -> None:
        """Let the process have the host's clock, certificate and speed."""
        if self.process is not None:
            self.process.clock_offset_s = self.clock_offset_s
            self.process.certificate_ends_s = self.certificate_ends_s
            self.process.slow = self.slow

    def wall_s(self) -> float:
        """Return what the host's wall clock shows."""
        return EPOCH_S + self.world.scheduler.now + self.clock_offset_s

    def begin(self) -> None:
        """Start what runs in the process."""
        raise NotImplementedError

    def kill(self) -> None:
        """End the process at once."""
        if self.process is not None and self.process.alive:
            self.world.event(self.name, "is killed")
            self.process.crash()

    def stop(self) -> None:
        """Ask the process to end."""
        if self.process is not None:
            self.process.signal(signal.SIGTERM)

    def pause(self) -> None:
        """Stop the process as SIGSTOP does."""
        assert self.process is not None
        self.process.pause()
        self.world.network.paused(self.process)

    def resume(self) -> None:
        """Let it go on."""
        if self.process is not None:
            self.process.resume()

    def _run(self, coroutine: Any) -> None:
        """Run the part's coroutine; start it again when it ends."""
        process = self.process
        assert process is not None

        def ended(task: Any) -> None:
            if (error := None if task.cancelled() else task.exception()) is not None:
                self.world.violate(f"{self.name} ended with {error!r}")
            self.world.event(self.name, "has ended")
            process.crash()

        process.spawn(coroutine).add_done_callback(ended)


class RedisPlace(Place):
    """Redis; its data outlive the process as far as they are on disk."""

    def __init__(self, world: "World") -> None:
        super().__init__(world, "redis")
        self.server = SimulatedRedis(lambda: round(self.wall_s() * 1e6), lambda: world.scheduler.now)
        self.server.up = False

    def begin(self) -> None:
        """Listen."""
        assert self.process is not None
        if not self.server.up and self.runs == 1:
            self.server.up = True
        elif not self.server.up:
            self.server.restart()
        side = RedisSide(
            self.world.network, self.process, lambda client: self.world.event("redis", f"asked by {client}"), self.kill
        )
        self.server.changed = side.changed

    def kill(self) -> None:
        """End it at once."""
        if self.alive:
            if self.server.up:
                self.server.crash()
            super().kill()


class CoordinatorPlace(Place):
    """A coordinator."""

    def __init__(self, world: "World", name: str, listen: str, front: str) -> None:
        super().__init__(world, name)
        self.listen, self.front = listen, front
        self.coordinator: Coordinator | None = None

    def begin(self) -> None:
        """Run a coordinator."""
        world, process = self.world, self.process
        assert process is not None
        client: Any = SimulatedClient(world.redis.server, RedisLink(world.network, process))

        def keep(coordinator: Coordinator) -> None:
            self.coordinator = coordinator
            process.on_crash.append(lambda: count_calls(coordinator, world.happened))

        self._run(
            run_coordinator(
                client,
                world.network,
                process,
                self.listen,
                self.front,
                world.options.balancer,
                world.limits,
                world.draw(f"{self.name} {self.runs}"),
                keep,
            )
        )


def count_calls(coordinator: Coordinator, happened: Callable[..., None]) -> None:
    """Count how a coordinator's calls of nodes have ended."""
    for metric in coordinator.metrics[0].collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                happened(f"call of a node {sample.labels['end']}", int(sample.value))


class NodePlace(Place):
    """A node."""

    def __init__(self, world: "World", name: str, listen: str, coordinators: tuple[str, ...]) -> None:
        super().__init__(world, name)
        self._config = NodeConfig(name, coordinators, listen, identity=f"identity of {name}")
        self.replica: WaitingReplica | None = None

    def begin(self) -> None:
        """Run a node."""
        world, process = self.world, self.process
        assert process is not None
        self.replica = WaitingReplica(process, world.options.token_s, world.options.slots, world.note, world.happened)
        self._run(run_node(self._config, self.replica, lambda why: world.event(self.name, f"is refused: {why}")))
