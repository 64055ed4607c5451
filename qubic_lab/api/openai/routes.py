"""The routes: what a request asks becomes answers of whoever answers, whole or as a stream."""

import hashlib
import math
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.responses import JSONResponse

from qubic_lab import core
from qubic_lab.api.openai.answerer import Answerer, ClientInfo, ModelCard, Piece, together
from qubic_lab.api.openai.consensus import CONSENSUS, Elector, respond_by_vote, voters_of
from qubic_lab.api.openai.errors import RESPONSES, FieldError, UnknownModelError
from qubic_lab.api.openai.forms import Answer, ChatForm, Form, TextForm, event_of, trace_of, usage_of
from qubic_lab.api.openai.schemas import (
    DEFAULT_CHAT_TOKENS,
    DEFAULT_TEXT_TOKENS,
    ChatCompletion,
    ChatQuery,
    Model,
    ModelList,
    TextCompletion,
    TextQuery,
    messages_of,
)
from qubic_lab.api.problems import problem_of
from qubic_lab.api.responses import EventStream, HangUp, IdempotencyKey, first_of, key_of, until_done
from qubic_lab.core import Completion
from qubic_lab.errors import QubicLabError

DEFAULT = "default"
ModelName = Annotated[str, Path(description="a name of /v1/models")]
MOST_ANSWERS = 2_048
"""Of one request: prompts × samples."""
RANDOM_SEEDS = 2**31
Trace = Annotated[
    Literal["0", "1"] | None, Header(description="1: say in qubic.trace where the time of each answer went")
]
_DATA = {"type": "string", "description": "a chunk of the answer as JSON; the last one is [DONE]"}
_CHUNK = {"type": "object", "properties": {"data": _DATA}, "required": ["data"]}
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": _CHUNK}}}}


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Attributes:
        requests: one for each prompt.
        samples: answers to each; the `kept` best are given, each as often as `copies` says.
        seed: of the first sample of each prompt.
        form: how the answers are shown.
        echo: whether each answer begins with its prompt.
        stream: as events; `with_usage` ends them with the numbers of tokens.
        held: whether the stream begins only when all answers are whole.
    """

    requests: list[core.Request]
    samples: int
    kept: int
    seed: int
    form: Form
    echo: bool = False
    stream: bool = False
    with_usage: bool = False
    copies: int = 1
    held: bool = False


async def client_of(
    request: Request,
    idempotency_key: IdempotencyKey = None,
    x_qubic_trace: Trace = None,
    x_qubic_hang_up: HangUp = None,
) -> ClientInfo:
    """Return who sent a request, and what its headers ask for."""
    key = key_of(idempotency_key, name := getattr(request.state, "client", "")) or ""
    body = hashlib.sha256(await request.body()).hexdigest() if key else ""
    came_s = time.perf_counter() if x_qubic_trace == "1" else None
    return ClientInfo(name, key, body, came_s, x_qubic_hang_up, _timeout_s(request.headers))


def _timeout_s(headers: Mapping[str, str]) -> float | None:
    """Return how long OpenAI's library for Python or JavaScript waits for an answer; None: it does not say."""
    for name in ("x-stainless-read-timeout", "x-stainless-timeout"):
        with suppress(ValueError):
            if 0.0 < (timeout_s := float(headers.get(name, ""))) < math.inf:
                return timeout_s
    return None


Client = Annotated[ClientInfo, Depends(client_of)]


def make_routes(answerer: Answerer, elector: Elector | None = None) -> APIRouter:
    """Return the routes; without an elector there is no consensus."""
    routes = APIRouter(prefix="/v1", tags=["openai"], responses=RESPONSES)

    @routes.get("/models", response_model=ModelList)
    async def models() -> ModelList:
        """Return the models that can be asked."""
        cards = await answerer.models()
        others = [DEFAULT] if elector is None else [DEFAULT, CONSENSUS]
        return ModelList(data=[_model(card.name, card) for card in cards] + [_model(name, cards[0]) for name in others])

    @routes.get("/models/{name:path}", response_model=Model)
    async def model(name: ModelName) -> Model:
        """Return one of the models that can be asked."""
        is_vote = elector is not None and voters_of(name) is not None
        return _model(name, find_model(await answerer.models(), DEFAULT if is_vote else name))

    @routes.post("/chat/completions", response_model=ChatCompletion, responses=STREAMED)
    async def chat(query: ChatQuery, request: Request, client: Client) -> Response:
        """Return the next message of a chat, by the model's own template."""
        return await _respond(answerer, elector, query.model, asked_of_chat(query, client.key), request, client)

    @routes.post("/completions", response_model=TextCompletion, responses=STREAMED)
    async def complete(query: TextQuery, request: Request, client: Client) -> Response:
        """Return what follows each of some texts, or token ids, without a template."""
        return await _respond(answerer, elector, query.model, asked_of_text(query, client.key), request, client)

    return routes


