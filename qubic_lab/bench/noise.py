"""How much of a machine others used while times were measured: the evidence that a time says nothing.

It is told by CPU time: what was used of the cores that this process may use, less what this process and its children
used. Time that the host of a virtual machine gave to others (steal) counts as used.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import psutil

from qubic_lab.provenance import usable_cores

BEFORE_S = 0.5
"""How long the machine is watched before a measurement; clocks of CPU time tick every 10 ms."""
QUIET = 0.1
"""A measurement counts as undisturbed while others use at most this share of the usable cores' time."""
IDLE = ("idle", "iowait", "guest", "guest_nice")
"""Times that are not used, or that others count already."""


@dataclass(frozen=True)
class MachineNoise:
    """The shares of the usable cores' time that others used, in the moment before a measurement and during it."""

    before: float
    during: float


class CpuReading(NamedTuple):
    """Seconds so far: of the clock, of CPU time on the usable cores, and of CPU time of this process and its children.

    Children that have ended count as long as their parents have waited for them.
    """

    at_s: float
    used_s: float
    own_s: float


class NoiseWatch:
    """Watches the machine from here on, which first takes BEFORE_S."""

    def __init__(self) -> None:
        begun = read_cpu_times()
        time.sleep(BEFORE_S)
        self._first = self._last = read_cpu_times()
        self._before = others_share(begun, self._first)

    def lap(self) -> float:
        """Return the share that others used since the last lap, or since the beginning."""
        last, self._last = self._last, read_cpu_times()
        return others_share(last, self._last)

    def noise(self) -> MachineNoise:
        """Return the noise so far."""
        return MachineNoise(self._before, others_share(self._first, read_cpu_times()))


def others_share(begun: CpuReading, ended: CpuReading, cores: int | None = None) -> float:
    """Return the share, 0 to 1, of the cores' time between two readings that others used."""
    took_s, used_s, own_s = (later - earlier for earlier, later in zip(begun, ended, strict=True))
    return min(1.0, max(0.0, (used_s - own_s) / ((cores or usable_cores()) * took_s)))


def read_cpu_times() -> CpuReading:
    """Read the clocks of now."""
    cores = psutil.cpu_times(percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(cores))
    used_s = sum(
        seconds
        for number, core in enumerate(cores)
        if number in usable
        for name, seconds in core._asdict().items()
        if name not in IDLE
    )
    own_s = 0.0
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            own_s += times.user + times.system + times.children_user + times.children_system
    return CpuReading(time.perf_counter(), used_s, own_s)
