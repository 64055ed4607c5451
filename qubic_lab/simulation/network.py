"""The simulated network: delays, cuts (also in one direction only), slow and lossy links, and connections as TCP's.

What is sent over a connection arrives once and in order, or not at all. A lost packet comes later, and what was sent
behind it too. While a direction is cut its messages wait; they arrive after the cut, unless a side has given the
connection up by then.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qubic_lab.simulation.loop import Process, Scheduler

NEAR_S, FAR_S = 0.00005, 0.0003
"""Least delays within a host, and between two."""
RESEND_S = 0.2
"""TCP sends a lost packet again after this time, then after twice this time, and so on."""
PING_AFTER_S, GIVEN_UP_S = 4.0, 9.0
"""A side that hears nothing gives the connection up between these times; see `wire.channel`."""
CONNECT_S = 20.0
"""gRPC's own limit for a connection attempt."""


@dataclass
class Link:
    """One direction between two hosts: whether it is cut, what it adds to each delay, and the share that it loses."""

    cut_since_s: float | None = None
    added_s: float = 0.0
    loss: float = 0.0


class Network:
    """Delivers between processes; `draw` decides on delays and losses."""

    def __init__(self, scheduler: Scheduler, draw: random.Random) -> None:
        self.scheduler = scheduler
        self.listeners: dict[str, Listener] = {}
        self.connections: dict[Connection, None] = {}
        self._draw = draw
        self._links: dict[tuple[str, str], Link] = {}
        self._port = 20_000

    def link(self, source: str, target: str) -> Link:
        """Return a direction between two hosts."""
        pair = source, target
        found = self._links.get(pair)
        if found is None:
            found = self._links[pair] = Link()
        return found

    def is_cut(self, source: Process, target: Process) -> bool:
        """Return whether nothing passes from one process to another."""
        return self.link(source.host, target.host).cut_since_s is not None

    def delay_s(self, source: Process, target: Process, link: Link | None = None) -> float:
        """Return how long a message takes that is sent now; `link` is that from source to target."""
        if source.host == target.host:
            return NEAR_S
        delay_s = FAR_S * (1 + self._draw.random())
        link = link or self.link(source.host, target.host)
        if link.added_s or link.loss:
            delay_s += link.added_s * self._draw.random()
            resend_s = RESEND_S
            while link.loss and self._draw.random() < link.loss:
                delay_s, resend_s = delay_s + resend_s, 2 * resend_s
        return delay_s

    def cut(self, source: str, target: str) -> None:
        """Let nothing pass from one host to another."""
        link = self.link(source, target)
        if link.cut_since_s is None:
            link.cut_since_s = self.scheduler.now
            for connection in list(self.connections):
                if {source, target} == {connection.client.host, connection.server.host}:
                    connection.doubt()

    def heal(self, source: str, target: str) -> None:
        """End a cut."""
        self.link(source, target).cut_since_s = None
        for connection in list(self.connections):
            if {source, target} == {connection.client.host, connection.server.host}:
                connection.flush()

    def listen(self, process: Process, address: str, accept: Callable[["Connection"], None]) -> int:
        """Accept connections at HOST:PORT and return the port; RuntimeError if it is in use."""
        host, _, port = address.rpartition(":")
        if port == "0":
            self._port += 1
            port = str(self._port)
        known = self.listeners.get(f"{host}:{port}")
        if known is not None and known.process.alive:
            raise RuntimeError("the address is in use")
        self.listeners[f"{host}:{port}"] = Listener(process, accept)
        return int(port)

    def connect(self, client: Process, address: str, answer: Callable[["Connection | None"], None]) -> None:
        """Try to connect; `answer` gets the connection, None where nobody listens, nothing while nothing is heard."""
        listener = self.listeners.get(address)
        if listener is None:
            self.scheduler.later(client, self.scheduler.now + NEAR_S, answer, None)
            return
        server = listener.process
        if self.is_cut(client, server) or self.is_cut(server, client):
            # TCP tries again after 1, 2 and 4 s; who waits has given up by then, or tries again.
            self.scheduler.later(client, self.scheduler.now + 1.0, self.connect, client, address, answer)
            return
        back_s = self.scheduler.now + self.delay_s(client, server) + self.delay_s(server, client)
        if not server.alive:
            self.scheduler.later(client, back_s, answer, None)
            return
        connection = Connection(self, client, server)

        def accept() -> None:  # waits while the server is paused
            if is_expired(client, server) or listener is not self.listeners.get(address):
                connection.send(server, answer, None)
                del self.connections[connection]
                return
            listener.accept(connection)
            connection.send(server, answer, connection)

        self.scheduler.later(server, self.scheduler.now + self.delay_s(client, server), accept)

    def crashed(self, process: Process) -> None:
        """Tell the other sides of a crashed process's connections."""
        for connection in list(self.connections):
            if process in (connection.client, connection.server):
                connection.ended_by(process)

    def paused(self, process: Process) -> None:
        """Let the other sides of a paused process's connections doubt them."""
        for connection in list(self.connections):
            if process in (connection.client, connection.server):
                connection.doubt()


