"""Clients that say anything at all to a worker in its own process, and one that means well."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import grpc
import grpc.aio
import pytest
from hypothesis import HealthCheck, given, settings

from tests import wire_routines as routines
from tests.runtime.worker import hostile
from tests.runtime.worker.peers import call, connected, settled, task_frame, task_of
from wool import protocol
from wool.protocol import Chunk, Request, RequestBatch, ResponseBatch
from wool.runtime.worker.arena import Arena
from wool.runtime.worker.base import ChannelOptions
from wool.runtime.worker.framing import HIGH_WATER
from wool.runtime.worker.process import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from wool.runtime.worker.connection import WorkerConnection

    Say = Callable[[int, int], list[Request]]

MIB = 1024 * 1024
LARGEST = ChannelOptions().max_send_message_length
SLACK = 16 * MIB
"""Bytes that are under way when a limit has been reached."""

PATIENCE = 10.0
"""Seconds that a well-behaved client may have to wait on a machine that is busy."""


@dataclass
class Besieged:
    """A worker, a client of it that means well, and the channel that the others come by."""

    process: WorkerProcess
    good: WorkerConnection
    channel: grpc.aio.Channel
    before: routines.Standing

    async def unharmed(self) -> None:
        """Return when it serves, and holds no more than before."""
        assert self.process.alive
        async with asyncio.timeout(PATIENCE):
            assert await call(self.good, routines.echo, "good") == "good"
        await settled(self.relieved)

    async def relieved(self) -> bool:
        now = cast("routines.Standing", await call(self.good, routines.standing))
        return now[:3] == self.before[:3] and now.descriptors <= self.before.descriptors


@pytest.fixture
async def worker() -> AsyncIterator[Besieged]:
    process = WorkerProcess(uid=uuid4())
    await process.start()
    address = str(process.address)
    try:
        channel = grpc.aio.insecure_channel(address, options=[("grpc.http2.bdp_probe", 0)])
        async with connected(address) as good, channel:
            with suppress(grpc.aio.AioRpcError):  # It connects.
                await cast("Any", channel.unary_unary("/none"))(b"")
            worker = Besieged(process, good, channel, await call(good, routines.standing))
            yield worker
            del channel, worker.channel  # A test's arguments outlive it, and the channel with them.
    finally:
        await process.reap(0)


HEARTBEAT = RequestBatch(frames=[Request(heartbeat=True)]).SerializeToString()
LAST = RequestBatch(last=True).SerializeToString()


class Attack:
    """A session in which anything may be said."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Any) -> None:
        self._stream: Any = channel.stream_stream(protocol.DISPATCH)(metadata=metadata)
        self._answered = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            while (batch := await self._stream.read()) is not grpc.aio.EOF:
                if any(frame.heartbeat for frame in ResponseBatch.FromString(batch).frames):
                    self._answered.set()
        self._answered.set()

    async def write(self, batches: list[bytes]) -> None:
        """Say it, as far as the worker listens, and wait until it has done its part."""
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for batch in (*batches, HEARTBEAT):
                await self._stream.write(batch)
        async with asyncio.timeout(PATIENCE):
            await self._answered.wait()

    async def leave(self, *, farewell: bool) -> None:
        """Return when the worker has ended the session."""
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            if farewell:
                await self._stream.write(LAST)
            await self._stream.done_writing()
        async with asyncio.timeout(PATIENCE):
            await self._reading

    async def vanish(self) -> None:
        self._stream.cancel()
        await self._reading


async def attack(channel: grpc.aio.Channel, metadata: Any, batches: list[bytes], way: str) -> None:
    """Say it all, and end in a way."""
    attack = Attack(channel, metadata)
    try:
        await attack.write(batches)
        if way != "vanish":
            await attack.leave(farewell=way == "farewell")
    finally:
        await attack.vanish()


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    versions=hostile.versions,
    offer=hostile.offers,
    batches=hostile.request_batches(),
    way=hostile.some("vanish", "silence", "farewell"),
)
async def test_whatever_a_client_says_harms_none_but_itself(
    worker: Besieged, versions: Any, offer: str | None, batches: list[bytes], way: str
) -> None:
    arena = Arena.create(MIB) if offer is None else None
    if arena is not None:
        offer = arena.offer
    try:
        metadata = (*versions, (protocol.ARENA_KEY, offer))
        during = asyncio.create_task(call(worker.good, routines.echo, "during"))
        await attack(worker.channel, metadata, batches, way)
        async with asyncio.timeout(PATIENCE):
            assert await during == "during"
        await worker.unharmed()
    finally:
        if arena is not None:
            arena.close()


