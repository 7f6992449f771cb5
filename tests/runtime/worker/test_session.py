"""The client's half of the stream, against scripted workers and one in this process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests import wire_routines as routines
from tests.runtime.worker.peers import (
    LAST,
    Dialogue,
    Scripted,
    by_value,
    call,
    connected,
    frames,
    payload,
    served,
    session_of,
    task_of,
    working,
)
from tests.support import eventually
from wool.protocol import Chunk, Response
from wool.runtime.errors import (
    PayloadTooLarge,
    TransientRpcError,
    UnexpectedResponse,
    WorkerLost,
)
from wool.runtime.routine.task import LARGEST_DEFINITION
from wool.runtime.worker import session as session_module
from wool.runtime.worker.base import ChannelOptions
from wool.runtime.worker.framing import BATCH, CHUNK, DEFINITIONS, HIGH_WATER, OVERHEAD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from wool.protocol import Request, ResponseBatch

MIB = 1024 * 1024


async def obliging(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
    """Answers each task with its number."""
    while True:
        try:
            frame = await dialogue.next()
        except StopAsyncIteration:
            break
        if frame.WhichOneof("kind") == "task":
            yield frames(Response(call=frame.call, result=payload(frame.call)))
    yield LAST


def tasks(servicer: Scripted) -> list[Request]:
    return [frame for frame in servicer.dialogue.heard if frame.WhichOneof("kind") == "task"]


def saying(*responses: Callable[[int], Response]) -> Scripted:
    """A worker that says this of the first task it hears of."""

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        number = (await dialogue.kind("task")).call
        yield frames(*(response(number) for response in responses))
        await dialogue.end()

    return Scripted(script)


# Batches and definitions


async def test_frames_of_a_burst_share_messages() -> None:
    servicer = Scripted(obliging)
    async with served(servicer) as address, connected(address) as connection:
        assert await call(connection, routines.noop) == 1
        before = len(servicer.dialogue.batches)
        await asyncio.gather(*(call(connection, routines.noop) for _ in range(1000)))
        assert len(tasks(servicer)) == 1001
        assert len(servicer.dialogue.batches) - before < 50
        assert len(servicer.dialogues) == 1


async def test_lone_call_leaves_at_once() -> None:
    servicer = Scripted(obliging)
    async with served(servicer) as address, connected(address) as connection:
        for _ in range(10):
            await call(connection, routines.noop)
        assert [len(batch.frames) for batch in servicer.dialogue.batches] == [1] * 10


async def test_what_repeats_is_sent_once() -> None:
    servicer = Scripted(obliging)
    async with served(servicer) as address, connected(address) as connection:
        for routine in (routines.noop, routines.echo, routines.noop, routines.echo):
            await call(connection, routine, *([] if routine is routines.noop else [1]))
        heard = tasks(servicer)
    assert [frame.task.callable.number for frame in heard] == [1, 3, 1, 3]
    assert [bool(frame.task.callable.content) for frame in heard] == [True, True, False, False]
    assert [frame.task.proxy.number for frame in heard] == [2, 2, 2, 2]
    assert [bool(frame.task.proxy.content) for frame in heard] == [True, False, False, False]


async def test_definition_evicted_is_sent_again() -> None:
    servicer = Scripted(obliging)
    async with (
        working() as real,
        connected(real.address) as to_real,
        served(servicer) as address,
        connected(address) as connection,
    ):
        for each in (connection, to_real):
            for i in [*range(DEFINITIONS + 20), 0, DEFINITIONS + 19]:
                result = await call(each, by_value(bytes(i)))
                assert each is connection or result == i
        heard = tasks(servicer)
    numbers = [frame.task.callable.number for frame in heard]
    assert set(numbers) == set(range(1, DEFINITIONS + 1)) - {2}
    assert heard[0].task.callable.content == heard[-2].task.callable.content
    assert not heard[-1].task.callable.content
    assert all(frame.task.proxy.number == 2 for frame in heard)


async def test_task_left_out_defines_what_others_refer_to() -> None:
    async with working() as worker, connected(worker.address) as connection:
        await call(connection, routines.noop)
        session = session_of(connection)
        routine = by_value(b"123")
        left_out = session.submit(task_of(routine))
        kept = session.submit(task_of(routine))
        session.drop(left_out)

        assert await anext(kept) == 3


async def test_large_callable_travels_with_the_arguments() -> None:
    async with working() as worker, connected(worker.address) as connection:
        for amount in (LARGEST_DEFINITION, CHUNK, 3 * CHUNK):
            assert await call(connection, by_value(bytes(amount))) == amount
        assert len(session_of(connection)._definitions._numbers) == 1


async def test_many_heavy_callables_at_once() -> None:
    """They count towards the size of a message, which gRPC would refuse."""
    async with working() as worker, connected(worker.address) as connection:
        heavy = [by_value(i.to_bytes(2, "big") * 30_000) for i in range(400)]
        await call(connection, routines.noop)
        assert await asyncio.gather(*(call(connection, each) for each in heavy)) == [60_000] * 400


# Large payloads


async def test_large_payload_travels_in_pieces_beside_small_calls() -> None:
    sizes: list[int] = []

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        async for batch in obliging(dialogue):
            yield batch
        sizes.extend(batch.ByteSize() for batch in dialogue.batches)

    servicer = Scripted(script)
    async with served(servicer) as address, connected(address) as connection:
        large = call(connection, routines.size, bytes(20 * MIB))
        await asyncio.gather(large, call(connection, routines.noop))
        assert [frame.call for frame in tasks(servicer)] == [2, 1]
    assert max(sizes) < BATCH + 2 * CHUNK


@pytest.mark.parametrize("where", ["arguments", "result", "exception", "item"])
async def test_payload_too_large(where: str) -> None:
    """It fails its call, naming the option and both sizes, and leaves the session alone."""
    options = ChannelOptions(
        max_receive_message_length=2 * CHUNK, max_send_message_length=CHUNK // 2
    )
    expected: dict[str, Any] = {
        "arguments": (
            routines.size,
            bytes(2 * CHUNK),
            r"The call of .*size:\d+ with arguments of ",
        ),
        "result": (routines.make, CHUNK // 2, r"A result of .*make:\d+ of "),
        "exception": (routines.fail, "x" * CHUNK, r"The LookupError that .*fail:\d+ raised of "),
        "item": (routines.talk, "", "A item of "),
    }
    routine, argument, text = expected[where]
    side = "receive" if where == "arguments" else "send"
    async with (
        working(options=options) as worker,
        connected(worker.address, options=options) as connection,
    ):
        assert await call(connection, routines.size, bytes(CHUNK)) == CHUNK
        session = session_of(connection)
        stream = await connection.dispatch(task_of(routines.pieces, CHUNK, 1))
        with pytest.raises(PayloadTooLarge, match=rf"max_{side}_message_length") as caught:
            await (anext(stream) if where == "item" else call(connection, routine, argument))
        await stream.aclose()
        if where != "item":
            assert caught.match(text)
        assert caught.value.limit == (2 * CHUNK if side == "receive" else CHUNK // 2)
        assert caught.value.size > caught.value.limit
        assert await call(connection, routines.echo, "good") == "good"
        assert session_of(connection) is session


# High-water marks


async def test_worker_that_does_not_read_stalls_the_writer() -> None:
    resume = asyncio.Event()

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        await resume.wait()
        async for batch in obliging(dialogue):
            yield batch

    async with served(Scripted(script)) as address, connected(address) as connection:
        calls = [
            asyncio.create_task(call(connection, routines.size, bytes(100_000))) for _ in range(300)
        ]
        await eventually(lambda: connection._link and connection._link._session)
        session = session_of(connection)
        await eventually(lambda: session._small_gate._queue)
        waiting = len(session._small_gate._queue)
        assert session._outbox.size + session._small_gate._granted < HIGH_WATER + 2 * MIB
        assert waiting > 100
        resume.set()
        assert sorted(await asyncio.gather(*calls)) == list(range(1, 301))
        assert session._outbox.size == session._small_gate._granted == 0


async def test_calls_without_payloads_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes more in its caller than in what waits to be written."""
    monkeypatch.setattr("wool.runtime.worker.session.HIGH_WATER", 100 * OVERHEAD)
    async with served(Scripted(obliging)) as address, connected(address) as connection:
        await connection._open_link().session()
        session = session_of(connection)
        calls = [asyncio.create_task(call(connection, routines.noop)) for _ in range(200)]
        await asyncio.sleep(0)  # Each takes its first step.
        assert session._outbox.frames == 200
        assert session._outbox.small > 200 * OVERHEAD
        assert sorted(await asyncio.gather(*calls)) == list(range(1, 201))
        assert session._outbox.size == session._outbox.frames == 0


