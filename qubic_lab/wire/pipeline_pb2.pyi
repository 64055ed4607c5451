from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Settings(_message.Message):
    __slots__ = ("model_folder", "layers", "dtype", "device", "threads", "lanes", "slots_per_lane", "capture_folder", "trace_folder", "model", "strategy", "meaningless", "kernels", "compression", "speculation", "quantization", "kv_tokens", "prefix_caching")
    MODEL_FOLDER_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_PER_LANE_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_FOLDER_FIELD_NUMBER: _ClassVar[int]
    TRACE_FOLDER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    MEANINGLESS_FIELD_NUMBER: _ClassVar[int]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHING_FIELD_NUMBER: _ClassVar[int]
    model_folder: str
    layers: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    device: str
    threads: int
    lanes: int
    slots_per_lane: int
    capture_folder: str
    trace_folder: str
    model: str
    strategy: str
    meaningless: bool
    kernels: str
    compression: str
    speculation: str
    quantization: str
    kv_tokens: int
    prefix_caching: bool
    def __init__(self, model_folder: _Optional[str] = ..., layers: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., threads: _Optional[int] = ..., lanes: _Optional[int] = ..., slots_per_lane: _Optional[int] = ..., capture_folder: _Optional[str] = ..., trace_folder: _Optional[str] = ..., model: _Optional[str] = ..., strategy: _Optional[str] = ..., meaningless: _Optional[bool] = ..., kernels: _Optional[str] = ..., compression: _Optional[str] = ..., speculation: _Optional[str] = ..., quantization: _Optional[str] = ..., kv_tokens: _Optional[int] = ..., prefix_caching: _Optional[bool] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Description(_message.Message):
    __slots__ = ("settings", "ranks")
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    settings: Settings
    ranks: _containers.RepeatedCompositeFieldContainer[RankDescription]
    def __init__(self, settings: _Optional[_Union[Settings, _Mapping]] = ..., ranks: _Optional[_Iterable[_Union[RankDescription, _Mapping]]] = ...) -> None: ...

class RankDescription(_message.Message):
    __slots__ = ("rank", "pid", "stage", "weight_bytes", "peak_rss_bytes", "gpu_used_bytes", "gpu_reserved_bytes", "counts", "page_bytes", "free_bytes", "host")
    RANK_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PEAK_RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPU_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPU_RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    PAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    rank: int
    pid: int
    stage: str
    weight_bytes: int
    peak_rss_bytes: int
    gpu_used_bytes: int
    gpu_reserved_bytes: int
    counts: RankCounts
    page_bytes: int
    free_bytes: int
    host: str
    def __init__(self, rank: _Optional[int] = ..., pid: _Optional[int] = ..., stage: _Optional[str] = ..., weight_bytes: _Optional[int] = ..., peak_rss_bytes: _Optional[int] = ..., gpu_used_bytes: _Optional[int] = ..., gpu_reserved_bytes: _Optional[int] = ..., counts: _Optional[_Union[RankCounts, _Mapping]] = ..., page_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., host: _Optional[str] = ...) -> None: ...

class RankCounts(_message.Message):
    __slots__ = ("rank", "steps", "tokens", "compute_s", "wait_s", "resident_bytes", "gpu_bytes")
    RANK_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPU_BYTES_FIELD_NUMBER: _ClassVar[int]
    rank: int
    steps: int
    tokens: int
    compute_s: float
    wait_s: float
    resident_bytes: int
    gpu_bytes: int
    def __init__(self, rank: _Optional[int] = ..., steps: _Optional[int] = ..., tokens: _Optional[int] = ..., compute_s: _Optional[float] = ..., wait_s: _Optional[float] = ..., resident_bytes: _Optional[int] = ..., gpu_bytes: _Optional[int] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "ignore_eos", "stop", "logprobs", "top_logprobs", "min_p", "presence_penalty", "frequency_penalty", "logit_bias")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    ignore_eos: bool
    stop: _containers.RepeatedScalarFieldContainer[str]
    logprobs: bool
    top_logprobs: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    def __init__(self, max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., seed: _Optional[int] = ..., ignore_eos: _Optional[bool] = ..., stop: _Optional[_Iterable[str]] = ..., logprobs: _Optional[bool] = ..., top_logprobs: _Optional[int] = ..., min_p: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("prompt", "token_ids", "raw", "sampling", "id", "deadline_s", "model", "samples", "forced_token_ids", "whole", "messages", "prompt_logprobs")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FORCED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    raw: bool
    sampling: Sampling
    id: str
    deadline_s: float
    model: str
    samples: int
    forced_token_ids: _containers.RepeatedScalarFieldContainer[int]
    whole: bool
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    prompt_logprobs: int
    def __init__(self, prompt: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., raw: _Optional[bool] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., id: _Optional[str] = ..., deadline_s: _Optional[float] = ..., model: _Optional[str] = ..., samples: _Optional[int] = ..., forced_token_ids: _Optional[_Iterable[int]] = ..., whole: _Optional[bool] = ..., messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., prompt_logprobs: _Optional[int] = ...) -> None: ...

class GenerateReply(_message.Message):
    __slots__ = ("token", "end", "sample")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    token: Token
    end: End
    sample: int
    def __init__(self, token: _Optional[_Union[Token, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ..., sample: _Optional[int] = ...) -> None: ...

class ListenRequest(_message.Message):
    __slots__ = ("listener",)
    LISTENER_FIELD_NUMBER: _ClassVar[int]
    listener: str
    def __init__(self, listener: _Optional[str] = ...) -> None: ...

class Submission(_message.Message):
    __slots__ = ("listener", "call", "request")
    LISTENER_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    listener: str
    call: int
    request: GenerateRequest
    def __init__(self, listener: _Optional[str] = ..., call: _Optional[int] = ..., request: _Optional[_Union[GenerateRequest, _Mapping]] = ...) -> None: ...

class Submitted(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Heard(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    def __init__(self, parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("call", "reply", "failure")
    CALL_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    call: int
    reply: GenerateReply
    failure: Failure
    def __init__(self, call: _Optional[int] = ..., reply: _Optional[_Union[GenerateReply, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("status", "text")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    status: int
    text: str
    def __init__(self, status: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("id", "text", "logprob", "top", "raw")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    id: int
    text: str
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TopToken]
    raw: bytes
    def __init__(self, id: _Optional[int] = ..., text: _Optional[str] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TopToken, _Mapping]]] = ..., raw: _Optional[bytes] = ...) -> None: ...

class TopToken(_message.Message):
    __slots__ = ("id", "logprob", "raw")
    ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    id: int
    logprob: float
    raw: bytes
    def __init__(self, id: _Optional[int] = ..., logprob: _Optional[float] = ..., raw: _Optional[bytes] = ...) -> None: ...

class ScoredToken(_message.Message):
    __slots__ = ("id", "raw", "logprob", "top")
    ID_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    id: int
    raw: bytes
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TopToken]
    def __init__(self, id: _Optional[int] = ..., raw: _Optional[bytes] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TopToken, _Mapping]]] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("id", "listener", "call")
    ID_FIELD_NUMBER: _ClassVar[int]
    LISTENER_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    id: str
    listener: str
    call: int
    def __init__(self, id: _Optional[str] = ..., listener: _Optional[str] = ..., call: _Optional[int] = ...) -> None: ...

class CancelReply(_message.Message):
    __slots__ = ("found",)
    FOUND_FIELD_NUMBER: _ClassVar[int]
    found: bool
    def __init__(self, found: _Optional[bool] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsReply(_message.Message):
    __slots__ = ("slots", "requests", "most_requests", "finished", "failed", "tokens", "uptime_s", "context_tokens", "most_context_tokens", "ranks")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MOST_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MOST_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    slots: int
    requests: int
    most_requests: int
    finished: int
    failed: int
    tokens: int
    uptime_s: float
    context_tokens: int
    most_context_tokens: int
    ranks: _containers.RepeatedCompositeFieldContainer[RankCounts]
    def __init__(self, slots: _Optional[int] = ..., requests: _Optional[int] = ..., most_requests: _Optional[int] = ..., finished: _Optional[int] = ..., failed: _Optional[int] = ..., tokens: _Optional[int] = ..., uptime_s: _Optional[float] = ..., context_tokens: _Optional[int] = ..., most_context_tokens: _Optional[int] = ..., ranks: _Optional[_Iterable[_Union[RankCounts, _Mapping]]] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ("text", "finish_reason", "prompt_tokens", "ttft_ms", "tokens_per_s", "request", "token_ids", "logprobs", "prompt", "queue_ms", "drafted_tokens", "cached_tokens")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    text: str
    finish_reason: str
    prompt_tokens: int
    ttft_ms: float
    tokens_per_s: float
    request: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    prompt: _containers.RepeatedCompositeFieldContainer[ScoredToken]
    queue_ms: float
    drafted_tokens: int
    cached_tokens: int
    def __init__(self, text: _Optional[str] = ..., finish_reason: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., ttft_ms: _Optional[float] = ..., tokens_per_s: _Optional[float] = ..., request: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., prompt: _Optional[_Iterable[_Union[ScoredToken, _Mapping]]] = ..., queue_ms: _Optional[float] = ..., drafted_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ...) -> None: ...
