"""Measures what HTTP costs: the same streams by `qubic-lab serve` and by the gRPC client, from one pipeline in one run.

Both clients are event loops in this process, in turn, A B A B; a ratio is the median of the pairs' own ratios. Other
servers that speak OpenAI's API take their turns in the same rounds: those of `peers.py`, which sleep meanwhile, or any.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import urlsplit

import httpx2
import psutil

from qubic_lab.bench.local_server import served
from qubic_lab.bench.noise import NoiseWatch
from qubic_lab.bench.peers import SERVER_PACKAGES, SERVERS, PeerError, PeerModel, PeerProcess
from qubic_lab.bench.result import (
    FEWEST_PAIRS,
    ModelResult,
    Spread,
    Table,
    counted,
    interval_text,
    median_interval,
    settings_of,
)
from qubic_lab.core import Progress, Request, SamplingParams, no_progress
from qubic_lab.errors import InputError, RankError, check_at_least, check_choice
from qubic_lab.pipeline.async_client import AsyncPipeline
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig, ResolvedConfig

HTTP, GRPC = "HTTP", "gRPC client"
RANKS, SERVER, CLIENT = "ranks", "server", "client"
"""Whose CPU time is counted; the client is this process."""
MOST_PROMPT_TOKENS = 64
_TOPIC = "{round}.{number}: in this chapter of the long history of rivers, bridges and the towns between, we read that"


@dataclass(frozen=True)
class StreamRead:
    """A stream as its client saw it: seconds to the first text, or without any to the end; to the end; and tokens."""

    first_s: float
    seconds: float
    tokens: int


@dataclass
class System:
    """A server under measurement and its figures: `read` reads one stream, within the block of `awake`.

    Attributes:
        first_ms: times to the first token of single requests.
        one: tokens/s of single requests.
        all: tokens/s of all streams together.
        tokens: number of tokens of all streams; `cpu_s` is the CPU time for them, by whose it is.
    """

    read: Callable[[str, int], Awaitable[StreamRead]]
    awake: Callable[[], AbstractContextManager[None]] = nullcontext
    spent_s: Mapping[str, Callable[[], float]] = field(default_factory=dict)
    first_ms: list[float] = field(default_factory=list)
    one: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)
    tokens: int = 0
    cpu_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    async def measure(self, number: int, streams: int, new_tokens: int) -> None:
        """Read so many streams at once, with prompts of this round that no server has seen before."""
        prompts = [_TOPIC.format(round=number, number=stream) for stream in range(streams)]
        with self.awake():
            before_s = {whose: spent() for whose, spent in self.spent_s.items()}
            started = time.perf_counter()
            reads = await asyncio.gather(*(self.read(prompt, new_tokens) for prompt in prompts))
            seconds = time.perf_counter() - started
        tokens = sum(each.tokens for each in reads)
        if streams == 1:
            self.first_ms.append(1e3 * reads[0].first_s)
            self.one.append(tokens / seconds)
        else:
            self.all.append(tokens / seconds)
            self.tokens += tokens
            for whose, spent in self.spent_s.items():
                self.cpu_s[whose] += spent() - before_s[whose]

    def forget(self) -> None:
        """Forget what was seen."""
        for seen in (self.first_ms, self.one, self.all, self.cpu_s):
            seen.clear()
        self.tokens = 0


@dataclass(frozen=True)
class SystemSpeed:
    """What was seen of a system; `cpu_us` is the CPU time a token, by whose it is, where it is known."""

    first_ms: Spread
    one_tokens_per_s: Spread
    all_tokens_per_s: Spread
    cpu_us: Mapping[str, float]

    @classmethod
    def of(cls, system: System) -> "SystemSpeed":
        """Return the medians with the lowest and the highest."""
        cpu_us = {whose: 1e6 * seconds / system.tokens for whose, seconds in system.cpu_s.items()}
        return cls(Spread.of(system.first_ms), Spread.of(system.one), Spread.of(system.all), cpu_us)


@dataclass(frozen=True)
class ServingResult(ModelResult):
    """Tokens/s from the first request to the last token, and times to the first token, by the name of the system.

    `overhead` is 1 less the median over pairs of HTTP's speed divided by the gRPC client's, all streams at once; `low`
    to `high` is its 95 % interval. `versions` are those of the peers.
    """

    overhead: float
    low: float
    high: float
    ratios: tuple[float, ...]
    systems: Mapping[str, SystemSpeed]
    not_measured: Mapping[str, str]
    versions: Mapping[str, str]
    streams: int
    new_tokens: int
    ranks: int
    lanes: int
    slots: int

    def report(self) -> Iterator[Table | str]:
        header = ("system", "ms to the first token", "tokens/s, 1 stream", f"tokens/s, {self.streams} streams")
        rows = [
            (name, *(speed.text(".1f") for speed in (each.first_ms, each.one_tokens_per_s, each.all_tokens_per_s)))
            for name, each in self.systems.items()
        ]
        yield Table(header, rows)
        whose = (RANKS, SERVER, CLIENT)
        known = {name: each.cpu_us for name, each in self.systems.items() if each.cpu_us}
        costs = [
            (name, *(f"{cpu_us[each]:.0f}" if each in cpu_us else "" for each in whose))
            for name, cpu_us in known.items()
        ]
        yield Table((f"µs of CPU a token, {self.streams} streams", *whose), costs)
        overhead = interval_text(self.overhead, self.low, self.high, ".1%")
        yield f"HTTP costs {overhead} of the tokens/s, 95 % interval, {len(self.ratios)} pairs"
        yield from (f"not measured: {name}: {reason}" for name, reason in self.not_measured.items())
        yield from (f"{name}: {version}" for name, version in self.versions.items())


def bench_serving(
    config: PipelineConfig,
    streams: int = 8,
    pairs: int = 9,
    new_tokens: int = 64,
    peers: Sequence[str] = (),
    beside: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> ServingResult:
    """Read the same streams over HTTP and by the gRPC client, and from other servers in turn.

    `peers` are packages whose servers are started with the same weights and as many threads; what cannot be measured of
    them is left out, with its reason in the result. `beside` are URLs of servers that run already, by name.

    Raises:
        InputError: too few pairs, or as for Pipeline.launch; or a server of `beside` refuses.
        ModelError, RankError: as for Pipeline.launch.
    """
    check_at_least("pairs", pairs, FEWEST_PAIRS)
    check_at_least("streams", streams, 2)
    check_at_least("new_tokens", new_tokens, 2)  # a server may hold one back for its stop strings
    for package in peers:
        check_choice("peer", package, SERVER_PACKAGES)
    watch = NoiseWatch()
    not_measured, versions, others = dict[str, str](), dict[str, str](), dict[str, System]()
    with ExitStack() as stack:
        pipeline = stack.enter_context(Pipeline.launch(config))
        server = stack.enter_context(served(pipeline=pipeline.address))
        for peer in [each for each in SERVERS if each.package in peers]:
            try:
                process = stack.enter_context(PeerProcess(peer, _peer_model(pipeline.config, streams, new_tokens)))
                with process.awake():
                    read = partial(read_http, process.url, model_at(process.url))
                    asyncio.run(read("Hello", new_tokens))
                others[peer.name], versions[peer.name] = System(read, process.awake), process.version
            except (PeerError, InputError, OSError) as error:
                not_measured[peer.name] = str(error)
        others |= {name: System(partial(read_http, url, model_at(url))) for name, url in (beside or {}).items()}
        spent_s = {RANKS: _spent(each.pid for each in pipeline.describe()), CLIENT: time.process_time}
        over_http = System(
            partial(read_http, server.url, model_at(server.url)), spent_s={**spent_s, SERVER: _spent([server.pid])}
        )
        settings = (streams, pairs, new_tokens)
        systems = asyncio.run(_measure(pipeline.address, over_http, spent_s, others, *settings, progress))
        ratios = [http / grpc for http, grpc in zip(systems[HTTP].all, systems[GRPC].all, strict=True)]
        ratio, low, high = median_interval(ratios)
        return ServingResult(
            overhead=1 - ratio,
            low=1 - high,
            high=1 - low,
            ratios=tuple(ratios),
            systems={name: SystemSpeed.of(system) for name, system in systems.items()},
            not_measured=not_measured,
            versions=versions,
            streams=streams,
            new_tokens=new_tokens,
            noise=watch.noise(),
            **settings_of(pipeline.config, "ranks", "lanes", "slots"),
        )


def _spent(pids: Iterable[int]) -> Callable[[], float]:
    """Return a function that returns the CPU time of these processes in seconds."""
    processes = [psutil.Process(pid) for pid in pids]
    return lambda: sum(times.user + times.system for times in (each.cpu_times() for each in processes))


def _peer_model(used: ResolvedConfig, streams: int, new_tokens: int) -> PeerModel:
    threads = used.ranks * used.threads
    return PeerModel(used.folder, used.dtype, used.device, threads, MOST_PROMPT_TOKENS + new_tokens, streams)


async def _measure(
    address: str,
    over_http: System,
    spent_s: Mapping[str, Callable[[], float]],
    others: Mapping[str, System],
    streams: int,
    pairs: int,
    new_tokens: int,
    progress: Progress,
) -> dict[str, System]:
    """Measure all systems in turn, after a round of each for warm-up."""
    async with await AsyncPipeline.connect(address) as pipeline:
        systems = {HTTP: over_http, GRPC: System(partial(read_grpc, pipeline), spent_s=spent_s), **others}
        say = counted(progress, (pairs + 1) * len(systems))
        for number in range(pairs + 1):
            ours = [HTTP, GRPC] if number % 2 else [GRPC, HTTP]
            for count in (streams, 1):
                for name in (*ours, *others):
                    if count == 1:
                        say(name)
                    await systems[name].measure(number, count, new_tokens)
            if number == 0:
                for system in systems.values():
                    system.forget()
    return systems


def model_at(url: str) -> str:
    """Return the name of a server's first model; an InputError if nothing of the kind answers."""
    try:
        return str(httpx2.get(f"{url}/v1/models").raise_for_status().json()["data"][0]["id"])
    except (httpx2.HTTPError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{url} does not name its models ({error}): give the address of an OpenAI server") from error


async def read_grpc(pipeline: AsyncPipeline, prompt: str, new_tokens: int) -> StreamRead:
    """Read a stream by the gRPC client."""
    started, first_s = time.perf_counter(), None
    stream = pipeline.stream(Request(prompt, raw=True, sampling=SamplingParams(new_tokens)))
    async for token in stream:
        first_s = first_s or (time.perf_counter() - started if token.text else None)
    if stream.completion is None:
        raise RankError("the pipeline ended a stream early")
    seconds = time.perf_counter() - started
    return StreamRead(first_s or seconds, seconds, len(stream.completion.token_ids))


async def read_http(url: str, model: str, prompt: str, new_tokens: int, parent: str = "") -> StreamRead:
    """Read a stream of `/v1/completions`, by as little Python as can be: its client shares the machine with the model.

    Its spans continue `parent`, a `traceparent` (W3C).

    Raises:
        InputError: the server refuses, or ends early.
    """
    place = urlsplit(url)
    asked = {"model": model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "stream": True}
    body = json.dumps(asked | {"stream_options": {"include_usage": True}}).encode()
    head = f"POST {place.path}/v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n"
    head += f"traceparent: {parent}\r\n" if parent else ""
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    loop, started = asyncio.get_running_loop(), time.perf_counter()
    transport, arriving = await loop.create_connection(_Arriving, place.hostname or "", place.port or 80)
    try:
        transport.write(head.encode() + body)
        await arriving.ended
    finally:
        transport.close()
    seconds = time.perf_counter() - started
    status, *lines = arriving.content.splitlines()
    if status.split(b" ")[1:2] != [b"200"]:
        raise InputError(f"{url} answered {status.decode().strip()}: {lines[-1].decode(errors='replace')[-200:]}")
    events = [line for line in lines if line.startswith(b"data: {")]
    usage = (json.loads(events[-1][6:]) if events else {}).get("usage")
    if not usage:
        raise InputError(f"{url} ended a stream early, with {lines[-1][:200]!r}")
    first_s = arriving.first_s - started if arriving.first_s else seconds
    return StreamRead(first_s, seconds, usage["completion_tokens"])


class _Arriving(asyncio.Protocol):
    """All that a server sends, and when the first event with a text came."""

    def __init__(self) -> None:
        self.content = b""
        self.first_s: float | None = None
        self.ended = asyncio.get_running_loop().create_future()
        self._parts: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        if self.first_s is None and _has_text(b"".join(self._parts)):
            self.first_s = time.perf_counter()

    def connection_lost(self, exc: Exception | None) -> None:
        self.content = b"".join(self._parts)
        self.ended.set_result(None)


def _has_text(content: bytes) -> bool:
    """Return whether an event has come as a whole and has a text; lines of the transfer's chunks are skipped."""
    whole, _, _ = content.rpartition(b"\n")
    events = [json.loads(line[6:]) for line in whole.splitlines() if line.startswith(b"data: {")]
    return any(choice.get("text") for event in events for choice in event.get("choices", ()))
