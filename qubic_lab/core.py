"""Immutable values that all parts of the project share: requests, tokens, completions, and progress."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from qubic_lab.errors import InputError, check_choice, check_range

FinishReason = Literal["stop", "length"]
ROLES = ("system", "user", "assistant")
"""Roles of a chat's messages."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is in all."""

MAX_SEED = 2**63 - 1
MAX_TOP_LOGPROBS = 20
MAX_PENALTY = 2.0
MAX_BIAS = 100.0
MAX_BIASES = 1_024
MAX_COUNT = 2**31 - 1
"""Limit of counts, which are sent between processes as integers of fixed size."""


def attributes(value: Any, *names: str) -> dict[str, Any]:
    """Return attributes of a value by their names."""
    return {name: getattr(value, name) for name in names}


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters; temperature 0 is greedy, `top_k` 0 and `top_p` 1 keep every token.

    With `logprobs` each token comes with its log-probability (natural, before temperature and truncation) and those of
    the `top_logprobs` likeliest tokens. `min_p` keeps the tokens that are at least so likely as that share of the
    likeliest one. Before all that, `logit_bias` (pairs of a token id and a number) is added to logits, and from the
    logit of each token of the answer so far `presence_penalty` is taken once and `frequency_penalty` each time that it
    came.

    Raises:
        InputError: a value is out of its range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        check_range("max_new_tokens", self.max_new_tokens, 0, MAX_COUNT)
        check_range("top_k", self.top_k, 0, MAX_COUNT)
        if not 0.0 <= self.temperature <= 100.0:
            raise InputError(f"temperature is {self.temperature}: it must be between 0 (greedy) and 100")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p is {self.top_p}: it must be above 0 and at most 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise InputError(f"seed is {self.seed}: it must be between 0 and {MAX_SEED}")
        if not 0.0 <= self.min_p <= 1.0:
            raise InputError(f"min_p is {self.min_p}: it must be between 0 (keeps every token) and 1")
        penalties = {"presence_penalty": self.presence_penalty, "frequency_penalty": self.frequency_penalty}
        for name, value in penalties.items():
            if not -MAX_PENALTY <= value <= MAX_PENALTY:
                raise InputError(f"{name} is {value}: it must be between {-MAX_PENALTY:g} and {MAX_PENALTY:g}")
        if self.logit_bias:
            _check_bias(self.logit_bias)
        check_range("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        if self.top_logprobs and not self.logprobs:
            raise InputError(f"top_logprobs is {self.top_logprobs} without logprobs: ask for both")
        if any(not text for text in self.stop):
            raise InputError("a stop string is empty: leave it out or give at least one character")
        for text in self.stop:
            _check_unicode("stop string", text)


@dataclass(frozen=True)
class ChatMessage:
    """A message of a chat; `role` is one of ROLES.

    Raises:
        InputError: the role is unknown, or the content is not valid Unicode.
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        check_choice("role", self.role, ROLES)
        _check_unicode("message", self.content)


@dataclass(frozen=True)
class Request:
    """A request to a pipeline: a text, token ids or a chat, and sampling parameters.

    `raw` sends the text without the chat template; otherwise it becomes the user's turn of a chat. `messages` are a
    chat of several turns. With `prompt_logprobs` the prompt is scored: the answer comes with the log-probability of
    each of its tokens and those of this number of most likely tokens; `max_new_tokens` may then be 0.
    `forced_token_ids` are first tokens of the answer that another replica has already given; the answer continues them.

    Raises:
        InputError: not exactly one of `prompt`, `token_ids` and `messages` is given, or it is empty or not valid
            Unicode; nothing is asked for; more tokens are forced than the answer may have; or a value is out of range.
    """

    prompt: str = ""
    token_ids: tuple[int, ...] = ()
    raw: bool = False
    sampling: SamplingParams = SamplingParams()
    forced_token_ids: tuple[int, ...] = ()
    messages: tuple[ChatMessage, ...] = ()
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        given = {"a prompt": self.prompt, "token ids": self.token_ids, "messages": self.messages}
        if len(names := [name for name, value in given.items() if value]) > 1:
            raise InputError(f"a request has {' and '.join(names)}: give one of them")
        if not (self.token_ids or self.messages or self.prompt.strip()):
            raise InputError("the prompt is empty: give at least one visible character")
        if self.messages and self.raw:
            raise InputError("raw is set with messages: only the chat template can make a text of them")
        _check_unicode("prompt", self.prompt)
        _check_ids("token id", self.token_ids)
        _check_ids("forced token id", self.forced_token_ids)
        if self.prompt_logprobs is not None:
            check_range("prompt_logprobs", self.prompt_logprobs, 0, MAX_TOP_LOGPROBS)
        elif not self.sampling.max_new_tokens:
            raise InputError("max_new_tokens is 0: it must be at least 1 unless the prompt is scored (prompt_logprobs)")
        if (forced := len(self.forced_token_ids)) > (most := self.sampling.max_new_tokens):
            raise InputError(f"{forced} tokens are forced, but max_new_tokens is {most}: force at most that many")


@dataclass(frozen=True)
class TopToken:
    """One of the likeliest tokens of a place, its log-probability, and its bytes."""

    id: int
    logprob: float
    raw: bytes


@dataclass(frozen=True)
class StreamedToken:
    """A token of an answer and the text that it completes; printing it prints that text.

    `logprob` and the likeliest tokens are set if they were requested. `raw` has the token's own bytes, which may be a
    part of a character; of a special token, whose text is empty, they are its name.
    """

    id: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[TopToken, ...] = ()
    raw: bytes = b""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class ScoredToken:
    """A token of a prompt, its bytes (as of StreamedToken), and its log-probability after the tokens before it.

    The first token has none. `top_logprobs` are the likeliest tokens of its place.
    """

    id: int
    raw: bytes
    logprob: float | None = None
    top_logprobs: tuple[TopToken, ...] = ()


@dataclass(frozen=True)
class Completion:
    """An answer: the text, its tokens and its speed.

    `ttft_ms` is the time from submission to the first token, `queue_ms` the part of it before the prompt was begun.
    `logprobs` has the log-probability of each token, if requested. `token_ids` starts with the request's
    forced tokens; log-probabilities and speed are of the tokens after them (speed 0 if there are none).
    `prompt_scores` has the prompt's tokens if they were scored. `drafted_tokens` were drafted and verified, and so took
    no step of their own. The prompt's first `cached_tokens` were known from earlier requests, and not computed.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    ttft_ms: float
    tokens_per_s: float
    logprobs: tuple[float, ...] = ()
    prompt_scores: tuple[ScoredToken, ...] = ()
    queue_ms: float = 0.0
    drafted_tokens: int = 0
    cached_tokens: int = 0


def no_progress(text: str, done: int, total: int) -> None:
    """Ignore progress."""


def _check_bias(biases: tuple[tuple[int, float], ...]) -> None:
    ids = tuple(id for id, _ in biases)
    _check_ids("logit_bias's token id", ids)
    if len(ids) > MAX_BIASES or len(set(ids)) < len(ids):
        raise InputError(f"logit_bias has {len(ids)} tokens: give at most {MAX_BIASES}, each once")
    for id, bias in biases:
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise InputError(f"logit_bias of token {id} is {bias}: it must be between {-MAX_BIAS:g} and {MAX_BIAS:g}")


def _check_ids(what: str, ids: tuple[int, ...]) -> None:
    if ids:
        check_range(what, min(ids), 0, MAX_COUNT)
        check_range(what, max(ids), 0, MAX_COUNT)


def _check_unicode(what: str, text: str) -> None:
    """Refuse surrogates, which Python uses for bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the {what} {text[:40]!a} is not UTF-8 text: convert it to UTF-8") from error
