"""`bench serving`: what its clients count, other servers' refusals, and one run with real ranks."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from clusters import serving, wait_until
from words import MOST_TOKENS, Words

from qubic_lab.api.openai.metrics import PipelineMetrics
from qubic_lab.api.openai.pipeline import PipelineAnswerer
from qubic_lab.api.openai.serve import create_app
from qubic_lab.bench.local_server import served
from qubic_lab.bench.peers import Peer
from qubic_lab.bench.result import Table
from qubic_lab.bench.serving import CLIENT, GRPC, HTTP, RANKS, SERVER, bench_serving, model_at, read_http
from qubic_lab.errors import BusyError, InputError
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig


async def read(replica: Words, new_tokens: int) -> tuple[str, float, float, int]:
    """Return the name of the model of a server, and what its client saw of a stream."""
    metrics = PipelineMetrics()
    answerer = PipelineAnswerer(replica, metrics)
    async with answerer.running(), serving(create_app(answerer, metrics)) as client:
        url = str(client.base_url).rstrip("/")
        name = await asyncio.to_thread(model_at, url)
        found = await read_http(url, name, "Hello", new_tokens)
    return name, found.first_s, found.seconds, found.tokens


@pytest.mark.anyio
async def test_a_stream_is_read_to_its_end_and_its_tokens_are_counted() -> None:
    name, first_s, seconds, tokens = await read(Words(), 64)
    assert (name, tokens) == ("words", MOST_TOKENS)
    assert 0 < first_s <= seconds


@pytest.mark.anyio
async def test_a_server_that_refuses_is_named() -> None:
    with pytest.raises(InputError, match=r"answered HTTP/1.1 429.*there is no room"):
        await read(Words(error=BusyError("there is no room", 1.0)), 8)
    with pytest.raises(InputError, match="give the address of an OpenAI server"):
        model_at("http://127.0.0.1:1")


@pytest.mark.dist
def test_both_ways_are_measured_with_one_pipeline_beside_the_servers_that_are_installed(
    tiny: Path, fake_peer: Callable[[str], Peer], set_settings: Callable[..., None]
) -> None:
    fake_peer("serves")
    set_settings(cache=None)  # the one with the kernels
    config = PipelineConfig(str(tiny), ranks=1, threads=1, slots=2)
    with pytest.raises(InputError, match="pairs is 5"):
        bench_serving(config, pairs=5)
    found = bench_serving(config, streams=2, pairs=6, new_tokens=4, peers=("llama.cpp", "vllm"))
    assert len(found.ratios) == 6 and found.low <= found.overhead <= found.high
    http, grpc = found.systems[HTTP], found.systems[GRPC]
    assert http.cpu_us.keys() == {RANKS, SERVER, CLIENT} and grpc.cpu_us.keys() == {RANKS, CLIENT}
    assert all(0 < each.first_ms.low <= each.first_ms.high for each in found.systems.values())
    speeds, costs, sentence, missing, version = found.report()
    assert isinstance(speeds, Table) and [row[0] for row in speeds.rows] == [HTTP, GRPC, "llama-server"]
    assert isinstance(costs, Table) and [row[0] for row in costs.rows] == [HTTP, GRPC]
    assert "of the tokens/s, 95 % interval, 6 pairs" in str(sentence)
    assert (missing, version) == (
        "not measured: vLLM: vllm is not installed: run `make peers`",
        "llama-server: fake server 1.0",
    )


@pytest.mark.dist
def test_a_server_of_a_running_pipeline_sees_its_end(tiny: Path) -> None:
    with (
        Pipeline.launch(PipelineConfig(str(tiny), ranks=1, threads=1, slots=2)) as pipeline,
        served(pipeline=pipeline.address) as local,
    ):
        url = local.url
        assert httpx2.get(f"{url}/health").json()["status"] == "serving"
        pipeline.close()
        wait_until(lambda: httpx2.get(f"{url}/health").status_code == 503)
        assert "is gone" in httpx2.get(f"{url}/health").text
