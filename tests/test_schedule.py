"""The scheduler, driven by a ring that is a plain queue: every request is answered once, ranks are kept busy."""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qubic_lab.core import SamplingParams
from qubic_lab.pipeline import pages, schedule
from qubic_lab.pipeline.message import MAX_SLOTS, NO_LOGPROBS, NO_SAMPLE, Kind, Message
from qubic_lab.pipeline.schedule import CLEARED, Event, Limits, Scheduler, Sibling

LIMITS = Limits(lanes=2, slots_per_lane=2, chunk=4, max_positions=64, eos_token_ids=frozenset({9}))
SCORING = SamplingParams(max_new_tokens=0)


def answered(message: Message, token: int = 1) -> Message:
    """The micro-batch as it comes back, each work with the same token."""
    return message.with_tokens([token] * len(message.sampled))


def submitted(*prompt_lengths: int, limits: Limits = LIMITS, **sampling: Any) -> Scheduler:
    """A scheduler to which requests 0, 1, ... with prompts of these lengths were submitted."""
    scheduler = Scheduler(limits)
    for number, length in enumerate(prompt_lengths):
        scheduler.submit(number, range(length), SamplingParams(**sampling))
    return scheduler


def take(scheduler: Scheduler) -> Message:
    """The next micro-batch, which there must be."""
    message = scheduler.next_micro_batch()
    assert message is not None
    return message


def drive(scheduler: Scheduler, depth: int, token: int = 1) -> tuple[list[Message], list[Event]]:
    """Run to the end with at most `depth` micro-batches under way; return what was sent and what happened."""
    ring: deque[Message] = deque()
    sent, events = [], []
    while not scheduler.idle:
        while len(ring) < depth and (message := scheduler.next_micro_batch()):
            check_exclusive(message, ring)
            ring.append(message)
            sent.append(message)
        assert ring, "requests wait, nothing is under way and nothing can be sent"
        events += scheduler.complete(answered(ring.popleft(), token))
    return sent, events


def check_exclusive(message: Message, under_way: "deque[Message]") -> None:
    """A decode step needs the last token of each of its slots: none of them may be under way."""
    if message.kind is Kind.DECODE:
        busy = {work.slot for other in under_way for work in other.works}
        assert not busy.intersection(work.slot for work in message.works)


@given(
    prompts=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    new_tokens=st.integers(1, 9),
    lanes=st.integers(1, 3),
    slots=st.integers(1, 3),
    depth=st.integers(1, 4),
    fixed=st.booleans(),
)
def test_every_request_is_answered_once_and_whole(
    prompts: list[int], new_tokens: int, lanes: int, slots: int, depth: int, fixed: bool
) -> None:
    limits = replace(LIMITS, lanes=lanes, slots_per_lane=slots, fixed_lanes=fixed)
    scheduler = submitted(*prompts, limits=limits, max_new_tokens=new_tokens)
    sent, events = drive(scheduler, depth)
    for number, length in enumerate(prompts):
        tokens = [event for event in events if event.request == number]
        assert [event.finish for event in tokens] == [None] * (new_tokens - 1) + ["length"]
        chunks = [work for m in sent if m.kind is Kind.PREFILL for work in m.works if work.request == number]
        assert [work.position for work in chunks] == [0, *accumulate(work.rows for work in chunks[:-1])]
        assert sum(work.rows for work in chunks) == length
        assert not fixed or all(work.rows == min(4, length - work.position) for work in chunks)
        assert [work.sample for work in chunks] == [NO_SAMPLE] * (len(chunks) - 1) + [0]
    most = 16 if lanes == 1 and not fixed else 4
    assert all(m.count == sum(work.rows for work in m.works) <= most for m in sent if m.kind is Kind.PREFILL)


