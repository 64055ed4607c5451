"""One poller for all pages: it reads what pages look at, each path at its own pace, and remembers it with its time."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qubic_lab.errors import BusyError, QubicLabError, UnreachableError

STATUS = "/api/cluster/status"
"""Read first: while it is not answered, nothing else is asked of the coordinator."""
EVERY_S = {
    "/api/cluster/": 4.0,
    "/api/consensus/history/": 60.0,
    "/api/consensus/": 5.0,
    "/api/oracle/risk": 60.0,
    "/api/oracle/": 20.0,
}
"""Seconds between two looks, by the beginning of a path; three open tabs stay below 120 requests a minute."""
DEFAULT_EVERY_S = 10.0
LOST_EVERY_S = 2.0
"""Between two looks for a coordinator that does not answer."""
WANTED_S = 30.0
"""After this time without a page that shows a path, the path is no longer read; only its course is kept."""
MOST_KEPT = 450
TICK_S = 0.2

logger = logging.getLogger(__name__)
Course = tuple[tuple[float, Any], ...]
"""What was kept of the answers of a path, with the times, the oldest first."""


@dataclass(frozen=True)
class Seen:
    """The last answer of a path, and why there is no newer one.

    Attributes:
        value: the answer; None: there is none yet.
        at_s: when it came, by the clock of the watch.
        error: why the last look failed; empty: it did not.
        failing_since_s: since when looks fail.
    """

    value: Any = None
    at_s: float | None = None
    error: str = ""
    failing_since_s: float | None = None


@dataclass
class _Watched:
    wanted_s: float
    due_s: float = 0.0
    seen: Seen = Seen()
    course: deque[tuple[float, Any]] = field(default_factory=lambda: deque(maxlen=MOST_KEPT))


class Watch:
    """Reads paths with `read`, in one thread that ends with the process.

    `keep` says what to remember of every answer of a path, for charts over time. `pace` stretches all times.
    """

    def __init__(
        self,
        read: Callable[[str], Any],
        keep: Mapping[str, Callable[[Any], Any]] | None = None,
        pace: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._keep, self.pace, self.clock = read, keep or {}, pace, clock
        self._watched: dict[str, _Watched] = {}
        self._lock, self._ended, self._first = threading.Lock(), threading.Event(), threading.Event()
        self._quiet_until_s = 0.0

    def start(self) -> "Watch":
        """Start the thread, and return this watch."""
        threading.Thread(target=self._run, name="dashboard watch", daemon=True).start()
        return self

    def end(self) -> None:
        """Let the thread end."""
        self._ended.set()

    def see(self, path: str) -> Seen:
        """Return what is known of a path, and go on reading it for a while."""
        with self._lock:
            return self._want(path).seen

    def course(self, path: str) -> Course:
        """Return what was kept of the answers of a path, the oldest first."""
        with self._lock:
            return tuple(self._want(path).course)

    def hurry(self, *paths: str) -> None:
        """Read paths again at once, because something was changed."""
        with self._lock:
            for path in paths:
                self._want(path).due_s = 0.0

    def wait(self, within_s: float) -> bool:
        """Wait until something that a page looks at has been asked for, and return whether it has."""
        return self._first.wait(within_s)

    def look(self) -> None:
        """Read all paths that are due; what fails is noted and tried again."""
        with self._lock:
            now_s = self.clock()
            wanted = self._wanted(now_s)
            if not wanted or now_s < self._quiet_until_s:
                return
            self._watched.setdefault(STATUS, _Watched(now_s))
            due = sorted(
                (path for path in {STATUS, *wanted} if self._watched[path].due_s <= now_s),
                key=lambda path: (path != STATUS, path),
            )
        lost = ""
        for path in due:
            if lost and not path.startswith("/api/oracle/"):  # which may have a database of its own
                self._note(path, error=lost, every_s=LOST_EVERY_S)
                continue
            try:
                self._note(path, self._read(path))
            except BusyError as error:
                self._note(path, error=str(error))
                with self._lock:
                    self._quiet_until_s = self.clock() + (error.retry_after_s or LOST_EVERY_S)
                return
            except UnreachableError as error:
                self._note(path, error=str(error), every_s=LOST_EVERY_S)
                lost = lost or (str(error) if path == STATUS else "")
            except QubicLabError as error:
                self._note(path, error=str(error))
            except Exception as error:  # one odd answer must not end the watch
                logger.warning("%s is not understood", path, exc_info=error)
                self._note(path, error=f"{path} is not understood ({error!r})")

    def _run(self) -> None:
        while not self._ended.wait(TICK_S * self.pace):
            self.look()
            if self._watched:
                self._first.set()

    def _want(self, path: str) -> _Watched:
        now_s = self.clock()
        watched = self._watched.setdefault(path, _Watched(now_s))
        watched.wanted_s = now_s
        return watched

    def _wanted(self, now_s: float) -> list[str]:
        """Return the paths that pages look at, and forget the others."""
        for path, each in list(self._watched.items()):
            if path not in self._keep and now_s - each.wanted_s > WANTED_S * self.pace:
                del self._watched[path]
        return [path for path, each in self._watched.items() if now_s - each.wanted_s <= WANTED_S * self.pace]

    def _note(self, path: str, value: Any = None, error: str = "", every_s: float | None = None) -> None:
        with self._lock:
            now_s = self.clock()
            watched = self._watched.get(path) or self._want(path)
            watched.due_s = now_s + (every_s or every(path)) * self.pace
            if error:
                since_s = now_s if watched.seen.failing_since_s is None else watched.seen.failing_since_s
                watched.seen = replace(watched.seen, error=error, failing_since_s=since_s)
                return
            watched.seen = Seen(value, now_s)
            if path in self._keep:
                watched.course.append((now_s, self._keep[path](value)))


def every(path: str) -> float:
    """Return the seconds between two looks at a path."""
    found = (seconds for start, seconds in EVERY_S.items() if path.startswith(start))
    return next(found, DEFAULT_EVERY_S)
