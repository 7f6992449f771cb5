"""The server half of the stream.

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
import contextvars
import logging
import math
import time
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

import wool
from wool import protocol
from wool.runtime import context as ambient
from wool.runtime.errors import TransientRpcError, UnexpectedResponse
from wool.runtime.resourcepool import ResourcePool
from wool.runtime.serializer import Payload
from wool.runtime.worker.arena import Shared
from wool.runtime.worker.auth import CredentialContext
from wool.runtime.worker.backpressure import BUSY, STOPPING, Admission, BackpressureLike, Limit
from wool.runtime.worker.base import ChannelOptions
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
from wool.runtime.worker.loopback import Loopback
from wool.runtime.worker.relay import Relay
from wool.runtime.worker.stacks import stack_of
from wool.runtime.worker.status import resident_memory
from wool.runtime.worker.watch import LoopWatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from uuid import UUID

    from wool.runtime.worker.auth import Credentials

logger = logging.getLogger("wool.service")

FAREWELL = 5.0
"""Seconds that a client may take to answer the end of a session."""

DRAINING = "Worker service is shutting down"
FULL = "it runs as many tasks as it may (max_concurrent_tasks)"


class Event(NamedTuple):
    """An `asyncio.Event` to read and to wait for."""

    event: asyncio.Event

    def is_set(self) -> bool:
        return self.event.is_set()

    async def wait(self) -> None:
        await self.event.wait()


class _Session:
    """The server half of one client's session, one of `group`, which is of this loop."""

    def __init__(
        self, service: WorkerService, group: _Sessions, shared: Shared | None = None
    ) -> None:
        self._service = service
        self._group = group
        self._loop = asyncio.get_running_loop()
        here = self._loop is service.routines.loop
        collect = self._collect if here else partial(service.replies.post, self._collect)
        self._exchange = Exchange(collect, self._crowded)
        self._post = _call if here else service.routines.post
        context = contextvars.Context()
        context.run(wool.__proxy_pool__.set, service.proxies)
        context.run(ambient.loopback.set, service.loopback)
        context.run(CredentialContext(service.credentials).__enter__)
        limit = service.options.max_send_message_length
        loop = service.routines.loop
        self._runner = Runner(
            loop,
            self._exchange,
            context,
            limit,
            shared=shared,
            admission=service.admission,
            asks=service.admission is not None and not here,
        )
        self._limit = None if here else service.limit
        self._limited: set[int] = set()
        largest = service.options.max_receive_message_length
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
        largest = self._service.options.max_send_message_length
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
        if self._service.stopping.is_set():
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
        await self._service.routines.run(self._runner.close)
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


class _Sessions:
    """The sessions that are served on one event loop, and how many tasks they have had.

    `unanswered` is how many they have to answer, `failed` how many of those `done` have raised
    something, and `idle_since` when they last had one.
    """

    def __init__(self) -> None:
        self._sessions: set[_Session] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self.unanswered = 0
        self.done = self.failed = self.refused = 0
        self.idle_since = time.monotonic()
        self._idle = asyncio.Event()
        self._idle.set()
        self._gone = asyncio.Event()
        self._gone.set()

    def __iter__(self) -> Iterator[_Session]:
        return iter(self._sessions)

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: _Session) -> None:
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

    def close_soon(self, session: _Session) -> None:
        closing = asyncio.create_task(session.close(), name="wool session end")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def forget(self, session: _Session) -> None:
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


