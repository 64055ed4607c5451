"""Backups: every answer, vote, price and trial is there again in an empty place; nothing damaged is let in."""

import asyncio
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from clusters import Fragile, StartCluster, counted, text_of, until
from commands import Run
from databases import emptied

from qubic_lab import backup
from qubic_lab.backup import Places
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.cluster.tasks import QueueLimits, TaskQueue
from qubic_lab.database import open_database
from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.oracle.backtest.ledger import Trial, TrialLedger
from qubic_lab.oracle.model.records import Price, Series
from qubic_lab.oracle.model.timestamps import DAY_US
from qubic_lab.oracle.store.price_store import PriceStore
from qubic_lab.schema import metadata
from qubic_lab.votes.history import Grading, VoteHistory, VoteSummary

NOON = datetime(2026, 5, 1, 12, 0, 0, 5, UTC)
VOTE = VoteSummary("ab12", NOON, "consensus", "2 + 2? 四", "high", 1 / 3, False, 3, 30, 0.1)
TRAIL = {"groups": [[0, 1], [2]], "none": None, "share": 1 / 3}
TRIAL = Trial("does x predict?", "up", "c" * 64, "d" * 64, 0, 10 * DAY_US, {"bars": 5})
CLOSED, RETURNS = np.arange(1, 11) * DAY_US, np.random.default_rng(0).standard_normal(10)
SetSettings = Callable[..., None]


def fill(url: str, *, trials: int = 2) -> None:
    """Put votes, prices, and trials with their chain into a database."""
    engine = open_database(url)
    history = VoteHistory(engine)
    history.add(VOTE, TRAIL)
    history.grade(VOTE.id, [Grading("a", "a", 0, True)], NOON)
    PriceStore(engine).add(Series("BTC", "test", 60), [Price(0, 60, 1e-6), Price(60, 120, 1.5)])
    ledger = TrialLedger(engine)
    for number in range(trials):
        ledger.record(Trial(**{**vars(TRIAL), "parameters": {"bars": number}}), CLOSED, RETURNS)
    engine.dispose()


def rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of all tables; times in UTC."""
    engine = open_database(url)
    with engine.connect() as connection:
        found = {
            table.name: sorted(
                (tuple(map(backup._in_utc, row)) for row in connection.execute(sa.select(table))), key=repr
            )
            for table in metadata.sorted_tables
        }
    engine.dispose()
    return {name: each for name, each in found.items() if each}


@contextmanager
def redis_at(folder: Path) -> Iterator[tuple[str, TaskQueue]]:
    """Yield the URL of a Redis, and its queue."""
    with RedisServer(folder) as server, connect(server.url) as client:
        yield server.url, TaskQueue(client, limits=QueueLimits(hold_s=0.01))


@pytest.fixture
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Return a function that gives the URL of an empty database of a kind."""

    def url(kind: str) -> str:
        if kind == "postgresql":
            return emptied(request.getfixturevalue("postgres_url"))
        return f"sqlite:///{tmp_path / 'restored' / 'lab.db'}"

    return url


@pytest.mark.parametrize("kinds", [("sqlite", "sqlite"), ("sqlite", "postgresql"), ("postgresql", "sqlite")])
def test_each_row_is_there_again(kinds: tuple[str, str], empty: Callable[[str], str], tmp_path: Path) -> None:
    source = f"sqlite:///{tmp_path / 'lab.db'}" if kinds[0] == "sqlite" else empty("postgresql")
    fill(source)
    before = rows(source)
    assert {"consensus_votes", "consensus_gradings", "trials", "ledger_entries", "market_data"} <= before.keys()
    saved = backup.save(Places({"database": source}), tmp_path / "a.tar.gz")
    assert saved.databases["database"] == {name: len(each) for name, each in sorted(before.items())}
    assert (tmp_path / "a.tar.gz").stat().st_mode & 0o777 == 0o600
    target = Places({"database": empty(kinds[1])})
    assert backup.restore(tmp_path / "a.tar.gz", target) == saved
    assert rows(target.databases["database"]) == before
    engine = open_database(target.databases["database"])
    assert TrialLedger(engine).record(TRIAL, CLOSED, RETURNS).family_trials == 3
    PriceStore(engine).add(Series("ETH", "test", 60), [Price(0, 60, 2.0)])  # ids go on behind those that came
    assert VoteHistory(engine).trail(VOTE.id) == TRAIL
    engine.dispose()
    with pytest.raises(InputError, match=r"database .* has rows \(.*2 in trials.*\)|.* has rows"):
        backup.restore(tmp_path / "a.tar.gz", target)


