"""How long a request may wait for its turn: what is not answered by its deadline holds a slot in vain."""

from dataclasses import dataclass
from typing import Any

BEGUN_BY = 0.5
"""Share of the time that its answer leaves by which a request must begin; the rest is for delays."""
FEWEST = 8
"""Tasks that tell how long one is held."""
NEWEST, SURE, LONGER = 1 / 16, 2.0, 1.5
"""Weight of the newest task; mean deviations above the mean that an answer may take; and by how much longer it may take
than a task was held that was cut off, by its deadline or its client."""


@dataclass
class _Mean:
    """A mean in which later values weigh more, and the mean deviation from it, as TCP has of its round trips."""

    mean: float = 0.0
    deviation: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.count += 1
        weight = max(1 / self.count, NEWEST)
        off = value - self.mean
        self.mean += weight * off
        self.deviation += weight * (abs(off) - self.deviation) if self.count > 1 else 0.0

    @property
    def is_known(self) -> bool:
        return self.count >= FEWEST


class Admission:
    """Learns from tasks that have ended how long they are held; it reads no clock. A size is one from `size_of`."""

    def __init__(self) -> None:
        self._all, self._by_size = _Mean(), dict[int, _Mean]()

    def note(self, size: int, held_s: float, cut: bool) -> None:
        """Note how long a task was held; one that was `cut` off would have been held for longer."""
        self._all.add(held_s)
        known = self._by_size.setdefault(size, _Mean())
        known.add(max(known.mean, LONGER * held_s) if cut else held_s)

    @property
    def held_s(self) -> float | None:
        """How long a task is held on average; None: too few have ended."""
        return self._all.mean if self._all.is_known else None

    def patience_s(self, size: int, deadline_s: float) -> float:
        """Return how long a request may wait for its turn, so that its answer is probably there by the deadline.

        0 says that no other may wait before it. How long answers of this size take is not known at first.
        """
        usual = self._by_size.get(size)
        answer_s = usual.mean + SURE * usual.deviation if usual is not None and usual.is_known else 0.0
        return BEGUN_BY * max(0.0, deadline_s - answer_s)


def size_of(payload: dict[str, Any]) -> int:
    """Return the size class of a task's answer: all `max_new_tokens` of one are less than twice the least of them."""
    return int(payload.get("sampling", {}).get("max_new_tokens", 0)).bit_length()
