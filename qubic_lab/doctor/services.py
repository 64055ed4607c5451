"""Checks of what a machine talks to: ports, names, clock, Redis, the databases, and the links between nodes."""

import os
import shlex
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import redis
from redis.exceptions import NoPermissionError

from qubic_lab.cluster.redis_server import connect
from qubic_lab.database import missing_migrations, open_database, shown_url
from qubic_lab.doctor.finding import Finding, Verdict, as_root, skip
from qubic_lab.doctor.subject import Subject, find_program
from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.launch_plan.network import EPHEMERAL, Service
from qubic_lab.settings import cache_folder, settings
from qubic_lab.wire.channel import is_loopback

PROGRAMS = {
    "ssh": ("sshd", "systemd"),
    "redis": ("redis-server", "valkey-server"),
    "postgres": ("postgres",),
    "grafana": ("grafana",),
    "prometheus": ("prometheus",),
    "alertmanager": ("alertmanager",),
    "http": ("caddy", "nginx"),
    "https": ("caddy", "nginx"),
}
"""Programs that may listen at the ports of services; at all others it is our own, or systemd for it."""
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
WARN_CLOCK_S, MOST_CLOCK_S = 0.5, 2.0
"""Difference of clocks above which it is warned, and above which a machine is ill; HTTP tells whole seconds."""
ANSWER_S = 3.0
TRIES = 3
POLICY = "noeviction"


def ports(subject: Subject) -> Iterator[Finding]:
    """Ports of this machine's services: free, or taken by the program that belongs there."""
    free: list[str] = []
    ours: list[str] = []
    for service in subject.services:
        first, last = service.ports
        if first != last:
            yield from _collectives()
        elif (listener := who_listens(first)) is None:
            (free if may_bind(first) else ours).append(str(first))
        elif _belongs(service, listener):
            ours.append(str(first))
        else:
            yield _taken(subject, service, listener)
    yield Finding("ports", f"free: {', '.join(free) or 'none'}; ours: {', '.join(ours) or 'none'}")


def _taken(subject: Subject, service: Service, process: psutil.Process) -> Finding:
    name, pid, port = process.name(), process.pid, service.ports[0]
    unit = ""
    with suppress(OSError):
        unit = Path(f"/proc/{pid}/cgroup").read_text().strip().rpartition("/")[2]
    remedy = as_root(f"systemctl disable --now {unit}") if unit.endswith(".service") else f"kill {pid}"
    why = f"{name} (process {pid}) listens there: it is for {service.what}"
    return Finding(f"port {port}", "taken", "fail" if subject.is_remote else "warn", why, remedy)


def _collectives() -> Iterator[Finding]:
    wanted = "{} {}".format(*EPHEMERAL)
    if not PORT_RANGE.exists():
        yield skip("ports that the kernel chooses", "this system does not tell them")
        return
    low, high = map(int, PORT_RANGE.read_text().split())
    looked_at, value = "ports that the kernel chooses", f"{low} to {high}"
    if (low, high) == EPHEMERAL:
        yield Finding(looked_at, value)
    else:
        why = f"the firewall lets gloo and NCCL through at {EPHEMERAL[0]} to {EPHEMERAL[1]} alone"
        remedy = as_root(f'sysctl -w net.ipv4.ip_local_port_range="{wanted}"')
        yield Finding(looked_at, value, "fail", why, remedy)


def who_listens(port: int) -> psutil.Process | None:
    """Return the process that listens at a TCP port; None if there is none, or another user's that is not shown."""
    with suppress(psutil.Error):
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.pid and each.laddr and each.laddr.port == port:
                return psutil.Process(each.pid)
    return None


def may_bind(port: int) -> bool:
    """Return whether a TCP port is free on all addresses."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", port))
        except PermissionError:  # a low port, which only root may take
            return True
        except OSError:
            return False
    return True


def _belongs(service: Service, process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        if service.name in PROGRAMS:
            return process.name() in PROGRAMS[service.name]
        return process.pid == 1 or any(_is_ours(word) for word in process.cmdline()[:4])
    return True  # it has just ended


def _is_ours(word: str) -> bool:
    return Path(word).name == "qubic-lab" or word.startswith("qubic_lab.")


def names(subject: Subject) -> Iterator[Finding]:
    """Names of the cluster's hosts, and of those in the settings' URLs."""
    wanted = {host.domain_name: host.address for host in subject.hosts}
    urls = (settings().coordinator, settings().redis_url, settings().database_url)
    for name in filter(None, (urlsplit(url or "").hostname for url in urls)):
        if not is_loopback(name) and not name.replace(".", "").isdecimal() and ":" not in name:
            wanted.setdefault(name, "")
    if not wanted:
        yield skip("host names", "no other host is named by the settings")
    for name, address in wanted.items():
        try:
            found = {str(each[4][0]) for each in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
        except OSError as error:
            found, why = set(), f"no address: {error.strerror or error}"
        if found and (not address or address in found):
            yield Finding(name, ", ".join(sorted(found)))
            continue
        if found:
            why = f"the plan says {address}"
        remedy = f"echo {shlex.quote(f'{address} {name}')} | {as_root('tee -a /etc/hosts')}"
        if not address:
            remedy = as_root("systemctl restart systemd-resolved")
        yield Finding(name, ", ".join(sorted(found)) or "unknown", "fail", why, remedy)


def clock(subject: Subject) -> Iterator[Finding]:
    """This machine's clock against that of Redis, or else of the coordinator."""
    url = settings().redis_url
    try:
        if url:
            with closing(connect(url)) as client:
                yield _judge_clock("Redis's clock", *_offset(lambda: _redis_time(client)))
        elif not is_loopback(urlsplit(settings().coordinator).hostname or ""):
            yield _judge_clock("the coordinator's clock", *_offset(_coordinator_time))
        else:
            yield skip("clock", "no other machine is named by the settings to compare with")
    except (QubicLabError, redis.RedisError, httpx2.HTTPError, OSError, ValueError) as error:
        yield skip("clock", f"nothing to compare with answers ({str(error).partition(':')[0]})")


