"""What goes through shared memory between a client and a worker, and what doesn't."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy
import pytest
import trustme

import wool
from tests import wire_routines as routines
from tests.runtime.worker.peers import (
    LAST,
    OPTIONS,
    Dialogue,
    RawClient,
    Scripted,
    Serving,
    call,
    connected,
    frames,
    load,
    payload,
    raw,
    served,
    task_of,
    working,
)
from tests.support import eventually
from wool import WorkerCredentials, WorkerProxy, protocol
from wool.protocol import Request, Response, Segment
from wool.runtime.errors import UnexpectedResponse
from wool.runtime.serializer import dumps, dumps_arguments
from wool.runtime.worker.arena import SLICE, WORTHWHILE, Arena, Window, in_turns
from wool.runtime.worker.connection import _links_of
from wool.runtime.worker.local import LocalWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from wool.protocol import ResponseBatch
    from wool.runtime.worker.connection import WorkerConnection

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is shared on Linux only")

LARGE = bytes(range(256)) * (5 * SLICE // 512)
LIMIT = OPTIONS.max_receive_message_length


def the_session() -> Any:
    (link,) = _links_of(asyncio.get_running_loop()).values()
    return link._session


@asynccontextmanager
async def calling(worker: LocalWorker) -> AsyncIterator[Any]:
    """Calls go to that worker; yields their session. In the end nothing lies in the arenas."""
    await worker.start()
    try:
        assert worker.metadata is not None
        async with WorkerProxy(
            workers=[worker.metadata], credentials=worker._settings["credentials"]
        ):
            await routines.noop()
            session = the_session()
            yield session
            assert session._shared is None or not session._shared.arena.used
    finally:
        await worker.stop()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# Values


@pytest.mark.parametrize("size", [WORTHWHILE + 1, SLICE, len(LARGE)])
@pytest.mark.parametrize("kind", [bytes, bytearray])
async def test_bytes_go_and_come_back(size: int, kind: type) -> None:
    async with calling(LocalWorker()) as session:
        value = kind(LARGE[:size])

        echoed = await routines.echo(value)

        assert type(echoed) is kind
        assert echoed == value
        assert session._shared.arena._peak


@pytest.mark.parametrize("size", [SLICE, 8 * SLICE])
async def test_array_that_comes_back_can_be_written_to(size: int) -> None:
    async with calling(LocalWorker()):
        array = numpy.arange(size // 8)

        first, second = await routines.echo(array), await routines.echo(array)
        first += 1

        assert (second == array).all()
        assert (first == array + 1).all()


async def test_large_pickle() -> None:
    """Bytes within other values stay in it."""
    async with calling(LocalWorker()):
        value = {"nested": [LARGE, bytearray(LARGE)], "text": "x" * SLICE}

        assert await routines.echo(value) == value


async def test_callable_that_is_large() -> None:
    async with calling(LocalWorker()):
        content = LARGE

        @wool.routine
        async def length() -> int:
            return len(content)

        assert await length() == len(LARGE)


async def test_arguments_are_as_they_were_at_the_call() -> None:
    async with calling(LocalWorker()) as session:
        changing = bytearray(len(LARGE))
        echoing = asyncio.create_task(routines.echo(changing))
        await eventually(lambda: session._shared.arena.used, interval=0)
        changing[:] = LARGE

        assert not any(await echoing)


async def test_items_are_as_they_were_when_yielded() -> None:
    async with calling(LocalWorker()):
        stream = routines.overwrite(8 * SLICE)

        assert [array.max() async for array in stream] == [0, 1, 2]


async def test_values_sent_and_thrown() -> None:
    async with calling(LocalWorker()):
        stream = routines.parrot()
        await anext(stream)

        assert await stream.asend(LARGE) == LARGE
        assert await stream.asend(bytearray(LARGE)) == LARGE
        with pytest.raises(LookupError) as caught:
            await stream.athrow(LookupError(LARGE))
        assert caught.value.args == (LARGE,)


async def test_many_at_once() -> None:
    async with calling(LocalWorker()) as session:
        values = [LARGE[: (i + 1) * SLICE // 8] for i in range(20)]

        assert await asyncio.gather(*map(routines.echo, values)) == values
        await eventually(lambda: not session._shared.arena.used)


async def test_arrays_that_are_kept_take_no_descriptors() -> None:
    async with calling(LocalWorker()):
        array = numpy.ones(SLICE // 64)
        await routines.echo(array)
        before = descriptors()

        kept = [await routines.echo(array) for _ in range(300)]

        assert descriptors() == before
        assert sum(each.sum() for each in kept) == 300 * array.size


async def test_more_than_there_is_room_for() -> None:
    """It is let in as room is made, and never more than twice the largest payload."""
    async with calling(LocalWorker()) as session:
        value = bytes(LIMIT // 2)

        sizes = await asyncio.gather(*(routines.size(value) for _ in range(6)))

        assert sizes == [len(value)] * 6
        assert session._large_gate._granted == 0


# Where memory is not shared


async def test_no_shared_memory_over_tcp() -> None:
    async with calling(LocalWorker(host="127.0.0.1")) as session:
        assert session._shared is None
        assert await routines.echo(bytearray(LARGE)) == LARGE


@pytest.mark.parametrize("host", [None, "127.0.0.1"])
async def test_shared_memory_with_tls(host: str | None) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    credentials = WorkerCredentials(
        authority.cert_pem.bytes(),
        certificate.private_key_pem.bytes(),
        certificate.cert_chain_pems[0].bytes(),
    )
    async with calling(LocalWorker(host=host, credentials=credentials)) as session:
        assert (session._shared is None) is (host is not None)
        assert await routines.echo(LARGE) == LARGE


async def test_client_that_the_worker_finds_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in another PID namespace: what is found there lacks the nonce."""
    create = Arena.create

    def forge(limit: int) -> Arena | None:
        arena = create(limit)
        assert arena is not None
        arena.offer = arena.offer[:-2] + "xx"
        return arena

    monkeypatch.setattr(Arena, "create", forge)
    async with calling(LocalWorker()) as session:
        assert session._shared is None
        assert await routines.echo(LARGE) == LARGE


