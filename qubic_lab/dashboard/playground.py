"""A question that is asked from a page: its answer as it comes, and where its time went."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qubic_lab.dashboard.oracle_view import TIMELINE, Columns, columns_of
from qubic_lab.errors import QubicLabError
from qubic_lab.runs.language import translated

PALE, DEEP, WARM, INK = "#9fb7bd", "#1f9aa8", "#e07a3f", "#7b8a95"


class Asking:
    """One question on its way, in a thread of its own; a page reads `text` while it comes.

    Attributes:
        text: the answer so far.
        trace: where the time went, once it is known.
        trail: of a vote, once it is held.
        error: why there is no answer; empty: nothing is wrong.
        seconds: time so far, or of the whole.
    """

    def __init__(self) -> None:
        self.text, self.error, self.node = "", "", ""
        self.trace: Mapping[str, Any] | None = None
        self.trail: Mapping[str, Any] | None = None
        self.first_s: float | None = None
        self._started_s, self._seconds = time.perf_counter(), 0.0
        self._stopped, self._ended = threading.Event(), threading.Event()

    @property
    def ended(self) -> bool:
        """Whether the answer is whole, or will not come."""
        return self._ended.is_set()

    @property
    def seconds(self) -> float:
        """The time of the question so far."""
        return self._seconds if self.ended else time.perf_counter() - self._started_s

    def stop(self) -> None:
        """End the answer with its next token."""
        self._stopped.set()

    def stream(self, chunks: Callable[[], Iterator[dict[str, Any]]]) -> "Asking":
        """Read the chunks of an answer in a thread."""
        return self._start(lambda: self._read(chunks()))

    def vote(self, hold: Callable[[], dict[str, Any]]) -> "Asking":
        """Wait for a vote in a thread."""
        return self._start(lambda: self._hold(hold))

    def _start(self, work: Callable[[], None]) -> "Asking":
        threading.Thread(target=self._work, args=(work,), name="dashboard question", daemon=True).start()
        return self

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except QubicLabError as error:
            self.error = str(error)
        finally:
            self._seconds = time.perf_counter() - self._started_s
            self._ended.set()

    def _read(self, chunks: Iterator[dict[str, Any]]) -> None:
        for chunk in chunks:
            for choice in chunk["choices"]:
                if piece := choice["delta"].get("content"):
                    self.first_s = self.first_s or time.perf_counter() - self._started_s
                    self.text += piece
            self.trace = (chunk.get("qubic") or {}).get("trace", self.trace)
            if self._stopped.is_set():
                chunks.close()  # type: ignore[attr-defined]
                return

    def _hold(self, hold: Callable[[], dict[str, Any]]) -> None:
        self.trail = hold()
        self.text = str(self.trail["text"])


def spans(trace: Mapping[str, Any]) -> Columns:
    """Return where the time of an answer went, as columns of the timeline: the way, the queue, the prompt, the tokens.

    What is neither of the last three was spent between client and node, mostly before them.
    """
    answer = trace["answers"][0]
    parts = [(answer[name], color) for name, color in (("queue_ms", INK), ("prefill_ms", WARM), ("decode_ms", DEEP))]
    way_ms = max(0.0, trace["total_ms"] - sum(ms for ms, _ in parts))
    names = (
        translated("coordinator and network"),
        translated("the node's queue"),
        translated("prompt ({n} tokens)", n=answer["prompt_tokens"]),
        translated("answer ({n} tokens)", n=answer["new_tokens"]),
    )
    rows, at_ms = [], 0.0
    for name, (ms, color) in zip(names, [(way_ms, PALE), *parts], strict=True):
        rows.append((name, at_ms, at_ms + ms, color, ms))
        at_ms += ms
    return columns_of(TIMELINE, rows)


def voter_spans(trail: Mapping[str, Any]) -> Columns:
    """Return how long each voter of a vote took, as columns of the timeline."""
    took = [(each["voter"], 1e3 * each["seconds"], INK if each["group"] is None else DEEP) for each in trail["voters"]]
    return columns_of(TIMELINE, ((voter, 0.0, ms, color, ms) for voter, ms, color in took))
