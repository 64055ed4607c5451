"""Transport of messages between ranks: a ring over torch.distributed, or a queue for a single rank."""

import math
from collections import defaultdict, deque
from dataclasses import replace
from time import perf_counter_ns
from typing import Protocol

import torch
import torch.distributed as dist

from qubic_lab.pipeline.message import HEADER_WORDS, MAX_SLOTS, Message, Work, decode, encode
from qubic_lab.pipeline.packing import pack, unpack
from qubic_lab.trace import NoTracer, Tracer

_MOST_UNFINISHED_SENDS = 16
_HEADER_TAG = 0
_LEAST_ASKED_BYTES, _MOST_ASKED_BYTES = 2**16, 2**20


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
    before the receiver has asked for it, which takes a round trip, and its threads wait for cores that compute. So as
    many messages as there are ranks are asked for ahead. What is asked for may be longer than what comes: one tag and
    one length serve all payloads of about a size. NCCL ignores tags and keeps the order.
    """

    def __init__(self, rank: int, ranks: int) -> None:
        self._next = (rank + 1) % ranks
        self._previous = (rank - 1) % ranks
        self._ahead = ranks
        self._unfinished: deque[tuple[dist.Work, torch.Tensor]] = deque()
        self._asked: defaultdict[int, deque[tuple[dist.Work, torch.Tensor]]] = defaultdict(deque)

    def send(self, message: Message, *payloads: torch.Tensor) -> None:
        """Start sending; tensors are kept until they are sent."""
        unused = (MAX_SLOTS - len(message.works)) * len(Work._fields)
        self._start(torch.from_numpy(encode(message)[: HEADER_WORDS - unused]), _HEADER_TAG)
        for payload in payloads:
            self._start(payload.contiguous(), _length(payload.nbytes))
        while len(self._unfinished) > _MOST_UNFINISHED_SENDS:
            self._unfinished.popleft()[0].wait()

    def receive(self) -> Message:
        """Wait for a header."""
        return decode(self._receive(8 * HEADER_WORDS, _HEADER_TAG).view(torch.int64).numpy())

    def receive_payload(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Wait for a payload of known shape."""
        if device.type == "cpu":
            size = math.prod(shape) * dtype.itemsize
            length = _length(size)
            return self._receive(length, length)[:size].view(dtype).view(shape)
        payload = torch.empty(shape, dtype=dtype, device=device)
        dist.recv(payload, src=self._previous)
        return payload

    def _receive(self, length: int, tag: int) -> torch.Tensor:
        """Wait for what comes next with this tag, and ask for what may come after it."""
        asked = self._asked[tag]
        work, received = asked.popleft() if asked else self._ask(length, tag)
        work.wait()
        while length <= _MOST_ASKED_BYTES and len(asked) < self._ahead:
            asked.append(self._ask(length, tag))
        return received

    def _ask(self, length: int, tag: int) -> "tuple[dist.Work, torch.Tensor]":
        to_receive = torch.empty(length, dtype=torch.uint8)
        work = dist.irecv(to_receive, src=self._previous, tag=tag)
        assert work is not None, "this rank is not in the process group"
        return work, to_receive

    def _start(self, tensor: torch.Tensor, tag: int) -> None:
        work = dist.isend(tensor, dst=self._next, tag=tag)
        assert work is not None, "this rank is not in the process group"
        self._unfinished.append((work, tensor))


def _length(size: int) -> int:
    """Return the bytes that are asked for to receive a payload, which are its tag as well."""
    return max(_LEAST_ASKED_BYTES, 1 << (size - 1).bit_length()) if size <= _MOST_ASKED_BYTES else size


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
