"""`/tokenize`, `/detokenize` and `/tokenizer_info`, for harnesses that have no files of the model, as vLLM has them."""

import asyncio
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Annotated, Any, Self

from fastapi import APIRouter
from pydantic import BaseModel, Field, model_validator

from qubic_lab.api.openai.schemas import MOST_MESSAGES, ChatMessage, TokenIds, messages_of
from qubic_lab.api.schemas import MOST_PROMPT_CHARACTERS
from qubic_lab.core import Request
from qubic_lab.pipeline.text import Tokenizer

Count = Annotated[int, Field(description="number of tokens")]
Tokens = Annotated[list[int], Field(description="ids in the model's vocabulary")]


class TokenizeQuery(BaseModel):
    """A text, or a chat, which gets the model's template."""

    prompt: Annotated[
        Annotated[str, Field(max_length=MOST_PROMPT_CHARACTERS)] | None, Field(description="the text")
    ] = None
    messages: Annotated[
        Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)] | None,
        Field(description="the chat, in place of a text"),
    ] = None
    add_special_tokens: Annotated[
        bool, Field(description="with what the model wants before or after each text; not of a chat")
    ] = True

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt and messages: give one of them")
        return self


class Tokenized(BaseModel):
    """The tokens of a text."""

    count: Count
    tokens: Tokens


class DetokenizeQuery(BaseModel):
    """Tokens."""

    tokens: Annotated[TokenIds, Field(description="ids in the model's vocabulary")]


class Detokenized(BaseModel):
    """The text of tokens."""

    prompt: Annotated[str, Field(description="the text, special tokens included")]


def _shown(answer: dict[str, Any], body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what a route says of itself by an example."""
    asked = {"requestBody": {"content": {"application/json": {"example": body}}}} if body else None
    return {"openapi_extra": asked, "responses": {200: {"content": {"application/json": {"example": answer}}}}}


def make_routes(load: Callable[[], Tokenizer]) -> APIRouter:
    """Return the routes; the tokenizer is loaded with the first request, while further ones wait."""
    routes, loading, loaded = APIRouter(tags=["openai"]), Lock(), cache(load)

    def tokenizer() -> Tokenizer:
        with loading:
            return loaded()

    @routes.post("/tokenize", response_model=Tokenized, **_shown({"count": 1, "tokens": [19556]}, {"prompt": "Hello"}))
    async def tokenize(query: TokenizeQuery) -> Tokenized:
        """Return the tokens of a text or a chat, as the model gets them."""

        def encode() -> list[int]:
            if query.messages is not None:
                return list(tokenizer().encode(Request(messages=messages_of(query.messages))))
            return tokenizer().encode_text(query.prompt or "", query.add_special_tokens)

        tokens = await asyncio.to_thread(encode)
        return Tokenized(count=len(tokens), tokens=tokens)

    @routes.post("/detokenize", response_model=Detokenized, **_shown({"prompt": "Hello"}, {"tokens": [19556]}))
    async def detokenize(query: DetokenizeQuery) -> Detokenized:
        """Return the text of tokens."""
        return Detokenized(prompt=await asyncio.to_thread(lambda: tokenizer().whole_text(query.tokens)))

    @routes.get("/tokenizer_info", **_shown({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}))
    async def info() -> dict[str, Any]:
        """Return the tokenizer's special tokens and its chat template."""
        return await asyncio.to_thread(lambda: tokenizer().about())

    return routes
