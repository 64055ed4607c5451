"""A cluster on this machine for measurements: a Redis server, coordinators and nodes, each in its own process.

The processes run the commands `qubic-lab coordinator` and `qubic-lab node`, or echo nodes. They end with this process,
even if it is killed, and write only to one temporary folder.
"""

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
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
from qubic_lab.settings import PREFIX, cache_folder

START_S = 120.0
"""A coordinator listens within this time, even on a busy machine."""
STOP_S = 20.0
_LOOK_S = 0.05
T = TypeVar("T")
Q = TypeVar("Q")
A = TypeVar("A")


@dataclass
class _Member:
    """A process of the cluster, and the command that restarts it."""

    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: "subprocess.Popen[bytes]"

    def end(self) -> None:
        """Kill the process if it has not ended."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


class LocalCluster:
    """A running cluster; `local_cluster` creates and ends it.

    Nodes and coordinators have names by which they are killed and restarted. A process ends with the thread that
    started it: see `lifeline.end_when_parent_dies`.

    Attributes:
        redis: the server with the queue and the registry.
        urls: HTTP addresses of the coordinators, by name.
        registries: addresses at which nodes register, one for each coordinator.
    """

    def __init__(self, folder: Path, redis: RedisServer, coordinators: int, settings: Mapping[str, str]) -> None:
        self.redis = redis
        authority = settings.get(f"{PREFIX}TLS_AUTHORITY")
        self.trusted = ssl.create_default_context(cafile=authority) if authority else None
        self._folder = folder
        self._environment = {**child_environment(), **settings}
        self._members: dict[str, _Member] = {}
        ports = free_ports(2 * coordinators)
        self.registries = tuple(f"127.0.0.1:{port}" for port in ports[:coordinators])
        scheme = "https" if self.trusted else "http"
        self.urls: Mapping[str, str] = {
            f"coordinator-{number}": f"{scheme}://127.0.0.1:{port}"
            for number, port in enumerate(ports[coordinators:], start=1)
        }

    def start_coordinators(self, balancer: str) -> None:
        """Start all coordinators and wait until each of them answers.

        Raises:
            QubicLabError: one has ended (with its last line of output), or does not answer in time.
        """
        for name, url, registry in zip(self.urls, self.urls.values(), self.registries, strict=True):
            options = ("--listen", url.partition("://")[2], "--nodes", registry, "--balancer", balancer)
            self._start(name, ("qubic_lab.cli.main", "coordinator", *options, "--redis", self.redis.url))
        for name, url in self.urls.items():
            self._wait(name, partial(self._get, f"{url}/health"), START_S)

    def start_echo(
        self,
        *names: str,
        token_s: float,
        slots: int,
        says: str = "",
        registries: Sequence[str] = (),
        where: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a process with one echo node per name; a token takes `token_s`, and `slots` requests run at once.

        `says` is the text of every answer, by default the echo. `registries` are where it registers if not at the
        coordinators themselves, `where` its options of addresses, `environment` its own variables.
        """
        lists = (("--coordinator", registries or self.registries), ("--name", names))
        repeated = [word for option, values in lists for value in values for word in (option, value)]
        options = ("--seconds", str(token_s), "--new-tokens", "1", "--slots", str(slots), "--says", says, *where)
        self._start(names[0], ("qubic_lab.bench.echo_node", *repeated, *options), environment or {})

    def start_node(self, name: str, model: str, dtype: str, threads: int, slots: int, ranks: int = 1) -> None:
        """Start a real node; `slots` requests decode together."""
        if (folder := Path(model)).exists():  # nodes run in another working directory
            model = str(folder.absolute())
        coordinators = ("--coordinator", ",".join(self.registries))
        shape = ("--model", model, "--ranks", str(ranks), "--dtype", dtype)
        options = (*shape, "--threads", str(threads), "--slots", str(slots))
        self._start(name, ("qubic_lab.cli.main", "node", *coordinators, "--name", name, *options))

    def wait_for_nodes(self, *names: str, within_s: float = START_S) -> list[str]:
        """Wait until every coordinator may choose each of these nodes; return their addresses.

        Raises:
            QubicLabError: as for `start_coordinators`.
        """
        for url in self.urls.values():
            for name in names:
                self._wait(name, partial(self._address_of, url, name), within_s)
        first = next(iter(self.urls.values()))
        return [str(self._address_of(first, name)) for name in names]

    def kill(self, name: str) -> None:
        self._members[name].end()

    def start_again(self, name: str) -> None:
        self._start(name, self._members[name].command, self._members[name].environment)

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process."""
        self._members[name].process.send_signal(number)

    def pid(self, name: str) -> int:
        """Return the id of a process."""
        return self._members[name].process.pid

    def ended(self) -> list[str]:
        """Return the names of the processes that have ended."""
        return [name for name, member in self._members.items() if member.process.poll() is not None]

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes as the first coordinator that answers sees them."""
        found = (self._get(f"{url}/api/cluster/nodes") for url in self.urls.values())
        return next((nodes for nodes in found if nodes is not None), [])

    def cpu_s(self, name: str) -> float:
        """Return the CPU time of a process and its children so far, in seconds."""
        return cpu_s(self._members[name].process.pid)

    def log(self, name: str) -> Path:
        """Return the file with the output of a process."""
        return self._members[name].log

    def end(self, within_s: float = STOP_S) -> None:
        """End all processes, after `within_s` by force."""
        for member in self._members.values():
            member.process.terminate()
        deadline = time.monotonic() + within_s
        for member in self._members.values():
            with suppress(subprocess.TimeoutExpired):
                member.process.wait(max(0.0, deadline - time.monotonic()))
            member.end()

    def _start(self, name: str, module: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        log = self._folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "qubic_lab.lifeline", str(os.getpid()), *module],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,  # which has no .env file
                env=self._environment | dict(environment or {}),
                start_new_session=True,  # Ctrl-C must reach this process alone, which then ends them
            )
        self._members[name] = _Member(module, environment or {}, log, process)

    def _wait(self, name: str, ready: Callable[[], object], within_s: float) -> None:
        """Wait until a condition holds that depends on the process `name`."""
        deadline = time.monotonic() + within_s
        member = self._members.get(name)
        while not ready():
            if member is not None and member.process.poll() is not None:
                last_line = member.log.read_text(errors="replace").strip().rpartition("\n")[2]
                raise QubicLabError(f"{name} ended with status {member.process.returncode}: {last_line}")
            if time.monotonic() > deadline:
                raise QubicLabError(f"{name} was not ready within {within_s:g} s")
            time.sleep(_LOOK_S)

    def _get(self, url: str) -> Any:
        """Return the JSON at a URL, or None if nothing answers yet."""
        with suppress(httpx2.TransportError):
            return httpx2.get(url, trust_env=False, verify=self.trusted or False).json()
        return None

    def _address_of(self, url: str, name: str) -> str | None:
        """Return the address of a node that a coordinator may choose; None: it may not."""
        nodes = self._get(f"{url}/api/cluster/nodes") or ()
        return next((node["address"] for node in nodes if node["name"] == name and node["gate"] is None), None)


