"""Timestamps as whole microseconds since 1970 in UTC: exact, equal in both databases, and fast to compare."""

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from qubic_lab.errors import InputError, NotFoundError

SECOND_US = 1_000_000
MINUTE_US, HOUR_US, DAY_US = 60 * SECOND_US, 3_600 * SECOND_US, 86_400 * SECOND_US
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now_us() -> int:
    """Return the time of this machine."""
    return to_us(datetime.now(UTC))


def to_us(instant: datetime) -> int:
    """Return a datetime in microseconds; an InputError if it has no time zone."""
    if instant.tzinfo is None:
        raise InputError(f"time {instant.isoformat()} has no zone: end it with Z or an offset such as +01:00")
    return (instant - _EPOCH) // timedelta(microseconds=1)


def from_us(us: int) -> datetime:
    """Return the datetime in UTC."""
    return _EPOCH + timedelta(microseconds=us)


def iso(us: int) -> str:
    """Return the timestamp as ISO 8601 in UTC, ending with Z, with the fraction of a second if there is one."""
    return from_us(us).isoformat().replace("+00:00", "Z")


def read_iso(text: str) -> int:
    """Return the timestamp of a text in ISO 8601; an InputError if the text is not in ISO 8601, or has no time zone.

    At the calendar's ends a text may name an instant that has no date in UTC: a NotFoundError.
    """
    try:
        found = to_us(datetime.fromisoformat(text.strip()))
        from_us(found)
        return found
    except InputError:
        raise
    except OverflowError as error:
        raise NotFoundError(f"time {text!r} is outside the years 1 to 9999 in UTC: give another one") from error
    except ValueError as error:
        raise InputError(f"time {text!r} cannot be read: give it as in 2026-11-24T12:00:00Z") from error


def age_text(seconds: float) -> str:
    """Return an age in words, in its largest unit, such as "3 hours"."""
    for size, name in ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            count = int(seconds / size)
            return f"{count:,} {name}{'' if count == 1 else 's'}"
    return "less than a second"


@dataclass(frozen=True)
class Clock:
    """A clock that runs `speed` times as fast as this machine's since `origin_us`; by default this machine's own.

    Processes with equal values have the same time, also after a restart.
    """

    origin_us: int = 0
    speed: float = 1.0

    def __post_init__(self) -> None:
        if not 1.0 <= self.speed <= 1e6:
            raise InputError(f"clock's speed is {self.speed}: it must be between 1 and 1000000")

    def now_us(self) -> int:
        """Return the time."""
        return self.at(time.time_ns() // 1000)

    def at(self, real_us: int) -> int:
        """Return the time at which this machine's clock shows `real_us`."""
        return self.origin_us + int((real_us - self.origin_us) * self.speed) if self.speed != 1.0 else real_us

    def real_s(self, seconds: float) -> float:
        """Return the real seconds that pass in `seconds` of this clock."""
        return seconds / self.speed

    async def sleep(self, seconds: float) -> None:
        """Wait for some seconds of this clock."""
        await asyncio.sleep(self.real_s(max(seconds, 0.0)))


REAL = Clock()
