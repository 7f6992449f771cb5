"""gRPC's standard health service, `grpc.health.v1.Health`, of a worker.

Its messages have one field each and are put together here: the package that has them wants a later
protobuf than wool does. See https://github.com/grpc/grpc/blob/master/doc/health-checking.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc
import grpc.aio

from wool import protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    Context = grpc.aio.ServicerContext[str, int]

SERVICE: Final = "grpc.health.v1.Health"
SERVING: Final = 1
NOT_SERVING: Final = 2
SERVICE_UNKNOWN: Final = 3

KNOWN: Final = ("", protocol.SERVICE)
"""The names to ask about: the server as a whole, and the service of workers."""


class EventLike(Protocol):
    """That something has come to be."""

    def is_set(self) -> bool: ...

    async def wait(self) -> None: ...


class Health:
    """Says NOT_SERVING from when `stopping` is set, and nothing after `stopped`."""

    def __init__(self, stopping: EventLike, stopped: EventLike) -> None:
        self._stopping = stopping
        self._stopped = stopped

    def _status(self) -> int:
        return NOT_SERVING if self._stopping.is_set() else SERVING

    async def check(self, service: str, context: Context) -> int:
        """The status of a service; NOT_FOUND for one that isn't known."""
        if service not in KNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {service!r}")
        return self._status()

    async def watch(self, service: str, context: Context) -> AsyncIterator[int]:
        """The status of a service, and again when it changes."""
        if service not in KNOWN:
            yield SERVICE_UNKNOWN
        else:
            yield self._status()
            if not self._stopping.is_set():
                await self._stopping.wait()
                yield self._status()
        await self._stopped.wait()


def add_to_server(health: Health, server: grpc.aio.Server) -> None:
    """Serve it on `server`."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Check": grpc.unary_unary_rpc_method_handler(
            health.check, request_deserializer=_service, response_serializer=_response
        ),
        "Watch": grpc.unary_stream_rpc_method_handler(
            health.watch, request_deserializer=_service, response_serializer=_response
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _service(request: bytes) -> str:
    """The name in a HealthCheckRequest, whose field 1 is a string, as that of a `Nack` is."""
    return protocol.Nack.FromString(request).reason


def _response(status: int) -> bytes:
    """A HealthCheckResponse, whose field 1 is the number of the status."""
    return bytes([1 << 3, status])
