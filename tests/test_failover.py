"""Streams while processes are killed: what is read from them, by hand; and a node that really is killed."""

import pytest

from qubic_lab.bench.echo_node import Begun, echo_tokens, read_begun
from qubic_lab.bench.failover import (
    ClientStream,
    FailoverPlan,
    FailoverResult,
    GateChange,
    KilledProcesses,
    NodeStay,
    bench_failover,
    is_right,
    read_stays,
    summarize,
)
from qubic_lab.cluster.tasks import LogEntry

PLAN = FailoverPlan(requests=4, every_s=1.0, nodes=2, new_tokens=4, seconds=4.0)
FAILURES = KilledProcesses("a", killed_s=2.5, started_s=4.0, coordinator="one", coordinator_killed_s=6.5)


def stream(
    number: int, *stays: NodeStay, begun_s: float = 0.0, gap_s: float = 0.0, after: int = 2, **changes: object
) -> ClientStream:
    """A stream with a token a second, and a gap after some of them."""
    token_s = tuple(begun_s + 1 + n + (gap_s if n >= after else 0.0) for n in range(4))
    fields = {
        "number": number,
        "task": f"task {number}",
        "coordinators": ("one",),
        "begun_s": begun_s,
        "ended_s": token_s[-1],
        "token_ids": tuple(echo_tokens(number * 4, 4)),
        "token_s": token_s,
        "attempts": len(stays),
        "stays": stays,
        "fault": "",
    }
    return ClientStream(**fields | changes)  # type: ignore[arg-type]


STREAMS = [
    stream(0, NodeStay("a", 0.0, 0), NodeStay("b", 3.0, 2), gap_s=1.5),
    stream(1, NodeStay("b", 1.0, 0), begun_s=1.0),
    stream(
        2, NodeStay("a", 5.0, 0), NodeStay("b", 9.0, 1), begun_s=5.0, gap_s=4.0, after=1, coordinators=("one", "two")
    ),
    stream(3, NodeStay("b", 7.0, 0), begun_s=7.0, coordinators=("one", "two")),
]
GATES = [
    GateChange(0.0, "one", "a", None),
    GateChange(0.0, "two", "a", None),
    GateChange(2.6, "one", "a", "lost in mid-answer"),
    GateChange(3.5, "two", "a", "no heartbeat"),
    GateChange(3.6, "one", "a", "no heartbeat"),
    GateChange(3.7, "one", "b", "draining"),
    GateChange(4.5, "two", "a", None),
]


def judged(*streams: ClientStream, ends: tuple[int, ...] = (0, 1, 2, 3)) -> FailoverResult:
    log = [LogEntry(f"task {number}", "completed", 1, "one") for number in ends]
    return summarize(PLAN, streams or STREAMS, FAILURES, GATES, log)


def test_who_left_the_dead_node_and_when_it_was_known_to_be_gone_and_was_chosen_again() -> None:
    result = judged()
    assert (result.left_node, result.node_gaps_s) == ((0,), (2.5,))
    assert (result.left_coordinator, result.coordinator_gaps_s, result.asked_again) == ((2,), (5.0,), (2, 3))
    assert (result.lost, result.duplicated, result.wrong) == (0, 0, ())
    assert result.shut_s == 3.5, "when the last coordinator had noticed"
    assert (result.open_s, result.chosen_s) == (4.5, 5.0)
    late = [GATES[0], GATES[1], GATES[2], GateChange(4.1, "two", "a", "starting"), GATES[-1]]
    never = summarize(PLAN, STREAMS[:2], FAILURES, late[:-1], [])
    assert (never.shut_s, never.open_s, never.chosen_s) == (None, None, None)
    assert summarize(PLAN, STREAMS, FAILURES, late, []).shut_s is None, "two had not noticed before it was back"


def test_requests_without_an_end_and_with_two_are_counted_from_the_log() -> None:
    result = judged(ends=(0, 0, 1, 3))
    assert (result.lost, result.duplicated) == (1, 1)
    assert judged(*STREAMS[:3], stream(3, task="", ended_s=None, fault="no end came")).lost == 1
    assert judged(stream(0), stream(1, task="task 0"), stream(2)).wrong == (0, 1), "two streams of one task"


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ids": (4, 5, 6)},
        {"token_ids": (4, 5, 5, 6, 7)},
        {"token_ids": (4, 6, 5, 7)},
        {"token_ids": (0, 1, 2, 3)},
        {"ended_s": None},
        {"fault": "all tries were lost"},
    ],
    ids=str,
)
def test_a_stream_is_right_with_every_token_once_in_order_and_an_end(changes: dict[str, object]) -> None:
    assert is_right(stream(1), PLAN)
    assert not is_right(stream(1, **changes), PLAN)
    assert judged(stream(0), stream(1, **changes)).wrong == (1,)


def test_the_longest_gap_begins_with_asking() -> None:
    assert stream(0, gap_s=0.5).longest_gap_s == 1.5
    assert stream(0, token_s=(3.0, 4.0)).longest_gap_s == 3.0
    assert stream(0, token_s=()).longest_gap_s == 0.0


def test_nodes_say_themselves_what_they_began_and_probes_are_no_requests() -> None:
    lines = [
        "a warning",
        '{"node": "b", "prompt": "request 7", "known": 3, "at_s": 12.0}',
        '{"node": "a", "prompt": "ping", "known": 0, "at_s": 11.5}',
        '{"node": "a", "prompt": "request 7", "known": 0, "at_s": 11.0}',
    ]
    begun = read_begun(lines)
    assert begun[0] == Begun("b", "request 7", 3, 12.0)
    assert read_stays(begun, 10.0) == {7: [NodeStay("a", 1.0, 0), NodeStay("b", 2.0, 3)]}


def check(result: FailoverResult, plan: FailoverPlan) -> None:
    """Whatever was killed: everybody got everything once, and those who were on the node went on where they were."""
    assert (result.lost, result.duplicated, result.wrong) == (0, 0, ())
    assert len({each.task for each in result.streams}) == plan.requests
    assert result.left_node, "the node that has most to do is killed"
    assert result.shut_s is None or result.failures.killed_s < result.shut_s < result.failures.started_s
    for number in result.left_node:
        each = result.streams[number]
        assert each.attempts > 1 and each.stays[0].node == result.failures.node != each.stays[1].node
        assert each.token_ids == tuple(echo_tokens(number * plan.new_tokens, plan.new_tokens))
    for each in result.streams:
        known = [stay.known for stay in each.stays]
        assert known == sorted(known) and known[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [
        FailoverPlan(requests=8, every_s=0.25, nodes=2, new_tokens=10, seconds=1.0),
        FailoverPlan(requests=16, every_s=0.75, nodes=3, new_tokens=20, seconds=2.0, kill_coordinator=True),
    ],
    ids=["node", "node and coordinator"],
)
def test_killed_processes_lose_nothing(plan: FailoverPlan) -> None:
    ended: list[int] = []
    result = bench_failover(plan, lambda text, done, total: ended.append(done))
    check(result, plan)
    assert ended == list(range(1, plan.requests + 1))
    if plan.kill_coordinator:
        assert result.left_coordinator and result.asked_again
        assert result.open_s is not None and result.chosen_s is not None
    else:
        assert result.failures.coordinator is None and result.asked_again == ()
