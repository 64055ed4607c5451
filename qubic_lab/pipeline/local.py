"""Ranks on this machine: their launcher, their private folder with its files, and the report of a lost rank."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path

from qubic_lab.errors import InputError, RankError
from qubic_lab.settings import cache_folder

SOCKET = "engine.sock"
"""Rank 0's gRPC service."""
STORE = "store"
"""The file for the ranks' rendezvous."""
FAILURE = "failure.txt"
"""Written by the first process that detects a lost or failed rank; names the rank and the reason."""
LOG = "ranks.log"
"""Output of launcher and ranks."""
END_TIMEOUT_S = 10.0
MOST_SOCKET_PATH_BYTES = 107
"""The system's limit without the final zero (unix(7))."""


class LocalRanks:
    """The launcher, its ranks and their folder; they end with this process, however it ends."""

    def __init__(self, launcher: "subprocess.Popen[bytes]", run_dir: Path) -> None:
        self._launcher = launcher
        self._run_dir = run_dir
        self.log = run_dir / LOG
        self.socket = run_dir / SOCKET
        self.end = weakref.finalize(self, _end, launcher, run_dir)

    @classmethod
    def start(cls, ranks: int, threads: int) -> "LocalRanks":
        """Start the launcher in its own session, so that Ctrl-C reaches only this process."""
        run_dir = _make_run_dir()
        command = [sys.executable, "-um", "qubic_lab.pipeline.launcher", f"--run-dir={run_dir}", f"--ranks={ranks}"]
        # What a rank leaves in TMPDIR is removed with the run's folder.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TMPDIR": str(run_dir)}
        with (run_dir / LOG).open("wb") as output:
            launcher = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return cls(launcher, run_dir)

    @property
    def ended(self) -> bool:
        """Whether the launcher has ended."""
        return self._launcher.poll() is not None

    def loss(self) -> RankError:
        """Return the error that names the lost rank; the log is moved to the cache and named."""
        try:
            self._launcher.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return self._lost("the pipeline does not answer")
        try:
            return self._lost((self._run_dir / FAILURE).read_text())
        except OSError:
            return self._lost("the pipeline's launcher ended")

    def _lost(self, what: str) -> RankError:
        try:
            kept = cache_folder("logs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{self._run_dir.name}.log"
            shutil.copyfile(self.log, kept)
        except (InputError, OSError):  # the loss must be reported even without its log
            return RankError(what)
        return RankError(f"{what}; its output is in {kept}")


def tell_failure(run_dir: Path, what: str) -> None:
    """Write for the client why its pipeline ended, atomically; the first report, which is the cause, stays."""
    temporary = run_dir / f"{FAILURE}.{os.getpid()}"
    temporary.write_text(what)
    with suppress(FileExistsError):  # unlike a rename, a link replaces no file
        (run_dir / FAILURE).hardlink_to(temporary)
    temporary.unlink()


def _make_run_dir() -> Path:
    """Make a temporary folder, in /tmp if the usual path is too long for a socket."""
    run_dir = Path(tempfile.mkdtemp(prefix="qubic-lab-"))
    if len(os.fsencode(run_dir / SOCKET)) <= MOST_SOCKET_PATH_BYTES:
        return run_dir
    run_dir.rmdir()
    return Path(tempfile.mkdtemp(prefix="qubic-lab-", dir="/tmp"))


def _end(launcher: "subprocess.Popen[bytes]", run_dir: Path) -> None:
    """Close the pipe that all processes watch; the launcher removes the folder, or we do if it was killed."""
    assert launcher.stdin is not None
    launcher.stdin.close()
    try:
        launcher.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.wait()
    shutil.rmtree(run_dir, ignore_errors=True)
