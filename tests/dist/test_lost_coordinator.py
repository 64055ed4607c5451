"""Clients that give no key while their coordinator is killed: none of them sees it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import httpx2
import pytest

from qubic_lab.api.client import CoordinatorClient
from qubic_lab.api.schemas import QueryResponse, Token
from qubic_lab.bench.echo_node import echo_text, echo_tokens
from qubic_lab.bench.local_cluster import local_cluster
from qubic_lab.core import ChatMessage
from qubic_lab.wire.failover import CoordinatorTransport

pytestmark = [pytest.mark.dist, pytest.mark.slow]
TOKENS, CLIENTS = 20, 96


def ask(urls: tuple[str, ...], seed: int) -> str:
    with CoordinatorClient(",".join(urls)) as client:
        return client.ask(f"request {seed}", max_new_tokens=TOKENS, seed=seed).text


def stream(urls: tuple[str, ...], seed: int) -> str:
    with CoordinatorClient(",".join(urls)) as client:
        *tokens, end = client.stream(f"request {seed}", max_new_tokens=TOKENS, seed=seed)
    assert isinstance(end, QueryResponse) and all(isinstance(each, Token) for each in tokens)
    assert end.text == "".join(each.text for each in tokens)
    return end.text


def chat(urls: tuple[str, ...], seed: int) -> str:
    with CoordinatorClient(",".join(urls)) as client:
        said = [ChatMessage("user", f"request {seed}")]
        chunks = list(client.chat(said, max_completion_tokens=TOKENS, seed=seed))
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def openai_stream(urls: tuple[str, ...], seed: int) -> str:
    from openai import OpenAI

    with (
        httpx2.Client(transport=CoordinatorTransport(urls), timeout=None) as http,
        OpenAI(base_url=f"{urls[0]}/v1", api_key="none", http_client=http, max_retries=0) as client,
    ):
        chunks = client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": f"request {seed}"}],
            max_completion_tokens=TOKENS,
            seed=seed,
            stream=True,
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


WAYS: tuple[Callable[[tuple[str, ...], int], str], ...] = (ask, stream, chat, openai_stream)


def test_no_caller_sees_a_killed_coordinator() -> None:
    with local_cluster(2) as cluster, ThreadPoolExecutor(CLIENTS) as pool:
        cluster.start_echo("a", token_s=0.3, slots=CLIENTS)
        cluster.wait_for_nodes("a")
        urls = tuple(cluster.urls.values())
        seeds = [number * TOKENS for number in range(CLIENTS)]
        asked = [pool.submit(WAYS[number % len(WAYS)], urls, seed) for number, seed in enumerate(seeds)]
        wait(asked, timeout=3.0)  # all of them are at work
        assert not any(each.done() for each in asked)
        cluster.kill("coordinator-1")
        answers = [each.result() for each in asked]
    assert answers == [echo_text(echo_tokens(seed, TOKENS)) for seed in seeds]
