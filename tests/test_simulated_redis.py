"""The simulated Redis against a real one: the same commands and scripts, every reply compared; then its crashes."""

import itertools
import random
import re
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import redis
from queue_steps import Clock, Queues, client_of, reply_of, simulated, step, violation_of

from qubic_lab.cluster.tasks import QueueLimits, TaskLease, TaskQueue
from qubic_lab.errors import QubicLabError

if TYPE_CHECKING:
    from qubic_lab.simulation.redis import Fsync

NAMES = itertools.count()
ENTRY = re.compile(rb"\d{13}-\d+")


@pytest.fixture
def raw(client: redis.Redis) -> Any:
    """A connection to the real server whose replies are those of the protocol's second version."""
    settings = client.get_connection_kwargs()
    found: Any = redis.Redis(unix_socket_path=settings["path"], protocol=2)
    found.response_callbacks.clear()
    found.execute_command("FLUSHALL")
    return found


def commands(chance: random.Random) -> tuple[Any, ...]:
    """Return a random command that the project uses, on one of few keys, seldom on one of another type."""
    small, name = chance.randint(-3, 12), chance.choice("abcd")
    key = {kind: f"{kind}{chance.randint(1, 2)}" for kind in ("hash", "set", "zset", "list", "text", "stream")}
    if chance.random() < 0.05:
        key = dict.fromkeys(key, chance.choice(list(key.values())))
    anything = chance.choice(list(key.values()))
    group = (key["stream"], chance.choice(["group", "group", "other"]))
    bound = chance.choice(["-inf", "+inf", "(2", "(-1", "3", "0.5", "nonsense"])
    return chance.choice(
        [
            ("HSET", key["hash"], name, small),
            ("HSET", key["hash"], name, "text", "z", 7),
            ("HGET", key["hash"], name),
            ("HMGET", key["hash"], name, "a", "nothing"),
            ("HGETALL", key["hash"]),
            ("HDEL", key["hash"], name, "c"),
            ("HINCRBY", key["hash"], name, small),
            ("SADD", key["set"], name, small),
            ("SREM", key["set"], name, small),
            ("SMEMBERS", key["set"]),
            ("ZADD", key["zset"], small, name),
            ("ZADD", key["zset"], small + 0.5, name),
            ("ZADD", key["zset"], name, name),
            ("ZREM", key["zset"], name, "b"),
            ("ZCARD", key["zset"]),
            ("ZSCORE", key["zset"], name),
            ("ZRANGE", key["zset"], 0, -1, "WITHSCORES"),
            ("ZRANGE", key["zset"], small, small + 2),
            ("ZRANGEBYSCORE", key["zset"], "-inf", bound),
            ("ZRANGEBYSCORE", key["zset"], bound, small),
            ("RPUSH", key["list"], name, small),
            ("LRANGE", key["list"], small, -1),
            ("LRANGE", key["list"], 0, small),
            ("GET", key["text"]),
            ("SET", key["text"], chance.choice(["text", small, "12a"])),
            ("SET", key["text"], small, "EX", 100),
            ("INCR", key["text"]),
            ("DEL", anything),
            ("EXISTS", anything, key["hash"]),
            ("PEXPIRE", anything, 100_000),
            ("PEXPIRE", key["zset"], min(small, 0)),
            ("KEYS", chance.choice(["*1", "s*", "hash?", "*[*", "nothing"])),
            ("XADD", key["stream"], "*", "field", name, "n", small),
            ("XADD", key["stream"], "MAXLEN", 2, "*", "field", name),
            ("XADD", key["stream"], "MAXLEN", "~", 1_000, "*", "field", name),
            ("XLEN", key["stream"]),
            ("XDEL", key["stream"], "ID", "ID"),
            ("XRANGE", key["stream"], "-", "+", "COUNT", 3),
            ("XRANGE", key["stream"], "(ID", "+", "COUNT", 3),
            ("XRANGE", key["stream"], "ID", "ID", "COUNT", 3),
            ("XREAD", "COUNT", 2, "STREAMS", key["stream"], "ID"),
            ("XREAD", "COUNT", 2, "STREAMS", key["stream"], "0-0"),
            ("XGROUP", "CREATE", *group, 0),
            ("XGROUP", "CREATE", *group, "0-0", "MKSTREAM"),
            ("XGROUP", "DELCONSUMER", *group, name),
            ("XREADGROUP", "GROUP", group[1], name, "COUNT", 1, "STREAMS", key["stream"], ">"),
            ("XREADGROUP", "GROUP", group[1], name, "COUNT", 3, "STREAMS", key["stream"], ">"),
            ("XACK", *group, "ID", "ID"),
            ("XCLAIM", *group, name, 0, "ID", "JUSTID"),
            ("XPENDING", *group),
            ("PTTL", anything),
            ("PING",),
            ("PUBLISH", "channel", name),
        ]
    )


