"""Traces are read back as they were: one clock, sums for each request, a row for each rank."""

import json
import logging
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import pytest

from qubic_lab.errors import InputError
from qubic_lab.pipeline.message import Kind, Message, Work
from qubic_lab.trace import (
    SPAN_KINDS,
    Tracer,
    read_trace,
    read_work_ms,
    request_times,
    timeline,
    trace_cost,
)

HOUR_NS = 3_600_000_000_000
MS = 1_000_000
WORKS = (Work(slot=0, request=7, position=0),)


def span(kind: str, start_ms: float, end_ms: float, *requests: int, lane: int = 0, **more: Any) -> dict[str, Any]:
    """A record as a rank writes it; times in ms."""
    place = {"sequence": 1, "lane": lane, "phase": "decode", "tokens": 1, "requests": list(requests)}
    times = {"start_ns": int(start_ms * MS), "end_ns": int(end_ms * MS), "trace_ns": 1000}
    return {"kind": kind, **place, **times, **more}


def submit(request: int, time_ms: float) -> dict[str, Any]:
    return {"kind": "submit", "requests": [request], "start_ns": int(time_ms * MS), "end_ns": int(time_ms * MS)}


def write(folder: Path, *ranks: list[dict[str, Any]]) -> Path:
    for rank, records in enumerate(ranks):
        lines = [json.dumps(record) for record in [{"kind": "start", "rank": rank, "ranks": len(ranks)}, *records]]
        (folder / f"rank-{rank}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture
def two_ranks_trace(tmp_path: Path) -> Path:
    """Two requests that share a micro-batch; rank 1 had been waiting for them from 100 ms before."""
    first = [
        submit(7, 1000),
        submit(8, 1002),
        span("compute", 1004, 1010, 7, 8),
        span("send", 1010, 1011, 7, 8),
        span("receive", 1011, 1020, 7, 8),
        span("compute", 1020, 1021, 8, lane=1),
    ]
    second = [
        span("receive", 900, 1011, 7, 8),
        span("compute", 1011, 1017, 7, 8),
        span("sample", 1017, 1019, 7, 8),
        span("send", 1019, 1020, 7, 8),
    ]
    return write(tmp_path, first, second)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path / "new" / "folder", rank=0, ranks=1)
    tracer.submitted(7, perf_counter_ns())
    with tracer.span("compute", Message(Kind.PREFILL, sequence=3, lane=1, count=128, works=WORKS)):
        pass
    with tracer.span("send", Message(Kind.CONTROL, sequence=1)):
        pass
    tracer.memory()
    table = read_trace(tmp_path / "new" / "folder")
    assert table["kind"].tolist() == ["queue", "compute", "memory"]
    compute = table.iloc[1]
    assert (compute["rank"], compute["sequence"], compute["lane"], compute["tokens"]) == (0, 3, 1, 128)
    assert (compute["phase"], compute["requests"]) == ("prefill", (7,))
    assert 0 <= compute["start_ms"] <= compute["end_ms"]
    assert table.iloc[0]["end_ms"] == compute["start_ms"]
    assert table.iloc[2]["resident_bytes"] > 1_000_000


def test_a_second_trace_in_the_same_folder_starts_afresh(tmp_path: Path) -> None:
    for sequence in (1, 2):
        tracer = Tracer(tmp_path, rank=0, ranks=1)
        tracer.add("compute", Message(Kind.DECODE, sequence, works=WORKS), perf_counter_ns())
        tracer.close()
    assert read_trace(tmp_path)["sequence"].tolist() == [2]


def test_a_full_disk_ends_the_trace_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "rank-0.jsonl").symlink_to("/dev/full")
    tracer = Tracer(tmp_path, rank=0, ranks=1)
    tracer.add("compute", Message(Kind.DECODE, sequence=1, works=WORKS), perf_counter_ns())
    tracer.close()
    assert [record.message for record in caplog.records] == [
        f"the trace {tmp_path / 'rank-0.jsonl'} ends here: No space left on device"
    ]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        Tracer(tmp_path / "file", rank=0, ranks=1)


def add_clock(folder: Path, offset_ns: int, uncertainty_ns: int) -> None:
    clock = {"kind": "clock", "rank": 1, "offset_ns": offset_ns, "uncertainty_ns": uncertainty_ns}
    with (folder / "rank-0.jsonl").open("a") as file:
        file.write(json.dumps(clock) + "\n")


