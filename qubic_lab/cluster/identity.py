"""Names of nodes on this host, and the identities by which a restarted node gets its name back at once.

An identity is in a file of the cache folder, which its node holds locked. The lock ends with the process, however that
ends. Whoever finds it locked is another node, and gets a new identity.
"""

import fcntl
import hashlib
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count

from qubic_lab.cluster.redis_server import open_lock
from qubic_lab.settings import cache_folder


def new_identity() -> str:
    """Return a random identity."""
    return secrets.token_hex(16)


@contextmanager
def claimed_name(name: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield a node's name and identity, which are this process's own while the block runs.

    Without a name it is one that no other node on this host has: HOST, 2@HOST and so on.

    Raises:
        InputError: the cache folder cannot be made or made private.
    """
    host = socket.gethostname()
    for each in [name] if name else (host if n == 1 else f"{n}@{host}" for n in count(1)):
        with _claimed(each) as identity:
            if identity is not None or name:
                yield each, identity or new_identity()
                return


@contextmanager
def _claimed(name: str) -> Iterator[str | None]:
    """Yield the kept identity of a name, which is locked meanwhile, or None if another process has it."""
    # Any name may be long, or no name for a file.
    file = open_lock(cache_folder("nodes") / hashlib.sha256(name.encode()).hexdigest()[:32])
    try:
        identity = None
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            identity = os.read(file, 100).decode()
            if not identity:
                os.write(file, (identity := new_identity()).encode())
        yield identity
    finally:
        os.close(file)
