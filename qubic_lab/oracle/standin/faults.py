"""Which request meets which fault: drawn from the seed and the request's number alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from qubic_lab.errors import InputError, check_choice

TRANSPORT = ("rate-limit", "html", "cut", "slow", "hang", "error-500", "error-502", "reset")
"""Instead of an answer, or on its way."""
CONTENT = ("duplicates", "disorder")
"""In an answer's list."""
WORLD = ("null-caps", "corrections")
"""In what is told, the same in each answer."""
ALL = (*TRANSPORT, *CONTENT, *WORLD)
Row = TypeVar("Row")


def read_faults(text: str) -> tuple[str, ...]:
    """Return the faults that an option names: all, none, or a list with commas.

    Raises:
        InputError: there is no such fault.
    """
    if text in ("all", "none"):
        return ALL if text == "all" else ()
    return tuple(check_choice("fault", name.strip(), ALL) for name in text.split(","))


@dataclass(frozen=True)
class FaultPlan:
    """Faults for requests; `rate` is the share of requests that meet one of those on the way, or in the list."""

    names: tuple[str, ...] = ()
    rate: float = 0.2
    seed: int = 0
    transport: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate < 1.0:
            raise InputError(f"rate of faults is {self.rate}: it must be at least 0 and below 1")
        object.__setattr__(self, "transport", tuple(name for name in TRANSPORT if name in self.names))

    def draw(self, number: int) -> str | None:
        """Return the fault on the way of request `number`, if it meets one."""
        draw = random.Random(f"{self.seed} fault {number}")
        return draw.choice(self.transport) if self.transport and draw.random() < self.rate else None

    def spoil(self, number: int, rows: Sequence[Row]) -> list[Row]:
        """Return an answer's rows, some twice or out of their order where the plan says so."""
        draw = random.Random(f"{self.seed} content {number}")
        spoiled = list(rows)
        if "duplicates" in self.names and spoiled and draw.random() < self.rate:
            place = draw.randrange(len(spoiled))
            spoiled.insert(place, spoiled[place])
        if "disorder" in self.names and len(spoiled) > 1 and draw.random() < self.rate:
            place = draw.randrange(len(spoiled) - 1)
            spoiled[place], spoiled[place + 1] = spoiled[place + 1], spoiled[place]
        return spoiled
