"""Utilization of this machine: CPU and memory, and those of its GPUs if there are any."""

import logging
from contextlib import suppress
from functools import cache
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
