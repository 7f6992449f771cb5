"""The worker's half of the stream, against clients that misbehave and clients that don't."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from tests import wire_routines as routines
from tests.runtime.worker.peers import (
    RawClient,
    Serving,
    by_value,
    call,
    connected,
    load,
    payload,
    raw,
    task_frame,
    task_of,
    working,
)
from tests.support import eventually
from wool import protocol
from wool.protocol import Chunk, Request, StopRequest
from wool.runtime import serializer
from wool.runtime.worker import service as service_module
from wool.runtime.worker.executor import REQUESTS
from wool.runtime.worker.framing import CHUNK, HIGH_WATER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from wool.protocol import Response

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def quiet() -> None:
    routines.log.clear()
    routines.gates.clear()


@pytest.fixture
async def worker() -> AsyncIterator[Serving]:
    async with working() as worker:
        yield worker


@pytest.fixture
async def client(worker: Serving) -> AsyncIterator[RawClient]:
    async with raw(worker.address) as client:
        await client.stream.initial_metadata()
        yield client


def request(call: int, kind: str) -> Request:
    frame = Request(call=call)
    setattr(frame, kind, 1 if kind == "next" else True)
    return frame


def large_task(number: int, value: object) -> tuple[list[Request], Request]:
    """The chunks of a task's arguments, and the frame that follows them."""
    data = bytes(serializer.dumps(((value,), {})).data)
    pieces = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    chunks = [Request(call=number, chunk=Chunk(size=len(data), data=p)) for p in pieces]
    frame = task_frame(number, routines.size, b"")
    frame.task.arguments.Clear()
    frame.task.arguments.chunked = True
    return chunks, frame


# A client that speaks by hand


async def test_result_implies_the_acknowledgement(client: RawClient) -> None:
    await client.write(task_frame(1, routines.echo, "good"))
    frame = await client.read()
    assert (frame.call, load(frame.result)) == (1, "good")


async def test_task_that_lasts_is_acknowledged(client: RawClient) -> None:
    await client.write(task_frame(1, routines.sleep, "acked"), task_frame(2, routines.noop))
    assert {(f.call, f.WhichOneof("kind")) for f in [await client.read(), await client.read()]} == {
        (1, "ack"),
        (2, "result"),
    }
    await client.write(Request(call=1, cancel=True))
    assert (await client.reply(1)).cancelling
    error = serializer.load_exception(_payload(await client.reply(1)))
    assert isinstance(error, asyncio.CancelledError)
    assert routines.log == ["acked started", "acked ended"]


def _payload(frame: Response) -> serializer.Payload:
    message = frame.exception
    return serializer.Payload.received(message.data, message.buffers, message.forms)


async def test_heartbeat_is_answered(client: RawClient) -> None:
    await client.write(Request(heartbeat=True))
    assert (await client.read()).heartbeat


async def test_frames_for_calls_that_are_over_or_unknown(client: RawClient) -> None:
    await client.write(
        *(request(9, kind) for kind in ("next", "close", "cancel", "withdraw")),
        Request(call=9, send=payload(1)),
        task_frame(1, routines.noop),
    )
    assert (await client.read()).call == 1


@pytest.mark.parametrize("order", ["cancel", "withdraw"])
async def test_chunks_of_a_call_that_is_given_back(client: RawClient, order: str) -> None:
    chunks, frame = large_task(1, bytes(3 * CHUNK))
    await client.write(*chunks[:2])
    await client.write(request(1, order))
    assert (await client.read()).nack.reason == "it was withdrawn before it ran"
    chunks, frame = large_task(2, bytes(3 * CHUNK))
    await client.write(*chunks, frame)
    assert load((await client.reply(2)).result) == 3 * CHUNK


async def test_chunks_of_a_value_that_is_cancelled(client: RawClient) -> None:
    """The stream is cancelled; it is not a task that has not arrived."""
    await client.write(task_frame(1, routines.talk, "value"))
    await client.reply(1)
    await client.write(Request(call=1, chunk=Chunk(size=10, data=b"half")))
    await client.write(Request(call=1, cancel=True))
    assert (await client.reply(1)).WhichOneof("kind") == "exception"
    assert routines.log == ["value ended"]


