"""A TCP relay on loopback that can be cut: it passes nothing on then and closes nothing, like a lost network."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Lock, Thread

_PIECE_BYTES = 2**16


class TcpRelay:
    """Listens at a free port and passes on to another one; `tcp_relay` starts and ends it."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._passes, self._ended = Event(), Event()
        self._passes.set()
        self._lock = Lock()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def cut(self) -> None:
        """Pass nothing on, in neither direction; who connects now gets no answer."""
        self._passes.clear()

    def heal(self) -> None:
        """Pass on again, first what has waited: as TCP sends again what was not acknowledged."""
        self._passes.set()

    def accept(self) -> None:
        """Take connections until the relay is closed."""
        while not self._ended.is_set():
            with suppress(OSError):
                near, _ = self._listener.accept()
                self._keep(near)
                Thread(target=self._connect, args=(near,), daemon=True).start()

    def close(self) -> None:
        """Close all connections and take no more."""
        self._ended.set()
        self._passes.set()
        with self._lock:
            for each in (self._listener, *self._open):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def _keep(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.append(connection)

    def _connect(self, near: socket.socket) -> None:
        self._passes.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self._to_port))
        except OSError:  # nobody listens there yet
            near.close()
            return
        self._keep(far)
        for one, other in ((near, far), (far, near)):
            Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while piece := one.recv(_PIECE_BYTES):
                self._passes.wait()
                other.sendall(piece)
        with suppress(OSError):
            self._passes.wait()
            other.shutdown(socket.SHUT_WR)


@contextmanager
def tcp_relay(to_port: int) -> Iterator[TcpRelay]:
    """Yield a relay to a port of loopback; all its connections are closed when the block ends."""
    relay = TcpRelay(to_port)
    Thread(target=relay.accept, name="relay", daemon=True).start()
    try:
        yield relay
    finally:
        relay.close()
