"""Requests and responses of the OpenAI routes: what is accepted, what is refused by name, and the form of answers."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from qubic_lab import core
from qubic_lab.api.openai.errors import FieldError
from qubic_lab.api.schemas import (
    MOST_NEW_TOKENS,
    MOST_PROMPT_CHARACTERS,
    MOST_STOPS,
    VISIBLE,
    Biases,
    Penalty,
    read_biases,
)
from qubic_lab.core import MAX_COUNT, MAX_SEED, MAX_TOP_LOGPROBS, SamplingParams

MOST_SAMPLES = 128
MOST_PROMPTS = 1_024
MOST_MESSAGES = 1_024
MOST_TEMPERATURE = 2.0
DEFAULT_TEXT_TOKENS = 16
"""As OpenAI's."""
DEFAULT_CHAT_TOKENS = 4_096
"""OpenAI has no limit but the context; a small model that does not come to an end would take minutes to reach it."""


PlainText: TypeAlias = Annotated[str, Field(max_length=MOST_PROMPT_CHARACTERS)]
NewTokens: TypeAlias = Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS)]
Samples: TypeAlias = Annotated[int, Field(ge=1, le=MOST_SAMPLES)]
Likeliest: TypeAlias = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]


class Refused(NamedTuple):
    """A field that would change the answer and is not supported: values that change nothing, and what to do."""

    harmless: tuple[Any, ...]
    remedy: str


PENALTIES = "give presence_penalty or frequency_penalty instead"
TRUNCATION = "give top_p, top_k or min_p instead"
FORM = "describe the form in the prompt, and check the answer"
REFUSED = {
    "repetition_penalty": Refused((1,), PENALTIES),
    "repeat_penalty": Refused((1,), PENALTIES),
    "length_penalty": Refused((1,), "answers are sampled, not searched for: leave it out"),
    "use_beam_search": Refused((False,), "answers are sampled, not searched for: leave it out"),
    "typical_p": Refused((1,), TRUNCATION),
    "mirostat": Refused((0,), TRUNCATION),
    "min_tokens": Refused((0,), "give ignore_eos and max_tokens for an answer of fixed length"),
    "n_predict": Refused((-1,), "give max_tokens instead"),
    "stop_token_ids": Refused(([],), "give their texts as stop"),
    "bad_words": Refused(([],), "give their tokens a logit_bias of -100"),
    "allowed_token_ids": Refused((), "give them a logit_bias of 100"),
    "include_stop_str_in_output": Refused((False,), "an answer ends before a stop text: add it yourself"),
    "skip_special_tokens": Refused((True,), "texts are without special tokens; logprobs name them"),
    "truncate_prompt_tokens": Refused((), "send a shorter prompt"),
    "prompt_logprobs": Refused((), "give echo and logprobs to /v1/completions"),
    "structured_outputs": Refused((), FORM),
    "guided_json": Refused((), FORM),
    "guided_regex": Refused((), FORM),
    "guided_choice": Refused((), FORM),
    "guided_grammar": Refused((), FORM),
    "grammar": Refused(("",), FORM),
    "json_schema": Refused((), FORM),
}
"""Of all routes; most are of other servers of this form."""
TOOLS = "this server calls no tools: describe them in a message, and read the answer's text"
CHAT_REFUSED = REFUSED | {
    "tools": Refused(([],), TOOLS),
    "tool_choice": Refused(("none", "auto"), TOOLS),
    "functions": Refused(([],), TOOLS),
    "function_call": Refused(("none", "auto"), TOOLS),
    "response_format": Refused(({"type": "text"},), FORM),
    "chat_template": Refused((), "send the finished text to /v1/completions"),
    "chat_template_kwargs": Refused(({},), "send the finished text to /v1/completions"),
    "add_generation_prompt": Refused((True,), "send the finished text to /v1/completions"),
    "continue_final_message": Refused((False,), "send the finished text to /v1/completions"),
    "modalities": Refused((["text"],), "answers are text: leave it out"),
    "audio": Refused((), "answers are text: leave it out"),
    "web_search_options": Refused((), "put what is to be known into a message"),
    "reasoning_effort": Refused(("none",), "leave it out; the model's template decides how it thinks"),
    "verbosity": Refused(("medium",), "say in a message how long the answer shall be"),
}
TEXT_REFUSED = REFUSED | {"suffix": Refused(("",), "put what comes after the gap into the prompt")}
MESSAGE_REFUSED = {
    "tool_calls": Refused(([],), TOOLS),
    "function_call": Refused((), TOOLS),
    "audio": Refused((), "send the text of what was said"),
}