@pytest.mark.parametrize("fixed", [True, False])
def test_with_as_many_lanes_as_ranks_none_of_them_waits(fixed: bool) -> None:
    limits = replace(LIMITS, lanes=3, slots_per_lane=2, fixed_lanes=fixed)
    sent, _ = drive(submitted(1, 1, 1, 1, limits=limits, max_new_tokens=8), depth=3)
    steps = [message for message in sent if message.kind is Kind.DECODE]
    assert [message.lane for message in steps] == [0, 1, 2] * 7
    assert [len(message.works) for message in steps] == [2, 1, 1] * 7, "requests are spread evenly"


@given(requests=st.integers(1, 12), lanes=st.integers(1, 4), fixed=st.booleans())
def test_every_rank_has_work_if_there_are_as_many_requests(requests: int, lanes: int, fixed: bool) -> None:
    limits = replace(LIMITS, lanes=lanes, slots_per_lane=3, max_positions=200, fixed_lanes=fixed)
    scheduler = submitted(*[4] * min(requests, 3 * lanes), limits=limits, max_new_tokens=150)
    ring: deque[Message] = deque()
    for turn in range(100):
        while len(ring) < lanes and (message := scheduler.next_micro_batch()):
            ring.append(message)
        assert turn < 80 or len(ring) == min(requests, lanes)
        scheduler.complete(answered(ring.popleft()))


@given(data=st.data(), lanes=st.integers(1, 4), slots=st.integers(1, 4), fixed=st.booleans())
def test_no_request_waits_for_long(data: st.DataObject, lanes: int, slots: int, fixed: bool) -> None:
    """As many ranks as lanes; requests come and are cancelled at any time."""
    scheduler = Scheduler(replace(LIMITS, lanes=lanes, slots_per_lane=slots, fixed_lanes=fixed))
    ring: deque[Message] = deque()
    stepped: dict[int, int] = {}  # when each request that decodes had its last turn
    for turn in range(50):
        if data.draw(st.booleans()):
            scheduler.submit(turn, range(data.draw(st.integers(1, 9))), SamplingParams(max_new_tokens=50))
        if stepped and data.draw(st.integers(0, 5)) == 0:
            gone = data.draw(st.sampled_from(sorted(stepped)))
            scheduler.cancel(gone)
            del stepped[gone]
        while len(ring) < lanes and (message := scheduler.next_micro_batch()):
            check_exclusive(message, ring)
            ring.append(message)
        if ring:
            for event in scheduler.complete(answered(ring.popleft())):
                stepped[event.request] = turn
        assert all(turn - last <= 3 * lanes for last in stepped.values())


@pytest.mark.parametrize("fixed", [True, False])
def test_a_long_prompt_delays_every_lane_by_one_chunk_at_most(fixed: bool) -> None:
    scheduler = submitted(1, 1, limits=replace(LIMITS, fixed_lanes=fixed), max_new_tokens=9)
    scheduler.complete(answered(take(scheduler)))
    scheduler.submit(2, range(40), SamplingParams(max_new_tokens=1))
    sent, _ = drive(scheduler, depth=2)
    assert [message.kind for message in sent[:9]] == [Kind.DECODE, Kind.DECODE, Kind.PREFILL] * 3


def test_prompts_share_a_micro_batch_in_order_of_arrival() -> None:
    scheduler = submitted(2, 9, 3, 1, 2, limits=replace(LIMITS, slots_per_lane=3), max_new_tokens=1)
    scheduler.submit(5, range(2), SCORING, prompt_logprobs=0)
    chunks = []
    while message := scheduler.next_micro_batch():
        chunks.append([(work.request, work.position, work.rows) for work in message.works])
        assert scheduler.input_tokens(message) == [
            token for _, start, rows in chunks[-1] for token in range(start, start + rows)
        ]
    assert chunks == [
        [(0, 0, 2)],
        [(1, 0, 4)],
        [(1, 4, 4)],
        [(1, 8, 1), (2, 0, 3)],
        [(3, 0, 1), (4, 0, 2)],
        [(5, 0, 2)],
    ]


