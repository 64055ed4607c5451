"""A cluster on this machine to measure: a Redis server, coordinators and nodes, each a process of its own.

The processes are those of the commands `qubic-lab coordinator` and `qubic-lab node`, or echo nodes. They end with this
process, even if that is killed, and all that they write is in one temporary folder.
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import psutil

import qubic_lab
from qubic_lab.cluster.balance import DEFAULT_BALANCER
from qubic_lab.cluster.redis_server import RedisServer
from qubic_lab.errors import QubicLabError
from qubic_lab.settings import cache_folder

START_S = 30.0
"""A coordinator imports and listens within so long, even on a busy machine."""
STOP_S = 20.0
_LOOK_S = 0.05
T = TypeVar("T")


@dataclass
class _Member:
    """A process of the cluster, and the command that starts it again."""

    command: Sequence[str]
    log: Path
    process: "subprocess.Popen[bytes]"

    def end(self) -> None:
        """End it at once, if it has not ended."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()

    def last_word(self) -> str:
        """Return the last line that it printed."""
        return self.log.read_text(errors="replace").strip().rpartition("\n")[2]


class LocalCluster:
    """A cluster whose Redis and coordinators are up; `local_cluster` makes one and ends it.

    Nodes and coordinators have names by which they are killed and started again. A process ends with the thread that
    has started it: see `lifeline.end_when_parent_dies`.

    Attributes:
        redis: the server that holds queue and registry.
        urls: where clients reach the coordinators, by their names.
        registries: where nodes register, one address of each coordinator.
    """

    def __init__(self, folder: Path, redis: RedisServer, coordinators: int) -> None:
        self.redis = redis
        self._folder = folder
        self._members: dict[str, _Member] = {}
        ports = free_ports(2 * coordinators)
        self.registries = tuple(f"127.0.0.1:{port}" for port in ports[:coordinators])
        self.urls: Mapping[str, str] = {
            f"coordinator-{number}": f"http://127.0.0.1:{port}"
            for number, port in enumerate(ports[coordinators:], start=1)
        }

    def start_coordinators(self, balancer: str) -> None:
        """Start all of them, and wait until each answers.

        Raises:
            QubicLabError: one has ended, with its last words, or does not answer in time.
        """
        for name, url, registry in zip(self.urls, self.urls.values(), self.registries, strict=True):
            options = ("--listen", url.removeprefix("http://"), "--nodes", registry, "--balancer", balancer)
            self._start(name, ("qubic_lab.cli.main", "coordinator", *options, "--redis", self.redis.url))
        for name, url in self.urls.items():
            self._wait(name, partial(_answers, url), START_S)

    def start_echo(self, *names: str, token_s: float, slots: int) -> None:
        """Start a process with an echo node of each name: a token takes `token_s`; `slots` requests run at once."""
        lists = (("--coordinator", self.registries), ("--name", names))
        repeated = [word for option, values in lists for value in values for word in (option, value)]
        options = ("--seconds", str(token_s), "--new-tokens", "1", "--slots", str(slots))
        self._start(names[0], ("qubic_lab.bench.echo_node", *repeated, *options))

    def start_node(self, name: str, model: str, dtype: str, threads: int, slots: int) -> None:
        """Start a real node of one rank; `slots` requests decode together."""
        if (folder := Path(model)).exists():  # nodes run in another folder
            model = str(folder.absolute())
        coordinators = ("--coordinator", ",".join(self.registries))
        options = ("--model", model, "--ranks", "1", "--dtype", dtype, "--threads", str(threads), "--slots", str(slots))
        self._start(name, ("qubic_lab.cli.main", "node", *coordinators, "--name", name, *options))

    def wait_for_nodes(self, *names: str, within_s: float = START_S) -> list[str]:
        """Wait until every coordinator may choose each of these nodes; return their addresses.

        Raises:
            QubicLabError: as of `start_coordinators`.
        """
        for url in self.urls.values():
            for name in names:
                self._wait(name, partial(_may_choose, url, name), within_s)
        addresses = _open_nodes(next(iter(self.urls.values())))
        return [addresses[name] for name in names]

    def kill(self, name: str) -> None:
        """End a process at once (SIGKILL)."""
        self._members[name].end()

    def start_again(self, name: str) -> None:
        """Start a process that has ended by the same command."""
        self._start(name, self._members[name].command)

    def cpu_s(self, name: str) -> float:
        """Return the processor time in seconds that a process has used so far, with those that it started."""
        return cpu_s(self._members[name].process.pid)

    def log(self, name: str) -> Path:
        """Return the file with all that a process has printed."""
        return self._members[name].log

    def end(self) -> None:
        """End all processes."""
        for member in self._members.values():
            member.process.terminate()
        deadline = time.monotonic() + STOP_S
        for member in self._members.values():
            with suppress(subprocess.TimeoutExpired):
                member.process.wait(max(0.0, deadline - time.monotonic()))
            member.end()

    def _start(self, name: str, module: Sequence[str]) -> None:
        log = self._folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "qubic_lab.lifeline", str(os.getpid()), *module],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,  # no .env there, either
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for us, who end them
            )
        self._members[name] = _Member(module, log, process)

    def _wait(self, name: str, ready: Callable[[], bool], within_s: float) -> None:
        """Wait until something is so that `name` has to bring about."""
        deadline = time.monotonic() + within_s
        member = self._members.get(name)
        while not ready():
            if member is not None and member.process.poll() is not None:
                raise QubicLabError(f"{name} ended with status {member.process.returncode}: {member.last_word()}")
            if time.monotonic() > deadline:
                raise QubicLabError(f"{name} was not ready within {within_s:g} s")
            time.sleep(_LOOK_S)


