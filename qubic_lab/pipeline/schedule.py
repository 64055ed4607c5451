"""The scheduler of micro-batches: requests, lanes and slots as plain values, without tensors or processes.

A lane is a fixed number of slots that decode together, one token each. With as many lanes in flight as ranks, every
rank works at the same time. A prompt is sent in chunks, each of which is a micro-batch.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from qubic_lab.core import FinishReason, SamplingParams
from qubic_lab.pipeline.message import FIRST_SEQUENCE, NO_FAULT, NO_LOGPROBS, NO_SAMPLE, Kind, Message, Work

PREFILL_BURST = 4
"""Most prompt chunks in a row before a lane that can decode gets its turn."""


@dataclass(frozen=True)
class Limits:
    """The shape of the schedule; `chunk` and `max_positions` are in tokens."""

    lanes: int
    slots_per_lane: int
    chunk: int
    max_positions: int
    eos_token_ids: frozenset[int] = frozenset()

    def finish_reason(
        self, prompt_tokens: int, sampling: SamplingParams, count: int, token: int
    ) -> FinishReason | None:
        """Return why an answer ends with `token`, its `count`-th, or None if it continues; stop texts come later."""
        if token in self.eos_token_ids and not sampling.ignore_eos:
            return "stop"
        full = prompt_tokens + count >= self.max_positions
        return "length" if full or count == sampling.max_new_tokens else None


@dataclass(frozen=True)
class Event:
    """The result of a step for a request: its next token, its end, or the rank that failed."""

    request: int
    token: int | None = None
    finish: FinishReason | None = None
    fault_rank: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    scores: tuple[float, ...] = ()


def with_logprobs(event: Event, row: Sequence[float]) -> Event:
    """Return a token's event with log-probabilities: the chosen token's, then pairs of token and log-probability."""
    pairs = [(int(row[i]), row[i + 1]) for i in range(1, len(row), 2)]
    return replace(event, logprob=row[0], top_logprobs=tuple(pairs))


@dataclass(frozen=True)
class _Waiting:
    request: int
    prompt: tuple[int, ...]
    sampling: SamplingParams
    siblings: "tuple[Sibling, ...]" = ()
    forced: tuple[int, ...] = ()
    score: bool = False


@dataclass(frozen=True)
class Sibling:
    """Another answer to the prompt of a request, with its number and sampling; the prompt is computed once."""

    request: int
    sampling: SamplingParams


@dataclass
class _Slot:
    """A request in its slot; `sent` prompt tokens have been sent, `tokens` have been chosen or forced.

    `siblings` are the slots that get a copy of this one's cache after the prompt.
    """

    request: int
    prompt: tuple[int, ...]
    sampling: SamplingParams
    forced: tuple[int, ...] = ()  # the answer's first tokens
    sent: int = 0
    tokens: list[int] = field(default_factory=list)
    in_flight: int = 0  # micro-batches that have not come back
    ended: bool = False  # finished, failed or cancelled: free once nothing is in flight
    siblings: "tuple[tuple[int, _Slot], ...]" = ()  # with their places
    score: bool = False  # the prompt's tokens are scored, and none are chosen

    @property
    def decoding(self) -> bool:
        return bool(self.tokens) and not self.ended


class Scheduler:
    """Admits requests to free slots, issues micro-batches, and takes them back with their tokens."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting: deque[_Waiting] = deque()
        self._slots: list[_Slot | None] = [None] * (limits.lanes * limits.slots_per_lane)
        self._sequence = FIRST_SEQUENCE - 1
        self._burst = 0
        self._next_lane = 0

    @property
    def idle(self) -> bool:
        """Whether no request waits or runs."""
        return not self._waiting and not any(self._slots)

    def submit(
        self,
        request: int,
        prompt: Sequence[int],
        sampling: SamplingParams,
        siblings: Sequence[Sibling] = (),
        forced: Sequence[int] = (),
    ) -> None:
        """Queue a request; its prompt must be shorter than `max_positions`, and all siblings must fit the slots.

        The `forced` tokens go through the same steps that chose them before, whatever these choose now, and make no
        events; the answer may not end with any of them.
        """
        assert 0 < len(prompt) < self.limits.max_positions
        assert len(siblings) < len(self._slots)
        assert not (siblings and forced)
        assert not any(self.limits.finish_reason(len(prompt), sampling, *nth) for nth in enumerate(forced, 1))
        self._waiting.append(_Waiting(request, tuple(prompt), sampling, tuple(siblings), tuple(forced)))

    def submit_score(self, request: int, prompt: Sequence[int]) -> None:
        """Queue a prompt whose tokens are scored; an event comes for each of its chunks."""
        assert 0 < len(prompt) <= self.limits.max_positions
        self._waiting.append(_Waiting(request, tuple(prompt), SamplingParams(), score=True))

    def cancel(self, request: int) -> None:
        """Cancel a request; its slot is freed when its pending micro-batch has come back."""
        self._waiting = deque(w for w in self._waiting if w.request != request)
        for index, slot in enumerate(self._slots):
            if slot is not None and slot.request == request:
                slot.ended = True
                self._free_if_over(index)

    def next_micro_batch(self) -> Message | None:
        """Return the micro-batch that rank 0 sends next, or None if everything waits for tokens."""
        self._admit()
        decodable = self._decodable_lane()
        prefillable = self._prefillable_slot()
        if prefillable is not None and (decodable is None or self._burst < PREFILL_BURST):
            self._burst = 0 if decodable is None else self._burst + 1
            return self._prefill(prefillable)
        self._burst = 0
        return None if decodable is None else self._decode(decodable)

    def input_tokens(self, message: Message) -> list[int]:
        """Return the token ids that a micro-batch feeds: a prompt's chunk, or the last token of each work."""
        slots = [self._slot(work.slot) for work in message.works]
        if message.is_prompt:
            start = message.works[0].position
            return list(slots[0].prompt[start : start + message.count])
        return [slot.tokens[-1] for slot in slots]

    def next_tokens(self, message: Message) -> list[int]:
        """Return the next token id after each token of a prompt chunk; 0 after the prompt's last one."""
        [work] = message.works
        prompt = (*self._slot(work.slot).prompt, 0)
        return list(prompt[work.position + 1 : work.position + 1 + message.count])

    def complete(self, message: Message) -> list[Event]:
        """Take a micro-batch back; return the events for the clients."""
        events = []
        for work in message.works:
            slot = self._slot(work.slot)
            slot.in_flight -= 1
            if not slot.ended and (event := self._advance(slot, work, message.count)):
                events.append(event)
            if slot.ended and work.sample == NO_SAMPLE:
                events += self._give_up(slot, work.fault)
            self._free_if_over(work.slot)
        return events

    def _give_up(self, leader: _Slot, fault_rank: int) -> list[Event]:
        """End the siblings of a request whose prompt failed."""
        lost = [(i, slot) for i, slot in leader.siblings if fault_rank != NO_FAULT and not slot.ended]
        for index, slot in lost:
            slot.ended = True
            self._free_if_over(index)
        return [Event(slot.request, fault_rank=fault_rank) for _, slot in lost]

    def _slot(self, index: int) -> _Slot:
        slot = self._slots[index]
        assert slot is not None, f"slot {index} is free, yet a micro-batch names it"
        return slot

    def _admit(self) -> None:
        """Place waiting requests in order of arrival in the emptiest lanes, so that all ranks get work."""
        while self._waiting and 1 + len(self._waiting[0].siblings) <= self._slots.count(None):
            waiting = self._waiting.popleft()
            leader = _Slot(waiting.request, waiting.prompt, waiting.sampling, waiting.forced, score=waiting.score)
            self._place(leader)
            siblings = [
                _Slot(sibling.request, waiting.prompt, sibling.sampling, sent=len(waiting.prompt))
                for sibling in waiting.siblings
            ]
            leader.siblings = tuple((self._place(sibling), sibling) for sibling in siblings)

    def _place(self, slot: _Slot) -> int:
        """Put a request into the first free slot of the emptiest lane; return the slot's index."""
        free = [index for index, other in enumerate(self._slots) if other is None]
        busy = [sum(other is not None for other in self._lane(lane)) for lane in range(self.limits.lanes)]
        index = min(free, key=lambda i: (busy[i // self.limits.slots_per_lane], i))
        self._slots[index] = slot
        return index

    def _lane(self, lane: int) -> list[_Slot | None]:
        first = lane * self.limits.slots_per_lane
        return self._slots[first : first + self.limits.slots_per_lane]

    def _prefillable_slot(self) -> int | None:
        """Return the slot of the oldest request with prompt tokens left to send."""
        candidates = [
            (slot.request, index)
            for index, slot in enumerate(self._slots)
            if slot is not None and not slot.ended and slot.sent < len(slot.prompt)
        ]
        return min(candidates)[1] if candidates else None

    def _decodable_lane(self) -> int | None:
        """Return the next lane, round robin, with a slot that can decode and has no pending micro-batch."""
        for offset in range(self.limits.lanes):
            lane = (self._next_lane + offset) % self.limits.lanes
            slots = [slot for slot in self._lane(lane) if slot is not None and slot.tokens]
            if any(slot.decoding for slot in slots) and not any(slot.in_flight for slot in slots):
                return lane
        return None

    def _prefill(self, index: int) -> Message:
        slot = self._slot(index)
        start = slot.sent
        count = min(self.limits.chunk, len(slot.prompt) - start)
        slot.sent += count
        last = slot.sent == len(slot.prompt)
        sample = 0 if last and not slot.score else NO_SAMPLE
        works = [_work(index, slot, start, sample)]
        if last:
            works += [_work(i, sibling, start, sample) for i, sibling in slot.siblings if not sibling.ended]
        kind = Kind.SCORE if slot.score else Kind.PREFILL
        return self._message(kind, index // self.limits.slots_per_lane, count, tuple(works))

    def _decode(self, lane: int) -> Message:
        self._next_lane = (lane + 1) % self.limits.lanes
        first = lane * self.limits.slots_per_lane
        works = [
            _work(first + i, slot, position=len(slot.prompt) + len(slot.tokens) - 1, sample=len(slot.tokens))
            for i, slot in enumerate(self._lane(lane))
            if slot is not None and slot.decoding
        ]
        return self._message(Kind.DECODE, lane, 1, tuple(works))

    def _message(self, kind: Kind, lane: int, count: int, works: tuple[Work, ...]) -> Message:
        self._sequence += 1
        for work in works:
            self._slot(work.slot).in_flight += 1
        return Message(kind, self._sequence, lane, count, works)

    def _advance(self, slot: _Slot, work: Work, count: int) -> Event | None:
        if work.fault != NO_FAULT:
            slot.ended = True
            return Event(slot.request, fault_rank=work.fault)
        if slot.score:
            slot.ended = work.position + count == len(slot.prompt)
            return Event(slot.request, finish="length" if slot.ended else None)
        if work.sample == NO_SAMPLE:
            return None
        if work.sample < len(slot.forced):
            slot.tokens.append(slot.forced[work.sample])
            return None
        slot.tokens.append(work.token)
        finish = self.limits.finish_reason(len(slot.prompt), slot.sampling, len(slot.tokens), work.token)
        slot.ended = finish is not None
        return Event(slot.request, work.token, finish)

    def _free_if_over(self, index: int) -> None:
        slot = self._slots[index]
        if slot is not None and slot.ended and not slot.in_flight:
            self._slots[index] = None


def _work(index: int, slot: _Slot, position: int, sample: int) -> Work:
    sampling = slot.sampling
    return Work(
        slot=index,
        request=slot.request,
        position=position,
        sample=sample,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        logprobs=sampling.top_logprobs if sampling.logprobs else NO_LOGPROBS,
    )
