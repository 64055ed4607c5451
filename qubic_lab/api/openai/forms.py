"""The two forms of answers: chats and texts, whole or as the chunks of a stream. Plain values in, plain values out."""

import codecs
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from qubic_lab.core import Completion, ScoredToken, StreamedToken

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
LEAST_LOGPROB = -9999.0
"""JSON has no infinity; OpenAI has this number in its place."""


@dataclass
class Answer:
    """One of the answers so far: its tokens, if they were asked for, and its end; `echo` is the prompt's text."""

    echo: str = ""
    tokens: list[StreamedToken] = field(default_factory=list)
    completion: Completion | None = None

    @property
    def whole(self) -> Completion:
        """The end of an answer that has ended."""
        assert self.completion is not None
        return self.completion

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability of its tokens, by which the best of several is chosen."""
        logprobs = self.whole.logprobs
        return sum(logprobs) / len(logprobs) if logprobs else -math.inf


class Form(Protocol):
    """How answers are shown."""

    prefix: str
    """Of the ids."""
    whole: str
    """The `object` of a whole response."""
    chunk: str
    """The `object` of a part of a stream."""

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """Return a whole answer."""

    def first(self, index: int, echo: str) -> dict[str, Any] | None:
        """Return what a stream says of an answer before its first token."""

    def next(self, index: int, token: StreamedToken) -> dict[str, Any]:
        """Return a token of a stream."""

    def last(self, index: int, reason: str) -> dict[str, Any]:
        """Return the end of an answer in a stream."""


@dataclass(frozen=True)
class ChatForm:
    """The messages of `/v1/chat/completions`; `logprobs` if they were asked for."""

    logprobs: bool
    prefix = "chatcmpl"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": answer.whole.text, "refusal": None},
            "logprobs": self._logprobs(answer.tokens),
            "finish_reason": answer.whole.finish_reason,
        }

    def first(self, index: int, echo: str) -> dict[str, Any] | None:
        return self._delta(index, {"role": "assistant", "content": ""})

    def next(self, index: int, token: StreamedToken) -> dict[str, Any]:
        return self._delta(index, {"content": token.text}, self._logprobs([token]))

    def last(self, index: int, reason: str) -> dict[str, Any]:
        return self._delta(index, {}, reason=reason)

    def _delta(
        self, index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[StreamedToken]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        content = [
            _shown(token.raw, token.logprob)
            | {"top_logprobs": [_shown(each.raw, each.logprob) for each in token.top_logprobs]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}


class _Offsets:
    """Where tokens begin in a text, in characters; parts of a character begin where it does."""

    def __init__(self, start: int) -> None:
        self._at = start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def next(self, raw: bytes) -> int:
        """Return where a token of these bytes begins, which comes after those before."""
        start = self._at
        self._at += len(self._decoder.decode(raw))
        return max(0, start)


@dataclass
class TextForm:
    """The texts of `/v1/completions`; `logprobs` if they were asked for, with `top` of the likeliest tokens each."""

    logprobs: bool
    top: int = 0
    prefix = "cmpl"
    whole = chunk = "text_completion"
    _offsets: dict[int, _Offsets] = field(default_factory=dict)

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        scored = answer.whole.prompt_scores if answer.echo else ()
        # The tokens of a prompt may begin with one that is not of its text.
        prompt = b"".join(token.raw for token in scored).decode(errors="replace")
        offsets = _Offsets(len(answer.echo) - len(prompt))
        return {
            "index": index,
            "text": answer.echo + answer.whole.text,
            "logprobs": self._logprobs([*scored, *answer.tokens], offsets),
            "finish_reason": answer.whole.finish_reason,
        }

    def first(self, index: int, echo: str) -> dict[str, Any] | None:
        self._offsets[index] = _Offsets(len(echo))
        return self._piece(index, echo) if echo else None

    def next(self, index: int, token: StreamedToken) -> dict[str, Any]:
        return self._piece(index, token.text, self._logprobs([token], self._offsets[index]))

    def last(self, index: int, reason: str) -> dict[str, Any]:
        return self._piece(index, "", reason=reason)

    def _piece(self, index: int, text: str, logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[StreamedToken | ScoredToken], offsets: _Offsets) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        return {
            "tokens": [token_name(token.raw) for token in tokens],
            "token_logprobs": [None if token.logprob is None else _finite(token.logprob) for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens] if self.top else None,
            "text_offset": [offsets.next(token.raw) for token in tokens],
        }

    def _top(self, token: StreamedToken | ScoredToken) -> dict[str, float] | None:
        """Return the likeliest tokens by name, and the one that came; of equal names the likeliest stays."""
        if token.logprob is None:
            return None
        found = {token_name(token.raw): _finite(token.logprob)}
        for each in token.top_logprobs:
            name, logprob = token_name(each.raw), _finite(each.logprob)
            found[name] = max(logprob, found.get(name, logprob))
        return found


def token_name(raw: bytes) -> str:
    r"""Return the text of a token, or `bytes:\x…` for one that is only a part of a character, as OpenAI does."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def usage_of(answers: Iterable[Completion], samples: int) -> dict[str, Any]:
    """Return the numbers of tokens of all answers, in the order of their prompts; a prompt counts once.

    Those of prompts that were known and not computed are told if there are any.
    """
    whole = list(answers)
    prompt = sum(each.prompt_tokens for each in whole[::samples])
    made = sum(len(each.token_ids) for each in whole)
    usage = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
    cached = sum(each.cached_tokens for each in whole[::samples])
    return usage | ({"prompt_tokens_details": {"cached_tokens": cached}} if cached else {})


def trace_of(answers: Iterable[Completion], seconds: float) -> dict[str, Any]:
    """Return where the time of a request and of each of its answers went, in ms; `seconds` are those since it came.

    An answer waits in the pipeline's queue, its prompt is computed up to the first token, and the others follow.
    """
    return {
        "total_ms": 1e3 * seconds,
        "answers": [
            {
                "queue_ms": each.queue_ms,
                "prefill_ms": max(0.0, each.ttft_ms - each.queue_ms),
                "decode_ms": 1e3 * max(0, len(each.token_ids) - 1) / each.tokens_per_s if each.tokens_per_s else 0.0,
                "prompt_tokens": each.prompt_tokens,
                "new_tokens": len(each.token_ids),
            }
            for each in answers
        ],
    }


def event_of(content: dict[str, Any]) -> str:
    """Return an object as a server-sent event."""
    return f"data: {_JSON.encode(content)}\n\n"


def _shown(raw: bytes, logprob: float | None) -> dict[str, Any]:
    value = LEAST_LOGPROB if logprob is None else _finite(logprob)
    return {"token": raw.decode(errors="replace"), "logprob": value, "bytes": list(raw)}


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
