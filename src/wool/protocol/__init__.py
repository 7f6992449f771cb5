"""The wire contract: generated messages, the service's glue, and the versions that must agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc
import grpc.aio

from wool._version import __version__
from wool.protocol.wire_pb2 import (
    ChannelOptions,
    Chunk,
    Definition,
    Nack,
    Payload,
    Request,
    RequestBatch,
    Response,
    ResponseBatch,
    RunningTask,
    RuntimeContext,
    Segment,
    Status,
    StatusRequest,
    StopRequest,
    Task,
    Void,
    WorkerMetadata,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WIRE: Final = 1
"""The number of this wire format. The published package of the same name has none."""

VERSION_KEY: Final = "wool-version"
WIRE_KEY: Final = "wool-wire"
ARENA_KEY: Final = "wool-arena"
"""Where an arena is to be found: the client's offer, and the worker's if it takes that."""

SERVICE: Final = "wool.protocol.Worker"
DISPATCH: Final = f"/{SERVICE}/dispatch"
STOP: Final = f"/{SERVICE}/stop"
STATUS: Final = f"/{SERVICE}/status"


def versions() -> tuple[tuple[str, str], ...]:
    """What a client says about itself when it opens a session, as gRPC metadata."""
    return (VERSION_KEY, __version__), (WIRE_KEY, str(WIRE))


class WorkerServicer(Protocol):
    """The server's side of the service."""

    def dispatch(
        self,
        requests: AsyncIterator[RequestBatch],
        context: grpc.aio.ServicerContext[RequestBatch, ResponseBatch],
    ) -> AsyncIterator[ResponseBatch]: ...

    async def stop(
        self, request: StopRequest, context: grpc.aio.ServicerContext[StopRequest, Void]
    ) -> Void: ...

    async def status(
        self, request: StatusRequest, context: grpc.aio.ServicerContext[StatusRequest, Status]
    ) -> Status: ...


class WorkerStub:
    """The client's side of the service, on `channel`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.dispatch = channel.stream_stream(
            DISPATCH,
            request_serializer=RequestBatch.SerializeToString,
            response_deserializer=ResponseBatch.FromString,
        )
        self.stop = channel.unary_unary(
            STOP,
            request_serializer=StopRequest.SerializeToString,
            response_deserializer=Void.FromString,
        )
        self.status = channel.unary_unary(
            STATUS,
            request_serializer=StatusRequest.SerializeToString,
            response_deserializer=Status.FromString,
        )


def add_to_server(servicer: WorkerServicer, server: grpc.aio.Server) -> None:
    """Serve `servicer` on `server`."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "dispatch": grpc.stream_stream_rpc_method_handler(
            servicer.dispatch,
            request_deserializer=RequestBatch.FromString,
            response_serializer=ResponseBatch.SerializeToString,
        ),
        "stop": grpc.unary_unary_rpc_method_handler(
            servicer.stop,
            request_deserializer=StopRequest.FromString,
            response_serializer=Void.SerializeToString,
        ),
        "status": grpc.unary_unary_rpc_method_handler(
            servicer.status,
            request_deserializer=StatusRequest.FromString,
            response_serializer=Status.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


__all__ = [
    "ARENA_KEY",
    "DISPATCH",
    "SERVICE",
    "STATUS",
    "STOP",
    "VERSION_KEY",
    "WIRE",
    "WIRE_KEY",
    "ChannelOptions",
    "Chunk",
    "Definition",
    "Nack",
    "Payload",
    "Request",
    "RequestBatch",
    "Response",
    "ResponseBatch",
    "RunningTask",
    "RuntimeContext",
    "Segment",
    "Status",
    "StatusRequest",
    "StopRequest",
    "Task",
    "Void",
    "WorkerMetadata",
    "WorkerServicer",
    "WorkerStub",
    "__version__",
    "add_to_server",
    "versions",
]
