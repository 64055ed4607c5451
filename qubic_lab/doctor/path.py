"""Whether packets as large as a host's interface sends also arrive at other hosts: where not, connections hang."""

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

import psutil

from qubic_lab.doctor.finding import Finding, as_root, skip
from qubic_lab.doctor.subject import Subject

SMALL, USUAL = 576, (1_500, 1_460, 1_400, 1_280)
"""Bytes of a packet that passes everywhere, and those that are tried where the largest one does not arrive."""
WAIT_S = 0.3
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE, _IP_MTU = 10, 3, 14  # linux/in.h; Python does not name them
_ICMP, _HEADERS, _ECHO = 8, 20 + 8, 8


def paths(subject: Subject) -> Iterator[Finding]:
    """The largest packet to each other host of the plan that answers a ping."""
    for host in subject.hosts:
        if host == subject.host:
            continue
        looked_at = f"packets to {host.name}"
        try:
            sent, arrives = largest_packet(host.address)
        except OSError as error:
            yield skip(looked_at, f"no ping can be sent ({error.strerror}): net.ipv4.ping_group_range allows it")
            return
        if not arrives:
            yield skip(looked_at, "it answers no ping")
        elif arrives == sent:
            yield Finding(looked_at, f"{sent} bytes arrive, as many as are sent")
        else:
            why = f"those of {sent} bytes do not arrive: connections hang when they send much"
            remedy = as_root(f"ip route replace {host.address} dev {_interface(host.address)} mtu {arrives}")
            yield Finding(looked_at, f"up to {arrives} bytes arrive", "fail", why, remedy)


def largest_packet(address: str) -> tuple[int, int]:
    """Return the bytes of the largest packet that is sent to an address, and of the largest that is answered; 0: none.

    Raises:
        OSError: this user may send no pings.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as asking:
        asking.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        asking.settimeout(WAIT_S)
        asking.connect((address, 0))
        sent: int = asking.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        if not _answered(asking, SMALL):
            return sent, 0
        sizes = (sent, *(size for size in USUAL if size < sent))
        return sent, next((size for size in sizes if _answered(asking, size)), SMALL)


def _answered(asking: socket.socket, size: int) -> bool:
    """Return whether a ping of this size is answered; the kernel fills in its checksum and id."""
    message = struct.pack("!BBHHH", _ECHO, 0, 0, 0, size) + bytes(size - _HEADERS)
    with suppress(OSError):  # too large for the interface, or no answer in time
        asking.send(message)
        while len(answer := asking.recv(2**16)) >= _ICMP:
            if struct.unpack_from("!H", answer, 6)[0] == size:  # else of an earlier one
                return True
    return False


def _interface(address: str) -> str:
    """Return the name of the interface towards an address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as towards:
        towards.connect((address, 9))
        own = towards.getsockname()[0]
    named = (name for name, held in psutil.net_if_addrs().items() if own in [each.address for each in held])
    return next(named, "eth0")