@contextmanager
def local_cluster(coordinators: int = 1, balancer: str = DEFAULT_BALANCER) -> Iterator[LocalCluster]:
    """Yield a cluster with coordinators and no nodes yet; when the block ends, however it does, nothing is left.

    Raises:
        QubicLabError: a coordinator does not come up.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qubic-lab-", ignore_cleanup_errors=True)))
        redis = stack.enter_context(RedisServer(folder / "redis"))
        cluster = LocalCluster(folder, redis, coordinators)
        stack.callback(cluster.end)
        cluster.start_coordinators(balancer)
        yield cluster


def run_apart(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread: this one may run a loop already, as a notebook's does. Ctrl-C cancels it."""
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def tell_and_run() -> T:
        task = asyncio.current_task()
        assert task is not None
        begun.set_result((asyncio.get_running_loop(), task))
        return await main

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(asyncio.run, tell_and_run())
        try:
            return running.result()
        except KeyboardInterrupt:
            loop, task = begun.result()
            with suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(task.cancel)
            raise


def free_ports(count: int) -> list[int]:
    """Return different ports of the loopback interface that nobody listens at now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def cpu_s(pid: int) -> float:
    """Return the processor time in seconds of a process and of those that it started and that still run."""
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _environment() -> dict[str, str]:
    """Return ours without settings: no TLS, no tokens and no other Redis; models are where they are for us."""
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("QUBIC_LAB_")}
    source = str(Path(qubic_lab.__file__).parent.parent)
    paths = [source, *filter(None, [environment.get("PYTHONPATH")])]
    return environment | {
        "QUBIC_LAB_CACHE": str(cache_folder().absolute()),
        "PYTHONPATH": os.pathsep.join(paths),
        "GRPC_VERBOSITY": "ERROR",
    }


def _answers(url: str) -> bool:
    return _get(f"{url}/health") is not None


def _may_choose(url: str, node: str) -> bool:
    return node in _open_nodes(url)


def _get(url: str) -> Any:
    """Return what is there, or None where nobody answers yet."""
    with suppress(httpx2.TransportError):
        return httpx2.get(url, trust_env=False).json()
    return None


def _open_nodes(url: str) -> dict[str, str]:
    """Return the addresses of the nodes that a coordinator may choose, by their names."""
    nodes = _get(f"{url}/api/cluster/nodes") or ()
    return {node["name"]: node["address"] for node in nodes if node["gate"] is None}
