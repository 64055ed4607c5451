"""`qubic-lab serve` with real ranks: answers are the pipeline's own, a lost rank comes back, nothing is left behind."""

import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from clusters import Process, all_gone, cache_with_kernels, family, processes, wait_until

from qubic_lab.api.openai.metrics import PipelineMetrics
from qubic_lab.api.openai.pipeline import PipelineAnswerer
from qubic_lab.api.openai.serve import create_app
from qubic_lab.cli.node import capabilities_of
from qubic_lab.cluster.replica import PipelineReplica
from qubic_lab.errors import RankError
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.wire import cluster_pb2 as pb

pytestmark = [pytest.mark.dist, pytest.mark.anyio]
ROOT = Path(__file__).resolve().parents[2]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
KEY = "a key of the tests"


@dataclass
class Shared:
    """The ranks that all tests share, as if they had been launched for a server."""

    pipeline: Pipeline

    @property
    def address(self) -> str:
        return self.pipeline.address

    @property
    def ended(self) -> bool:
        return self.pipeline.ended

    def capabilities(self) -> pb.Capabilities:
        return capabilities_of(self.pipeline.config)

    def loss(self) -> RankError:
        return self.pipeline.loss()

    def close(self) -> None:
        pass


@pytest.fixture
def lab(two_ranks: Pipeline, tiny: Path) -> Pipeline:
    two_ranks.configure(PipelineConfig(model=str(tiny), ranks=2, threads=1, slots=2))
    return two_ranks


@pytest.fixture
async def client(lab: Pipeline) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the routes over the shared ranks."""
    metrics = PipelineMetrics()
    answerer = PipelineAnswerer(PipelineReplica(lambda: Shared(lab)), metrics)
    async with answerer.running():
        transport = httpx2.ASGITransport(create_app(answerer, metrics))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as found:
            yield found


async def ask(client: httpx2.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_answers_are_those_of_the_pipeline(client: httpx2.AsyncClient, lab: Pipeline) -> None:
    messages = [{"role": "user", "content": "Why?"}]
    options = {"temperature": 0.8, "seed": 5}
    found = await ask(client, CHAT, messages=messages, n=3, max_tokens=12, ignore_eos=True, **options)
    alone = [lab.generate("Why?", max_new_tokens=12, ignore_eos=True, **options | {"seed": seed}) for seed in (5, 6, 7)]
    assert [choice["message"]["content"] for choice in found["choices"]] == [answer.text for answer in alone]
    assert found["usage"]["prompt_tokens"] == alone[0].prompt_tokens
    assert found["usage"]["completion_tokens"] == 36
    for prompt, given in (("Why?", {"prompt": "Why?"}), ([5, 6, 7], {"token_ids": (5, 6, 7)})):
        [choice] = (await ask(client, TEXT, prompt=prompt, temperature=0, max_tokens=9))["choices"]
        assert choice["text"] == lab.generate(raw=isinstance(prompt, str), max_new_tokens=9, **given).text


async def test_scores_are_those_of_the_pipeline(client: httpx2.AsyncClient, lab: Pipeline) -> None:
    prompts = [[5, 6, 7, 8], [9, 10], [200, 100, 50]]
    found = await ask(client, TEXT, prompt=prompts, echo=True, logprobs=1, max_tokens=1, temperature=0)
    for prompt, choice in zip(prompts, found["choices"], strict=True):
        first, *others = choice["logprobs"]["token_logprobs"]
        assert first is None
        assert tuple(others[: len(prompt) - 1]) == lab.score(token_ids=prompt).logprobs
        greedy = lab.generate(token_ids=prompt, max_new_tokens=1, logprobs=True)
        assert tuple(others[len(prompt) - 1 :]) == greedy.logprobs
        assert others[-1] == max(choice["logprobs"]["top_logprobs"][-1].values())
    only = await ask(client, TEXT, prompt=prompts, echo=True, logprobs=1, max_tokens=0)
    assert [choice["logprobs"]["token_logprobs"] for choice in only["choices"]] == [
        choice["logprobs"]["token_logprobs"][:-1] for choice in found["choices"]
    ]


async def test_what_does_not_fit_is_refused_by_the_pipeline(client: httpx2.AsyncClient) -> None:
    for body in ({"prompt": [5] * 10_000}, {"prompt": [10**6]}, {"prompt": [5] * 10_000, "stream": True}):
        response = await client.post(TEXT, json=body)
        assert response.status_code == 400
        error = response.json()["error"]
        [reason] = re.findall("context is|not in the vocabulary", error["message"])
        assert error["code"] == ("context_length_exceeded" if reason == "context is" else None)


@pytest.fixture
def server(tiny: Path, tmp_path: Path) -> Iterator[Process]:
    """A served pipeline of two ranks, of which each request must have the key."""
    with processes() as start:
        arguments = ("serve", "--model", str(tiny), "--ranks", "2", "--threads", "1", "--listen", "127.0.0.1:0")
        arguments += ("--served-model-name", "mine")
        cache = cache_with_kernels(tmp_path / "cache")
        environment = {"QUBIC_LAB_API_KEY": KEY, "QUBIC_LAB_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
        process = start(tmp_path, "serve", "qubic_lab.cli.main", *arguments, **environment)
        wait_until(lambda: "curl" in process.log or process.ended)
        assert not process.ended, process.log
        yield process


def test_a_lost_rank_comes_back_and_ctrl_c_leaves_nothing(server: Process) -> None:
    [url] = re.findall(r"^serves \S+ as mine at (http://127\.0\.0\.1:\d+)/v1", server.log, re.MULTILINE)
    [line] = [line for line in server.log.splitlines() if line.startswith("curl ")]
    asked = subprocess.run(
        line, shell=True, capture_output=True, text=True, env={**os.environ, "QUBIC_LAB_API_KEY": KEY}
    )
    assert json.loads(asked.stdout)["object"] == "chat.completion"
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False) as client:
        assert httpx2.get(f"{url}/v1/models", trust_env=False).status_code == 401
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["mine", "default", "consensus"]
        question = {"model": "mine", "prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0}
        before = client.post(TEXT, json=question).json()["choices"]
        rank = next(each for each in reversed(family(server.pid)) if "qubic_lab.pipeline.rank" in each.cmdline())
        rank.send_signal(signal.SIGKILL)
        wait_until(lambda: client.get("/health").status_code == 503)
        refused = client.post(TEXT, json=question)
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "server_error")
        wait_until(lambda: client.get("/health").status_code == 200)
        assert client.post(TEXT, json=question).json()["choices"] == before

        with client.stream("POST", TEXT, json={"prompt": [5], "max_tokens": 400, "stream": True}) as stream:
            assert next(stream.iter_lines()).startswith("data: ")
            everybody = family(server.pid)
            server.send(signal.SIGINT)
            wait_until(lambda: all_gone(everybody))


async def test_a_trace_tells_waiting_from_computing(client: httpx2.AsyncClient) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "n": 9, "max_tokens": 12, "ignore_eos": True}
    response = await client.post(CHAT, json=body, headers={"X-Qubic-Trace": "1"})
    trace = response.json()["qubic"]["trace"]
    times = trace["answers"]
    assert [each["new_tokens"] for each in times] == [12] * 9
    assert all(each["queue_ms"] >= 0 and each["prefill_ms"] > 0 and each["decode_ms"] > 0 for each in times)
    assert all(
        sum(each[name] for name in ("queue_ms", "prefill_ms", "decode_ms")) < trace["total_ms"] for each in times
    )
