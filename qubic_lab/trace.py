"""Traces of pipelines: each rank writes its spans to a file, and the files are read back as one table.

A span is a period of a rank's time with its micro-batch and requests. Traces have only numbers and ids, and no
text of prompts or answers. Times are readings of `time.perf_counter_ns`, which on one host is the
same clock in every process; clocks of other hosts are compared with rank 0's whenever a control message goes around.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import FileIO
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Literal

import psutil

from qubic_lab.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

SpanKind = Literal["compute", "sample", "send", "receive"]
"""Layers; head and sampling; sending; waiting for the previous rank."""

SPAN_KINDS = ("queue", "compute", "sample", "send", "receive")
"""All kinds; `queue`, a request's time from submission to its first micro-batch, is computed on reading."""

_WORK = ("compute", "sample", "send")
_NUMBERS = ["sequence", "lane", "tokens", "resident_bytes"]
_COLUMNS = ["rank", "kind", "phase", "requests", *_NUMBERS, "start_ms", "end_ms", "trace_ms"]
_INK = "#1c2733"
_DARK = "#0f5f6b"
_PALE = "#cfe3e6"
_HEIGHTS = {"compute": 0.8, "sample": 0.8, "send": 0.8, "receive": 0.16}


class Tracer:
    """Writes the spans of one rank to a new `rank-<r>.jsonl` in a folder; a `batch` is a `pipeline.message.Message`.

    A rank may end without notice, so spans are flushed before it waits; a killed rank loses only those of its current
    micro-batch. The tracer measures itself: `trace_ns` of a span is the time in trace calls since the previous span.
    """

    def __init__(self, folder: Path, rank: int, ranks: int) -> None:
        """Open the file; `ranks` is the number of ranks.

        Raises:
            InputError: the file cannot be written.
        """
        path = folder / f"rank-{rank}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = _open(path)
        except OSError as error:
            raise InputError(f"cannot write the trace {path} ({error.strerror}): choose another folder") from error
        self._lines: list[str] = []
        self._trace_ns = 0
        self._note(kind="start", rank=rank, ranks=ranks)
        self.flush()

    @contextmanager
    def span(self, kind: SpanKind, batch: Any) -> Iterator[None]:
        """Record the time of the block as a span."""
        start_ns = perf_counter_ns()
        yield
        self.add(kind, batch, start_ns)

    def add(self, kind: SpanKind, batch: Any, start_ns: int) -> None:
        """Record a span that ends now, unless it belongs to a control message, which has no requests."""
        end_ns = perf_counter_ns()
        if not batch.works:
            return
        # Formatted by hand, because this runs five times per step and json.dumps would take twice as long.
        self._lines.append(
            f'{{"kind": "{kind}", "phase": "{batch.kind.name.lower()}", "sequence": {batch.sequence}, '
            f'"lane": {batch.lane}, "tokens": {batch.count}, "requests": {[work.request for work in batch.works]}, '
            f'"start_ns": {start_ns}, "end_ns": {end_ns}, "trace_ns": {self._trace_ns}}}\n'
        )
        self._trace_ns = perf_counter_ns() - end_ns

    def submitted(self, request: int, time_ns: int) -> None:
        """Record when a request was submitted."""
        self._note(kind="submit", requests=[request], start_ns=time_ns, end_ns=time_ns)

    def memory(self) -> None:
        """Record the resident memory of this process, and flush."""
        now_ns = perf_counter_ns()
        self._note(kind="memory", start_ns=now_ns, end_ns=now_ns, resident_bytes=psutil.Process().memory_info().rss)
        self.flush()

    def clocks(self, clocks_ns: Sequence[int]) -> None:
        """Record how the ranks' clocks differ from this one, rank 0's, and flush.

        Args:
            clocks_ns: the reading of each rank, collected by a message that has just come back around the ring; the
                first is this rank's own when it was sent. Each reading is assumed to be from the middle of that time,
                which is wrong by at most half of it.
        """
        sent_ns, back_ns = clocks_ns[0], perf_counter_ns()
        for rank, clock_ns in enumerate(clocks_ns[1:], start=1):
            offset_ns = clock_ns - (sent_ns + back_ns) // 2
            self._note(kind="clock", rank=rank, offset_ns=offset_ns, uncertainty_ns=(back_ns - sent_ns + 1) // 2)
        self.flush()

    def flush(self) -> None:
        """Write buffered records to the file."""
        start_ns = perf_counter_ns()
        try:
            self._file.write("".join(self._lines).encode())
        except OSError as error:  # a full disk must only end the trace
            _log.warning("the trace %s ends here: %s", self._file.name, error.strerror)
            self._file = _open(Path(os.devnull))
        self._lines.clear()
        self._trace_ns += perf_counter_ns() - start_ns

    def close(self) -> None:
        """Flush and close the file."""
        self.flush()
        self._file.close()

    def _note(self, **record: object) -> None:
        self._lines.append(json.dumps(record) + "\n")


class NoTracer:
    """A tracer that does nothing, for use while tracing is off."""

    _nothing = nullcontext()

    def span(self, kind: SpanKind, batch: Any) -> AbstractContextManager[None]:
        """Do nothing."""
        return self._nothing

    def add(self, kind: SpanKind, batch: Any, start_ns: int) -> None:
        """Do nothing."""

    def flush(self, *_: object) -> None:
        """Do nothing."""

    submitted = memory = clocks = close = flush


NO_TRACE = NoTracer()


def read_trace(folder: Path) -> "pd.DataFrame":
    """Read the spans of all ranks, in order of their start.

    Returns:
        One row per span: rank, kind (one of SPAN_KINDS), phase (`prefill` or `decode`), requests (tuple of ids),
        sequence and lane of the micro-batch, tokens (of all its requests), start_ms and end_ms (by rank 0's clock, from
        the first span on), trace_ms (time in trace calls since the rank's previous span). Rows of the kind `memory`,
        one per report, have no length but resident_bytes.

    Raises:
        InputError: a rank's file is missing or damaged. An incomplete last line is ignored with a warning.
    """
    try:
        return _spans(folder)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"the trace in {folder} is damaged ({error!r}): trace again") from error