def describe_refused(refused: dict[str, Refused]) -> Callable[[dict[str, Any]], None]:
    """Return what tells OpenAPI the values that refused fields may have."""

    def describe(schema: dict[str, Any]) -> None:
        for name, (harmless, remedy) in refused.items():
            schema["properties"][name] = {"enum": [None, *harmless], "description": f"Not supported: {remedy}."}

    return describe


class Refusing(BaseModel):
    """Refuses fields that would change the answer and are not supported; ignores what it does not know, as OpenAI."""

    refused: ClassVar[dict[str, Refused]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, given: Any) -> Any:
        for name in given if isinstance(given, dict) else ():
            refused = cls.refused.get(name)
            if refused is not None and given[name] is not None and given[name] not in refused.harmless:
                raise FieldError(f"{name} is not supported: {refused.remedy}", name)
        return given


class StreamOptions(BaseModel):
    """What a stream has beside the answer."""

    include_usage: Annotated[bool | None, Field(description="a last chunk has the numbers of tokens")] = None


def _text_or_list(given: Any) -> str | None:
    return "text" if isinstance(given, str) else "list" if isinstance(given, list) else None


StopText: TypeAlias = Annotated[str, Field(min_length=1)]
Stops: TypeAlias = Annotated[
    Annotated[StopText, Tag("text")] | Annotated[list[StopText], Field(max_length=MOST_STOPS), Tag("list")],
    Discriminator(_text_or_list, custom_error_type="stop", custom_error_message="give a text, or a list of texts"),
]


class Sampled(Refusing):
    """What all kinds of requests have; null is as if a field was left out."""

    model: Annotated[str, Field(description="a name of /v1/models", max_length=1_000)] = "default"
    temperature: Annotated[
        Annotated[float, Field(ge=0, le=MOST_TEMPERATURE)] | None, Field(description="0 is greedy; 1 if left out")
    ] = None
    top_p: Annotated[
        Annotated[float, Field(gt=0, le=1)] | None,
        Field(description="sample from the likeliest tokens with this probability in all; 1 if left out"),
    ] = None
    top_k: Annotated[
        Annotated[int, Field(ge=0, le=MAX_COUNT)] | None,
        Field(description="keep this many of the likeliest tokens; 0 keeps all (not of OpenAI)"),
    ] = None
    min_p: Annotated[
        Annotated[float, Field(ge=0, le=1)] | None,
        Field(description="keep the tokens that are at least this share as likely as the likeliest (not of OpenAI)"),
    ] = None
    presence_penalty: Annotated[
        Penalty | None, Field(description="taken from the logit of each token that the answer has so far")
    ] = None
    frequency_penalty: Annotated[
        Penalty | None, Field(description="taken from it as many times as the token has come")
    ] = None
    logit_bias: Annotated[Biases | None, Field(description="numbers that are added to logits, by token id")] = None
    seed: Annotated[
        Annotated[int, Field(ge=0, le=MAX_SEED)] | None,
        Field(description="sample i has seed + i; if left out, a random one, which the answer says"),
    ] = None
    stop: Annotated[Stops | None, Field(description="an answer ends before this text, or before one of these")] = None
    ignore_eos: Annotated[bool | None, Field(description="go on after the model's end token (not of OpenAI)")] = None

    def sampling(self, seed: int, most: int, logprobs: bool = False, top: int = 0) -> SamplingParams:
        """Return how to sample at most so many tokens, with the log-probabilities of `top` others."""
        return SamplingParams(
            max_new_tokens=most,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            seed=seed,
            ignore_eos=bool(self.ignore_eos),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            logprobs=logprobs,
            top_logprobs=top,
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=read_biases(self.logit_bias or {}),
        )


class _Completed(Sampled):
    """What chats and texts have."""

    n: Annotated[Samples | None, Field(description="answers to each prompt")] = None
    stream: Annotated[bool | None, Field(description="answer with server-sent events, [DONE] at the end")] = None
    stream_options: StreamOptions | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(BaseModel):
    """A part of a message; only text is understood."""

    type: Annotated[Literal["text"], Field(description="always the same")]
    text: Annotated[PlainText, Field(description="the text")]