async def test_worker_that_the_client_cannot_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Window, "open", lambda offer, limit: None)
    async with calling(LocalWorker()) as session:
        assert session._shared is None
        assert await routines.echo(LARGE) == LARGE


async def test_no_memory_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> int:
        raise OSError("no more")

    monkeypatch.setattr(os, "memfd_create", fail)
    async with calling(LocalWorker()) as session:
        assert session._shared is None
        assert await routines.echo(LARGE) == LARGE


async def test_no_room_left_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    async with calling(LocalWorker()) as session:

        def fail(*args: object) -> int:
            raise OSError("no more")

        monkeypatch.setattr(os, "pwrite", fail)
        assert await routines.echo(LARGE) == LARGE
        assert not session._shared.arena.used


# Clients that break the protocol


@pytest.fixture
async def worker() -> AsyncIterator[Serving]:
    async with working() as worker:
        yield worker


@asynccontextmanager
async def sharing(worker: Serving) -> AsyncIterator[tuple[RawClient, Arena, Window]]:
    arena = Arena.create(LIMIT)
    assert arena is not None
    metadata = (*protocol.versions(), (protocol.ARENA_KEY, arena.offer))
    try:
        async with raw(worker.address, metadata) as client:
            answer = dict(await client.stream.initial_metadata())
            window = Window.open(str(answer[protocol.ARENA_KEY]), LIMIT)
            assert window is not None
            try:
                yield client, arena, window
            finally:
                window.close()
    finally:
        arena.close()


def request(number: int, routine: Any, segment: Segment) -> Request:
    message = task_of(routine).to_protobuf()
    message.arguments.Clear()
    message.arguments.segment.CopyFrom(segment)
    return Request(call=number, task=message)


async def test_arguments_by_hand(worker: Serving) -> None:
    async with sharing(worker) as (client, arena, window):
        segment = await arena.put(1, dumps_arguments((LARGE,), {}))
        assert segment is not None
        await client.write(Request(reachable=True), request(1, routines.echo, segment))

        assert (await client.reply(1)).release
        result = (await client.reply(1)).result
        assert len(result.segment.sizes) == 2
        copied = await in_turns(window.copy(result.segment))
        assert copied.buffers == (LARGE,)


