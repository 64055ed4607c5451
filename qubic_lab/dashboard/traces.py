"""Spans of the questions that were asked here: where the time of each went, down to every rank.

The processes of a cluster send them by OTLP over HTTP (docs/monitoring.md); those of other requests are dropped.
"""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from qubic_lab.dashboard.oracle_view import TIMELINE, Columns, columns_of

PATH = "/v1/traces"
MOST_TRACES, MOST_SPANS, MOST_BYTES = 32, 200, 2**20
COLORS = {"queue": "#9fb7bd", "wait": "#7b8a95", "prefill": "#e07a3f", "decode": "#1f9aa8"}
"""By the last word of a span's name; of others there is one colour."""
OTHER = "#c3ced3"


@dataclass(frozen=True)
class Span:
    """A period of a question's time: what it was spent on, at which rank if at one, and when, in ns since 1970."""

    name: str
    rank: int | None
    start_ns: int
    end_ns: int


class Traces:
    """The spans of the last questions, by trace; threads may share it."""

    def __init__(self) -> None:
        self._spans: OrderedDict[str, list[Span]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self) -> str:
        """Return a new `traceparent` (W3C), whose spans are kept."""
        trace = secrets.token_hex(16)
        with self._lock:
            self._spans[trace] = []
            while len(self._spans) > MOST_TRACES:
                self._spans.popitem(last=False)
        return f"00-{trace}-{secrets.token_hex(8)}-01"

    def spans(self, parent: str) -> tuple[Span, ...]:
        """Return what is known of a trace that was begun here, by its `traceparent`."""
        with self._lock:
            return tuple(self._spans.get(parent.split("-")[1], ()))

    def add(self, content: bytes) -> None:
        """Add the spans of a message of OTLP (protobuf) that belong to questions that were asked here.

        Raises:
            ValueError: it is not one.
        """
        try:
            from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
        except ImportError as error:
            raise ValueError('to read spans: pip install "qubic-lab[tracing]"') from error
        try:
            message = ExportTraceServiceRequest.FromString(content)
        except DecodeError as error:
            raise ValueError("not a message of OTLP") from error
        with self._lock:
            for resource in message.resource_spans:
                for span in (span for scope in resource.scope_spans for span in scope.spans):
                    kept = self._spans.get(span.trace_id.hex())
                    if kept is not None and len(kept) < MOST_SPANS:
                        ranks = [each.value.int_value for each in span.attributes if each.key == "rank"]
                        rank = ranks[0] if ranks else None
                        kept.append(Span(span.name, rank, span.start_time_unix_nano, span.end_time_unix_nano))


def span_columns(spans: Sequence[Span]) -> Columns:
    """Return spans as columns of the timeline, in the order in which they begin, each rank's own beneath.

    A rank's wait for the rank before it may have begun before the question, which does not count.
    """
    first_ns = min((span.start_ns for span in spans if span.rank is None), default=0)
    rows: dict[str, tuple[float, float, str, float]] = {}
    for span in sorted(spans, key=lambda span: (span.rank is not None, span.rank or 0, span.start_ns)):
        name = span.name if span.rank is None else f"rank {span.rank}: {span.name.removeprefix('rank ')}"
        start_ns = max(first_ns, span.start_ns)
        start_ms, end_ms = (start_ns - first_ns) / 1e6, (span.end_ns - first_ns) / 1e6
        color = COLORS.get(span.name.split()[-1], OTHER)
        unique = name if name not in rows else f"{name} ({len(rows)})"
        rows[unique] = (start_ms, end_ms, color, (span.end_ns - start_ns) / 1e6)
    return columns_of(TIMELINE, [(name, *row) for name, row in rows.items()])
