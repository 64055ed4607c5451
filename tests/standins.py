"""A stand-in for the oracle's sources, for tests: in a thread of this process, on a real socket."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qubic_lab.oracle.standin.app import StandinConfig
from qubic_lab.oracle.standin.ledger import Ledger
from qubic_lab.oracle.standin.serve import StandinServer, listen


@dataclass(frozen=True)
class Running:
    """A stand-in that answers."""

    url: str
    ledger: Ledger


@contextmanager
def running_standin(config: StandinConfig | None = None, file: Path | None = None) -> Iterator[Running]:
    """Yield a stand-in, and end it afterwards."""
    with listen() as listening:
        ledger = Ledger(file)
        server = StandinServer(config or StandinConfig(), ledger, listening)
        thread = threading.Thread(target=server.serve_now)
        thread.start()
        try:
            yield Running(server.url, ledger)
        finally:
            server.should_exit = True
            thread.join()
            ledger.close()
