"""Checks of Redis: whether it answers, asks for a password, lets us do what we need, and keeps what it answered."""

import os
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.exceptions import NoPermissionError

from qubic_lab.cluster.redis_server import connect
from qubic_lab.doctor.finding import Finding, skip
from qubic_lab.doctor.subject import Subject
from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.settings import settings
from qubic_lab.wire.channel import is_loopback

ANSWER_S = 3.0
POLICY = "noeviction"


def redis_server(subject: Subject) -> Iterator[Finding]:
    """Redis: whether it answers, asks for a password, lets us do what we need, and keeps what it has answered."""
    url = settings().redis_url
    if not url:
        embedded = "QUBIC_LAB_REDIS_URL is not set: the embedded one starts with what needs it"
        yield skip("Redis", "nodes do not use it" if subject.role == "node" else embedded)
        return
    place = place_of(url)
    is_open = answers_anybody(url)
    try:
        client = connect(url)
    except InputError as error:
        if is_open and urlsplit(url).password:
            yield _unasked(url, place)
        else:
            ask = f"redis-cli -h {urlsplit(url).hostname or 'localhost'} --askpass PING"
            yield Finding(place, "refuses", "fail", str(error), ask)
        return
    except QubicLabError as error:
        yield Finding(place, "does not answer", "fail", str(error), subject.start("redis-server", url))
        return
    with closing(client):
        started = time.perf_counter()
        client.ping()
        version = client.info("server")["redis_version"]
        yield Finding(place, f"{version}, answers in {(time.perf_counter() - started) * 500:.2f} ms")
        yield _password(url, place, is_open, client)
        yield from _rights(url, place, client)
        yield from _persistence(place, client)


def place_of(url: str) -> str:
    """Return a URL of Redis without user, password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def answers_anybody(url: str) -> bool:
    """Return whether Redis answers without user and password."""
    pool = redis.ConnectionPool.from_url(url, socket_timeout=ANSWER_S, socket_connect_timeout=ANSWER_S)
    for name in ("username", "password"):
        pool.connection_kwargs.pop(name, None)
    try:
        with closing(redis.Redis(connection_pool=pool)) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError):
        return False


def _password(url: str, place: str, is_open: bool, client: "redis.Redis") -> Finding:
    looked_at = f"password of {place}"
    if urlsplit(url).scheme == "unix":
        return skip(looked_at, "a unix socket: the rights of its file say who may use it")
    if not is_open:
        return Finding(looked_at, "is asked for")
    if urlsplit(url).password:
        return _unasked(url, looked_at)
    config: dict[Any, Any] = {"bind": "unknown addresses"}
    with suppress(redis.RedisError):
        config = client.config_get("bind", "protected-mode")
    reach = config["bind"] or "*"
    if config.get("protected-mode") == "yes" or all(is_loopback(each.lstrip("-")) for each in reach.split()):
        return Finding(looked_at, "none; it serves this host alone")
    why = f"it listens at {reach}: anybody who reaches it may read and change the queue"
    parts = urlsplit(url)
    with_one = f"{parts.scheme}://:$(qubic-lab token new)@{parts.netloc}{parts.path}"
    if "QUBIC_LAB_REDIS_URL" in os.environ:
        remedy = f'export QUBIC_LAB_REDIS_URL="{with_one}" && qubic-lab doctor --fix --only redis'
    else:
        remedy = f'echo "QUBIC_LAB_REDIS_URL={with_one}" >> .env && qubic-lab doctor --fix --only redis'
    return Finding(looked_at, "none", "fail", why, remedy)


def _unasked(url: str, looked_at: str) -> Finding:
    return Finding(looked_at, "none is asked for", "fail", "the URL has one", fix=lambda: set_password(url))


def set_password(url: str) -> str:
    """Give Redis the user and password of a URL, where anybody may use it now; keep them over its restart."""
    pool = redis.ConnectionPool.from_url(url, socket_timeout=ANSWER_S)
    user, password = pool.connection_kwargs.pop("username", None), pool.connection_kwargs.pop("password")
    pool.connection_kwargs.pop("password", None)
    with closing(redis.Redis(connection_pool=pool)) as client:
        if user in (None, "", "default"):
            client.config_set("requirepass", password)
        else:
            client.acl_setuser(
                user, enabled=True, passwords=[f"+{password}"], keys=["*"], channels=["*"], categories=["+@all"]
            )
            client.acl_setuser("default", enabled=False)
    return f"Redis asks for the password of its URL; {_kept(url)}"


def _kept(url: str) -> str:
    """Write Redis's configuration to its files; return whether it has some."""
    kept = False
    with closing(connect(url)) as client:
        for keep in (client.config_rewrite, client.acl_save):
            with suppress(redis.RedisError):
                keep()
                kept = True
    return "its files say so, too" if kept else "it has no configuration file, so its next start must say so again"


def _rights(url: str, place: str, client: "redis.Redis") -> Iterator[Finding]:
    key = "{qubic-lab-doctor}:check"
    user = urlsplit(url).username or "default"
    try:
        client.eval("redis.call('SET', KEYS[1], ARGV[1], 'PX', 1000) return redis.call('TIME')", 1, key, "1")
        client.delete(key)
        yield Finding(f"rights of user {user} at {place}", "scripts, keys, time")
    except NoPermissionError as error:
        host = urlsplit(url).hostname or "localhost"
        remedy = f"redis-cli -h {host} --askpass ACL SETUSER {user} '~*' '&*' +@all -@dangerous +info"
        yield Finding(f"rights of user {user} at {place}", "too few", "fail", str(error), remedy)
    except redis.ResponseError as error:  # no memory, a read-only replica, a full disk
        remedy = f"redis-cli -h {urlsplit(url).hostname or 'localhost'} --askpass INFO"
        yield Finding(f"writing to {place}", "refused", "fail", str(error), remedy)


def _persistence(place: str, client: "redis.Redis") -> Iterator[Finding]:
    looked_at = f"what {place} keeps"
    keeps = bool(client.info("persistence").get("aof_enabled"))
    try:
        policy = str(client.config_get("maxmemory-policy").get("maxmemory-policy", ""))
    except redis.RedisError:
        policy = "unknown policy"
    value = f"append-only file {'on' if keeps else 'off'}, {policy}"
    wrong = {} if keeps else {"appendonly": "yes"}
    if policy not in (POLICY, "unknown policy"):
        wrong["maxmemory-policy"] = POLICY
    if not wrong:
        yield Finding(looked_at, value)
        return
    why = (
        "accepted requests are lost when it restarts" if not keeps else "requests are thrown away when memory is short"
    )
    yield Finding(looked_at, value, "fail", why, fix=lambda: _configure(wrong))


def _configure(wanted: dict[str, str]) -> str:
    url = settings().redis_url
    assert url is not None
    with closing(connect(url)) as client:
        for name, value in wanted.items():
            client.config_set(name, value)
    return f"set {', '.join(f'{name} {value}' for name, value in wanted.items())} of Redis; {_kept(url)}"
