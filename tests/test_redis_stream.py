import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qubic_lab.cluster import redis_stream
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.cluster.redis_stream import stream_for
from qubic_lab.cluster.tasks import TaskQueue
from qubic_lab.errors import ConflictError

pytestmark = pytest.mark.anyio


class _Calls:
    """Makes calls over a stream, and counts those that a thread had to make."""

    def __init__(self, client: Any) -> None:
        self.in_threads = 0
        stream = stream_for(client, self._in_thread)
        assert stream is not None
        self.stream = stream

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        self.in_threads += 1
        return await asyncio.to_thread(function)

    async def until_open(self, queue: TaskQueue) -> None:
        while True:
            before = self.in_threads
            await self.stream.make(queue.take.steps("consumer"))
            if self.in_threads == before:
                return
            await asyncio.sleep(0.01)


async def test_calls_of_one_turn_need_no_thread_and_keep_their_order_and_errors(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, connect(server.url) as client:
        queue, calls = TaskQueue(client), _Calls(client)
        make = calls.stream.make
        await make(queue.submit.steps({}))  # the server does not know a script before a thread has loaded it
        await calls.until_open(queue)
        before = calls.in_threads
        ids = await asyncio.gather(*(make(queue.submit.steps({"n": n}, "normal", f"key {n}")) for n in range(20)))
        with pytest.raises(ConflictError):
            await make(queue.submit.steps({"n": 1}, "normal", "key 0"))
        leases = [await make(queue.take.steps("consumer", 1.0)) for _ in range(20)]
        assert [lease.task_id for lease in leases if lease is not None] == ids
        assert [lease.payload["n"] for lease in leases if lease is not None] == list(range(20))
        waiting = asyncio.ensure_future(make(queue.take.steps("consumer", 20.0)))  # at the server, in nobody's way
        late = await make(queue.submit.steps({"n": 20}))
        found = await waiting
        assert found is not None
        assert found.task_id == late
        assert calls.in_threads - before <= 1  # the connection for what waits is only opened by the first such command
        await calls.stream.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_who_loses_the_connection_is_answered_by_a_thread_once(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_stream, "RETRY_S", 0.05)
    with RedisServer(tmp_path) as server, connect(server.url, answer_s=0.3) as client:
        queue, calls = TaskQueue(client), _Calls(client)
        await calls.until_open(queue)
        before, pid = calls.in_threads, server.pid
        assert pid is not None
        os.kill(pid, number)
        asking = [asyncio.ensure_future(calls.stream.make(queue.submit.steps({"n": n}))) for n in range(5)]
        while calls.in_threads < before + 5:
            await asyncio.sleep(0.01)
        if number is signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
        assert len(set(await asyncio.gather(*asking))) == 5
        assert queue.counts().submitted == 5  # also those that the stopped server had read already
        await calls.until_open(queue)
        await calls.stream.close()


async def test_a_server_with_a_password_needs_no_thread_in_another_database(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, connect(server.url) as first:
        first.config_set("requirepass", "secret")
        address = server.url.replace("redis://", "redis://:secret@").replace("unix://", "unix://:secret@")
        with connect(f"{address}{'&' if '?' in address else '?'}db=3") as client:
            queue, calls = TaskQueue(client), _Calls(client)
            queue.submit({})  # the server knows the script now
            await calls.until_open(queue)
            before = calls.in_threads
            await calls.stream.make(queue.submit.steps({}))
            assert (calls.in_threads, queue.counts().pending, first.dbsize()) == (before, 1, 0)  # one was taken
            await calls.stream.close()