def read_work_ms(folder: Path) -> tuple[float, ...]:
    """Return how long each rank worked, without a table, for which pandas would have to be loaded.

    Raises:
        InputError: as for `read_trace`.
    """
    return tuple(
        sum(record["end_ns"] - record["start_ns"] for record in records if record["kind"] in _WORK) / 1e6
        for records in _by_rank(folder)
    )


def _spans(folder: Path) -> "pd.DataFrame":
    """Return the table of `read_trace`; a damaged record raises a KeyError or similar."""
    import pandas as pd

    by_rank = _by_rank(folder)
    spans = [
        {**record, "rank": rank, "start_ns": record["start_ns"] - ahead_ns, "end_ns": record["end_ns"] - ahead_ns}
        for rank, records in enumerate(by_rank)
        for ahead_ns in (_ahead_ns(by_rank[0], rank),)
        for record in records
        if "start_ns" in record
    ]
    spans = _with_queue_spans(spans)
    zero_ns = min((span["start_ns"] for span in spans if span["kind"] != "memory"), default=0)
    for span in spans:
        span["start_ms"] = (span["start_ns"] - zero_ns) / 1e6
        span["end_ms"] = (span["end_ns"] - zero_ns) / 1e6
        span["trace_ms"] = span.get("trace_ns", 0) / 1e6
        span["requests"] = tuple(span.get("requests", ()))
    table = pd.DataFrame(spans, columns=_COLUMNS).sort_values("start_ms", ignore_index=True)
    return table.astype(dict.fromkeys(_NUMBERS, "Int64"))


def request_times(spans: "pd.DataFrame") -> "pd.DataFrame":
    """Return the time of each request on each rank in ms: one row per request and rank, one column per kind of span.

    Requests that decode together share micro-batches, which count fully for each of them. Waiting for a micro-batch
    before a request was submitted does not count.
    """
    each = spans.explode("requests", ignore_index=True).dropna(subset="requests")
    each = each.rename(columns={"requests": "request"})
    submitted_ms = each[each["kind"] == "queue"].set_index("request")["start_ms"]
    start_ms = each["start_ms"].clip(lower=each["request"].map(submitted_ms))
    each["ms"] = (each["end_ms"] - start_ms).clip(lower=0.0)
    sums = each.groupby(["request", "rank", "kind"])["ms"].sum().unstack("kind")
    return sums.reindex(columns=list(SPAN_KINDS)).fillna(0.0).add_suffix("_ms")


def trace_cost(spans: "pd.DataFrame") -> float:
    """Return the ratio of trace time to working time (computing, sampling, sending) of the worst rank.

    A step also has waits, so the share of a step is smaller still.
    """
    work = spans[spans["kind"].isin(_WORK)]
    work_ms = (work["end_ms"] - work["start_ms"]).groupby(work["rank"]).sum()
    trace_ms = spans.groupby("rank")["trace_ms"].sum()
    return float((trace_ms / work_ms).max())


