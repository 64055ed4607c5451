"""`/v1/embeddings`: vectors equal to the project's own, both encodings, refusals, and a busy or failing worker."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import numpy as np
import pytest
from embedder import embedder, needs_embedder
from fastapi import FastAPI

from qubic_lab.api import problems
from qubic_lab.api.openai.embeddings import MOST_TEXTS, MOST_WAITING, Embeddings, make_routes
from qubic_lab.errors import BusyError, DeadlineError, ModelError, QubicLabError
from qubic_lab.model.embeddings import DIMENSIONS, MODEL, MOST_TOKENS

pytestmark = pytest.mark.anyio
TEXTS = ["How are you?", "a", "Three rivers flow into the sea, and a fourth one does not."]


@asynccontextmanager
async def served(embeddings: Embeddings) -> AsyncIterator[httpx2.AsyncClient]:
    app = FastAPI()
    problems.install(app)
    app.include_router(make_routes(embeddings))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as http:
        yield http
    embeddings.end()


async def ask(http: httpx2.AsyncClient, **body: Any) -> httpx2.Response:
    return await http.post("/v1/embeddings", json={"model": MODEL, **body})


@needs_embedder
async def test_vectors_are_those_of_the_projects_own_embedder() -> None:
    import openai

    async with served(Embeddings()) as http:
        found = (await ask(http, input=TEXTS)).json()
        packed = (await ask(http, input=TEXTS[0], encoding_format="base64")).json()
        long = await ask(http, input=["fine", "word " * (MOST_TOKENS - 1)])
        async with openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=http) as client:
            theirs = await client.embeddings.create(model=f"sentence-transformers/{MODEL}", input=TEXTS)
    vectors_ND = np.array([each["embedding"] for each in found["data"]], np.float32)
    assert vectors_ND.shape == (len(TEXTS), DIMENSIONS)
    assert np.allclose(np.linalg.norm(vectors_ND, axis=1), 1.0, atol=1e-6)
    assert np.allclose(vectors_ND, embedder().embed(TEXTS).vectors_ND, atol=1e-6)
    assert np.array_equal(np.array([each.embedding for each in theirs.data], np.float32), vectors_ND)
    assert np.array_equal(np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4"), vectors_ND[0])
    assert [each["index"] for each in found["data"]] == [0, 1, 2]
    tokens = sum(embedder().count_tokens(TEXTS))
    assert (found["usage"], theirs.usage.prompt_tokens) == ({"prompt_tokens": tokens, "total_tokens": tokens}, tokens)
    assert packed["usage"]["prompt_tokens"] == len(["[CLS]", "how", "are", "you", "?", "[SEP]"])
    error = long.json()["error"]
    assert (long.status_code, error["param"]) == (400, "input")
    assert "input 1 ('word" in error["message"] and "more than the 256 tokens" in error["message"]


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"input": [1, 2]}, 400, "input", "token ids cannot be embedded"),
        ({"input": [[1, 2], [3]]}, 400, "input", "check_embedding_ctx_length=False"),
        ({"input": ""}, 400, "input", "there is no text, or an empty one"),
        ({"input": []}, 400, "input", "there is no text, or an empty one"),
        ({"input": ["a"] * (MOST_TEXTS + 1)}, 400, None, "at most 2048"),
        ({"input": "a", "dimensions": 64}, 400, "dimensions", "384 dimensions and are not shortened"),
        ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "model": "text-embedding-3-small"}, 404, "model", f"ask {MODEL}"),
    ],
)
async def test_what_is_not_supported_is_refused_by_name(
    body: dict[str, Any], status: int, param: str | None, message: str
) -> None:
    async with served(Embeddings()) as http:
        response = await ask(http, **body)
    error = response.json()["error"]
    assert response.status_code == status and message in error["message"], response.text
    assert param is None or error["param"] == param


class Pool:
    """Workers that answer what they are told to, or raise it."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.may_go = answer, None

    def ask(self, question: Any, seconds: float) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def end(self) -> None:
        pass


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (TimeoutError("it took longer"), DeadlineError),
        (ConnectionError("it ended"), QubicLabError),
        (None, QubicLabError),
        ({"failure": "the embedder is not installed"}, ModelError),
    ],
)
async def test_a_worker_that_fails_is_an_error(answer: Any, error: type[Exception]) -> None:
    embeddings = Embeddings()
    embeddings._pool = Pool(answer)  # type: ignore[assignment]
    with pytest.raises(error):
        await embeddings.embed(["a"])


async def test_only_a_few_requests_wait_for_the_worker() -> None:
    embeddings = Embeddings()
    embeddings._pool = Pool({"failure": "later"})  # type: ignore[assignment]
    asked = await asyncio.gather(*(embeddings.embed(["a"]) for _ in range(MOST_WAITING + 3)), return_exceptions=True)
    assert [isinstance(each, BusyError) for each in asked] == [False] * (MOST_WAITING + 1) + [True] * 2
