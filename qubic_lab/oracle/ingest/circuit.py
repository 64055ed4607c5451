"""When to leave a source alone that keeps failing: a circuit breaker as plain values, with the time given.

Closed: requests are sent. After so many failures in a row it opens: none is sent for a while. Then it is half-open: one
request tries whether the source is well again; its success closes the circuit, its failure opens it anew.
"""

from dataclasses import dataclass, replace
from typing import Literal

CircuitState = Literal["closed", "open", "half-open"]


@dataclass(frozen=True)
class Circuit:
    """A circuit at one instant; times are of any clock that only goes forward, in seconds.

    Attributes:
        most_failures: so many in a row open it.
        open_s: so long it stays open; also how long the trial of a half-open one is waited for before the next trial.
        failures: in a row, so far.
        until_s: before this nothing is sent, in states open and half-open.
    """

    most_failures: int
    open_s: float
    state: CircuitState = "closed"
    failures: int = 0
    until_s: float = 0.0

    def admits(self, now_s: float) -> bool:
        """Return whether a request may be sent now."""
        return self.state == "closed" or now_s >= self.until_s

    def sent(self, now_s: float) -> "Circuit":
        """Return the circuit after a request that it admits was sent."""
        if self.state == "closed":
            return self
        return replace(self, state="half-open", until_s=now_s + self.open_s)

    def succeeded(self) -> "Circuit":
        """Return the circuit after the source gave an answer, be it a refusal."""
        return replace(self, state="closed", failures=0, until_s=0.0)

    def failed(self, now_s: float) -> "Circuit":
        """Return the circuit after a request had no answer, or none that can be read.

        What was sent before it opened does not keep it open for longer.
        """
        if self.state == "open":
            return self
        failures = self.failures + 1
        if self.state == "half-open" or failures >= self.most_failures:
            return replace(self, state="open", failures=failures, until_s=now_s + self.open_s)
        return replace(self, failures=failures)

    def wait_s(self, now_s: float) -> float:
        """Return how long from now until it admits a request."""
        return 0.0 if self.admits(now_s) else self.until_s - now_s
