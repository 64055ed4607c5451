"""Messages between ranks: a small header of fixed size, then hidden states, tokens or a control text.

There is one codec and no pickle: a header is HEADER_WORDS int64 words, and floats are sent as their bits.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple

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


class Kind(IntEnum):
    """Kinds of messages."""

    PREFILL = 1
    """Chunks of prompts; hidden states (count, H) follow between ranks, then the token ids that come next in scored
    chunks, (scored rows,) int64, the adjustments of logits, (adjustments, 3) as of Scheduler.adjustments, fp64 as
    int64, because their sizes vary and the transport asks for floats ahead, and the placements of pages,
    (placements, 3) int64."""
    DECODE = 2
    """One token for each slot of a lane that decodes, and drafted ones; hidden states (rows of the lane, or one for
    each token, H) follow between ranks, and adjustments and placements as above."""
    CONTROL = 3
    """A JSON text of `count` bytes follows."""


class Work(NamedTuple):
    """The work of a micro-batch for one slot, and its result.

    `rows` tokens from `position` on are fed; a sibling feeds none: its slot gets a copy of the cache of the last work
    before it that does. `sample` is the index of the answer's token that this step chooses, or NO_SAMPLE within the
    prompt. `fault` is the first rank whose output was not finite. `logprobs` is how many of the likeliest tokens to
    return in addition to the chosen one, or NO_LOGPROBS. A chunk is scored if `prompt_logprobs` is not NO_LOGPROBS:
    each row returns the log-probability of the token that comes next, and those of this number of most likely tokens.
    """

    slot: int
    request: int
    position: int
    rows: int = 1
    sample: int = NO_SAMPLE
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    token: int = NO_TOKEN
    fault: int = NO_FAULT
    logprobs: int = NO_LOGPROBS
    prompt_logprobs: int = NO_LOGPROBS
    min_p: float = 0.0


_PREFIX_WORDS = 8
_WORK = np.dtype([(name, np.float64 if kind is float else np.int64) for name, kind in Work.__annotations__.items()])
HEADER_WORDS = _PREFIX_WORDS + MAX_SLOTS * len(Work._fields)


@dataclass(frozen=True)
class Message:
    """A micro-batch (on the way back with its tokens), or a control text of `count` bytes.

    A PREFILL has a work for each prompt of which it carries a chunk, in the order of its rows; works of siblings follow
    the one that ends their prompt. A DECODE has one work for each slot, each followed by those of the slot's drafted
    tokens. `count` is the number of tokens fed, `packed` that of the bytes of packed hidden states that follow, 0 if
    they are not packed, `adjustments` that of changed logits, and `placements` that of pages new to the ranks' tables.
    """

    kind: Kind
    sequence: int
    lane: int = 0
    count: int = 1
    works: tuple[Work, ...] = ()
    packed: int = 0
    adjustments: int = 0
    placements: int = 0

    @property
    def sampled(self) -> tuple[Work, ...]:
        """The works that choose a token."""
        return tuple(work for work in self.works if work.sample != NO_SAMPLE)

    @property
    def drafted(self) -> tuple[int, ...]:
        """The indices of works that are fed a drafted token: they follow the first one of their slot."""
        if self.kind is not Kind.DECODE:
            return ()
        return tuple(i for i, (before, work) in enumerate(pairwise(self.works), 1) if before.slot == work.slot)

    @property
    def has_logprobs(self) -> bool:
        """Whether log-probabilities, (sampled works, LOGPROB_COLUMNS) fp64, come back with the tokens."""
        return any(work.logprobs != NO_LOGPROBS and work.sample != NO_SAMPLE for work in self.works)

    @property
    def scored(self) -> tuple[Work, ...]:
        """The works whose rows are scored."""
        return tuple(work for work in self.works if work.prompt_logprobs != NO_LOGPROBS)

    @property
    def score_shape(self) -> tuple[int, int]:
        """Rows and columns of the scores, fp64 as int64, that come back last: as of log-probabilities."""
        scored = self.scored
        most = max((work.prompt_logprobs for work in scored), default=0)
        return sum(work.rows for work in scored), 1 + 2 * most

    def with_fault(self, rank: int, faulty: Collection[int]) -> "Message":
        """Mark the works at the indices `faulty`, unless an earlier rank already did."""
        if not faulty:
            return self
        works = tuple(
            work._replace(fault=rank) if index in faulty and work.fault == NO_FAULT else work
            for index, work in enumerate(self.works)
        )
        return replace(self, works=works)

    def with_tokens(self, tokens: Iterable[int]) -> "Message":
        """Return the message of the last rank, with one chosen token for each of the sampled works."""
        chosen = iter(tokens)
        works = tuple(work if work.sample == NO_SAMPLE else work._replace(token=next(chosen)) for work in self.works)
        return replace(self, works=works)


def encode(message: Message) -> Header:
    """Write a message into a header."""
    works = len(message.works)
    assert works <= MAX_SLOTS
    header = np.zeros(HEADER_WORDS, dtype=np.int64)
    sizes = (works, message.packed, message.adjustments, message.placements)
    header[:_PREFIX_WORDS] = (message.kind, message.sequence, message.lane, message.count, *sizes)
    header[_PREFIX_WORDS:].view(_WORK)[:works] = list(message.works)
    return header


def decode(header: Header) -> Message:
    """Read a message from a header."""
    kind, sequence, lane, count, works, *sizes = header[:_PREFIX_WORDS].tolist()
    records = header[_PREFIX_WORDS:].view(_WORK)[:works]
    return Message(Kind(kind), sequence, lane, count, tuple(map(Work._make, records.tolist())), *sizes)
