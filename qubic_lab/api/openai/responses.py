"""`/v1/responses` in its plain-text form: one text or a list of messages in, one message out, whole or as events."""

import json
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from qubic_lab.api.openai.answerer import Answerer, ClientInfo
from qubic_lab.api.openai.consensus import CONSENSUS, NO_KEY, SIGN, Elector, Verdict, tell, voters_of
from qubic_lab.api.openai.errors import RESPONSES, FieldError
from qubic_lab.api.openai.forms import trace_of
from qubic_lab.api.openai.routes import STREAMED, Client, find_model, seed_of
from qubic_lab.api.openai.schemas import (
    DEFAULT_CHAT_TOKENS,
    FORM,
    MOST_MESSAGES,
    TOOLS,
    NewTokens,
    PlainText,
    Refused,
    Sampled,
    describe_refused,
)
from qubic_lab.api.openai.schemas import REFUSED as ALL_REFUSED
from qubic_lab.api.problems import problem_of
from qubic_lab.api.responses import EventStream, first_of, until_done
from qubic_lab.api.schemas import MOST_PROMPT_CHARACTERS, VISIBLE
from qubic_lab.core import ChatMessage, Completion
from qubic_lab.core import Request as LabRequest
from qubic_lab.errors import QubicLabError

Part: TypeAlias = str | Completion | Verdict | None
"""Of an answer: more text, its end, or a sign of life."""
REFUSED = ALL_REFUSED | {
    "background": Refused((False,), "ask with stream, and wait"),
    "conversation": Refused((), "send all turns as input"),
    "include": Refused(([], ["reasoning.encrypted_content"]), "leave it out"),
    "previous_response_id": Refused((), "nothing is stored: send all turns as input"),
    "prompt": Refused((), "send the text as input"),
    "reasoning": Refused(({},), "leave it out; the model's template decides how it thinks"),
    "text": Refused(({}, {"format": {"type": "text"}}), FORM),
    "tool_choice": Refused(("none", "auto"), TOOLS),
    "tools": Refused(([],), TOOLS),
    "top_logprobs": Refused((0,), "ask /v1/chat/completions"),
    "truncation": Refused(("disabled",), "send fewer turns"),
}


class ContentText(BaseModel):
    """A part of a message."""

    type: Annotated[Literal["input_text", "output_text"], Field(description="whose text it is")]
    text: Annotated[PlainText, Field(description="the text")]


class InputMessage(BaseModel):
    """A turn of the conversation; developer is another name of system."""

    type: Annotated[Literal["message"], Field(description="always the same")] = "message"
    role: Annotated[Literal["user", "assistant", "system", "developer"], Field(description="whose turn it is")]
    content: PlainText | Annotated[list[ContentText], Field(max_length=MOST_MESSAGES)]

    def to_core(self) -> ChatMessage:
        """Return the message that the model gets."""
        text = self.content if isinstance(self.content, str) else "\n".join(each.text for each in self.content)
        return ChatMessage("system" if self.role == "developer" else self.role, text)


class ResponseQuery(Sampled):
    """A conversation to continue."""

    model_config = ConfigDict(json_schema_extra=describe_refused(REFUSED))
    refused = REFUSED

    input: Annotated[
        Annotated[str, Field(max_length=MOST_PROMPT_CHARACTERS, pattern=VISIBLE)]
        | Annotated[list[InputMessage], Field(min_length=1, max_length=MOST_MESSAGES)],
        Field(description="the user's text, or all turns so far", examples=["Name three rivers."]),
    ]
    instructions: Annotated[PlainText | None, Field(description="a system message before the input")] = None
    max_output_tokens: Annotated[
        NewTokens | None, Field(description=f"most tokens of the answer; {DEFAULT_CHAT_TOKENS} if left out")
    ] = None
    stream: Annotated[bool | None, Field(description="answer with server-sent events")] = None
    metadata: Annotated[dict[str, str] | None, Field(description="comes back as it is")] = None

    def to_core(self, seed: int) -> LabRequest:
        """Return the request for the model."""
        turns = [ChatMessage("user", self.input)] if isinstance(self.input, str) else [m.to_core() for m in self.input]
        first = [ChatMessage("system", self.instructions)] if self.instructions else []
        sampling = self.sampling(seed, self.max_output_tokens or DEFAULT_CHAT_TOKENS)
        return LabRequest(messages=(*first, *turns), sampling=sampling)


class ResponseObject(BaseModel):
    """The answer; its text is in the content of the message in `output`."""

    model_config = ConfigDict(extra="allow")

    id: Annotated[str, Field(description="of this answer")]
    object: Annotated[Literal["response"], Field(description="always the same")]
    created_at: Annotated[int, Field(description="when it was made, Unix time in seconds")]
    status: Annotated[Literal["completed", "incomplete"], Field(description="incomplete: it has max_output_tokens")]
    model: Annotated[str, Field(description="the model that answered")]
    output: Annotated[list[dict[str, Any]], Field(description="one message, whose content has the text")]
    usage: Annotated[dict[str, Any], Field(description="numbers of tokens")]
    qubic: Annotated[dict[str, Any], Field(description="what OpenAI's form has no place for: the seed, or the vote")]