@dataclass(frozen=True)
class Listener:
    """Who accepts connections at an address."""

    process: Process
    accept: Callable[["Connection"], None]


class Connection:
    """A connection between two processes; a side hears of its end by what it puts into `on_lost`.

    `accepted_by` is for whoever accepts it. With `pings` each side gives it up after a while of silence.
    """

    accepted_by: Any = None
    pings = True

    def __init__(self, network: Network, client: Process, server: Process) -> None:
        self.client, self.server = client, server
        self.on_lost: dict[Process, Callable[[], None]] = {}
        self._network, self._scheduler = network, network.scheduler
        self._latest_s = {client: 0.0, server: 0.0}  # by receiver
        self.open = {client, server}
        self._links = {
            server: network.link(client.host, server.host),
            client: network.link(server.host, client.host),
        }  # by receiver
        self._held: dict[Process, list[tuple[Callable[..., None], tuple[Any, ...]]]] = {client: [], server: []}
        network.connections[self] = None

    def other(self, process: Process) -> Process:
        """Return the other side."""
        return self.server if process is self.client else self.client

    def send(self, sender: Process, callback: Callable[..., None], *arguments: Any) -> None:
        """Call a function at the other side, after what was sent before."""
        if sender not in self.open:
            return
        receiver = self.server if sender is self.client else self.client
        if self._links[receiver].cut_since_s is None:
            self._send(sender, receiver, callback, arguments)
        else:
            self._held[receiver].append((callback, arguments))

    def _send(self, sender: Process, receiver: Process, callback: Callable[..., None], arguments: Any) -> None:
        at_s = self._scheduler.now + self._network.delay_s(sender, receiver, self._links[receiver])
        if at_s < (latest_s := self._latest_s[receiver]):
            at_s = latest_s
        self._latest_s[receiver] = at_s
        self._scheduler.later(receiver, at_s, self._deliver, receiver, callback, arguments)

    def _deliver(self, receiver: Process, callback: Callable[..., None], arguments: Any) -> None:
        if receiver in self.open:
            callback(*arguments)

    def flush(self) -> None:
        """Send what waited for the end of a cut."""
        for receiver, held in self._held.items():
            sender = self.other(receiver)
            if held and not self._network.is_cut(sender, receiver):
                self._latest_s[receiver] = max(self._latest_s[receiver], self._scheduler.now + RESEND_S)
                for callback, arguments in held:
                    self._send(sender, receiver, callback, arguments)
                held.clear()

    def close(self, process: Process) -> None:
        """End it from one side."""
        if process in self.open:
            self.send(process, self._lose, self.other(process))
            self._leave(process)

    def doubt(self) -> None:
        """Let each side give it up if it still hears nothing when its ping has had no answer."""
        for side in (self.client, self.server) if self.pings else ():
            after_s = self._network._draw.uniform(PING_AFTER_S, GIVEN_UP_S)
            self._scheduler.later(side, self._scheduler.now + after_s, self._check, side, self._scheduler.now)

    def ended_by(self, crashed: Process) -> None:
        """Tell the other side of a crash, which the crashed side's host does if it can."""
        self.open.discard(crashed)
        other = self.other(crashed)
        if self._network.is_cut(crashed, other):
            self._held[other].append((self._lose, (other,)))
            self.doubt()
        else:
            self._send(crashed, other, self._lose, (other,))

    def _check(self, side: Process, since_s: float) -> None:
        other = self.other(side)
        cuts = [self._network.link(*pair).cut_since_s for pair in ((side.host, other.host), (other.host, side.host))]
        is_cut = any(cut_s is not None and cut_s <= since_s for cut_s in cuts)
        if side in self.open and (is_cut or other.held is not None or not other.alive):
            self.close(side)
            if (react := self.on_lost.get(side)) is not None:
                react()

    def _lose(self, side: Process) -> None:
        if side in self.open:
            self._leave(side)
            if (react := self.on_lost.get(side)) is not None:
                react()

    def _leave(self, side: Process) -> None:
        self.open.discard(side)
        if not any(each.alive for each in self.open):
            self._network.connections.pop(self, None)


def is_expired(*processes: Process) -> bool:
    """Return whether one of two processes' certificates has expired by the other's wall clock."""
    pairs = [(shown, judge) for shown in processes for judge in processes if judge is not shown]
    return any(0 < shown.certificate_ends_s < judge.wall_s() for shown, judge in pairs)
