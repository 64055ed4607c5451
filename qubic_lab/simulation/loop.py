"""Virtual time: one scheduler, and an event loop for each simulated process.

`Scheduler.run` takes the next step that is ready, or jumps to the next timer. Nothing here waits, and nothing reads a
real clock. A `Process` is the event loop of one simulated process: asyncio code runs in it as it is. Its steps wait
while it is paused, and are dropped when it has crashed; no `finally` of a crashed process runs.

Blocking code runs as it is, too, each thread as a greenlet: `Process.run_in_executor` and `Thread` start one. Where it
would block it calls `Scheduler.sleep` or `Signal.wait`, which switch to the scheduler until the time or the signal has
come.
"""

import asyncio
import contextvars
import heapq
from asyncio.events import _set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

EPOCH_S = 1_800_000_000.0
"""Wall clock at virtual time 0, in seconds since 1970."""
_ENDS_WITHIN_S = 60.0
"""More than each time limit for what is done at an end."""
T = TypeVar("T")


class Step:
    """A callback of a process that waits for its turn, or for its time `when_s`."""

    __slots__ = ("arguments", "callback", "context", "process", "when_s")

    def __init__(
        self,
        process: "Process",
        callback: Callable[..., Any],
        arguments: tuple[Any, ...],
        context: contextvars.Context,
        when_s: float = 0.0,
    ) -> None:
        self.process, self.arguments, self.context, self.when_s = process, arguments, context, when_s
        self.callback: Callable[..., Any] | None = callback

    def cancel(self) -> None:
        """Never run it."""
        self.callback = None

    def cancelled(self) -> bool:
        """Return whether it was cancelled."""
        return self.callback is None

    def when(self) -> float:
        """Return its time."""
        return self.when_s


class Scheduler:
    """Runs the steps of all processes in one order, and keeps the time; `now` is in virtual seconds since the start."""

    def __init__(self) -> None:
        self.now = 0.0
        self.current: Process | None = None
        """Whose step runs."""
        self.failure: BaseException | None = None
        """Set by `fail`."""
        self.steps = 0
        self.ready: deque[Step] = deque()
        """Steps without a time."""
        self._timers: list[tuple[float, int, Step]] = []
        self._numbers = count()
        self._hub = getcurrent()
        self._idle: list[greenlet] = []
        self._threads: list[greenlet] = []
        self.graveyard: list[asyncio.Task[Any]] = []
        """Tasks of crashed processes: one that is collected would run its `finally`."""
        self.buried = False

    def run(self, until_s: float) -> None:
        """Run all steps up to a time; raise what `fail` was called with."""
        self._hub = getcurrent()
        ready, timers, pop = self.ready, self._timers, heapq.heappop
        process = None
        try:
            while self.failure is None:
                if ready:
                    step = ready.popleft()
                elif timers and timers[0][0] <= until_s:
                    when_s, _, step = pop(timers)
                    if step.callback is None:
                        continue
                    self.now = when_s
                else:
                    self.now = until_s
                    return
                callback = step.callback
                if callback is None:
                    continue
                if step.process is not process:
                    process = self.current = step.process
                    _set_running_loop(process)
                if process.held is not None:
                    process.held.append(step)
                elif process.alive:
                    self.steps += 1
                    try:
                        step.context.run(callback, *step.arguments)
                    except Exception as error:
                        process.call_exception_handler({"message": "a callback failed", "exception": error})
                elif not step.when_s:
                    process.unfinished.append(step)
            raise self.failure
        finally:
            self.current = None
            _set_running_loop(None)

    def fail(self, error: BaseException) -> None:
        """End `run` after this step, with an error."""
        self.failure = self.failure or error

    def soon(self, process: "Process", callback: Callable[..., Any], *arguments: Any) -> None:
        """Run a callback in a process after what is ready now."""
        self.ready.append(Step(process, callback, arguments, process.context))

    def later(self, process: "Process", when_s: float, callback: Callable[..., Any], *arguments: Any) -> Step:
        """Run a callback in a process at a time."""
        return self.add(Step(process, callback, arguments, process.context, when_s))

    def add(self, step: Step) -> Step:
        """Add a step with a time."""
        heapq.heappush(self._timers, (step.when_s, next(self._numbers), step))
        return step

    # Blocking code.

    def start(self, process: "Process", work: Callable[[], None]) -> None:
        """Run blocking code of a process until it blocks for the first time; it goes on by itself."""
        if self.buried:
            return
        worker = self._idle.pop() if self._idle else self._new_worker()
        worker.switch(process, work)

    def _new_worker(self) -> greenlet:
        worker = greenlet(self._work)
        worker.parent = self._hub
        self._threads.append(worker)
        return worker

    def _work(self, process: "Process", work: Callable[[], None]) -> None:
        worker = getcurrent()
        while True:
            try:
                work()
            except Exception as error:
                process.call_exception_handler({"message": "a thread failed", "exception": error})
            self._idle.append(worker)
            process, work = self._hub.switch()

    def sleep(self, seconds: float) -> None:
        """Block the calling greenlet for a time."""
        process = self.current
        assert process is not None
        self.later(process, self.now + max(0.0, seconds), getcurrent().switch)
        self.block()

    def block(self) -> None:
        """Block the calling greenlet until somebody switches to it."""
        if self.buried:  # in a `finally`
            raise GreenletExit
        self._hub.switch()

    def bury(self) -> None:
        """End all that still runs, when all processes have crashed: cancelled tasks whose threads and timers are gone.

        Without it their `finally` would run when they are collected.
        """
        self.buried, self.failure = True, None
        self._timers.clear()
        for thread in self._threads:
            thread.throw(GreenletExit)
        self._threads.clear()
        self._idle.clear()
        for process in dict.fromkeys(
            [step.process for step in self.ready] + [task.get_loop() for task in self.graveyard]
        ):
            assert isinstance(process, Process)
            process.alive = True
            self.ready.extendleft(reversed(process.unfinished))
            process.unfinished.clear()
        for task in self.graveyard:
            task.cancel()
        self.run(self.now + _ENDS_WITHIN_S)
        self.graveyard.clear()
        self.ready.clear()
        self._timers.clear()


