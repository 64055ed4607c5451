"""Histories of tasks, as their clients saw them, and whether each is linearizable.

A history is linearizable if each call can be given one instant between its beginning and its end, so that the calls one
after another at these instants answer as they did. A call whose answer was lost may have had its effect, later too, or
none. Source of the search: J. M. Wing and C. Gong, "Testing and Verifying Concurrent Objects" (1993); of the memory of
states that lead nowhere: G. Lowe, "Testing for Linearizability" (2017).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

from qubic_lab.cluster.redis_calls import Scripts
from qubic_lab.cluster.tasks import FINAL, TaskProgress, TaskQueue

NEVER = 2**62
LATE_S = 120.0
"""A request whose answer was lost has arrived within this time, or never does."""
_OF_ANY = ("take", "reclaim")
"""Calls that are of no certain task until they are answered."""
_KNOWN = 50_000
MOST_STEPS = 50_000
"""States that the search of one history looks at: within a second."""


@dataclass(slots=True, eq=False)
class Call:
    """A call on one task; `began` and `ended` number the events of a run, `what` and `reply` are of its script.

    Of an `unsure` one nobody knows the reply, and perhaps it was never executed.
    """

    what: str
    arguments: tuple[Any, ...]
    began: int
    at_s: float
    ended: int = NEVER
    reply: Any = None
    unsure: bool = False
    tries: int = 0


@dataclass(frozen=True, slots=True)
class TaskState:
    """A task: state, token of who may write, attempts, items and parts of its progress."""

    state: str = ""
    token: int = 0
    attempts: int = 0
    items: int = 0
    parts: int = 0


def after(task: TaskState, call: Call, task_id: str, most_tries: int) -> TaskState | None:
    """Return a task after a call, or None if it cannot have had this reply then."""
    state, token, attempts, items, parts = task.state, task.token, task.attempts, task.items, task.parts
    match call.what:
        case "submit":
            is_new = not state
            if not call.unsure and is_new != (call.reply[0] == b"new"):
                return None
            return TaskState("pending") if is_new else task
        case "take":
            if state != "pending" or not (call.unsure or call.reply[3] == attempts + 1):
                return None
            return TaskState("processing", 0 if call.unsure else call.reply[2], attempts + 1, items, parts)
        case "reclaim":
            return _lost(task, most_tries) if state == "processing" else None
        case "cancel":
            if not call.unsure and call.arguments[1] and call.reply.decode() == state:
                return task  # somebody else has asked for it since
            then = "cancelled" if state in ("pending", "processing") else state
            if not call.unsure and call.reply.decode() != then:
                return None
            return TaskState(then, token, attempts, items, parts)
        case "look":
            ended = call.reply.outcome.state if call.reply.outcome else None
            is_so = state and call.reply.after == max(parts, call.arguments[1])
            return task if is_so and ended == (state if state in FINAL else None) else None
        case _:
            return _after_write(task, call, most_tries)


def _lost(task: TaskState, most_tries: int) -> TaskState:
    then = "dead" if task.attempts >= most_tries else "pending"
    return TaskState(then, 0, task.attempts, task.items, task.parts)


def _after_write(task: TaskState, call: Call, most_tries: int) -> TaskState | None:
    arguments = call.arguments
    is_held = task.token == int(arguments[1])
    if call.what == "finish" and is_held and task.state == arguments[2]:
        return task if call.unsure or call.reply == 1 else None
    may = is_held and task.state == "processing"
    if not may:
        return task if call.unsure or call.reply == 0 else None
    if not call.unsure and call.reply != 1:
        return None
    match call.what:
        case "finish":
            start, count = arguments[6:8]
            if start != task.items and start + count > task.items:
                return None
            added = count if start == task.items else 0
            return TaskState(arguments[2], task.token, task.attempts, task.items + added, task.parts + bool(added))
        case "put_back":
            return _lost(task, most_tries)
        case "progress" if arguments[4] and arguments[3] == task.items:
            return TaskState(task.state, task.token, task.attempts, task.items + arguments[4], task.parts + 1)
        case "progress" if arguments[3] + arguments[4] > task.items:
            return None
    return task


def is_linearizable(calls: Sequence[Call], task_id: str, most_tries: int, most_steps: int = MOST_STEPS) -> bool | None:
    """Return whether a history of one task has an order in which each call has its reply; None: not decided.

    The number of orders can grow exponentially with the calls that nobody knows the reply of, so the search has limits.
    """
    order = sorted(calls, key=lambda call: call.began)
    needed = sum(1 << place for place, call in enumerate(order) if not call.unsure)
    tried = set[tuple[int, TaskState]]()
    waiting = [(0, TaskState())]
    while waiting and len(tried) < most_steps:
        done, task = waiting.pop()
        if done & needed == needed:
            return True
        unsure = set[str]()
        first_end, place = NEVER, ((done + 1) & ~done).bit_length() - 1
        sure: list[tuple[int, TaskState]] = []
        for number in range(place, len(order)):
            call, bit = order[number], 1 << number
            if done & bit:
                continue
            if call.began > first_end:
                break
            if not call.unsure:
                first_end = min(first_end, call.ended)
            elif call.what in _OF_ANY and call.what in unsure:
                continue  # like the one before, and that might have been first
            else:
                unsure.add(call.what)
            then = after(task, call, task_id, most_tries)
            if then is None or (call.unsure and then == task):
                continue
            if (new := (done | bit, then)) not in tried:
                tried.add(new)
                if call.unsure:
                    waiting.append(new)  # looked at last
                else:
                    sure.append(new)
        waiting += reversed(sure)
    return None if waiting else False


class Histories:
    """The histories of all tasks; `now` reads the time in seconds, `violate` gets those that are not linearizable."""

    def __init__(self, now: Callable[[], float], most_tries: int, violate: Callable[[str], None]) -> None:
        self.checked = self.undecided = 0
        self._now, self._most_tries, self._violate = now, most_tries, violate
        self._numbers = count()
        self._calls: dict[str, list[Call]] = defaultdict(list)
        self._unsure: list[Call] = []  # of any task
        self._beginning: Call | None = None
        self._done: dict[str, None] = {}  # tasks that were checked

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what goes through `Scripts` and `TaskQueue.look` while the block runs."""
        scripts_of, queue_of = cast(Any, Scripts), cast(Any, TaskQueue)  # whose methods are replaced
        run, call, look = Scripts.run, Scripts.call, TaskQueue.look

        def recorded_run(scripts: Scripts, script: str, settings: str, *arguments: Any) -> Any:
            if scripts.prefix != "{tasks}":
                return run(scripts, script, settings, *arguments)
            begun = self._begin(script, arguments)
            self._beginning = begun
            reply = run(scripts, script, settings, *arguments)  # after an error nobody knows what happened
            self._end(begun, reply)
            return reply

        def counted_call(scripts: Scripts, each: Callable[[], Any]) -> Any:
            begun, self._beginning = self._beginning, None
            if begun is None:
                return call(scripts, each)

            def again() -> Any:
                begun.tries += 1
                return each()

            return call(scripts, again)

        def recorded_look(queue: TaskQueue, task_id: str, after: int = 0) -> TaskProgress:
            begun = Call("look", (task_id, after), next(self._numbers), self._now())
            found = look(queue, task_id, after)
            begun.ended, begun.reply = next(self._numbers), found
            self._calls[task_id].append(begun)
            return found

        scripts_of.run, scripts_of.call, queue_of.look = recorded_run, counted_call, recorded_look
        try:
            yield
        finally:
            scripts_of.run, scripts_of.call, queue_of.look = run, call, look

    def _begin(self, script: str, arguments: tuple[Any, ...]) -> Call:
        """Begin a call, of which nobody knows yet whether it ends."""
        begun = Call(script, arguments, next(self._numbers), self._now(), unsure=True)
        if script in _OF_ANY:
            self._unsure.append(begun)
        elif script != "beat":
            self._calls[arguments[0]].append(begun)
        return begun

    def _end(self, begun: Call, reply: Any) -> None:
        """End a call: if its first try was answered, that is all; else another try of it may have had an effect."""
        ended = Call(begun.what, begun.arguments, begun.began, begun.at_s, next(self._numbers), reply)
        if begun.tries == 1:
            others = self._unsure if begun.what in _OF_ANY else self._calls[begun.arguments[0]]
            if begun in others:
                others.remove(begun)
        match begun.what:
            case "take" if len(reply) > 1:
                self._calls[reply[0].decode()].append(ended)
            case "reclaim":
                for task_id in reply:
                    self._calls[task_id.decode()].append(ended)
            case "submit":
                if reply[0] in (b"new", b"known"):
                    self._calls[reply[1].decode()].append(ended)
            case "take" | "beat" | "save":
                pass
            case _:
                self._calls[begun.arguments[0]].append(ended)

    def check(self, is_end: bool = False) -> None:
        """Check and forget the histories that go on no more."""
        before_s = self._now() - (0.0 if is_end else LATE_S)
        for task_id, calls in list(self._calls.items()):
            if is_end or not calls or calls[-1].at_s < before_s:
                del self._calls[task_id]
                if task_id not in self._done:
                    self._check(task_id, calls)
        oldest_s = self._now() - 10 * LATE_S
        self._unsure = [call for call in self._unsure if call.at_s > oldest_s]

    def _check(self, task_id: str, calls: list[Call]) -> None:
        known = [call for call in calls if not call.unsure]
        if not known:
            return
        self._done[task_id] = None
        if len(self._done) > _KNOWN:
            del self._done[next(iter(self._done))]
        first_s, last = calls[0].at_s - LATE_S, max(call.began for call in known)
        others = [call for call in self._unsure if call.at_s > first_s and call.began < last]
        found = is_linearizable([*calls, *others], task_id, self._most_tries)
        if found is None:
            self.undecided += 1
        elif not found:
            story = "; ".join(
                f"{call.began}-{call.ended if call.ended < NEVER else ''} {call.what}{call.arguments[1:]} {call.reply}"
                for call in sorted(calls, key=lambda call: call.began)
            )
            self._violate(f"the history of task {task_id} is not linearizable: {story}")
        else:
            self.checked += 1
