"""Worker processes that read text from elsewhere, and are killed when that takes too long or too much memory.

Some texts hold a parser for hours. A thread cannot be ended, a process can.
"""

import atexit
import json
import os
import queue
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Any

from qubic_lab.lifeline import end_when_parent_dies

START_SECONDS = 60.0
MEMORY_BYTES = 2 * 2**30
"""Memory limit of a worker above its usage at start."""


class KillableWorker:
    """A process that runs a module, which calls `answer_lines`; do not use it again after an OSError.

    Raises:
        OSError: it does not start, or ends; a TimeoutError if it does not start in time.
    """

    def __init__(self, module: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        try:
            self._exchange("", START_SECONDS)
        except BaseException:
            self.end()
            raise

    def ask(self, question: Any, seconds: float) -> Any:
        """Return the answer to a question, both JSON values; None if the module failed.

        Raises:
            OSError: it ended; a TimeoutError if it did not answer in time.
        """
        return json.loads(self._exchange(json.dumps(question) + "\n", seconds))

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(OSError):  # the unwritten rest of its question
                pipe.close()

    def _exchange(self, line: str, seconds: float) -> str:
        """Write a line and return the next one; it is killed after `seconds`, which ends every wait for it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        timer, started = Timer(seconds, self.process.kill), time.monotonic()
        timer.daemon = True
        timer.start()
        try:
            with suppress(BrokenPipeError):
                self.process.stdin.write(line)
                self.process.stdin.flush()
            found = self.process.stdout.readline()
        finally:
            timer.cancel()
        if found.endswith("\n"):
            return found
        if time.monotonic() - started < seconds:
            raise ConnectionError("the worker process ended")
        raise TimeoutError(f"it took longer than {seconds:g} s")


class WorkerPool:
    """Up to `most` workers of a module, started on demand; threads may share it, and wait for a free one.

    A worker that is late or has ended is replaced.
    """

    def __init__(self, module: str, most: int) -> None:
        self._module, self._ended = module, False
        self._workers: set[KillableWorker] = set()
        self._places: queue.LifoQueue[KillableWorker | None] = queue.LifoQueue()
        for _ in range(most):
            self._places.put(None)
        atexit.register(self.end)

    def start(self) -> None:
        """Start a worker before it is needed; why that fails, the first question tells."""
        with suppress(OSError), self._free():
            pass

    def ask(self, question: Any, seconds: float) -> Any:
        """Return the answer to a question, as `KillableWorker.ask`; asked once more if the worker ended.

        Raises:
            OSError: it ended again, or cannot be started; a TimeoutError if it is late.
        """
        try:
            return self._ask(question, seconds)
        except ConnectionError:
            return self._ask(question, seconds)

    def end(self) -> None:
        """Kill all workers, also those that are asked; no more are started."""
        self._ended = True
        for worker in tuple(self._workers):
            worker.process.kill()

    def _ask(self, question: Any, seconds: float) -> Any:
        with self._free() as worker:
            return worker.ask(question, seconds)

    @contextmanager
    def _free(self) -> Iterator[KillableWorker]:
        """Yield a free worker; if the block raises, it is ended, as a late answer would be taken for the next one."""
        worker = self._places.get()
        try:
            if worker is not None and worker.process.poll() is not None:
                self._discard(worker)
                worker = None
            worker = worker or self._started()
            yield worker
        except BaseException:
            if worker is not None:
                self._discard(worker)
            worker = None
            raise
        finally:
            self._places.put(worker)

    def _started(self) -> KillableWorker:
        if self._ended:
            raise ConnectionError("the program ends")
        worker = KillableWorker(self._module)
        self._workers.add(worker)
        return worker

    def _discard(self, worker: KillableWorker) -> None:
        self._workers.discard(worker)
        worker.end()


def answer_lines(answer: Callable[[Any], Any]) -> None:
    """Answer the questions on standard input, a JSON value in each line, until it ends; the main program of a worker.

    An exception of `answer`, whatever it is, becomes the answer null. Import what is slow before.
    """
    end_when_parent_dies(os.getppid())
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES + used, MEMORY_BYTES + used))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        try:
            found = answer(json.loads(line))
        except Exception:  # libraries raise anything on arbitrary text: MemoryError, RecursionError, TypeError ...
            found = None
        print(json.dumps(found), flush=True)