def test_each_task_is_there_again(tmp_path: Path) -> None:
    with redis_at(tmp_path / "a") as (url, queue):
        done, begun, waiting = (queue.submit({"prompt": name}, idempotency_key=name) for name in "abc")
        queue.complete(queue.take("one"), {"text": "answer"})
        lease = queue.take("one")
        queue.progress(lease, 0, [["half", 1]])
        counts = queue.counts()
        saved = backup.save(Places({}, url), tmp_path / "a.tar.gz")
        assert saved.tasks == 3 and queue.counts() == counts
        queue.progress(lease, 1, [["later", 2]])
    with redis_at(tmp_path / "b") as (url, queue):
        backup.restore(tmp_path / "a.tar.gz", Places({}, url))
        assert queue.counts() == counts
        assert queue.result(done).result == {"text": "answer"}
        assert queue.submit({"prompt": "a"}, idempotency_key="a") == done, "the same request gets the same answer"
        assert queue.look(begun).items == [["half", 1]] and queue.state(waiting) == "pending"
        queue.complete(lease, {"text": "whole"})  # who held it may go on
        assert queue.take("two").task_id == waiting
        with pytest.raises(
            InputError, match="the queue in Redis holds 3 tasks: take an empty Redis, or give --replace"
        ):
            backup.restore(tmp_path / "a.tar.gz", Places({}, url))
        backup.restore(tmp_path / "a.tar.gz", Places({}, url), replace=True)
        assert queue.counts() == counts and queue.result(begun) is None
    with pytest.raises(InputError, match="holds a queue: give --redis URL"):
        backup.restore(tmp_path / "a.tar.gz", Places({}))


def test_what_is_there_is_moved_aside_only_if_asked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'lab.db'}"
    fill(url, trials=1)
    backup.save(Places({"database": url}), tmp_path / "a.tar.gz")
    before, other = rows(url), f"sqlite:///{tmp_path / 'other.db'}"
    fill(other, trials=3)
    after = rows(other)
    with pytest.raises(InputError, match=r"3 in trials.*\): give --replace, which moves it aside"):
        backup.restore(tmp_path / "a.tar.gz", Places({"database": other}))
    assert rows(other) == after
    using = sqlite3.connect(tmp_path / "other.db")  # as a coordinator between two requests
    using.execute("SELECT count(*) FROM trials").fetchone()
    with pytest.raises(InputError, match=r"other\.db is open in another process: end its coordinators"):
        backup.restore(tmp_path / "a.tar.gz", Places({"database": other}), replace=True)
    using.close()
    backup.restore(tmp_path / "a.tar.gz", Places({"database": other}), replace=True)
    (aside,) = (file for file in tmp_path.glob("other.db.*") if re.search(r"\d{8}T", file.name))
    assert (rows(other), rows(f"sqlite:///{aside}")) == (before, after)
    with pytest.raises(InputError, match="exists: give another name"):
        backup.save(Places({"database": url}), tmp_path / "a.tar.gz")