def test_a_single_rank_takes_four_chunks_at_once_while_nothing_decodes() -> None:
    limits = replace(LIMITS, lanes=1, slots_per_lane=4)
    scheduler = submitted(16, 3, 2, limits=limits, max_new_tokens=2)
    first, second = take(scheduler), take(scheduler)
    assert [(work.request, work.rows) for work in first.works] == [(0, 16)]
    assert [(work.request, work.rows) for work in second.works] == [(1, 3), (2, 2)]
    for message in (first, second):
        scheduler.complete(answered(message))
    scheduler.submit(3, range(19), SamplingParams(max_new_tokens=1))
    assert take(scheduler).kind is Kind.DECODE
    assert take(scheduler).count == 4, "the others wait for one chunk only"
    fixed = submitted(19, limits=replace(limits, fixed_lanes=True))
    assert take(fixed).count == 4, "where a prompt is cut depends only on the prompt"


def test_a_long_prompt_takes_no_longer_than_a_step_and_lets_short_ones_pass() -> None:
    scheduler = submitted(
        4, limits=replace(LIMITS, lanes=1, slots_per_lane=3, chunk=64, max_positions=9000), max_new_tokens=900
    )
    scheduler.complete(answered(take(scheduler)))
    scheduler.submit(1, range(8000), SamplingParams(max_new_tokens=1))
    parts, seen = [], []
    for turn in range(60):
        if turn == 40:
            scheduler.submit(2, range(9), SamplingParams(max_new_tokens=1))
        message = take(scheduler)
        scheduler.observe(message, 0.010 if message.kind is Kind.DECODE else 0.0005 * message.count)
        if message.kind is Kind.PREFILL:
            parts.append(message.count)
            seen.append(message.works[0].request)
        scheduler.complete(answered(message))
    assert parts[0] == 64 and parts[14] == 20, "20 rows take as long as a decode step"
    assert 2 in seen[20:22] and seen.count(1) == len(seen) - 1


def test_the_end_token_ends_an_answer_unless_it_is_ignored() -> None:
    scheduler = submitted(1, max_new_tokens=5)
    scheduler.submit(1, [1], SamplingParams(max_new_tokens=5, ignore_eos=True))
    _, events = drive(scheduler, depth=2, token=9)
    assert [event.finish for event in events if event.request == 0] == ["stop"]
    assert [event.finish for event in events if event.request == 1] == [None] * 4 + ["length"]


def test_an_answer_ends_with_the_context() -> None:
    _, events = drive(submitted(4, limits=replace(LIMITS, max_positions=6), max_new_tokens=50), depth=1)
    assert [event.finish for event in events] == [None, "length"]


@given(
    requests=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 5)), min_size=1, max_size=8),
    lanes=st.integers(1, 3),
    slots=st.integers(1, 3),
    depth=st.integers(1, 4),
)
def test_forced_tokens_go_through_the_steps_that_chose_them(
    requests: list[tuple[int, int]], lanes: int, slots: int, depth: int
) -> None:
    """Each request (tokens of its prompt, tokens of its answer that are forced) sends what it would send anyway."""
    whole, replayed = (Scheduler(replace(LIMITS, lanes=lanes, slots_per_lane=slots)) for _ in range(2))
    for number, (length, forced) in enumerate(requests):
        whole.submit(number, range(length), SamplingParams(max_new_tokens=6))
        replayed.submit(number, range(length), SamplingParams(max_new_tokens=6), forced=[1] * forced)
    sent, events = drive(whole, depth)
    sent_again, later = drive(replayed, depth)
    assert sent_again == sent
    for number, (_, forced) in enumerate(requests):
        assert [e for e in later if e.request == number] == [e for e in events if e.request == number][forced:]