class Signal:
    """What blocking code of one process waits for; `set` may be called from anywhere."""

    __slots__ = ("_process", "_scheduler", "_set", "_waiting")

    def __init__(self, scheduler: Scheduler, process: "Process") -> None:
        self._scheduler, self._process = scheduler, process
        self._set = False
        self._waiting: list[Callable[[], Any]] = []

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._set

    def set(self) -> None:
        """Wake all who wait."""
        if not self._set:
            self._set = True
            for wake in self._waiting:
                self._scheduler.soon(self._process, wake)
            self._waiting.clear()

    def clear(self) -> None:
        """Let `wait` block again."""
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is set, at most for a time; return whether it is set."""
        if self._set:
            return True
        woken = False
        current = getcurrent()

        def wake() -> None:
            nonlocal woken
            if not woken:
                woken = True
                current.switch()

        self._waiting.append(wake)
        timer = None
        if timeout is not None:
            timer = self._scheduler.later(self._process, self._scheduler.now + max(0.0, timeout), wake)
        self._scheduler.block()
        if timer is not None:
            timer.cancel()
        if not self._set and wake in self._waiting:
            self._waiting.remove(wake)
        return self._set


class Process(asyncio.AbstractEventLoop):
    """The event loop of a simulated process, with its own wall clock.

    Attributes:
        name: unique among the living; it stands in the event log.
        host: processes of one host reach each other whatever happens to the network.
        alive: false after `crash`.
        held: steps that wait while it is paused, else None.
        unfinished: steps that it has not done because it has crashed.
        clock_offset_s: what its wall clock shows beyond the others.
        slow: factor of the time that its work takes.
        certificate_ends_s: when its certificate expires, by its own wall clock; 0: never.
        on_crash: called when it has crashed.
    """

    def __init__(self, scheduler: Scheduler, name: str, host: str = "") -> None:
        self.scheduler, self.name, self.host = scheduler, name, host or name
        self.alive = True
        self.held: deque[Step] | None = None
        self.unfinished: list[Step] = []
        self.clock_offset_s = 0.0
        self.slow = 1.0
        self.certificate_ends_s = 0.0
        self.on_crash: list[Callable[[], None]] = []
        self.on_error: Callable[[str, BaseException | None], None] = lambda message, error: None
        self.context = contextvars.Context()
        self.signals: dict[int, Callable[[], Any]] = {}

    def crash(self) -> None:
        """End it at once, as SIGKILL does."""
        if not self.alive or self.scheduler.buried:
            return
        self.alive = False
        self.unfinished += self.held or ()
        self.held = None
        self.scheduler.graveyard += asyncio.all_tasks(self)
        for react in self.on_crash:
            react()

    def pause(self) -> None:
        """Let it do nothing, as SIGSTOP does."""
        if self.held is None:
            self.held = deque()

    def resume(self) -> None:
        """End a pause."""
        held, self.held = self.held, None
        if held:
            self.scheduler.ready.extend(held)

    def wall_s(self) -> float:
        """Return what its wall clock shows."""
        return EPOCH_S + self.scheduler.now + self.clock_offset_s

    # What asyncio asks of a loop.

    def time(self) -> float:
        """Return virtual seconds."""
        return self.scheduler.now

    def get_debug(self) -> bool:
        """Return whether asyncio checks itself."""
        return False

    def is_running(self) -> bool:
        """Return true, as only a process that runs asks."""
        return True

    def is_closed(self) -> bool:
        """Return whether it has crashed."""
        return not self.alive

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> Step:
        """Run a callback after what is ready now."""
        step = Step(self, callback, args, contextvars.copy_context() if context is None else context)
        self.scheduler.ready.append(step)
        return step

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> Step:
        """Run a callback from blocking code."""
        return self.call_soon(callback, *args, context=self.context if context is None else context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> Step:
        """Run a callback at a time."""
        return self.scheduler.add(
            Step(self, callback, args, contextvars.copy_context() if context is None else context, when)
        )

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> Step:
        """Run a callback after some seconds."""
        return self.call_at(self.scheduler.now + max(0.0, delay), callback, *args, context=context)

    def create_future(self) -> "asyncio.Future[Any]":
        """Return a new future."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> "asyncio.Task[T]":
        """Return a new task."""
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Start a task that is kept, also from outside of the process."""
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=self)
        self.scheduler.graveyard.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> "asyncio.Future[T]":  # type: ignore[override]
        """Run blocking code in a thread, of `executor` if given."""
        future: asyncio.Future[T] = asyncio.Future(loop=self)
        work = partial(_work_for, future, func, args)
        if executor is None:
            self.scheduler.start(self, work)
        else:
            executor.run(work)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Tell the world of an error that nobody handles."""
        if self.alive:
            self.on_error(str(context.get("message")), context.get("exception"))

    def add_signal_handler(self, sig: int, callback: Callable[..., Any], *args: Any) -> None:  # type: ignore[override]
        """Keep what a signal does."""
        self.signals[sig] = partial(callback, *args)

    def signal(self, number: int) -> None:
        """Send a signal to it."""
        if (react := self.signals.get(number)) is not None:
            self.scheduler.soon(self, react)

    async def create_server(self, *_: Any, **__: Any) -> Any:
        """Return a plain socket's server that nobody calls."""
        socket = SimpleNamespace(getsockname=lambda: ("127.0.0.1", 1))
        return SimpleNamespace(sockets=[socket], close=lambda: None)