def timeline(spans: "pd.DataFrame") -> "Figure":
    """Draw the ranks over time, one row each: work in the shade of its lane, sampling hatched, waits as thin lines.

    Raises:
        InputError: the trace has no work.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Patch

    drawn = spans[spans["kind"].isin(list(_HEIGHTS))]
    work = drawn[drawn["kind"] != "receive"]
    if work.empty:
        raise InputError("the trace has no work: send a request while tracing is on")
    ranks, lanes = drawn["rank"].max() + 1, drawn["lane"].max() + 1
    shades = LinearSegmentedColormap.from_list("lanes", [_DARK, _PALE], N=max(2, lanes))
    sample: dict[str, Any] = {"hatch": "/////", "edgecolor": _INK, "linewidth": 0}
    send: dict[str, Any] = {"color": _INK}
    wait: dict[str, Any] = {"facecolor": "white", "edgecolor": _INK, "linewidth": 0.5}
    with plt.rc_context({"font.size": 10, "hatch.linewidth": 0.6, "legend.frameon": False}):
        figure, axes = plt.subplots(figsize=(8.0, 1.5 + 0.6 * ranks), layout="constrained")
        for (kind, rank, lane), group in drawn.groupby(["kind", "rank", "lane"]):
            shade = {"facecolor": shades(int(lane))}
            look = {"compute": shade, "sample": shade | sample, "send": send, "receive": wait}[kind]
            bars = list(zip(group["start_ms"], group["end_ms"] - group["start_ms"], strict=True))
            axes.broken_barh(bars, (rank - _HEIGHTS[kind] / 2, _HEIGHTS[kind]), **look)
        axes.set_xlim(left=work["start_ms"].min())  # an idle rank may have waited long before it
        axes.set_yticks(range(ranks), [f"rank {rank}" for rank in range(ranks)])
        axes.set_ylim(ranks - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_xlabel("time since the trace began (ms)")
        keys = [Patch(facecolor=shades(lane), label=f"lane {lane}") for lane in range(lanes)]
        keys.append(Patch(facecolor="white", label="sampling", **sample))
        keys += [Patch(label="sending", **send), Patch(label="waiting", **wait)]
        figure.legend(handles=keys, loc="outside upper left", ncols=len(keys))
    return figure


def _open(path: Path) -> FileIO:
    return path.open("wb", buffering=0)


def _by_rank(folder: Path) -> list[list[dict[str, Any]]]:
    """Return the records of all ranks."""
    first = _records(folder, 0)
    return [first, *(_records(folder, rank) for rank in range(1, first[0]["ranks"]))]


def _records(folder: Path, rank: int) -> list[dict[str, Any]]:
    """Return the records of a rank's file; an incomplete last line is left out."""
    path = folder / f"rank-{rank}.jsonl"
    try:
        *lines, rest = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; bring the files of all ranks into one folder") from error
    if rest:
        _log.warning("%s: the last line is incomplete and ignored", path)
    try:
        records = [json.loads(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): trace again") from error
    if not records or records[0].get("kind") != "start":
        raise InputError(f"{path} is not a rank's trace: it does not begin with a start record")
    return records


def _ahead_ns(first: list[dict[str, Any]], rank: int) -> int:
    """Return by how much a rank's clock is ahead of rank 0's, by the most precise comparison in rank 0's records.

    A difference within its uncertainty counts as none, because ranks of one host share their clock.
    """
    found = [record for record in first if record["kind"] == "clock" and record["rank"] == rank]
    surest = min(found, key=lambda record: record["uncertainty_ns"], default={"offset_ns": 0, "uncertainty_ns": 0})
    offset_ns: int = surest["offset_ns"]
    return 0 if abs(offset_ns) <= surest["uncertainty_ns"] else offset_ns


def _with_queue_spans(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Convert submissions to spans that end when rank 0 starts to compute; drop those that never started."""
    begun_ns: dict[int, int] = {}
    for span in spans:
        if span["rank"] == 0 and span["kind"] == "compute":
            for request in span["requests"]:
                begun_ns.setdefault(request, span["start_ns"])
    return [
        span if span["kind"] != "submit" else {**span, "kind": "queue", "end_ns": begun_ns[span["requests"][0]]}
        for span in spans
        if span["kind"] != "submit" or span["requests"][0] in begun_ns
    ]
