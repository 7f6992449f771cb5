"""Handshakes that fail: what is said of them, and that the worker is kept."""

from __future__ import annotations

import datetime
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import psutil
import pytest
import trustme

import wool
from tests.runtime.worker.routines import echo
from wool import LocalWorker, WorkerCredentials, WorkerMetadata, WorkerProxy, protocol
from wool.runtime.errors import HandshakeError, RpcError
from wool.runtime.worker.transport import rpc_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from wool.runtime.worker.auth import Credentials

AUTHORITY = trustme.CA()


def issue(
    *names: str, authority: trustme.CA = AUTHORITY, trusted: trustme.CA = AUTHORITY, **more: Any
) -> WorkerCredentials:
    """Credentials of a certificate by `authority`, whose holder trusts those by `trusted`."""
    certificate = authority.issue_cert(*names, **more)
    return WorkerCredentials(
        trusted.cert_pem.bytes(),
        certificate.private_key_pem.bytes(),
        certificate.cert_chain_pems[0].bytes(),
    )


@asynccontextmanager
async def serving(credentials: Credentials | None) -> AsyncIterator[WorkerMetadata]:
    worker = LocalWorker(host="127.0.0.1", credentials=credentials)
    await worker.start()
    assert worker.metadata is not None
    try:
        yield worker.metadata
    finally:
        await worker.stop()


LAST_YEAR = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=365)
STRANGER = trustme.CA()


@pytest.mark.parametrize(
    ("worker", "client", "reason"),
    [
        (issue("127.0.0.1"), issue("me", trusted=STRANGER), "of an authority that is not trusted"),
        (issue("192.0.2.1"), issue("me"), "for another name than '127.0.0.1'"),
        (issue("127.0.0.1", not_after=LAST_YEAR), issue("me"), "a certificate has expired"),
    ],
    ids=["authority", "name", "expired"],
)
async def test_handshake_that_fails_keeps_the_worker_and_says_why(
    worker: WorkerCredentials,
    client: WorkerCredentials,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A65."""
    async with (
        serving(worker) as metadata,
        WorkerProxy(workers=[metadata], credentials=client) as proxy,
    ):
        for _ in range(3):
            with pytest.raises(wool.NoWorkersAvailable, match=reason) as caught:
                await echo(1)
            assert isinstance(caught.value.__cause__, HandshakeError)
            assert proxy.workers == [metadata]
    told = [record for record in caplog.records if record.name == "wool.connection"]
    assert len(told) == 1
    assert told[0].levelno == logging.WARNING
    assert metadata.address in told[0].getMessage()


async def test_worker_that_says_it_is_secure_and_is_not() -> None:
    async with serving(None) as metadata:
        claim = WorkerMetadata(
            metadata.uid, metadata.address, metadata.pid, metadata.version, secure=True
        )
        async with WorkerProxy(workers=[claim], credentials=issue("me")):
            with pytest.raises(wool.NoWorkersAvailable, match="does not speak TLS"):
                await echo(1)


async def test_client_that_the_worker_does_not_trust() -> None:
    """The refusal comes after the handshake is over for the client: it sees an end, no reason."""
    async with serving(issue("127.0.0.1")) as metadata:
        stranger = issue("me", authority=STRANGER)
        async with WorkerProxy(workers=[metadata], credentials=stranger):
            with pytest.raises((wool.NoWorkersAvailable, TimeoutError)):
                await echo(1)
        async with WorkerProxy(workers=[metadata], credentials=issue("me")):
            assert await echo("still here") == "still here"


@pytest.mark.parametrize("host", ["127.0.0.1", None])
async def test_worker_with_credentials_has_no_other_door(host: str | None) -> None:
    worker = LocalWorker(host=host, credentials=issue("127.0.0.1", "localhost"))
    await worker.start()
    assert worker.metadata is not None
    process = psutil.Process(worker.metadata.pid)
    ports = [
        f"{each.laddr.ip.removeprefix('::ffff:')}:{each.laddr.port}"
        for each in process.net_connections("inet")
        if each.status == psutil.CONN_LISTEN
    ]
    sockets = {f"unix:{each.laddr}" for each in process.net_connections("unix") if each.laddr}
    assert {*ports, *sockets} == {worker.metadata.address}
    async with grpc.aio.insecure_channel(worker.metadata.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await protocol.WorkerStub(channel).stop(protocol.StopRequest(timeout=0), timeout=5)
    async with WorkerProxy(workers=[worker.metadata], credentials=issue("me")):
        assert await echo("alive") == "alive"
    await worker.stop()


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Ssl handshake failed: SSL_ERROR_SSL", HandshakeError),
        (grpc.StatusCode.UNAVAILABLE, "Hostname Verification Check failed.", HandshakeError),
        (grpc.StatusCode.INTERNAL, "Ssl handshake failed", RpcError),
        (grpc.StatusCode.UNAVAILABLE, "Connection refused", wool.TransientRpcError),
        (grpc.StatusCode.UNAVAILABLE, None, wool.TransientRpcError),
    ],
)
def test_handshake_is_told_from_other_failures(
    code: grpc.StatusCode, details: str | None, kind: type[RpcError]
) -> None:
    assert type(rpc_error(code, details)) is kind
