"""Request and response bodies of the interface."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from qubic_lab.cluster.fleet import NodeView
from qubic_lab.cluster.http_health import health_url
from qubic_lab.cluster.tasks import TaskCounts
from qubic_lab.core import MAX_BIAS, MAX_BIASES, MAX_COUNT, MAX_PENALTY, MAX_SEED, MAX_TOP_LOGPROBS, SamplingParams
from qubic_lab.core import Request as LabRequest
from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.wire import pipeline_pb2

MOST_PROMPT_CHARACTERS = 500_000
MOST_NEW_TOKENS = 32_768
MOST_DEADLINE_S = 3_600.0
MOST_STOPS = 16
_SAMPLING = tuple(SamplingParams.__dataclass_fields__)


VISIBLE = r"[^\s\x1c-\x1f\x85]"
"""Matches a text with something that `str.strip` leaves, also where these separators do not count as white space."""
Prompt = Annotated[str, Field(min_length=1, max_length=MOST_PROMPT_CHARACTERS, json_schema_extra={"pattern": VISIBLE})]
"""A text with at least one visible character; `core.Request` checks the last, and says it better than a pattern."""
Stop = Annotated[str, Field(min_length=1)]
Penalty: TypeAlias = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)]
TokenKey: TypeAlias = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
Biases: TypeAlias = Annotated[
    dict[TokenKey, Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]],
    Field(max_length=MAX_BIASES, json_schema_extra={"additionalProperties": False}),
]
TaskId = Annotated[str, Field(description="id of the task in the queue, for /api/cluster/tasks/ID")]
Story = Annotated[list[str], Field(description="a line about each attempt that was lost")]
Level = Annotated[str, Field(description="how far to trust the answer, in words; it follows from the confidence")]


def read_biases(given: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    """Return the biases of token ids, which are names in JSON."""
    return tuple((int(token), bias) for token, bias in given.items())


def either(*sides: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a schema gains if one of several sets of limits on its fields must hold."""
    return {"anyOf": [{"properties": each} for each in sides]}


