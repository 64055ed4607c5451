"""What was accepted is answered once: replicas are lost, nodes refuse, drain and return, coordinators and Redis end."""

import asyncio
import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from clusters import KILL, WITHIN_S, Cluster, Fragile, StartCluster, cluster, counted, text_of, until

from qubic_lab.cluster.calls import payload_of
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.cluster.fleet import Fleet
from qubic_lab.cluster.health import Gate, Outcome
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.cluster.replica import PipelineReplica, Replica
from qubic_lab.cluster.tasks import QueueLimits, TaskOutcome, count_lost_and_duplicated
from qubic_lab.errors import BusyError, InputError, NotFoundError, RankError, RefusedError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hurried")]


def request(tokens: int = 8, seed: int = 0, prompt: str = "hi") -> pipeline_pb2.GenerateRequest:
    sampling = pipeline_pb2.Sampling(max_new_tokens=tokens, top_p=1.0, seed=seed)
    return pipeline_pb2.GenerateRequest(prompt=prompt, sampling=sampling)


async def followed(coordinator: Coordinator, task_id: str) -> tuple[list[Any], TaskOutcome]:
    """Return all of a task's tokens as they are told, and its end."""
    items: list[Any] = []
    async for progress in coordinator.follow(task_id):
        items += progress.items
        if progress.outcome is not None:
            return items, progress.outcome
    raise AssertionError("it ended without an end")


async def answered(running: Cluster, task_id: str, tokens: int = 8, seed: int = 0) -> TaskOutcome:
    """Follow a task at the last coordinator: it gets the whole answer of an undisturbed run."""
    items, outcome = await followed(running.coordinators[-1], task_id)
    assert outcome.state == "completed", outcome
    assert [item["id"] for item in items] == counted(seed, tokens)
    assert outcome.result is not None
    assert outcome.result["text"] == text_of(counted(seed, tokens)) == "".join(item["text"] for item in items)
    return outcome


async def test_a_task_is_answered_by_a_node_and_told_by_every_coordinator(start_cluster: StartCluster) -> None:
    async with start_cluster(coordinators=2, nodes={"a": Fragile(), "b": Fragile()}) as running:
        first, second = running.coordinators
        assert {view.record.id for view in first.nodes()} == {view.record.id for view in second.nodes()}
        tasks = [await first.submit(request(seed=100 * n)) for n in range(6)]
        for n, task_id in enumerate(tasks):
            outcome = await answered(running, task_id, seed=100 * n)
            assert outcome.attempts == 1
            assert outcome.result is not None and outcome.result["node"] in ("a", "b")
        assert (await first.counts()) == (await second.counts())
        assert first.working == second.working == 0
        with pytest.raises(NotFoundError):
            await followed(first, "no task")


