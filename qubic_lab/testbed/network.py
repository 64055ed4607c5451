"""The network of the test bed as plain values: commands that make it, each host's firewall and names. Pure.

All hosts are at one bridge, in a network namespace of its own: the machine's network stays as it is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qubic_lab.errors import InputError
from qubic_lab.launch_plan.network import EPHEMERAL, SUBNET, Host, Network, Rule

BRIDGE = "qubic-lan"
"""The namespace of the bridge, and the bridge in it."""
OUTSIDE, OUTSIDE_ADDRESS = "outside", "203.0.113.9"
"""A machine that does not belong to the cluster, at an address that is nobody's (RFC 5737)."""
INTERFACE = "eth0"
BURST_BYTES = 128 * 2**10
"""More than a segment of 64 KB, which tbf would else cut into packets of 1,500 bytes."""
MOST_DELAY_MS = 2_000.0
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)bit(?:/s|ps)?", re.IGNORECASE)
_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True)
class Shape:
    """What is made of the links: bits/s that each host may send (0: no limit), and ms added to each round trip."""

    rate_bps: float = 0.0
    delay_ms: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.delay_ms <= MOST_DELAY_MS:
            raise InputError(f"--delay-ms is {self.delay_ms:g}: give 0 to {MOST_DELAY_MS:g}")

    def text(self) -> str:
        """Return it in words."""
        rate = f"{self.rate_bps / 1e6:g} Mbit/s" if self.rate_bps else "unlimited bandwidth"
        return f"{rate}, {self.delay_ms:g} ms added to a round trip"


def read_rate(text: str) -> float:
    """Return the bits/s of a text such as `100mbit`; an InputError if it is none."""
    match = _RATE.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise InputError(f"--rate is {text!r}: give bits/s, such as 100mbit or 1gbit")
    return float(match[1]) * _FACTORS[match[2].lower()]


def namespaces(network: Network) -> tuple[str, ...]:
    """Return the names of all network namespaces."""
    return (BRIDGE, *(host.name for host in network.hosts), OUTSIDE)


def bridge_commands() -> list[str]:
    """Return `ip` commands for the bridge's namespace."""
    return [f"link add {BRIDGE} type bridge", f"link set {BRIDGE} up"]


def cable_commands(name: str) -> list[str]:
    """Return `ip` commands, in the bridge's namespace, for a cable from a host's `eth0` to its port at the bridge."""
    return [f"link add {name} type veth peer name {INTERFACE} netns {name}"]


def port_commands(name: str) -> list[str]:
    """Return `ip` commands, in the bridge's namespace, that connect a host's port."""
    return [f"link set {name} master {BRIDGE}", f"link set {name} up"]


def address_commands(name: str, address: str) -> list[str]:
    """Return `ip` commands for a host's interfaces; everybody reaches everybody at the bridge."""
    inside = name != OUTSIDE
    commands = ["link set lo up", f"link set {INTERFACE} up"]
    commands.append(f"address add {address}/{SUBNET.prefixlen if inside else 32} dev {INTERFACE}")
    return [*commands, f"route add {'default' if inside else SUBNET} dev {INTERFACE}"]


def rate_command(rate_bps: float) -> str:
    """Return the `tc` command that limits what a host sends."""
    return f"qdisc replace dev {INTERFACE} root tbf rate {rate_bps:.0f}bit burst {BURST_BYTES} latency 100ms"


def firewall(network: Network, host: Host) -> str:
    """Return nftables' rules for a host: what the plan's rules let in, and nothing else."""
    lines = ["ct state established,related accept", 'iifname "lo" accept']
    for rule in network.rules:
        if rule.target_tag in network.tags(host):
            lines += _accept(rule, _sources(network, rule))
    body = "\n".join(f"    {line}" for line in lines)
    chain = f"  chain input {{\n    type filter hook input priority 0; policy drop;\n{body}\n  }}"
    return f"table inet qubic-lab {{\n{chain}\n}}\n"


def hosts_file(network: Network) -> str:
    """Return /etc/hosts of every host, in place of the private DNS."""
    lines = ["127.0.0.1 localhost", *(f"{host.address} {host.domain_name} {host.name}" for host in network.hosts)]
    return "\n".join(lines) + "\n"


def system_values() -> dict[str, str]:
    """Return values of sysctl, as the real machines set them: our range of ports, and systemd's leave to ping."""
    return {
        "net/ipv4/ip_local_port_range": f"{EPHEMERAL[0]} {EPHEMERAL[1]}",
        "net/ipv4/ping_group_range": "0 2147483647",
    }


def _sources(network: Network, rule: Rule) -> Sequence[str]:
    tagged = [host.address for host in network.hosts if any(tag in network.tags(host) for tag in rule.source_tags)]
    return [*tagged, *rule.source_ranges]


def _accept(rule: Rule, sources: Sequence[str]) -> list[str]:
    ports = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in rule.ports)
    source = f"ip saddr {{ {', '.join(sources)} }}"
    lines = [f'{source} tcp dport {{ {ports} }} accept comment "{rule.name}"']
    if rule.icmp:
        lines.append(f'{source} meta l4proto icmp accept comment "{rule.name}"')
    return lines