def _work_for(future: "asyncio.Future[Any]", function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        result = function(*arguments)
    except Exception as error:
        if not future.done():
            future.set_exception(error)
    else:
        if not future.done():
            future.set_result(result)


class Threads:
    """Stands for a `ThreadPoolExecutor`: at most `max_workers` calls at once, the others wait."""

    def __init__(self, scheduler: Scheduler, max_workers: int) -> None:
        assert scheduler.current is not None
        self._scheduler, self._process, self._free = scheduler, scheduler.current, max_workers
        self._waiting: deque[Callable[[], None]] = deque()

    def run(self, work: Callable[[], None]) -> None:
        """Run blocking code as soon as a thread is free."""
        if self._free:
            self._free -= 1
            self._scheduler.start(self._process, partial(self._run, work))
        else:
            self._waiting.append(work)

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        """Forget what waits."""
        self._waiting.clear()

    def _run(self, work: Callable[[], None]) -> None:
        work()
        while self._waiting:
            self._waiting.popleft()()
        self._free += 1


class Thread:
    """Stands for a `threading.Thread`."""

    def __init__(
        self,
        scheduler: Scheduler,
        target: Callable[..., None],
        args: tuple[Any, ...] = (),
        name: str = "",
        daemon: bool = False,
    ) -> None:
        assert scheduler.current is not None
        self.name, self.daemon = name, daemon
        self._scheduler, self._process, self._target, self._args = scheduler, scheduler.current, target, args
        self._ended = Signal(scheduler, scheduler.current)

    def start(self) -> None:
        """Start it."""
        self._scheduler.start(self._process, self._run)

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        self._ended.wait(timeout)

    def _run(self) -> None:
        try:
            self._target(*self._args)
        finally:
            self._ended.set()
