"""Worker processes that read text from elsewhere, and are killed when that takes too long or too much memory.

Some texts hold a parser for hours. A thread cannot be ended, a process can.
"""

import json
import resource
import selectors
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

START_SECONDS = 60.0
MEMORY_BYTES = 2 * 2**30
"""Memory limit of a worker above its usage at start."""


class KillableWorker:
    """A process that runs a module, which calls `answer_lines`; start it again after a TimeoutError.

    Raises:
        TimeoutError: it does not start in time.
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
            self._line(START_SECONDS)
        except BaseException:
            self.end()
            raise

    def ask(self, question: Any, seconds: float) -> Any:
        """Return the answer to a question, both JSON values; None if the module failed.

        Raises:
            TimeoutError: it did not answer in time, or ended; do not use it again.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise TimeoutError from error
        return json.loads(self._line(seconds))

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(OSError):  # the unwritten rest of its question
                pipe.close()

    def _line(self, seconds: float) -> str:
        """Return the next line of output; each answer is one line, so the buffer is then empty."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline() if selector.select(seconds) else ""
        if not line:
            raise TimeoutError
        return line


def answer_lines(answer: Callable[[Any], Any]) -> None:
    """Answer the questions on standard input, a JSON value in each line, until it ends; the main program of a worker.

    An exception of `answer`, whatever it is, becomes the answer null. Import what is slow before.
    """
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES + used, MEMORY_BYTES + used))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        try:
            found = answer(json.loads(line))
        except Exception:  # libraries raise anything on arbitrary text: MemoryError, RecursionError, TypeError ...
            found = None
        print(json.dumps(found), flush=True)