class Query(BaseModel):
    """A question and how to answer it; the sampling fields are those of the pipeline."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra=either({"mode": {"const": "single"}}, {"stream": {"const": False}})
    )

    prompt: Annotated[Prompt, Field(description="the question; it becomes the user's turn of a chat")]
    raw: Annotated[bool, Field(description="send the text without the chat template")] = False
    max_new_tokens: Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS, description="the most tokens of the answer")] = (
        SamplingParams.max_new_tokens
    )
    temperature: Annotated[float, Field(ge=0.0, le=100.0, description="0 is greedy")] = 0.0
    top_p: Annotated[
        float, Field(gt=0.0, le=1.0, description="sample from the likeliest tokens with this probability in all")
    ] = 1.0
    top_k: Annotated[
        int, Field(ge=0, le=MAX_COUNT, description="sample from this number of most likely tokens; 0: from all")
    ] = 0
    min_p: Annotated[
        float, Field(ge=0, le=1, description="keep the tokens at least this share as likely as the likeliest")
    ] = 0.0
    presence_penalty: Annotated[
        Penalty, Field(description="taken from the logit of each token that the answer has so far")
    ] = 0.0
    frequency_penalty: Annotated[Penalty, Field(description="taken from it as many times as the token has come")] = 0.0
    logit_bias: Annotated[Biases, Field(description="numbers that are added to logits, by token id")] = {}
    seed: Annotated[int, Field(ge=0, le=MAX_SEED, description="the same seed gives the same answer")] = 0
    ignore_eos: Annotated[bool, Field(description="go on after the token that ends an answer")] = False
    stop: Annotated[list[Stop], Field(max_length=MOST_STOPS, description="texts before which the answer ends")] = []
    logprobs: Annotated[bool, Field(description="return the log-probability of each token")] = False
    top_logprobs: Annotated[
        int, Field(ge=0, le=MAX_TOP_LOGPROBS, description="in a stream: number of most likely tokens at each position")
    ] = 0
    mode: Annotated[
        Literal["auto", "consensus", "single"],
        Field(description="consensus: several nodes vote; auto: one node answers if the cluster is busy"),
    ] = "single"
    stream: Annotated[bool, Field(description="answer with server-sent events: token, end, error")] = False
    priority: Annotated[
        Literal["high", "normal", "low"], Field(description="of waiting requests, those of a higher one go first")
    ] = "normal"
    deadline_s: Annotated[float, Field(gt=0.0, le=MOST_DEADLINE_S, description="from now to the last token")] = 600.0

    @model_validator(mode="before")
    @classmethod
    def _know_all_fields(cls, given: Any) -> Any:
        unknown = [name for name in given if name not in cls.model_fields] if isinstance(given, dict) else []
        if unknown:
            raise ValueError(f"unknown field {unknown[0]!r}: {did_you_mean(unknown[0], cls.model_fields)}")
        return given

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        self.logprobs = self.logprobs or self.top_logprobs > 0
        values = {name: getattr(self, name) for name in _SAMPLING}
        values |= {"stop": tuple(self.stop), "logit_bias": read_biases(self.logit_bias)}
        try:
            LabRequest(self.prompt, raw=self.raw, sampling=SamplingParams(**values))
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    def to_message(self) -> pipeline_pb2.GenerateRequest:
        """Return the request to a node."""
        values = {name: getattr(self, name) for name in _SAMPLING}
        sampling = pipeline_pb2.Sampling(**values | {"logit_bias": dict(read_biases(self.logit_bias))})
        return pipeline_pb2.GenerateRequest(prompt=self.prompt, raw=self.raw, sampling=sampling)


class SingleQuery(Query):
    """A question for one node."""

    model_config = ConfigDict(json_schema_extra={})

    mode: Annotated[Literal["single"], Field(description="one node answers")] = "single"


class Token(BaseModel):
    """A token of an answer: its index, id, and the text that became certain with it."""

    index: Annotated[int, Field(description="from 0 on")]
    id: Annotated[int, Field(description="in the model's vocabulary")]
    text: Annotated[str, Field(description="empty while a character is not complete")]
    logprob: Annotated[float | None, Field(description="natural logarithm of its probability, if asked for")] = None
    top_logprobs: Annotated[
        list[tuple[int, float]], Field(description="id and log-probability of the likeliest tokens, if asked for")
    ] = []


class QueryResponse(BaseModel):
    """A whole answer and its cost; times in ms."""

    task_id: TaskId
    mode: Annotated[Literal["single"], Field(description="one node has answered")] = "single"
    text: Annotated[str, Field(description="the answer")]
    token_ids: Annotated[list[int], Field(description="its tokens")]
    logprobs: Annotated[list[float] | None, Field(description="of each token; null: not asked for")] = None
    finish_reason: Annotated[
        Literal["stop", "length"], Field(description="stop: it ended by itself; length: it has max_new_tokens")
    ]
    prompt_tokens: Annotated[int, Field(description="tokens of the prompt, with the chat template")]
    model: Annotated[str, Field(description="the model that answered")]
    node: Annotated[str, Field(description="the node that finished the answer")]
    attempts: Annotated[int, Field(description="more than 1: a replica was lost on the way, and another one went on")]
    ttft_ms: Annotated[float, Field(description="time to the first token, at the node")]
    tokens_per_s: Annotated[float, Field(description="speed after the first token, at the node")]
    node_ms: Annotated[float, Field(description="time of the node that finished the answer")]
    total_ms: Annotated[float, Field(description="time since this request arrived")]


class ConsensusResponse(BaseModel):
    """The result of a vote, or of one node that answered without a vote."""

    mode: Annotated[Literal["consensus", "single"], Field(description="single: one node answered without a vote")]
    mode_reason: Annotated[str, Field(description="why this mode")]
    vote_id: Annotated[str | None, Field(description="id in the history; null: there was no vote")]
    text: Annotated[str, Field(description="the answer")]
    level: Level
    confidence: Annotated[
        float | None,
        Field(description="probability that it is right; null: no calibration for this model and question type"),
    ]
    confidence_note: Annotated[str, Field(description="where the confidence comes from")]
    certificate: Annotated[str, Field(description="whether the answer is known to be the voters' most frequent one")]
    conflict: Annotated[bool, Field(description="no answer has more than half of the ballots")]
    disagreement: Annotated[float | None, Field(description="0: all agree, 1: all differ; null: there was no vote")]
    rounds: Annotated[int, Field(description="how often voters were asked; 0: there was no vote")]
    tokens: Annotated[int, Field(description="new tokens of all voters")]
    tokens_saved: Annotated[int, Field(description="tokens that voters did not have to give, as the vote had fallen")]
    seconds: Annotated[float, Field(description="time of the whole vote")]
    page: Annotated[str | None, Field(description="path of the page that shows the vote")]
    trail: Annotated[dict[str, Any] | None, Field(description="answers, their similarities, groups and the decision")]


class OutstandingLoad(BaseModel):
    """What a node has to do."""

    requests: Annotated[int, Field(description="requests that it has")]
    tokens: Annotated[int, Field(description="tokens that they may still take")]


class NodeStatus(BaseModel):
    """A node as this coordinator sees it."""

    name: Annotated[str, Field(description="its name in the cluster")]
    address: Annotated[str, Field(description="where coordinators call it")]
    type: Annotated[str, Field(description="whole, stage or expert: what of a model it runs")]
    model: Annotated[str, Field(description="the model that it runs")]
    model_hash: Annotated[str, Field(description="of the model's files")]
    layers: Annotated[list[int], Field(description="number of layers of each rank")]
    dtype: Annotated[str, Field(description="number format of the weights")]
    devices: Annotated[list[str], Field(description="the device of each rank")]
    memory_bytes: Annotated[int, Field(description="memory of its devices")]
    slots: Annotated[int, Field(description="requests that it answers at once")]
    tokens_per_s: Annotated[
        float, Field(description="median speed of its latest answers; before the third one that of its start")
    ]
    weight: Annotated[int, Field(description="multiplies it in weighted round robin")]
    meaningless: Annotated[bool, Field(description="the weights are random, and so are the answers")]
    gate: Annotated[str | None, Field(description="why it gets no requests; null: it does")]
    trouble: Annotated[str, Field(description="what the node says is wrong; empty: nothing")]
    score: Annotated[float, Field(description="its health, 0 to 100")]
    cpu_share: Annotated[float, Field(description="processor in use, 0 to 1, at the busiest rank")]
    memory_share: Annotated[float, Field(description="memory in use, 0 to 1, at the busiest rank")]
    response_s: Annotated[
        float | None, Field(description="mean time of its latest answers; null: none within five minutes")
    ]
    error_share: Annotated[float, Field(description="share of its latest requests that failed, 0 to 1")]
    outstanding: OutstandingLoad
    finished: Annotated[int, Field(description="requests that it finished since its start")]
    failed: Annotated[int, Field(description="requests that failed since its start")]
    tokens: Annotated[int, Field(description="tokens that it gave since its start")]
    restarts: Annotated[int, Field(description="how often it restarted its pipeline")]
    heartbeat_age_s: Annotated[float, Field(description="time since its last sign of life")]
    registered_s: Annotated[float, Field(description="time since it registered")]
    health_url: Annotated[str, Field(description="its health page over HTTP; empty: others cannot reach it")]

    @classmethod
    def of(cls, view: NodeView) -> "NodeStatus":
        """Return the status of a node."""
        registration = view.record.registration
        parts = (registration, registration.capabilities, view.record.state, view.record, view)  # the last one counts
        same = {name: getattr(part, name) for part in parts for name in cls.model_fields if hasattr(part, name)}
        given = {
            "name": registration.node,
            "layers": list(registration.capabilities.layers),
            "devices": list(registration.capabilities.devices),
            "weight": max(1, registration.weight),
            "outstanding": OutstandingLoad(requests=view.outstanding_requests, tokens=view.outstanding_tokens),
            "heartbeat_age_s": view.record.age_s,
            "health_url": health_url(registration),
        }
        return cls(**same | given)


class DeadTask(BaseModel):
    """A task that used up its attempts."""

    task_id: TaskId
    story: Story


@dataclass(frozen=True)
class Tasks(TaskCounts):
    """The numbers of tasks by state, and the tasks that used up their attempts."""

    dead_letters: tuple[DeadTask, ...] = ()


class TaskState(BaseModel):
    """The state of a task, and its result or why it has none."""

    task_id: TaskId
    state: Annotated[str, Field(description="pending, processing, completed, failed, dead or cancelled")]
    tokens: Annotated[int, Field(description="tokens so far")]
    attempts: Annotated[int, Field(description="how often it was begun; 0 until it has ended")]
    why: Annotated[str, Field(description="why it has no result; empty: it has, or may still get one")]
    story: Story
    result: Annotated[dict[str, Any] | None, Field(description="the answer; null: there is none")]


class ClusterStatus(BaseModel):
    """The cluster at a glance."""

    coordinator: Annotated[str, Field(description="name of this coordinator")]
    version: Annotated[str, Field(description="version of Qubic Lab")]
    ready: Annotated[bool, Field(description="whether a node is available")]
    nodes: Annotated[dict[str, int], Field(description="number of nodes by gate; open: available")]
    working: Annotated[int, Field(description="tasks that this coordinator has given to nodes")]
    tasks: Tasks
    read_only: Annotated[bool, Field(description="whether the token of this request may only read")] = False


class Liveness(BaseModel):
    """That this process is alive."""

    status: Annotated[Literal["alive"], Field(description="always the same")] = "alive"
    coordinator: Annotated[str, Field(description="name of this coordinator")]


class Readiness(BaseModel):
    """Whether requests are accepted; Redis's times in ms."""

    ready: Annotated[bool, Field(description="always true: otherwise the status is 503")]
    nodes_open: Annotated[int, Field(description="number of available nodes")]
    redis_ping_ms: Annotated[float, Field(description="time of a PING")]
    redis_set_ms: Annotated[float, Field(description="time of a SET")]
    redis_get_ms: Annotated[float, Field(description="time of a GET")]
