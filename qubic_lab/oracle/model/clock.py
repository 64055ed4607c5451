"""The collector's and the stand-in's time: real, or simulated and faster, the same in every process that is told so."""

import asyncio
import time
from dataclasses import dataclass

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.timestamps import SECOND_US


@dataclass(frozen=True)
class Clock:
    """Time that runs `speed` times as fast as this machine's since `origin_us`; by default this machine's own.

    Two processes with equal values have the same time, and one that starts again goes on in it.
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
        """Return the time when this machine's is `real_us`."""
        return self.origin_us + int((real_us - self.origin_us) * self.speed) if self.speed != 1.0 else real_us

    def real_s(self, seconds: float) -> float:
        """Return how many real seconds pass while this clock goes on by `seconds`."""
        return seconds / self.speed

    async def sleep(self, seconds: float) -> None:
        """Wait until this clock has gone on by so much."""
        await asyncio.sleep(self.real_s(max(seconds, 0.0)))

    async def sleep_until(self, at_us: int) -> None:
        """Wait for an instant of this clock."""
        await self.sleep((at_us - self.now_us()) / SECOND_US)


REAL = Clock()
