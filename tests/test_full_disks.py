"""Full disks: who asks is told the cause and the remedy, nothing accepted is lost, and no restart is needed."""

import asyncio
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from clusters import Fragile, cluster, counted, hurry, text_of, until, wait_until
from databases import emptied
from disks import Disk, small_disk
from sqlalchemy import Engine

from qubic_lab.cluster import redis_calls, redis_server
from qubic_lab.cluster.redis_server import RedisServer, connect, embedded_binary
from qubic_lab.cluster.tasks import TaskQueue
from qubic_lab.database import open_database
from qubic_lab.errors import FullError
from qubic_lab.votes.history import VoteHistory, VoteSummary

FULL = "disk of the database is full: free space there"


def vote(number: int) -> VoteSummary:
    now = datetime(2026, 12, 1, tzinfo=UTC)
    return VoteSummary(f"{number:032x}", now, "consensus", "Why?", "accept", 0.9, False, 3, 10, 1.0)


def fill(history: VoteHistory) -> int:
    """Store votes until there is no room; return how many there was room for."""
    for number in range(1_000):
        try:
            history.add(vote(number), {"text": random.Random(number).randbytes(60_000).hex()})
        except FullError as error:
            assert FULL in str(error) and error.retry_after_s
            return number
    raise AssertionError("it was never full")


def check_full_and_free(engine: Engine, make_room: Callable[[], None]) -> None:
    """Fill the disk of a database: it says so, keeps what it has, and takes more with the same engine."""
    history = VoteHistory(engine)
    stored = fill(history)
    assert stored > 0
    make_room()
    assert sum(each.votes for each in history.metrics()) == stored
    history.add(vote(stored), {"text": "there is room"})
    assert sum(each.votes for each in history.metrics()) == stored + 1


def test_a_file_without_room_says_so_and_takes_more_once_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4) as disk:
        engine = open_database(f"sqlite:///{disk.folder / 'lab.db'}")
        (disk.folder / "filler").write_bytes(bytes(2**20))
        check_full_and_free(engine, disk.free)
        engine.dispose()


def test_a_server_without_room_says_so_and_takes_more_once_there_is_room(postgres_url: str) -> None:
    folder = Path(postgres_url.rpartition("host=")[2]) / "disk"
    with small_disk(folder, 4) as disk:
        (disk.folder / "filler").write_bytes(bytes(2**20))
        (folder / "space").mkdir()
        shutil.chown(folder / "space", folder.parent.owner())
        engine = open_database(emptied(postgres_url))

        def run(statement: str) -> None:
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(sa.text(statement))

        run(f"CREATE TABLESPACE small LOCATION '{folder}/space'")
        run("ALTER TABLE consensus_votes SET TABLESPACE small")
        try:
            check_full_and_free(engine, disk.free)
        finally:
            run("ALTER TABLE consensus_votes SET TABLESPACE pg_default")
            run("DROP TABLESPACE small")
            engine.dispose()


@pytest.mark.anyio
async def test_clients_are_told_of_redis_full_disk_and_what_was_accepted_is_answered_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(redis_calls, "_FULL_S", 0.2)
    monkeypatch.setattr(redis_server, "_LONGEST_PAUSE_S", 0.1)
    replica = Fragile(held=True)
    ask: dict[str, Any] = {"prompt": "count", "max_new_tokens": 5}
    async with AsyncExitStack() as stack:
        disk = stack.enter_context(small_disk(tmp_path / "disk", 8))
        client = stack.enter_context(connect(stack.enter_context(RedisServer(disk.folder / "redis")).url))
        running = await stack.enter_async_context(cluster(client, tmp_path, nodes={"one": replica}, served=True))
        accepted = asyncio.ensure_future(running.client.post("/api/ai/query", json=ask))
        await until(lambda: replica.running)
        disk.fill()
        long = ask | {"prompt": "count " * 4_000}  # of a short one the end of a block may still have room
        refused = await running.client.post("/api/ai/query", json=long)
        assert (refused.status_code, refused.json()["title"]) == (503, "Full")
        assert "the disk of Redis is full: free space there" in refused.json()["detail"]
        assert int(refused.headers["Retry-After"]) > 0
        replica.held = False
        await until(lambda: not replica.running)
        assert not accepted.done()
        disk.free()
        assert (await accepted).json()["text"] == text_of(counted(0, 5))
        assert (await running.client.post("/api/ai/query", json=ask)).status_code == 200


@pytest.fixture
def plain_server(tmp_path: Path) -> Iterator[tuple[Disk, redis.Redis]]:
    """A server that is not ours, which writes its file once a second, on a small disk."""
    with small_disk(tmp_path / "disk", 8) as disk:
        socket = tmp_path / "plain.sock"
        options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(disk.folder), "--appendonly", "yes"]
        with subprocess.Popen([embedded_binary(), *options, "--save", ""], stdout=subprocess.DEVNULL) as server:
            try:
                wait_until(socket.exists)
                with connect(f"unix://{socket}") as client:
                    yield disk, client
            finally:
                server.kill()


def test_redis_without_disk_or_memory_says_what_to_do_and_takes_tasks_again(
    plain_server: tuple[Disk, redis.Redis],
) -> None:
    disk, client = plain_server
    tasks = TaskQueue(client)
    kept = tasks.submit({"number": 0})

    def refused(how: str) -> bool:
        try:
            tasks.submit({"number": 1})
        except FullError as error:
            return how in str(error)
        return False

    disk.fill()
    wait_until(lambda: refused("disk of Redis is full: free space there"))
    disk.free()
    wait_until(lambda: not refused(""))
    client.config_set("maxmemory", 1)
    assert refused("Redis's memory is full: raise its maxmemory")
    client.config_set("maxmemory", 0)
    assert not refused("")
    lease = tasks.take("a consumer")
    assert lease is not None and lease.task_id == kept
