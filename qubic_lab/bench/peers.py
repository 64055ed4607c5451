"""The engines that ours is compared with: each runs in a process group and an environment of its own.

`make peers` makes the environments. A group is stopped (SIGSTOP) except while it measures, so that its idle threads,
which may spin, cost the others nothing; `peer_driver.py` runs inside and says how the speeds are measured.
"""

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from qubic_lab.settings import cache_folder, settings

DRIVER = Path(__file__).with_name("peer_driver.py")
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
START_TIMEOUT_S = 900.0
"""Time limit for a peer's start: vLLM compiles, llama.cpp's weights are converted once."""
ANSWER_TIMEOUT_S = 600.0
END_TIMEOUT_S = 20.0


class PeerError(Exception):
    """A peer cannot be measured; the message is the reason."""


@dataclass(frozen=True)
class Peer:
    """An engine and its setting; `package` is the name of its environment, `engine` that of its driver.

    `more` are its own options, `variables` those of its environment. One with `quantization` has weights rounded in the
    same form as ours with that option, which it is compared with.
    """

    name: str
    package: str
    engine: str
    ranks: int = 1
    more: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    quantization: str = ""


IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Keeps vLLM's scheduler in the process that asks; on two cores that is faster than its default."""

PEERS = (
    Peer("transformers", "transformers", "transformers"),
    Peer("llamacpp", "llama.cpp", "llamacpp"),
    Peer("llamacpp_rpc", "llama.cpp", "llamacpp", ranks=2),
    Peer("llamacpp_q8_0", "llama.cpp", "llamacpp", more={"quantized": "Q8_0"}, quantization="int8"),
    Peer("llamacpp_q4_0", "llama.cpp", "llamacpp", more={"quantized": "Q4_0"}, quantization="int4"),
    Peer("vllm", "vllm", "vllm", variables=IN_PROCESS),
    Peer("vllm_pp", "vllm", "vllm", ranks=2),
    Peer("vllm_pp_best", "vllm", "vllm", ranks=2, more={"max_num_batched_tokens": 256}, variables=IN_PROCESS),
)
SERVERS = (Peer("llama-server", "llama.cpp", "llama_server"), Peer("vLLM", "vllm", "vllm_server"))
"""The peers' own OpenAI servers."""
LOOKUP_SERVER = Peer("llamacpp_lookup", "llama.cpp", "llama_server", more={"server": {"spec-type": "ngram-simple"}})
"""llama.cpp's drafts by lookup, with its defaults: those of `ngram-cache` were right far less often."""
SERVER_PACKAGES = tuple(peer.package for peer in SERVERS)
PEER_NAMES = tuple(dict.fromkeys(name for peer in PEERS for name in (peer.package, peer.name)))
"""Packages, which stand for all their settings, and single settings."""


@dataclass(frozen=True)
class PeerModel:
    """What a peer computes, and with what: `threads` are those of all its ranks, `context` the tokens of a request.

    A server answers this number of `requests` at once.
    """

    folder: Path
    dtype: str
    device: str
    threads: int
    context: int
    requests: int = 1


@dataclass(frozen=True)
class EngineSpeed:
    """One measurement of all requests together; `requests` are our own numbers of those that decoded."""

    decode_tokens_per_s: float
    prefill_tokens_per_s: float
    requests: tuple[int, ...] = ()


