"""Cores of their own for the ranks of a pipeline on this machine, so that none of them takes another's time."""

import os
from pathlib import Path

from qubic_lab.pipeline import Pipeline


def pin(pipeline: Pipeline, first_core: int, threads: int) -> None:
    """Give each rank `threads` cores of its own, from the `first_core`-th usable one on; Linux only, else nothing."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    for rank in pipeline.describe():
        first = (first_core + rank.rank * threads) % len(cores)
        for task in Path(f"/proc/{rank.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores[first : first + threads])
