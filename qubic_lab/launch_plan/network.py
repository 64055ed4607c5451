"""The machines of a cluster, what listens on them at which port, and who may reach it by which firewall rule. Pure.

All that opens, checks or shows a port reads it here: the cloud's firewall, that of the test bed, and the doctor.
"""

from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Literal

from qubic_lab.errors import InputError, NotFoundError, check_range, did_you_mean

DOMAIN = "qubic-ai.internal"
SUBNET = IPv4Network("10.0.0.0/24")
INTERNAL, PUBLIC, SSH = "qubic-ai-internal", "qubic-ai-public", "qubic-ai-ssh"
COORDINATOR, DATABASE = "qubic-ai-coordinator", "qubic-ai-database"
"""Tags of machines that firewall rules name."""
IAP = "iap"
"""As the source of SSH: Google's Identity-Aware Proxy, which knows who calls."""
IAP_RANGE = "35.235.240.0/20"
ANYBODY = "0.0.0.0/0"
MOST_HOSTS = 8
_NOT_SEEN_OUTSIDE = tuple(
    map(IPv4Network, ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
)
EPHEMERAL = (40_000, 49_999)
"""`net.ipv4.ip_local_port_range` of each node: gloo and NCCL listen at ports that the kernel chooses in it."""

On = Literal["first", "coordinators", "others", "all"]
Reach = Literal["host", "coordinators", "nodes", "ssh", "public"]


@dataclass(frozen=True)
class Host:
    """A machine of the cluster; `name` is that of its certificate, too. The first one is always a coordinator."""

    name: str
    address: str
    disk_gb: int
    first: bool
    coordinator: bool

    @property
    def domain_name(self) -> str:
        """Its name in the private DNS."""
        return f"{self.name}.{DOMAIN}"


@dataclass(frozen=True)
class Service:
    """What listens at a port, or at any of a range of ports.

    `on` are the hosts where it runs; `others` are those without a coordinator. `reach` says who may connect: this host
    alone (it listens on loopback), the coordinators (it does so, too, if there is one), all nodes, also whoever may
    use SSH, or also the public.
    """

    name: str
    ports: tuple[int, int]
    on: On
    reach: Reach
    what: str
    guard: str

    def runs_on(self, host: Host) -> bool:
        """Return whether it listens on this host."""
        there = {"first": host.first, "coordinators": host.coordinator, "others": not host.coordinator}
        return there.get(self.on, True)


def _service(name: str, port: int, on: On, reach: Reach, *texts: str) -> Service:
    return Service(name, (port, port), on, reach, *texts)


SERVICES = {
    each.name: each
    for each in (
        _service("ssh", 22, "all", "ssh", "OpenSSH", "keys; no passwords"),
        _service("coordinator", 5000, "coordinators", "nodes", "coordinator: HTTP and /health", "TLS, tokens"),
        _service("health", 5000, "others", "nodes", "node: /health, its state in one word", "the cluster's network"),
        _service("registry", 5001, "coordinators", "nodes", "coordinator: gRPC for nodes", "mutual TLS, node token"),
        _service("redis", 6379, "first", "nodes", "Redis: queue and registry", "TLS, password, ACL"),
        _service("pipeline", 7700, "first", "nodes", "gRPC of a pipeline over several hosts", "mutual TLS"),
        _service("store", 7701, "first", "nodes", "torchrun's store of such a pipeline", "none: nodes only"),
        _service("node", 7702, "all", "nodes", "node: gRPC for coordinators", "mutual TLS, node token"),
        _service("grafana", 3000, "first", "nodes", "Grafana", "its own login"),
        _service("prometheus", 9090, "first", "nodes", "Prometheus", "TLS, password; without, loopback only"),
        Service("collectives", EPHEMERAL, "all", "nodes", "gloo and NCCL between ranks, meters", "none: nodes only"),
        _service("http", 80, "first", "public", "TLS proxy: redirects to 443, proves its name", "nothing is served"),
        _service("https", 443, "first", "public", "TLS proxy before the coordinator", "TLS, tokens"),
        _service("metrics", 5002, "first", "host", "collector: metrics", "loopback"),
        _service("dashboard", 5006, "first", "host", "qubic-lab dashboard", "loopback"),
        _service("postgres", 5432, "first", "coordinators", "PostgreSQL: votes, prices", "mutual TLS, password"),
        _service("serve", 8000, "first", "host", "qubic-lab serve", "loopback"),
        _service("alertmanager", 9093, "first", "host", "Alertmanager", "loopback"),
    )
}


@dataclass(frozen=True)
class Rule:
    """A rule that allows connections to machines with a tag; what no rule allows is refused.

    Sources are machines with a tag, or ranges of addresses. `ports` are pairs of first and last; `icmp` also allows
    ping and what finds the largest packet.
    """

    name: str
    target_tag: str
    ports: tuple[tuple[int, int], ...]
    source_tags: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    icmp: bool = False


@dataclass(frozen=True)
class Network:
    """The network of a cluster of `nodes` machines: vm-1 at 10.0.0.10, vm-2 at .20, and so on.

    `ssh_from` is the address from which SSH is allowed, `iap` for Google's proxy, or empty for nobody outside. With
    `public` the TLS proxy of vm-1 is open to anybody. The first `coordinators` machines have a coordinator each.

    Raises:
        InputError: a number is out of range, or `ssh_from` is no single address.
    """

    nodes: int = 3
    ssh_from: str = ""
    public: bool = False
    coordinators: int = 1

    def __post_init__(self) -> None:
        check_range("nodes", self.nodes, 1, MOST_HOSTS)
        check_range("coordinators", self.coordinators, 1, self.nodes)
        if self.ssh_from not in ("", IAP):
            _check_one_address(self.ssh_from)

    @property
    def hosts(self) -> tuple[Host, ...]:
        """All machines."""
        return tuple(
            Host(
                f"vm-{number}",
                str(SUBNET[10 * number]),
                50 if number == 1 else 30,
                number == 1,
                number <= self.coordinators,
            )
            for number in range(1, self.nodes + 1)
        )

    def host(self, name: str) -> Host:
        """Return the machine with a name or an address.

        Raises:
            NotFoundError: there is none; the message has the closest name.
        """
        for host in self.hosts:
            if name in (host.name, host.address, host.domain_name):
                return host
        raise NotFoundError(f"no machine {name!r}: {did_you_mean(name, [each.name for each in self.hosts])}")

    def tags(self, host: Host) -> tuple[str, ...]:
        """Return a machine's tags.

        SSH from an address enters at vm-1 and goes on from there; Google's proxy reaches each machine by itself.
        """
        held = {
            INTERNAL: True,
            COORDINATOR: self.coordinators > 1 and host.coordinator,
            DATABASE: self.coordinators > 1 and host.first,
            PUBLIC: self.public and host.first,
            SSH: self.ssh_from == IAP or (self.ssh_from != "" and host.first),
        }
        return tuple(tag for tag, holds in held.items() if holds)

    def reach(self, service: Service) -> Reach:
        """Return who may connect to a service here: where one coordinator is, nobody beside it needs the database."""
        return "host" if service.reach == "coordinators" and self.coordinators == 1 else service.reach

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The firewall's rules."""
        inside = sorted({each.ports for each in SERVICES.values() if each.reach in ("nodes", "ssh")})
        rules = [Rule("allow-internal-qubic-ai", INTERNAL, tuple(inside), source_tags=(INTERNAL,), icmp=True)]
        if self.coordinators > 1:
            rules.append(
                Rule("allow-internal-database", DATABASE, (SERVICES["postgres"].ports,), source_tags=(COORDINATOR,))
            )
        if self.public:
            ports = tuple(each.ports for each in SERVICES.values() if each.reach == "public")
            rules.append(Rule("allow-external-api", PUBLIC, ports, source_ranges=(ANYBODY,)))
        if self.ssh_from:
            source = IAP_RANGE if self.ssh_from == IAP else f"{self.ssh_from}/32"
            rules.append(Rule("allow-ssh-access", SSH, (SERVICES["ssh"].ports,), source_ranges=(source,)))
        return tuple(rules)

    def open_ports(self, source: str, target: str) -> tuple[tuple[int, int], ...]:
        """Return the TCP ports of a machine, as ranges, to which a machine or an address outside may connect.

        Whether something listens there is another question: see `services`. A machine reaches itself at all ports.
        """
        inside = {name: host for host in self.hosts for name in (host.name, host.address)}
        caller, callee = inside.get(source), self.host(target)
        if caller == callee:
            return ((1, 65_535),)
        address = IPv4Address(caller.address if caller else source)
        own, held = self.tags(caller) if caller else (), self.tags(callee)
        return tuple(
            ports
            for rule in self.rules
            if rule.target_tag in held
            and (
                any(tag in own for tag in rule.source_tags)
                or any(address in IPv4Network(each) for each in rule.source_ranges)
            )
            for ports in rule.ports
        )

    def may_reach(self, source: str, target: str, port: int) -> bool:
        """Return whether a machine, or an address outside, may connect to a TCP port of a machine."""
        return any(first <= port <= last for first, last in self.open_ports(source, target))

    def services(self, host: Host) -> tuple[Service, ...]:
        """Return what listens on a machine, by port; also what listens on loopback alone."""
        there = (each for each in SERVICES.values() if each.runs_on(host) and (self.public or each.reach != "public"))
        return tuple(sorted(there, key=lambda each: each.ports))


def _check_one_address(text: str) -> None:
    try:
        address = IPv4Address(text)
    except AddressValueError as error:
        raise InputError(f"ssh_from is {text!r}: give one IPv4 address, such as 203.0.113.7, or iap") from error
    if any(address in network for network in _NOT_SEEN_OUTSIDE):
        raise InputError(f"ssh_from is {text!r}, a private address: give the one that others see, or iap")
