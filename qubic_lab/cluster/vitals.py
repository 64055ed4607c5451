"""Utilization of this machine: CPU and memory, and those of its GPUs if there are any."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from functools import cache

import psutil

logger = logging.getLogger(__name__)


def read_shares() -> tuple[float, float]:
    """Return the used shares (0 to 1) of compute and memory, as the highest of machine and GPUs.

    The CPU's share is measured since the previous call; the first call returns 0.
    """
    cpu_shares = [psutil.cpu_percent() / 100]
    memory_shares = [psutil.virtual_memory().percent / 100]
    for busy, memory in _gpu_shares():
        cpu_shares.append(busy)
        memory_shares.append(memory)
    return min(1.0, max(cpu_shares)), min(1.0, max(memory_shares))


def memory_bytes() -> int:
    """Return the memory of this machine, or the total of its GPUs if there are any."""
    return sum(_gpu_memories()) or int(psutil.virtual_memory().total)


def _gpu_shares() -> Iterable[tuple[float, float]]:
    if not _has_nvml():
        return
    import pynvml

    for index in range(pynvml.nvmlDeviceGetCount()):
        gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
        busy = 0.0
        with suppress(pynvml.NVMLError_NotSupported):  # for example MIG instances
            busy = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        yield busy, memory.used / memory.total


def _gpu_memories() -> Iterable[int]:
    if not _has_nvml():
        return
    import pynvml

    for index in range(pynvml.nvmlDeviceGetCount()):
        yield int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index)).total)


@cache
def _has_nvml() -> bool:
    """Return whether NVIDIA's driver is available."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        logger.info("GPUs are not measured: %s", error)
        return False
    return True
