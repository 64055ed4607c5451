"""Measures latency and bandwidth between two ranks, in the form that `qubic-lab plan --link` takes.

`qubic-lab bench link` measures two processes of this machine. To measure two hosts, run on both of them
`torchrun --nnodes=2 --nproc-per-node=1 --rdzv-backend=c10d --rdzv-endpoint=HOST:PORT -m qubic_lab.bench.link`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from qubic_lab.bench.result import MeasuredResult, Table
from qubic_lab.errors import QubicLabError, RankError, check_at_least
from qubic_lab.lifeline import end_when_stdin_closes

if TYPE_CHECKING:
    import torch

SMALL_BYTES = 3_072
"""Size of the hidden states of one token of DeepSeek-R1-Distill-Qwen-1.5B in 16 bit."""
LARGE_BYTES = 8 * 2**20
WARM_UP = 10
GROUP_TIMEOUT_S = 60
LOOPBACK = "lo"
SHORTEST_S = 1e-6
"""A large message in less time would need 67,000 Gbps, which no link has: then load and clock hide the link."""


@dataclass(frozen=True)
class LinkResult(MeasuredResult):
    """Latency of a small message (half a round trip) and bandwidth of a large one; low and high are 5 % and 95 %.

    Bandwidth is in 10⁹ bits/s. It is computed from the time of a large message minus that of the fastest small one:
    on a busy machine a small message may wait longer for its turn than a large one takes.
    """

    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    gbps: float
    gbps_low: float
    gbps_high: float
    small_bytes: int
    large_bytes: int
    repeat: int
    backend: str

    def __str__(self) -> str:
        """Return the value for `qubic-lab plan --link`."""
        return f"{self.gbps:.2f}Gbps:{self.latency_ms:.4f}ms"

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"link": str(self)}

    def report(self) -> Iterator[Table | str]:
        yield f"{self}, {self.backend} between two processes"
        yield (
            f"{self.small_bytes:,} bytes: {self.latency_low_ms:.3f} to {self.latency_high_ms:.3f} ms one way; "
            f"{self.large_bytes / 2**20:.0f} MiB: {self.gbps_low:.1f} to {self.gbps_high:.1f} Gbps "
            f"(90 % of {self.repeat} messages each)"
        )


def bench_link(repeat: int = 200) -> LinkResult:
    """Send messages back and forth between two processes of this machine (gloo over loopback, as ranks on CPUs do).

    Raises:
        InputError: too few repeats.
        RankError: the other process was lost.
        QubicLabError: the bandwidth is not measurable.
    """
    import torch.distributed as dist

    check_at_least("repeat", repeat, 20)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        command = [sys.executable, "-m", __name__, "--store", str(store), "--repeat", str(repeat)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as peer:
            try:
                _join(0, f"file://{store}")
                return _ping(repeat)
            except RuntimeError as error:  # torch.distributed raises it when the peer is gone
                peer.kill()
                assert peer.stderr is not None
                last = peer.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise RankError(f"the other process was lost: {last or error}") from error
            except KeyboardInterrupt:
                peer.kill()
                raise
            finally:
                if dist.is_initialized():
                    dist.destroy_process_group()


def link_of(small_s: Sequence[float], large_s: Sequence[float], backend: str) -> LinkResult:
    """Compute the link from half round trips of small and of large messages, in seconds.

    Raises:
        QubicLabError: large messages take no longer than small ones, so the bandwidth is not measurable.
    """
    small, large = sorted(small_s), sorted(large_s)
    cut = len(small) // 20
    way_s = median(small)
    if large[cut] - small[0] < SHORTEST_S:
        raise QubicLabError(
            f"bandwidth is not measurable: {LARGE_BYTES / 2**20:.0f} MiB took {1e3 * large[cut]:.4f} ms, "
            f"{SMALL_BYTES:,} bytes {1e3 * small[0]:.4f} ms; measure again on an idle machine, or with more --repeat"
        )
    # Those before the cut are not shown; they may be too fast to have a bandwidth.
    gbps = [LARGE_BYTES * 8 / 1e9 / max(each - small[0], SHORTEST_S) for each in reversed(large)]
    return LinkResult(
        latency_ms=1e3 * way_s,
        latency_low_ms=1e3 * small[cut],
        latency_high_ms=1e3 * small[-1 - cut],
        gbps=median(gbps),
        gbps_low=gbps[cut],
        gbps_high=gbps[-1 - cut],
        small_bytes=SMALL_BYTES,
        large_bytes=LARGE_BYTES,
        repeat=len(small),
        backend=backend,
    )


def main() -> None:
    """Run one of two ranks: the second one of `bench_link`, or either one under torchrun."""
    parser = argparse.ArgumentParser(prog="torchrun … -m qubic_lab.bench.link", description=__doc__)
    parser.add_argument("--store", help="rendezvous file for two processes of one machine")
    parser.add_argument("--repeat", type=int, default=200)
    options = parser.parse_args()
    if options.store:
        end_when_stdin_closes()
        rank, place = 1, f"file://{options.store}"
    else:
        rank, place = int(os.environ["RANK"]), "env://"
    _join(rank, place)
    if rank == 1:
        _pong(options.repeat)
        return
    result = _ping(options.repeat)
    print(
        f"{result}  ({result.latency_low_ms:.3g} to {result.latency_high_ms:.3g} ms, {result.gbps_low:.3g} to "
        f"{result.gbps_high:.3g} Gbps, {result.repeat} messages of each size, {result.backend}, commit {result.commit})"
    )


def _join(rank: int, place: str) -> None:
    import torch
    import torch.distributed as dist

    backend = "nccl" if torch.cuda.is_available() and place == "env://" else "gloo"
    timeout = timedelta(seconds=GROUP_TIMEOUT_S)
    dist.init_process_group(backend, init_method=place, rank=rank, world_size=2, timeout=timeout)


def _ping(repeat: int) -> LinkResult:
    import torch.distributed as dist

    half_s: dict[int, list[float]] = {SMALL_BYTES: [], LARGE_BYTES: []}
    for size, found in half_s.items():
        block = _block(size)
        for number in range(WARM_UP + repeat):
            started = time.perf_counter()
            dist.send(block, dst=1)
            dist.recv(block, src=1)
            if block.is_cuda:
                block[0].item()  # NCCL returns before the message has arrived
            if number >= WARM_UP:
                found.append((time.perf_counter() - started) / 2)
    return link_of(half_s[SMALL_BYTES], half_s[LARGE_BYTES], dist.get_backend())


def _pong(repeat: int) -> None:
    import torch.distributed as dist

    for size in (SMALL_BYTES, LARGE_BYTES):
        block = _block(size)
        for _ in range(WARM_UP + repeat):
            dist.recv(block, src=0)
            dist.send(block, dst=0)
    dist.destroy_process_group()


def _block(size: int) -> "torch.Tensor":
    import torch
    import torch.distributed as dist

    return torch.zeros(size, dtype=torch.uint8, device="cuda" if dist.get_backend() == "nccl" else "cpu")


if __name__ == "__main__":
    main()
