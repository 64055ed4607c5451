"""The spans of a request in a pipeline, for OpenTelemetry, made of times that were measured anyway.

Rank 0 makes those of a request when it ends, and tells the other ranks its number and trace with the next report; each
rank then makes a span of each phase, with how long it computed, sampled, sent and waited.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter_ns, time_ns
from typing import Any

from qubic_lab import tracing
from qubic_lab.trace import NoTracer, SpanKind, Tracer

MOST_REQUESTS = 10_000
"""Requests whose sums are kept; those of requests that never end here are dropped with the oldest."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequestTimes:
    """When a request came, was begun, gave its first and its last token, by `time.perf_counter`; None: never."""

    started_s: float
    begun_s: float | None
    first_s: float | None
    last_s: float | None


def tell_request(
    carried: Mapping[str, str], number: int, times: RequestTimes, tokens: int, finished: bool
) -> Mapping[str, str]:
    """Log the end of a request and make its spans; return what the other ranks need for theirs; empty: nothing."""
    with tracing.following(carried):
        _log.info("request %d: %s after %d tokens", number, "finished" if finished else "ended", tokens)
    parent = carried.get(tracing.PARENT, "")
    named = {tracing.REQUEST_ID: carried[tracing.REQUEST_ID]} if tracing.REQUEST_ID in carried else {}
    if not tracing.is_on():
        return named if _log.isEnabledFor(logging.INFO) else {}
    if not parent:
        return named | {tracing.PARENT: ""}
    now_ns = perf_counter_ns()
    marks = [None if at_s is None else int(at_s * 1e9) for at_s in vars(times).values()]
    marks = [min(mark, now_ns) if mark is not None else None for mark in marks]
    end_ns = marks[-1] or now_ns
    own = _past("pipeline", marks[0] or now_ns, end_ns, parent, request=number, tokens=tokens, finished=finished)
    for name, begin, end in zip(("wait", "prefill", "decode"), marks, marks[1:], strict=False):
        if begin is not None and end is not None:
            _past(name, begin, end, own)
    return named | {tracing.PARENT: own}


def _past(name: str, start_ns: int, end_ns: int, parent: str, **attributes: tracing.Value) -> str:
    ahead_ns = time_ns() - perf_counter_ns()  # since 1970
    return tracing.past_span(name, ahead_ns + start_ns, ahead_ns + end_ns, parent, **attributes)


@dataclass
class _Sum:
    start_ns: int
    end_ns: int = 0
    kinds_ns: dict[str, int] = field(default_factory=dict)


class RequestTracer(NoTracer):
    """Sums the spans of each request and phase on this rank, beside a tracer that writes files."""

    def __init__(self, rank: int, files: Tracer | NoTracer) -> None:
        self._rank, self._files = rank, files
        self._sums: dict[tuple[int, str], _Sum] = {}

    @contextmanager
    def span(self, kind: SpanKind, batch: Any) -> Iterator[None]:
        """Record the time of the block."""
        start_ns = perf_counter_ns()
        yield
        self.add(kind, batch, start_ns)

    def add(self, kind: SpanKind, batch: Any, start_ns: int) -> None:
        """Record a span that ends now for each request of a micro-batch, of which all had the whole time."""
        self._files.add(kind, batch, start_ns)
        end_ns, phase = perf_counter_ns(), batch.kind.name.lower()
        for work in batch.works:
            found = self._sums.get((work.request, phase))
            if found is None:
                found = self._sums[work.request, phase] = _Sum(start_ns)
            found.end_ns = end_ns
            found.kinds_ns[kind] = found.kinds_ns.get(kind, 0) + end_ns - start_ns

    def ended(self, parents: Mapping[int, str]) -> None:
        """Make the spans of requests that have ended, each within its parent; without one its sums are dropped."""
        for number, parent in parents.items():
            for phase in ("prefill", "decode"):
                found = self._sums.pop((number, phase), None)
                if found is None or not parent:
                    continue
                shares = {f"{kind}_ms": ns / 1e6 for kind, ns in found.kinds_ns.items()}
                _past(f"rank {phase}", found.start_ns, found.end_ns, parent, rank=self._rank, **shares)
        while len(self._sums) > MOST_REQUESTS:
            del self._sums[next(iter(self._sums))]

    def submitted(self, *arguments: Any) -> None:
        """Record when a request was submitted."""
        self._files.submitted(*arguments)

    def memory(self, *arguments: Any) -> None:
        """Record the memory of this process."""
        self._files.memory(*arguments)

    def clocks(self, *arguments: Any) -> None:
        """Record how the ranks' clocks differ."""
        self._files.clocks(*arguments)

    def flush(self, *arguments: Any) -> None:
        """Write what is buffered."""
        self._files.flush(*arguments)

    def close(self, *arguments: Any) -> None:
        """End the files."""
        self._files.close(*arguments)