async def test_tasks_do_not_wait_for_one_another(start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Fragile(slots=8, held=True)
    async with start_cluster(nodes={"a": node}) as running:
        monkeypatch.setattr("qubic_lab.cluster.dispatcher.LOOK_S", 600.0)  # only what happens wakes anybody
        tasks = [await running.coordinator.submit(request(seed=100 * n)) for n in range(12)]
        await until(lambda: node.running == 8)
        node.held = False
        for n, task_id in enumerate(tasks):
            await answered(running, task_id, seed=100 * n)


async def test_a_task_of_which_a_replica_is_lost_goes_on_elsewhere(start_cluster: StartCluster) -> None:
    lost = Fragile(error=RankError("rank 0 is gone"), tokens=5)
    async with start_cluster(nodes={"a": lost}) as running:
        task_id = await running.coordinator.submit(request())
        await until(lambda: running.gates("a") == {Gate.LOST})
        await running.start_node("b", Fragile())
        outcome = await answered(running, task_id)
        assert outcome.attempts == 2
        assert outcome.result is not None and outcome.result["node"] == "b"
        assert outcome.story == (f"try 1 by {running.coordinator.name}: node a: rank 0 is gone",)
        assert lost.asked == 1


@pytest.mark.parametrize(
    ("error", "reasons"),
    [
        (RankError("gone"), {"node a: gone", "node b: gone", "node c: gone"}),
        (KeyError("/secret/path"), {"node a failed: its log says how"}),
    ],
    ids=["lost", "details stay inside the node"],
)
async def test_a_task_that_fails_at_every_node_is_dead_with_its_story(
    error: Exception, reasons: set[str], start_cluster: StartCluster
) -> None:
    nodes: dict[str, Replica] = {name: Fragile(error=error, tokens=1) for name in "abc"[: len(reasons)]}
    async with start_cluster(nodes=nodes) as running:
        outcome = await running.outcome(await running.coordinator.submit(request()))
        assert (outcome.state, outcome.attempts, len(outcome.story)) == ("dead", 3, 3)
        [letter] = await running.coordinator.dead_letters()
        assert (letter.task_id, letter.payload) == (outcome.task_id, payload_of(request()))
        assert {line.partition(": ")[2] for line in letter.story} == reasons


async def test_a_task_that_ends_three_replicas_takes_no_other_task_along(start_cluster: StartCluster) -> None:
    """Though others run beside it at the first two."""
    nodes = {name: Fragile(slots=8, held=True) for name in "abcd"}
    async with start_cluster(nodes={name: nodes[name] for name in "ab"}) as running:
        submit = running.coordinator.submit
        innocent = [await submit(request(seed=100 * n)) for n in range(4)]
        poison = await submit(request(prompt=KILL), "high")
        await until(lambda: nodes["a"].starts == nodes["b"].starts == 2)
        for node in nodes.values():
            node.held = False
        await running.start_node("c", nodes["c"])
        outcome = await running.outcome(poison)
        assert (outcome.state, outcome.attempts) == ("dead", 3)
        assert {line.partition(": ")[2] for line in outcome.story} == {f"node {n}: rank 1 is gone" for n in "abc"}
        await running.start_node("d", nodes["d"])
        outcomes = [await answered(running, task_id, seed=100 * n) for n, task_id in enumerate(innocent)]
        assert max(outcome.attempts for outcome in outcomes) > 1
        assert [node.starts for node in nodes.values()] == [2, 2, 2, 1]


async def test_a_task_at_fault_fails_at_once_with_the_reason(start_cluster: StartCluster) -> None:
    node = Fragile(error=InputError("the prompt is too long: give a shorter one"))
    async with start_cluster(nodes={"a": node}) as running:
        for _ in range(4):
            outcome = await running.outcome(await running.coordinator.submit(request()))
            assert (outcome.state, outcome.attempts) == ("failed", 1)
            assert outcome.why == "the prompt is too long: give a shorter one"
        node.error = None
        no_request = await running.coordinator.call(running.coordinator.queue.submit, {"unknown": 1})
        assert (await running.outcome(no_request)).state == "failed"
        await answered(running, await running.coordinator.submit(request()))
        assert running.gates("a") == {None}


async def test_probes_and_tasks_at_fault_do_not_count_as_answers(
    start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[Outcome] = []
    note = Fleet.note
    monkeypatch.setattr(Fleet, "note", lambda fleet, node, outcome: (noted.append(outcome), note(fleet, node, outcome)))
    node = Fragile(seconds=0.3)
    async with start_cluster(nodes={"a": node}) as running:
        assert running.view("a").response_s is None  # type: ignore[union-attr]
        await answered(running, await running.coordinator.submit(request()))
        node.error = InputError("the prompt is too long")
        await running.outcome(await running.coordinator.submit(request()))
        await until(lambda: noted[-1].probe)
        view = running.view("a")
        assert view is not None and view.response_s is not None
        assert view.response_s >= 0.3


async def test_a_node_that_is_full_is_passed_over_and_costs_no_try(start_cluster: StartCluster) -> None:
    """Though the task waits longer than its lease."""
    full, limits = Fragile(error=BusyError("its slots are taken")), QueueLimits(lease_s=30, gone_s=25, silent_s=20)
    async with start_cluster(nodes={"a": full}, limits=limits) as running:
        task_id = await running.coordinator.submit(request())
        for asked in (3, 6, 9, 12):  # each time the lease is renewed
            await until(lambda asked=asked: full.asked >= asked)
            running.coordinator.queue.clock_offset_ms += 14_000
        assert full.asked < 25  # asked again now and then, not all the time
        assert running.gates("a") == {None}
        await running.start_node("b", Fragile())
        outcome = await answered(running, task_id)
        assert (outcome.attempts, outcome.story) == (1, ())
        assert (await running.coordinator.counts()).reclaimed == 0


async def test_a_node_that_nobody_reaches_costs_no_try(start_cluster: StartCluster, tmp_path: Path) -> None:
    async with start_cluster() as running:
        nowhere = pb.NodeRegistration(
            node="nowhere", address=f"unix:{tmp_path}/nowhere.sock", type="whole", identity="n"
        )
        nowhere.capabilities.CopyFrom(pb.Capabilities(slots=1, tokens_per_s=1.0))
        registry = running.coordinator.registry
        session = await running.coordinator.call(registry.register, nowhere)
        await running.coordinator.call(registry.beat, "nowhere", session, pb.NodeState(ready=True))
        await until(lambda: running.gates("nowhere") == {None})
        task_id = await running.coordinator.submit(request())
        await until(lambda: running.gates("nowhere") == {Gate.LOST})
        await running.start_node("a", Fragile())
        assert (await answered(running, task_id)).attempts == 1


async def test_a_cancelled_task_frees_its_slot(start_cluster: StartCluster) -> None:
    node = Fragile(seconds=600.0, slots=1)
    async with start_cluster(coordinators=2, nodes={"a": node}) as running:
        task_id = await running.coordinator.submit(request())
        await until(lambda: node.running)
        node.seconds = 0.1
        waiting = await running.coordinator.submit(request())
        assert await running.coordinators[1].cancel(task_id)
        assert (await running.outcome(task_id)).state == "cancelled"
        await answered(running, waiting)
        assert not await running.coordinators[1].cancel(waiting)
        assert node.running == 0
        await until(lambda: sum(each.working for each in running.coordinators) == 0)
        await until(lambda: (view := running.view("a")) and view.record.state.finished == 1)
        assert running.view("a").record.state.failed == 0


async def test_a_node_without_ranks_says_why_none_start_and_tries_again(start_cluster: StartCluster) -> None:
    class Broken(Fragile):
        async def start(self) -> pb.Capabilities:
            if self.starts == 1:
                self.starts += 1
                raise RankError("no memory")
            return await super().start()

    node = Broken()
    async with start_cluster(nodes={"a": node}) as running:
        node.lose()
        await until(lambda: (view := running.view("a")) and view.record.state.trouble == "no memory")
        assert running.gates("a") == {Gate.STARTING}
        await until(lambda: (view := running.view("a")) and view.record.state.restarts == 1)  # at the second try
        await until(lambda: running.gates("a") == {None})
        await answered(running, await running.coordinator.submit(request()))


async def test_a_drained_node_ends_what_it_has_and_takes_nothing_new(start_cluster: StartCluster) -> None:
    node = Fragile(held=True)
    async with start_cluster(coordinators=2, nodes={"a": node}) as running:
        first, second = running.coordinators
        under_way = await first.submit(request())
        await until(lambda: node.running)
        await first.drain("a", True)
        await until(lambda: running.gates("a") == {Gate.DRAINING})
        waiting = await second.submit(request())
        node.held = False
        await answered(running, under_way)
        await asyncio.sleep(0.1)
        assert node.asked == 1
        await second.drain("a", False)
        await answered(running, waiting)
        with pytest.raises(NotFoundError):
            await first.drain("b", True)


async def test_a_node_that_is_told_to_end_does_so_when_its_work_is_done(start_cluster: StartCluster) -> None:
    node, other = Fragile(held=True), Fragile()
    async with start_cluster(nodes={"a": node}) as running:
        under_way = [await running.coordinator.submit(request()) for _ in range(4)]
        await until(lambda: node.running == 4)
        ended = running.end_node("a")
        later = await running.coordinator.submit(request())
        await until(lambda: running.gates("a") == {Gate.DRAINING})
        await running.start_node("b", other)
        await running.outcome(later)
        node.held = False
        for task_id in [*under_way, later]:
            assert (await answered(running, task_id)).attempts == 1
        await asyncio.wait_for(ended, WITHIN_S)
        await until(lambda: running.gates("a") == {"gone"})
        assert (node.asked, other.asked) == (4, 1)


async def test_a_node_that_is_told_to_end_does_not_wait_for_its_start(start_cluster: StartCluster) -> None:
    class Slow(Fragile):
        async def start(self) -> pb.Capabilities:
            await asyncio.to_thread(loading.wait)
            return await super().start()

    loading = threading.Event()
    async with start_cluster() as running:
        await running.start_node("a", Slow(), ready=False)
        await asyncio.sleep(0.1)
        try:
            await asyncio.wait_for(running.end_node("a"), WITHIN_S)
        finally:
            loading.set()


def test_a_pipeline_that_is_being_launched_does_not_keep_the_process() -> None:
    loading = threading.Event()

    def launch() -> Any:
        loading.wait(WITHIN_S)

    async def begin() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(PipelineReplica(launch).start(), 0.1)

    started_s = time.monotonic()
    asyncio.run(begin())
    loading.set()
    assert time.monotonic() - started_s < WITHIN_S / 2


async def test_nodes_come_back_by_themselves_when_they_were_silent_or_redis_has_lost_all(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server, connect(server.url) as client:
        async with cluster(client, tmp_path, coordinators=2, nodes={"a": Fragile(), "b": Fragile()}) as running:
            registry = running.coordinator.registry

            async def back() -> bool:
                return len(await running.coordinator.call(registry.nodes)) == 2

            for coordinator in running.coordinators:
                coordinator.registry.clock_offset_ms += 30_000
            assert await running.coordinator.call(registry.nodes) == []
            await until(back)
            shutil.rmtree(server.folder / "appendonlydir")
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            await until(lambda: server.restarts)
            await until(back)
            await until(lambda: running.gates("a") == running.gates("b") == {None})
            await answered(running, await running.coordinator.submit(request()))
            assert not any(node.done() for node in running.nodes.values())


async def test_redis_is_killed_in_mid_answer(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server, connect(server.url) as client:
        nodes = {"a": Fragile(held=True), "b": Fragile(held=True)}
        async with cluster(client, tmp_path, coordinators=2, nodes=dict(nodes)) as running:
            tasks = [await running.coordinator.submit(request(seed=100 * n)) for n in range(8)]
            await until(lambda: sum(node.running for node in nodes.values()) == 8)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            for node in nodes.values():
                node.held = False
            for n, task_id in enumerate(tasks):
                await answered(running, task_id, seed=100 * n)
            assert server.restarts == 1
            log = list(running.coordinator.queue.log())
            assert count_lost_and_duplicated(tasks, log) == (0, 0)


async def test_a_coordinator_that_stood_still_loses_its_tasks_and_changes_nothing(start_cluster: StartCluster) -> None:
    limits, node = QueueLimits(silent_s=0.5, gone_s=0.6), Fragile(slots=1_000, held=True)
    async with start_cluster(coordinators=2, nodes={"a": node}, limits=limits) as running:
        still, other = running.coordinators
        awake, going_on = still._dispatcher._call, asyncio.Event()

        async def hold(*arguments: Any) -> Any:
            await going_on.wait()
            return await awake(*arguments)

        tasks = []
        while still.working < 2:
            tasks.append(await other.submit(request(seed=100 * len(tasks))))
            await asyncio.sleep(0.01)
        still._dispatcher._call = hold
        node.held = False
        outcomes = [await answered(running, task_id, seed=100 * n) for n, task_id in enumerate(tasks)]
        twice = [outcome for outcome in outcomes if outcome.attempts == 2]
        assert {outcome.story[0].partition(": ")[2] for outcome in twice} == {"the dispatcher was gone"}
        going_on.set()
        await until(lambda: not still.working)
        assert count_lost_and_duplicated(tasks, list(other.queue.log())) == (0, 0)


async def test_a_silent_node_is_lost_and_its_late_words_change_nothing(
    start_cluster: StartCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qubic_lab.cluster.node.KEEP_ALIVE_S", 600.0)
    monkeypatch.setattr("qubic_lab.cluster.dispatcher.SILENT_S", silent_s := 0.5)
    silent = Fragile(seconds=8.0)
    async with start_cluster(nodes={"a": silent}) as running:
        task_id = await running.coordinator.submit(request())
        await until(lambda: running.gates("a") == {Gate.LOST})
        monkeypatch.setattr("qubic_lab.cluster.dispatcher.SILENT_S", WITHIN_S)
        await running.start_node("b", Fragile())
        outcome = await answered(running, task_id)
        assert outcome.story == (f"try 1 by {running.coordinator.name}: node a sent nothing for {silent_s} s",)
        await until(lambda: not silent.running)


async def test_a_coordinator_that_ends_hands_back_what_it_holds(start_cluster: StartCluster) -> None:
    node = Fragile(slots=1_000, held=True)
    async with start_cluster(coordinators=2, nodes={"a": node}) as running:
        tasks = []
        while running.coordinator.working < 2:
            tasks.append(await running.coordinator.submit(request(seed=100 * len(tasks))))
            await asyncio.sleep(0.01)
        await running.end_coordinator(0)
        node.held = False
        outcomes = [await answered(running, task_id, seed=100 * n) for n, task_id in enumerate(tasks)]
        twice = [outcome for outcome in outcomes if outcome.attempts == 2]
        assert {outcome.story[0].partition(": ")[2] for outcome in twice} == {"the coordinator ended"}
        assert (await running.coordinators[1].counts()).reclaimed == 0


async def test_a_node_goes_to_another_coordinator_when_its_own_ends(start_cluster: StartCluster) -> None:
    async with start_cluster(coordinators=2, nodes={"a": Fragile()}) as running:
        other = running.coordinators[1]
        await asyncio.sleep(0.2)
        [before] = other.nodes()
        await running.end_coordinator(0)
        await until(lambda: other.nodes()[0].record.registered_s < before.record.registered_s)
        await until(lambda: other.nodes()[0].gate is None)
        await answered(running, await other.submit(request()))


async def test_a_node_whose_name_is_taken_over_ends(start_cluster: StartCluster) -> None:
    before, after = Fragile(), Fragile()
    async with start_cluster(nodes={"a": before}) as running:
        first = running.nodes["a"]
        await running.start_node("a", after)
        with pytest.raises(RefusedError, match="another process has registered"):
            await asyncio.wait_for(first, WITHIN_S)
        await answered(running, await running.coordinator.submit(request()))
        assert after.asked and not before.asked  # a probe may ask, too


async def test_redis_answers_and_bad_settings_are_refused(start_cluster: StartCluster, client: redis.Redis) -> None:
    with pytest.raises(InputError, match="did you mean 'two-choices'"):
        Coordinator(client, "127.0.0.1:0", "two-choice")
    async with start_cluster() as running:
        times = await running.coordinator.redis_times()
        assert min(times.ping_ms, times.set_ms, times.get_ms) > 0
        for address, message in (("vm-1:5001", "requires mutual TLS"), ("127.0.0.1", "not understood")):
            with pytest.raises(InputError, match=message):
                async with Coordinator(client, address).running():
                    pass