def _judge_clock(of: str, ahead_s: float, precision_s: float) -> Finding:
    """Judge by how much this clock is ahead of another one."""
    value = f"{ahead_s:+.3f} s, to {precision_s:.3f} s"
    if abs(ahead_s) - precision_s < WARN_CLOCK_S:
        return Finding(f"clock against {of}", value)
    verdict: Verdict = "fail" if abs(ahead_s) - precision_s > MOST_CLOCK_S else "warn"
    remedy = "chronyc makestep" if find_program("chronyc") else "timedatectl set-ntp true"
    return Finding(f"clock against {of}", value, verdict, "the clocks of two machines differ", as_root(remedy))


def _offset(read: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Return by how many seconds this clock is ahead of one that is read, and how precise that is; the best of some."""
    found = []
    for _ in range(TRIES):
        sent = time.time()
        theirs, step = read()
        back = time.time()
        found.append(((back - sent + step) / 2, (sent + back) / 2 - theirs - step / 2))
    precision_s, ahead_s = min(found)
    return ahead_s, precision_s


def _redis_time(client: "redis.Redis") -> tuple[float, float]:
    seconds, microseconds = client.time()
    return seconds + microseconds / 1e6, 1e-6


def _coordinator_time() -> tuple[float, float]:
    authority = settings().tls_authority
    with httpx2.Client(trust_env=False, timeout=ANSWER_S, verify=str(authority) if authority else True) as client:
        date = client.get(f"{settings().coordinator.rstrip('/')}/health").headers["Date"]
    return parsedate_to_datetime(date).timestamp(), 1.0


def redis_server(subject: Subject) -> Iterator[Finding]:
    """Redis: whether it answers, asks for a password, lets us do what we need, and keeps what it has answered."""
    url = settings().redis_url
    if not url:
        yield skip("Redis", "QUBIC_LAB_REDIS_URL is not set: the embedded one starts with what needs it")
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
        where = urlsplit(url).hostname or ""
        start = "systemctl start redis-server"
        local = not where or is_loopback(where) or (subject.host is not None and where in _names_of(subject))
        remedy = as_root(start) if local else f"ssh {where} sudo {start}"
        yield Finding(place, "does not answer", "fail", str(error), remedy)
        return
    with closing(client):
        started = time.perf_counter()
        client.ping()
        version = client.info("server")["redis_version"]
        yield Finding(place, f"{version}, answers in {(time.perf_counter() - started) * 500:.2f} ms")
        yield _password(url, place, is_open, client)
        yield from _rights(url, place, client)
        yield from _persistence(place, client)


def _names_of(subject: Subject) -> tuple[str, ...]:
    assert subject.host is not None
    return subject.host.address, subject.host.name, subject.host.domain_name


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


def databases(subject: Subject) -> Iterator[Finding]:
    """The databases of votes and market data, and of the ledger of trials: reachable, and with today's tables."""
    ledger = settings().ledger_url or f"sqlite:///{cache_folder() / 'ledger.db'}"
    for name, url in (("QUBIC_LAB_DATABASE_URL", None), ("QUBIC_LAB_LEDGER_URL", ledger)):
        yield _database(name, url)


def _database(setting: str, url: str | None) -> Finding:
    try:
        missing = missing_migrations(url, setting)
        place = shown_url(url)
    except QubicLabError as error:
        if "later version" in str(error):
            return Finding(setting, "too new", "fail", str(error), "pip install --upgrade qubic-lab")
        if "psycopg" in str(error):
            return Finding(setting, "no driver", "fail", str(error), "pip install 'qubic-lab[postgres]'")
        remedy = as_root("systemctl start postgresql") if "postgresql" in str(error) else f"unset {setting}"
        return Finding(setting, "not usable", "fail", str(error), remedy)
    if missing is None:
        return Finding(place, "not made yet: its first use makes it")
    if not missing:
        return Finding(place, "tables of this version")
    why = f"it was made by an earlier version: {missing[-1]} and {len(missing) - 1} more steps are missing"
    if len(missing) == 1:
        why = f"it was made by an earlier version: {missing[0]} is missing"

    def migrate() -> str:
        open_database(url, setting=setting).dispose()
        return f"{place}: migrated by {len(missing)} steps"

    return Finding(place, f"{len(missing)} migrations behind", "fail", why, fix=migrate)


def links(subject: Subject) -> Iterator[Finding]:
    """The largest packet of each interface that is up, and the links between nodes."""
    for name, state in psutil.net_if_stats().items():
        if state.isup and not name.startswith(("lo", "docker", "br-", "veth")):
            small = 0 < state.mtu < 1_280
            why, remedy = (
                "IPv6 needs 1,280 bytes, and small packets are slow",
                as_root(f"ip link set {name} mtu 1460"),
            )
            yield Finding(name, f"MTU {state.mtu}", *(("warn", why, remedy) if small else ()))
    yield from subject.links()
