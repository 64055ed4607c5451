"""The scheduler of micro-batches: requests, lanes and slots as plain values, without tensors or processes.

A lane is a set of requests that decode together, one token each. With as many lanes in flight as ranks, every rank
works at the same time. A prompt is sent in chunks, and chunks of several prompts share a micro-batch where they fit.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from qubic_lab.core import FinishReason, SamplingParams
from qubic_lab.model.layout import PAGE
from qubic_lab.pipeline.lookup import Lookup, StepTime, Texts, draft_lengths
from qubic_lab.pipeline.message import (
    FIRST_SEQUENCE,
    MAX_SLOTS,
    NO_FAULT,
    NO_LOGPROBS,
    NO_SAMPLE,
    Kind,
    Message,
    Work,
)
from qubic_lab.pipeline.pages import Page, Pages

CHUNKS_ALONE = 4
"""Chunks of prompts in a micro-batch of a single rank that delays no decoding request."""
LONG_CHUNKS = 4
"""A prompt with more chunks left is a long one: others must neither wait for its end nor for a whole chunk of it."""
LEAST_ROWS = 16
"""Of a long prompt's part while others decode."""


@dataclass(frozen=True)
class Limits:
    """The shape of the schedule; `chunk` and `max_positions` are in tokens.

    With `fixed_lanes` each slot belongs to a lane: lane i has the slots from i * slots_per_lane on. Otherwise a lane's
    requests are chosen anew for each step. Without them a step may verify up to `most_drafted` tokens of an answer:
    as many as pay, or, with `draft_always`, as there are.

    All requests share `pages` of the KV cache, if that is not 0; a single one fits (`max_positions`). With
    `prefix_caching` a prompt is not computed as far as pages for its tokens are known, of which at most `most_kept`
    are kept for nobody.
    """

    lanes: int
    slots_per_lane: int
    chunk: int
    max_positions: int
    eos_token_ids: frozenset[int] = frozenset()
    fixed_lanes: bool = False
    most_drafted: int = 0
    draft_always: bool = False
    pages: int = 0
    most_kept: int = 0
    prefix_caching: bool = False

    def pages_of(self, prompt_tokens: int, samples: int) -> int:
        """Return the pages of a prompt and of its samples, which share full ones."""
        return math.ceil(prompt_tokens / PAGE) + (samples - 1) * bool(prompt_tokens % PAGE)

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
    scores: tuple[Sequence[float], ...] = ()
    """For each token of a scored chunk of its prompt: the log-probability of the next one, then pairs as of its top."""
    begun_s: float | None = None
    """Of its first event: when the first chunk of its prompt was sent, by `time.perf_counter`."""
    index: int | None = None
    """Of its token among those of the answer."""
    drafted: bool = False
    """Whether the token was chosen behind a drafted one, and so without a step of its own."""
    cached: int = 0
    """Of its first event: the prompt's first tokens that were not computed, because their pages were known."""


def with_logprobs(event: Event, row: Sequence[float]) -> Event:
    """Return a token's event with log-probabilities: the chosen token's, then pairs of token and log-probability."""
    return replace(event, logprob=row[0], top_logprobs=tuple(pairs_of(row)))


def pairs_of(row: Sequence[float]) -> list[tuple[int, float]]:
    """Return the likeliest tokens of a row of log-probabilities, each with its own."""
    return [(int(row[i]), row[i + 1]) for i in range(1, len(row), 2)]


Placement: TypeAlias = tuple[int, int, int]
"""A slot, a place in its table and the number of the page that is there now; or CLEARED, 0 and a page to zero."""
CLEARED = -1


@dataclass(frozen=True)
class _Waiting:
    request: int
    prompt: tuple[int, ...]
    sampling: SamplingParams
    siblings: "tuple[Sibling, ...]" = ()
    forced: tuple[int, ...] = ()
    prompt_logprobs: int = NO_LOGPROBS


@dataclass(frozen=True)
class Sibling:
    """Another answer to the prompt of a request, with its number and sampling; the prompt is computed once."""

    request: int
    sampling: SamplingParams


