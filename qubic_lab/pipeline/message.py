"""Messages between ranks: a small header of fixed size, then hidden states, tokens or a control text.

There is one codec and no pickle: a header is HEADER_WORDS int64 words, and floats are sent as their bits.
"""

import struct
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from qubic_lab.core import MAX_TOP_LOGPROBS

Header = npt.NDArray[np.int64]

MAX_SLOTS = 64
"""Limit of slots in a lane, given by the size of the header."""
FIRST_SEQUENCE = 1
"""Sequence number of the first micro-batch after a configuration; the following ones count up."""
NO_FAULT = -1
NO_TOKEN = -1
NO_SAMPLE = -1
NO_LOGPROBS = -1
LOGPROB_COLUMNS = 1 + 2 * MAX_TOP_LOGPROBS
"""Numbers of a work's log-probabilities: the chosen token's, then pairs of token and log-probability."""

_PREFIX_WORDS = 6
_WORK_WORDS = 11
HEADER_WORDS = _PREFIX_WORDS + MAX_SLOTS * _WORK_WORDS


class Kind(IntEnum):
    """Kinds of messages."""

    PREFILL = 1
    """A chunk of one prompt; hidden states (count, H) follow between ranks."""
    DECODE = 2
    """One token for each busy slot of a lane; hidden states (rows of the lane, H) follow between ranks."""
    CONTROL = 3
    """A JSON text of `count` bytes follows."""
    SCORE = 4
    """A PREFILL whose tokens are scored: the token ids that come next, (count,) int64, follow the hidden states between
    ranks, and their log-probabilities, (count,) fp64, come back."""


@dataclass(frozen=True)
class Work:
    """The work of a micro-batch for one slot, and its result.

    `sample` is the index of the answer's token that this step chooses, or NO_SAMPLE within the prompt.
    `fault` is the first rank whose output was not finite. `logprobs` is how many of the likeliest tokens to return
    in addition to the chosen one, or NO_LOGPROBS.
    """

    slot: int
    request: int
    position: int
    sample: int = NO_SAMPLE
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    token: int = NO_TOKEN
    fault: int = NO_FAULT
    logprobs: int = NO_LOGPROBS


@dataclass(frozen=True)
class Message:
    """A micro-batch (on the way back with its tokens), or a control text of `count` bytes.

    A PREFILL has `count` tokens of one prompt, starting at the position of its works. At the prompt's end, works after
    the first belong to siblings, whose slots get a copy of the first one's cache. A DECODE has one work per busy slot.
    """

    kind: Kind
    sequence: int
    lane: int = 0
    count: int = 1
    works: tuple[Work, ...] = ()

    @property
    def has_logprobs(self) -> bool:
        """Whether log-probabilities, (works, LOGPROB_COLUMNS) fp64, come back with the tokens."""
        return any(work.logprobs != NO_LOGPROBS and work.sample != NO_SAMPLE for work in self.works)

    @property
    def is_prompt(self) -> bool:
        """Whether it is a chunk of a prompt, to be answered or scored."""
        return self.kind in (Kind.PREFILL, Kind.SCORE)

    def with_fault(self, rank: int, faulty: set[int]) -> "Message":
        """Mark the works at the indices `faulty`, unless an earlier rank already did."""
        works = tuple(
            replace(work, fault=rank) if index in faulty and work.fault == NO_FAULT else work
            for index, work in enumerate(self.works)
        )
        return replace(self, works=works)

    def with_tokens(self, tokens: list[int]) -> "Message":
        """Return the message of the last rank, with one chosen token per work."""
        works = tuple(replace(work, token=token) for work, token in zip(self.works, tokens, strict=True))
        return replace(self, works=works)


def encode(message: Message) -> Header:
    """Write a message into a header."""
    assert len(message.works) <= MAX_SLOTS
    header = np.zeros(HEADER_WORDS, dtype=np.int64)
    header[:5] = (message.kind, message.sequence, message.lane, message.count, len(message.works))
    for index, work in enumerate(message.works):
        start = _PREFIX_WORDS + index * _WORK_WORDS
        header[start : start + _WORK_WORDS] = (
            work.slot,
            work.request,
            work.position,
            work.sample,
            _bits(work.temperature),
            _bits(work.top_p),
            work.top_k,
            work.seed,
            work.token,
            work.fault,
            work.logprobs,
        )
    return header


def decode(header: Header) -> Message:
    """Read a message from a header."""
    kind, sequence, lane, count, works = (int(word) for word in header[:5])
    return Message(Kind(kind), sequence, lane, count, tuple(_work(header, index) for index in range(works)))


def _work(header: Header, index: int) -> Work:
    start = _PREFIX_WORDS + index * _WORK_WORDS
    words = [int(word) for word in header[start : start + _WORK_WORDS]]
    slot, request, position, sample, temperature, top_p, *rest = words
    return Work(slot, request, position, sample, _float(temperature), _float(top_p), *rest)


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _float(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])
