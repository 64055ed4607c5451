"""The id of a request in every process that works on it, and its spans for OpenTelemetry where they are asked for.

Both travel with tasks and calls as headers: HTTP server → queue → node → rank 0; other ranks are told in reports. The
id stands in lines of the log and beside metrics. Spans are made only after `start` found an exporter in the environment
(OTEL_…), for which the extra `tracing` is needed; otherwise nothing of OpenTelemetry is imported.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from qubic_lab.errors import check_choice

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

REQUEST_ID, PARENT = "x-request-id", "traceparent"
MOST_EXEMPLAR_CHARACTERS = 100
"""OpenMetrics allows 128 for names and values of all labels of an exemplar."""
_SAMPLED = "-01"
Value = str | int | float
_request_id: ContextVar[str] = ContextVar("request_id", default="")
_tracer: "Tracer | None" = None

_log = logging.getLogger(__name__)


def start(service: str) -> None:
    """Export the spans of this process from now on, as `service`, if the environment says where to.

    OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER and the others are those of OpenTelemetry's SDK. Spans go by
    OTLP over HTTP.
    """
    global _tracer
    if not is_wanted(os.environ):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        _log.warning("no traces, though OTEL_… asks for them: pip install 'qubic-lab[tracing]'")
        return
    provider = TracerProvider(
        resource=Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME") or f"qubic-lab-{service}"})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("qubic_lab")


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Return whether the environment asks for traces: it names an exporter or where to send them, and does not stop it.

    Raises:
        InputError: the exporter is another than `otlp`.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    if exporter:
        check_choice("OTEL_TRACES_EXPORTER", exporter, ("otlp", "none"))
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none":
        return False
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return bool(exporter or any(environment.get(name) for name in endpoints))


def is_on() -> bool:
    """Return whether spans are made in this process."""
    return _tracer is not None


def request_id() -> str:
    """Return the id of the request that is being answered; empty outside of one."""
    return _request_id.get()


def ids() -> dict[str, str]:
    """Return what names the request that is being answered, and its trace; empty outside of one."""
    found = {"request_id": name} if (name := _request_id.get()) else {}
    if (parent := _parent()).endswith(_SAMPLED):
        found["trace_id"] = parent.split("-")[1]
    return found


def exemplar() -> dict[str, str] | None:
    """Return the labels of an example for a metric; None outside of a request, and where a client's id is too long."""
    found = ids()
    characters = sum(len(name) + len(value) for name, value in found.items())
    return found if 0 < characters <= MOST_EXEMPLAR_CHARACTERS else None


def headers() -> dict[str, str]:
    """Return what another process needs to follow the present request."""
    found = {REQUEST_ID: name} if (name := _request_id.get()) else {}
    return found | ({PARENT: parent} if (parent := _parent()) else {})


def metadata() -> tuple[tuple[str, str], ...]:
    """Return `headers` for a call of gRPC."""
    return tuple(headers().items())


@contextmanager
def following(carried: Mapping[str, str]) -> Iterator[None]:
    """Work on a request of another process while the block runs, by its `headers`."""
    token = _request_id.set(carried.get(REQUEST_ID, ""))
    try:
        if _tracer is None:
            yield
        else:
            with _inside(carried.get(PARENT, "")):
                yield
    finally:
        _request_id.reset(token)


@contextmanager
def span(name: str, **attributes: Value) -> Iterator[dict[str, Value]]:
    """Record the time of the block as a span; what the block adds to the yielded dict becomes its attributes."""
    if _tracer is None:
        yield attributes
        return
    with _tracer.start_as_current_span(name) as made:
        try:
            yield attributes
        finally:
            made.set_attributes(attributes | ({"request_id": request} if (request := _request_id.get()) else {}))


def past_span(name: str, start_ns: int, end_ns: int, parent: str = "", **attributes: Value) -> str:
    """Record a span that was measured already, between two instants in ns since 1970, within `parent` or what runs.

    Return it as a parent of others; empty where no spans are made.
    """
    if _tracer is None:
        return ""
    context = _context(parent) if parent else None
    made = _tracer.start_span(name, context, attributes=attributes, start_time=start_ns)
    made.end(end_ns)
    return _named(made)


def _parent() -> str:
    """Return the span that runs as W3C's `traceparent`; empty without one."""
    if _tracer is None:
        return ""
    from opentelemetry.trace import get_current_span

    return _named(get_current_span())


def _named(made: "Span") -> str:
    context = made.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}{_SAMPLED if context.trace_flags.sampled else '-00'}"


def _context(parent: str) -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({PARENT: parent})


@contextmanager
def _inside(parent: str) -> Iterator[None]:
    from opentelemetry.context import attach, detach

    token = attach(_context(parent))
    try:
        yield
    finally:
        detach(token)
