"""Clocks, chance, threads and gRPC of the cluster's modules, replaced by a simulated world's while a block runs.

`STANDS_FOR` names all that is replaced, wherever a module of `MODULES` holds it, under whatever name.
"""

import random
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio

from qubic_lab.cluster import vitals
from qubic_lab.simulation.loop import Process, Scheduler, Signal, Thread, Threads
from qubic_lab.simulation.network import Network
from qubic_lab.simulation.transport import Channel, Server
from qubic_lab.wire import channel

MODULES = ("qubic_lab.cluster.", "qubic_lab.wire.", "qubic_lab.api.responses", "qubic_lab.tracing")
"""Prefixes of the modules whose names are replaced."""


def _process(scheduler: Scheduler) -> Process:
    assert scheduler.current is not None, "only a simulated process may ask for this"
    return scheduler.current


def _time(scheduler: Scheduler) -> SimpleNamespace:
    def now_s() -> float:
        return scheduler.now

    return SimpleNamespace(
        monotonic=now_s,
        perf_counter=now_s,
        perf_counter_ns=lambda: round(scheduler.now * 1e9),
        time=lambda: _process(scheduler).wall_s(),
        time_ns=lambda: round(_process(scheduler).wall_s() * 1e9),
        sleep=scheduler.sleep,
    )


def _uuid4(draw: random.Random) -> uuid.UUID:
    return uuid.UUID(int=draw.getrandbits(128), version=4)


class _Grpc:
    """The module `grpc`, with channels and servers of a network."""

    def __init__(self, scheduler: Scheduler, network: Network) -> None:
        def insecure_channel(address: str, options: Any = None, interceptors: Any = ()) -> Channel:
            assert not interceptors, "node tokens are not simulated"
            return Channel(network, _process(scheduler), address)

        def server(options: Any = None, interceptors: Any = ()) -> Server:
            return Server(network, _process(scheduler), interceptors)

        self.aio = _Namespace(grpc.aio, insecure_channel=insecure_channel, server=server)

    def __getattr__(self, name: str) -> Any:
        return getattr(grpc, name)


class _Namespace:
    def __init__(self, module: Any, **replaced: Any) -> None:
        self.__dict__.update(vars(module) | replaced)


def stands_for(
    scheduler: Scheduler, network: Network, draw: random.Random, share: random.Random
) -> list[tuple[Any, Any]]:
    """Return pairs of what is replaced and what stands for it; `draw` makes names, `share` the load of machines."""
    return [
        (time, _time(scheduler)),
        (uuid, SimpleNamespace(uuid4=partial(_uuid4, draw))),
        (secrets, SimpleNamespace(token_hex=lambda count: f"{draw.getrandbits(8 * count):0{2 * count}x}")),
        (
            threading,
            SimpleNamespace(
                Event=lambda: Signal(scheduler, _process(scheduler)),
                Thread=partial(Thread, scheduler),
            ),
        ),
        (ThreadPoolExecutor, lambda most, name="": Threads(scheduler, most)),
        (grpc, _Grpc(scheduler, network)),
        (vitals.read_shares, lambda: (share.random(), 0.5)),
        (vitals.resident_bytes, lambda: 2**30),
        (vitals.disk_bytes, lambda folder: (2**36, 2**40)),
        (channel.certificate_ends_s, lambda: round(_process(scheduler).certificate_ends_s)),
    ]


@contextmanager
def replaced(pairs: list[tuple[Any, Any]]) -> Iterator[None]:
    """Let the modules hold what stands for their clocks, chance and so on, while the block runs."""
    by_id = {id(real): simulated for real, simulated in pairs}
    held = [
        (module, name, value)
        for known, module in list(sys.modules.items())
        if known.startswith(MODULES)
        for name, value in list(vars(module).items())
        if id(value) in by_id
    ]
    for module, name, value in held:
        setattr(module, name, by_id[id(value)])
    try:
        yield
    finally:
        for module, name, value in held:
            setattr(module, name, value)
