"""How wool sets up gRPC on both sides, and how gRPC's errors become ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc

from wool.runtime.errors import RpcError, TransientRpcError

if TYPE_CHECKING:
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
    return [
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


def rpc_error(code: grpc.StatusCode | None, details: str | None) -> RpcError:
    """Ours for a status of gRPC's."""
    return (TransientRpcError if code in TRANSIENT else RpcError)(code, details)
