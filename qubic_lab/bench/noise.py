"""How much of a machine others used while times were measured: the evidence that a time says nothing.

It is told by CPU time: what was used of the cores that this process may use, less what this process and its children
used. Time that the host of a virtual machine gave to others (steal) counts as used.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import NamedTuple
from weakref import finalize

import psutil

from qubic_lab.provenance import usable_cores

BEFORE_S = 0.5
"""How long the machine is watched before a measurement; clocks of CPU time tick every 10 ms."""
SAMPLE_S = 0.5
"""How often the watch looks at its own processes: what one does after the last look, before it ends, may be lost."""
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
    """Seconds so far: of the clock, of CPU time on the usable cores, and of this process and all that it started."""

    at_s: float
    used_s: float
    own_s: float


class OwnProcesses:
    """This process and all that it has started, with the CPU time of each when it was last seen.

    The system forgets the time of a process whose parent ended without waiting for it, as ranks' launchers do.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._seen_s: dict[tuple[int, float], float] = {}
        self._first_s = self._look()

    def cpu_s(self) -> float:
        """Look at the processes and return the CPU time of all since the first look, also of those that have ended."""
        # Each leaves something out: the system what nobody waited for, the looks what ended between two of them.
        return max(now - first for now, first in zip(self._look(), self._first_s, strict=True))

    def _look(self) -> tuple[float, float]:
        """Return the CPU time of all so far, as the system knows it and as the looks have seen it."""
        known_s = 0.0
        this = psutil.Process()
        with self._lock:
            for process in (this, *this.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    self._seen_s[process.pid, process.create_time()] = times.user + times.system
                    known_s += times.user + times.system + times.children_user + times.children_system
            return known_s, sum(self._seen_s.values())


class NoiseWatch:
    """Watches the machine from here on, which first takes BEFORE_S."""

    def __init__(self) -> None:
        self._own = OwnProcesses()
        begun = read_cpu_times(self._own)
        time.sleep(BEFORE_S)
        self._first = self._last = read_cpu_times(self._own)
        self._before = others_share(begun, self._first)
        ended = Event()
        Thread(target=_look_often, args=(self._own, ended), daemon=True).start()
        finalize(self, ended.set)

    def lap(self) -> float:
        """Return the share that others used since the last lap, or since the beginning."""
        last, self._last = self._last, read_cpu_times(self._own)
        return others_share(last, self._last)

    def noise(self) -> MachineNoise:
        """Return the noise so far."""
        return MachineNoise(self._before, others_share(self._first, read_cpu_times(self._own)))


def _look_often(own: OwnProcesses, ended: Event) -> None:
    while not ended.wait(SAMPLE_S):
        own.cpu_s()


def others_share(begun: CpuReading, ended: CpuReading, cores: int | None = None) -> float:
    """Return the share, 0 to 1, of the cores' time between two readings that others used."""
    took_s, used_s, own_s = (later - earlier for earlier, later in zip(begun, ended, strict=True))
    return min(1.0, max(0.0, (used_s - own_s) / ((cores or usable_cores()) * took_s)))


def read_cpu_times(own: OwnProcesses) -> CpuReading:
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
    return CpuReading(time.perf_counter(), used_s, own.cpu_s())
