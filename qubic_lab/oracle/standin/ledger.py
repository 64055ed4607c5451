"""What the stand-in gave, answer by answer, and who broke its rules: what a collector's database is compared with."""

import json
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

WINDOW_S = 1.0


@dataclass(frozen=True)
class Given:
    """One price or text in an answer.

    Attributes:
        kind: price or text.
        of: the coin's id, or what the text is called at its source.
        interval_s: a bar's length; 0: a quote, or a text.
        at_us: the price's instant (a bar's end), or when the text was published.
        value: the price (a bar's close), or the text's title.
    """

    kind: str
    of: str
    interval_s: int
    at_us: int
    value: float | str


@dataclass(frozen=True)
class Entry:
    """One request and what came of it.

    Attributes:
        arrived_s: on this machine's clock, since 1970.
        now_us: on the stand-in's clock.
        fault: which one it met; empty: none.
        complete: its whole body was given to a client that was still there.
        partial: the source had more than it shows at once; who asks again for less is told all of it.
        given: what a complete answer of status 200 told.
    """

    number: int
    source: str
    path: str
    arrived_s: float
    now_us: int
    status: int
    fault: str
    complete: bool
    partial: bool
    given: tuple[Given, ...]

    def to_json(self) -> str:
        """Return a line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Entry":
        """Return what `to_json` gave."""
        values = json.loads(line)
        values["given"] = tuple(Given(**each) for each in values["given"])
        return cls(**values)


@dataclass(frozen=True)
class Violation:
    """A client broke a rule: more requests in a second than allowed, too early after a 429, or a key in a URL."""

    source: str
    rule: str
    detail: str
    arrived_s: float


def read_ledger(file: Path) -> tuple[list[Entry], list[Violation]]:
    """Return a ledger file's entries and violations; a line that is still being written is left out."""
    entries, violations = [], []
    for line in file.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            continue
        if line.startswith('{"rule"'):
            violations.append(Violation(**json.loads(line)["rule"]))
        else:
            entries.append(Entry.from_json(line))
    return entries, violations


class Ledger:
    """Entries in memory, and in a file where one is given (one JSON object a line, each written at once)."""

    def __init__(self, file: Path | None = None) -> None:
        self.entries: list[Entry] = []
        self.violations: list[Violation] = []
        self._file: TextIO | None = file.open("w") if file else None

    def add(self, entry: Entry) -> None:
        """Keep what came of a request."""
        self.entries.append(entry)
        self._write(entry.to_json())

    def violate(self, violation: Violation) -> None:
        """Keep that a rule was broken."""
        self.violations.append(violation)
        self._write(json.dumps({"rule": asdict(violation)}))

    def lines(self, first: int = 0) -> Iterator[str]:
        """Yield entries as lines of JSON, from number `first` on."""
        for entry in self.entries[first:]:
            yield entry.to_json() + "\n"

    def summary(self) -> dict[str, Any]:
        """Return counts by source, status and fault, and the violations, as plain values for JSON."""
        return {
            "requests": len(self.entries),
            "complete": sum(entry.complete for entry in self.entries),
            "given": sum(len(entry.given) for entry in self.entries),
            "by_source": dict(Counter(entry.source for entry in self.entries)),
            "by_status": {str(status): count for status, count in Counter(e.status for e in self.entries).items()},
            "by_fault": dict(Counter(entry.fault for entry in self.entries if entry.fault)),
            "violations": [asdict(each) for each in self.violations],
        }

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, line: str) -> None:
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()


@dataclass
class Gate:
    """One source's limit: so many arrivals in any second; and until when a 429 told its client to wait."""

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
