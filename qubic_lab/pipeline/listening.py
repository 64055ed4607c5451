"""The requests of one client that share a stream."""

import queue
from threading import Lock

from qubic_lab.errors import InputError, RequestCancelled
from qubic_lab.pipeline.answering import Arrivals, Call


class Listener:
    """The calls of a client, each with the client's own number; what comes for any of them goes to `arrivals`."""

    def __init__(self) -> None:
        self.arrivals: Arrivals = queue.SimpleQueue()
        self._lock = Lock()  # guards what follows
        self._numbers: dict[Call, int] | None = {}

    def add(self, call: Call, number: int) -> None:
        """Add a call.

        Raises:
            InputError: the number is in use.
            RequestCancelled: the client has gone.
        """
        with self._lock:
            if self._numbers is None:
                raise RequestCancelled("the listener has gone")
            if number in self._numbers.values():
                raise InputError(f"call {number} is in use: give another number")
            self._numbers[call] = number

    def calls(self) -> list[Call]:
        """Return the calls that have not ended."""
        with self._lock:
            return list(self._numbers or ())

    def number_of(self, call: Call) -> int | None:
        """Return the number of a call that has not ended."""
        with self._lock:
            return (self._numbers or {}).get(call)

    def forget(self, call: Call) -> None:
        """Forget a call that has ended."""
        with self._lock:
            if self._numbers is not None:
                del self._numbers[call]

    def close(self) -> None:
        """Cancel all calls, in any thread."""
        for call in self.calls():
            call.cancel()

    def end(self) -> list[Call]:
        """Take no more calls, and return those that have not ended."""
        with self._lock:
            calls, self._numbers = list(self._numbers or ()), None
            return calls
