"""Measures what HTTP costs: the same streams by `qubic-lab serve` and by the gRPC client, from one pipeline in one run.

Both clients are event loops in this process, in turn, A B A B; a ratio is the median of the pairs' own ratios. The time
to the first token is also measured of other servers that speak OpenAI's API, one request at a time.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import httpx2

from qubic_lab.bench.local_server import served
from qubic_lab.bench.noise import NoiseWatch
from qubic_lab.bench.result import ModelResult, Spread, Table, counted, interval_text, quantile_interval, settings_of
from qubic_lab.core import Progress, Request, SamplingParams, no_progress
from qubic_lab.errors import InputError, RankError, check_at_least
from qubic_lab.pipeline.async_client import AsyncPipeline
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig

FEWEST_PAIRS = 6
"""With fewer pairs, not even the lowest and the highest ratio enclose the median with 95 % confidence."""
HTTP, GRPC = "HTTP", "gRPC client"
FIRST_TOKENS = 2
"""Tokens that are asked for where only the first one counts: a server may hold one back for its stop strings."""
_TOPIC = "In the {number}th chapter of the long history of rivers, bridges and the towns between them, we read that"


@dataclass(frozen=True)
class StreamRead:
    """A stream as its client saw it: seconds to the first text, or without any to the end; to the end; and tokens."""

    first_s: float
    seconds: float
    tokens: int


@dataclass(frozen=True)
class ServingResult(ModelResult):
    """Tokens/s of all streams together, from the first request to the last token, and times to the first token.

    `overhead` is 1 less the median over pairs of HTTP's speed divided by the gRPC client's; `low` to `high` is its 95 %
    interval. `first_ms` has for each system the times of single requests on an idle server.
    """

    overhead: float
    low: float
    high: float
    ratios: tuple[float, ...]
    http_tokens_per_s: Spread
    grpc_tokens_per_s: Spread
    first_ms: Mapping[str, tuple[float, ...]]
    streams: int
    new_tokens: int
    ranks: int
    lanes: int
    slots: int

    def report(self) -> Iterator[Table | str]:
        speeds = {HTTP: self.http_tokens_per_s, GRPC: self.grpc_tokens_per_s}
        rows = [
            (name, speeds[name].text(".1f") if name in speeds else "", Spread.of(times).text(".1f"))
            for name, times in self.first_ms.items()
        ]
        yield Table(("system", f"tokens/s, {self.streams} streams", "ms to the first token of one"), rows)
        overhead = interval_text(self.overhead, self.low, self.high, ".1%")
        yield f"HTTP costs {overhead} of the tokens/s, 95 % interval, {len(self.ratios)} pairs"


def bench_serving(
    config: PipelineConfig,
    streams: int = 8,
    pairs: int = 9,
    new_tokens: int = 64,
    beside: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> ServingResult:
    """Read the same streams over HTTP and by the gRPC client; `beside` are URLs of other servers, by name.

    Raises:
        InputError: too few pairs, or as for Pipeline.launch; or another server refuses.
        ModelError, RankError: as for Pipeline.launch.
    """
    check_at_least("pairs", pairs, FEWEST_PAIRS)
    check_at_least("streams", streams, 1)
    check_at_least("new_tokens", new_tokens, FIRST_TOKENS)
    with Pipeline.launch(config) as pipeline, served(pipeline=pipeline.address) as url:
        measured = asyncio.run(_measure(pipeline.address, url, streams, pairs, new_tokens, beside or {}, progress))
        return ServingResult(**measured, streams=streams, **settings_of(pipeline.config, "ranks", "lanes", "slots"))


async def _measure(
    address: str,
    url: str,
    streams: int,
    pairs: int,
    new_tokens: int,
    beside: Mapping[str, str],
    progress: Progress,
) -> dict[str, Any]:
    watch = NoiseWatch()
    say = counted(progress, 4 * pairs)
    async with await AsyncPipeline.connect(address) as pipeline:
        ways: dict[str, Callable[[str, int], Awaitable[StreamRead]]] = {
            HTTP: partial(read_http, url, model_at(url)),
            GRPC: partial(read_grpc, pipeline),
        }
        others = {name: partial(read_http, at, model_at(at)) for name, at in beside.items()}

        async def speed(way: str) -> float:
            """Return the tokens/s of all streams together."""
            started = time.perf_counter()
            reads = await asyncio.gather(*(ways[way](_TOPIC.format(number=n), new_tokens) for n in range(streams)))
            return sum(each.tokens for each in reads) / (time.perf_counter() - started)

        for way in ways:  # warm-up
            await speed(way)
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        for pair in range(pairs):
            for way in (HTTP, GRPC) if pair % 2 == 0 else (GRPC, HTTP):
                say(way)
                speeds[way].append(await speed(way))
        first_ms: dict[str, list[float]] = {name: [] for name in (*ways, *others)}
        for number in range(2 * pairs):
            say("first token")
            for name, read in (ways | others).items():  # prompts that begin anew: servers keep what they have read
                prompt = f"{number} {name}: {_TOPIC.format(number=number)}"
                first_ms[name].append(1e3 * (await read(prompt, FIRST_TOKENS)).first_s)
    ratios = [http / grpc for http, grpc in zip(speeds[HTTP], speeds[GRPC], strict=True)]
    low, high = quantile_interval(ratios, 0.5)
    assert low is not None and high is not None  # there are enough pairs
    return {
        "overhead": 1 - median(ratios),
        "low": 1 - high,
        "high": 1 - low,
        "ratios": tuple(ratios),
        "http_tokens_per_s": Spread.of(speeds[HTTP]),
        "grpc_tokens_per_s": Spread.of(speeds[GRPC]),
        "first_ms": {name: tuple(times) for name, times in first_ms.items()},
        "new_tokens": new_tokens,
        "noise": watch.noise(),
    }


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


async def read_http(url: str, model: str, prompt: str, new_tokens: int) -> StreamRead:
    """Read a stream of `/v1/completions`, as little Python as can be: its client shares the machine with the model.

    Raises:
        InputError: the server refuses, or ends early.
    """
    place = urlsplit(url)
    asked = {"model": model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "stream": True}
    body = json.dumps(asked | {"stream_options": {"include_usage": True}}).encode()
    head = f"POST {place.path}/v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    started, first_s, last = time.perf_counter(), None, b""
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        writer.write(head.encode() + body)
        status = await reader.readline()
        if status.split(b" ")[1:2] != [b"200"]:
            rest = (await reader.read()).decode(errors="replace").splitlines()
            raise InputError(f"{url} answered {status.decode().strip()}: {rest[-1][-200:] if rest else 'nothing else'}")
        async for line in reader:  # those of the transfer's chunks are skipped
            if not line.startswith(b"data: {"):
                continue
            if first_s is None and any(each.get("text") for each in json.loads(line[6:])["choices"]):
                first_s = time.perf_counter() - started
            last = line
    finally:
        writer.close()
    usage = (json.loads(last[6:]) if last else {}).get("usage")
    if not usage:
        raise InputError(f"{url} ended a stream early, with {last[:200]!r}")
    seconds = time.perf_counter() - started
    return StreamRead(first_s or seconds, seconds, usage["completion_tokens"])
