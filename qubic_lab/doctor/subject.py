"""Who is examined: a machine, its role, and the model that it is to run."""

import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from qubic_lab.doctor.finding import Finding, as_root
from qubic_lab.doctor.graphics import Graphics, read_graphics
from qubic_lab.errors import check_choice
from qubic_lab.launch_plan.network import SERVICES, Host, Network, Service
from qubic_lab.settings import settings
from qubic_lab.wire.channel import is_loopback

ROLES = ("workbench", "coordinator", "node")
"""`workbench`: a machine for itself, which needs no other."""
AT_A_WORKBENCH = ("coordinator", "registry", "metrics", "dashboard", "serve")
"""Services that commands start on a workbench."""

OF_SERVICES = Path("/etc/qubic-lab")
"""Where `launch/install.sh` puts what units are started with."""
USERS = {"coordinator": "qubic-lab", "node": "qubic-node"}


@dataclass(frozen=True)
class Subject:
    """What is examined; `host` and `network` are of the plan, None and empty of a workbench.

    `links` measures the network between nodes, as far as a coordinator answers. `options` are the words that repeat
    this examination on a command line.
    """

    role: str = "workbench"
    host: Host | None = None
    hosts: tuple[Host, ...] = ()
    services: tuple[Service, ...] = ()
    model: str = "smollm2"
    ranks: int = 1
    dtype: str = "bf16"
    slots: int = 4
    source: str | None = None
    links: Callable[["Subject"], Iterable[Finding]] = lambda subject: ()
    options: str = ""

    @cached_property
    def graphics(self) -> Graphics:
        """Its NVIDIA cards, read once."""
        return read_graphics()

    @property
    def coordinator(self) -> str:
        """The URL of its coordinator, by the settings or else the plan."""
        if self.hosts and "coordinator" not in settings().model_fields_set:
            return f"https://{self.hosts[0].domain_name}:{SERVICES['coordinator'].ports[0]}"
        return settings().coordinators[0]

    def start(self, unit: str, url: str) -> str:
        """Return the command that starts a unit of systemd on the host of a URL, perhaps this one."""
        where, host = urlsplit(url).hostname or "", self.host
        own = (host.name, host.address, host.domain_name) if host else ()
        command = f"systemctl start {unit}"
        return as_root(command) if not where or is_loopback(where) or where in own else f"ssh {where} sudo {command}"

    def command(self, check: str) -> str:
        """Return the command line that mends what a check found."""
        return " ".join(filter(None, (f"qubic-lab doctor --fix --only {check}", self.options)))


def subject_of(role: str, name: str | None, nodes: int) -> Subject:
    """Return a machine with a role of the plan; by default the host of the plan whose address this machine has.

    Raises:
        InputError: the role is unknown, or the number of nodes out of range.
        NotFoundError: the plan has no host of that name.
    """
    check_choice("role", role, ROLES)
    if role == "workbench":
        return Subject(services=tuple(SERVICES[each] for each in AT_A_WORKBENCH))
    network = Network(nodes)
    host = network.host(name) if name else _own(network, first=role == "coordinator")
    if role == "coordinator":
        network = Network(nodes, coordinators=network.hosts.index(host) + 1)
        host = network.host(host.name)
    return replace(Subject(role), host=host, hosts=network.hosts, services=network.services(host))


def variables_of(role: str) -> dict[str, str]:
    """Return the variables that the unit of a role is started with, as far as this user may read them."""
    if role not in USERS or not OF_SERVICES.exists():
        return {}
    places = {"CACHE": Path("/var/cache"), "DATA": Path("/var/lib")}
    found = {f"QUBIC_LAB_{name}": str(place / USERS[role]) for name, place in places.items()}
    found["HF_HOME"] = f"{found['QUBIC_LAB_CACHE']}/hub"
    for name in ("host", role):
        with suppress(OSError):
            lines = (OF_SERVICES / f"{name}.env").read_text().splitlines()
            found |= dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return found


def _own(network: Network, *, first: bool) -> Host:
    addresses = {each.address for found in psutil.net_if_addrs().values() for each in found}
    names = {socket.gethostname()}
    here = [host for host in network.hosts if host.address in addresses or host.name in names]
    of_role = [host for host in network.hosts if host.first == first]
    return (here or of_role or network.hosts)[0]