Content: TypeAlias = Annotated[
    Annotated[str, Field(max_length=MOST_PROMPT_CHARACTERS), Tag("text")]
    | Annotated[list[TextPart], Field(max_length=MOST_MESSAGES), Tag("list")],
    Discriminator(
        _text_or_list, custom_error_type="content", custom_error_message="give a text, or a list of parts of type text"
    ),
]


class ChatMessage(Refusing):
    """A message of a chat."""

    model_config = ConfigDict(json_schema_extra=describe_refused(MESSAGE_REFUSED))
    refused = MESSAGE_REFUSED

    role: Annotated[
        Literal["system", "developer", "user", "assistant"], Field(description="developer is the same as system")
    ]
    content: Content

    @field_validator("role", mode="before")
    @classmethod
    def _no_tools(cls, given: Any) -> Any:
        if given in ("tool", "function"):
            raise ValueError(f"results of tools are not supported: {TOOLS}")
        return given

    @property
    def text(self) -> str:
        """The text of all parts."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


def messages_of(given: list[ChatMessage]) -> tuple[core.ChatMessage, ...]:
    """Return the messages that the model gets."""
    return tuple(core.ChatMessage("system" if each.role == "developer" else each.role, each.text) for each in given)


class ChatQuery(_Completed):
    """A request for the next message of a chat."""

    model_config = ConfigDict(json_schema_extra=describe_refused(CHAT_REFUSED))
    refused = CHAT_REFUSED

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[
        NewTokens | None, Field(description=f"most tokens of an answer; {DEFAULT_CHAT_TOKENS} if left out")
    ] = None
    max_tokens: Annotated[NewTokens | None, Field(description="the older name of max_completion_tokens")] = None
    logprobs: Annotated[bool | None, Field(description="with the log-probability of each token")] = None
    top_logprobs: Annotated[
        Likeliest | None,
        Field(description="number of most likely tokens at each position, with their log-probabilities"),
    ] = None

    @field_validator("logprobs", mode="before")
    @classmethod
    def _is_asked(cls, given: Any) -> Any:
        if isinstance(given, int) and given not in (0, 1):
            raise ValueError("give true; the number of likeliest tokens is top_logprobs")
        return given


TokenIds: TypeAlias = Annotated[list[Annotated[int, Field(ge=0, le=MAX_COUNT)]], Field(min_length=1)]
PromptText: TypeAlias = Annotated[str, Field(max_length=MOST_PROMPT_CHARACTERS, pattern=VISIBLE)]


def _kind_of_prompt(given: Any) -> str | None:
    if isinstance(given, str):
        return "text"
    first = given[0] if isinstance(given, list) and given else None
    return {str: "texts", int: "ids", float: "ids", list: "lists_of_ids"}.get(type(first))  # 5.0 is an integer of JSON


Prompt: TypeAlias = Annotated[
    Annotated[PromptText, Tag("text")]
    | Annotated[list[PromptText], Field(min_length=1, max_length=MOST_PROMPTS), Tag("texts")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_PROMPTS), Tag("lists_of_ids")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="prompt",
        custom_error_message="give a text, a list of texts, a list of token ids, or a list of lists of token ids",
    ),
]


class TextQuery(_Completed):
    """A request for what follows a text."""

    model_config = ConfigDict(json_schema_extra=describe_refused(TEXT_REFUSED))
    refused = TEXT_REFUSED

    prompt: Annotated[Prompt, Field(description="a text, several texts, token ids, or several lists of them")]
    max_tokens: Annotated[
        Annotated[int, Field(ge=0, le=MOST_NEW_TOKENS)] | None,
        Field(description=f"most tokens of an answer; {DEFAULT_TEXT_TOKENS} if left out"),
    ] = None
    best_of: Annotated[
        Samples | None,
        Field(
            description="number of answers that are made; the n with the highest log-probability per token are given"
        ),
    ] = None
    echo: Annotated[bool | None, Field(description="the answer begins with the prompt")] = None
    logprobs: Annotated[
        Likeliest | None,
        Field(description="the log-probability of each token, and those of this number of most likely tokens"),
    ] = None

    @field_validator("logprobs", mode="before")
    @classmethod
    def _none_is_asked(cls, given: Any) -> Any:
        return None if given is False else given  # which would be the integer 0

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """The prompts: each a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [tuple(self.prompt)]
        return [each if isinstance(each, str) else tuple(each) for each in self.prompt]