def make_routes(answerer: Answerer, elector: Elector | None = None) -> APIRouter:
    """Return the route; without an elector there is no consensus."""
    routes = APIRouter(prefix="/v1", tags=["openai"], responses=RESPONSES)

    @routes.post("/responses", response_model=ResponseObject, responses=STREAMED)
    async def respond(query: ResponseQuery, request: Request, client: Client) -> Response:
        """Return the next message of a conversation, in plain text; nothing is stored."""
        seed = seed_of(query.seed, client.key)
        asked, record = query.to_core(seed), ResponseRecord(query, seed, client.traced_s)
        voters = voters_of(query.model) if elector else None
        if elector is not None and voters is not None:
            if client.key:
                raise FieldError(
                    f"Idempotency-Key is not supported by the model {CONSENSUS}: {NO_KEY}", "Idempotency-Key"
                )
            parts: AsyncGenerator[Part, None] = tell(elector.hold(asked, voters))
        else:
            record.model = find_model(await answerer.models(), query.model).name
            parts = _parts(answerer, asked, client.part(0), record.model, whole=not query.stream)
        if query.stream:
            return EventStream(_lines(await until_done(request, first_of(parts)), parts, record), parts.aclose)
        return JSONResponse(await until_done(request, _whole(parts, record)))

    return routes


async def _parts(
    answerer: Answerer, asked: LabRequest, client: ClientInfo, model: str, *, whole: bool
) -> AsyncGenerator[Part, None]:
    async with aclosing(answerer.answer(asked, 1, client=client, model=model, whole=whole)) as pieces:
        async for _, piece in pieces:
            yield piece if isinstance(piece, Completion) else piece.text


async def _whole(parts: AsyncGenerator[Part, None], record: "ResponseRecord") -> dict[str, Any]:
    async with aclosing(parts):
        [end] = [part async for part in parts if isinstance(part, Completion | Verdict)]
    return record.whole(end)


async def _lines(first: Part, rest: AsyncGenerator[Part, None], record: "ResponseRecord") -> AsyncGenerator[str, None]:
    """Yield the events of a stream; an error becomes the last one."""
    for event in record.begin():
        yield event
    try:
        async with aclosing(rest):
            part: Part = first
            while not isinstance(part, Completion | Verdict):
                if part is None:
                    yield SIGN
                elif part:
                    yield record.delta(part)
                part = await anext(rest)
        for event in record.end(record.whole(part)):
            yield event
    except QubicLabError as error:
        yield record.failed(error)


class ResponseRecord:
    """A response while it is made: its object, and the events that tell of it, each with its number."""

    def __init__(self, asked: ResponseQuery, seed: int, traced_s: float | None = None) -> None:
        self.model = asked.model
        self._asked, self._seed, self._traced_s, self._number = asked, seed, traced_s, 0
        self._id, self._item, self._created = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}", int(time.time())
        self._place = {"item_id": self._item, "output_index": 0, "content_index": 0}

    def begin(self) -> Iterator[str]:
        """Yield the events before the text."""
        yield self._event("response.created", response=self.object())
        yield self._event("response.in_progress", response=self.object())
        yield self._event("response.output_item.added", output_index=0, item=self._message(None, "in_progress"))
        yield self._event("response.content_part.added", **self._place, part=_part(""))

    def delta(self, text: str) -> str:
        """Return the event of more text."""
        return self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])

    def end(self, whole: dict[str, Any]) -> Iterator[str]:
        """Yield the events after the text, given the whole object."""
        message = whole["output"][0]
        part = message["content"][0]
        yield self._event("response.output_text.done", **self._place, text=part["text"], logprobs=[])
        yield self._event("response.content_part.done", **self._place, part=part)
        yield self._event("response.output_item.done", output_index=0, item=message)
        yield self._event(f"response.{whole['status']}", response=whole)

    def failed(self, error: QubicLabError) -> str:
        """Return the event of an error."""
        found = problem_of(error)
        code = "server_error" if found.status_code >= 500 else "invalid_prompt"
        told = {
            "code": "rate_limit_exceeded" if found.status_code == 429 else code,
            "message": found.openai["error"]["message"],
        }
        return self._event("response.failed", response=self.object() | {"status": "failed", "error": told})

    def whole(self, end: Completion | Verdict) -> dict[str, Any]:
        """Return the object of the whole response."""
        cut = end.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        new_tokens = end.new_tokens if isinstance(end, Verdict) else len(end.token_ids)
        return self.object() | {
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self._message(end.text, status)],
            "usage": {
                "input_tokens": end.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0 if isinstance(end, Verdict) else end.cached_tokens},
                "output_tokens": new_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": end.prompt_tokens + new_tokens,
            },
            "qubic": {"seed": self._seed} | self._trace(end) | (end.qubic if isinstance(end, Verdict) else {}),
        }

    def object(self) -> dict[str, Any]:
        """Return the object before there is an answer."""
        asked = self._asked
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": self.model,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    def _trace(self, end: Completion | Verdict) -> dict[str, Any]:
        if self._traced_s is None:
            return {}
        ended = [end] if isinstance(end, Completion) else []
        return {"trace": trace_of(ended, time.perf_counter() - self._traced_s)}

    def _message(self, text: str | None, status: str) -> dict[str, Any]:
        content = [] if text is None else [_part(text)]
        return {"id": self._item, "type": "message", "role": "assistant", "status": status, "content": content}

    def _event(self, kind: str, **data: Any) -> str:
        event = {"type": kind, "sequence_number": self._number, **data}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
