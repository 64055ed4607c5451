"""Which request meets which fault: drawn from the seed and the request's number alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

TRANSPORT = ("rate-limit", "html", "cut", "slow", "hang", "error-500", "error-502", "reset")
"""In place of a reply, or on its way."""
CONTENT = ("duplicates", "disorder")
"""In a reply's list."""
WORLD = ("null-caps", "corrections")
"""In the data, the same in each reply."""
ALL = (*TRANSPORT, *CONTENT, *WORLD)
Row = TypeVar("Row")


@dataclass(frozen=True)
class FaultPlan:
    """Faults by name; `rate` is the share of requests that meet one on the way, or in the list."""

    names: tuple[str, ...] = ()
    rate: float = 0.2
    seed: int = 0

    def draw(self, number: int) -> str:
        """Return the transport fault of request `number`; empty: none."""
        faults = [name for name in TRANSPORT if name in self.names]
        draw = random.Random(f"{self.seed} fault {number}")
        return draw.choice(faults) if faults and draw.random() < self.rate else ""

    def spoil(self, number: int, rows: Sequence[Row]) -> list[Row]:
        """Return a reply's rows, with one twice or two out of order if the plan says so."""
        draw = random.Random(f"{self.seed} content {number}")
        spoiled = list(rows)
        if "duplicates" in self.names and spoiled and draw.random() < self.rate:
            place = draw.randrange(len(spoiled))
            spoiled.insert(place, spoiled[place])
        if "disorder" in self.names and len(spoiled) > 1 and draw.random() < self.rate:
            place = draw.randrange(len(spoiled) - 1)
            spoiled[place], spoiled[place + 1] = spoiled[place + 1], spoiled[place]
        return spoiled
