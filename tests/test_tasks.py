"""The task queue beyond the invariants of `test_queue_machine`: times, messages, waiting calls, lost connections."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis
from clusters import wait_until

from qubic_lab.cli.main import run
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.cluster.tasks import (
    MISSED,
    LogEntry,
    QueueLimits,
    TaskLease,
    TaskNotification,
    TaskOutcome,
    TaskQueue,
    count_lost_and_duplicated,
)
from qubic_lab.errors import BusyError, FencedError, FullError, InputError, NotFoundError, QubicLabError

NAMES = count()
OTHER = "another dispatcher"


@pytest.fixture
def queue(client: redis.Redis) -> TaskQueue:
    return TaskQueue(client, f"queue-{next(NAMES)}")


def limited(client: redis.Redis, **limits: Any) -> TaskQueue:
    return TaskQueue(client, f"queue-{next(NAMES)}", QueueLimits(**limits))


def taken(queue: TaskQueue, consumer: str = "dispatcher") -> TaskLease:
    lease = queue.take(consumer)
    assert lease is not None
    return lease


def taken_after(queue: TaskQueue, payload: dict[str, Any] | None = None) -> TaskLease:
    queue.submit(payload or {})
    return taken(queue)


def ended(queue: TaskQueue, task: str) -> TaskOutcome:
    outcome = queue.result(task)
    assert outcome is not None
    return outcome


def pass_time(queue: TaskQueue, seconds: int, *alive: str) -> None:
    """Let so many seconds go by on Redis's clock, in which some consumers beat."""
    for _ in range(seconds):
        queue.clock_offset_ms += 1_000
        for consumer in alive:
            queue.beat(consumer)


def test_a_result_is_read_as_it_was_written_and_nothing_of_the_work_stays(queue: TaskQueue) -> None:
    task = queue.submit({"prompt": "Why is the sky blüe?"})
    assert queue.result(task) is None
    queue.complete(taken(queue), {"text": "Räyleigh", "tokens": [1, 2]})
    outcome = ended(queue, task)
    assert (outcome.state, outcome.result, outcome.attempts) == ("completed", {"text": "Räyleigh", "tokens": [1, 2]}, 1)
    assert (queue.counts().pending, queue.counts().processing) == (0, 0)


def test_tasks_come_by_priority_and_age_and_those_put_back_keep_their_place(queue: TaskQueue) -> None:
    for priority, number in (("low", 0), ("normal", 1), ("high", 2), ("normal", 3), ("high", 4)):
        queue.submit({"number": number}, priority)
    for lease in [taken(queue) for _ in range(3)][::-1]:
        queue.fail(lease, "the node was lost", retry=True)
    assert [taken(queue).payload["number"] for _ in range(5)] == [2, 4, 1, 3, 0]
    assert queue.take("dispatcher") is None


def test_what_comes_from_an_old_lease_changes_nothing(queue: TaskQueue) -> None:
    old = taken_after(queue)
    queue.fail(old, "the node was lost", retry=True)
    new = taken(queue, OTHER)
    for write in (
        lambda: queue.renew(old),
        lambda: queue.complete(old, {"text": "late"}),
        lambda: queue.fail(old, "late"),
        lambda: queue.fail(old, "late", retry=True),
        lambda: queue.progress(old, 0, ["late"]),
    ):
        with pytest.raises(FencedError, match="no longer held by dispatcher"):
            write()
    assert (queue.state(new.task_id), queue.look(new.task_id).items, queue.counts().fenced) == ("processing", [], 5)
    for _ in range(2):  # a write that is repeated after a lost answer counts once
        queue.complete(new, {"text": "in time"})
    assert ended(queue, new.task_id).result == {"text": "in time"}
    assert (queue.counts().completed, len(list(queue.log()))) == (1, 1)


def test_after_three_tries_a_task_is_dead_and_its_story_is_kept(queue: TaskQueue) -> None:
    task = queue.submit({"prompt": "boom"})
    for attempt in (1, 2, 3):
        lease = taken(queue, f"dispatcher {attempt}")
        queue.fail(lease, f"node {attempt} was\nlost", retry=True)
    assert queue.take("dispatcher") is None
    (letter,) = queue.dead_letters()
    assert (letter.task_id, letter.payload) == (task, {"prompt": "boom"})
    assert letter.story == tuple(f"try {n} by dispatcher {n}: node {n} was lost" for n in (1, 2, 3))
    assert (ended(queue, task).state, ended(queue, task).attempts) == ("dead", 3)


