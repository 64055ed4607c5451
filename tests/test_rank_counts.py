"""What ranks count while they work: it travels among the micro-batches and changes no answer."""

import queue
import threading
from collections import deque
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qubic_lab.core import SamplingParams
from qubic_lab.pipeline import engine as engines
from qubic_lab.pipeline.engine import Engine
from qubic_lab.pipeline.member import Member, StageSettings, follow
from qubic_lab.pipeline.message import Kind, Message
from qubic_lab.pipeline.schedule import Event, Limits
from qubic_lab.tracing import REQUEST_ID

RANKS, NEW_TOKENS = 2, 12


class Thread:
    """The transport of a ring of threads."""

    def __init__(self, ring: list["queue.SimpleQueue[Any]"], rank: int) -> None:
        self._own, self._next = ring[rank], ring[(rank + 1) % len(ring)]
        self._payloads: deque[torch.Tensor] = deque()

    def send(self, message: Message, *payloads: torch.Tensor) -> None:
        self._next.put((message, payloads))

    def receive(self) -> Message:
        message, payloads = self._own.get()
        self._payloads.extend(payloads)
        return message  # type: ignore[no-any-return]

    def receive_payload(self, *_: Any) -> torch.Tensor:
        return self._payloads.popleft()


@pytest.fixture
def running(tiny: Path) -> Engine:
    ring: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(RANKS)]
    first, last = (Member(rank, RANKS, Thread(ring, rank)) for rank in range(RANKS))
    engine = Engine(first)
    for work in (engine.run, lambda: follow(last)):
        threading.Thread(target=work, daemon=True).start()
    settings = StageSettings(str(tiny), (2, 2), "fp32", "cpu", 1, RANKS, 2, "", "", "torch", "", "")
    engine.configure(settings, Limits(RANKS, 2, 128, 512, frozenset()))
    return engine


def answer(engine: Engine, number: int) -> list[int]:
    came: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine.submit(number, (5, 6, 7), SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True), came.put)
    return [came.get(timeout=60).token for _ in range(NEW_TOKENS)]


def test_ranks_count_among_the_micro_batches(
    running: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alone = answer(running, 1)
    running.report()
    before = running.counts
    monkeypatch.setattr(engines, "COUNT_S", 0.0)  # after each micro-batch
    with caplog.at_level("INFO"):
        running.tell(1, {REQUEST_ID: "the first"})
        assert answer(running, 2) == alone
    assert running.counts[0]["steps"] > before[0]["steps"], "nobody asked, and yet they counted"
    running.report()
    for rank, (then, now) in enumerate(zip(before, running.counts, strict=True)):
        assert now["rank"] == rank
        assert now["steps"] - then["steps"] == NEW_TOKENS  # the prompt's, which has the first token, and the others
        assert now["tokens"] - then["tokens"] == 3 + NEW_TOKENS - 1
        assert now["compute_s"] > then["compute_s"] and now["resident_bytes"] > 0
    assert [line.getMessage() for line in caplog.records if line.name.endswith("member")] == ["request 1 has ended"]


def test_waits_count_between_two_micro_batches_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [Message(kind, 0) for kind in (Kind.CONTROL, Kind.DECODE, Kind.DECODE, Kind.CONTROL, Kind.DECODE)]
    clock = count()
    monkeypatch.setattr("qubic_lab.pipeline.member.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    member = Member(1, 2, SimpleNamespace(receive=messages.copy().__iter__().__next__))  # type: ignore[arg-type]
    waited = [(member.receive(), member.count({})["wait_s"])[1] for _ in messages]
    assert waited == [0.0, 0.0, 1.0, 1.0, 1.0]
