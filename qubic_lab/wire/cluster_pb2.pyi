from qubic_lab.wire import pipeline_pb2 as _pipeline_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeRegistration(_message.Message):
    __slots__ = ("node", "address", "type", "capabilities", "weight", "identity", "health_port")
    NODE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    HEALTH_PORT_FIELD_NUMBER: _ClassVar[int]
    node: str
    address: str
    type: str
    capabilities: Capabilities
    weight: int
    identity: str
    health_port: int
    def __init__(self, node: _Optional[str] = ..., address: _Optional[str] = ..., type: _Optional[str] = ..., capabilities: _Optional[_Union[Capabilities, _Mapping]] = ..., weight: _Optional[int] = ..., identity: _Optional[str] = ..., health_port: _Optional[int] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("model", "model_hash", "layers", "dtype", "devices", "memory_bytes", "slots", "tokens_per_s", "meaningless", "parameters")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    MEANINGLESS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_hash: str
    layers: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    devices: _containers.RepeatedScalarFieldContainer[str]
    memory_bytes: int
    slots: int
    tokens_per_s: float
    meaningless: bool
    parameters: int
    def __init__(self, model: _Optional[str] = ..., model_hash: _Optional[str] = ..., layers: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., devices: _Optional[_Iterable[str]] = ..., memory_bytes: _Optional[int] = ..., slots: _Optional[int] = ..., tokens_per_s: _Optional[float] = ..., meaningless: _Optional[bool] = ..., parameters: _Optional[int] = ...) -> None: ...

class Registered(_message.Message):
    __slots__ = ("session", "beat_every_s")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    BEAT_EVERY_S_FIELD_NUMBER: _ClassVar[int]
    session: str
    beat_every_s: float
    def __init__(self, session: _Optional[str] = ..., beat_every_s: _Optional[float] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("node", "session", "state")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    node: str
    session: str
    state: NodeState
    def __init__(self, node: _Optional[str] = ..., session: _Optional[str] = ..., state: _Optional[_Union[NodeState, _Mapping]] = ...) -> None: ...

class NodeState(_message.Message):
    __slots__ = ("cpu_share", "memory_share", "ready", "draining", "loads", "finished", "failed", "tokens", "restarts", "trouble", "resident_bytes", "disk_free_bytes", "disk_size_bytes", "certificate_ends_s", "context_tokens", "most_context_tokens", "ranks")
    class LoadsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Load
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Load, _Mapping]] = ...) -> None: ...
    CPU_SHARE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_SHARE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_ENDS_S_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MOST_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    cpu_share: float
    memory_share: float
    ready: bool
    draining: bool
    loads: _containers.MessageMap[str, Load]
    finished: int
    failed: int
    tokens: int
    restarts: int
    trouble: str
    resident_bytes: int
    disk_free_bytes: int
    disk_size_bytes: int
    certificate_ends_s: int
    context_tokens: int
    most_context_tokens: int
    ranks: _containers.RepeatedCompositeFieldContainer[_pipeline_pb2.RankCounts]
    def __init__(self, cpu_share: _Optional[float] = ..., memory_share: _Optional[float] = ..., ready: _Optional[bool] = ..., draining: _Optional[bool] = ..., loads: _Optional[_Mapping[str, Load]] = ..., finished: _Optional[int] = ..., failed: _Optional[int] = ..., tokens: _Optional[int] = ..., restarts: _Optional[int] = ..., trouble: _Optional[str] = ..., resident_bytes: _Optional[int] = ..., disk_free_bytes: _Optional[int] = ..., disk_size_bytes: _Optional[int] = ..., certificate_ends_s: _Optional[int] = ..., context_tokens: _Optional[int] = ..., most_context_tokens: _Optional[int] = ..., ranks: _Optional[_Iterable[_Union[_pipeline_pb2.RankCounts, _Mapping]]] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("requests", "tokens")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    requests: int
    tokens: int
    def __init__(self, requests: _Optional[int] = ..., tokens: _Optional[int] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("node", "session")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    node: str
    session: str
    def __init__(self, node: _Optional[str] = ..., session: _Optional[str] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TaskRequest(_message.Message):
    __slots__ = ("task", "coordinator", "request", "together")
    TASK_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TOGETHER_FIELD_NUMBER: _ClassVar[int]
    task: str
    coordinator: str
    request: _pipeline_pb2.GenerateRequest
    together: bool
    def __init__(self, task: _Optional[str] = ..., coordinator: _Optional[str] = ..., request: _Optional[_Union[_pipeline_pb2.GenerateRequest, _Mapping]] = ..., together: _Optional[bool] = ...) -> None: ...

class TaskResponse(_message.Message):
    __slots__ = ("reply", "alive", "done", "more")
    REPLY_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    reply: _pipeline_pb2.GenerateReply
    alive: SignOfLife
    done: Done
    more: _containers.RepeatedCompositeFieldContainer[TaskResponse]
    def __init__(self, reply: _Optional[_Union[_pipeline_pb2.GenerateReply, _Mapping]] = ..., alive: _Optional[_Union[SignOfLife, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., more: _Optional[_Iterable[_Union[TaskResponse, _Mapping]]] = ...) -> None: ...

class SignOfLife(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Done(_message.Message):
    __slots__ = ("node_ms",)
    NODE_MS_FIELD_NUMBER: _ClassVar[int]
    node_ms: float
    def __init__(self, node_ms: _Optional[float] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("content",)
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    def __init__(self, content: _Optional[bytes] = ...) -> None: ...

class MeterRequest(_message.Message):
    __slots__ = ("iperf3",)
    IPERF3_FIELD_NUMBER: _ClassVar[int]
    iperf3: bool
    def __init__(self, iperf3: _Optional[bool] = ...) -> None: ...

class Meter(_message.Message):
    __slots__ = ("port", "secret", "iperf3_port")
    PORT_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    IPERF3_PORT_FIELD_NUMBER: _ClassVar[int]
    port: int
    secret: bytes
    iperf3_port: int
    def __init__(self, port: _Optional[int] = ..., secret: _Optional[bytes] = ..., iperf3_port: _Optional[int] = ...) -> None: ...

class LinksRequest(_message.Message):
    __slots__ = ("addresses", "health_urls", "iperf3")
    class AddressesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class HealthUrlsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    HEALTH_URLS_FIELD_NUMBER: _ClassVar[int]
    IPERF3_FIELD_NUMBER: _ClassVar[int]
    addresses: _containers.ScalarMap[str, str]
    health_urls: _containers.ScalarMap[str, str]
    iperf3: bool
    def __init__(self, addresses: _Optional[_Mapping[str, str]] = ..., health_urls: _Optional[_Mapping[str, str]] = ..., iperf3: _Optional[bool] = ...) -> None: ...

class LinksReply(_message.Message):
    __slots__ = ("links",)
    LINKS_FIELD_NUMBER: _ClassVar[int]
    links: _containers.RepeatedCompositeFieldContainer[Link]
    def __init__(self, links: _Optional[_Iterable[_Union[Link, _Mapping]]] = ...) -> None: ...

class Link(_message.Message):
    __slots__ = ("node", "rtt_ms", "gbps", "trouble", "rtt_min_ms", "rtt_p95_ms", "loss", "iperf3_gbps", "health_ms")
    NODE_FIELD_NUMBER: _ClassVar[int]
    RTT_MS_FIELD_NUMBER: _ClassVar[int]
    GBPS_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    RTT_MIN_MS_FIELD_NUMBER: _ClassVar[int]
    RTT_P95_MS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    IPERF3_GBPS_FIELD_NUMBER: _ClassVar[int]
    HEALTH_MS_FIELD_NUMBER: _ClassVar[int]
    node: str
    rtt_ms: float
    gbps: float
    trouble: str
    rtt_min_ms: float
    rtt_p95_ms: float
    loss: float
    iperf3_gbps: float
    health_ms: float
    def __init__(self, node: _Optional[str] = ..., rtt_ms: _Optional[float] = ..., gbps: _Optional[float] = ..., trouble: _Optional[str] = ..., rtt_min_ms: _Optional[float] = ..., rtt_p95_ms: _Optional[float] = ..., loss: _Optional[float] = ..., iperf3_gbps: _Optional[float] = ..., health_ms: _Optional[float] = ...) -> None: ...
