"""Clients and workers in the test's own process, well-behaved ones and others, on unix sockets."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from uuid import uuid4

import grpc
import grpc.aio

from wool import protocol
from wool.protocol import Request, RequestBatch, Response, ResponseBatch
from wool.runtime import serializer
from wool.runtime.routine.task import Task
from wool.runtime.worker.base import ChannelOptions, WorkerOptions
from wool.runtime.worker.connection import WorkerConnection
from wool.runtime.worker.interceptor import VersionInterceptor
from wool.runtime.worker.service import WorkerService
from wool.runtime.worker.transport import client_arguments, server_arguments

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from wool.protocol import WorkerServicer
    from wool.runtime.worker.session import Session

    Context = grpc.aio.ServicerContext[RequestBatch, ResponseBatch]
    Script = Callable[["Dialogue"], AsyncIterator[ResponseBatch]]

OPTIONS = ChannelOptions()


class Nowhere:
    """A proxy that dispatches nothing."""

    def __init__(self) -> None:
        self.id = uuid4()

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Nowhere) and other.id == self.id

    async def dispatch(self, task: Task, *, timeout: float | None = None) -> AsyncIterator[Any]:
        raise NotImplementedError


NOWHERE = Nowhere()


def task_of(routine: Callable[..., Any], *args: Any, **kwargs: Any) -> Task:
    """A task that calls a routine, or a function that isn't decorated."""
    function = getattr(routine, "__wool_routine__", routine)
    return Task(id=uuid4(), callable=function, args=args, kwargs=kwargs, proxy=NOWHERE)


def task_frame(call: int, routine: Callable[..., Any], *args: Any, **kwargs: Any) -> Request:
    """The frame of such a task."""
    return Request(call=call, task=task_of(routine, *args, **kwargs).to_protobuf())


def payload(value: object) -> protocol.Payload:
    """A value as it travels."""
    dumped = serializer.dumps(value)
    return protocol.Payload(
        data=bytes(dumped.data), buffers=map(bytes, dumped.buffers), forms=dumped.forms
    )


def load(message: protocol.Payload) -> Any:
    return serializer.loads(
        serializer.Payload.received(message.data, message.buffers, message.forms)
    )


@asynccontextmanager
async def served(
    servicer: WorkerServicer, *, options: ChannelOptions = OPTIONS, gate: bool = True
) -> AsyncIterator[str]:
    """Serve it; yields its address."""
    server = grpc.aio.server(
        interceptors=[VersionInterceptor()] if gate else [],
        options=server_arguments(WorkerOptions(channel=options)),
    )
    protocol.add_to_server(servicer, server)
    with tempfile.TemporaryDirectory(prefix="w", dir="/tmp") as directory:
        server.add_insecure_port(f"unix:{directory}/s")
        await server.start()
        try:
            yield f"unix:{directory}/s"
        finally:
            await server.stop(0)


class Serving(NamedTuple):
    """A worker's service and where it is reached."""

    service: WorkerService
    address: str


@asynccontextmanager
async def working(
    *, options: ChannelOptions = OPTIONS, grace: float = 10, stop: float = 0
) -> AsyncIterator[Serving]:
    """A worker in this process, its routine loop on a thread of its own."""
    service = WorkerService(options=options, grace=grace)
    async with served(service, options=options) as address:
        service.start()
        try:
            yield Serving(service, address)
        finally:
            await service.stop(protocol.StopRequest(timeout=stop))


@asynccontextmanager
async def connected(address: str, **settings: Any) -> AsyncIterator[WorkerConnection]:
    """A connection to a worker, closed in the end."""
    connection = WorkerConnection(address, **settings)
    try:
        yield connection
    finally:
        await connection.close()


async def call(connection: WorkerConnection, routine: Callable[..., Any], *args: Any) -> Any:
    """What a coroutine routine returns."""
    stream = await connection.dispatch(task_of(routine, *args))
    try:
        return await anext(stream)
    finally:
        await stream.aclose()


def session_of(connection: WorkerConnection) -> Session:
    """Its session, which is open."""
    assert connection._link is not None
    assert connection._link.ready is not None
    return connection._link.ready