@pytest.mark.parametrize(
    "requests",
    [
        lambda: [Request(call=7)],
        lambda: [Request(call=7, chunk=Chunk(part=1))],
        lambda: [Request(call=7, chunk=Chunk(size=10**9))],
        lambda: [Request(call=n, chunk=Chunk(size=100 * MIB)) for n in range(7, 16)],
        lambda: [Request(call=7, send={"chunked": True})],
        lambda: [Request(call=7, task={"callable": {"number": 5}})],
        lambda: [Request(task={"callable": {"number": 257, "content": b"x"}})],
        lambda: [Request(call=7, task={})],
        lambda: [task_frame(1, routines.noop)],
    ],
    ids=[
        *("no kind", "chunk", "size", "under way", "incomplete"),
        *("undefined", "number", "no callable", "twice"),
    ],
)
async def test_client_that_breaks_the_protocol(
    worker: Serving, client: RawClient, requests: Callable[[], list[Request]]
) -> None:
    """It is cut off, what runs for it is cancelled, and others don't notice."""
    async with connected(worker.address) as other:
        await call(other, routines.noop)
        await client.write(task_frame(1, routines.sleep, "innocent"))
        await client.reply(1, to="ack")
        await client.write(*requests())
        await client.ended()
        await eventually(lambda: "innocent ended" in routines.log)
        assert await call(other, routines.echo, "good") == "good"


