"""Requests and replies of the pipeline's service, for all kinds of clients."""

from dataclasses import dataclass, fields
from typing import Any

from qubic_lab.core import (
    Completion,
    FinishReason,
    Request,
    SamplingParams,
    ScoredToken,
    StreamedToken,
    TopToken,
)
from qubic_lab.errors import InputError, check_choice
from qubic_lab.wire import pipeline_pb2 as pb
from qubic_lab.wire.channel import MOST_BYTES

SERVICE = "qubic_lab.pipeline.v1.Pipeline"
"""The pipeline's name in the health service: SERVING while a model is loaded."""
NO_PROGRESS_S = 30.0
"""Time without progress of any request after which a request fails, and time limit for a model when connecting."""

_SAMPLING = frozenset(field.name for field in fields(SamplingParams))
_REQUEST = frozenset(field.name for field in fields(Request)) - {"sampling"}


@dataclass(frozen=True)
class Scores:
    """The tokens of a text, and the log-probability of each but the first after those before it."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class PipelineAnswer:
    """A completion and the request's number on its pipeline."""

    number: int
    completion: Completion


def as_request(prompt: str | Request, options: dict[str, Any]) -> Request:
    """Return the request for a prompt and keywords such as `max_new_tokens`.

    Raises:
        InputError: an option is unknown (with a suggestion) or out of range, or is given together with a ready request.
    """
    if isinstance(prompt, Request):
        if options:
            raise InputError(f"options {', '.join(options)} are given together with a ready request: put them into it")
        return prompt
    for name in options:
        check_choice("option", name, _SAMPLING | _REQUEST)
    stop = options.get("stop", ())
    sampling = {name: value for name, value in options.items() if name in _SAMPLING}
    rest = {name: value for name, value in options.items() if name in _REQUEST}
    for name in {"token_ids", "forced_token_ids", "messages"} & rest.keys():
        rest[name] = tuple(rest[name])
    if isinstance(biases := sampling.get("logit_bias"), dict):
        sampling["logit_bias"] = tuple(biases.items())
    sampling["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    return Request(prompt=prompt, sampling=SamplingParams(**sampling), **rest)


def generate_message(
    request: Request, id: str, deadline_s: float, samples: int = 1, *, whole: bool
) -> pb.GenerateRequest:
    """Return the message that asks for an answer; with `whole` for its end alone, which has all of it.

    Raises:
        InputError: the request is too large to be sent.
    """
    message = pb.GenerateRequest(
        prompt=request.prompt,
        token_ids=request.token_ids,
        raw=request.raw,
        sampling=pb.Sampling(
            **{name: getattr(request.sampling, name) for name in _SAMPLING - {"logit_bias"}},
            logit_bias=dict(request.sampling.logit_bias),
        ),
        id=id,
        deadline_s=deadline_s,
        samples=samples,
        forced_token_ids=request.forced_token_ids,
        whole=whole,
        messages=[pb.ChatMessage(role=each.role, content=each.content) for each in request.messages],
        prompt_logprobs=request.prompt_logprobs,
    )
    if (size := message.ByteSize()) > MOST_BYTES:
        raise InputError(
            f"the request has {size} bytes: at most {MOST_BYTES // 2**20} MiB can be sent, give a shorter prompt"
        )
    return message


def scores_of(completion: Completion) -> Scores:
    """Return the scores of an answer's prompt."""
    tokens = completion.prompt_scores
    return Scores(
        tuple(token.id for token in tokens), tuple(token.logprob for token in tokens if token.logprob is not None)
    )


def no_model_text(name: str, seconds: float) -> str:
    """Return the message that a pipeline has no model after some seconds."""
    return f"{name} has loaded no model within {seconds:g} s: see what its ranks print, and start them with --model"


def token_of(token: pb.Token) -> StreamedToken:
    """Convert a token message."""
    logprob = token.logprob if token.HasField("logprob") else None
    return StreamedToken(token.id, token.text, logprob, _top_of(token), token.raw)


def _scored_of(token: pb.ScoredToken) -> ScoredToken:
    logprob = token.logprob if token.HasField("logprob") else None
    return ScoredToken(token.id, token.raw, logprob, _top_of(token))


def _top_of(token: pb.Token | pb.ScoredToken) -> tuple[TopToken, ...]:
    return tuple(TopToken(top.id, top.logprob, top.raw) for top in token.top)


def answer_of(request: Request, end: pb.End) -> PipelineAnswer:
    """Return the whole answer from the end message."""
    finish: FinishReason = "stop" if end.finish_reason == "stop" else "length"
    completion = Completion(
        prompt=request.prompt,
        text=end.text,
        token_ids=tuple(end.token_ids),
        finish_reason=finish,
        prompt_tokens=end.prompt_tokens,
        ttft_ms=end.ttft_ms,
        queue_ms=end.queue_ms,
        tokens_per_s=end.tokens_per_s,
        logprobs=tuple(end.logprobs),
        prompt_scores=tuple(map(_scored_of, end.prompt)),
        drafted_tokens=end.drafted_tokens,
        cached_tokens=end.cached_tokens,
    )
    return PipelineAnswer(end.request, completion)