def find_model(cards: list[ModelCard], name: str) -> ModelCard:
    """Return the model of a name.

    Raises:
        UnknownModelError: there is none; the message names all.
    """
    found = cards if name == DEFAULT else [card for card in cards if card.name == name]
    if not found:
        known = ", ".join([*(card.name for card in cards), DEFAULT])
        raise UnknownModelError(f"there is no model {name[:100]!r} here: ask one of {known}")
    return found[0]


def asked_of_chat(query: ChatQuery, key: str = "") -> Asked:
    """Return what a chat asks for; an InputError if its fields contradict each other."""
    seed, samples = seed_of(query.seed, key), query.n or 1
    most = query.max_completion_tokens or query.max_tokens or DEFAULT_CHAT_TOKENS
    logprobs = bool(query.logprobs or query.top_logprobs)
    sampling = query.sampling(seed, most, logprobs, query.top_logprobs or 0)
    request = core.Request(messages=messages_of(query.messages), sampling=sampling)
    form = ChatForm(logprobs)
    return Asked([request], samples, samples, seed, form, stream=bool(query.stream), with_usage=query.with_usage)


def asked_of_text(query: TextQuery, key: str = "") -> Asked:
    """Return what a completion asks for.

    Raises:
        InputError: its fields contradict each other.
    """
    seed, kept, echo = seed_of(query.seed, key), query.n or 1, bool(query.echo)
    samples, copies = max(kept, query.best_of or 0), 1
    prompts, most = query.prompts, DEFAULT_TEXT_TOKENS if query.max_tokens is None else query.max_tokens
    if most == 0:  # all answers are the same
        samples, kept, copies = 1, 1, kept
    if len(prompts) * samples * copies > MOST_ANSWERS:
        raise FieldError(
            f"{len(prompts)} prompts with {samples * copies} answers each are too many: at most {MOST_ANSWERS} in all",
            "n",
        )
    scored = query.logprobs if echo and query.logprobs is not None else None
    if scored is None and (most == 0 or (echo and not isinstance(prompts[0], str))):
        scored = 0  # the texts of the ids come with their scores
    logprobs = query.logprobs is not None
    sampling = query.sampling(seed, most, logprobs or samples > kept, query.logprobs or 0)
    requests = [
        core.Request(prompt=prompt, raw=True, sampling=sampling, prompt_logprobs=scored)
        if isinstance(prompt, str)
        else core.Request(token_ids=prompt, sampling=sampling, prompt_logprobs=scored)
        for prompt in prompts
    ]
    form = TextForm(logprobs, query.logprobs or 0)
    held = samples > kept or (echo and scored is not None)  # the best, or the prompt's tokens, are known at the end
    return Asked(requests, samples, kept, seed, form, echo, bool(query.stream), query.with_usage, copies, held)


def seed_of(given: int | None, key: str) -> int:
    """Return the seed of a request: the given one, else one that an idempotency key decides, else a random one."""
    if given is not None:
        return given
    return int(_hash(key)[:8], 16) % RANDOM_SEEDS if key else secrets.randbelow(RANDOM_SEEDS)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


async def _respond(
    answerer: Answerer, elector: Elector | None, name: str, asked: Asked, request: Request, client: ClientInfo
) -> Response:
    """Answer a request; one that fails before its first token gets its status, also if it is a stream."""
    voters = voters_of(name) if elector else None
    if elector is not None and voters is not None:
        return await respond_by_vote(elector, voters, asked, Head.of(asked, ModelCard(name), client), request, client)
    card = find_model(await answerer.models(), name)
    whole = not asked.stream and not asked.requests[0].sampling.logprobs
    pieces = together(
        [
            answerer.answer(each, asked.samples, client=client.part(number), model=card.name, whole=whole)
            for number, each in enumerate(asked.requests)
        ]
    )
    head = Head.of(asked, card, client)
    if asked.held or not asked.stream:
        response = await until_done(request, _whole(pieces, asked, head))
        return EventStream(_lines_of(response, asked, head)) if asked.stream else JSONResponse(response)
    first = await until_done(request, first_of(pieces))
    return EventStream(_lines(first, pieces, asked, head), pieces.aclose)  # the lines may never be asked for