async def test_values_sent_to_streams_wait_for_room() -> None:
    """As many of the largest as there are streams would be too much for the worker."""
    options = ChannelOptions(max_receive_message_length=2 * CHUNK)
    resume = asyncio.Event()

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        for _ in range(20):
            number = (await dialogue.kind("task")).call
            yield frames(Response(call=number, item=payload(None)))
        await resume.wait()
        for _ in range(20):
            number = (await dialogue.kind("send")).call
            yield frames(
                Response(call=number, item=payload("heard")), Response(call=number, done=True)
            )
        await dialogue.end()
        yield LAST

    async with (
        served(Scripted(script)) as address,
        connected(address, options=options) as connection,
    ):
        streams = [await connection.dispatch(task_of(routines.talk, "")) for _ in range(20)]
        for stream in streams:
            await anext(stream)
        sending = [asyncio.create_task(stream.asend(bytes(2 * CHUNK - 100))) for stream in streams]
        session = session_of(connection)
        await eventually(lambda: session._large_gate._queue)
        assert session._outbox.large + session._large_gate._granted < 4 * CHUNK
        resume.set()
        assert await asyncio.gather(*sending) == ["heard"] * 20
        for stream in streams:
            await stream.aclose()


async def test_close_wakes_those_who_wait_for_room() -> None:
    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        await asyncio.Event().wait()
        yield LAST

    async with served(Scripted(script)) as address, connected(address) as connection:
        calls = [
            asyncio.create_task(call(connection, routines.size, bytes(amount)))
            for amount in [200_000] * 60 + [40 * MIB] * 4
        ]
        await eventually(lambda: connection._link and connection._link._session)
        session = session_of(connection)
        await eventually(lambda: session._small_gate._queue and session._large_gate._queue)
        await connection.close()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        kinds = {type(outcome) for outcome in outcomes}
        assert kinds == {asyncio.CancelledError, TransientRpcError}
        assert session._small_gate._granted == session._large_gate._granted == 0


