"""The program that torchrun starts once for each rank: `torchrun … -m qubic_lab.pipeline.rank --run-dir DIR`."""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist

from qubic_lab.pipeline.engine import Engine
from qubic_lab.pipeline.lifeline import tie_to_launcher
from qubic_lab.pipeline.member import Member, follow
from qubic_lab.pipeline.run_folder import SOCKET, STORE
from qubic_lab.pipeline.server import start_server
from qubic_lab.pipeline.transport import make_transport


def main() -> None:
    """Join the group, then serve (rank 0) or follow (the others) until the launcher ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    run_dir: Path = parser.parse_args().run_dir
    tie_to_launcher()
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if ranks > 1:
        _join_group(run_dir, rank, ranks)
    member = Member(rank, ranks, make_transport(rank, ranks))
    if rank > 0:
        follow(member)
    engine = Engine(member)
    server = start_server(engine, f"unix:{run_dir / SOCKET}")
    try:
        engine.run()
    finally:
        server.stop(grace=None)


def _join_group(run_dir: Path, rank: int, ranks: int) -> None:
    """Meet through a file: torch's TCP store would listen on every interface."""
    backend = "cpu:gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend += ",cuda:nccl"
    dist.init_process_group(backend, init_method=f"file://{run_dir / STORE}", rank=rank, world_size=ranks)


if __name__ == "__main__":
    main()
