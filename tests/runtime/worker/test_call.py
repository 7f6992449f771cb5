"""Calls held by a scripted worker at stages that a real one passes too fast."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests import wire_routines as routines
from tests.runtime.worker.peers import (
    LAST,
    Dialogue,
    Scripted,
    connected,
    frames,
    payload,
    served,
    session_of,
    task_of,
)
from tests.support import eventually
from wool.protocol import Chunk, Response
from wool.runtime import serializer
from wool.runtime.errors import (
    DispatchTimeout,
    PayloadTooLarge,
    TransientRpcError,
    UnexpectedResponse,
    WorkerLost,
    WorkerUnresponsive,
)
from wool.runtime.worker.base import ChannelOptions
from wool.runtime.worker.call import Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from wool.protocol import ResponseBatch
    from wool.runtime.worker.connection import WorkerConnection

MIB = 1024 * 1024


def begin(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(coroutine)


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel it, and see it end with that cancellation."""
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await task


async def opened(connection: WorkerConnection) -> None:
    """Have its session open, so that the time for a dispatch is not spent on that."""
    await connection._open_link().session()


def answering(*responses: Callable[[int], Response], to: str = "task") -> Scripted:
    """A worker that answers the first frame of a kind with these frames, all in one message."""

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        call = (await dialogue.kind(to)).call
        yield frames(*(response(call) for response in responses))
        await dialogue.end()
        yield LAST

    return Scripted(script)


def ack(call: int) -> Response:
    return Response(call=call, ack=True)


def nack(call: int) -> Response:
    return Response(call=call, nack={"reason": "no room"})


def result(call: int) -> Response:
    return Response(call=call, result=payload("good"))


def item(call: int) -> Response:
    return Response(call=call, item=payload("good"))


def done(call: int) -> Response:
    return Response(call=call, done=True)


def exception(call: int) -> Response:
    dumped = serializer.dump_exception(asyncio.CancelledError())
    return Response(call=call, exception={"data": bytes(dumped.data)})


async def test_nack_is_transient() -> None:
    async with served(answering(nack)) as address, connected(address) as connection:
        with pytest.raises(TransientRpcError, match="UNAVAILABLE: no room"):
            await connection.dispatch(task_of(routines.noop))


async def test_frames_that_arrive_before_they_are_asked_for() -> None:
    async with served(answering(ack, item, done)) as address, connected(address) as connection:
        stream = await connection.dispatch(task_of(routines.noop))
        assert [value async for value in stream] == ["good"]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        with pytest.raises(KeyError):
            await stream.athrow(KeyError())
        await stream.aclose()


async def test_nack_of_a_call_that_was_taken() -> None:
    async with served(answering(ack, nack)) as address, connected(address) as connection:
        with pytest.raises(TransientRpcError):
            await connection.dispatch(task_of(routines.noop))


async def test_nack_instead_of_an_item() -> None:
    servicer = answering(nack, to="next")

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        call = (await dialogue.kind("task")).call
        yield frames(item(call))
        await dialogue.kind("next")
        yield frames(nack(call))
        await dialogue.end()
        yield LAST

    servicer = Scripted(script)
    async with served(servicer) as address, connected(address) as connection:
        stream = await connection.dispatch(task_of(routines.noop))
        assert await anext(stream) == "good"
        with pytest.raises(UnexpectedResponse, match="Expected 'result' or 'exception'"):
            await anext(stream)


