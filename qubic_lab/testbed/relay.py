"""A relay that delays what hosts send: each host's `eth0` and its port at the bridge are two TAP devices of it.

netem would do the same in the kernel, but not every kernel has it. Frames carry the header of virtio, so that segments
of 64 KB pass as one and checksums are left to the kernel. Each host has a process of its own.

`python -m qubic_lab.testbed.relay DELAY_MS BRIDGE HOST…` prints a line when the devices are there. Names are those of
network namespaces.
"""

import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

MOST_BYTES = 2**17
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_TAP = 0x0002 | 0x1000 | 0x4000  # IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
_OFFLOADS = 0x01 | 0x02 | 0x04  # TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6
_NEW_NETWORK = 0x40000000
_BATCH = 64
"""Frames that are read from one device before the others get their turn."""


def enter(namespace: str) -> None:
    """Move this process into a network namespace; an OSError if that is not possible."""
    with Path(f"/run/netns/{namespace}").open() as file:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(file.fileno(), _NEW_NETWORK):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def open_tap(name: str) -> int:
    """Make a TAP device in this process's namespace; it ends with its file."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP))
    fcntl.ioctl(device, _TUNSETOFFLOAD, _OFFLOADS)
    return device


def relay(inside: int, port: int, delay_s: float) -> None:
    """Pass on frames for ever: what a host sends to its port after a delay, and what comes there at once."""
    waiting: deque[tuple[float, bytes]] = deque()  # one delay for all, so it is in order
    poller = select.epoll()
    for device in (inside, port):
        poller.register(device, select.EPOLLIN)
    while True:
        pause_s = waiting[0][0] - time.monotonic() if waiting else None
        # epoll rounds up to whole milliseconds, so it is only asked what is there; select waits.
        if pause_s is None or pause_s > 0:
            select.select([poller], [], [], pause_s)
        for device, _ in poller.poll(0):
            with suppress(BlockingIOError):
                for _ in range(_BATCH):
                    frame = os.read(device, MOST_BYTES)
                    if device == inside:
                        waiting.append((time.monotonic() + delay_s, frame))
                    else:
                        _write(inside, frame)
        now_s = time.monotonic()
        while waiting and waiting[0][0] <= now_s:
            _write(port, waiting.popleft()[1])


def _write(device: int, frame: bytes) -> None:
    with suppress(OSError):  # the device is down or its queue is full: the frame is lost, as on a real link
        os.write(device, frame)


def main() -> None:
    """Make the devices and pass on frames until this process is killed."""
    delay_ms, bridge, *hosts = sys.argv[1:]
    pairs = []
    for host in hosts:
        enter(host)
        inside = open_tap("eth0")
        enter(bridge)
        pairs.append((inside, open_tap(host)))
    print("ready", flush=True)
    first, *others = pairs
    own = next((pair for pair in others if os.fork() == 0), first)  # all end with the bridge's namespace
    relay(*own, float(delay_ms) / 1e3)


if __name__ == "__main__":
    main()
