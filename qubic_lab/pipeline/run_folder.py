"""A pipeline's private folder on one host: the names of its files, and the report of a failure."""

import os
from contextlib import suppress
from pathlib import Path

SOCKET = "engine.sock"
"""Rank 0's gRPC service."""
STORE = "store"
"""The file for the ranks' rendezvous."""
RENDEZVOUS = "rendezvous"
"""The file for torchrun's own rendezvous."""
FAILURE = "failure.txt"
"""Written by the first process that detects a lost or failed rank; names the rank and the reason."""
LOG = "ranks.log"
"""Output of launcher, torchrun and ranks."""


def tell_failure(run_dir: Path, what: str) -> None:
    """Write for the client why its pipeline ended, atomically; the first report, which is the cause, stays."""
    temporary = run_dir / f"{FAILURE}.{os.getpid()}"
    temporary.write_text(what)
    with suppress(FileExistsError):  # unlike a rename, a link replaces no file
        (run_dir / FAILURE).hardlink_to(temporary)
    temporary.unlink()
