"""The process between a client and its ranks: runs torchrun, tells who failed, cleans up when the client is gone."""

import argparse
import json
import os
import shutil
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from qubic_lab.pipeline.lifeline import LAUNCHER_PID, end_when_stdin_closes
from qubic_lab.pipeline.run_folder import FAILURE, RENDEZVOUS


def main() -> None:
    """Start the ranks of one host and wait for them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    args = parser.parse_args()
    # The ranks see the same pipe; the parent-death signal takes those that do not look.
    end_when_stdin_closes(before=lambda: shutil.rmtree(args.run_dir, ignore_errors=True))
    os.environ[LAUNCHER_PID] = str(os.getpid())
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # that store would listen on every interface
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        torchrun(
            [
                "--nnodes=1",
                f"--nproc-per-node={args.ranks}",
                "--max-restarts=0",
                "--rdzv-backend=c10d",
                "--rdzv-conf=store_type=file",
                f"--rdzv-endpoint={args.run_dir / RENDEZVOUS}",
                "-m",
                "qubic_lab.pipeline.rank",
                f"--run-dir={args.run_dir}",
            ]
        )
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        reason = {"rank": rank, "exit_code": failure.exitcode, "pid": failure.pid}
        temporary = args.run_dir / f"{FAILURE}.tmp"
        temporary.write_text(json.dumps(reason))
        temporary.rename(args.run_dir / FAILURE)
        raise


if __name__ == "__main__":
    main()
