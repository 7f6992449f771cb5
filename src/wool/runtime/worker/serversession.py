"""The server half of the stream: a session, and all of one event loop.

A session's requests are read by one task, its responses are written by the RPC's handler, an
async generator; between the two stands the routine loop, which runs the tasks (see `executor`).
This half never waits for that loop to decide anything: it refuses tasks while the worker drains or
is full (see `backpressure`), gives back those that the routine loop has not taken, and reads on
unless more responses than may (see `framing`) wait for a client that doesn't read. Until it reads,
no more of its tasks are begun either, nor do its streams that run ahead go on. The session of the
routine loop with its own worker is the exception: there is no gRPC in it (see `loopback`), and both
halves are on that loop.

Input that ends without `last` is a lost client, and what runs for it is cancelled. A session that
ends in order is left by the side that goes first with `last`; the handler returns only when the
client has no more to say, because gRPC loses the status of a stream that ends earlier.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from wool import protocol
from wool.runtime.errors import UnexpectedResponse
from wool.runtime.serializer import Payload
from wool.runtime.worker.backpressure import BUSY, STOPPING, Admission, Limit
from wool.runtime.worker.exchange import (
    GIVEN_BACK,
    Arrival,
    Body,
    Definition,
    Exchange,
    reply_size,
)
from wool.runtime.worker.executor import Execution, RoutineLoop, Runner
from wool.runtime.worker.framing import (
    CHUNK,
    DEFINITIONS,
    FEW,
    GATHERING,
    HIGH_WATER,
    TERMINAL,
    UNDER_WAY,
    Assemblies,
    LargePayload,
    Outbox,
    pause,
    write_payload,
)

if TYPE_CHECKING:
    import contextvars
    from collections.abc import AsyncIterator, Callable, Iterator

    from wool.runtime.worker.arena import Shared
    from wool.runtime.worker.base import ChannelOptions
    from wool.runtime.worker.relay import Relay


logger = logging.getLogger("wool.service")

FAREWELL = 5.0
"""Seconds that a client may take to answer the end of a session."""

DRAINING = "Worker service is shutting down"
FULL = "it runs as many tasks as it may (max_concurrent_tasks)"


class ServerSession:
    """The server half of one client's session, one of `group`, which is of this loop.

    Its tasks run on `routines`, in copies of `context`; `replies` takes what they answer to this
    loop. `options` bound payloads, `shared` is the memory shared with the client, if any. Tasks are
    refused when `stopping` is set, and beyond `limit` or by `admission` unless routines make them.
    """

    def __init__(
        self,
        group: ServerSessions,
        *,
        context: contextvars.Context,
        routines: RoutineLoop,
        replies: Relay,
        options: ChannelOptions,
        stopping: asyncio.Event,
        limit: Limit | None,
        admission: Admission | None,
        shared: Shared | None,
    ) -> None:
        self._group = group
        self._routines = routines
        self._options = options
        self._stopping = stopping
        self._loop = asyncio.get_running_loop()
        here = self._loop is routines.loop
        self._limit = None if here else limit
        self._limited: set[int] = set()
        collect = self._collect if here else partial(replies.post, self._collect)
        self._exchange = Exchange(collect, self._crowded)
        self._post = _call if here else routines.post
        self._runner = Runner(
            routines.loop,
            self._exchange,
            context,
            options.max_send_message_length,
            shared=shared,
            admission=admission,
            asks=admission is not None and not here,
        )
        largest = options.max_receive_message_length
        self._assemblies = Assemblies(largest, UNDER_WAY * largest)
        self._definitions: dict[int, Definition] = {}
        self._outbox = Outbox(protocol.ResponseBatch)
        self._open: set[int] = set()
        self._behind: dict[int, list[tuple[str, Body]]] = {}
        self._held_back = 0
        self._finishing = False
        self._last = False
        self._client_left = False
        self.lost = False
        self._writable: asyncio.Future[None] | None = None
        self._readable = asyncio.Event()

    # Requests

    @property
    def running(self) -> list[Execution]:
        """The tasks that have begun. From any thread."""
        return self._runner.running

    async def read(self, requests: AsyncIterator[protocol.RequestBatch]) -> None:
        """Take requests until the client has no more."""
        try:
            async for batch in requests:
                await self.take(batch)
                del batch  # It need not last until the next one comes.
        except (UnexpectedResponse, DecodeError, MemoryError) as exc:
            logger.warning("A client broke the protocol and is cut off: %s", str(exc) or repr(exc))
            self.lose()
        finally:
            self.end_of_input()

    async def take(self, batch: protocol.RequestBatch) -> None:
        """Take requests; returns when there is room for more of what comes of them."""
        for frame in batch.frames:
            self._receive(frame)
        if self._exchange.mail:
            self._post(self._runner.receive)
        self._last = self._last or batch.last
        while self._crowded() and not self.lost:
            self._readable.clear()
            await self._readable.wait()

    def end_of_input(self) -> None:
        """The client has no more."""
        self._client_left = self._last
        if self._client_left:
            self.finish()
        else:
            self.lose()

    def _crowded(self) -> bool:
        largest = self._options.max_send_message_length
        on_its_way = self._exchange.replied - self._exchange.collected
        small = self._outbox.small + self._held_back + on_its_way
        return small > HIGH_WATER or self._outbox.large > largest

    def _let_go_on(self) -> None:
        """Let routines that are ahead of the client know if there is room for more."""
        if self._exchange.stalled and not self._crowded():
            self._exchange.stalled = False
            self._post(self._runner.go_on)

    def _receive(self, frame: protocol.Request) -> None:
        call = frame.call
        kind = frame.WhichOneof("kind")
        if kind == "task":
            if call:
                self._receive_task(call, frame.task)
            else:
                self._receive_definitions(frame.task)
        elif kind == "chunk":
            self._assemblies.add(call, frame.chunk)
        elif kind in ("send", "throw"):
            body = self._take(call, getattr(frame, kind))
            self._exchange.mail.append((call, kind, body))
        elif kind in ("cancel", "withdraw"):
            self._give_back(call, kind)
        elif kind in ("next", "close", "heartbeat", "release", "reachable"):
            self._exchange.mail.append((call, kind, getattr(frame, kind)))
        else:
            raise UnexpectedResponse(f"a frame of call {call} is of no kind known here")

    def _receive_definitions(self, task: protocol.Task) -> None:
        """Those of a task that was left out after frames had been written that refer to them."""
        if task.HasField("callable"):
            self._define(task.callable)
        if task.HasField("proxy"):
            self._define(task.proxy)

    def _receive_task(self, call: int, task: protocol.Task) -> None:
        if call in self._open:
            raise UnexpectedResponse(f"call {call} came twice")
        arguments = self._take(call, task.arguments)
        proxy = self._define(task.proxy) if task.HasField("proxy") else None
        function = self._define(task.callable) if task.HasField("callable") else None
        if function is None and isinstance(arguments, Payload) and not arguments.buffers:
            raise UnexpectedResponse(f"call {call} is of nothing callable")
        if self._stopping.is_set():
            self._refuse(call, DRAINING, STOPPING)
            return
        if self._limit is not None and not task.caller:
            if not self._limit.take(self):
                self._refuse(call, FULL, BUSY)
                return
            self._limited.add(call)
        self._open.add(call)
        self._group.count(1)
        self._exchange.pending[call] = Arrival(task, function, proxy, arguments)
        self._exchange.mail.append((call, "task", None))

    def _take(self, call: int, message: protocol.Payload) -> Payload | protocol.Segment:
        """What a frame carries, or where it lies: it is for the routine loop to copy that."""
        if message.HasField("segment"):
            return message.segment
        return self._assemblies.take(call, message)

    def _define(self, message: protocol.Definition) -> Definition:
        if not message.content:
            try:
                return self._definitions[message.number]
            except KeyError:
                raise UnexpectedResponse(f"number {message.number} was not defined") from None
        definition = Definition(message.content, message.reusable)
        if message.number > DEFINITIONS:
            raise UnexpectedResponse(f"number {message.number} is beyond {DEFINITIONS}")
        if message.number:
            self._definitions[message.number] = definition
        return definition

    def _give_back(self, call: int, kind: str) -> None:
        if self._exchange.pending.pop(call, None) is not None:
            self._refuse(call, GIVEN_BACK)
        elif call not in self._open:
            if self._assemblies.discard(call):
                self._refuse(call, GIVEN_BACK)
        elif kind == "withdraw" and not self._runner.asks:
            self._put(call, "ack", None)
        else:
            if kind == "cancel":
                self._assemblies.discard(call)
            self._exchange.mail.append((call, kind, None))

    # Responses

    def _collect(self) -> None:
        replies = self._exchange.replies
        while replies:
            call, kind, payload, size = replies.popleft()
            self._exchange.collected += size
            self._put(call, kind, payload)
        self._let_go_on()

    def _put(self, call: int, kind: str, payload: Body) -> None:
        if isinstance(payload, protocol.Nack):
            self._refuse(call, payload.reason, payload.code)
            return
        if kind in TERMINAL:
            self._group.done += 1
            if kind == "exception":
                self._group.failed += 1
            self._answered(call)
        if self.lost:
            return
        if call in self._behind:
            self._behind[call].append((kind, payload))
            self._held_back += reply_size(payload)
        elif payload is None:
            setattr(self._outbox.add(call), kind, True)
        elif isinstance(payload, Payload) and payload.size > CHUNK:
            self._behind[call] = []
            self._outbox.add_large(LargePayload(call, payload, partial(self._finish_large, kind)))
        else:
            size = payload.size if isinstance(payload, Payload) else payload.ByteSize()
            message = getattr(self._outbox.add(call, size), kind)
            message.SetInParent()
            write_payload(message, payload)
        self._wake_writer()

    def _finish_large(self, kind: str, frame: protocol.Response) -> None:
        getattr(frame, kind).chunked = True
        for later in self._behind.pop(frame.call):
            self._held_back -= reply_size(later[1])
            self._put(frame.call, *later)

    def _refuse(self, call: int, reason: str, code: int = 0) -> None:
        if self._limit is not None and code == BUSY and call in self._limited:
            self._limited.remove(call)
            self._limit.refused(self)
        self._group.refused += 1
        self._answered(call)
        if not self.lost:
            nack = self._outbox.add(call).nack
            nack.reason = reason
            nack.code = code
            self._wake_writer()

    def tell_room(self, room: int) -> None:
        """Let the client know how many more tasks it may send."""
        if not self.lost:
            self._outbox.add(0).room = room
            self._wake_writer()

    def _answered(self, call: int) -> None:
        if call in self._open:
            self._open.remove(call)
            self._group.count(-1)
        if self._limit is not None and call in self._limited:
            self._limited.remove(call)
            self._limit.give_back()

    def _wake_writer(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    async def batches(self) -> AsyncIterator[protocol.ResponseBatch]:
        """What there is to write, until the end of the session."""
        farewell: asyncio.TimerHandle | None = None
        try:
            while not self.lost:
                if self._outbox and len(self._open) > FEW:
                    await pause(GATHERING)
                if self._outbox:
                    self._readable.set()
                    batch = self._outbox.next()[0]
                    self._let_go_on()
                    yield batch
                    del batch
                elif self._finishing and farewell is None:
                    farewell = self._loop.call_later(FAREWELL, self.lose)
                    yield protocol.ResponseBatch(last=True)
                elif self._client_left:
                    return
                else:
                    self._writable = self._loop.create_future()
                    await self._writable
        finally:
            if farewell is not None:
                farewell.cancel()

    # The end

    def finish(self) -> None:
        """Write what waits, then leave."""
        self._finishing = True
        self._wake_writer()

    def on_done(self, context: Any) -> None:
        """The RPC has ended, whatever its handler is told."""
        self.lose()

    def lose(self) -> None:
        """The client is gone: nothing is written any more."""
        self.lost = True
        self._wake_writer()
        self._readable.set()

    async def cancel(self) -> None:
        """Give back what has not been taken, cancel the rest, and return when that has ended."""
        for call in list(self._exchange.pending):
            self._give_back(call, "withdraw")
        await self._routines.run(self._runner.close)
        self._collect()

    async def close(self) -> None:
        self.lose()
        try:
            await self.cancel()
        finally:
            if self._limit is not None:
                self._limit.forget(self)
            for call in list(self._open):
                self._answered(call)
            self._group.forget(self)


def _call(callback: Callable[[], object]) -> None:
    callback()


class ServerSessions:
    """The sessions that are served on one event loop, and how many tasks they have had.

    `unanswered` is how many they have to answer, `failed` how many of those `done` have raised
    something, and `idle_since` when they last had one.
    """

    def __init__(self) -> None:
        self._sessions: set[ServerSession] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self.unanswered = 0
        self.done = self.failed = self.refused = 0
        self.idle_since = time.monotonic()
        self._idle = asyncio.Event()
        self._idle.set()
        self._gone = asyncio.Event()
        self._gone.set()

    def __iter__(self) -> Iterator[ServerSession]:
        return iter(self._sessions)

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: ServerSession) -> None:
        self._sessions.add(session)
        self._gone.clear()

    def count(self, change: int) -> None:
        """Keep track of how many tasks have not been answered."""
        if not self.unanswered:
            self._idle.clear()
        self.unanswered += change
        if not self.unanswered:
            self.idle_since = time.monotonic()
            self._idle.set()

    def close_soon(self, session: ServerSession) -> None:
        closing = asyncio.create_task(session.close(), name="wool session end")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def forget(self, session: ServerSession) -> None:
        """Take a session that has ended off the list."""
        self._sessions.discard(session)
        if not self._sessions:
            self._gone.set()

    async def drained(self) -> None:
        """Return when all tasks have been answered."""
        await self._idle.wait()

    async def cancel(self) -> None:
        """Cancel what runs, and return when it has ended."""
        await asyncio.gather(*(session.cancel() for session in self))

    async def end(self) -> None:
        """Leave all clients, and return when they have left."""
        for session in self:
            session.finish()
        await self._gone.wait()