def test_a_damaged_archive_is_refused_in_one_line_and_writes_nothing(tmp_path: Path) -> None:
    url, file = f"sqlite:///{tmp_path / 'lab.db'}", tmp_path / "a.tar.gz"
    fill(url)
    backup.save(Places({"database": url}), file)
    sound, target = file.read_bytes(), Places({"database": f"sqlite:///{tmp_path / 'new' / 'lab.db'}"})
    flipped = [sound[:at] + bytes([sound[at] ^ 16]) + sound[at + 1 :] for at in range(40, len(sound), len(sound) // 20)]
    for content in (*flipped, sound[: len(sound) // 2], sound[:-9], b"", b"no archive"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"is damaged|is no backup") as caught:
            backup.restore(file, target)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
        assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="does not exist"):
        backup.restore(tmp_path / "none", target)
    file.write_bytes(sound)
    backup.restore(file, target)
    assert rows(target.databases["database"]) == rows(url)


@pytest.mark.anyio
async def test_a_backup_under_load_holds_each_answer_that_was_given(
    start_cluster: StartCluster, client: Any, tmp_path: Path
) -> None:
    async with start_cluster(served=True, nodes={"a": Fragile(0.01, slots=8)}) as running:
        given: list[str] = []

        async def ask(number: int) -> None:
            for seed in range(number, number + 20):
                body = {"prompt": "hi", "max_new_tokens": 3, "seed": seed}
                answer = await running.client.post("/api/ai/query", json=body, headers={"Idempotency-Key": f"k{seed}"})
                given.append(answer.json()["task_id"])

        asking = [asyncio.ensure_future(ask(100 * each)) for each in range(4)]
        await until(lambda: len(given) > 20)
        before = list(given)
        url = f"unix://{client.connection_pool.connection_kwargs['path']}"
        await asyncio.to_thread(backup.save, Places({}, url), tmp_path / "a.tar.gz")
        await asyncio.gather(*asking)
        assert len(given) == 80, "nobody was refused meanwhile"
    with redis_at(tmp_path / "b") as (url, queue):
        backup.restore(tmp_path / "a.tar.gz", Places({}, url))
        ends = [entry.task_id for entry in queue.log()]
        assert len(ends) == len(set(ends)) == queue.counts().completed and set(before) <= set(ends)
        for task in ends:
            text = queue.result(task).result["text"]
            assert text == text_of(counted(int(text.split()[0]), 3))


def test_the_commands_find_all(  # a longer name makes the socket's path too long
    tmp_path: Path, set_settings: SetSettings, here: Run
) -> None:
    set_settings(data=tmp_path / "data", cache=tmp_path / "c", database_url=None, redis_url=None)
    assert here(f"backup {tmp_path / 'none.tar.gz'}").out.endswith("no queue\n")
    (tmp_path / "data").mkdir()
    fill(f"sqlite:///{tmp_path / 'data' / 'qubic-lab.db'}", trials=0)
    fill(f"sqlite:///{tmp_path / 'ledger.db'}")  # of the settings of each test
    with redis_at(tmp_path / "c" / "cluster" / "redis") as (_, queue):
        task = queue.submit({"prompt": "a"})
    saved = here(f"backup {tmp_path / 'a.tar.gz'} --json").json
    assert saved["databases"].keys() == {"database", "ledger"} and saved["tasks"] == 1
    set_settings(data=tmp_path / "data2", cache=tmp_path / "c2", ledger_url=f"sqlite:///{tmp_path / 'l2.db'}")
    assert here(f"restore {tmp_path / 'a.tar.gz'} --json").json["databases"] == saved["databases"]
    assert "ledger verify" not in here("oracle ledger verify").err
    assert rows(f"sqlite:///{tmp_path / 'l2.db'}") == rows(f"sqlite:///{tmp_path / 'ledger.db'}")
    with redis_at(tmp_path / "c2" / "cluster" / "redis") as (_, queue):
        assert queue.state(task) == "pending"
    assert "has rows" in here(f"restore {tmp_path / 'a.tar.gz'}").failed(2)


def test_a_place_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with pytest.raises(QubicLabError, match="Redis at unix:///nowhere cannot be reached"):
        backup.save(Places({}, "unix:///nowhere"), tmp_path / "a.tar.gz")
    with pytest.raises(InputError, match="give another folder"):
        backup.save(Places({}), tmp_path / "none" / "a.tar.gz")
    assert not [*tmp_path.iterdir()]
