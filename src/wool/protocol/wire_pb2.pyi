from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RequestBatch(_message.Message):
    __slots__ = ("frames", "last")
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedCompositeFieldContainer[Request]
    last: bool
    def __init__(self, frames: _Optional[_Iterable[_Union[Request, _Mapping]]] = ..., last: bool = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("call", "task", "next", "send", "throw", "close", "cancel", "chunk", "withdraw", "heartbeat", "release", "reachable")
    CALL_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    SEND_FIELD_NUMBER: _ClassVar[int]
    THROW_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    WITHDRAW_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    REACHABLE_FIELD_NUMBER: _ClassVar[int]
    call: int
    task: Task
    next: int
    send: Payload
    throw: Payload
    close: bool
    cancel: bool
    chunk: Chunk
    withdraw: bool
    heartbeat: bool
    release: bool
    reachable: bool
    def __init__(self, call: _Optional[int] = ..., task: _Optional[_Union[Task, _Mapping]] = ..., next: _Optional[int] = ..., send: _Optional[_Union[Payload, _Mapping]] = ..., throw: _Optional[_Union[Payload, _Mapping]] = ..., close: bool = ..., cancel: bool = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., withdraw: bool = ..., heartbeat: bool = ..., release: bool = ..., reachable: bool = ...) -> None: ...

class ResponseBatch(_message.Message):
    __slots__ = ("frames", "last")
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedCompositeFieldContainer[Response]
    last: bool
    def __init__(self, frames: _Optional[_Iterable[_Union[Response, _Mapping]]] = ..., last: bool = ...) -> None: ...

class Response(_message.Message):
    __slots__ = ("call", "ack", "nack", "result", "item", "done", "exception", "chunk", "heartbeat", "cancelling", "release", "room")
    CALL_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    NACK_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    EXCEPTION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    CANCELLING_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ROOM_FIELD_NUMBER: _ClassVar[int]
    call: int
    ack: bool
    nack: Nack
    result: Payload
    item: Payload
    done: bool
    exception: Payload
    chunk: Chunk
    heartbeat: bool
    cancelling: bool
    release: bool
    room: int
    def __init__(self, call: _Optional[int] = ..., ack: bool = ..., nack: _Optional[_Union[Nack, _Mapping]] = ..., result: _Optional[_Union[Payload, _Mapping]] = ..., item: _Optional[_Union[Payload, _Mapping]] = ..., done: bool = ..., exception: _Optional[_Union[Payload, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., heartbeat: bool = ..., cancelling: bool = ..., release: bool = ..., room: _Optional[int] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("data", "buffers", "chunked", "forms", "segment")
    DATA_FIELD_NUMBER: _ClassVar[int]
    BUFFERS_FIELD_NUMBER: _ClassVar[int]
    CHUNKED_FIELD_NUMBER: _ClassVar[int]
    FORMS_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    buffers: _containers.RepeatedScalarFieldContainer[bytes]
    chunked: bool
    forms: bytes
    segment: Segment
    def __init__(self, data: _Optional[bytes] = ..., buffers: _Optional[_Iterable[bytes]] = ..., chunked: bool = ..., forms: _Optional[bytes] = ..., segment: _Optional[_Union[Segment, _Mapping]] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("offset", "sizes", "forms")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    FORMS_FIELD_NUMBER: _ClassVar[int]
    offset: int
    sizes: _containers.RepeatedScalarFieldContainer[int]
    forms: bytes
    def __init__(self, offset: _Optional[int] = ..., sizes: _Optional[_Iterable[int]] = ..., forms: _Optional[bytes] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("part", "size", "data", "form")
    PART_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    part: int
    size: int
    data: bytes
    form: int
    def __init__(self, part: _Optional[int] = ..., size: _Optional[int] = ..., data: _Optional[bytes] = ..., form: _Optional[int] = ...) -> None: ...

class Definition(_message.Message):
    __slots__ = ("number", "content", "reusable")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    REUSABLE_FIELD_NUMBER: _ClassVar[int]
    number: int
    content: bytes
    reusable: bool
    def __init__(self, number: _Optional[int] = ..., content: _Optional[bytes] = ..., reusable: bool = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("id", "caller", "tag", "callable", "proxy", "proxy_error", "timeout", "context", "serializer", "arguments", "prefetch", "trace")
    class TraceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    CALLABLE_FIELD_NUMBER: _ClassVar[int]
    PROXY_FIELD_NUMBER: _ClassVar[int]
    PROXY_ERROR_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    SERIALIZER_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    caller: bytes
    tag: str
    callable: Definition
    proxy: Definition
    proxy_error: str
    timeout: float
    context: RuntimeContext
    serializer: bytes
    arguments: Payload
    prefetch: int
    trace: _containers.ScalarMap[str, str]
    def __init__(self, id: _Optional[bytes] = ..., caller: _Optional[bytes] = ..., tag: _Optional[str] = ..., callable: _Optional[_Union[Definition, _Mapping]] = ..., proxy: _Optional[_Union[Definition, _Mapping]] = ..., proxy_error: _Optional[str] = ..., timeout: _Optional[float] = ..., context: _Optional[_Union[RuntimeContext, _Mapping]] = ..., serializer: _Optional[bytes] = ..., arguments: _Optional[_Union[Payload, _Mapping]] = ..., prefetch: _Optional[int] = ..., trace: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Nack(_message.Message):
    __slots__ = ("reason", "code")
    REASON_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    code: int
    def __init__(self, reason: _Optional[str] = ..., code: _Optional[int] = ...) -> None: ...

class RuntimeContext(_message.Message):
    __slots__ = ("dispatch_timeout",)
    DISPATCH_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    dispatch_timeout: float
    def __init__(self, dispatch_timeout: _Optional[float] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("timeout",)
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    timeout: float
    def __init__(self, timeout: _Optional[float] = ...) -> None: ...

class Void(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("tasks",)
    TASKS_FIELD_NUMBER: _ClassVar[int]
    tasks: bool
    def __init__(self, tasks: bool = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("worker", "draining", "uptime", "idle", "running", "done", "failed", "refused", "sessions", "loop_lag", "cpu", "memory", "tasks")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    LOOP_LAG_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    worker: WorkerMetadata
    draining: bool
    uptime: float
    idle: float
    running: int
    done: int
    failed: int
    refused: int
    sessions: int
    loop_lag: float
    cpu: float
    memory: int
    tasks: _containers.RepeatedCompositeFieldContainer[RunningTask]
    def __init__(self, worker: _Optional[_Union[WorkerMetadata, _Mapping]] = ..., draining: bool = ..., uptime: _Optional[float] = ..., idle: _Optional[float] = ..., running: _Optional[int] = ..., done: _Optional[int] = ..., failed: _Optional[int] = ..., refused: _Optional[int] = ..., sessions: _Optional[int] = ..., loop_lag: _Optional[float] = ..., cpu: _Optional[float] = ..., memory: _Optional[int] = ..., tasks: _Optional[_Iterable[_Union[RunningTask, _Mapping]]] = ...) -> None: ...

class RunningTask(_message.Message):
    __slots__ = ("id", "tag", "caller", "seconds", "stack")
    ID_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    STACK_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    tag: str
    caller: bytes
    seconds: float
    stack: str
    def __init__(self, id: _Optional[bytes] = ..., tag: _Optional[str] = ..., caller: _Optional[bytes] = ..., seconds: _Optional[float] = ..., stack: _Optional[str] = ...) -> None: ...

class ChannelOptions(_message.Message):
    __slots__ = ("max_receive_message_length", "max_send_message_length", "keepalive_time_ms", "keepalive_timeout_ms", "keepalive_permit_without_calls", "max_pings_without_data", "compression")
    MAX_RECEIVE_MESSAGE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_SEND_MESSAGE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    KEEPALIVE_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    KEEPALIVE_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    KEEPALIVE_PERMIT_WITHOUT_CALLS_FIELD_NUMBER: _ClassVar[int]
    MAX_PINGS_WITHOUT_DATA_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    max_receive_message_length: int
    max_send_message_length: int
    keepalive_time_ms: int
    keepalive_timeout_ms: int
    keepalive_permit_without_calls: bool
    max_pings_without_data: int
    compression: int
    def __init__(self, max_receive_message_length: _Optional[int] = ..., max_send_message_length: _Optional[int] = ..., keepalive_time_ms: _Optional[int] = ..., keepalive_timeout_ms: _Optional[int] = ..., keepalive_permit_without_calls: bool = ..., max_pings_without_data: _Optional[int] = ..., compression: _Optional[int] = ...) -> None: ...

class WorkerMetadata(_message.Message):
    __slots__ = ("uid", "address", "pid", "version", "tags", "extra", "secure", "options", "wire", "identity")
    UID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    EXTRA_FIELD_NUMBER: _ClassVar[int]
    SECURE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    WIRE_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    uid: bytes
    address: str
    pid: int
    version: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    extra: str
    secure: bool
    options: ChannelOptions
    wire: int
    identity: str
    def __init__(self, uid: _Optional[bytes] = ..., address: _Optional[str] = ..., pid: _Optional[int] = ..., version: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., extra: _Optional[str] = ..., secure: bool = ..., options: _Optional[_Union[ChannelOptions, _Mapping]] = ..., wire: _Optional[int] = ..., identity: _Optional[str] = ...) -> None: ...
