"""The process between a client and its ranks: runs torchrun, reports which rank failed, and cleans up."""

import argparse
import gc
import os
import select
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from qubic_lab.lifeline import LAUNCHER_PID, end_when_stdin_closes
from qubic_lab.pipeline.local import RENDEZVOUS, tell_failure

STOPPED_LOOKS = 3
"""A rank that is stopped (SIGSTOP) for this many checks, a second apart, is lost; its peers would wait forever."""

KILLED_S = 10.0
"""How long killed ranks may take to be gone: while they live they may write into the run's folder."""
CLEARINGS = 10
"""How often the folder is removed, because torchrun may write into it meanwhile."""


def main() -> None:
    """Start the ranks of one host and wait for them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    args = parser.parse_args()
    end_when_stdin_closes(before=lambda: _clear(args.run_dir))
    # Slow imports, after the watch: an end may be asked for meanwhile. Collections of garbage take a fifth of them.
    gc.disable()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    gc.freeze()
    gc.enable()
    os.environ[LAUNCHER_PID] = str(os.getpid())
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # that store would listen on all interfaces
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    threading.Thread(target=_watch_for_stopped_ranks, args=(args.run_dir,), daemon=True).start()
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
        code = failure.exitcode
        how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
        tell_failure(args.run_dir, f"rank {rank} (process {failure.pid}) {how}")
        raise
    finally:
        if _client_is_gone():  # the ranks ended with it; the watch removes the folder and ends this process
            threading.Event().wait()


def _client_is_gone() -> bool:
    """Return whether every writing end of the pipe at stdin is closed."""
    poll = select.poll()
    poll.register(0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _clear(run_dir: Path) -> None:
    """End the ranks, which may still be importing and not watch anything yet, and remove the folder."""
    ranks = psutil.Process().children(recursive=True)
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.kill()
    psutil.wait_procs(ranks, timeout=KILLED_S)
    for _ in range(CLEARINGS):
        shutil.rmtree(run_dir, ignore_errors=True)
        if not run_dir.exists():
            break


def _watch_for_stopped_ranks(run_dir: Path) -> None:
    looks: dict[int, int] = {}
    while True:
        time.sleep(1.0)
        for rank in psutil.Process().children():
            try:
                stopped = rank.status() == psutil.STATUS_STOPPED
                looks[rank.pid] = looks.get(rank.pid, 0) + 1 if stopped else 0
                if looks[rank.pid] >= STOPPED_LOOKS:
                    how = f"was stopped ({signal.SIGSTOP.name}) and did not go on"
                    tell_failure(run_dir, f"rank {rank.environ()['RANK']} (process {rank.pid}) {how}")
                    os._exit(1)  # the parent-death signal ends all ranks, stopped ones too
            except psutil.NoSuchProcess:
                continue


if __name__ == "__main__":
    main()
