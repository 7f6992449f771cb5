"""The gate of versions, on a real worker's service."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from tests import wire_routines as routines
from tests.runtime.worker.peers import (
    LAST,
    Dialogue,
    Scripted,
    call,
    connected,
    raw,
    served,
    task_frame,
    working,
)
from wool import protocol
from wool.protocol import Response, ResponseBatch
from wool.runtime.errors import RpcError, TransientRpcError
from wool.runtime.worker import interceptor
from wool.runtime.worker.connection import WorkerConnection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OURS = protocol.__version__
WIRE = str(protocol.WIRE)
MAJOR = int(OURS.split(".")[0])
NEWER = f"{MAJOR}.9999"
OTHER = f"{MAJOR + 1}.0"


def metadata(version: str | None, wire: str | None) -> tuple[tuple[str, str], ...]:
    pairs = (protocol.VERSION_KEY, version), (protocol.WIRE_KEY, wire)
    return tuple((key, value) for key, value in pairs if value is not None)


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (metadata(OURS, None), f"Incompatible wire format: client None (wool '{OURS}')"),
        (metadata(OURS, "999"), f"Incompatible wire format: client '999' (wool '{OURS}')"),
        (metadata("0.15.7", None), "Incompatible wire format: client None (wool '0.15.7')"),
        ((), "Incompatible wire format: client None (wool '')"),
        (metadata(None, WIRE), f"Unparseable version: client '', worker '{OURS}'"),
        (metadata("newest", WIRE), f"Unparseable version: client 'newest', worker '{OURS}'"),
        (metadata(NEWER, WIRE), f"Incompatible version: client {NEWER}, worker {OURS}"),
        (metadata(OTHER, WIRE), f"Incompatible version: client {OTHER}, worker {OURS}"),
    ],
)
async def test_client_that_is_refused(theirs: tuple[tuple[str, str], ...], reason: str) -> None:
    """Among them one like the published package of the same name, which has no wire number."""
    async with working() as worker, raw(worker.address, theirs) as client:
        await client.stream.initial_metadata()
        assert await client.ended() is grpc.StatusCode.FAILED_PRECONDITION
        details = await client.stream.details()
        assert reason in details
        assert OURS in details


async def test_refusal_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every time: it is awaited before the first frame is written."""
    async with working() as worker:
        monkeypatch.setattr(protocol, "versions", lambda: metadata("9.0", WIRE))
        for _ in range(50):
            async with connected(worker.address) as connection:
                with pytest.raises(RpcError, match=r"Incompatible version: client 9\.0") as caught:
                    await call(connection, routines.noop)
                assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
                assert not isinstance(caught.value, TransientRpcError)


async def test_refusal_of_a_client_that_speaks_first() -> None:
    async with working() as worker, raw(worker.address, metadata("0.15.7", None)) as client:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await client.write(task_frame(1, routines.noop))
        assert await client.ended() is not grpc.StatusCode.OK


async def test_older_client_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "__version__", "0.2.0")
    async with working() as worker, raw(worker.address, metadata("0.1.9", WIRE)) as client:
        answer = dict(await client.stream.initial_metadata())
        assert answer[protocol.WIRE_KEY] == WIRE
        await client.write(task_frame(1, routines.noop))
        assert (await client.reply(1)).WhichOneof("kind") == "result"


async def test_unparsable_worker_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "__version__", "unknown")
    async with working() as worker, raw(worker.address, metadata("0.1", WIRE)) as client:
        assert await client.ended() is grpc.StatusCode.FAILED_PRECONDITION


async def test_stop_is_not_gated() -> None:
    """Else a worker of another version could not be stopped."""
    async with working() as worker, grpc.aio.insecure_channel(worker.address) as channel:
        await protocol.WorkerStub(channel).stop(protocol.StopRequest(timeout=0))
        assert worker.service.stopped.is_set()


def test_mismatch_none() -> None:
    assert interceptor.mismatch(dict(protocol.versions())) is None


# Workers that are not of our kind


async def foreign(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
    """Speaks before it is spoken to, and has no wire number."""
    yield ResponseBatch(frames=[Response(call=1, ack=True)])
    await dialogue.end()
    yield LAST


async def test_worker_without_a_wire_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wool.runtime.worker.connection.REFUSAL_TIMEOUT", 0.1)
    servicer = Scripted(foreign, initial=False)
    async with served(servicer, gate=False) as address, connected(address) as connection:
        with pytest.raises(RpcError, match="speaks another wire format: client '1'") as caught:
            await call(connection, routines.noop)
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION


async def mute(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
    await dialogue.end()
    yield LAST


async def test_worker_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Busy or foreign, who knows."""
    monkeypatch.setattr("wool.runtime.worker.connection.OPEN_TIMEOUT", 0.2)
    servicer = Scripted(mute, initial=False)
    async with served(servicer, gate=False) as address, connected(address) as connection:
        with pytest.raises(TransientRpcError, match=r"did not answer within 0\.2 s") as caught:
            await call(connection, routines.noop)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_server_that_has_no_such_service() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with connected(f"127.0.0.1:{port}") as connection:
            with pytest.raises(RpcError, match="UNIMPLEMENTED") as caught:
                await call(connection, routines.noop)
            assert not isinstance(caught.value, TransientRpcError)
            with pytest.raises(RpcError, match="UNIMPLEMENTED"):
                await connection.stop()
    finally:
        await server.stop(0)


async def test_nobody_listens() -> None:
    connection = WorkerConnection("unix:/tmp/wool-nobody/s")
    with pytest.raises(TransientRpcError, match="UNAVAILABLE"):
        await call(connection, routines.noop)
    await connection.close()