# Clients that keep a worker waiting


async def open_sessions(channel: grpc.aio.Channel, count: int, *requests: Request) -> list[Any]:
    """Sessions in which no more is said than this."""

    async def open_session() -> Any:
        stream: Any = protocol.WorkerStub(channel).dispatch(metadata=protocol.versions())
        await stream.initial_metadata()
        if requests:
            await stream.write(RequestBatch(frames=requests))
        return stream

    return await asyncio.gather(*(open_session() for _ in range(count)))


async def test_sessions_and_connections_left_half_open(worker: Besieged) -> None:
    """A process keeps the memory that it has once needed, so it is asked for it again."""
    address = str(worker.process.address).removeprefix("unix:")
    memory = []
    for _ in range(4):
        silent = await open_sessions(worker.channel, 500)
        half = Request(call=1, chunk=Chunk(size=50_000, data=bytes(25_000)))
        unfinished = await open_sessions(worker.channel, 500, half)
        connections = [await asyncio.open_unix_connection(address) for _ in range(200)]

        async with asyncio.timeout(PATIENCE):
            echoes = await asyncio.gather(*(call(worker.good, routines.echo, i) for i in range(99)))
        assert echoes == [*range(99)]
        now = await call(worker.good, routines.standing)
        assert now.sessions == worker.before.sessions + 1000

        for stream in (*silent, *unfinished):
            stream.cancel()
        for _, writer in connections:
            writer.close()
            await writer.wait_closed()
        await worker.unharmed()
        memory.append((await call(worker.good, routines.standing)).memory)
    assert memory[3] < 1.15 * memory[1]


def results(size: int, number: int) -> list[Request]:
    """Calls that return that many bytes each."""
    return [task_frame(n, routines.make, size) for n in range(number, number + MIB // size)]


def ahead(size: int, number: int) -> list[Request]:
    """A stream, of so many bytes each, that is asked for more than anyone can want."""
    frame = task_frame(number, routines.pieces, size, 10**9)
    frame.task.prefetch = 2**32 - 1
    return [frame, Request(call=number, next=2**32 - 1)]


def heartbeats(size: int, number: int) -> list[Request]:
    return [Request(heartbeat=True)] * (MIB // size)


@pytest.mark.parametrize(
    ("say", "size", "limit"),
    [
        (results, 1_000, HIGH_WATER),
        (results, MIB, LARGEST),
        (ahead, 1, HIGH_WATER),
        (ahead, MIB, HIGH_WATER),
        (heartbeats, 256, HIGH_WATER),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
async def test_client_that_never_reads(worker: Besieged, say: Say, size: int, limit: int) -> None:
    """What waits for it is bounded, and others are served meanwhile."""
    (stream,) = await open_sessions(worker.channel, 1)
    talking = asyncio.create_task(talk(stream, partial(say, size)))
    most = 0
    try:
        async with asyncio.timeout(6 * PATIENCE):
            while most < HIGH_WATER:
                most = max(most, await waiting(worker))
        for _ in range(30):
            most = max(most, await waiting(worker))
        standing = await call(worker.good, routines.standing)
    finally:
        stream.cancel()
        await asyncio.wait([talking])
    assert most < limit + SLACK
    assert standing.memory - worker.before.memory < 1.5 * limit + 4 * SLACK
    await worker.unharmed()


async def talk(stream: Any, say: Callable[[int], list[Request]]) -> None:
    number = 1
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
        while True:
            requests = say(number)
            await stream.write(RequestBatch(frames=requests))
            number += len(requests)


async def waiting(worker: Besieged) -> int:
    """Bytes that wait to be read in all; told within the patience of a client that means well."""
    async with asyncio.timeout(PATIENCE):
        return cast("routines.Standing", await call(worker.good, routines.standing)).waiting


@pytest.mark.parametrize(("prefetch", "size"), [(0, 100_000), (1, 10), (1000, 100_000)])
async def test_stream_that_is_read_slowly_stalls_itself_alone(
    worker: Besieged, prefetch: int, size: int
) -> None:
    task = task_of(routines.pieces, size, 1500)
    task.prefetch = prefetch
    stream = await worker.good.dispatch(task)
    read = 0
    async for piece in stream:
        assert len(piece) == size
        read += 1
        if not read % 100:
            async with asyncio.timeout(PATIENCE):
                echoes = [await call(worker.good, routines.echo, i) for i in range(10)]
            assert echoes == [*range(10)]
    assert read == 1500
    await worker.unharmed()
