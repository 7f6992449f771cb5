"""The gate at which a session's versions are checked, before its first frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from wool import protocol
from wool.runtime.worker.version import is_version_compatible, parse_version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping


Q = TypeVar("Q")
R = TypeVar("R")


class VersionInterceptor(grpc.aio.ServerInterceptor):
    """Refuses, with FAILED_PRECONDITION, sessions of clients that this worker can't serve."""

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Q, R] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Q, R] | None:
        if handler_call_details.method == protocol.DISPATCH:
            reason = mismatch(dict(handler_call_details.invocation_metadata or ()))
            if reason is not None:
                return _refusal(reason)
        return await continuation(handler_call_details)


def mismatch(metadata: Mapping[str, str | bytes]) -> str | None:
    """Why a client that says this about itself can't be served; None if it can."""
    wire = metadata.get(protocol.WIRE_KEY)
    client = str(metadata.get(protocol.VERSION_KEY, ""))
    if wire != str(protocol.WIRE):
        return (
            f"Incompatible wire format: client {wire!r} (wool {client!r}), "
            f"worker '{protocol.WIRE}' (wool {protocol.__version__!r})"
        )
    if client == protocol.__version__:
        return None
    theirs, ours = parse_version(client), parse_version(protocol.__version__)
    if theirs is None or ours is None:
        return f"Unparseable version: client {client!r}, worker {protocol.__version__!r}"
    if not is_version_compatible(theirs, ours):
        return f"Incompatible version: client {client}, worker {protocol.__version__}"
    return None


def _refusal(reason: str) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(
        requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason)
        yield

    return grpc.stream_stream_rpc_method_handler(refuse)