def test_an_error_keeps_its_code_and_a_task_can_be_forgotten(client: redis.Redis) -> None:
    queue = TaskQueue(client, name := f"queue-{next(NAMES)}")
    task = queue.submit({"prompt": "x"})
    queue.fail(taken(queue), "it is too long", code="too_long")
    assert (ended(queue, task).why, ended(queue, task).code) == ("it is too long", "too_long")
    assert any(task.encode() in key for key in client.scan_iter(f"{{{name}}}:*"))
    queue.forget(task)
    assert not any(task.encode() in key for key in client.scan_iter(f"{{{name}}}:*"))
    assert (queue.counts().failed, len(list(queue.log()))) == (1, 1)
    with pytest.raises(NotFoundError):
        queue.state(task)


def test_the_payload_of_an_ended_task_is_not_kept_and_its_key_still_protects_it(client: redis.Redis) -> None:
    queue = TaskQueue(client, name := f"queue-{next(NAMES)}")
    payload = {"prompt": "x" * 100_000}
    task = queue.submit(payload, idempotency_key="mine")
    used = client.memory_usage(f"{{{name}}}:task:{task}", samples=0)
    queue.fail(taken(queue), "it is too long")
    assert used > 100_000 > 1_000 > client.memory_usage(f"{{{name}}}:task:{task}", samples=0)
    assert queue.submit(payload, idempotency_key="mine") == task
    with pytest.raises(InputError, match="another payload"):
        queue.submit({"prompt": "y"}, idempotency_key="mine")


def test_no_task_is_accepted_while_redis_is_full_and_those_that_wait_go_on(client: redis.Redis) -> None:
    name = f"queue-{next(NAMES)}"
    task = TaskQueue(client, name).submit({})
    full = TaskQueue(client, name, QueueLimits(most_memory_bytes=1))
    with pytest.raises(FullError, match="Redis uses more than 1 bytes: try again"):
        full.submit({})
    full.complete(taken(full), {"text": "done"})
    assert ended(full, task).state == "completed"


@pytest.mark.parametrize("steps_s", [(-600,), (600,), (3_600, -3_600), (-600, 600)])
def test_a_clock_that_is_set_takes_nothing_back_early_and_strands_nothing(
    client: redis.Redis, steps_s: tuple[int, ...]
) -> None:
    queue = TaskQueue(client, name := f"queue-{next(NAMES)}")
    task = queue.submit({})
    queue.beat(OTHER)
    lost = taken(queue)
    for seconds in steps_s:
        client.hincrby(f"{{{name}}}:clock", "redis_ms", -1_000 * seconds)  # what was read last is that much older
        assert queue.reclaim(OTHER) == []
        queue.renew(lost)
    pass_time(queue, 6, OTHER)
    assert queue.reclaim(OTHER) == [task]
    assert (queue.state(task), queue.counts().processing) == ("pending", 0)


def test_tasks_of_one_that_is_gone_are_taken_back_within_six_seconds(queue: TaskQueue) -> None:
    task = queue.submit({})
    queue.beat(OTHER)
    lost = taken(queue)
    seconds = 0
    while not (found := queue.reclaim(OTHER)):
        pass_time(queue, 1, OTHER)
        seconds += 1
    assert found == [task]
    assert 3 <= seconds <= 6  # some time has gone by without us
    assert taken(queue, OTHER).attempt == 2
    with pytest.raises(FencedError):
        queue.complete(lost, {})


@pytest.mark.parametrize("returns", [False, True])
def test_one_that_lost_redis_waits_for_the_holder_before_it_reclaims(returns: bool, queue: TaskQueue) -> None:
    queue.beat(OTHER)
    lease = taken_after(queue)
    pass_time(queue, 10)  # Redis was away, for all of them
    assert queue.reclaim(OTHER) == []
    alive = (OTHER, "dispatcher") if returns else (OTHER,)
    pass_time(queue, 2, *alive)
    assert queue.reclaim(OTHER) == []
    pass_time(queue, 3, *alive)
    assert queue.reclaim(OTHER) == ([] if returns else [lease.task_id])
    if returns:
        queue.complete(lease, {})