def compare_commands(raw: Any, seed: int, steps: int) -> None:
    chance, clock, ids = random.Random(seed), Clock(), [b"0-1"]
    server, execute = simulated(clock), raw.execute_command
    for number in range(steps):
        command = [
            chance.choice(ids).join(part.encode().split(b"ID")) if isinstance(part, str) and part != "JUSTID" else part
            for part in commands(chance)
        ]
        real = reply_of(partial(execute, *command))
        clock.us = time.time_ns() // 1_000
        if command[0] == b"XADD" and isinstance(real, bytes):
            ids.append(real)
            clock.us = max(int(real.partition(b"-")[0]) * 1_000, 1)
        ours = reply_of(partial(server.execute, *command))
        if command[0] in (b"HGETALL", b"SMEMBERS", b"KEYS") and isinstance(real, list):
            size = 2 if command[0] == b"HGETALL" else 1
            real, ours = (sorted([each[n : n + size] for n in range(0, len(each), size)]) for each in (real, ours))
        if command[0] == b"PTTL" and isinstance(real, int) and real > 0:
            real, ours = real > 50_000, ours > 50_000
        assert real == ours, f"step {number} of seed {seed}: {command} gave {real!r}, ours {ours!r}"


class Twins(Queues):
    """A real and a simulated queue and registry, to which the same happens."""

    def __init__(self, client: redis.Redis, limits: QueueLimits) -> None:
        name, clock = f"twins-{next(NAMES)}", Clock()
        super().__init__([client, client_of(simulated(clock))], name, f"{name}-nodes", limits)
        self.clock = clock

    def each(self, call: Callable[[Any], Any], of: list[Any]) -> Any:
        """Call the real one and ours, at the instant at which the real one did it; return what both gave."""
        self._number = next(self._uuids)
        real = reply_of(lambda: call(of[0]))
        name = self.name if of is self.queues else f"{self.name}-nodes"
        if (read := self.clients[0].hget(f"{{{name}}}:clock", "redis_ms")) is not None:
            self.clock.us = int(read) * 1_000
        ours = reply_of(lambda: call(of[1]))
        assert real == ours
        return real

    def pass_ms(self, ms: int) -> None:
        """Let time go by on the clocks of all."""
        for queue, registry in zip(self.queues, self.registries, strict=True):
            queue.clock_offset_ms += ms
            registry.clock_offset_ms += ms

    def compare_data(self) -> None:
        """All that the two hold must be equal."""
        real, ours = (
            {key: self._content(client, key) for key in client.scan_iter(f"{{{self.name}*", 1_000)}
            for client in self.clients
        )
        assert real == ours

    def _content(self, client: Any, key: bytes) -> Any:
        """Read a key of unknown type by the commands that fit its name."""
        kind = key.decode().split("}:")[1].split(":")[0]
        run = client.execute_command
        lives = run("PTTL", key) > 0
        if kind in ("task", "node", "counts", "back", "pace"):
            found = run("HGETALL", key)
            pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
            # The times of two clocks are in ids of entries.
            return [lives, sorted([name, ENTRY.sub(b"entry", value)] for name, value in pairs)]
        if kind in ("leases", "again", "beats", "changes"):
            found = [run("ZRANGE", key, 0, -1), [float(run("ZSCORE", key, each)) for each in run("ZRANGE", key, 0, -1)]]
            return [lives, *found]
        if kind == "held":
            return [lives, sorted(run("SMEMBERS", key))]
        if kind in ("stream", "log", "wake", "done", "dead"):
            entries = [[list(pair) for pair in entry.items()] for _, entry in client.xrange(key, "-", "+", 10_000)]
            return [lives, entries]
        return [lives, run("LRANGE", key, 0, -1) if kind == "progress" else kind == "clock" or run("GET", key)]


def compare_scripts(client: redis.Redis, monkeypatch: pytest.MonkeyPatch, seed: int, steps: int) -> None:
    limits = QueueLimits(most_waiting=6, most_logged=1_000, most_dead=3_000, keep_s=600.0)
    twins, chance = Twins(client, limits), random.Random(seed)
    twins.same_ids(monkeypatch)
    leases: list[TaskLease] = []
    tasks: list[str] = ["nothing"]
    for _ in range(steps):
        step(twins, chance, leases, tasks)
    twins.compare_data()
    twins.queues[1].restore(twins.queues[1].save())
    twins.compare_data()


