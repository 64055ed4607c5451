"""Ends a process together with its parent: a killed launcher, supervisor, kernel or notebook leaves no process behind.

There are two mechanisms, because each has a gap. The kernel's parent-death signal works on Linux only and follows the
direct parent only. A pipe reaches all descendants that inherit it, but not a process that is stopped.

`python -m qubic_lab.lifeline PID MODULE ARGUMENTS…` runs a module that ends with the process PID, which started it with
a pipe at its stdin and holds the writing end.
"""

import ctypes
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing.connection import Connection

LISTENER = "LISTENER_NUMBER"
"""Set for a process that serves at a socket which its parent holds: the socket's number."""
_FIRST_GIVEN = 3
CTRL_C_S = 3.0
"""How long services that Ctrl-C ends wait for what is running; on SIGTERM they wait longer."""
_PR_SET_PDEATHSIG = 1


def end_when_parent_dies(parent: int) -> None:
    """Let the kernel kill this process when the thread of process `parent` that started it ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the signal was asked for
        os._exit(1)


def end_when_stdin_closes(before: Callable[[], None] = lambda: None) -> None:
    """End this process once every writing end of the pipe at its stdin is closed; call `before` first."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        before()
        os._exit(0)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


@contextmanager
def tied_pool(processes: int) -> "Iterator[ProcessPoolExecutor]":
    """Yield a pool of new processes that end with the block, however it ends, and with this process.

    Take results from `submit`, not `map`, which cancels what is left when it is interrupted: the pool then prints a
    traceback.
    """
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import Pipe, get_context

    reader, writer = Pipe(duplex=False)
    with (
        closing(reader),
        ProcessPoolExecutor(processes, get_context("spawn"), _end_when_closed, (reader,)) as pool,
        closing(writer),  # before the pool waits for its processes
    ):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # what starts here hears no Ctrl-C
        try:
            for _ in range(processes):  # each starts one, because none is idle yet
                pool.submit(int)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield pool


def _end_when_closed(reader: "Connection") -> None:
    """End this process once the writing end of a pipe is closed."""

    def watch() -> None:
        reader.poll(None)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def main() -> None:
    """Run a module that ends with its parent."""
    parent, module, *arguments = sys.argv[1:]
    end_when_stdin_closes()
    end_when_parent_dies(int(parent))
    if (number := os.environ.pop(LISTENER, None)) is not None:  # handed on as systemd does
        os.dup2(int(number), _FIRST_GIVEN)
        os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    sys.argv = [module, *arguments]  # run_module puts the module's path in place of the first
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
