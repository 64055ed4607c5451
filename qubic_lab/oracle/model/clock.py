"""The clock of the collector and of tests: real, or simulated and faster, the same in all processes with its values."""

import asyncio
import time
from dataclasses import dataclass

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.timestamps import SECOND_US


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

    async def sleep_until(self, at_us: int) -> None:
        """Wait until an instant of this clock."""
        await self.sleep((at_us - self.now_us()) / SECOND_US)


REAL = Clock()
