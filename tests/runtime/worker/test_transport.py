from __future__ import annotations

import grpc
import pytest

from wool.runtime.errors import RpcError, TransientRpcError
from wool.runtime.worker.base import ChannelOptions, WorkerOptions
from wool.runtime.worker.transport import (
    MAX_MESSAGE,
    client_arguments,
    rpc_error,
    server_arguments,
)

TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@pytest.mark.parametrize("code", grpc.StatusCode)
def test_rpc_error_transient_or_not(code: grpc.StatusCode) -> None:
    error = rpc_error(code, "why")
    assert isinstance(error, RpcError)
    assert isinstance(error, TransientRpcError) == (code in TRANSIENT)
    assert (error.code, error.details) == (code, "why")
    assert str(error) == f"{code.name}: why"


def test_rpc_error_without_a_code() -> None:
    assert str(rpc_error(None, None)) == ""
    assert str(rpc_error(None, "why")) == "why"


def test_both_sides_ping_at_the_same_pace_and_tell_a_dead_peer() -> None:
    options = ChannelOptions(keepalive_time_ms=9_000, keepalive_timeout_ms=4_000)
    client = dict(client_arguments(options))
    server = dict(server_arguments(WorkerOptions(channel=options)))
    for side in (client, server):
        assert side["grpc.keepalive_time_ms"] == 9_000
        assert side["grpc.keepalive_timeout_ms"] == 4_000
        assert side["grpc.http2.ping_timeout_ms"] == 4_000
    assert server["grpc.http2.min_recv_ping_interval_without_data_ms"] <= 9_000


def test_connections_have_no_limits_but_those_asked_for() -> None:
    names = {f"grpc.max_connection_{name}_ms" for name in ("idle", "age", "age_grace")}
    assert names.isdisjoint(dict(server_arguments(WorkerOptions())))
    limited = WorkerOptions(
        max_connection_idle_ms=1, max_connection_age_ms=2, max_connection_age_grace_ms=3
    )
    server = dict(server_arguments(limited))
    assert [server[name] for name in sorted(names)] == [3, 2, 1]


def test_server_arguments_shed_and_share_nothing() -> None:
    server = dict(server_arguments(WorkerOptions()))
    assert server["grpc.so_reuseport"] == 0
    assert server["grpc.server.max_pending_requests"] > 10**9
    assert server["grpc.server.max_pending_requests_hard_limit"] > 10**9
    assert "grpc.max_concurrent_streams" not in server


def test_client_arguments_go_past_proxies() -> None:
    client = dict(client_arguments(ChannelOptions()))
    assert client["grpc.enable_http_proxy"] == 0
    assert client["grpc.max_receive_message_length"] == MAX_MESSAGE


def test_payload_limits_are_not_those_of_messages() -> None:
    options = ChannelOptions(max_receive_message_length=1, max_send_message_length=1)
    assert dict(client_arguments(options))["grpc.max_send_message_length"] == MAX_MESSAGE