@dataclass(eq=False)
class _Slot:
    """A request in its slot `index`; `tokens` have been chosen or forced.

    Of the first `due` tokens of its text, the prompt or, if it was preempted, all but the last one, `sent` have been
    sent. The first `known` of its pages are known. `siblings` are the slots that get a copy of this one's cache after
    the prompt.
    """

    index: int
    request: int
    prompt: tuple[int, ...]
    sampling: SamplingParams
    age: int  # its place in the order of arrival
    due: int
    forced: tuple[int, ...] = ()  # the answer's first tokens
    sent: int = 0
    cached: int = 0  # what was sent when it began
    tokens: list[int] = field(default_factory=list)
    in_flight: int = 0  # micro-batches that have not come back
    last: int = 0  # the sequence number of the newest of them
    ended: bool = False  # finished, failed or cancelled: free once nothing is in flight
    siblings: "tuple[_Slot, ...]" = ()
    prompt_logprobs: int = NO_LOGPROBS
    lookup: Lookup | None = None
    stepped: int = 0  # tokens when its running decode step was sent
    drafted: Sequence[int] = ()  # what that step is fed after the last of them
    pages: list[Page] = field(default_factory=list)
    known: int = 0

    @property
    def decoding(self) -> bool:
        return bool(self.tokens) and self.sent == self.due and not self.ended

    @property
    def length(self) -> int:
        """Tokens of its text that have been fed when its next decode step begins."""
        return len(self.prompt) + len(self.tokens) - 1

    def text(self, start: int, end: int) -> tuple[int, ...]:
        """Return tokens of the prompt and the answer."""
        prompt = len(self.prompt)
        if end <= prompt:
            return self.prompt[start:end]
        return (*self.prompt[start:], *self.tokens[max(start - prompt, 0) : end - prompt])

    def fed(self, work: Work) -> int:
        """Return the token that a row of its running decode step is fed."""
        row = work.position - (len(self.prompt) + self.stepped - 1)
        return self.drafted[row - 1] if row else self.tokens[self.stepped - 1]