def test_a_clock_an_hour_ahead_is_put_back(two_ranks_trace: Path) -> None:
    expected = read_trace(two_ranks_trace)
    add_clock(two_ranks_trace, -90_000, 100_000)
    assert read_trace(two_ranks_trace).equals(expected), "a difference within its uncertainty is none"
    path = two_ranks_trace / "rank-1.jsonl"
    start, *records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record["start_ns"] += HOUR_NS
        record["end_ns"] += HOUR_NS
    path.write_text("".join(f"{json.dumps(record)}\n" for record in [start, *records]))
    for error_ns, uncertainty_ns in ((3 * MS, 5 * MS), (0, MS // 20), (2 * MS, 4 * MS)):  # the surest counts
        add_clock(two_ranks_trace, HOUR_NS + error_ns, uncertainty_ns)
    assert read_trace(two_ranks_trace).equals(expected)


def test_clocks_are_compared_at_the_middle_of_the_way_round(tmp_path: Path) -> None:
    tracer = Tracer(tmp_path, rank=0, ranks=3)
    sent_ns = perf_counter_ns()
    tracer.clocks([sent_ns, perf_counter_ns(), perf_counter_ns() + HOUR_NS])
    tracer.close()
    _, same, ahead = [json.loads(line) for line in (tmp_path / "rank-0.jsonl").read_text().splitlines()]
    assert (same["rank"], ahead["rank"]) == (1, 2)
    assert abs(same["offset_ns"]) <= same["uncertainty_ns"]
    assert abs(ahead["offset_ns"] - HOUR_NS) <= ahead["uncertainty_ns"]


def test_each_request_has_its_sums(two_ranks_trace: Path) -> None:
    times = request_times(read_trace(two_ranks_trace))
    assert list(times.columns) == [f"{kind}_ms" for kind in SPAN_KINDS]
    rows = {key: row.tolist() for key, row in times.iterrows()}
    assert rows == {  # queue, compute, sample, send, receive
        (7, 0): pytest.approx([4, 6, 0, 1, 9]),
        (7, 1): pytest.approx([0, 6, 2, 1, 11]),  # from its submission on
        (8, 0): pytest.approx([2, 7, 0, 1, 9]),
        (8, 1): pytest.approx([0, 6, 2, 1, 9]),
    }


def test_the_work_of_ranks_needs_no_table(tmp_path: Path) -> None:
    first = [submit(7, 10), span("compute", 14, 20, 7), span("send", 20, 21, 7), span("receive", 21, 30, 7)]
    second = [span("receive", 0, 21, 7), span("compute", 21, 23, 7), span("sample", 23, 23.5, 7)]
    assert read_work_ms(write(tmp_path, first, second)) == (7.0, 2.5)


def test_cost_is_that_of_the_worst_rank(two_ranks_trace: Path) -> None:
    # Four spans of 1 µs each: over 8 ms of work on rank 0, over 9 ms on rank 1.
    assert trace_cost(read_trace(two_ranks_trace)) == pytest.approx(0.004 / 8)


def test_timeline_has_a_row_for_each_rank_and_a_unit(two_ranks_trace: Path, tmp_path: Path) -> None:
    [axes] = timeline(read_trace(two_ranks_trace)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rank 0", "rank 1"]
    assert axes.get_xlabel().endswith("(ms)")
    (nothing := tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="no work"):
        timeline(read_trace(write(nothing, [span("receive", 1, 2, 7)])))


def test_a_request_that_never_began_has_no_queue_span(tmp_path: Path) -> None:
    table = read_trace(write(tmp_path, [submit(7, 0), submit(9, 0), span("compute", 1, 2, 7)]))
    assert table[table["kind"] == "queue"]["requests"].tolist() == [(7,)]


def test_a_cut_last_line_is_left_out_and_said(two_ranks_trace: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = two_ranks_trace / "rank-1.jsonl"
    path.write_text(path.read_text()[:-20])
    with caplog.at_level(logging.WARNING):
        table = read_trace(two_ranks_trace)
    assert table[table["rank"] == 1]["kind"].tolist() == ["receive", "compute", "sample"]
    assert [record.message for record in caplog.records] == [f"{path}: the last line is incomplete and ignored"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ""),
        ("{}\n", ""),
        ('{"kind": "start", "rank": 1, "ranks": 2}\n{"kind"\n{}\n', ""),
        (None, ".*bring the files of all ranks into one folder"),
    ],
)
def test_a_damaged_or_missing_file_is_named(text: str | None, said: str, two_ranks_trace: Path) -> None:
    path = two_ranks_trace / "rank-1.jsonl"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=f"{path}{said}"):
        read_trace(two_ranks_trace)
