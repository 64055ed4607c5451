"""Utilization of this machine: CPU and memory, and those of its GPUs if there are any."""

import logging
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

logger = logging.getLogger(__name__)


def read_shares() -> tuple[float, float]:
    """Return the used shares (0 to 1) of compute and memory, as the highest of machine and GPUs.

    The CPU's share is measured since the previous call; the first call returns 0.
    """
    import pynvml

    cpu_shares = [psutil.cpu_percent() / 100]
    memory_shares = [psutil.virtual_memory().percent / 100]
    for gpu in _gpus():
        with suppress(pynvml.NVMLError_NotSupported):  # for example MIG instances
            cpu_shares.append(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100)
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        memory_shares.append(memory.used / memory.total)
    return min(1.0, max(cpu_shares)), min(1.0, max(memory_shares))


def resident_bytes() -> int:
    """Return the resident memory of this process and all below it; what they share counts for each."""
    total = 0
    for process in (this := psutil.Process(), *this.children(recursive=True)):
        with suppress(psutil.Error):  # it has just ended
            total += process.memory_info().rss
    return total


def disk_bytes(folder: Path) -> tuple[int, int]:
    """Return the free space and the size of the disk with a folder, which may still have to be made."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    usage = psutil.disk_usage(str(there))
    return usage.free, usage.total


def memory_bytes() -> int:
    """Return the memory of this machine, or the total of its GPUs if there are any."""
    import pynvml

    return int(sum(pynvml.nvmlDeviceGetMemoryInfo(gpu).total for gpu in _gpus()) or psutil.virtual_memory().total)


@cache
def _gpus() -> tuple[Any, ...]:
    """Return the handles of NVIDIA's driver; none if it is not available."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return tuple(map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount())))
    except pynvml.NVMLError as error:
        logger.info("GPUs are not measured: %s", error)
        return ()
