"""The common part of all ranks: a configurable stage, and control messages that travel around the ring.

A control message goes around twice: first the order itself, which each rank passes on before it obeys, so that all
load at the same time; then a collection, to which each rank adds its reply.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from qubic_lab import tracing
from qubic_lab.errors import InputError, ModelError, QubicLabError, RankError
from qubic_lab.model.checkpoint import Checkpoint
from qubic_lab.model.decoder import Decoder, torch_dtype
from qubic_lab.model.folders import check_intact
from qubic_lab.model.layout import stage_ranges
from qubic_lab.model.native import NativeDecoder
from qubic_lab.model.resolve import resolve_model
from qubic_lab.model.split import rank_folder, read_split
from qubic_lab.pipeline.message import FIRST_SEQUENCE, Kind, Message
from qubic_lab.pipeline.request_spans import RequestTracer
from qubic_lab.pipeline.stage import Stage
from qubic_lab.pipeline.transport import PackedTransport, TracedTransport, Transport
from qubic_lab.provenance import free_memory_bytes
from qubic_lab.trace import NO_TRACE, NoTracer, Tracer

_CPU = torch.device("cpu")
_ERRORS: dict[str, type[QubicLabError]] = {"ModelError": ModelError, "InputError": InputError}
Ended = Mapping[str, Mapping[str, str]]
"""Requests that have ended, by their numbers, each with what names it and its span (`tracing.headers`)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageSettings:
    """Settings that all ranks of a pipeline share; fields as in Settings of wire/pipeline.proto."""

    model_folder: str
    layers: tuple[int, ...]
    dtype: str
    device: str
    threads: int
    lanes: int
    slots_per_lane: int
    capture_folder: str
    trace_folder: str
    kernels: str
    compression: str
    quantization: str


@dataclass
class RankCounts:
    """What this rank has done; fields as in RankCounts of wire/pipeline.proto."""

    rank: int
    steps: int = 0
    tokens: int = 0
    compute_s: float = 0.0
    wait_s: float = 0.0
    resident_bytes: int = 0
    gpu_bytes: int = 0


class Member:
    """One rank: its place in the ring and, once configured, its stage."""

    def __init__(self, rank: int, ranks: int, transport: Transport) -> None:
        self.rank = rank
        self.ranks = ranks
        self.transport = transport
        self.tracer: Tracer | NoTracer = NO_TRACE
        self._bare = transport
        self.stage: Stage | None = None
        self._loaded: tuple[Any, ...] | None = None
        self._counts = RankCounts(rank)
        self._working = False

    def receive(self) -> Message:
        """Wait for the next message; the wait counts between two micro-batches, as without requests nothing comes."""
        started_s = time.perf_counter()
        message = self.transport.receive()
        is_work = message.kind is not Kind.CONTROL
        if is_work and self._working:
            self._counts.wait_s += time.perf_counter() - started_s
        self._working = is_work
        return message

    def run(
        self, message: Message, hidden: torch.Tensor, *more: torch.Tensor | None
    ) -> tuple[Message, tuple[torch.Tensor, ...]]:
        """Run the stage on a micro-batch, as `Stage.run`, and count it."""
        assert self.stage is not None, "a micro-batch came before the pipeline was configured"
        started_s, counts = time.perf_counter(), self._counts
        ran = self.stage.run(message, hidden, *more)
        counts.compute_s += time.perf_counter() - started_s
        counts.steps += 1
        counts.tokens += message.count
        return ran

    def count(self, ended: Ended) -> dict[str, Any]:
        """Take note of requests that have ended, and return what this rank has done so far."""
        if self.rank:  # rank 0 knows it first
            for number, carried in ended.items():
                with tracing.following(carried):
                    _log.info("request %s has ended", number)
        if isinstance(self.tracer, RequestTracer):
            self.tracer.ended({int(number): carried.get(tracing.PARENT, "") for number, carried in ended.items()})
        self._counts.resident_bytes = psutil.Process().memory_info().rss
        self._counts.gpu_bytes = torch.cuda.memory_allocated() if self._on_gpu else 0
        return asdict(self._counts)

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out an order; return the reply, with an `error` if it failed."""
        try:
            if order["op"] == "configure":
                self._configure(StageSettings(**{**order["settings"], "layers": tuple(order["settings"]["layers"])}))
        except QubicLabError as error:
            self.stage, self._loaded = None, None
            return {"error": str(error), "kind": type(error).__name__}
        return self._report() | {"counts": self.count(order.get("ended", {}))}

    def send_control(self, content: dict[str, Any]) -> None:
        """Send a control message to the next rank."""
        payload = torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)
        self.transport.send(Message(Kind.CONTROL, sequence=0, count=len(payload)), payload)

    def receive_control(self, message: Message) -> dict[str, Any]:
        """Receive the content of a control message."""
        payload = self.transport.receive_payload((message.count,), torch.uint8, _CPU)
        content: dict[str, Any] = json.loads(payload.numpy().tobytes())
        return content

    def _configure(self, settings: StageSettings) -> None:
        self._connect(settings)
        device = torch.device(settings.device)
        names = ("model_folder", "layers", "dtype", "device", "kernels", "quantization")
        weights = tuple(getattr(settings, name) for name in names)
        if self.stage is None or self._loaded != weights:
            self.stage = None  # free the old weights before the new ones are read
            decoder = self._load(settings, device)
        else:
            decoder = self.stage.decoder
        # torch's own threads would keep a core busy while they wait beside the kernels'.
        torch.set_num_threads(1 if isinstance(decoder, NativeDecoder) else settings.threads)
        if isinstance(decoder, NativeDecoder):
            decoder.use_threads(settings.threads)
        capture = Path(settings.capture_folder) if settings.capture_folder else None
        self.stage = Stage(self.rank, decoder, settings.lanes, settings.slots_per_lane, capture, self.tracer)
        self._loaded = weights

    def _connect(self, settings: StageSettings) -> None:
        """Pack hidden states or not, end the current trace, and begin one if the settings name a folder."""
        self.tracer.close()
        self.tracer, self.transport = NO_TRACE, self._bare
        if settings.compression and self.ranks > 1:
            self.transport = PackedTransport(self.transport)
        if settings.trace_folder:
            self.tracer = Tracer(Path(settings.trace_folder), self.rank, self.ranks)
        if tracing.is_on():
            self.tracer = RequestTracer(self.rank, self.tracer)
        if self.tracer is not NO_TRACE:
            self.transport = TracedTransport(self.transport, self.tracer)

    def _load(self, settings: StageSettings, device: torch.device) -> Decoder | NativeDecoder:
        if len(settings.layers) != self.ranks:
            raise InputError(f"{len(settings.layers)} layer counts for {self.ranks} ranks: give one for each rank")
        folder = resolve_model(settings.model_folder)
        if read_split(folder) is not None:
            folder = rank_folder(folder, self.rank)
            check_intact(folder)
        stage = stage_ranges(settings.layers)[self.rank]
        checkpoint, dtype = Checkpoint.open(folder, stage), torch_dtype(settings.dtype)
        if settings.kernels == "native":
            return NativeDecoder(checkpoint, stage, dtype, settings.threads, settings.quantization)
        return Decoder(checkpoint, stage, dtype, device)

    @property
    def _on_gpu(self) -> bool:
        return self.stage is not None and self.stage.decoder.device.type == "cuda"

    def _report(self) -> dict[str, Any]:
        self.tracer.memory()
        decoder = self.stage.decoder if self.stage else None
        return {
            "rank": self.rank,
            "pid": os.getpid(),
            "stage": str(decoder.stage) if decoder else "",
            "weight_bytes": decoder.weight_bytes if decoder else 0,
            "page_bytes": decoder.page_bytes if isinstance(decoder, NativeDecoder) else 0,
            "free_bytes": free_memory_bytes(),
            "host": platform.node(),
            "peak_rss_bytes": peak_rss_bytes(),
            "gpu_used_bytes": torch.cuda.max_memory_allocated() if self._on_gpu else 0,
            "gpu_reserved_bytes": torch.cuda.max_memory_reserved() if self._on_gpu else 0,
        }


REPORT_ORDER = {"op": "report"}


def check_replies(replies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the replies of all ranks.

    Raises:
        QubicLabError: the first error of a rank, with its original type.
    """
    for reply in replies:
        if "error" in reply:
            raise _ERRORS.get(reply["kind"], QubicLabError)(reply["error"])
    return replies


