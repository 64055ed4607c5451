"""`/v1/embeddings`: vectors of texts by the default embedder, in a worker process of its own."""

import asyncio
import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, field_validator

from qubic_lab.api.openai.errors import RESPONSES, FieldError, UnknownModelError
from qubic_lab.api.responses import until_done
from qubic_lab.errors import BusyError, DeadlineError, ModelError, QubicLabError
from qubic_lab.killable import WorkerPool
from qubic_lab.model.embedding_worker import MODULE
from qubic_lab.model.embeddings import DIMENSIONS, MODEL, MOST_TOKENS

MOST_TEXTS = 2_048
SECONDS = 120.0
MOST_WAITING = 4

Text = Annotated[str, Field(min_length=1)]


class EmbeddingRequest(BaseModel):
    """Texts to embed."""

    model: Annotated[str, Field(description=f"{MODEL}", examples=[MODEL])]
    input: Annotated[
        Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)],
        Field(
            description=f"a text or a list of texts, of at most {MOST_TOKENS} tokens each", examples=["How are you?"]
        ),
    ]
    encoding_format: Annotated[
        Literal["float", "base64"], Field(description="base64: of little-endian 32-bit floats")
    ] = "float"
    dimensions: Annotated[
        Literal[384] | None, Field(description="vectors are not shortened, so only their own number")
    ] = None

    @field_validator("input", mode="before")
    @classmethod
    def _texts_only(cls, given: Any) -> Any:
        texts = given if isinstance(given, list) else [given]
        if any(isinstance(each, int | list) for each in texts):
            raise ValueError("token ids cannot be embedded: send texts (LangChain: check_embedding_ctx_length=False)")
        if not texts or "" in texts:
            raise ValueError("there is no text, or an empty one: send at least one character")
        return given

    @field_validator("dimensions", mode="before")
    @classmethod
    def _whole(cls, given: Any) -> Any:
        if given not in (None, DIMENSIONS):
            raise ValueError(f"vectors of {MODEL} have {DIMENSIONS} dimensions and are not shortened: leave it out")
        return given


class Embedding(BaseModel):
    """The vector of one text, of length 1."""

    object: Annotated[Literal["embedding"], Field(description="always the same")] = "embedding"
    index: Annotated[int, Field(description="number of the text, from 0 on")]
    embedding: Annotated[list[float] | str, Field(description="the vector, as numbers or in base64")]


class EmbeddingUsage(BaseModel):
    """The tokens of all texts."""

    prompt_tokens: Annotated[int, Field(description="tokens of all texts")]
    total_tokens: Annotated[int, Field(description="the same")]


class EmbeddingResponse(BaseModel):
    """The vectors in the order of the texts."""

    object: Annotated[Literal["list"], Field(description="always the same")] = "list"
    data: list[Embedding]
    model: Annotated[str, Field(description="the model that made the vectors")]
    usage: EmbeddingUsage


@dataclass(frozen=True, eq=False)
class EmbeddedTexts:
    """Unit vectors (N, 384) of N texts, and the tokens of each."""

    vectors_ND: npt.NDArray[np.float32]
    tokens: tuple[int, ...]


class Embeddings:
    """Embeds texts in a worker process, which starts with the first request; a few requests wait for it."""

    def __init__(self) -> None:
        self._pool = WorkerPool(MODULE, 1)
        self._threads = ThreadPoolExecutor(1, "embeddings")
        self._waiting = 0

    async def embed(self, texts: Sequence[str]) -> EmbeddedTexts:
        """Return the vectors of texts.

        Raises:
            BusyError: too many requests wait.
            DeadlineError: it takes too long.
            InputError: a text is longer than the model reads.
            ModelError: the embedder is not installed.
            QubicLabError: there is no worker.
        """
        if self._waiting > MOST_WAITING:
            raise BusyError(f"{self._waiting} requests for embeddings are under way: try again later", 5.0)
        self._waiting += 1
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, list(texts))
        finally:
            self._waiting -= 1
        if "failure" in answer:
            raise ModelError(answer["failure"])
        for number, (cut, text) in enumerate(zip(answer["cut"], texts, strict=True)):
            if cut:
                what = f"input {number} ({text[:40]!r} …)" if len(texts) > 1 else "input"
                raise FieldError(f"{what} has more than the {MOST_TOKENS} tokens that {MODEL} reads: split it", "input")
        vectors = np.frombuffer(base64.b64decode(answer["vectors"]), "<f4").reshape(len(texts), DIMENSIONS)
        return EmbeddedTexts(vectors, tuple(answer["tokens"]))

    def end(self) -> None:
        """End the worker, for good."""
        self._pool.end()

    def _ask(self, texts: list[str]) -> dict[str, Any]:
        try:
            answer = self._pool.ask(texts, SECONDS)
        except TimeoutError as error:
            raise DeadlineError(f"the texts were not embedded ({error}): send fewer or shorter ones") from error
        except OSError as error:
            raise QubicLabError(f"the texts were not embedded: {error}") from error
        if answer is None:
            raise QubicLabError("the texts were not embedded: the worker failed")
        found: dict[str, Any] = answer
        return found


def make_routes(embeddings: Embeddings) -> APIRouter:
    """Return the route."""
    routes = APIRouter(prefix="/v1", tags=["openai"], responses=RESPONSES)

    @routes.post("/embeddings", response_model=EmbeddingResponse)
    async def embed(asked: EmbeddingRequest, request: Request) -> Response:
        """Return a vector of length 1 for each text, by all-MiniLM-L6-v2; their dot products are cosines."""
        if asked.model not in (MODEL, f"sentence-transformers/{MODEL}"):
            raise UnknownModelError(f"model {asked.model[:100]!r} does not embed texts: ask {MODEL}")
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        embedded = await until_done(request, embeddings.embed(texts))
        vectors = [_encoded(vector, asked.encoding_format) for vector in embedded.vectors_ND]
        data = [{"object": "embedding", "index": number, "embedding": each} for number, each in enumerate(vectors)]
        total = sum(embedded.tokens)
        usage = {"prompt_tokens": total, "total_tokens": total}
        # Not as a checked model: that would take longer than the vectors.
        return JSONResponse({"object": "list", "data": data, "model": MODEL, "usage": usage})

    return routes


def _encoded(vector_D: npt.NDArray[np.float32], form: str) -> list[float] | str:
    return base64.b64encode(vector_D.tobytes()).decode() if form == "base64" else vector_D.tolist()