class Scheduler:
    """Admits requests to free slots, issues micro-batches, and takes them back with their tokens."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting: deque[_Waiting | _Slot] = deque()  # preempted requests are slots, first of all
        self._slots: list[_Slot | None] = [None] * (limits.lanes * limits.slots_per_lane)
        self._prompts: deque[_Slot] = deque()  # with prompt tokens left to send, in order of arrival
        self._sequence = FIRST_SEQUENCE - 1
        self._steps = 0  # decode steps since the last chunk of a prompt
        self._lanes: deque[int] = deque(range(limits.lanes))  # none of their requests is in flight
        self._arrived = 0  # requests that have had a slot
        self._pages = Pages(limits.pages, limits.most_kept) if limits.pages else None
        self._placements: list[Placement] = []
        self.preemptions = 0
        self._long_rows = float(limits.chunk)  # of a long prompt, that take as long as a decode step
        self._oldest_first = False
        self.step_time = StepTime()

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
        prompt_logprobs: int = NO_LOGPROBS,
    ) -> None:
        """Queue a request; it must leave room for a token if it wants any, and all siblings must fit slots and pages.

        With `prompt_logprobs` (as of Work) an event comes for each chunk of the prompt. The `forced` tokens go through
        the same steps that chose them before, whatever these choose now, and make no events of their own; the answer
        may not end with any of them.
        """
        assert 0 < len(prompt) <= self.limits.max_positions - bool(sampling.max_new_tokens)
        assert len(siblings) < len(self._slots)
        assert not self._pages or self.limits.pages_of(len(prompt), 1 + len(siblings)) <= self._pages.total
        assert not (siblings and forced)
        assert not any(self.limits.finish_reason(len(prompt), sampling, *nth) for nth in enumerate(forced, 1))
        self._waiting.append(
            _Waiting(request, tuple(prompt), sampling, tuple(siblings), tuple(forced), prompt_logprobs)
        )

    def cancel(self, request: int) -> None:
        """Cancel a request; its slot is freed when its pending micro-batch has come back."""
        self._waiting = deque(w for w in self._waiting if w.request != request)
        self._prompts = deque(slot for slot in self._prompts if slot.request != request)
        for slot in self._slots:
            if slot is not None and slot.request == request:
                slot.ended = True
                self._free_if_over(slot)

    def next_micro_batch(self) -> Message | None:
        """Return the micro-batch that rank 0 sends next, or None if everything waits for tokens.

        Between two chunks of prompts every lane that can decode gets a turn, so a prompt delays others by one chunk.
        """
        self._admit()
        prompts, room = self._next_prompts()
        if (not prompts or self._steps < self.limits.lanes) and (step := self._next_step()):
            self._steps += 1
            return self._decode(*step)
        self._steps = 0
        return self._prefill(prompts, room) if prompts else None

    def placements(self) -> "list[Placement]":
        """Return what the next micro-batch finds new in the ranks' tables of pages, in this order."""
        placements, self._placements = self._placements, []
        return placements

    def begun(self, message: Message) -> list[int]:
        """Return the requests of which a micro-batch has the first chunk."""
        if message.kind is not Kind.PREFILL:
            return []
        slots = [(self._slot(work.slot), work) for work in message.works]
        return [work.request for slot, work in slots if work.position == slot.cached and not slot.tokens]

    def observe(self, message: Message, seconds: float) -> None:
        """Learn from the time that a micro-batch took."""
        decoding = self._decoding_rows()
        if message.kind is Kind.DECODE:
            self.step_time.observe(message.count, seconds)
        elif decoding and message.count == int(self._long_rows):
            ratio = self.step_time(decoding) / seconds
            rows = self._long_rows * min(max(ratio, 0.5), 2.0) ** 0.5
            self._long_rows = min(max(rows, LEAST_ROWS), self.limits.chunk)

    def input_tokens(self, message: Message) -> list[int]:
        """Return the token ids that a micro-batch feeds: chunks of prompts, or a token of each work."""
        slots = [self._slot(work.slot) for work in message.works]
        if message.kind is Kind.PREFILL:
            fed = zip(message.works, slots, strict=True)
            return [token for work, slot in fed for token in slot.text(work.position, work.position + work.rows)]
        return [slot.fed(work) for work, slot in zip(message.works, slots, strict=True)]

    def next_tokens(self, message: Message) -> list[int]:
        """Return the token id that comes next after each token of the scored chunks; 0 after a prompt's last one."""
        return [
            token
            for work in message.scored
            for token in (*self._slot(work.slot).prompt, 0)[work.position + 1 : work.position + 1 + work.rows]
        ]

    def adjustments(self, message: Message) -> list[tuple[int, int, float]]:
        """Return what is to be added to logits: the index of the sampled work, the token id and the number."""
        return [
            (row, *each)
            for row, work in enumerate(message.sampled)
            for each in _adjustments(self._slot(work.slot), work.sample)
        ]

    def complete(self, message: Message) -> list[Event]:
        """Take a micro-batch back; return the events for the clients."""
        events = []
        if message.kind is Kind.DECODE:
            self._lanes.append(message.lane)
        for work in message.works:
            slot = self._slot(work.slot)
            slot.in_flight -= 1
            if work.fault != NO_FAULT and not _is_drafted(slot, work):
                for page in slot.pages:
                    page.spoiled = not page.tokens
            if not slot.ended and _counts(slot, work) and (event := self._advance(slot, work)):
                events.append(event)
            self._learn(slot, work)
            if slot.ended:
                if work.sample == NO_SAMPLE:
                    events += self._give_up(slot, work.fault)
                self._free_if_over(slot)
        return events

    def _give_up(self, leader: _Slot, fault_rank: int) -> list[Event]:
        """End the siblings of a request whose prompt failed."""
        lost = [slot for slot in leader.siblings if fault_rank != NO_FAULT and not slot.ended]
        for slot in lost:
            slot.ended = True
            self._free_if_over(slot)
        return [Event(slot.request, fault_rank=fault_rank) for slot in lost]

    def _slot(self, index: int) -> _Slot:
        slot = self._slots[index]
        assert slot is not None, f"slot {index} is free, yet a micro-batch names it"
        return slot

    def _admit(self) -> None:
        """Place waiting requests in order of arrival in the emptiest lanes, so that all ranks get work."""
        while self._waiting and self._fits(waiting := self._waiting[0]):
            self._waiting.popleft()
            if isinstance(waiting, _Slot):
                self._resume(waiting)
            else:
                self._begin(waiting)

    def _fits(self, waiting: "_Waiting | _Slot") -> bool:
        """Whether there are slots, and pages for its text and one more for each running request."""
        samples = 1 + len(waiting.siblings)
        if samples > self._slots.count(None):
            return False
        if not self._pages:
            return True
        due = waiting.due if isinstance(waiting, _Slot) else len(waiting.prompt)
        found = self._known(waiting, due)
        missing = self.limits.pages_of(due, samples) - len(found) + self._pages.unused(found)
        running = len(self._slots) - self._slots.count(None)
        return missing + running <= self._pages.available

    def _known(self, waiting: "_Waiting | _Slot", due: int) -> list[Page]:
        """Return the known pages with which a text begins, of which `due` tokens are to be fed.

        A prompt's last token is always fed, because its answer's first token is chosen behind it, and all of them are
        if it is scored.
        """
        if not self._pages or not self.limits.prefix_caching or waiting.prompt_logprobs != NO_LOGPROBS:
            return []
        if isinstance(waiting, _Slot) and waiting.tokens:
            return self._pages.find(waiting.text(0, due))
        return self._pages.find(waiting.prompt[: due - 1])

    def _begin(self, waiting: _Waiting) -> None:
        found = self._known(waiting, len(waiting.prompt))
        leader = self._place(_slot_of(waiting, waiting.request, waiting.sampling, self._arrived))
        leader.siblings = tuple(
            self._place(_slot_of(waiting, sibling.request, sibling.sampling, self._arrived + place))
            for place, sibling in enumerate(waiting.siblings, 1)
        )
        self._arrived += 1 + len(leader.siblings)
        leader.forced, leader.prompt_logprobs = waiting.forced, waiting.prompt_logprobs
        leader.sent = leader.cached = len(found) * PAGE
        self._prompts.append(leader)
        if self._pages:
            self._give(leader, self._pages.use(found))
            self._reserve(leader, leader.due)
            for sibling in leader.siblings:
                self._give(sibling, self._pages.use(leader.pages[: leader.due // PAGE]))
                self._reserve(sibling, leader.due)
            for slot in (leader, *leader.siblings):
                slot.known = len(found)
        if self.limits.most_drafted:
            texts = Texts(waiting.prompt)
            for slot in (leader, *leader.siblings):
                slot.lookup = texts.begin()

    def _resume(self, slot: _Slot) -> None:
        """Place a preempted request again: what its pages held is computed from its text."""
        assert self._pages
        found = self._known(slot, slot.due)
        self._place(slot)
        self._give(slot, self._pages.use(found))
        self._reserve(slot, slot.due)
        slot.known, slot.sent = len(found), len(found) * PAGE
        if slot.sent < slot.due:
            self._prompts.append(slot)

    def _place(self, slot: _Slot) -> _Slot:
        """Put a request into the first free slot of the emptiest lane."""
        free = [index for index, other in enumerate(self._slots) if other is None]
        busy = [sum(other is not None for other in self._lane(lane)) for lane in range(self.limits.lanes)]
        slot.index = min(free, key=lambda i: (busy[i // self.limits.slots_per_lane], i))
        self._slots[slot.index] = slot
        return slot

    def _give(self, slot: _Slot, pages: Sequence[Page]) -> None:
        """Add pages to those of a slot, which has them as a user."""
        self._placements += [(slot.index, len(slot.pages) + i, page.number) for i, page in enumerate(pages)]
        slot.pages += pages

    def _reserve(self, slot: _Slot, length: int) -> None:
        """Give a slot the pages that it lacks for `length` positions."""
        assert self._pages
        self._give(slot, self._pages.take(_missing(slot, length)))

    def _has_pages(self, slot: _Slot, chosen: Sequence[_Slot]) -> bool:
        """Give a slot the page of its next step; to find one, preempt the youngest requests if they are younger.

        Those that are in flight or `chosen` for the same step stay. If there is no page, the slot waits for one.
        """
        if not self._pages:
            return True
        while _missing(slot, slot.length + 1) > self._pages.available:
            younger = [
                other
                for other in self._slots
                if other and other.decoding and not other.in_flight and other.age > slot.age and other not in chosen
            ]
            if not younger:
                return False
            self._preempt(max(younger, key=lambda other: other.age))
        self._reserve(slot, slot.length + 1)
        ahead = min(slot.length + 1 + self.limits.most_drafted, self.limits.max_positions)
        if _missing(slot, ahead) + len(self._slots) <= self._pages.available:
            self._reserve(slot, ahead)
        return True

    def _preempt(self, slot: _Slot) -> None:
        """Take a decoding request's slot and pages; it waits, and goes on with the same bits."""
        self.preemptions += 1
        self._free(slot)
        slot.due, slot.sent, slot.known, slot.siblings, slot.prompt_logprobs = slot.length, 0, 0, (), NO_LOGPROBS
        self._waiting.appendleft(slot)

    def _free(self, slot: _Slot) -> None:
        self._slots[slot.index] = None
        if self._pages:
            spoiled = self._pages.release(slot.pages)
            self._placements += [(CLEARED, 0, page.number) for page in spoiled]
            slot.pages = []

    def _learn(self, slot: _Slot, work: Work) -> None:
        """Make the full pages known whose keys and values have been computed."""
        if not self._pages or not self.limits.prefix_caching:
            return
        computed = work.position + work.rows if work.sample == NO_SAMPLE else slot.length
        while (slot.known + 1) * PAGE <= computed:
            own, before = slot.pages[slot.known], slot.pages[slot.known - 1] if slot.known else None
            if own.spoiled:
                return
            page = self._pages.know(own, before, slot.text(slot.known * PAGE, (slot.known + 1) * PAGE))
            if page is not own:
                if own.users > 1:  # samples of one prompt keep the same pages
                    return
                self._exchange(slot, slot.known, page)
            slot.known += 1

    def _exchange(self, slot: _Slot, place: int, page: Page) -> None:
        """Put a known page into the place of a slot's own one."""
        assert self._pages
        self._pages.release([slot.pages[place]])
        slot.pages[place] = self._pages.use([page])[0]
        self._placements.append((slot.index, place, page.number))

    def _lane(self, lane: int) -> list[_Slot | None]:
        first = lane * self.limits.slots_per_lane
        return self._slots[first : first + self.limits.slots_per_lane]

    def _next_prompts(self) -> tuple[list[_Slot], int]:
        """Return requests with prompt tokens left to send, the oldest ones whose next parts fit into a micro-batch.

        Every other time those without a long prompt come before those with one. Return also the most tokens of a part.
        """
        for slot in [*self._prompts]:
            self._skip_known(slot)
            if slot.sent == slot.due:
                self._prompts.remove(slot)
        prompts = list(self._prompts)
        if not self._oldest_first:
            prompts.sort(key=self._is_long)
        chosen: list[_Slot] = []
        tokens = works = 0
        room = self._room(prompts)
        for slot in prompts:
            tokens += min(room, slot.due - slot.sent)
            works += 1 + len(slot.siblings)
            if chosen and (tokens > room or works > MAX_SLOTS):
                break
            chosen.append(slot)
        return chosen, room

    def _is_long(self, slot: _Slot) -> bool:
        return slot.due - slot.sent > LONG_CHUNKS * self.limits.chunk

    def _skip_known(self, slot: _Slot) -> None:
        """Leave out what another request has computed of a prompt since this one got its pages."""
        if not self._pages or slot.sent != slot.known * PAGE or slot.siblings:
            return
        found = self._known(slot, slot.due)
        for place in range(slot.known, len(found)):
            self._exchange(slot, place, found[place])
        if slot.known < len(found):
            slot.cached += PAGE * (len(found) - slot.known) * (slot.sent == slot.cached)
            slot.known, slot.sent = len(found), PAGE * len(found)

    def _room(self, prompts: Sequence[_Slot]) -> int:
        """Return the most tokens of prompts in a micro-batch that begins with these.

        With fixed lanes it never changes, because where a prompt is cut may depend only on the prompt. Otherwise a
        single rank takes more of them while nothing decodes: its weights, and those of the head, are read less often.
        And while others decode, a part of a long prompt has only so many rows that it takes no longer than their step.
        """
        if self.limits.fixed_lanes:
            return self.limits.chunk
        if self._decoding_rows():
            return int(self._long_rows) if prompts and self._is_long(prompts[0]) else self.limits.chunk
        return self.limits.chunk * (CHUNKS_ALONE if self.limits.lanes == 1 else 1)

    def _decoding_rows(self) -> int:
        """Return the requests that a lane decodes, about."""
        decoding = sum(slot is not None and slot.decoding for slot in self._slots)
        return math.ceil(decoding / self.limits.lanes)

    def _next_step(self) -> tuple[int, list[_Slot]] | None:
        """Return a lane and its requests, of which none is in flight; those that waited longest come first."""
        if self.limits.fixed_lanes:
            for lane in self._lanes:
                slots = [slot for slot in self._lane(lane) if slot is not None and slot.decoding]
                if slots:
                    return lane, slots
            return None
        decoding = [slot for slot in self._slots if slot is not None and slot.decoding]
        ready = [slot for slot in decoding if not slot.in_flight]
        if not ready or not self._lanes:
            return None
        ready.sort(key=lambda slot: slot.last)
        size = min(math.ceil(len(ready) / len(self._lanes)), math.ceil(len(decoding) / self.limits.lanes))
        chosen: list[_Slot] = []
        for slot in ready:
            if len(chosen) < size and self._slots[slot.index] is slot and self._has_pages(slot, chosen):
                chosen.append(slot)
        return (self._lanes[0], chosen) if chosen else None

    def _prefill(self, slots: list[_Slot], room: int) -> Message:
        works = []
        self._oldest_first = not self._oldest_first
        for slot in slots:
            start, count = slot.sent, min(room, slot.due - slot.sent)
            slot.sent += count
            last = slot.sent == slot.due
            sample = 0 if last and slot.sampling.max_new_tokens and not slot.tokens else NO_SAMPLE
            works.append(_work(slot, start, count, sample)._replace(prompt_logprobs=slot.prompt_logprobs))
            if last:
                self._prompts.remove(slot)
                joining = [sibling for sibling in slot.siblings if not sibling.ended]
                for sibling in joining:
                    sibling.sent = sibling.due
                works += [_work(sibling, slot.sent, 0, 0) for sibling in joining]
        return self._message(Kind.PREFILL, slots[0].index // self.limits.slots_per_lane, works)

    def _decode(self, lane: int, slots: list[_Slot]) -> Message:
        self._lanes.remove(lane)
        self._draft(slots)
        works = [
            _work(slot, len(slot.prompt) + count - 1, 1, count)
            for slot in slots
            for count in range(slot.stepped, slot.stepped + 1 + len(slot.drafted))
        ]
        return self._message(Kind.DECODE, lane, works)

    def _draft(self, slots: list[_Slot]) -> None:
        """Choose the drafted tokens that a decode step verifies beside the tokens that it has to choose."""
        for slot in slots:
            slot.stepped = len(slot.tokens)
        if not self.limits.most_drafted:
            return
        drafts: list[tuple[list[int], float]] = []
        for slot in slots:
            most = min(
                self.limits.most_drafted,
                slot.sampling.max_new_tokens - slot.stepped - 1,
                self.limits.max_positions - len(slot.prompt) - slot.stepped - 1,
                len(slot.pages) * PAGE - len(slot.prompt) - slot.stepped if self._pages else MAX_SLOTS,
            )
            drafts.append(slot.lookup.draft(slot.tokens, most) if slot.lookup else ([], 0.0))
        lengths = draft_lengths(
            [chance for _, chance in drafts],
            [len(drafted) for drafted, _ in drafts],
            MAX_SLOTS - len(slots),
            (lambda rows: 1.0) if self.limits.draft_always else self.step_time,
        )
        for slot, (drafted, _), length in zip(slots, drafts, lengths, strict=True):
            slot.drafted = drafted[:length]

    def _message(self, kind: Kind, lane: int, works: list[Work]) -> Message:
        self._sequence += 1
        for work in works:
            slot = self._slot(work.slot)
            slot.in_flight += 1
            slot.last = self._sequence
        return Message(kind, self._sequence, lane, sum(work.rows for work in works), tuple(works))

    def _advance(self, slot: _Slot, work: Work) -> Event | None:
        if work.fault != NO_FAULT:
            slot.ended = True
            if slot in self._prompts:
                self._prompts.remove(slot)
            return Event(slot.request, fault_rank=work.fault)
        without_token = Event(slot.request) if work.prompt_logprobs != NO_LOGPROBS else None
        if work.sample == NO_SAMPLE:
            slot.ended = work.position + work.rows == len(slot.prompt) and not slot.sampling.max_new_tokens
            return Event(slot.request, finish="length") if slot.ended else without_token
        if work.sample < len(slot.forced):
            slot.tokens.append(slot.forced[work.sample])
            return without_token
        slot.tokens.append(work.token)
        finish = self.limits.finish_reason(len(slot.prompt), slot.sampling, len(slot.tokens), work.token)
        slot.ended = finish is not None
        first = work.sample == len(slot.forced)
        return Event(
            *(slot.request, work.token, finish),
            index=work.sample,
            drafted=_is_drafted(slot, work),
            cached=slot.cached if first else 0,
        )

    def _free_if_over(self, slot: _Slot) -> None:
        if slot.ended and not slot.in_flight and self._slots[slot.index] is slot:
            self._free(slot)


def _slot_of(waiting: _Waiting, request: int, sampling: SamplingParams, age: int) -> _Slot:
    """Return a request's slot, which has no place yet."""
    return _Slot(-1, request, waiting.prompt, sampling, age, due=len(waiting.prompt))


def _missing(slot: _Slot, length: int) -> int:
    """Return the pages that a slot lacks for `length` positions."""
    return max(0, math.ceil(length / PAGE) - len(slot.pages))


def _is_drafted(slot: _Slot, work: Work) -> bool:
    """Whether a row was fed a drafted token."""
    return work.sample > slot.stepped > 0


def _counts(slot: _Slot, work: Work) -> bool:
    """Whether a row was fed tokens of the answer; one with a drafted token that has a fault is computed again."""
    if not _is_drafted(slot, work):
        return True
    return work.sample == len(slot.tokens) and slot.fed(work) == slot.tokens[-1] and work.fault == NO_FAULT


def _adjustments(slot: _Slot, count: int) -> Iterable[tuple[int, float]]:
    """Return what sampling parameters add to the logits of tokens, after the first `count` tokens of the answer."""
    sampling = slot.sampling
    added = dict(sampling.logit_bias)
    if sampling.presence_penalty or sampling.frequency_penalty:
        for token, times in Counter([*slot.tokens, *slot.drafted][:count]).items():
            penalty = sampling.presence_penalty + times * sampling.frequency_penalty
            added[token] = added.get(token, 0.0) - penalty
    return added.items()


def _work(slot: _Slot, position: int, rows: int, sample: int) -> Work:
    sampling = slot.sampling
    return Work(
        slot=slot.index,
        request=slot.request,
        position=position,
        rows=rows,
        sample=sample,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        logprobs=sampling.top_logprobs if sampling.logprobs else NO_LOGPROBS,
        min_p=sampling.min_p,
    )