class PeerProcess:
    """A running peer; use it as a context manager."""

    def __init__(self, peer: Peer, model: PeerModel) -> None:
        """Start the peer and wait until its model is loaded.

        Raises:
            PeerError: it is not installed, cannot compute this, or does not start.
        """
        python = _python(peer, model)
        command = [str(python), "-P", str(DRIVER), peer.engine, json.dumps(_options(peer, model))]
        self.log = cache_folder("logs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{peer.name}.log"
        with self.log.open("wb") as log:
            # A group of this session: if this process is killed, the kernel wakes and ends what is stopped in it.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": str(model.threads // peer.ranks), **peer.variables},
                process_group=0,
            )
        self._unread = b""
        try:
            ready = self._reply(START_TIMEOUT_S)
            self.version, self.url = str(ready["ready"]), str(ready.get("url", ""))
            if python == Path(sys.executable):
                self.version += ", in this project's environment"
            self._signal(signal.SIGSTOP)
        except BaseException:
            self.close(wait_s=0.0)
            raise

    def measure(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> EngineSpeed:
        """Let the peer answer all prompts at once; a PeerError if it failed."""
        assert self._process.stdin is not None
        with self.awake():
            with suppress(BrokenPipeError):  # it has ended: the reply tells
                self._process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": new_tokens}).encode() + b"\n")
                self._process.stdin.flush()
            reply = self._reply(ANSWER_TIMEOUT_S)
        return EngineSpeed(**reply)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let the peer run while the block does."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def close(self, wait_s: float = END_TIMEOUT_S) -> None:
        """End the peer and its workers, after `wait_s` by force; may be called twice."""
        assert self._process.stdin is not None and self._process.stdout is not None
        workers: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            workers = psutil.Process(self._process.pid).children(recursive=True)
        self._signal(signal.SIGCONT)
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # it ends its own children
            self._process.wait(wait_s)
        self._signal(signal.SIGKILL)
        for worker in workers:  # those that have left the group
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(END_TIMEOUT_S if kind is None else 0.0)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _reply(self, seconds: float) -> dict[str, Any]:
        """Return the next line."""
        assert self._process.stdout is not None
        pipe, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._unread:
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise PeerError(f"it said nothing for {seconds:g} s; its output is in {self.log}")
            if not (read := os.read(pipe, 2**16)):
                raise PeerError(f"it ended: {_last_error(self.log)}; its output is in {self.log}")
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise PeerError(f"it said {line[:80]!r}, which is no reply; its output is in {self.log}")
        if "error" in reply:
            raise PeerError(str(reply["error"]))
        return reply


def _python(peer: Peer, model: PeerModel) -> Path:
    python = settings().peers / peer.package / "bin" / "python"
    if python.exists():
        if peer.package != "transformers" and model.device != "cpu":
            raise PeerError(f"{peer.package} is built for CPUs here, and this run is on {model.device}")
        return python.absolute()
    if peer.package == "transformers":  # this project has it too
        return Path(sys.executable)
    raise PeerError(f"{peer.package} is not installed: run `make peers`")


def _options(peer: Peer, model: PeerModel) -> dict[str, Any]:
    """Return what the driver is told."""
    threads = model.threads // peer.ranks
    common = {"folder": str(model.folder), "dtype": DTYPES[model.dtype], "threads": threads, "device": model.device}
    home = settings().peers.absolute() / peer.package
    if peer.package == "llama.cpp":
        build = home / "build.txt"
        return {
            **common,
            "gguf": str(home / "models" / f"{model.folder.name}-{_digest(model.folder)}-{model.dtype}-text.gguf"),
            "libraries": str(home / "build" / "bin"),
            "build": build.read_text().strip() if build.exists() else "unknown build",
            "servers": peer.ranks if peer.ranks > 1 else 0,
            "context": model.context,
            "requests": model.requests,
            **peer.more,
        }
    if peer.package == "vllm":
        cores = sorted(os.sched_getaffinity(0))
        of_ranks = [[cores[(rank * threads + n) % len(cores)] for n in range(threads)] for rank in range(peer.ranks)]
        return {**common, "cores": of_ranks, "context": model.context, "more": dict(peer.more)}
    return common


def _digest(folder: Path) -> str:
    """Return a short name of the current content of a model folder, by its files' sizes and times."""
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())]
    return hashlib.sha256(repr(files).encode()).hexdigest()[:12]


def _last_error(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1]).strip()
