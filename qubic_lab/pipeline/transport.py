"""Transport of messages between ranks: a ring over torch.distributed, or a queue for a single rank."""

import math
from collections import deque
from dataclasses import replace
from time import perf_counter_ns
from typing import Protocol

import torch
import torch.distributed as dist

from qubic_lab.pipeline.message import HEADER_WORDS, Message, decode, encode
from qubic_lab.pipeline.packing import pack, unpack
from qubic_lab.trace import NoTracer, Tracer

_MOST_UNFINISHED_SENDS = 16
_HEADER_TAG = 0
_MOST_ASKED = 32
_MOST_ASKED_BYTES = 64 * 1024


class Transport(Protocol):
    """The connection to the next rank and from the previous one; messages keep their order."""

    def send(self, message: Message, *payloads: torch.Tensor) -> None:
        """Start sending; payloads must not be changed afterwards."""

    def receive(self) -> Message:
        """Wait for the next message from the previous rank."""

    def receive_payload(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Wait for the next payload that belongs to the message just received."""


class LoopTransport:
    """The ring of a single rank, which receives its own messages."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._payloads: deque[torch.Tensor] = deque()

    def send(self, message: Message, *payloads: torch.Tensor) -> None:
        """Queue a message and its payloads."""
        self._messages.append(message)
        self._payloads.extend(payloads)

    def receive(self) -> Message:
        """Return the oldest message."""
        return self._messages.popleft()

    def receive_payload(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return the next payload of the message just received."""
        return self._payloads.popleft()


class RingTransport:
    """Rank r sends to r + 1 and the last one to 0: headers on the CPU (gloo), hidden states on their device.

    Sends overlap with compute; torch.distributed picks NCCL for CUDA tensors and gloo for others. gloo sends nothing
    before the receiver has asked for it, and then its threads wait for cores that compute. So the next header, and the
    next hidden states of the size of a decode step, are asked for ahead. A payload's tag is its size in bytes, so that
    no other one answers; NCCL ignores tags and keeps the order.
    """

    def __init__(self, rank: int, ranks: int) -> None:
        self._next = (rank + 1) % ranks
        self._previous = (rank - 1) % ranks
        self._unfinished: deque[tuple[dist.Work, torch.Tensor]] = deque()
        self._asked: dict[int, tuple[dist.Work, torch.Tensor]] = {}

    def send(self, message: Message, *payloads: torch.Tensor) -> None:
        """Start sending; tensors are kept until they are sent."""
        self._start(torch.from_numpy(encode(message)), _HEADER_TAG)
        for payload in payloads:
            self._start(payload.contiguous(), payload.nbytes)
        while len(self._unfinished) > _MOST_UNFINISHED_SENDS:
            self._unfinished.popleft()[0].wait()

    def receive(self) -> Message:
        """Wait for a header."""
        return decode(self._receive(8 * HEADER_WORDS, _HEADER_TAG, again=True).view(torch.int64).numpy())

    def receive_payload(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Wait for a payload of known shape."""
        if device.type == "cpu":
            size = math.prod(shape) * dtype.itemsize
            again = dtype.is_floating_point and size <= _MOST_ASKED_BYTES
            return self._receive(size, size, again).view(dtype).view(shape)
        payload = torch.empty(shape, dtype=dtype, device=device)
        dist.recv(payload, src=self._previous)
        return payload

    def _receive(self, size: int, tag: int, again: bool) -> torch.Tensor:
        """Wait for a number of bytes with this tag, and if they may come again, ask for the next ones."""
        work, received = self._asked.pop(tag) if tag in self._asked else self._ask(size, tag)
        work.wait()
        if again and len(self._asked) < _MOST_ASKED:
            self._asked[tag] = self._ask(size, tag)
        return received

    def _ask(self, size: int, tag: int) -> "tuple[dist.Work, torch.Tensor]":
        to_receive = torch.empty(size, dtype=torch.uint8)
        work = dist.irecv(to_receive, src=self._previous, tag=tag)
        assert work is not None, "this rank is not in the process group"
        return work, to_receive

    def _start(self, tensor: torch.Tensor, tag: int) -> None:
        work = dist.isend(tensor, dst=self._next, tag=tag)
        assert work is not None, "this rank is not in the process group"
        self._unfinished.append((work, tensor))


class PackedTransport:
    """A transport that packs hidden states, which are the floats of fewer than 8 bytes; the rest goes as it is."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._packed = 0

    def send(self, message: Message, *payloads: torch.Tensor) -> None:
        """Start sending; what packing does not make smaller is sent unpacked."""
        if payloads and payloads[0].is_floating_point() and payloads[0].element_size() < 8:
            packed = pack(payloads[0].cpu())
            if len(packed) < payloads[0].nbytes:
                message, payloads = replace(message, packed=len(packed)), (packed, *payloads[1:])
        self._transport.send(message, *payloads)

    def receive(self) -> Message:
        """Wait for a message."""
        message = self._transport.receive()
        self._packed = message.packed
        return replace(message, packed=0) if message.packed else message

    def receive_payload(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Wait for the next payload, and unpack hidden states."""
        if not self._packed:
            return self._transport.receive_payload(shape, dtype, device)
        size, self._packed = self._packed, 0
        packed = self._transport.receive_payload((size,), torch.uint8, torch.device("cpu"))
        return unpack(packed, shape, dtype).to(device)


class TracedTransport:
    """A transport that traces sends and waits."""

    def __init__(self, transport: Transport, tracer: Tracer | NoTracer) -> None:
        self._transport = transport
        self._tracer = tracer
        self._received: Message

    def send(self, message: Message, *payloads: torch.Tensor) -> None:
        """Start sending."""
        with self._tracer.span("send", message):
            self._transport.send(message, *payloads)

    def receive(self) -> Message:
        """Flush the trace, because this wait may be the rank's last, and wait for a message."""
        self._tracer.flush()
        start_ns = perf_counter_ns()
        self._received = self._transport.receive()
        self._tracer.add("receive", self._received, start_ns)
        return self._received

    def receive_payload(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Wait for the payload of the message just received."""
        with self._tracer.span("receive", self._received):
            return self._transport.receive_payload(shape, dtype, device)


def make_transport(rank: int, ranks: int) -> Transport:
    """Return the transport for a rank of an initialized process group."""
    return LoopTransport() if ranks == 1 else RingTransport(rank, ranks)