class Model(BaseModel):
    """A model that can be asked."""

    id: Annotated[str, Field(description="the name that requests give")]
    object: Annotated[Literal["model"], Field(description="always the same")] = "model"
    created: Annotated[int, Field(description="since when it can be asked, Unix time in seconds")]
    owned_by: Annotated[str, Field(description="always the same")] = "qubic-lab"


class ModelList(BaseModel):
    """The models that can be asked; `default` is another name of the first one."""

    object: Annotated[Literal["list"], Field(description="always the same")] = "list"
    data: list[Model]


class Usage(BaseModel):
    """Numbers of tokens; a prompt counts once, whatever n is."""

    prompt_tokens: Annotated[int, Field(description="tokens of all prompts")]
    completion_tokens: Annotated[int, Field(description="tokens of all answers")]
    total_tokens: Annotated[int, Field(description="their sum")]
    prompt_tokens_details: Annotated[
        dict[str, int] | None, Field(description="cached_tokens: those that were known and not computed; if any")
    ] = None


class Extra(BaseModel):
    """What OpenAI's form has no place for: the seed of the first sample."""

    model_config = ConfigDict(extra="allow")

    seed: Annotated[int, Field(description="of the first sample: with it the answer can be had again")]


class TopLogprob(BaseModel):
    """A token that could have come, and its natural log-probability."""

    token: Annotated[str, Field(description="its text")]
    logprob: Annotated[float, Field(description="natural logarithm of its probability")]
    bytes: Annotated[list[int] | None, Field(description="its bytes, also where they are no whole character")]


class TokenLogprob(TopLogprob):
    """A token of an answer, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """The tokens of a message."""

    content: list[TokenLogprob] | None
    refusal: Annotated[None, Field(description="always null")] = None


class AnswerMessage(BaseModel):
    """The message that a model has given."""

    role: Annotated[Literal["assistant"], Field(description="always the same")]
    content: Annotated[str, Field(description="the answer")]
    refusal: Annotated[None, Field(description="always null")]


class ChatChoice(BaseModel):
    """One of the answers."""

    index: Annotated[int, Field(description="number of the answer, from 0 on")]
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Annotated[
        Literal["stop", "length"],
        Field(description="stop: it ended by itself or before a stop text; length: it has as many tokens as it may"),
    ]


class _Response(BaseModel):
    id: Annotated[str, Field(description="of this answer")]
    created: Annotated[int, Field(description="when it was made, Unix time in seconds")]
    model: Annotated[str, Field(description="the model that answered")]
    system_fingerprint: Annotated[str | None, Field(description="the same for the same model files; null: not known")]


class ChatCompletion(_Response):
    """The answers to a chat."""

    object: Annotated[Literal["chat.completion"], Field(description="always the same")]
    choices: list[ChatChoice]
    usage: Usage
    qubic: Extra


class TextLogprobs(BaseModel):
    """Tokens, their log-probabilities, the likeliest ones, and where each begins in the text."""

    tokens: Annotated[list[str], Field(description="the text of each token")]
    token_logprobs: Annotated[
        list[float | None], Field(description="natural log-probability of each; null: the first one of a prompt")
    ]
    top_logprobs: Annotated[
        list[dict[str, float] | None] | None,
        Field(description="the likeliest texts in each place, with their log-probabilities; null: not asked for"),
    ]
    text_offset: Annotated[list[int], Field(description="where each token begins in the text, in characters")]


class TextChoice(BaseModel):
    """One of the answers."""

    index: Annotated[int, Field(description="number of the answer, from 0 on")]
    text: Annotated[str, Field(description="the answer, after its prompt if echo is true")]
    logprobs: TextLogprobs | None
    finish_reason: Annotated[
        Literal["stop", "length"] | None,
        Field(description="stop: it ended by itself or before a stop text; length: it has as many tokens as it may"),
    ]


class TextCompletion(_Response):
    """What follows the prompts; the answers of the first one come first."""

    object: Annotated[Literal["text_completion"], Field(description="always the same")]
    choices: list[TextChoice]
    usage: Usage
    qubic: Extra