@contextmanager
def local_cluster(
    coordinators: int = 1,
    balancer: str = DEFAULT_BALANCER,
    settings: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[LocalCluster]:
    """Yield a cluster with coordinators and without nodes; all of it is removed when the block ends.

    `settings` are those of the processes, by their environment variables' names; all files go to `folder`, by default a
    temporary one.

    Raises:
        QubicLabError: a coordinator does not start.
    """
    with ExitStack() as stack:
        folder = folder or stack.enter_context(temporary_folder())
        redis = stack.enter_context(RedisServer(folder / "redis"))
        cluster = LocalCluster(folder, redis, coordinators, settings or {})
        stack.push(lambda kind, *_: cluster.end(STOP_S if kind is None else 0.0))  # nodes would end their requests
        cluster.start_coordinators(balancer)
        yield cluster


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder that is removed when the block ends."""
    with tempfile.TemporaryDirectory(prefix="qubic-lab-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def run_apart(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in another thread, as this one may already run a loop (in a notebook). Ctrl-C cancels it."""
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
            with suppress(RuntimeError):  # the loop has just ended
                loop.call_soon_threadsafe(task.cancel)
            raise


async def closed_loops(
    clients: Sequence[Callable[[Q], Awaitable[A]]],
    questions: Iterable[Q],
    begin_over_s: float = 0.0,
    note: Callable[[int], None] = lambda answered: None,
) -> tuple[list[A], float]:
    """Let clients ask: each takes the next question when it has its answer.

    Their starts are spread over `begin_over_s`, and `note` is called with the number of answers so far. Returns the
    answers in the order in which they came, and the seconds from the first question to the last answer.
    """
    waiting, answered = iter(questions), list[A]()

    async def ask_on(ask: Callable[[Q], Awaitable[A]], begin_s: float) -> None:
        await asyncio.sleep(begin_s)
        for question in waiting:
            answered.append(await ask(question))
            note(len(answered))

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number, ask in enumerate(clients):
            group.create_task(ask_on(ask, begin_over_s * number / len(clients)))
    return answered, time.perf_counter() - started


def free_ports(count: int) -> list[int]:
    """Return different free ports of the loopback interface."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process and its running children, in seconds."""
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def child_environment() -> dict[str, str]:
    """Return this process's environment without settings (TLS, tokens, Redis); models come from the same cache."""
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("QUBIC_LAB_")}
    source = str(Path(qubic_lab.__file__).parent.parent)
    paths = [source, *filter(None, [environment.get("PYTHONPATH")])]
    return environment | {
        "QUBIC_LAB_CACHE": str(cache_folder().absolute()),
        "PYTHONPATH": os.pathsep.join(paths),
        "GRPC_VERBOSITY": "ERROR",
    }
