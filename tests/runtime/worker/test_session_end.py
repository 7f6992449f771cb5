"""What a session makes of what has arrived when its stream ends, or is no use any more."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests import wire_routines as routines
from tests.runtime.worker.peers import (
    OPTIONS,
    call,
    connected,
    frames,
    payload,
    session_of,
    task_of,
)
from tests.support import eventually
from wool import protocol
from wool.protocol import RequestBatch, Response, ResponseBatch
from wool.runtime.errors import TransientRpcError, WorkerLost
from wool.runtime.worker.framing import pause
from wool.runtime.worker.session import Session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from wool.runtime.worker.connection import WorkerConnection

CALLS = 100


class Departing:
    """A worker, on threads, that answers its first calls, in order, when told to, and leaves."""

    def __init__(self, *last: bytes) -> None:
        self._last = last
        self._leave = threading.Event()
        self._left = threading.Event()

    def dispatch(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        assert context.add_callback(self._left.set)
        context.send_initial_metadata(protocol.versions())
        calls: list[int] = []
        while len(calls) < CALLS:
            batch = RequestBatch.FromString(next(requests))
            calls += [frame.call for frame in batch.frames if frame.HasField("task")]
        self._leave.wait(10)
        yield from map(result, calls[: CALLS - len(self._last)])
        yield from self._last

    def leave(self) -> None:
        """Returns when it has left."""
        self._leave.set()
        assert self._left.wait(10)

    @contextmanager
    def served(self) -> Iterator[str]:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]
        handlers = {"dispatch": grpc.stream_stream_rpc_method_handler(self.dispatch)}
        with ThreadPoolExecutor(1) as threads, tempfile.TemporaryDirectory(dir="/tmp") as directory:
            server = grpc.server(threads)
            handler = grpc.method_handlers_generic_handler(protocol.SERVICE, handlers)
            server.add_generic_rpc_handlers((handler,))
            server.add_insecure_port(f"unix:{directory}/s")
            server.start()
            try:
                yield f"unix:{directory}/s"
            finally:
                server.stop(0).wait()


def result(number: int) -> bytes:
    return frames(Response(call=number, result=payload(number))).SerializeToString()


async def part(connection: WorkerConnection, worker: Departing) -> list[asyncio.Task[Any]]:
    """Calls, and the worker's leaving before any answer is read."""
    calls = [asyncio.create_task(call(connection, routines.noop)) for _ in range(CALLS)]
    await eventually(lambda: sent(connection) == CALLS)
    worker.leave()  # This loop reads nothing meanwhile.
    return calls


async def write_in_vain(connection: WorkerConnection) -> list[asyncio.Task[Any]]:
    """More calls, one in each turn, until a write has failed."""
    session = session_of(connection)
    calls = []
    while not session._writer.done():
        assert session.accepting
        calls.append(asyncio.create_task(call(connection, routines.noop)))
        await asyncio.sleep(0)
    return calls


def sent(connection: WorkerConnection) -> int:
    session = connection._link.ready if connection._link is not None else None
    return 0 if session is None else sum(c.stage.name == "SENT" for c in session._calls.values())


async def test_what_had_arrived_when_a_write_fails_is_heard() -> None:
    worker = Departing()
    with worker.served() as address:
        async with connected(address) as connection:
            calls = await part(connection, worker)
            late = await write_in_vain(connection)
            outcomes = await asyncio.gather(*calls, *late, return_exceptions=True)
    assert outcomes[:CALLS] == [*range(1, CALLS + 1)]
    assert {type(outcome) for outcome in outcomes[CALLS:]} <= {WorkerLost, TransientRpcError}
    reasons = ("without a farewell", "broke during a write")
    assert all(any(map(str(outcome).__contains__, reasons)) for outcome in outcomes[CALLS:])


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (frames(Response(call=CALLS)).SerializeToString(), "of no kind known here"),
        (b"\xff", "is no message"),
    ],
)
async def test_fault_after_a_write_has_failed(
    wrong: bytes,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """gRPC's RPC can't be cancelled then, and is not left behind, which `task_check` sees to."""
    caplog.set_level(logging.CRITICAL)  # What is logged holds the channel.
    over = []
    reject = Session._reject

    def recorded(session: Session, error: Exception) -> None:
        over.append(not session._stream.cancel())
        reject(session, error)

    monkeypatch.setattr(Session, "_reject", recorded)
    worker = Departing(wrong, wrong, wrong)
    with worker.served() as address:
        async with connected(address) as connection:
            calls = await part(connection, worker)
            late = await write_in_vain(connection)
            outcomes = await asyncio.gather(*calls, *late, return_exceptions=True)
    assert over == [True]
    assert outcomes[: CALLS - 3] == [*range(1, CALLS - 2)]
    assert {type(outcome) for outcome in outcomes[CALLS - 3 : CALLS]} == {WorkerLost}
    assert all(reason in str(outcome) for outcome in outcomes[CALLS - 3 :])


@pytest.mark.parametrize("late", range(12))
async def test_connection_closed_when_a_write_fails(late: int) -> None:
    """However far that has come; `task_check` sees to it that nothing stays behind."""
    worker = Departing()
    with worker.served() as address:
        async with connected(address) as connection:
            calls = await part(connection, worker)
            for _ in range(late):
                calls.append(asyncio.create_task(call(connection, routines.noop)))
                await asyncio.sleep(0)
            async with asyncio.timeout(10):
                await connection.close()
                await asyncio.wait(calls)
    kinds = {type(task.exception()) for task in calls if not task.cancelled()}
    assert kinds <= {type(None), WorkerLost, TransientRpcError}


class Stream:
    """What a session has of a gRPC call, in the hands of the test."""

    def __init__(self) -> None:
        self.written: list[int] = []
        self._coming: asyncio.Queue[ResponseBatch | BaseException] = asyncio.Queue()
        self._over = False

    def bring(self, what: ResponseBatch | Exception) -> None:
        self._coming.put_nowait(what)

    async def write(self, batch: RequestBatch) -> None:
        if self._over:
            raise asyncio.InvalidStateError
        self.written += [frame.call for frame in batch.frames]

    async def done_writing(self) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[ResponseBatch]:
        while isinstance(coming := await self._coming.get(), ResponseBatch):
            yield coming
        if isinstance(coming, asyncio.CancelledError):
            await pause(10)  # As with gRPC, and long enough for the writer to write.
        raise coming

    def cancel(self) -> bool:
        if self._over:
            return False
        self._over = True
        self._coming.put_nowait(asyncio.CancelledError())
        return True


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (frames(Response(call=1)), "a frame of call 1 is of no kind known here"),
        (LookupError("broken"), r"could not be taken: LookupError\('broken'\)"),
    ],
)
async def test_fault_while_tasks_wait_to_be_written(
    what: ResponseBatch | Exception, reason: str
) -> None:
    """Those may go to another worker, and more are not taken."""
    stream = Stream()
    session = Session(stream, OPTIONS)
    sent = [session.submit(task_of(routines.noop)) for _ in range(CALLS)]
    await eventually(lambda: len(stream.written) == CALLS)
    stream.bring(what)
    late = session.submit(task_of(routines.noop))  # The writer lets others add to it.
    for each in sent:
        with pytest.raises(WorkerLost, match=reason):
            await each.accepted(None)
    with pytest.raises(TransientRpcError, match=reason):
        await late.accepted(None)
    with pytest.raises(TransientRpcError, match="takes no more calls"):
        session.submit(task_of(routines.noop))
    assert stream.written == [each.number for each in sent]
    await session.close()