class WorkerService:
    """The gRPC service of a worker: sessions, and the end of them all.

    `options` bound payloads; `proxy_ttl` is how many seconds an unused proxy of a caller's is kept
    for nested calls; `grace` how many seconds routines may take to clean up when they are
    cancelled by a stop; `credentials` are those that its routines' nested calls use. At most
    `max_concurrent_tasks` run at once (None: no limit), and none that the `backpressure` hook
    refuses; neither applies to the calls of routines. A routine that blocks its loop for
    `blocking_threshold` seconds is logged (None: never). `loop_factory` makes that loop.
    """

    replies: Relay
    """Takes what routines answer to the loop that serves."""

    def __init__(
        self,
        *,
        options: ChannelOptions | None = None,
        proxy_ttl: float = 60.0,
        grace: float = 60.0,
        credentials: Credentials | None = None,
        max_concurrent_tasks: int | None = None,
        backpressure: BackpressureLike | None = None,
        blocking_threshold: float | None = 1.0,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    ) -> None:
        limited = max_concurrent_tasks is not None or backpressure is not None
        self.limit = Limit(max_concurrent_tasks) if limited else None
        self.admission = Admission(backpressure) if backpressure is not None else None
        self.credentials = credentials
        self.options = options or ChannelOptions()
        self.routines = RoutineLoop(loop_factory)
        self.proxies: ResourcePool[Any] = ResourcePool(
            _start_later, finalizer=_stop_proxy, ttl=proxy_ttl
        )
        self._grace = grace
        self._watch = LoopWatch(self.routines, blocking_threshold, self._is_busy)
        self._began = time.monotonic()
        self._sessions = _Sessions()
        self._own = _Sessions()  # Of the routine loop with this worker.
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._events = Event(self._stopping), Event(self._stopped)
        self._until = math.inf
        self._drain: asyncio.Timeout | None = None
        self._ending: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the routine loop, and serve on the one that runs."""
        self.replies = Relay(asyncio.get_running_loop())
        self.routines.start()
        self._watch.start()

    @property
    def stopping(self) -> Event:
        """Set when it takes no more tasks."""
        return self._events[0]

    @property
    def stopped(self) -> Event:
        """Set when everything has ended."""
        return self._events[1]

    def loopback(self, uid: UUID) -> Loopback | None:
        """A stream to this worker if that is its uid and the routine loop is running this.

        Raises `TransientRpcError` if the worker takes no more tasks.
        """
        me = wool.__worker_metadata__
        if me is None or me.uid != uid:
            return None
        if asyncio.get_running_loop() is not self.routines.loop:
            return None
        if self._stopping.is_set():
            raise TransientRpcError(grpc.StatusCode.UNAVAILABLE, DRAINING)
        session = _Session(self, self._own)
        self._own.add(session)
        return Loopback(session, partial(self._own.close_soon, session))

    async def dispatch(
        self,
        requests: AsyncIterator[protocol.RequestBatch],
        context: grpc.aio.ServicerContext[protocol.RequestBatch, protocol.ResponseBatch],
    ) -> AsyncIterator[protocol.ResponseBatch]:
        if self._stopping.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, DRAINING)
        shared = self._share(context)
        answer = () if shared is None else ((protocol.ARENA_KEY, shared.arena.offer),)
        try:
            await context.send_initial_metadata((*protocol.versions(), *answer))
        except BaseException:
            if shared is not None:
                shared.close()
            raise
        session = _Session(self, self._sessions, shared)
        self._sessions.add(session)
        reading = asyncio.create_task(session.read(requests), name="wool session reader")
        context.add_done_callback(cast("Any", session.on_done))
        try:
            async for batch in session.batches():
                yield batch
        finally:
            reading.cancel()
            # A task of its own: gRPC may cancel this one, or stop awaiting it, at any point, and
            # the client need not wait for routines that it has left behind.
            self._sessions.close_soon(session)

    def _share(self, context: grpc.aio.ServicerContext[Any, Any]) -> Shared | None:
        """Take the client's offer of shared memory, if it makes one that can be taken."""
        for key, value in context.invocation_metadata() or ():
            if key == protocol.ARENA_KEY:
                return Shared.accept(
                    str(value),
                    largest_in=self.options.max_receive_message_length,
                    largest_out=self.options.max_send_message_length,
                )
        return None

    async def stop(
        self,
        request: protocol.StopRequest,
        context: grpc.aio.ServicerContext[protocol.StopRequest, protocol.Void] | None = None,
    ) -> protocol.Void:
        """Take no more tasks, drain, cancel, end every session; returns when that is done.

        A later stop may shorten the draining of an earlier one.
        """
        self._stopping.set()
        if request.timeout >= 0:
            until = asyncio.get_running_loop().time() + request.timeout
            self._until = min(self._until, until)
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(), name="wool stop")
        elif self._drain is not None and not self._drain.expired():
            self._drain.reschedule(self._deadline())
        await asyncio.shield(self._ending)
        return protocol.Void()

    async def status(
        self,
        request: protocol.StatusRequest,
        context: grpc.aio.ServicerContext[protocol.StatusRequest, protocol.Status] | None = None,
    ) -> protocol.Status:
        """How it is; with the tasks that run and their stacks, if they are asked for."""
        groups = self._sessions, self._own
        metadata = wool.__worker_metadata__
        idle_since = max(group.idle_since for group in groups)
        return protocol.Status(
            worker=metadata.to_protobuf() if metadata is not None else None,
            draining=self._stopping.is_set(),
            uptime=time.monotonic() - self._began,
            idle=0 if self._is_busy() else time.monotonic() - idle_since,
            running=sum(group.unanswered for group in groups),
            done=sum(group.done for group in groups),
            failed=sum(group.failed for group in groups),
            refused=sum(group.refused for group in groups),
            sessions=len(self._sessions),
            loop_lag=self._watch.lag,
            cpu=time.process_time(),
            memory=resident_memory(),
            tasks=self.running_tasks() if request.tasks else (),
        )

    def _is_busy(self) -> bool:
        return bool(self._sessions.unanswered or self._own.unanswered)

    def running_tasks(self) -> list[protocol.RunningTask]:
        """The tasks that run, the longest first, and where they are. Their loop may be blocked."""
        executions = [
            execution
            for group in (self._sessions, self._own)
            for session in list(group)
            for execution in session.running
            if execution.began
        ]
        return [
            protocol.RunningTask(
                id=execution.id,
                tag=execution.tag,
                caller=execution.caller,
                seconds=self.routines.loop.time() - execution.began,
                stack=stack_of(execution.task, self.routines),
            )
            for execution in sorted(executions, key=attrgetter("began"))
        ]

    def _deadline(self) -> float | None:
        return self._until if self._until < math.inf else None

    async def _end(self) -> None:
        try:
            async with asyncio.timeout_at(self._deadline()) as self._drain:
                await self._everywhere(_Sessions.drained)
        except TimeoutError:
            logger.debug("Cancelling what still runs")
        self._drain = None
        try:
            async with asyncio.timeout(self._grace):
                await self._everywhere(_Sessions.cancel)
        except TimeoutError:
            logger.warning("Routines still run %s s after they were cancelled", self._grace)
        try:
            async with asyncio.timeout(FAREWELL):
                await self._everywhere(_Sessions.end)
                await self.routines.run(self._clear_proxies)
        except TimeoutError:
            logger.info("Clients, or proxies of theirs, did not end within %s s", FAREWELL)
        self._watch.stop()
        await self.routines.stop(1.0)
        self.replies.close()
        self._stopped.set()

    async def _everywhere(self, step: Callable[[_Sessions], Coroutine[Any, Any, None]]) -> None:
        """Take a step with all sessions. The routine loop may be busy, and have none."""
        steps = [step(self._sessions)]
        if len(self._own):
            steps.append(self.routines.run(step, self._own))
        await asyncio.gather(*steps)

    async def _clear_proxies(self) -> None:
        await self.proxies.clear()


def _start_later(proxy: Any) -> Any:
    return proxy


async def _stop_proxy(proxy: Any) -> None:
    if getattr(proxy, "started", False):
        await proxy.stop()