async def test_timeout_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the worker could not be sent have not run; of the others nobody knows."""
    monkeypatch.setattr("wool.runtime.worker.call.WITHDRAW_GRACE", 0.1)
    resume = asyncio.Event()

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        await resume.wait()
        await dialogue.end()
        yield LAST

    servicer = Scripted(script)
    async with served(servicer) as address, connected(address) as connection:
        many = [
            connection.dispatch(task_of(routines.size, bytes(200_000)), timeout=1)
            for _ in range(35)
        ]
        outcomes = await asyncio.gather(*many, return_exceptions=True)
        resume.set()
        await eventually(lambda: session_of(connection)._outbox.size == 0)
    heard = servicer.dialogue.heard
    sent = [frame for frame in heard if frame.WhichOneof("kind") == "task" and frame.call]
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds.count(WorkerUnresponsive) == len(sent) > 0
    assert kinds.count(DispatchTimeout) == len(many) - len(sent) > 0


async def test_timeout_of_a_task_that_is_given_back() -> None:
    async with served(answering(nack, to="withdraw")) as address, connected(address) as connection:
        await opened(connection)
        with pytest.raises(DispatchTimeout, match=r"did not take tests.wire_routines.noop:\d+ in"):
            await connection.dispatch(task_of(routines.noop), timeout=0.05)


async def test_timeout_of_a_task_that_has_been_taken_meanwhile() -> None:
    servicer = answering(ack, result, to="withdraw")
    async with served(servicer) as address, connected(address) as connection:
        await opened(connection)
        stream = await connection.dispatch(task_of(routines.noop), timeout=0.05)
        assert await anext(stream) == "good"


async def test_timeout_with_arguments_in_transit() -> None:
    """What has not been sent of them is left out; it would be a payload without a beginning."""

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        call = (await dialogue.kind("withdraw")).call
        yield frames(nack(call))
        await dialogue.end()
        yield LAST

    servicer = Scripted(script)
    async with served(servicer) as address, connected(address) as connection:
        await opened(connection)
        with pytest.raises(DispatchTimeout):
            await connection.dispatch(task_of(routines.size, bytes(90 * MIB)), timeout=0.05)
        assert session_of(connection)._outbox.size == 0
    assert {f.WhichOneof("kind") for f in servicer.dialogue.heard} == {"withdraw"}


async def test_timeout_unanswered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that neither takes the task nor gives it back is given up on, and told so."""
    monkeypatch.setattr("wool.runtime.worker.call.WITHDRAW_GRACE", 0.1)
    servicer = answering(result, to="cancel")
    async with served(servicer) as address, connected(address) as connection:
        await opened(connection)
        with pytest.raises(WorkerUnresponsive, match="did not acknowledge") as caught:
            await connection.dispatch(task_of(routines.noop), timeout=0.05)
        assert isinstance(caught.value, WorkerLost)
        assert isinstance(caught.value, TimeoutError)
        assert not session_of(connection)._calls
    kinds = [frame.WhichOneof("kind") for frame in servicer.dialogue.heard]
    assert kinds == ["task", "withdraw", "cancel"]


async def test_sent_value_too_large() -> None:
    """It fails the step, and leaves the session alone."""
    options = ChannelOptions(max_receive_message_length=10_000)

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        call = (await dialogue.kind("task")).call
        yield frames(item(call))
        await dialogue.kind("next")
        yield frames(item(call))
        await dialogue.kind("close")
        yield frames(done(call))
        await dialogue.end()
        yield LAST

    servicer = Scripted(script)
    async with served(servicer) as address, connected(address, options=options) as connection:
        stream = await connection.dispatch(task_of(routines.noop))
        await anext(stream)
        with pytest.raises(PayloadTooLarge, match="The value sent to"):
            await stream.asend(bytes(10_000))
        with pytest.raises(PayloadTooLarge):
            await stream.athrow(LookupError("x" * 10_000))
        assert await anext(stream) == "good"
        await stream.aclose()


# Cancelled


async def test_cancelled_before_the_session_is_open() -> None:
    ready = asyncio.Event()

    class Slow(Scripted):
        async def dispatch(self, requests: Any, context: Any) -> AsyncIterator[ResponseBatch]:
            await ready.wait()
            async for batch in super().dispatch(requests, context):
                yield batch

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        await dialogue.end()
        yield LAST

    servicer = Slow(script)
    async with served(servicer) as address, connected(address) as connection:
        task = begin(connection.dispatch(task_of(routines.noop)))
        await eventually(lambda: connection._link is not None and connection._link._opening)
        await cancelled(task)
        ready.set()
        link = connection._link
        assert link is not None
        await eventually(lambda: link._session is not None)
        await connection.close()
        assert servicer.dialogue.heard == []