def check_order(sender: int, message: Message, due: int) -> None:
    """Check that a rank passed on the micro-batch with the sequence number `due`; each rank checks the one before it.

    Raises:
        RankError: it is another one, or not a micro-batch; the message names the rank.
    """
    if message.kind is Kind.CONTROL:
        raise RankError(f"rank {sender} diverged: it sent an order instead of micro-batch {due}")
    if message.sequence != due:
        raise RankError(f"rank {sender} diverged: it answered micro-batch {message.sequence} instead of {due}")


def follow(member: Member) -> None:
    """Run a rank other than 0: receive, run this stage, and pass the result on, until the process ends.

    Raises:
        RankError: the previous rank sent another micro-batch than the expected one.
    """
    reply: dict[str, Any] = {}
    due = FIRST_SEQUENCE
    while True:
        message = member.receive()
        if message.kind is Kind.CONTROL:
            content = member.receive_control(message)
            if content["op"] == "count":
                content["counts"].append(member.count(content["ended"]))
                member.send_control(content)
            elif content["op"] == "collect":
                content["replies"].append(reply)
                content["clocks_ns"].append(time.perf_counter_ns())
                member.send_control(content)
            else:
                member.send_control(content)
                reply = member.obey(content)
                if content["op"] == "configure":
                    due = FIRST_SEQUENCE
            continue
        check_order(member.rank - 1, message, due)
        due += 1
        stage = member.stage
        assert stage is not None, "a micro-batch came before the pipeline was configured"
        decoder = stage.decoder
        hidden = member.transport.receive_payload(stage.hidden_shape(message), decoder.dtype, decoder.device)
        next_tokens = adjustments = placements = None
        if message.scored:
            next_tokens = member.transport.receive_payload(message.score_shape[:1], torch.int64, _CPU)
        if message.adjustments:
            adjustments = member.transport.receive_payload((message.adjustments, 3), torch.int64, _CPU)
        if message.placements:
            placements = member.transport.receive_payload((message.placements, 3), torch.int64, _CPU)
        message, payloads = member.run(message, hidden, next_tokens, adjustments, placements)
        member.transport.send(message, *payloads)


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux: only the current resident memory is known
        return int(psutil.Process().memory_info().rss)
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
