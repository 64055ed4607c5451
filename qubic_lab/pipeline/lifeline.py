"""Ending with one's parent, so that a killed launcher, kernel or notebook leaves no process behind.

torchrun starts ranks in sessions of their own and gives no such signal. Two means, since each has a gap: the kernel's
parent-death signal follows the direct parent only, and a pipe from the first launcher reaches all generations.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

LAUNCHER_PID = "QUBIC_LAB_LAUNCHER_PID"
"""Set by the launcher for its ranks."""
_PR_SET_PDEATHSIG = 1


def tie_to_parents() -> None:
    """Tie a rank's life to torchrun's and, where a launcher of ours runs that, to the launcher's client."""
    launcher = os.environ.get(LAUNCHER_PID)
    parent = os.getppid() if launcher is None else int(launcher)
    if launcher is not None:  # else stdin may be anything: `nohup` makes it /dev/null, which is at its end at once
        end_when_stdin_closes()
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
