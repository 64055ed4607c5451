"""An event loop with virtual time: waiting takes no real time, so tests of long timeouts and pauses run at once."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

_STEP_S = 1e-8
"""Virtual time that passes at each step, even without waiting."""


class _Jumping(selectors.DefaultSelector):
    """Advances the virtual time instead of waiting."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        assert ready or timeout is not None, "everything waits and nothing will happen"
        self.now_s += _STEP_S + (0.0 if ready else timeout or 0.0)  # a timer that is a rounding error late comes too
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """For code that does no I/O of its own; calls in an executor run at once, in this thread."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done


def run_virtually(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine returns, run in virtual time from 0."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)