async def test_client_that_sends_no_batch(
    worker: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    async with grpc.aio.insecure_channel(worker.address) as channel:
        stream: Any = channel.stream_stream(protocol.DISPATCH)(metadata=protocol.versions())
        await stream.write(b"\xff\xff\xff")
        assert await stream.read() is grpc.aio.EOF
        del stream
    assert "A client broke the protocol and is cut off: Error parsing message" in caplog.text
    await eventually(lambda: not worker.service._sessions)


async def test_client_that_asks_more_of_a_call_than_it_can(client: RawClient) -> None:
    await client.write(task_frame(1, routines.sleep, "asked"))
    await client.reply(1, to="ack")
    await client.write(*(request(1, "next") for _ in range(REQUESTS)))
    await client.write(task_frame(2, routines.noop))
    await client.reply(2)
    assert routines.log == ["asked started"]
    await client.write(*(request(1, "next") for _ in range(REQUESTS)))
    error = serializer.load_exception(_payload(await client.reply(1)))
    assert isinstance(error, asyncio.CancelledError)
    assert routines.log == ["asked started", "asked ended"]


async def test_client_that_ends_without_farewell(client: RawClient) -> None:
    await client.write(task_frame(1, routines.sleep, "orphan"))
    await client.reply(1, to="ack")
    await client.stream.done_writing()
    await client.ended()
    await eventually(lambda: "orphan ended" in routines.log)


async def test_client_that_vanishes(worker: Serving) -> None:
    """A16."""
    async with raw(worker.address) as client:
        await client.write(task_frame(1, routines.sleep, "a16"), task_frame(2, routines.drip, "s"))
        await client.reply(1, to="ack")
        await client.reply(2)
    await eventually(lambda: {"a16 ended", "s ended"} <= {*routines.log})
    await eventually(lambda: not worker.service._sessions)
    assert not worker.service._sessions.unanswered


async def test_client_that_leaves_in_order(client: RawClient) -> None:
    await client.write(task_frame(1, routines.echo, "good"), task_frame(2, routines.sleep, "left"))
    assert load((await client.reply(1)).result) == "good"
    await client.write(last=True)
    await client.stream.done_writing()
    while not (batch := await client.stream.read()).last:
        pass
    assert not batch.frames
    assert await client.ended() is grpc.StatusCode.OK
    await eventually(lambda: routines.log == ["left started", "left ended"])


async def test_client_that_never_reads_stalls(worker: Serving) -> None:
    """What it could have read is bounded, and it is freed of it when it goes."""
    async with raw(worker.address) as client:
        await client.stream.initial_metadata()
        await eventually(lambda: worker.service._sessions)
        (session,) = worker.service._sessions
        for first in range(1, 2000, 10):
            many = (task_frame(n, routines.make, 100_000) for n in range(first, first + 10))
            try:
                async with asyncio.timeout(2):
                    await client.write(*many)
            except TimeoutError:
                break
            made = first + 9
            await eventually(lambda: session._crowded() or len(routines.log) >= made)  # noqa: B023
        await eventually(lambda: session._crowded())
        assert session._outbox.size < HIGH_WATER + 20 * MIB
    await eventually(lambda: not worker.service._sessions)


async def test_client_that_never_reads_keeps_no_worker_from_stopping(
    worker: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not begun for want of room is given back, what was is cancelled."""
    monkeypatch.setattr(service_module, "FAREWELL", 0.1)
    async with raw(worker.address) as client:
        await client.stream.initial_metadata()
        ahead = task_frame(1, routines.pieces, 100_000, 10**9, "ahead")
        ahead.task.prefetch = 2**32 - 1
        await client.write(ahead, *(task_frame(n, routines.make, 100_000) for n in range(2, 1000)))
        await eventually(lambda: [s for s in worker.service._sessions if s._crowded()])
        (session,) = worker.service._sessions
        assert session._exchange.pending
        async with asyncio.timeout(10):
            await worker.service.stop(StopRequest(timeout=0.1))
        assert not session._exchange.pending
        assert "ahead ended" in routines.log
        assert len(routines.log) < 500


async def test_client_that_reads_late_gets_everything(worker: Serving) -> None:
    async with raw(worker.address) as client:
        await client.stream.initial_metadata()

        async def write() -> None:
            for number in range(1, 301):
                await client.write(task_frame(number, routines.make, 100_000))

        writing = asyncio.create_task(write())
        await eventually(lambda: [s for s in worker.service._sessions if s._crowded()])
        heard: set[int] = set()
        while len(heard) < 300:
            heard.add((await client.read()).call)
        await writing
        assert heard == set(range(1, 301))


async def test_client_that_vanishes_while_it_is_written_to(worker: Serving) -> None:
    async with raw(worker.address) as client:
        await client.stream.initial_metadata()
        await client.write(task_frame(1, routines.sleep, "stuck"))
        await client.write(*(task_frame(n, routines.make, MIB) for n in range(2, 30)))
        await eventually(lambda: "stuck started" in routines.log)
        await eventually(lambda: worker.service._sessions)
        (session,) = worker.service._sessions
        await eventually(lambda: session._outbox.size > MIB)
    await eventually(lambda: "stuck ended" in routines.log)
    await eventually(lambda: not worker.service._sessions)


# A blocked routine loop


async def test_tasks_behind_a_blocked_loop_are_given_back(
    worker: Serving, client: RawClient
) -> None:
    """Those that came with the one that blocks, too. That one is taken, and said to be."""
    await client.write(task_frame(1, routines.block, "gate"), task_frame(2, routines.noop))
    await eventually(lambda: "gate started" in routines.log)
    await client.write(task_frame(3, routines.noop))
    await client.write(*(Request(call=n, withdraw=True) for n in (1, 2, 3)))
    kinds = {frame.call: frame.WhichOneof("kind") for frame in [await client.read() for _ in "123"]}
    assert kinds == {1: "ack", 2: "nack", 3: "nack"}
    assert worker.service._sessions.unanswered
    routines.gates["gate"].set()
    assert load((await client.reply(1)).result) == "gate"
    await eventually(lambda: not worker.service._sessions.unanswered)


# What callables and proxies are to a session


async def test_definitions_of_one_client_are_not_those_of_another(worker: Serving) -> None:
    async with raw(worker.address) as first, raw(worker.address) as second:
        frame = task_frame(1, by_value(b"12345"))
        frame.task.callable.number = 3
        await first.write(frame)
        assert load((await first.reply(1)).result) == 5
        again = task_frame(2, by_value(b""))
        again.task.callable.Clear()
        again.task.callable.number = 3
        await first.write(again)
        assert load((await first.reply(2)).result) == 5
        again.call = 1
        await second.write(again)
        assert await second.ended() is grpc.StatusCode.OK


async def test_sync_function_is_refused_in_band(worker: Serving) -> None:
    """A04: what can't be run is the call's error, not the connection's."""
    async with connected(worker.address) as connection:
        await call(connection, routines.noop)
        task = task_of(len, "x")
        task._arguments = task_of(routines.noop, "x").encode()
        task.definition = serializer.Dump(b"nbuiltins\0len", True)
        task.proxy_dump, task.proxy_error = b"", ""
        stream = await connection.dispatch(task)
        with pytest.raises(TypeError, match=r"builtins\.len is not a function"):
            await anext(stream)
        assert await call(connection, routines.echo, "good") == "good"
