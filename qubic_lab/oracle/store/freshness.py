"""How often sources give prices and texts, and which of them are late."""

from collections.abc import Sequence
from dataclasses import dataclass

from qubic_lab.oracle.model.records import Series
from qubic_lab.oracle.model.response import Frame, Missing
from qubic_lab.oracle.model.timestamps import SECOND_US
from qubic_lab.oracle.store.price_store import StoredPrice

STALE_AFTER = 3.0
"""A source is stale when it is late by more than this many of its intervals."""


@dataclass(frozen=True)
class Frequency:
    """The seconds between two prices or texts of a source, and its usual delay in seconds."""

    every_s: float
    delay_s: float = 0.0

    def is_late(self, age_s: float) -> bool:
        """Return whether a newer price or text is overdue."""
        return age_s > self.delay_s + STALE_AFTER * self.every_s


QUOTES, TEXTS = Frequency(300.0), Frequency(3_600.0)
"""Defaults for sources that have no frequency of their own."""


@dataclass(frozen=True)
class PricedSeries:
    """A series with its last price, how old that is, and how often the series should have one."""

    series: Series
    last: StoredPrice
    frequency: Frequency
    age_s: float

    @property
    def stale(self) -> bool:
        """Whether a newer price is overdue."""
        return self.frequency.is_late(self.age_s)

    @property
    def step_us(self) -> int:
        """The time between two prices, in microseconds."""
        return max(1, int(self.frequency.every_s * SECOND_US))

    @property
    def tolerance_us(self) -> int:
        """How much older than asked for an earlier price may be, in microseconds."""
        return int(STALE_AFTER * self.step_us)

    def makes(self, frame_us: int) -> bool:
        """Return whether bars of a frame can be made from its prices."""
        return can_make(self.series, frame_us)


def can_make(series: Series, frame_us: int) -> bool:
    """Return whether bars of a frame can be made from a series: from quotes, or from bars that divide the frame."""
    return series.interval_s == 0 or frame_us % (series.interval_s * SECOND_US) == 0


def why_no_bars(frame: Frame, sources: Sequence[PricedSeries]) -> Missing:
    """Return the reason why no series makes bars of a frame."""
    lengths = sorted({each.series.interval_s for each in sources})
    return Missing(reason=f"no bars of {frame} can be made from bars of {', '.join(map(str, lengths))} s")