class Dialogue:
    """What a scripted worker hears. `heard` has all frames but chunks, `batches` every message."""

    def __init__(self, requests: AsyncIterator[RequestBatch]) -> None:
        self._requests = requests
        self._waiting: list[Request] = []
        self.batches: list[RequestBatch] = []
        self.heard: list[Request] = []

    async def next(self) -> Request:
        """The next frame that isn't a chunk; `StopAsyncIteration` at the end of input."""
        while not self._waiting:
            batch = await anext(self._requests)
            self.batches.append(batch)
            self._waiting += [f for f in batch.frames if f.WhichOneof("kind") != "chunk"]
        self.heard.append(self._waiting[0])
        return self._waiting.pop(0)

    async def kind(self, kind: str) -> Request:
        """The next frame of this kind."""
        while (frame := await self.next()).WhichOneof("kind") != kind:
            pass
        return frame

    async def end(self) -> None:
        """Read on until the client has no more to say."""
        try:
            while True:
                await self.next()
        except StopAsyncIteration:
            pass


class Scripted:
    """A worker that answers each session as `script`, an async generator function, says.

    `offer`, if any, is what it answers to the offer of an arena.
    """

    def __init__(self, script: Script, *, initial: bool = True, offer: str = "") -> None:
        self._script = script
        self._initial = initial
        self._offer = ((protocol.ARENA_KEY, offer),) if offer else ()
        self.dialogues: list[Dialogue] = []

    @property
    def dialogue(self) -> Dialogue:
        """The latest."""
        return self.dialogues[-1]

    async def dispatch(
        self, requests: AsyncIterator[RequestBatch], context: Context
    ) -> AsyncIterator[ResponseBatch]:
        if self._initial:
            await context.send_initial_metadata((*protocol.versions(), *self._offer))
        dialogue = Dialogue(requests)
        self.dialogues.append(dialogue)
        async for batch in self._script(dialogue):
            yield batch

    async def stop(self, request: Any, context: Any) -> protocol.Void:
        return protocol.Void()

    async def status(self, request: Any, context: Any) -> protocol.Status:
        return protocol.Status()


def frames(*responses: Response, last: bool = False) -> ResponseBatch:
    return ResponseBatch(frames=responses, last=last)


LAST = frames(last=True)


class RawClient:
    """A client that says what it is told to."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Any) -> None:
        self.stream = cast("Any", protocol.WorkerStub(channel).dispatch(metadata=metadata))
        self.received: list[Response] = []

    async def write(self, *requests: Request, last: bool = False) -> None:
        await self.stream.write(RequestBatch(frames=requests, last=last))

    async def read(self) -> Response:
        """The next frame."""
        while not self.received:
            await self._receive()
        return self.received.pop(0)

    async def reply(self, call: int, *, to: str = "") -> Response:
        """The next frame of a call that isn't an `ack`, or is one if `to` says so."""
        while True:
            for frame in self.received:
                if frame.call == call and (frame.WhichOneof("kind") == "ack") == (to == "ack"):
                    self.received.remove(frame)
                    return frame
            await self._receive()

    async def _receive(self) -> None:
        batch = await self.stream.read()
        if batch is grpc.aio.EOF:
            raise EOFError
        self.received += batch.frames

    async def ended(self) -> grpc.StatusCode:
        """The status with which the worker ends the stream."""
        async with asyncio.timeout(20):
            return cast("grpc.StatusCode", await self.stream.code())


@asynccontextmanager
async def raw(address: str, metadata: Any = None) -> AsyncIterator[RawClient]:
    """A session spoken by hand."""
    async with grpc.aio.insecure_channel(address, options=client_arguments(OPTIONS)) as channel:
        client = RawClient(channel, protocol.versions() if metadata is None else metadata)
        try:
            yield client
        finally:
            client.stream.cancel()
            client.stream = None  # A test's arguments outlive it, and the channel with them.


async def settled(check: Callable[[], Awaitable[object]], timeout: float = 20) -> None:
    """Wait until awaiting `check()` says so."""
    async with asyncio.timeout(timeout):
        done = await check()
        while not done:
            await asyncio.sleep(0.01)
            done = await check()


def by_value(content: bytes) -> Callable[..., Any]:
    """A function that can't travel by name, and brings `content` with it, to tell its length."""

    async def closure() -> int:
        return len(content)

    return closure
