"""A relay between the ranks of one host that delays and slows down what they send, so that slow links can be measured.

Ranks on CPUs talk by gloo, which tells addresses through the store of the rendezvous: `RelayedStore` puts the relay's
in their place. `python -m qubic_lab.pipeline.relay SOCKET` takes orders at a unix socket, each a line with an answer.
"""

import os
import re
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from torch._C._distributed_c10d import FileStore, Store  # torch.distributed does not tell mypy of them

from qubic_lab.errors import QubicLabError, RankError
from qubic_lab.lifeline import end_when_stdin_closes

VARIABLE = "QUBIC_LAB_RELAY"
"""Names the socket for orders to the processes that start ranks, and to these."""
_READ_BYTES = 2**16
_ADDRESS_KEY = re.compile(r"//cpu//\d+/(\d+)$")
_HERE, _ANY, _HIGHER = (socket.inet_aton(each) for each in ("127.0.0.1", "0.0.0.0", "127.0.0.2"))


class Relay:
    """A running relay, for the process that measures."""

    def __init__(self, orders: Path) -> None:
        self._orders = orders

    def shape(self, delay_ms: float, mbps: float) -> None:
        """Delay what is sent from now on, and pass on at most this many 10⁶ bits/s in each direction; 0: no limit."""
        order(self._orders, f"shape {delay_ms / 1e3} {mbps * 1e6 / 8}")


@contextmanager
def relayed() -> Iterator[Relay]:
    """Run a relay; pipelines that are started here meanwhile use it between their ranks."""
    with tempfile.TemporaryDirectory() as folder:
        orders = Path(folder) / "orders"
        command = [sys.executable, "-m", __name__, str(orders)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            if not process.stdout.readline():
                raise QubicLabError("the relay between ranks does not start")
            os.environ[VARIABLE] = str(orders)
            try:
                yield Relay(orders)
            finally:
                del os.environ[VARIABLE]
                process.stdin.close()


def order(orders: Path, text: str) -> str:
    """Return a relay's answer to an order: `shape SECONDS BYTES_PER_S`, or `to PORT`, a port that leads there."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(orders))
        client.sendall(text.encode() + b"\n")
        return client.makefile().readline()


class RelayedStore(Store):
    """The store of the rendezvous, with the relay's address in place of those of earlier ranks.

    Of two ranks gloo lets the one with the higher address connect. A connection to 0.0.0.0 reaches this host.
    """

    def __init__(self, store: Store, rank: int, orders: Path) -> None:
        super().__init__()
        self._store, self._rank, self._orders = store, rank, orders

    def get(self, key: str) -> bytes:
        """Return a value; of another rank's address the one that this rank is to see."""
        value: bytes = self._store.get(key)
        match = _ADDRESS_KEY.search(key)
        if match is None or int(match[1]) == self._rank:
            return value
        if int(match[1]) > self._rank:
            return seen_address(value, _HIGHER)
        return seen_address(value, _ANY, int(order(self._orders, f"to {port_of(value)}")))

    def set(self, key: str, value: str) -> None:
        """Set a value."""
        self._store.set(key, value)

    def add(self, key: str, amount: int) -> int:
        """Count up."""
        return self._store.add(key, amount)

    def check(self, keys: list[str]) -> bool:
        """Return whether there are values for all keys."""
        return self._store.check(keys)

    def wait(self, keys: list[str], timeout: timedelta = timedelta(minutes=5)) -> None:
        """Wait until there are values for all keys."""
        self._store.wait(keys, timeout)

    def has_extended_api(self) -> bool:
        """Return whether several keys may be asked for at once."""
        return False


def relayed_store(file: Path, rank: int, ranks: int) -> RelayedStore | None:
    """Return the store for a rendezvous through a file, if there is a relay."""
    orders = os.environ.get(VARIABLE)
    return RelayedStore(FileStore(str(file), ranks), rank, Path(orders)) if orders else None


def _place(value: bytes) -> int:
    """Return where the address stands in what gloo tells of a rank: host name and address, each after its size."""
    place = 16 + struct.unpack_from("=Q", value)[0]
    family, _, address = struct.unpack_from("=HH4s", value, place)
    if family != socket.AF_INET or address != _HERE:
        raise RankError("this version of torch tells ranks' addresses in another form: links cannot be slowed down")
    return int(place)


def port_of(value: bytes) -> int:
    """Return the port in what gloo tells of a rank."""
    return int(struct.unpack_from("!H", value, _place(value) + 2)[0])


def seen_address(value: bytes, address: bytes, port: int = 1) -> bytes:
    """Return what gloo tells of a rank with another address."""
    place = _place(value)
    return value[: place + 2] + struct.pack("!H", port) + address + value[place + 8 :]


class _Way:
    """One direction of a connection: what was read waits until it is due."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self.waiting: deque[tuple[float, bytes]] = deque()
        self._free_s = 0.0  # when the link has carried all that was read

    def read(self, delay_s: float, bytes_per_s: float) -> bool:
        """Read what is there; return False at the end."""
        data = b""
        with suppress(ConnectionError):
            data = self.source.recv(_READ_BYTES)
        now_s = time.monotonic()
        self._free_s = max(now_s, self._free_s) + (len(data) / bytes_per_s if bytes_per_s else 0.0)
        self.waiting.append((self._free_s + delay_s, data))
        return bool(data)

    def pass_on(self) -> None:
        """Write what is due; nothing is the end."""
        while self.waiting and self.waiting[0][0] <= time.monotonic():
            _, data = self.waiting.popleft()
            with suppress(OSError):
                if data:
                    self.sink.sendall(data)
                else:
                    self.sink.shutdown(socket.SHUT_WR)


def serve(orders: socket.socket) -> None:
    """Take orders, and pass on what comes, for ever."""
    listeners: dict[socket.socket, int] = {}
    ways: list[_Way] = []
    ended: set[_Way] = set()
    delay_s = bytes_per_s = 0.0
    while True:
        due_s = min((way.waiting[0][0] for way in ways if way.waiting), default=None)
        reading = {way.source: way for way in ways if way not in ended}
        pause_s = None if due_s is None else max(0.0, due_s - time.monotonic())
        ready, _, _ = select.select([orders, *listeners, *reading], [], [], pause_s)
        for each in ready:
            if each is orders:
                client, _ = orders.accept()
                with client:
                    name, *values = client.makefile().readline().split()
                    answer = 0
                    if name == "to":
                        listener = socket.create_server(("127.0.0.1", 0))
                        listeners[listener], answer = int(values[0]), listener.getsockname()[1]
                    else:
                        delay_s, bytes_per_s = map(float, values)
                    client.sendall(b"%d\n" % answer)
            elif each in listeners:
                near, _ = each.accept()
                far = socket.create_connection(("127.0.0.1", listeners.pop(each)))
                each.close()
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                ways += _Way(near, far), _Way(far, near)
            elif not reading[each].read(delay_s, bytes_per_s):
                ended.add(reading[each])
        for way in ways:
            way.pass_on()


def main() -> None:
    """Relay until stdin is closed."""
    end_when_stdin_closes()
    with socket.socket(socket.AF_UNIX) as orders:
        orders.bind(sys.argv[1])
        orders.listen()
        print("ready", flush=True)
        serve(orders)


if __name__ == "__main__":
    main()