# A stream that breaks


async def test_stream_breaks_sent_calls_are_lost_and_unsent_ones_are_not() -> None:
    """At most once. A.8 row 9: no error of gRPC's reaches a caller."""
    resume = asyncio.Event()

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        await resume.wait()
        return
        yield

    async with served(Scripted(script)) as address, connected(address) as connection:
        calls = [
            asyncio.create_task(connection.dispatch(task_of(routines.size, bytes(200_000))))
            for _ in range(60)
        ]
        await eventually(lambda: connection._link and connection._link._session)
        session = session_of(connection)
        await eventually(lambda: session._small_gate._queue)
        resume.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        kinds = [type(outcome) for outcome in outcomes]
        assert 0 < kinds.count(WorkerLost) < 60
        assert kinds.count(WorkerLost) + kinds.count(TransientRpcError) == 60
        assert not session.accepting


async def test_new_session_after_a_break() -> None:
    lost = []

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        if len(servicer.dialogues) == 1:
            await dialogue.kind("task")
            return
        async for batch in obliging(dialogue):
            yield batch

    servicer = Scripted(script)
    async with (
        served(servicer) as address,
        connected(address, on_lost=lambda: lost.append(True)) as connection,
    ):
        with pytest.raises(WorkerLost, match="closed the connection without a farewell"):
            await call(connection, routines.noop)
        assert lost == [True]
        assert await call(connection, routines.noop) == 1
        assert len(servicer.dialogues) == 2


async def test_worker_leaves_in_order() -> None:
    """After its `last` it refuses what it had not read; what it had taken is lost."""
    lost = []
    leave = asyncio.Event()

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        taken = (await dialogue.kind("task")).call
        yield frames(Response(call=taken, ack=True))
        await leave.wait()
        yield LAST
        late = (await dialogue.kind("task")).call
        yield frames(Response(call=late, nack={"reason": "it is leaving"}))
        await dialogue.end()

    async with (
        served(Scripted(script)) as address,
        connected(address, on_lost=lambda: lost.append(True)) as connection,
    ):
        taken = asyncio.create_task(call(connection, routines.noop))
        await eventually(lambda: connection._link and connection._link._session)
        session = session_of(connection)
        await eventually(lambda: any(c.stage.name == "TAKEN" for c in session._calls.values()))
        late = asyncio.create_task(call(connection, routines.noop))
        await eventually(lambda: len(session._calls) == 2)
        leave.set()
        with pytest.raises(TransientRpcError, match="it is leaving"):
            await late
        with pytest.raises(WorkerLost, match="the worker has stopped"):
            await taken
        with pytest.raises(TransientRpcError, match="takes no more calls"):
            session.submit(task_of(routines.noop))
        assert lost == [True]