def test_a_lease_ends_after_thirty_seconds_unless_it_is_renewed(queue: TaskQueue) -> None:
    lease = taken_after(queue)
    pass_time(queue, 20, OTHER, "dispatcher")
    assert queue.reclaim(OTHER) == []
    for renew in (queue.renew, lambda held: queue.progress(held, 0, [])):
        renew(lease)
        pass_time(queue, 20, OTHER, "dispatcher")
        assert queue.reclaim(OTHER) == []
    pass_time(queue, 11, OTHER, "dispatcher")
    assert queue.reclaim(OTHER) == [lease.task_id]


def test_taking_and_asking_for_a_result_wait_for_what_comes(queue: TaskQueue) -> None:
    with ThreadPoolExecutor(2) as pool:
        taking = pool.submit(queue.take, "dispatcher", 60.0)
        task = queue.submit({})
        lease = taking.result(timeout=60)
        assert lease is not None
        asking = [pool.submit(queue.result, task, 60.0) for _ in range(2)]
        queue.complete(lease, {"text": "here"})
        assert [outcome.result for each in asking if (outcome := each.result(timeout=60))] == [{"text": "here"}] * 2
        taking = pool.submit(queue.take, "dispatcher", 60.0)
        queue.submit({})
        first = taking.result(timeout=60)
        assert first is not None
        again = pool.submit(queue.take, OTHER, 60.0)
        queue.fail(first, "the node was lost", retry=True)
        assert again.result(timeout=60) is not None


def test_what_has_ended_is_forgotten_after_the_set_time(client: redis.Redis) -> None:
    queue = limited(client, keep_s=0.05)
    task = queue.submit({}, idempotency_key="request")
    queue.complete(taken(queue), {})
    wait_until(lambda: not client.keys(f"*{task}*"))
    with pytest.raises(InputError, match=r"outcomes are kept for 0\.05 s"):
        queue.result(task)
    assert queue.submit({}, idempotency_key="request") != task


def test_each_task_goes_to_one_of_many_takers(queue: TaskQueue) -> None:
    submitted = [queue.submit({"number": number}) for number in range(100)]

    def work(consumer: str) -> list[str]:
        done = []
        while lease := queue.take(consumer):
            queue.complete(lease, {"by": consumer})
            done.append(lease.task_id)
        return done

    with ThreadPoolExecutor(4) as pool:
        done = [task for tasks in pool.map(work, "abcd") for task in tasks]
    assert sorted(done) == sorted(submitted)
    assert count_lost_and_duplicated(submitted, list(queue.log())) == (0, 0)


def test_the_server_may_be_killed_under_a_blocked_call(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server, connect(server.url) as connection:
        queue = TaskQueue(connection)
        kept = queue.submit({"number": 1})
        lease = taken(queue)
        with ThreadPoolExecutor(1) as pool:
            blocked = pool.submit(queue.take, OTHER, 60.0)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            queue.submit({"number": 2})  # waits until it is up again
            found = blocked.result(timeout=60)
        assert found is not None
        assert found.payload == {"number": 2}
        queue.complete(lease, {"text": "still mine"})
        assert queue.state(kept) == "completed"
        assert server.restarts == 1


def test_a_connection_that_stays_lost_is_an_error(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server, connect(server.url) as connection:
        queue = TaskQueue(connection, limits=QueueLimits(patience_s=0.1))
    with pytest.raises(QubicLabError, match=r"could not be reached for 0\.1 s"):
        queue.submit({})


def test_a_second_end_of_a_task_is_seen_in_the_log() -> None:
    ends = [LogEntry("a", "completed", 1, "x"), LogEntry("b", "dead", 2, "x"), LogEntry("a", "completed", 3, "y")]
    assert count_lost_and_duplicated(["a", "b", "c"], ends) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"x": float("nan")},), "the payload is not JSON"),
        (({"x": b"bytes"},), "the payload is not JSON"),
        (({"x": "y" * 200},), "the payload has 208 bytes: at most 100 are allowed"),
        (({}, "hihg"), "unknown priority 'hihg': did you mean 'high'?"),
        (({}, "high", ""), "the idempotency key is empty"),
    ],
)
def test_what_cannot_be_queued_is_refused(client: redis.Redis, arguments: tuple[Any, ...], message: str) -> None:
    queue = limited(client, most_bytes=100)
    with pytest.raises(InputError) as caught:
        queue.submit(*arguments)
    assert message in str(caught.value)
    assert queue.counts().submitted == 0