def test_forced_tokens_stand_whatever_is_chosen() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.submit(0, [1], SamplingParams(max_new_tokens=4), forced=[5, 6])
    fed, events = [], []
    for choice in (9, 7, 8, 3):  # the first is the end token
        message = take(scheduler)
        fed += scheduler.input_tokens(message)
        events += scheduler.complete(answered(message, choice))
    assert fed == [1, 5, 6, 8]
    assert events == [Event(0, 8, index=2), Event(0, 3, "length", index=3)]
    assert scheduler.idle


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_cancelled_request_leaves_its_slot_to_the_next(steps: int) -> None:
    scheduler = Scheduler(replace(LIMITS, lanes=1, slots_per_lane=1))
    scheduler.submit(0, range(6), SamplingParams(max_new_tokens=30))
    scheduler.submit(1, [1], SamplingParams(max_new_tokens=2))
    under_way = [message for _ in range(steps) if (message := scheduler.next_micro_batch())]
    scheduler.cancel(0)
    for message in under_way:
        assert scheduler.complete(answered(message)) == []
    _, events = drive(scheduler, depth=2)
    assert [event.request for event in events] == [1, 1]


def test_a_fault_ends_its_request_alone_and_once() -> None:
    scheduler = submitted(8, 1, max_new_tokens=3)
    chunks = [take(scheduler) for _ in range(2)]
    events = [event for chunk in chunks for event in scheduler.complete(answered(chunk).with_fault(1, {0}))]
    _, later = drive(scheduler, depth=2)
    assert events == [Event(0, fault_rank=1)]
    assert [event.request for event in later] == [1, 1, 1]
    scheduler.submit(2, [1], SamplingParams(max_new_tokens=4), forced=[5, 6])
    assert scheduler.complete(answered(take(scheduler)).with_fault(1, {0})) == [Event(2, fault_rank=1)]
    assert scheduler.idle


SIBLINGS = [Sibling(number, SamplingParams(max_new_tokens=3)) for number in (1, 2)]


def test_siblings_join_when_the_prompt_is_at_its_end_and_it_is_sent_once() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.submit(0, range(6), SamplingParams(max_new_tokens=3), SIBLINGS)
    sent, events = drive(scheduler, depth=2)
    prefills = [message for message in sent if message.kind is Kind.PREFILL]
    assert [[work.request for work in message.works] for message in prefills] == [[0], [0, 1, 2]]
    for number in range(3):
        assert [event.finish for event in events if event.request == number] == [None, None, "length"]


def test_siblings_wait_until_there_is_room_for_all() -> None:
    scheduler = Scheduler(LIMITS)
    for number in (7, 8):
        scheduler.submit(number, [1], SamplingParams(max_new_tokens=2))
    scheduler.submit(0, range(3), SamplingParams(max_new_tokens=3), SIBLINGS)
    sent, events = drive(scheduler, depth=2)
    prefills = [message for message in sent if message.kind is Kind.PREFILL]
    assert [[work.request for work in message.works] for message in prefills] == [[7, 8], [0, 1, 2]]
    assert len(events) == 2 * 2 + 3 * 3


def test_a_fault_before_the_end_of_a_prompt_ends_all_siblings() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.submit(0, range(8), SamplingParams(max_new_tokens=3), SIBLINGS)
    events = scheduler.complete(answered(take(scheduler)).with_fault(1, {0}))
    assert sorted(event.request for event in events if event.fault_rank == 1) == [0, 1, 2]
    assert scheduler.idle


def test_a_cancelled_sibling_s_place_is_nobody_else_s_sibling() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.submit(0, range(8), SamplingParams(max_new_tokens=3), SIBLINGS)
    first = take(scheduler)
    scheduler.cancel(1)
    scheduler.submit(9, [1], SamplingParams(max_new_tokens=1))
    scheduler.complete(answered(first))
    sent, events = drive(scheduler, depth=1)
    assert [work.request for message in sent for work in message.works if message.count > 1] == [0, 2]
    assert sum(event.request == 9 for event in events) == 1


