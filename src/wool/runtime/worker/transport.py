"""How wool sets up gRPC on both sides, and how gRPC's errors become ours."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Any, Final

import grpc

from wool.runtime.errors import HandshakeError, RpcError, TransientRpcError, WorkerFull
from wool.runtime.worker.base import CONNECTION_LIMITS

if TYPE_CHECKING:
    import asyncio

    from wool import protocol
    from wool.runtime.worker.base import ChannelOptions, WorkerOptions

Arguments = list[tuple[str, int]]

MAX_MESSAGE: Final = 16 * 1024 * 1024
"""Bytes in one gRPC message, which batching and chunking keep far below."""

UNLIMITED: Final = 2**31 - 1

TRANSIENT: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)

CODES: Final = {code.value[0]: code for code in grpc.StatusCode if code is not grpc.StatusCode.OK}


def obstacle(host: str | None, port: int) -> str | None:
    """Why gRPC can't listen there, which it doesn't say itself, if that can be found out."""
    try:
        for family, kind, number, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, number) as attempt:
                attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                attempt.bind(address)
    except (OSError, UnicodeError) as exc:
        return str(exc)
    return None


def _shared(options: ChannelOptions) -> Arguments:
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_send_message_length", MAX_MESSAGE),
        ("grpc.keepalive_time_ms", options.keepalive_time_ms),
        ("grpc.keepalive_timeout_ms", options.keepalive_timeout_ms),
        ("grpc.http2.ping_timeout_ms", options.keepalive_timeout_ms),
        ("grpc.keepalive_permit_without_calls", int(options.keepalive_permit_without_calls)),
        ("grpc.http2.max_pings_without_data", options.max_pings_without_data),
        ("grpc.default_compression_algorithm", options.compression),
    ]


def client_arguments(options: ChannelOptions) -> Arguments:
    """gRPC's channel arguments for a client of a worker with these options."""
    return [
        *_shared(options),
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # Not a backoff, but how long one attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", 20_000),
    ]


def server_arguments(options: WorkerOptions) -> Arguments:
    """gRPC's channel arguments for a worker with these options."""
    limits = {name: getattr(options, name) for name in CONNECTION_LIMITS}
    return [
        *((f"grpc.{name}", value) for name, value in limits.items() if value is not None),
        *_shared(options.channel),
        ("grpc.so_reuseport", 0),
        ("grpc.server.max_pending_requests", UNLIMITED),
        ("grpc.server.max_pending_requests_hard_limit", UNLIMITED),
        (
            "grpc.http2.min_recv_ping_interval_without_data_ms",
            options.http2_min_recv_ping_interval_without_data_ms,
        ),
        ("grpc.http2.max_ping_strikes", options.max_ping_strikes),
    ]


HANDSHAKE: Final = re.compile(r"handshake|SSL_ERROR|certificate|hostname verification", re.I)
"""What gRPC says of a failed handshake, for which it has no status of its own."""

CAUSES: Final = {
    "has expired": "a certificate has expired",
    "not yet valid": "a certificate is not valid yet",
    "hostname verification": "the certificate is for another name than {name}",
    "not in peer certificate": "the certificate is for another name than {name}",
    "wrong_version_number": "the worker does not speak TLS",
    "certificate_required": "the worker wants a certificate of its clients",
    "unknown_ca": "the worker does not trust the authority of this client's certificate",
    "verify_failed": "the certificate is of an authority that is not trusted",
}
"""In plain words, by what gRPC's text of a failed handshake contains; the first one counts."""


def rpc_error(
    code: grpc.StatusCode | None, details: str | None, name: str = "the worker's address"
) -> RpcError:
    """Ours for a status of gRPC's. `name` says what the worker's certificate must be for."""
    if code is grpc.StatusCode.UNAVAILABLE and HANDSHAKE.search(details or ""):
        text = str(details)
        cause = next((said for mark, said in CAUSES.items() if mark in text.lower()), "")
        return HandshakeError(code, f"{cause.format(name=name)}: {text}" if cause else text)
    return (TransientRpcError if code in TRANSIENT else RpcError)(code, details)


def nack_error(nack: protocol.Nack) -> RpcError:
    """Ours for a task that a worker has refused."""
    code = CODES.get(nack.code, grpc.StatusCode.UNAVAILABLE)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return WorkerFull(code, nack.reason)
    return (TransientRpcError if code in TRANSIENT else RpcError)(code, nack.reason)


def overlook_closed_loops(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle exceptions of a loop, but for what gRPC has to tell another one that is closed."""
    if str(context.get("exception")) != "Event loop is closed":
        loop.default_exception_handler(context)
