"""What the fake gave, reply by reply, and which rules clients broke: what a collector's database is compared with."""

import json
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

WINDOW_S = 1.0


@dataclass(frozen=True)
class Given:
    """One price (a bar's close) or text (its title) in a reply; `of` is the coin's id, or the text's at its source."""

    kind: str
    of: str
    interval_s: int
    at_us: int
    value: float | str


@dataclass(frozen=True)
class Entry:
    """One request and its outcome: `arrived_s` on this machine's clock, `now_us` on the fake's.

    `complete`: the whole body was sent to a client that was still there; `given`: the items of a complete reply with
    status 200.
    """

    number: int
    source: str
    path: str
    arrived_s: float
    now_us: int
    status: int
    fault: str
    complete: bool
    given: tuple[Given, ...]


@dataclass(frozen=True)
class Violation:
    """A client broke a rule: more requests in a second than allowed, too early after a 429, or a key in a URL."""

    source: str
    rule: str
    detail: str
    arrived_s: float


def read_ledger(file: Path) -> tuple[list[Entry], list[Violation]]:
    """Return a ledger file's entries and violations, without a line that is still being written."""
    entries, violations = [], []
    *lines, _ = file.read_text().split("\n")
    for values in map(json.loads, lines):
        if "rule" in values:
            violations.append(Violation(**values))
        else:
            entries.append(Entry(**values | {"given": tuple(Given(**each) for each in values["given"])}))
    return entries, violations


class Ledger:
    """Entries and violations in memory and, if a file is given, in it: one JSON object a line, written at once."""

    def __init__(self, file: Path | None = None) -> None:
        self.entries: list[Entry] = []
        self.violations: list[Violation] = []
        self._file: TextIO | None = file.open("w") if file else None

    def add(self, record: Entry | Violation) -> None:
        """Keep the outcome of a request, or a broken rule."""
        if isinstance(record, Entry):
            self.entries.append(record)
        else:
            self.violations.append(record)
        if self._file is not None:
            self._file.write(json.dumps(asdict(record)) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


@dataclass
class Gate:
    """One source's limit of arrivals in any second, and until when a 429 told its client to wait."""

    per_s: int
    wait_until_s: float = 0.0
    arrivals: deque[float] = field(default_factory=deque)

    def arrive(self, at_s: float) -> tuple[str, str] | None:
        """Count a request at `at_s`; return which rule it breaks and how, if it does."""
        while self.arrivals and self.arrivals[0] <= at_s - WINDOW_S:
            self.arrivals.popleft()
        self.arrivals.append(at_s)
        if len(self.arrivals) > self.per_s:
            return "limit", f"{len(self.arrivals)} requests within {WINDOW_S:g} s where {self.per_s} are allowed"
        if at_s < self.wait_until_s:
            return "retry-after", f"a request {self.wait_until_s - at_s:.3f} s before the end of Retry-After"
        return None
