"""Lets planned faults strike a world, and ends them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from qubic_lab.simulation.faults import Fault
from qubic_lab.simulation.places import Place

if TYPE_CHECKING:
    from qubic_lab.simulation.world import World

SLOWEST, LONGEST_DELAY_S, MOST_LOSS, FARTHEST_S = 20.0, 2.0, 0.5, 3_600.0


class Striker:
    """Does what faults say; of two that last at once on one thing, the first to end ends both."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._lasting: dict[int, Callable[[], None]] = {}

    def plan(self, faults: Sequence[Fault]) -> None:
        """Let faults strike at their times."""
        for fault in faults:
            self._world.later(fault.at_s, partial(self._strike, fault))

    def end_all(self) -> None:
        """End what lasts."""
        for number in list(self._lasting):
            self._end(number)

    def _strike(self, fault: Fault) -> None:
        if self._world.calm:
            return
        end = self._do(fault)
        if end is None:
            self._world.event("fault", f"{fault} misses")
            return
        self._world.struck[fault.kind] += 1
        self._world.event("fault", str(fault))
        self._lasting[fault.number] = end
        self._world.later(fault.lasts_s, partial(self._end, fault.number))

    def _end(self, number: int) -> None:
        if (end := self._lasting.pop(number, None)) is not None:
            end()
            self._world.event("fault", f"#{number} ends")

    def _do(self, fault: Fault) -> Callable[[], None] | None:
        """Do it and return what ends it; None if there is nothing that it could strike."""
        world = self._world
        match fault.kind.split():
            case ["poison", *_]:
                world.clients.ask("poison")
            case ["client", *_]:
                world.clients.ask("vanishing")
            case ["request", *_]:
                world.clients.ask("twice")
            case ["hosts", *_]:
                return self._cut(fault, both="one way" not in fault.kind)
            case ["link", how]:
                return self._disturb(fault, added_s=LONGEST_DELAY_S * fault.size if how == "slow" else 0.0)
            case ["Redis's", what, _]:
                return self._fill(disk=what == "disk")
            case ["clock", _]:
                place = world.places[fault.target]
                place.clock_offset_s += FARTHEST_S * (2 * fault.size - 1)
                place.apply()
            case ["certificate", _]:
                return self._expire(world.places[fault.target])
            case ["rank", _]:
                return self._lose_rank(fault.target)
            case [part, how]:
                return self._harm(world.places["redis" if part == "Redis" else fault.target], how, fault.size)
        return _nothing

    def _harm(self, place: Place, how: str, size: float) -> Callable[[], None] | None:
        if place.process is None or not place.alive or place.process.held is not None:
            return None
        if how == "slow":
            place.slow = 1 + (SLOWEST - 1) * size
            place.apply()
            return partial(_quicken, place)
        if how == "paused":
            place.pause()
            return partial(place.process.resume)
        if how == "stopped":
            place.stop()
            return _nothing
        place.held_down = True
        place.kill()
        return partial(_raise, place)

    def _lose_rank(self, node: str) -> Callable[[], None] | None:
        place = self._world.nodes[node]
        if place.replica is None or not place.alive:
            return None
        place.replica.lose()
        return _nothing

    def _cut(self, fault: Fault, both: bool) -> Callable[[], None]:
        network, pairs = self._world.network, self._pairs(fault)
        if both:
            pairs += [(target, source) for source, target in pairs]
        for pair in pairs:
            network.cut(*pair)

        def end() -> None:
            for pair in pairs:
                network.heal(*pair)

        return end

    def _disturb(self, fault: Fault, added_s: float) -> Callable[[], None]:
        pairs = self._pairs(fault)
        pairs += [(target, source) for source, target in pairs]
        links = [self._world.network.link(*pair) for pair in pairs]
        for link in links:
            link.added_s, link.loss = added_s, 0.0 if added_s else MOST_LOSS * fault.size

        def end() -> None:
            for link in links:
                link.added_s = link.loss = 0.0

        return end

    def _pairs(self, fault: Fault) -> list[tuple[str, str]]:
        hosts = [*self._world.places, "clients"]
        others = [fault.other] if fault.other else [host for host in hosts if host != fault.target]
        if fault.size < 0.5:  # by it also the direction of a cut
            return [(fault.target, other) for other in others]
        return [(other, fault.target) for other in others]

    def _fill(self, disk: bool) -> Callable[[], None]:
        server = self._world.redis.server
        server.limit(disk_full=disk, out_of_memory=not disk)
        return server.limit

    def _expire(self, place: Place) -> Callable[[], None]:
        place.certificate_ends_s = place.wall_s() - 1
        place.apply()

        def renew() -> None:
            place.certificate_ends_s = 0.0
            place.apply()

        return renew


def _quicken(place: Place) -> None:
    place.slow = 1.0
    place.apply()


def _raise(place: Place) -> None:
    place.held_down = False
    place.start()


def _nothing() -> None:
    pass
