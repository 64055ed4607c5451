"""Checks of what runs on a machine and what it talks to: units, ports, names, clock, databases, links between nodes."""

import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import psutil
import redis

from qubic_lab.cluster.redis_server import connect
from qubic_lab.database import missing_migrations, open_database, shown_url
from qubic_lab.doctor.finding import Finding, Verdict, as_root, skip
from qubic_lab.doctor.path import paths
from qubic_lab.doctor.subject import Subject
from qubic_lab.errors import QubicLabError
from qubic_lab.launch_plan.network import EPHEMERAL, Service
from qubic_lab.settings import settings
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
"""Difference of clocks above which it is warned, and above which a machine is ill."""
ANSWER_S = 3.0
DATE_STEP_S = 2.0
"""The date of an HTTP answer is in whole seconds, and servers renew it once a second."""
TRIES = 3
SYSTEMD = Path("/run/systemd/system")
NOT_MADE = "not made yet: its first use makes it"
"""There where systemd runs."""


def units(subject: Subject) -> Iterator[Finding]:
    """Units of systemd that a host with this role needs: whether they run, and start with the machine."""
    if subject.host is None or not SYSTEMD.exists():
        yield skip("units of systemd", "a workbench needs none" if SYSTEMD.exists() else "systemd does not run here")
        return
    needed = ["qubic-node"]
    if subject.role == "coordinator":
        needed = ["qubic-orchestrator"]
        if subject.host.first:  # other coordinators use those of the first
            postgres = (settings().database_url or "").startswith("postgresql")
            needed = [
                *(["redis-server"] if settings().redis_url else []),
                *(["postgresql"] if postgres else []),
                *needed,
            ]
    for unit in needed:
        ask = (["systemctl", question, unit] for question in ("is-enabled", "is-active"))
        said = [subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() for words in ask]
        if said == ["enabled", "active"]:
            yield Finding(f"unit {unit}", ", ".join(said))
        else:
            why, remedy = "it must run, and start with the machine", as_root(f"systemctl enable --now {unit}")
            yield Finding(f"unit {unit}", ", ".join(filter(None, said)), "fail", why, remedy)


def ports(subject: Subject) -> Iterator[Finding]:
    """Ports of this machine's services: free, or taken by the program that belongs there."""
    free: list[str] = []
    ours: list[str] = []
    for service in subject.services:
        first, last = service.ports
        if first != last:
            yield from _collectives()
        elif may_bind(first):
            free.append(str(first))
        elif (listener := who_listens(first)) is None:
            why = "taken by another user's process, which only root sees"
            yield skip(f"port {first}", why, "sudo $(command -v qubic-lab) doctor --only ports")
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
    return Finding(f"port {port}", "taken", "fail" if subject.host else "warn", why, remedy)


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
        words = process.cmdline()
        return process.pid == 1 or any(map(_is_ours, words[:4])) or "qubic_lab.pipeline.rank" in words  # of torchrun
    return True  # it has just ended


def _is_ours(word: str) -> bool:
    return Path(word).name == "qubic-lab" or word.startswith("qubic_lab.")


def names(subject: Subject) -> Iterator[Finding]:
    """Names of the cluster's hosts, and of those in the settings' URLs."""
    wanted = {host.domain_name: host.address for host in subject.hosts}
    urls = (subject.coordinator, settings().redis_url, settings().database_url)
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
        elif not is_loopback(urlsplit(subject.coordinator).hostname or ""):
            yield _judge_clock("the coordinator's clock", *_offset(partial(_coordinator_time, subject.coordinator)))
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
    remedy = "chronyc makestep" if shutil.which("chronyc") else "timedatectl set-ntp true"
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


def _coordinator_time(url: str) -> tuple[float, float]:
    authority = settings().tls_authority
    with httpx2.Client(trust_env=False, timeout=ANSWER_S, verify=str(authority) if authority else True) as client:
        date = client.get(f"{url}/health").headers["Date"]
    return parsedate_to_datetime(date).timestamp(), DATE_STEP_S


def databases(subject: Subject) -> Iterator[Finding]:
    """The databases of votes and market data, and of the ledger of trials: reachable, and with today's tables."""
    if subject.role == "node":
        yield skip("database", "nodes do not use any")
        return
    yield _database(subject, "QUBIC_LAB_DATABASE_URL", None)
    ledger = settings().ledger_url or f"sqlite:///{settings().cache / 'ledger.db'}"
    if settings().ledger_url or settings().cache.is_dir():
        yield _database(subject, "QUBIC_LAB_LEDGER_URL", ledger)
    else:
        yield Finding(ledger, NOT_MADE)


def _database(subject: Subject, setting: str, url: str | None) -> Finding:
    try:
        missing = missing_migrations(url, setting)
        place = shown_url(url)
    except QubicLabError as error:
        if "later version" in str(error):
            return Finding(setting, "too new", "fail", str(error), "pip install --upgrade qubic-lab")
        if isinstance(error.__cause__, ModuleNotFoundError):
            return Finding(setting, "no driver", "fail", str(error), "pip install 'qubic-lab[postgres]'")
        remedy, used = f"unset {setting}", url or settings().database_url or ""
        if used.startswith("postgres"):
            remedy = subject.start("postgresql", used)
        elif found := re.match(r"folder (.*) of database .* does not exist", str(error)):
            remedy = f"mkdir -p {shlex.quote(found[1])}"
        return Finding(setting, "not usable", "fail", str(error), remedy)
    if missing is None:
        return Finding(place, NOT_MADE)
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
    """The largest packet of each interface that is up and of each path, and the links between nodes."""
    for name, state in psutil.net_if_stats().items():
        if state.isup and not name.startswith(("lo", "docker", "br-", "veth")):
            small = 0 < state.mtu < 1_280
            why, remedy = (
                "IPv6 needs 1,280 bytes, and small packets are slow",
                as_root(f"ip link set {name} mtu 1460"),
            )
            yield Finding(name, f"MTU {state.mtu}", *(("warn", why, remedy) if small else ()))
    yield from paths(subject)
    yield from subject.links(subject)