async def test_worker_does_not_share_before_it_is_reachable(worker: Serving) -> None:
    async with sharing(worker) as (client, arena, _):
        segment = await arena.put(1, dumps_arguments((LARGE[: SLICE // 8],), {}))
        assert segment is not None
        await client.write(request(1, routines.echo, segment))

        assert (await client.reply(1)).release
        assert load((await client.reply(1)).result) == LARGE[: SLICE // 8]


@pytest.mark.parametrize(
    "segment",
    [
        Segment(offset=4096, sizes=[10**7]),
        Segment(offset=4096, sizes=[LIMIT + 1]),
        Segment(offset=2**63, sizes=[1]),
        Segment(),
    ],
)
async def test_task_that_is_not_where_the_client_says(worker: Serving, segment: Segment) -> None:
    """It fails alone."""
    async with sharing(worker) as (client, _, _):
        await client.write(request(1, routines.echo, segment))

        error = load((await client.reply(1)).exception)
        assert "UnexpectedResponse" in error[0]
        await client.write(Request(call=2, task=task_of(routines.noop).to_protobuf()))
        assert load((await client.reply(2)).result) is None


async def test_task_with_nothing_callable(worker: Serving) -> None:
    async with sharing(worker) as (client, arena, _):
        segment = await arena.put(1, dumps({"no": "buffers"}))
        assert segment is not None
        frame = request(1, routines.echo, segment)
        frame.task.ClearField("callable")
        await client.write(frame)

        assert (await client.reply(1)).release
        assert "nothing callable" in load((await client.reply(1)).exception)[0]


async def test_memory_that_was_not_offered(worker: Serving) -> None:
    async with raw(worker.address) as client:
        await client.write(
            Request(reachable=True),
            Request(call=9, release=True),
            request(1, routines.echo, Segment(sizes=[1])),
        )

        assert "has not shared" in load((await client.reply(1)).exception)[0]


# Workers that break the protocol


class Script:
    """A worker that shares memory, and answers tasks as `answer` says."""

    def __init__(self, answer: Callable[[Request], list[Response]]) -> None:
        self._answer = answer
        arena = Arena.create(LIMIT)
        assert arena is not None
        self.arena = arena

    async def __call__(self, dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        try:
            while True:
                frame = await dialogue.next()
                if frame.WhichOneof("kind") == "task":
                    yield frames(*self._answer(frame))
        except StopAsyncIteration:
            yield LAST

    @asynccontextmanager
    async def reached(self) -> AsyncIterator[tuple[WorkerConnection, Scripted]]:
        scripted = Scripted(self, offer=self.arena.offer)
        try:
            async with served(scripted) as address, connected(address) as connection:
                yield connection, scripted
        finally:
            self.arena.close()


@pytest.mark.parametrize(
    "segment",
    [Segment(offset=4096, sizes=[10**7]), Segment(offset=4096, sizes=[LIMIT + 1]), Segment()],
)
async def test_result_that_is_not_where_the_worker_says(segment: Segment) -> None:
    script = Script(
        lambda frame: [Response(call=frame.call, result=protocol.Payload(segment=segment))]
    )
    async with script.reached() as (connection, scripted):
        with pytest.raises(UnexpectedResponse):
            await call(connection, routines.noop)
        with pytest.raises(UnexpectedResponse):
            await call(connection, routines.noop)

        assert len(scripted.dialogues) == 1


async def test_result_that_shrinks() -> None:
    script = Script(lambda frame: [])
    segment = await script.arena.put(1, dumps(LARGE))
    assert segment is not None

    def answer(frame: Request) -> list[Response]:
        asyncio.get_running_loop().call_soon(shrink)
        return [Response(call=frame.call, item=protocol.Payload(segment=segment))]

    def shrink() -> None:
        session = the_session()
        if session._fetches:
            os.ftruncate(int(script.arena.offer.split(":")[1]), SLICE)
        else:
            asyncio.get_running_loop().call_soon(shrink)

    script._answer = answer
    async with script.reached() as (connection, _):
        with pytest.raises(UnexpectedResponse, match="cut off"):
            await call(connection, routines.noop)
        assert not the_session()._fetches


async def test_frames_that_follow_an_item_wait_for_it() -> None:
    script = Script(lambda frame: [])
    segment = await script.arena.put(1, dumps(LARGE))
    assert segment is not None
    script._answer = lambda frame: [
        Response(call=frame.call, item=protocol.Payload(segment=segment)),
        Response(call=frame.call, done=True),
    ]
    async with script.reached() as (connection, scripted):
        stream = await connection.dispatch(task_of(routines.pieces))
        assert [item async for item in stream] == [LARGE]
        await eventually(lambda: any(frame.release for frame in scripted.dialogue.heard))


async def test_result_for_nobody_is_released() -> None:
    script = Script(lambda frame: [])
    segment = await script.arena.put(1, dumps(LARGE))
    assert segment is not None
    script._answer = lambda frame: [
        Response(call=999, result=protocol.Payload(segment=segment)),
        Response(call=frame.call, result=payload("mine")),
    ]
    async with script.reached() as (connection, scripted):
        assert await call(connection, routines.noop) == "mine"
        await eventually(lambda: any(f.release and f.call == 999 for f in scripted.dialogue.heard))


async def test_result_of_a_worker_that_is_gone_by_then_arrives() -> None:
    class Leaving(Script):
        async def __call__(self, dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
            frame = await dialogue.kind("task")
            yield frames(*self._answer(frame))

    script = Leaving(lambda frame: [])
    segment = await script.arena.put(1, dumps(LARGE))
    assert segment is not None
    script._answer = lambda frame: [
        Response(call=frame.call, result=protocol.Payload(segment=segment))
    ]
    async with script.reached() as (connection, _):
        assert await call(connection, routines.noop) == LARGE


async def test_call_that_is_abandoned_while_its_result_is_copied(worker: Serving) -> None:
    async with connected(worker.address) as connection:
        calling = asyncio.create_task(call(connection, routines.make, 40 * SLICE))
        await eventually(lambda: connection._link and connection._link._session)
        await eventually(lambda: the_session()._fetches, interval=0)
        await connection.close()
        with pytest.raises(asyncio.CancelledError):
            await calling
