"""A pipeline's private folder on one host: its names, and word of what ended it; it goes when the pipeline ends."""

import os
from contextlib import suppress
from pathlib import Path

SOCKET = "engine.sock"
"""Rank 0's gRPC service."""
STORE = "store"
"""The file in which the ranks meet."""
RENDEZVOUS = "rendezvous"
"""torchrun's own meeting file."""
FAILURE = "failure.txt"
"""Written by whoever finds that a rank was lost or failed; says which one and how."""
LOG = "ranks.log"
"""What launcher, torchrun and ranks print."""


def tell_failure(run_dir: Path, what: str) -> None:
    """Leave word for the client of what ended its pipeline, whole or not at all; the first word, the cause, stays."""
    temporary = run_dir / f"{FAILURE}.{os.getpid()}"
    temporary.write_text(what)
    with suppress(FileExistsError):  # unlike a rename, a link replaces nothing
        (run_dir / FAILURE).hardlink_to(temporary)
    temporary.unlink()
