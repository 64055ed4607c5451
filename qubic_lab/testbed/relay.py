"""A relay that delays what hosts send: each host's `eth0` and its port at the bridge are two TAP devices of it.

netem would do the same in the kernel, but not every kernel has it. Frames carry the header of virtio, so that segments
of 64 KB pass as one and checksums are left to the kernel.

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


def relay(pairs: list[tuple[int, int]], delay_s: float) -> None:
    """Pass on frames for ever: from the first device of a pair to the second after a delay, and back at once."""
    to = dict(pairs) | {second: first for first, second in pairs}
    delayed = {first for first, _ in pairs}
    waiting: deque[tuple[float, int, bytes]] = deque()  # one delay for all, so it is in order
    poller = select.epoll()
    for device in to:
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
                    if device in delayed:
                        waiting.append((time.monotonic() + delay_s, to[device], frame))
                    else:
                        _write(to[device], frame)
        now_s = time.monotonic()
        while waiting and waiting[0][0] <= now_s:
            _, device, frame = waiting.popleft()
            _write(device, frame)


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
    relay(pairs, float(delay_ms) / 1e3)


if __name__ == "__main__":
    main()