def test_prompts_to_score_share_micro_batches_and_no_token_is_chosen() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.submit(0, range(10, 16), SCORING, prompt_logprobs=3)
    scheduler.submit(1, [1], SamplingParams(max_new_tokens=2))
    scheduler.submit(2, [7], SCORING, prompt_logprobs=0)
    first = take(scheduler)
    assert scheduler.next_tokens(first) == [11, 12, 13, 14]
    second = take(scheduler)
    assert [(work.request, work.prompt_logprobs) for work in second.works] == [(0, 3), (1, NO_LOGPROBS), (2, 0)]
    assert scheduler.next_tokens(second) == [15, 0, 0] and second.score_shape == (3, 7)
    events = [event for message in (first, second) for event in scheduler.complete(answered(message))]
    assert events == [Event(0), Event(0, finish="length"), Event(1, 1, index=0), Event(2, finish="length")]
    assert [event.request for event in drive(scheduler, depth=2)[1]] == [1]


@pytest.mark.parametrize("forced", [[], [5]])
def test_a_scored_prompt_is_answered_too(forced: list[int]) -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.submit(0, range(6), SamplingParams(max_new_tokens=3), forced=forced, prompt_logprobs=0)
    sent, events = drive(scheduler, depth=2)
    assert [message.score_shape[0] for message in sent] == [4, 2, 0, 0]
    first = Event(0) if forced else Event(0, 1, index=0)
    assert events == [Event(0), first, Event(0, 1, index=1), Event(0, 1, "length", index=2)]


def test_a_prompt_to_score_may_fill_the_context() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.submit(0, range(64), SCORING, prompt_logprobs=0)
    assert drive(scheduler, depth=1)[1][-1] == Event(0, finish="length")


def test_penalties_and_biases_follow_the_tokens_of_the_answer() -> None:
    scheduler = Scheduler(LIMITS)
    asked = SamplingParams(5, presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((3, 2.0), (7, -100.0)))
    scheduler.submit(0, [7, 7], SamplingParams(max_new_tokens=5))
    scheduler.submit(1, [7, 7], asked, [Sibling(2, asked)], forced=[])
    message = take(scheduler)
    bias = [(3, 2.0), (7, -100.0)]
    assert scheduler.adjustments(message) == [(row, *each) for row in (1, 2) for each in bias]
    scheduler.complete(message.with_tokens([3, 3, 4]))
    found = {}
    for chosen in (3, 4, 5):
        steps = [take(scheduler), take(scheduler)]
        found = {
            (work.request, token): number
            for step in steps
            for row, token, number in scheduler.adjustments(step)
            for work in [step.sampled[row]]
        }
        for step in steps:
            scheduler.complete(answered(step, chosen))
    # The prompt does not count; request 0 is left alone.
    assert found == {
        (1, 3): 2.0 - 1.0,
        (1, 4): -0.75,
        (1, 7): -100.0,
        (2, 3): 2.0 - 0.75,
        (2, 4): -1.0,
        (2, 7): -100.0,
    }


def next_token(fed: Sequence[int], seed: int) -> int:
    """A model with three tokens that repeats itself a lot; the third ends an answer."""
    return (fed[-1] + (hash((tuple(fed[-5:]), seed)) % 4 == 0)) % 3 + (7 if len(fed) > 30 and fed[-1] == 1 else 0)


INFINITY = -9


