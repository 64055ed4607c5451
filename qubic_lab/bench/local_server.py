"""`qubic-lab serve` in a process of its own, for measurements by HTTP."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from qubic_lab.bench.local_cluster import child_environment
from qubic_lab.errors import RankError

SERVES = re.compile(r"(https?://[^\s;/]+)/v1")


class LocalServer(NamedTuple):
    """A running server: its address, without a path, and its process."""

    url: str
    pid: int


@contextmanager
def served(environment: Mapping[str, str] | None = None, **options: object) -> Iterator[LocalServer]:
    """Serve with these options of `qubic-lab serve`, without a key; `environment` is added to that of this process.

    Raises:
        RankError: it does not start; the message has its last line.
    """
    command = [sys.executable, "-m", "qubic_lab.lifeline", str(os.getpid()), "qubic_lab.cli.main", "serve"]
    command += [f"--{name}={value}" for name, value in {"listen": "127.0.0.1:0", **options}.items()]
    with subprocess.Popen(
        command,
        env={**child_environment(), **(environment or {})},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr is not None
        try:
            line = ""
            for line in server.stderr:
                if found := SERVES.search(line):
                    break
            else:
                raise RankError(f"qubic-lab serve does not start: {line.strip() or 'it says nothing'}")
            threading.Thread(target=server.stderr.read, daemon=True).start()  # so that it can say more
            yield LocalServer(found[1], server.pid)
        finally:
            server.terminate()
