"""Names of nodes on this host, and the identities by which a node that was killed gets its name back at once.

An identity is in a file of the cache folder, which its node holds locked. The lock ends with the process, however that
ends. Whoever finds it locked is another node, and gets a new identity.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from qubic_lab.cluster.redis_server import open_lock
from qubic_lab.settings import cache_folder


def new_identity() -> str:
    """Return a random identity."""
    return secrets.token_hex(16)


@contextmanager
def claimed_name(coordinators: Sequence[str], name: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield a node's name and identity at these coordinators, which are this process's own while the block runs.

    Without a name it is one that no other node of this host has there: HOST, 2@HOST and so on.

    Raises:
        InputError: the cache folder cannot be made or made private.
    """
    host = socket.gethostname()
    for each in [name] if name else (host if number == 1 else f"{number}@{host}" for number in count(1)):
        # A name may be long, or none for a file.
        digest = hashlib.sha256("\n".join((each, *coordinators)).encode()).hexdigest()
        with _claimed(cache_folder("nodes") / digest[:32]) as identity:
            if identity is not None or name:
                yield each, identity or new_identity()
                return


@contextmanager
def _claimed(folder: Path) -> Iterator[str | None]:
    """Yield the identity that a folder keeps, or None while another process has it."""
    file = open_lock(folder)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        if not (identity := os.read(file, 100).decode()):
            identity = new_identity()
            os.write(file, identity.encode())
        yield identity
        shutil.rmtree(folder, ignore_errors=True)  # the node has left, and its name is free
    finally:
        os.close(file)
