"""How busy this machine is: processor and memory, and those of its GPUs where there are any."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from functools import cache

import psutil

logger = logging.getLogger(__name__)


def read_shares() -> tuple[float, float]:
    """Return the shares (0 to 1) of processor and memory in use; of machine and GPUs the busiest.

    The processor's is that since the call before; the first call tells nothing and returns 0.
    """
    cpu_shares = [psutil.cpu_percent() / 100]
    memory_shares = [psutil.virtual_memory().percent / 100]
    for busy, memory in _gpu_shares():
        cpu_shares.append(busy)
        memory_shares.append(memory)
    return min(1.0, max(cpu_shares)), min(1.0, max(memory_shares))


def memory_bytes() -> int:
    """Return the memory of this machine, or of its GPUs together where it has any."""
    return sum(_gpu_memories()) or int(psutil.virtual_memory().total)


def _gpu_shares() -> Iterable[tuple[float, float]]:
    if not _has_nvml():
        return
    import pynvml

    for index in range(pynvml.nvmlDeviceGetCount()):
        gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
        busy = 0.0
        with suppress(pynvml.NVMLError_NotSupported):  # by parts of a GPU, say
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
    """Tell whether NVIDIA's driver answers here; asked once."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        logger.info("no GPU is looked at: %s", error)
        return False
    return True
