"""How long a run may take and how much memory: one that passes a limit is ended with all its processes."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated

import psutil
from pydantic import Field

from qubic_lab.checked_yaml import STRICT

CHECK_S = 2.0
"""Between two looks; each reads the table of processes, some milliseconds."""
MEMORY_SHARE = 0.9
REMEDY = "under 'limits' in its experiment file"

Above0 = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Limits:
    """The most that a run may take, all its processes together; without `gib` nine tenths of the machine's memory."""

    __pydantic_config__ = STRICT
    minutes: Above0 = 480.0
    gib: Above0 | None = None

    def passed(self, seconds: float, gib: float) -> str | None:
        """Return which limit a run has passed, with the remedy, or None."""
        if seconds > 60 * self.minutes:
            return f"ended as it took longer than {self.minutes:g} minutes: raise minutes {REMEDY}"
        most = self.gib or MEMORY_SHARE * psutil.virtual_memory().total / 2**30
        if gib > most:
            return f"ended as it took {gib:.2f} GiB, more than {most:.3g} GiB: raise gib {REMEDY}"
        return None


@contextmanager
def guarded(
    worker: "subprocess.Popen[bytes]", mark: tuple[str, str], limits: Limits, stop: threading.Event | None
) -> Iterator[list[str]]:
    """Watch a worker: end it and all that it started if it passes a limit, `stop` is set, or the block raises.

    `mark` is a variable that all of its processes have, with its value. Yields a list, which then has what was passed.
    """
    passed, done, began = list[str](), threading.Event(), time.monotonic()

    def watch() -> None:
        while not done.wait(CHECK_S):
            reason = limits.passed(time.monotonic() - began, memory_gib(worker.pid))
            passed.extend([reason] if reason else [])
            if reason or (stop is not None and stop.is_set()):
                end_all(worker.pid, mark)
                return

    thread = threading.Thread(target=watch, name="limits", daemon=True)
    thread.start()
    try:
        yield passed
    except BaseException:
        end_all(worker.pid, mark)
        raise
    finally:
        done.set()
        thread.join()


def memory_gib(pid: int) -> float:
    """Return the memory of a process and all below it, without the files that they map, which can be read again."""
    total = 0
    with suppress(psutil.Error):
        worker = psutil.Process(pid)
        for member in (worker, *worker.children(recursive=True)):
            with suppress(psutil.Error):
                used = member.memory_info()
                total += used.rss - getattr(used, "shared", 0)  # Linux tells what is shared
    return total / 2**30


def end_all(pid: int, mark: tuple[str, str]) -> None:
    """Kill a worker and all that it has started, also what has left its family but has `mark` in its environment."""
    for _ in range(100):  # one may start another meanwhile; one that waits for a disk ends later
        members = [*_family(pid), *_marked(mark)]
        for member in members:
            with suppress(psutil.Error):
                member.kill()
        if not members:
            return
        time.sleep(0.02)


def _family(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        worker = psutil.Process(pid)
        return [each for each in (worker, *worker.children(recursive=True)) if each.status() != psutil.STATUS_ZOMBIE]
    return []


def _marked(mark: tuple[str, str]) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # of others, or a zombie
            if mark in process.environ().items():
                yield process