async def test_cancelled_while_queued_behind_a_worker_that_does_not_read() -> None:
    """Nothing of a call is sent that was cancelled before it could be."""
    resume = asyncio.Event()

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        await resume.wait()
        while (frame := await dialogue.next()).task.tag != "marker":
            yield frames(Response(call=frame.call, nack={"reason": "no"}))
        yield frames(Response(call=frame.call, result=payload("good")))
        await dialogue.end()
        yield LAST

    servicer = Scripted(script)
    async with served(servicer) as address, connected(address) as connection:
        amounts = [200_000] * 60 + [MIB] * 40
        many = [begin(connection.dispatch(task_of(routines.size, bytes(n)))) for n in amounts]
        await eventually(lambda: connection._link is not None and connection._link._session)
        assert connection._link is not None
        session = connection._link._session
        assert session is not None
        await eventually(lambda: session._small_gate._queue)
        with pytest.raises(DispatchTimeout, match=r"had no room within 0\.1 s"):
            await connection.dispatch(task_of(routines.noop), timeout=0.1)
        for task in many:
            task.cancel()
        queued = [call for call in session._calls.values() if call.stage is Stage.QUEUED]
        assert queued or session._small_gate._queue
        resume.set()
        outcomes = await asyncio.gather(*many, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        marker = task_of(routines.noop)
        marker.tag = "marker"
        stream = await connection.dispatch(marker)
        assert await anext(stream) == "good"
        assert session._small_gate._granted == session._outbox.size == 0
    tasks = [f.call for f in servicer.dialogue.heard if f.WhichOneof("kind") == "task"]
    assert set(tasks).isdisjoint(call.number for call in queued)


@pytest.mark.parametrize("answer", ["nack", "taken", "nothing"])
async def test_cancelled_while_sent(
    answer: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A15: not taken yet, given back, taken after all, or neither."""
    monkeypatch.setattr("wool.runtime.worker.call.CANCEL_GRACE", 0.2)

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        call = (await dialogue.kind("cancel")).call
        if answer == "nack":
            yield frames(Response(call=call, nack={"reason": "given back"}))
        elif answer == "taken":
            yield frames(Response(call=call, ack=True), Response(call=call, cancelling=True))
            yield frames(Response(call=call, result=payload("after all")))
        await dialogue.end()
        yield LAST

    servicer = Scripted(script)
    async with served(servicer) as address, connected(address) as connection:
        task = begin(connection.dispatch(task_of(routines.noop)))
        await eventually(lambda: servicer.dialogues and servicer.dialogue.heard)
        if answer == "taken":
            task.cancel()
            assert await anext(await task) == "after all"
        else:
            await cancelled(task)
        assert connection._link is not None
        assert connection._link._session is not None
        assert not connection._link._session._calls
    caplog.clear()  # What is logged refers to the session.


async def test_left_behind_after_the_grace(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A routine that never gives in keeps its caller for a bounded time, and is logged."""
    monkeypatch.setattr("wool.runtime.worker.call.CANCEL_GRACE", 0.2)

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        call = (await dialogue.kind("task")).call
        yield frames(Response(call=call, ack=True))
        await dialogue.kind("cancel")
        yield frames(Response(call=call, chunk=Chunk(part=0, size=9, data=b"too")))
        await dialogue.end()
        yield frames(Response(call=call, result=payload("too late")))
        yield LAST

    servicer = Scripted(script)
    async with served(servicer) as address, connected(address) as connection:
        stream = await connection.dispatch(task_of(routines.noop))
        task = begin(anext(stream))
        await asyncio.sleep(0)
        await cancelled(task)
        await stream.aclose()
    assert "noop" in caplog.text
    assert "left behind" in caplog.text
    caplog.clear()


@pytest.mark.parametrize("given_back", [True, False])
async def test_cancelled_while_it_is_withdrawn(given_back: bool) -> None:
    """The dispatch timeout has expired, and the worker has not answered the withdrawal."""

    async def script(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        call = (await dialogue.kind("withdraw")).call
        await dialogue.kind("cancel")
        if given_back:
            yield frames(Response(call=call, nack={"reason": "given back"}))
        else:
            yield frames(Response(call=call, ack=True))
            yield frames(Response(call=call, exception=_cancellation()))
        await dialogue.end()
        yield LAST

    servicer = Scripted(script)
    async with served(servicer) as address, connected(address) as connection:
        await opened(connection)
        task = begin(connection.dispatch(task_of(routines.noop), timeout=0.05))
        await eventually(
            lambda: (
                servicer.dialogues
                and any(f.WhichOneof("kind") == "withdraw" for f in servicer.dialogue.heard)
            )
        )
        await cancelled(task)


def _cancellation() -> Any:
    dumped = serializer.dump_exception(asyncio.CancelledError())
    return {"data": bytes(dumped.data)}
