"""Which TCP ports of other machines answer: a scan by plain connections, and its comparison with the plan.

`python -m qubic_lab.testbed.scan` reads {address: [[port, …], seconds]} from stdin and prints the states
of those that answer.
"""

import errno
import json
import random
import select
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qubic_lab.errors import QubicLabError
from qubic_lab.launch_plan.network import SERVICES, Host, Network
from qubic_lab.testbed.bed import Bed, listening, module_on

State = Literal["open", "closed"]
"""Something listens; or nothing does, but the firewall lets the question through. What does not answer is left out."""
BATCH, BURST, PAUSE_S = 5_000, 250, 0.005
"""Ports that wait for an answer together, and those that are asked at once: a queue of the network holds no more."""
WAIT_S = 0.3
SAMPLE, MOST_PORT = 1_000, 65_535


@dataclass(frozen=True)
class Difference:
    """A port whose state is not that of the plan."""

    source: str
    target: str
    port: int
    found: str
    planned: str


def scan(address: str, ports: Sequence[int], wait_s: float = WAIT_S) -> dict[int, State]:
    """Return the state of the ports that answer within a time."""
    found = _scan(address, ports[:1], wait_s)  # while a neighbour's address is asked for, few packets can wait
    for start in range(0, len(ports), BATCH):
        found |= _scan(address, ports[start : start + BATCH], wait_s)
    return found


def _scan(address: str, ports: Sequence[int], wait_s: float) -> dict[int, State]:
    found: dict[int, State] = {}
    waiting: dict[int, tuple[socket.socket, int]] = {}
    poller = select.epoll()
    for number, port in enumerate(ports, 1):
        if number % BURST == 0:
            time.sleep(PAUSE_S)
        tried = socket.socket()
        tried.setblocking(False)
        tried.connect_ex((address, port))
        waiting[tried.fileno()] = tried, port
        poller.register(tried, select.EPOLLOUT)
    deadline_s = time.monotonic() + wait_s
    while waiting and (left_s := deadline_s - time.monotonic()) > 0:
        for number, _ in poller.poll(left_s):
            tried, port = waiting.pop(number)
            poller.unregister(number)
            error = tried.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error in (0, errno.ECONNREFUSED):
                found[port] = "closed" if error else "open"
            tried.close()
    for tried, _ in waiting.values():
        tried.close()
    poller.close()
    return found


def differences(
    source: str, target: str, ports: Iterable[int], found: dict[int, State], allowed: set[int], served: set[int]
) -> list[Difference]:
    """Return where a scan differs from the plan.

    Args:
        source: the machine that scanned.
        target: the one that was scanned.
        ports: what was asked.
        found: what answered.
        allowed: ports that the firewall lets this source reach.
        served: ports at which something may listen there.
    """
    wrong = []
    for port in ports:
        state, planned = found.get(port, "no answer"), "no answer"
        if port in allowed:
            planned = "open" if port in served else "closed"
        if state != planned and not (state == "closed" and planned == "open"):
            wrong.append(Difference(source, target, port, state, planned))
    return wrong


@dataclass(frozen=True)
class ScanResult:
    """What a scan of a bed found.

    Attributes:
        asked: number of ports that were asked of all hosts from all others.
        open_ports: of each host, the open ports by the host that asked.
        wrong: where it differs from the plan.
    """

    asked: int
    open_ports: dict[str, dict[str, list[int]]]
    wrong: list[Difference]


def scan_bed(bed: Bed, all_ports: bool = False, seed: int = 0) -> ScanResult:
    """Scan every host of the cluster from every other and from outside.

    Args:
        bed: a bed that is up.
        all_ports: all 65,535, in place of those that matter and a sample.
        seed: of the sample.

    Raises:
        QubicLabError: a host does not run.
    """
    hosts = bed.network.hosts
    planned = {port for each in SERVICES.values() for port in each.ports}
    heard = {port for host in hosts for port in listening(host.name)}
    others = random.Random(seed).sample(range(1, MOST_PORT + 1), SAMPLE)
    edges = {port + step for rule in bed.network.rules for pair in rule.ports for port in pair for step in (-1, 0, 1)}
    ports = list(range(1, MOST_PORT + 1)) if all_ports else sorted(planned | heard | edges | set(others))
    found_by = {source: module_on(bed, source, "qubic_lab.testbed.scan") for source in bed.addresses}
    open_ports: dict[str, dict[str, list[int]]] = {host.name: {} for host in hosts}
    wrong: list[Difference] = []
    asked = 0
    for source, process in found_by.items():
        targets = [host for host in hosts if host.name != source]
        wait_s = WAIT_S + bed.shape.delay_ms / 1e3
        output, _ = process.communicate(json.dumps({host.address: (ports, wait_s) for host in targets}))
        if process.returncode:
            raise QubicLabError(f"the scan on {source} failed: its output is above")
        for host in targets:
            found = {int(port): state for port, state in json.loads(output)[host.address].items()}
            asked += len(ports)
            open_ports[host.name][source] = sorted(port for port, state in found.items() if state == "open")
            caller = bed.addresses[source]
            allowed = {port for port in ports if bed.network.may_reach(caller, host.name, port)}
            served = {port for port in ports if _is_served(bed.network, host, port)}
            wrong += differences(source, host.name, ports, found, allowed, served)
    return ScanResult(asked, open_ports, wrong)


def _is_served(network: Network, host: Host, port: int) -> bool:
    services = (each for each in network.services(host) if network.reach(each) != "host")
    return any(each.ports[0] <= port <= each.ports[1] for each in services)


def main() -> None:
    """Scan what stdin names."""
    asked = json.load(sys.stdin)
    json.dump({address: scan(address, ports, wait_s) for address, (ports, wait_s) in asked.items()}, sys.stdout)


if __name__ == "__main__":
    main()