async def test_worker_that_stays_after_its_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "FAREWELL", 0.1)

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        await dialogue.kind("task")
        while True:
            yield LAST
            await asyncio.sleep(0.01)

    async with served(Scripted(script)) as address, connected(address) as connection:
        async with asyncio.timeout(10):
            with pytest.raises(WorkerLost, match="the worker has stopped"):
                await call(connection, routines.noop)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (lambda n: Response(call=n, chunk=Chunk(part=1, size=1)), "misplaced chunk of call 1"),
        (lambda n: Response(call=n, chunk=Chunk(size=10**9)), "payload of call 1 exceeds 104,857"),
        (lambda n: Response(call=n, result={"chunked": True}), "payload of call 1 is incomplete"),
        (lambda n: Response(call=n), "a frame of call 1 is of no kind known here"),
    ],
)
async def test_worker_that_breaks_the_protocol(
    response: Callable[[int], Response], reason: str
) -> None:
    async with served(saying(response)) as address, connected(address) as connection:
        with pytest.raises(WorkerLost, match=reason):
            await call(connection, routines.noop)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, UnexpectedResponse),
        ("text", UnexpectedResponse),
        (ValueError, UnexpectedResponse),
        (("summary", b"garbage"), RuntimeError),
        (SystemExit(3), UnexpectedResponse),
        (KeyboardInterrupt(), UnexpectedResponse),
        (GeneratorExit(), UnexpectedResponse),
        (StopIteration(1), RuntimeError),
        (routines.Trap(SystemExit, "unpickled"), UnexpectedResponse),
        (routines.Trap(KeyboardInterrupt, "unpickled"), UnexpectedResponse),
        (routines.Trap(LookupError, "unpickled"), UnexpectedResponse),
    ],
    ids=[
        *("number", "text", "class", "unreadable", "SystemExit", "KeyboardInterrupt"),
        *("GeneratorExit", "StopIteration", "exits", "interrupts", "raises"),
    ],
)
async def test_worker_that_sends_an_exception_that_is_none(
    value: object, expected: type[Exception]
) -> None:
    """A22."""
    worker = saying(lambda n: Response(call=n, exception=payload(value)))
    async with served(worker) as address, connected(address) as connection:
        with pytest.raises(expected) as caught:
            await call(connection, routines.noop)
        assert type(caught.value) is expected


async def test_frames_of_unknown_calls_are_ignored() -> None:
    servicer = saying(
        lambda _: Response(call=99, result=payload("whose?")),
        lambda _: Response(call=98, chunk=Chunk(part=7, size=10**9)),
        lambda _: Response(call=97),
        lambda n: Response(call=n, result=payload("good")),
        lambda n: Response(call=n, result=payload("again")),
    )
    async with served(servicer) as address, connected(address) as connection:
        assert await call(connection, routines.noop) == "good"


# The heartbeat


async def test_heartbeat_tells_a_blocked_routine_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_module, "HEARTBEAT", 0.1)
    caplog.set_level("INFO", "wool.session")
    async with working() as worker, connected(worker.address) as connection:
        await call(connection, routines.noop)
        session = session_of(connection)
        blocking = asyncio.create_task(call(connection, routines.block, "heartbeat"))
        await eventually(lambda: session.busy)
        assert "the routine loop is blocked" in caplog.text
        routines.gates["heartbeat"].set()
        await blocking
        await eventually(lambda: not session.busy)
        assert "the routine loop runs again" in caplog.text
        assert caplog.text.count("is blocked") == 1
        caplog.clear()


async def test_heartbeat_of_an_idle_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "HEARTBEAT", 0.05)

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        yield frames(Response(call=(await dialogue.kind("task")).call, result=payload(1)))
        for _ in range(2):
            yield frames(Response(call=(await dialogue.kind("heartbeat")).call, heartbeat=True))
        await dialogue.end()
        yield LAST

    servicer = Scripted(script)
    async with served(servicer) as address, connected(address) as connection:
        await call(connection, routines.noop)
        await eventually(
            lambda: sum(f.heartbeat for f in servicer.dialogue.heard) == 3,
        )
        assert not session_of(connection)._asked or session_of(connection)._heard is False