@pytest.mark.parametrize(("seed", "steps"), [(1, 1_500), pytest.param(2, 200_000, marks=pytest.mark.slow)])
def test_commands_are_answered_as_by_a_real_server(raw: Any, seed: int, steps: int) -> None:
    compare_commands(raw, seed, steps)


@pytest.mark.parametrize(("seeds", "steps"), [(3, 250), pytest.param(200, 500, marks=pytest.mark.slow)])
def test_scripts_do_as_on_a_real_server(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch, seeds: int, steps: int
) -> None:
    for seed in range(seeds):
        compare_scripts(client, monkeypatch, seed, steps)


@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 1_000), marks=pytest.mark.slow)])
def test_scripts_do_what_a_model_of_their_promises_says(seeds: range, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [(seed, what) for seed in seeds if (what := violation_of(seed, 400, monkeypatch))] == []


def test_a_blocked_read_and_a_subscription_hear_of_news_until_a_crash() -> None:
    server, woken = simulated(Clock()), list[str]()
    server.changed = lambda: woken.append("entry")
    client = client_of(server)
    server.execute("XADD", "wake", "MAXLEN", 1, "*", "task", "0")
    assert (client.xread({"wake": "9999999999999-0"}, count=1, block=100), woken) == ([], [])
    server.execute("XADD", "other", "*", "task", "1")
    server.execute("XADD", "wake", "*", "task", "1")
    assert woken == ["entry"]
    ((_, entries),) = client.xread({"wake": "0-0"}, count=2, block=100)
    assert [fields for _, fields in entries] == [{b"task": b"0"}, {b"task": b"1"}]
    subscription, other = client.pubsub(), client.pubsub()
    for each in (subscription, other):
        each.subscribe("bell")
    other.close()
    assert subscription.get_message(0.1) is None
    server.execute("PUBLISH", "bell", "1 done")
    assert server.execute("PUBLISH", "bell", "2 done") == 1
    assert [(subscription.get_message(0.1) or {})["data"] for _ in range(2)] == [b"1 done", b"2 done"]
    server.crash()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    server.restart()
    assert client.ping()
    assert server.execute("PUBLISH", "bell", "3 done") == 0


@pytest.mark.parametrize(("fsync", "age_s", "lost"), [("always", 0, 0), ("everysec", 0, 2), ("everysec", 2, 0)])
def test_a_loss_of_power_takes_only_what_was_not_yet_on_disk(fsync: "Fsync", age_s: int, lost: int) -> None:
    clock = Clock()
    server = simulated(clock, fsync)
    queue = TaskQueue(client_of(server))
    tasks = [queue.submit({"n": number}) for number in range(3)]
    clock.us += age_s * 1_000_000
    assert server.crash(lost_writes=2) == lost
    server.restart()
    assert queue.counts().submitted == 3 - lost
    taken = [queue.take("worker") for _ in tasks]
    assert [lease.task_id for lease in taken if lease] == tasks[: 3 - lost]
    assert server.crash(lost_writes=10**9) == (len(taken) if fsync == "everysec" else 0)


def test_without_memory_nothing_is_added_and_a_full_disk_ends_a_server_that_syncs_always() -> None:
    server = simulated(Clock())
    queue = TaskQueue(client_of(server), limits=QueueLimits(patience_s=0.0))
    task = queue.submit({})
    server.limit(out_of_memory=True)
    with pytest.raises(QubicLabError, match="maxmemory"):
        queue.take("worker")
    assert queue.cancel(task)  # removes more than it adds
    server.limit(memory_bytes=2**40)
    with pytest.raises(QubicLabError, match="uses more than"):
        queue.submit({})
    server.limit(memory_bytes=0, disk_full=True)
    assert queue.state(task) == "cancelled"
    with pytest.raises(QubicLabError, match="could not be reached"):
        queue.submit({"lost": True})
    server.limit()
    server.restart()
    assert queue.counts().submitted == 1
    server = simulated(Clock(), "everysec")
    server.limit(disk_full=True)
    with pytest.raises(redis.ResponseError, match="MISCONF"):
        server.execute("SET", "a", "b")


def test_what_has_expired_is_gone_and_nothing_of_it_is_kept() -> None:
    clock = Clock()
    server = simulated(clock)
    for number in range(1_000):
        server.execute("SET", number, "text", "EX", 1)
        clock.us += 100_000
    assert server.execute("EXISTS", 999) == 1
    assert server.execute("EXISTS", 900) == 0
    assert len(server.execute("KEYS", "*")) == 9