@dataclass(frozen=True)
class Head:
    """What all parts of a response have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None
    seed: int
    traced_s: float | None = None

    @classmethod
    def of(cls, asked: Asked, card: ModelCard, client: ClientInfo) -> "Head":
        """Return the head of a response: a new one, or that of an earlier request with the same key."""
        fingerprint = f"fp_{card.hash[:12]}" if card.hash else None
        number = f"{asked.form.prefix}-{_hash(client.key)[:32] if client.key else uuid.uuid4().hex}"
        return cls(number, int(time.time()), card.name, fingerprint, asked.seed, client.traced_s)

    def qubic(self, *ended: Completion) -> dict[str, Any]:
        """Return what OpenAI's form has no place for, with the trace of answers that have ended."""
        trace = {} if self.traced_s is None else {"trace": trace_of(ended, time.perf_counter() - self.traced_s)}
        return {"seed": self.seed} | trace

    def show(self, object: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return a response or a chunk of one."""
        shown = {"id": self.id, "object": object, "created": self.created, "model": self.model}
        return {**shown, "system_fingerprint": self.system_fingerprint, "choices": choices, **more}


async def _whole(pieces: AsyncGenerator[tuple[int, Piece], None], asked: Asked, head: Head) -> dict[str, Any]:
    """Return the whole response."""
    answers = [[Answer() for _ in range(asked.samples)] for _ in asked.requests]
    async with aclosing(pieces):
        async for prompt, (sample, item) in pieces:
            answer = answers[prompt][sample]
            if isinstance(item, Completion):
                answer.completion = item
                answer.echo = _prompt_text(asked.requests[prompt], item) if asked.echo else ""
            else:
                answer.tokens.append(item)
    usage = usage_of((answer.whole for of_prompt in answers for answer in of_prompt), asked.samples)
    if asked.samples > asked.kept:  # the most likely ones are shown
        answers = [sorted(each, key=lambda answer: -answer.mean_logprob)[: asked.kept] for each in answers]
    shown = [answer for of_prompt in answers for answer in of_prompt * asked.copies]
    choices = [asked.form.choice(index, answer) for index, answer in enumerate(shown)]
    qubic = head.qubic(*(answer.whole for answer in shown))
    return head.show(asked.form.whole, choices, usage=usage, qubic=qubic)


async def _lines(
    first: tuple[int, Piece], pieces: AsyncGenerator[tuple[int, Piece], None], asked: Asked, head: Head
) -> AsyncGenerator[str, None]:
    """Yield the events of a stream; an error becomes the last one before the end."""
    form, no_usage = asked.form, {"usage": None} if asked.with_usage else {}
    begun: set[int] = set()
    ended: dict[int, Completion] = {}

    def line(choice: dict[str, Any], **more: Any) -> str:
        return event_of(head.show(form.chunk, [choice], **no_usage, **more))

    try:
        async with aclosing(_after(first, pieces)) as all_pieces:
            async for prompt, (sample, item) in all_pieces:
                index = prompt * asked.samples + sample
                if index not in begun:
                    begun.add(index)
                    opening = form.first(index, asked.requests[prompt].prompt if asked.echo else "")
                    if opening is not None:
                        yield line(opening)
                if isinstance(item, Completion):
                    ended[index] = item
                    yield line(form.last(index, item.finish_reason), qubic=head.qubic(item))
                elif item.text or item.logprob is not None:
                    yield line(form.next(index, item))
        if asked.with_usage:
            usage = usage_of([ended[index] for index in sorted(ended)], asked.samples)
            yield event_of(head.show(form.chunk, [], usage=usage))
    except QubicLabError as error:
        yield event_of(problem_of(error).openai)
    yield "data: [DONE]\n\n"


async def _lines_of(response: dict[str, Any], asked: Asked, head: Head) -> AsyncGenerator[str, None]:
    """Yield whole answers as the events of a stream."""
    no_usage = {"usage": None} if asked.with_usage else {}
    for choice in response["choices"]:
        yield event_of(head.show(asked.form.chunk, [choice], **no_usage, qubic=response["qubic"]))
    if asked.with_usage:
        yield event_of(head.show(asked.form.chunk, [], usage=response["usage"]))
    yield "data: [DONE]\n\n"


async def _after(
    first: tuple[int, Piece], rest: AsyncGenerator[tuple[int, Piece], None]
) -> AsyncGenerator[tuple[int, Piece], None]:
    async with aclosing(rest):
        yield first
        async for each in rest:
            yield each


def _prompt_text(request: core.Request, completion: Completion) -> str:
    """Return the text of a prompt, which may have been given as token ids."""
    if request.prompt:
        return request.prompt
    return b"".join(token.raw for token in completion.prompt_scores).decode(errors="replace")


def _model(name: str, card: ModelCard) -> Model:
    return Model(id=name, created=card.since_s)
