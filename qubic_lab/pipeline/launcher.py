"""The process between a client and its ranks: imports once, forks the ranks, reports which one failed, and cleans up.

What a rank imports takes two seconds of a core. A fork is safe while this process has started no threads that may hold
a lock, has run no operation of torch, and has not asked for a GPU. Its only thread waits for the client's end.
"""

import argparse
import gc
import os
import select
import shutil
import signal
import sys
import threading
import warnings
from contextlib import suppress
from ctypes import memmove
from pathlib import Path

import psutil

from qubic_lab.lifeline import end_when_parent_dies, end_when_stdin_closes
from qubic_lab.pipeline.local import tell_failure

STOPPED_S = 3.0
"""A rank that stays stopped (SIGSTOP) for this time counts as lost, because its peers would wait forever."""
KILLED_S = 10.0
"""How long killed ranks may take to be gone: while they live they may write into the run's folder."""
CLEARINGS = 10
"""How often the folder is removed, because a compiler that a rank started may write into it meanwhile."""
_ARG_START = 48 - 3
"""Where the command line lies in memory: the place in /proc/PID/stat after the name (proc(5))."""


def main() -> None:
    """Start the ranks of one host and wait for them.

    What the parser does not know goes to the ranks: then they serve without a client, until Ctrl-C, and stdin is free.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    args, options = parser.parse_known_args()
    if not options:
        end_when_stdin_closes(before=lambda: _clear(args.run_dir))
    # Slow imports, after the watch: an end may be asked for meanwhile. Collections of garbage take a fifth of them.
    gc.disable()
    from qubic_lab.pipeline import rank

    gc.freeze()
    gc.enable()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    launcher, ranks = os.getpid(), dict[int, int]()
    for number in range(args.ranks):
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            pid = os.fork()  # Python 3.12 warns of any thread
        if not pid:
            if options:
                os.setsid()  # Ctrl-C reaches the launcher alone
            else:
                end_when_stdin_closes()
            end_when_parent_dies(launcher)
            _show_as_rank(number)
            place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": args.ranks, "LOCAL_WORLD_SIZE": args.ranks}
            os.environ |= {name: str(value) for name, value in place.items()}
            return rank.run([f"--run-dir={args.run_dir}", *options])
        ranks[pid] = number
    try:
        _wait(ranks, args.run_dir)
    except KeyboardInterrupt:
        _clear(args.run_dir)
        sys.exit(128 + signal.SIGINT)
    finally:
        if not options and _client_is_gone():  # its ranks end, too; the watch removes the folder and ends this process
            threading.Event().wait()


def _show_as_rank(number: int) -> None:
    """Let this process's command line (`ps`, the doctor) name a rank instead of the launcher; Linux only."""
    with suppress(OSError):
        line = Path("/proc/self/cmdline").read_bytes()
        shown = line.replace(b".launcher\0", b".rank\0").partition(b"--ranks=")[0] + b"--rank=%d" % number
        if place := int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[_ARG_START]):
            memmove(place, shown.ljust(len(line), b"\0"), len(line))


def _wait(ranks: dict[int, int], run_dir: Path) -> None:
    """Wait until all ranks have ended, numbers by process; once one fails or stays stopped, end them all and exit."""
    lost: list[str] = []
    watches: dict[int, threading.Timer] = {}

    def lose(rank: str, how: str) -> None:
        lost.append(f"{rank} {how}")
        tell_failure(run_dir, lost[0])
        for each in tuple(ranks):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)

    while ranks:
        pid, status = os.waitpid(-1, os.WUNTRACED | os.WCONTINUED)
        rank = f"rank {ranks[pid]} (process {pid})"
        if pid in watches:
            watches.pop(pid).cancel()
        if os.WIFSTOPPED(status):
            how = f"was stopped ({signal.SIGSTOP.name}) and did not go on"
            watches[pid] = threading.Timer(STOPPED_S, lose, (rank, how))
            watches[pid].start()
        elif not os.WIFCONTINUED(status):
            del ranks[pid]
            code = os.waitstatus_to_exitcode(status)
            if code and not lost:
                lose(rank, f"was ended by signal {-code}" if code < 0 else f"ended with status {code}")
    if lost:
        sys.exit(lost[0])


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


if __name__ == "__main__":
    main()