class FakeRanks:
    """What the ranks do: each row chooses by the tokens that lie in its slot's pages up to it.

    A row of a broken request writes INFINITY. Whoever reads a page with that, also behind his own position, is broken.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.pages: defaultdict[int, list[int]] = defaultdict(lambda: [0] * PAGE_TOKENS)
        self.tables: defaultdict[int, dict[int, int]] = defaultdict(dict)
        self.breaking: set[int] = set()  # requests whose next row breaks
        self.broken: set[int] = set()

    def run(self, message: Message) -> Message:
        for slot, place, page in self.scheduler.placements():
            if slot == CLEARED:
                self.pages[page] = [0] * PAGE_TOKENS
            else:
                self.tables[slot][place] = page
        tokens, chosen, faulty = iter(self.scheduler.input_tokens(message)), [], set()
        assert len(message.works) <= MAX_SLOTS and message.count == sum(work.rows for work in message.works)
        for index, work in enumerate(message.works):
            end = work.position + work.rows
            breaks = work.request in self.breaking and index not in message.drafted
            for position in range(work.position, end):
                token = next(tokens)
                page = self.pages[self.tables[work.slot][position // PAGE_TOKENS]]
                page[position % PAGE_TOKENS] = INFINITY if breaks else token
            if work.rows:
                leader = work
            else:
                for place in range(-(-end // PAGE_TOKENS)):
                    source, target = (self.tables[slot][place] for slot in (leader.slot, work.slot))
                    self.pages[target] = list(self.pages[source])
            read = [token for place in range(-(-end // PAGE_TOKENS)) for token in self.page(work.slot, place)]
            if INFINITY in read:
                faulty.add(index)
                self.broken.add(work.request)
                assert self.breaking & {work.request, leader.request}, "a request is broken by another one"
            if work.sample != NO_SAMPLE:
                chosen.append(next_token(read[:end], work.seed))
        return message.with_tokens(chosen).with_fault(0, faulty)

    def page(self, slot: int, place: int) -> list[int]:
        return self.pages[self.tables[slot][place]]


PAGE_TOKENS = 4


@pytest.fixture
def small_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (schedule, pages):
            patch.setattr(module, "PAGE", PAGE_TOKENS)
        yield


@pytest.mark.usefixtures("small_pages")
def test_pages_of_a_broken_request_are_cleared_for_the_next() -> None:
    scheduler = Scheduler(replace(LIMITS, lanes=1, slots_per_lane=1, pages=2))
    ranks, events = FakeRanks(scheduler), []
    ranks.breaking.add(0)
    for number, length in ((0, 7), (1, 1)):
        scheduler.submit(number, range(length), SamplingParams(max_new_tokens=2, ignore_eos=True))
        while message := scheduler.next_micro_batch():
            events += scheduler.complete(ranks.run(message))
    assert [(event.request, event.fault_rank) for event in events] == [(0, 0), (1, None), (1, None)]


@pytest.mark.usefixtures("small_pages")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_drafts_and_pages_change_no_token(data: st.DataObject) -> None:
    """Requests, siblings and forced tokens; requests come, break and are cancelled at any time."""
    lanes, slots = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    limits = replace(LIMITS, lanes=lanes, slots_per_lane=slots, eos_token_ids=frozenset({7, 8}))
    limits = replace(limits, pages=data.draw(st.sampled_from([16, 17, 24, 99])), most_kept=data.draw(st.integers(0, 9)))
    caching, most_drafted = data.draw(st.booleans()), data.draw(st.sampled_from([0, 1, 3, 15]))
    scheduler = Scheduler(replace(limits, most_drafted=most_drafted, prefix_caching=caching))
    ranks, ring, number = FakeRanks(scheduler), deque[Message](), 0
    asked: dict[int, tuple[list[int], SamplingParams, int]] = {}
    got: dict[int, list[Event]] = defaultdict(list)
    for _ in range(4):
        if data.draw(st.booleans()):
            scheduler.step_time.observe(data.draw(st.integers(1, 20)), data.draw(st.floats(0.001, 1)))
        prompt = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=9))
        prompt = data.draw(st.sampled_from([[], [0, 1, 2] * 5])) + prompt
        samples = data.draw(st.integers(1, min(3, lanes * slots)))
        sampling = [SamplingParams(max_new_tokens=data.draw(st.integers(1, 40)), seed=seed) for seed in range(samples)]
        answer = undisturbed(prompt, sampling[0], limits)
        forced = answer[: data.draw(st.integers(0, len(answer) - 1))] if samples == 1 else []
        for place, each in enumerate(sampling):
            asked[number + place] = (prompt, each, len(forced))
        siblings = [Sibling(number + place, each) for place, each in enumerate(sampling[1:], 1)]
        scheduler.submit(number, prompt, sampling[0], siblings, forced)
        number += samples
        for _ in range(data.draw(st.integers(0, 30))):
            while len(ring) < lanes and (message := scheduler.next_micro_batch()):
                ring.append(ranks.run(message))
            for event in scheduler.complete(ring.popleft()) if ring else ():
                got[event.request].append(event)
        if data.draw(st.integers(0, 3)) == 0:
            for gone in range(number - samples, number):
                scheduler.cancel(gone)
                del asked[gone]
        elif data.draw(st.integers(0, 3)) == 0:
            ranks.breaking.add(data.draw(st.sampled_from(range(number))))
    while not scheduler.idle:
        while len(ring) < lanes and (message := scheduler.next_micro_batch()):
            ring.append(ranks.run(message))
        for event in scheduler.complete(ring.popleft()):
            got[event.request].append(event)
    for request, (prompt, each, known) in asked.items():
        answer = undisturbed(prompt, each, limits)
        if got[request][-1].fault_rank is not None:
            assert request in ranks.broken or not got[request][:-1]
            assert [event.token for event in got[request][:-1]] == answer[known:][: len(got[request]) - 1]
            continue
        assert [event.token for event in got[request]] == answer[known:]
        assert [event.index for event in got[request]] == [*range(known, len(answer))]
        assert [event.finish is not None for event in got[request]] == [False] * (len(answer) - known - 1) + [True]

    assert scheduler._pages is not None and not scheduler._pages.used


def undisturbed(prompt: Sequence[int], sampling: SamplingParams, limits: Limits) -> list[int]:
    """The tokens of an answer that is computed alone, one by one."""
    answer: list[int] = []
    while not answer or not limits.finish_reason(len(prompt), sampling, len(answer), answer[-1]):
        answer.append(next_token([*prompt, *answer], sampling.seed))
    return answer


def test_drafts_save_steps_where_an_answer_repeats_itself() -> None:
    scheduler = Scheduler(replace(LIMITS, lanes=1, max_positions=500, most_drafted=15))
    scheduler.submit(0, [1, 2, 1, 2], SamplingParams(max_new_tokens=300, ignore_eos=True))
    steps, drafted = 0, 0
    while message := scheduler.next_micro_batch():
        row = [1 + scheduler.input_tokens(message)[i] % 2 for i in range(-len(message.sampled), 0)]
        events = scheduler.complete(message.with_tokens(row))
        steps += 1
        drafted += sum(event.drafted for event in events)
    assert steps < 300 / 8 and drafted == 300 - steps


def test_penalties_count_drafted_tokens_and_a_fault_behind_a_draft_is_nobodys() -> None:
    scheduler = Scheduler(replace(LIMITS, lanes=1, most_drafted=3))
    scheduler.submit(0, [1, 2, 1, 2], SamplingParams(max_new_tokens=9, frequency_penalty=1.0, ignore_eos=True))
    scheduler.complete(answered(take(scheduler), 1))
    message = take(scheduler)
    assert [work.position for work in message.works] == [4, 5, 6, 7] and scheduler.input_tokens(message) == [1, 2, 1, 2]
    assert message.drafted == (1, 2, 3)
    assert scheduler.adjustments(message) == [
        (0, 1, -1.0), (1, 1, -1.0), (1, 2, -1.0), (2, 1, -2.0), (2, 2, -1.0), (3, 1, -2.0), (3, 2, -2.0),
    ]  # fmt: skip
    assert [event.token for event in scheduler.complete(message.with_tokens([2, 1, 0, 0]).with_fault(1, {2, 3}))] == [
        2,
        1,
    ]
    message = take(scheduler)
    assert message.works[0].position == 6 and scheduler.input_tokens(message)[0] == 1
    assert scheduler.complete(message.with_fault(1, {0}))[0].fault_rank == 1
