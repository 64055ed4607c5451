"""Immutable values that all parts of the project share: requests, completions, and progress."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from qubic_lab.errors import InputError, check_range

FinishReason = Literal["stop", "length"]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is in all."""

MAX_SEED = 2**63 - 1
MAX_TOP_LOGPROBS = 20
MAX_COUNT = 2**31 - 1
"""Limit of counts, which are sent between processes as integers of fixed size."""


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters; temperature 0 is greedy, `top_k` 0 and `top_p` 1 keep every token.

    With `logprobs` each token comes with its log-probability (natural, before temperature and truncation) and those of
    the `top_logprobs` likeliest tokens.

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

    def __post_init__(self) -> None:
        check_range("max_new_tokens", self.max_new_tokens, 1, MAX_COUNT)
        check_range("top_k", self.top_k, 0, MAX_COUNT)
        if not 0.0 <= self.temperature <= 100.0:
            raise InputError(f"temperature is {self.temperature}: it must be between 0 (greedy) and 100")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p is {self.top_p}: it must be above 0 and at most 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise InputError(f"seed is {self.seed}: it must be between 0 and {MAX_SEED}")
        check_range("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        if self.top_logprobs and not self.logprobs:
            raise InputError(f"top_logprobs is {self.top_logprobs} without logprobs: ask for both")
        if any(not text for text in self.stop):
            raise InputError("a stop string is empty: leave it out or give at least one character")
        for text in self.stop:
            _check_unicode("stop string", text)


@dataclass(frozen=True)
class Request:
    """A request to a pipeline: a text or token ids, and sampling parameters.

    `raw` sends the text without the chat template; otherwise it becomes the user's turn of a chat.
    `forced_token_ids` are first tokens of the answer that another replica has already given; the answer continues them.

    Raises:
        InputError: neither or both of `prompt` and `token_ids` are given, or they are empty or not valid Unicode; more
            tokens are forced than the answer may have; or a token id is invalid.
    """

    prompt: str = ""
    token_ids: tuple[int, ...] = ()
    raw: bool = False
    sampling: SamplingParams = SamplingParams()
    forced_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.prompt and self.token_ids:
            raise InputError("a request has a prompt and token ids: give one of them")
        if not self.token_ids and not self.prompt.strip():
            raise InputError("the prompt is empty: give at least one visible character")
        _check_unicode("prompt", self.prompt)
        _check_ids("token id", self.token_ids)
        _check_ids("forced token id", self.forced_token_ids)
        if (forced := len(self.forced_token_ids)) > (most := self.sampling.max_new_tokens):
            raise InputError(f"{forced} tokens are forced, but max_new_tokens is {most}: force at most that many")


@dataclass(frozen=True)
class Completion:
    """An answer: the text, its tokens and its speed (`ttft_ms` is the time from submission to the first token).

    `logprobs` has the log-probability of each token, if requested. `token_ids` starts with the request's
    forced tokens; log-probabilities and speed are of the tokens after them (speed 0 if there are none).
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    ttft_ms: float
    tokens_per_s: float
    logprobs: tuple[float, ...] = ()


def no_progress(text: str, done: int, total: int) -> None:
    """Ignore progress."""


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
