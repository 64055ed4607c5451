"""A run of somebody's signal in a process that has seen nothing but the bars of this run."""

import os
import signal
import tempfile
import time
import warnings
from typing import NoReturn, Self

import numpy as np
import pandas as pd

from qubic_lab.lifeline import end_when_parent_dies
from qubic_lab.oracle.backtest.lookahead.runs import Signal, run_signal
from qubic_lab.oracle.model.bars import Floats


class Afresh:
    """A run of a signal in a copy of this process, which has not seen later bars and keeps nothing afterwards.

    It goes on beside what this process does meanwhile. Threads are not copied, so a signal whose library has started
    some before may wait for them for ever: it gets as long as `wait` says.
    """

    def __init__(self, function: Signal, frame: pd.DataFrame) -> None:
        self._file, parent = tempfile.TemporaryFile(), os.getpid()  # noqa: SIM115  (closed by __exit__)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of copies of processes with threads
            self._child: int | None = os.fork()
        if self._child == 0:
            self._run(function, frame, parent)

    def _run(self, function: Signal, frame: pd.DataFrame, parent: int) -> NoReturn:
        try:
            end_when_parent_dies(parent)
            np.save(self._file, run_signal(function, frame))
            self._file.flush()
        finally:
            os._exit(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        self._file.close()

    def wait(self, most_s: float) -> Floats | None:
        """Return its values, [bars, columns]; None: it gave none, or none within so many seconds from now."""
        end = time.monotonic() + most_s
        while self._child is not None:
            if os.waitpid(self._child, os.WNOHANG) != (0, 0):
                self._child = None
            elif time.monotonic() > end:
                return None
            else:
                time.sleep(0.002)
        self._file.seek(0)
        return np.load(self._file, allow_pickle=False) if os.fstat(self._file.fileno()).st_size else None