def bench(capfd: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    status = run(["bench", "queue", "--workers", "2", "--json", *options])
    out, err = capfd.readouterr()
    assert (status, err) == (0, "")
    result: dict[str, Any] = json.loads(out)
    assert (result["lost"], result["duplicated"], result["wrong"], result["dead"]) == (0, 0, 0, 0)
    assert result["executed"] == result["tasks"] + result["reclaimed"]
    return result


@pytest.mark.slow
def test_the_bench_counts_each_task_once(capfd: pytest.CaptureFixture[str]) -> None:
    result = bench(capfd, "--tasks", "40", "--kill-every", "100s")
    assert (result["executed"], result["disturbed"], result["fenced"]) == (40, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--stop",)])
def test_nothing_is_lost_while_workers_are_killed_or_stopped(how: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    result = bench(capfd, "--tasks", "2000", "--kill-every", "0.7s", "--work-ms", "10", *how)
    assert result["disturbed"] > 0
    assert result["reclaimed"] > 0
    assert (result["fenced"] > 0) == bool(how)


def test_progress_is_read_in_order_and_outlives_a_lost_try(queue: TaskQueue) -> None:
    task = queue.submit({"number": 1})
    first = taken(queue)
    queue.progress(first, 0, ["a", "b"])
    queue.progress(first, 0, ["a", "b"])  # the same call again, whose answer was lost
    assert queue.look(task).items == ["a", "b"]
    queue.fail(first, "the node was lost", retry=True)
    second = taken(queue, OTHER)
    assert queue.look(task).items == ["a", "b"]
    seen = queue.look(task)
    queue.progress(second, 2, ["c"])
    assert queue.look(task, seen.after).items == ["c"]
    assert queue.look(task).outcome is None
    queue.complete(second, {"text": "abc"})
    assert queue.look(task).outcome == ended(queue, task)
    assert ended(queue, task).result == {"text": "abc"}
    with pytest.raises(QubicLabError, match="begins with item 7"):
        queue.progress(taken_after(queue, {"number": 2}), 7, ["z"])


def test_a_task_that_its_client_asks_for_elsewhere_is_not_cancelled_where_it_left(queue: TaskQueue) -> None:
    task = queue.submit({}, idempotency_key="k", asker="first")
    assert queue.submit({}, idempotency_key="k", asker="second") == task
    assert not queue.cancel(task, "first")
    assert queue.state(task) == "pending"
    assert queue.cancel(task, "second")
    assert queue.submit({}, idempotency_key="k", asker="first") != task  # its client comes back too late


def test_notifications_come_for_progress_and_outcomes_and_say_when_some_may_be_lost(
    queue: TaskQueue, client: redis.Redis
) -> None:
    heard: list[TaskNotification] = []
    notifications = queue.notifications(ended=lambda: len(heard) >= 5)

    def hear() -> TaskNotification:
        heard.append(next(ring for ring in notifications if ring is not None))
        return heard[-1]

    assert hear() == MISSED
    task, other = queue.submit({"number": 1}), queue.submit({"number": 2})
    queue.progress(taken(queue), 0, ["a"])
    assert hear() == TaskNotification(task, "progress")
    queue.cancel(other)
    assert hear() == TaskNotification(other, "cancelled")
    client.client_kill_filter(_type="pubsub")
    assert hear() == MISSED


def test_who_would_wait_for_too_long_is_refused_at_once_by_how_long_tasks_are_held(queue: TaskQueue) -> None:
    for number in range(30):
        queue.submit({"number": number}, patience_s=0.1)  # how long one is held is not known yet
    with pytest.raises(BusyError, match="wait for about 150"):
        queue.submit({}, patience_s=5.0, held_s=5.0)  # no node begins anything
    held = [taken(queue) for _ in range(5)]
    assert queue.submit({}, patience_s=30.0, held_s=5.0)
    with pytest.raises(BusyError, match=r"wait for about 26\.0 s, and may wait for 5 s") as refused:
        queue.submit({}, patience_s=5.0, held_s=5.0)  # 26 wait, five end each 5 s
    assert refused.value.retry_after_s == 21.0
    assert queue.submit({}, patience_s=5.0, held_s=5.0, free=25)  # all of them can begin at once
    queue.submit({}, "high", patience_s=5.0, held_s=5.0)  # it goes before those that wait
    while (lease := queue.take("dispatcher")) is not None:
        held.append(lease)
    assert queue.submit({}, patience_s=0.0, held_s=5.0)  # nobody waits before it
