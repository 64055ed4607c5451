"""Request and response bodies of the interface."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from qubic_lab.cluster.fleet import NodeView
from qubic_lab.cluster.http_health import health_url
from qubic_lab.cluster.tasks import TaskCounts
from qubic_lab.core import MAX_COUNT, MAX_SEED, MAX_TOP_LOGPROBS, SamplingParams
from qubic_lab.core import Request as LabRequest
from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.wire import pipeline_pb2

MOST_PROMPT_CHARACTERS = 500_000
MOST_NEW_TOKENS = 32_768
MOST_DEADLINE_S = 3_600.0
MOST_STOPS = 16
_ONLY_OPENAI = {"min_p", "presence_penalty", "frequency_penalty", "logit_bias"}
_SAMPLING = tuple(name for name in SamplingParams.__dataclass_fields__ if name not in _ONLY_OPENAI)


class Query(BaseModel):
    """A question and how to answer it; the sampling fields are those of the pipeline."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1, max_length=MOST_PROMPT_CHARACTERS)]
    raw: Annotated[bool, Field(description="send the text without the chat template")] = False
    max_new_tokens: Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS)] = SamplingParams.max_new_tokens
    temperature: Annotated[float, Field(ge=0.0, le=100.0, description="0 is greedy")] = 0.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    ignore_eos: bool = False
    stop: Annotated[list[str], Field(max_length=MOST_STOPS)] = []
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0
    mode: Annotated[
        Literal["auto", "consensus", "single"],
        Field(description="consensus: several nodes vote; auto: one node answers if the cluster is busy"),
    ] = "single"
    stream: Annotated[bool, Field(description="answer with server-sent events: token, end, error")] = False
    priority: Literal["high", "normal", "low"] = "normal"
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
        values = {name: getattr(self, name) for name in _SAMPLING}
        try:
            LabRequest(self.prompt, raw=self.raw, sampling=SamplingParams(**values | {"stop": tuple(self.stop)}))
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    def to_message(self) -> pipeline_pb2.GenerateRequest:
        """Return the request to a node."""
        sampling = pipeline_pb2.Sampling(**{name: getattr(self, name) for name in _SAMPLING})
        return pipeline_pb2.GenerateRequest(prompt=self.prompt, raw=self.raw, sampling=sampling)


class Token(BaseModel):
    """A token of an answer: its index, id, and the text that became certain with it."""

    index: int
    id: int
    text: str
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] = []


class QueryResponse(BaseModel):
    """A whole answer and its cost; times in ms.

    `node_ms` is the time of the node that finished it, `total_ms` runs from this request's arrival. More than one of
    `attempts` means that a replica was lost during the answer and another one continued.
    """

    task_id: str
    mode: Literal["single"] = "single"
    text: str
    token_ids: list[int]
    logprobs: list[float] | None = None
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    model: str
    node: str
    attempts: int
    ttft_ms: float
    tokens_per_s: float
    node_ms: float
    total_ms: float


class ConsensusResponse(BaseModel):
    """The result of a vote; `trail` holds the answers, their similarities, the groups and the decision.

    `mode` is single if one node answered without a vote; `mode_reason` says why. `confidence` is a probability, or None
    without a calibration for this model and question type. `certificate` says whether the answer is known to be the
    voters' most frequent one.
    """

    mode: Literal["consensus", "single"]
    mode_reason: str
    vote_id: str | None
    text: str
    level: str
    confidence: float | None
    confidence_note: str
    certificate: str
    conflict: bool
    disagreement: float | None
    rounds: int
    tokens: int
    tokens_saved: int
    seconds: float
    page: str | None
    trail: dict[str, Any] | None


class OutstandingLoad(BaseModel):
    """The outstanding requests and tokens of a node."""

    requests: int
    tokens: int


class NodeStatus(BaseModel):
    """A node as this coordinator sees it: `gate` says why it gets no requests; `score` is its health, 0 to 100.

    `response_s` is the mean time of its latest answers, null if there were none within five minutes; `tokens_per_s`
    their median speed, before the third one that of its start. `weight` multiplies it in weighted round robin.
    `health_url` is its health page over HTTP, empty if others cannot reach it.
    """

    name: str
    address: str
    type: str
    model: str
    model_hash: str
    layers: list[int]
    dtype: str
    devices: list[str]
    memory_bytes: int
    slots: int
    tokens_per_s: float
    weight: int
    meaningless: bool
    gate: str | None
    trouble: str
    score: float
    cpu_share: float
    memory_share: float
    response_s: float | None
    error_share: float
    outstanding: OutstandingLoad
    finished: int
    failed: int
    tokens: int
    restarts: int
    heartbeat_age_s: float
    registered_s: float
    health_url: str

    @classmethod
    def of(cls, view: NodeView) -> "NodeStatus":
        """Return the status of a node."""
        registration, state = view.record.registration, view.record.state
        can = registration.capabilities
        return cls(
            name=registration.node,
            address=registration.address,
            type=registration.type,
            model=can.model,
            model_hash=can.model_hash,
            layers=list(can.layers),
            dtype=can.dtype,
            devices=list(can.devices),
            memory_bytes=can.memory_bytes,
            slots=can.slots,
            tokens_per_s=view.tokens_per_s,
            weight=max(1, registration.weight),
            meaningless=can.meaningless,
            gate=view.gate,
            trouble=state.trouble,
            score=view.score,
            cpu_share=state.cpu_share,
            memory_share=state.memory_share,
            response_s=view.response_s,
            error_share=view.error_share,
            outstanding=OutstandingLoad(requests=view.outstanding_requests, tokens=view.outstanding_tokens),
            finished=state.finished,
            failed=state.failed,
            tokens=state.tokens,
            restarts=state.restarts,
            heartbeat_age_s=view.record.age_s,
            registered_s=view.record.registered_s,
            health_url=health_url(registration),
        )


class DeadTask(BaseModel):
    """A task that used up its attempts, with a line about each."""

    task_id: str
    story: list[str]


@dataclass(frozen=True)
class Tasks(TaskCounts):
    """The numbers of tasks by state, and the tasks that used up their attempts."""

    dead_letters: tuple[DeadTask, ...] = ()


class TaskState(BaseModel):
    """The state of a task, and its result or why it has none."""

    task_id: str
    state: str
    tokens: int
    attempts: int
    why: str
    story: list[str]
    result: dict[str, Any] | None


class ClusterStatus(BaseModel):
    """The cluster at a glance; nodes are counted by gate (`open`: available)."""

    coordinator: str
    version: str
    ready: bool
    nodes: dict[str, int]
    working: int
    tasks: Tasks


class Readiness(BaseModel):
    """Whether requests are accepted; Redis's times in ms."""

    ready: bool
    nodes_open: int
    redis_ping_ms: float
    redis_set_ms: float
    redis_get_ms: float
