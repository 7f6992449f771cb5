"""The client half of the stream: many calls over one gRPC call, or what stands for it (`loopback`).

A session has one reader and one writer. `submit` queues a task; the writer sends whatever is
queued as one batch as soon as the last write is done, so a lone call leaves at once and a burst
leaves in few messages. The reader hands what arrives to the call it belongs to, and each `Call`
is awaited by whoever made it.

A call is QUEUED until the first byte of its task is handed to gRPC, then SENT: from there on it
may run, and it is never run again elsewhere unless the worker has said, with a `nack`, that it
has not started. It is TAKEN when the worker's routine loop has it, which any frame but a `nack`
says too, and ENDED with its last frame. When the stream breaks, QUEUED calls fail with a transient
error, so that they may go to another worker; the others with `WorkerLost`.

A caller that is cancelled sends `cancel` and goes on waiting for the call's last frame, so it
resumes after the routine has cleaned up, at most `CANCEL_GRACE` seconds later. The worker says
`cancelling` if that interrupts the routine. Without it, what arrives is what the routine did before
and of no use to the caller; with it, it is how the routine took it. A caller whose dispatch timeout
expires sends `withdraw`: the worker gives the task back unless its routine loop has taken it. Both
leave out what has not been sent of the call's payload.

Large payloads go through shared memory if the worker is on this host (see `arena`): arguments are
copied in before the call is queued, and values are copied out before their call hears of them.
What comes of a call meanwhile waits.

Streams end explicitly: the side that leaves sends `last`, the other finishes and answers with
`last`. A worker goes on refusing the tasks that it receives after its own. End of input without
`last` is a lost peer. Nothing here is shared between event loops.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import grpc.aio

from wool import protocol
from wool.runtime.errors import (
    PayloadTooLarge,
    TransientRpcError,
    UnexpectedResponse,
    WorkerFull,
    WorkerLost,
)
from wool.runtime.worker.arena import WORTHWHILE
from wool.runtime.worker.backpressure import BUSY, STOPPING
from wool.runtime.worker.call import Call, Stage
from wool.runtime.worker.definitions import Definitions, finish_large
from wool.runtime.worker.fetches import Fetches
from wool.runtime.worker.framing import (
    CHUNK,
    FEW,
    GATHERING,
    HIGH_WATER,
    TERMINAL,
    Assemblies,
    Gate,
    LargePayload,
    Outbox,
    pause,
    write_payload,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from wool.runtime.routine.task import Task
    from wool.runtime.serializer import Payload
    from wool.runtime.worker.arena import Shared
    from wool.runtime.worker.base import ChannelOptions
    from wool.runtime.worker.loopback import StreamLike
    from wool.runtime.worker.metadata import WorkerMetadata

logger = logging.getLogger("wool.session")

HEARTBEAT = 10.0
"""Seconds of silence after which a worker is asked whether its routine loop runs."""

FAREWELL = 5.0
"""Seconds that a worker may take to answer the end of a session, or to end it after its own."""

EXHAUSTION = 5.0
"""Seconds for what has arrived to be read, of an RPC that can't be cancelled."""

WRITE_FAILED = "Internal error from Core"
"""What grpc.aio says of an RPC whose write has failed, unless it has heard more."""


class Placed(NamedTuple):
    """The number of a call to come, and where its arguments lie in the arena."""

    number: int
    segment: protocol.Segment


class Session:
    """An open stream to a worker, for the event loop that opened it.

    `stream` is the gRPC call, past its initial metadata, or what stands for one; `shared` is the
    memory shared with the worker, if any, which the session closes. `ascertain` tells how the
    worker's process died, if that is known. `on_lost` is called when the stream has broken or the
    worker takes no more, `on_room` when a worker that was full has room for so many more tasks.
    """

    def __init__(
        self,
        stream: StreamLike,
        options: ChannelOptions,
        *,
        shared: Shared | None = None,
        metadata: WorkerMetadata | None = None,
        ascertain: Callable[[], Awaitable[str | None]] | None = None,
        on_lost: Callable[[], None] | None = None,
        on_room: Callable[[int], None] | None = None,
    ) -> None:
        self.metadata = metadata
        self.busy = False
        self._stream = stream
        self._options = options
        self._ascertain = ascertain
        self._on_lost = on_lost
        self._on_room = on_room
        self._allowance: int | None = None
        self._calls: dict[int, Call] = {}
        self._numbers = count(1)
        self._definitions = Definitions()
        self._outbox = Outbox(protocol.RequestBatch)
        self._small_gate = Gate(HIGH_WATER, lambda: self._outbox.payloads)
        self._large_gate = Gate(options.max_receive_message_length, self._waiting)
        self._assemblies = Assemblies(options.max_send_message_length)
        self._shared = shared
        self._accepting = True
        self._closing = False
        self._leaving = False
        self._parting_reason: str | None = None
        self._exhausted = False  # Its stream has been read to the end.
        self._writable: asyncio.Future[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._heard = True
        self._asked = False
        self.loop = asyncio.get_running_loop()
        self._timer = self.loop.call_later(HEARTBEAT, self._beat)
        self._reader = self.loop.create_task(self._read(), name="wool session reader")
        self._writer = self.loop.create_task(self._write(), name="wool session writer")
        self._fetches = None if shared is None else self._share(shared)

    def __repr__(self) -> str:
        worker = f"{self.metadata.uid} at {self.metadata.address}" if self.metadata else "a worker"
        state = "open" if self._accepting else "closing"
        return f"<Session with {worker}, {state}, {len(self._calls)} calls>"

    @property
    def accepting(self) -> bool:
        """Whether it takes new calls."""
        return self._accepting

    @property
    def full(self) -> bool:
        """Whether the worker is, as far as is known, so that it would refuse a task."""
        return self._allowance == 0

    def crowded(self, task: Task) -> bool:
        """Whether a task has to wait for its turn, or to be put into shared memory.

        Raises `PayloadTooLarge` if the worker would refuse its arguments.
        """
        size = task.encode().size
        limit = self._options.max_receive_message_length
        if size > limit:
            raise PayloadTooLarge(
                f"The call of {task.tag} with arguments", size, "max_receive_message_length", limit
            )
        return self._shares(size) or self._gate(size).crowded

    async def turn(self, task: Task) -> Placed | None:
        """Wait for the turn of a task, and share its arguments if they are large."""
        arguments = task.encode()
        gate = self._gate(arguments.size)
        if gate.crowded:
            await gate.enter(arguments.size)
        if not self._accepting or not self._shares(arguments.size):
            return None
        number = next(self._numbers)
        segment = await self._place(number, arguments)
        return Placed(number, segment) if segment is not None else None

    def leave_out(self, placed: Placed | None) -> None:
        """What was placed by `turn` is not going to be submitted."""
        if placed is not None:
            self._free(placed.number)

    def _gate(self, size: int) -> Gate:
        return self._large_gate if size > CHUNK or self._shares(size) else self._small_gate

    def _share(self, shared: Shared) -> Fetches:
        shared.arena.on_room = self._grant
        self._outbox.add(0).reachable = True
        return Fetches(
            shared,
            self._outbox,
            wanted=self._calls.__contains__,
            fetched=self._fetched,
            failed=self._not_fetched,
            resume=self._receive,
            wake=self._wake_writer,
        )

    def _waiting(self) -> int:
        """Bytes of large payloads that the worker has not taken."""
        lent = self._shared.arena.used if self._shared is not None else 0
        return self._outbox.large + lent

    def _shares(self, size: int) -> bool:
        return self._shared is not None and size > WORTHWHILE

    async def _place(self, number: int, payload: Payload) -> protocol.Segment | None:
        if self._shared is None or not self._shares(payload.size):
            return None
        return await self._shared.arena.put(number, payload)

    def _free(self, number: int) -> None:
        if self._shared is not None:
            self._shared.arena.free(number)

    def submit(
        self,
        task: Task,
        on_end: Callable[[Call], None] | None = None,
        placed: Placed | None = None,
    ) -> Call:
        """Queue a task. `on_end` is called when it has ended, `placed` is what `turn` returned.

        Raises `TransientRpcError` if the session is ending, `WorkerFull` if the worker is full.
        """
        number, segment = placed or (next(self._numbers), None)
        if not self._accepting:
            self._free(number)
            raise TransientRpcError(grpc.StatusCode.UNAVAILABLE, f"{self!r} takes no more calls")
        if self._allowance is not None and task.caller is None:
            if self.full:
                self._free(number)
            self.check_room()
            self._allowance -= 1
        call = self._calls[number] = Call(self, number, task.tag, task.prefetch, on_end)
        self._idle.clear()
        arguments = task.encode()
        size = arguments.size
        if segment is None and size > CHUNK:
            call.large = LargePayload(number, arguments, partial(finish_large, task), call)
            self._outbox.add_large(call.large)
        else:
            size = segment.ByteSize() if segment is not None else size
            size += self._definitions.size_in(task)
            message = self._outbox.add(number, size, call).task
            self._definitions.write(message, task)
            write_payload(message.arguments, segment or arguments)
        self._wake_writer()
        return call

    def check_room(self) -> None:
        """Raise `WorkerFull` if the worker is, as far as is known."""
        if self.full:
            raise WorkerFull(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self!r}: the worker is full")

    def _allow(self, tasks: int) -> None:
        self._allowance = tasks
        if self._on_room is not None:
            self._on_room(tasks)

    def send(self, call: Call, kind: str) -> None:
        """Queue a frame for a call that the worker has, or is about to have."""
        if call.stage is Stage.ENDED:
            return
        if kind in ("cancel", "withdraw"):
            self._leave_out(call)
        elif kind == "close":
            call.closing()
        setattr(self._outbox.add(call.number), kind, True)
        self._wake_writer()

    def want(self, call: Call, count: int) -> None:
        """Ask for as many more values of a stream."""
        if call.stage is not Stage.ENDED:
            self._outbox.add(call.number).next = count
            self._wake_writer()

    async def send_value(self, call: Call, kind: str, payload: Payload) -> None:
        """Queue what a stream is sent. Raises `PayloadTooLarge` if the worker would refuse it."""
        limit = self._options.max_receive_message_length
        if payload.size > limit:
            raise PayloadTooLarge(
                f"The value sent to {call.tag}", payload.size, "max_receive_message_length", limit
            )
        gate = self._gate(payload.size)
        if gate.crowded:
            await gate.enter(payload.size)
        segment = await self._place(call.number, payload)
        if call.stage is Stage.ENDED:
            self._free(call.number)
            return
        if segment is None and payload.size > CHUNK:
            call.large = LargePayload(call.number, payload, partial(_finish_large_value, kind))
            self._outbox.add_large(call.large)
        else:
            size = payload.size if segment is None else segment.ByteSize()
            message = getattr(self._outbox.add(call.number, size), kind)
            message.SetInParent()
            write_payload(message, segment or payload)
        self._wake_writer()

    def drop(self, call: Call) -> None:
        """Forget a call, and leave out what was not sent of it."""
        self._leave_out(call)
        call.stage = Stage.ENDED
        self._remove(call.number)

    def _leave_out(self, call: Call) -> None:
        unsent = call.stage is Stage.QUEUED or (call.large is not None and not call.large.over)
        if unsent and self._allowance is not None:
            self._allow(self._allowance + 1)
        if call.large is not None:
            self._outbox.drop(call.large)
            self._grant()
        elif call.batch is not None:
            frame = call.batch.frames[call.place]
            # Later frames may refer to what this one defines.
            frame.call = 0
            frame.task.ClearField("arguments")
            call.batch = None
            self._free(call.number)

    def _wake_writer(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _remove(self, number: int) -> Call | None:
        call = self._calls.pop(number, None)
        self._assemblies.discard(number)
        if not self._calls:
            self._idle.set()
        if call is not None:
            call.ended()
        return call

    def _grant(self) -> None:
        self._small_gate.advance(everyone=not self._accepting)
        self._large_gate.advance(everyone=not self._accepting)

    # The writer

    async def _write(self) -> None:
        try:
            while True:
                if self._outbox and len(self._calls) > FEW:
                    await pause(GATHERING)
                if self._outbox:
                    await self._stream.write(self._next_batch())
                    self._grant()
                elif self._leaving:
                    await self._stream.write(protocol.RequestBatch(last=True))
                    await self._stream.done_writing()
                    return
                else:
                    self._writable = self.loop.create_future()
                    await self._writable
        except (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
            logger.debug("%r can't be written to any more", self)
        except BaseException:
            self._stream.cancel()
            raise

    def _next_batch(self) -> protocol.RequestBatch:
        batch, calls = self._outbox.next()
        for call in calls:
            call.sent()
        return batch

    # The reader

    async def _read(self) -> None:
        """Take what arrives, to the end.

        Once a write has failed, grpc.aio takes the RPC for ended: `read` raises, though messages
        have arrived, and `cancel` does nothing. Core ends it only when all of them have been read,
        so this goes on when they are of no use, too.
        """
        reason = "the worker closed the connection without a farewell"
        taking = True
        try:
            async for batch in self._stream:
                self._heard = True
                taking = taking and self._take(batch)
        except grpc.aio.AioRpcError as exc:
            reason = exc.details() or exc.code().name
            if reason == WRITE_FAILED:
                reason = "the connection broke during a write"
        except Exception as exc:
            self._reject(exc)
        except asyncio.CancelledError:
            if self._reader.cancelling():
                self._abandon_calls()  # The end of `asyncio.run` cancels this task, too.
                self._unshare()
                raise
            reason = "the call was cancelled by gRPC"
        self._exhausted = True
        await self._lose(self._parting_reason or reason)

    def _take(self, batch: protocol.ResponseBatch | None) -> bool:
        """Take what has arrived. Tells whether what comes next is worth it."""
        try:
            if batch is None:  # gRPC has logged why.
                raise UnexpectedResponse("what it sent is no message")
            for frame in batch.frames:
                self._receive(frame)
        except Exception as exc:
            self._reject(exc)
            return False
        if batch.last and self._parting_reason is None:
            self._part("the worker has stopped")
            self._timer.cancel()
            self._timer = self.loop.call_later(FAREWELL, self._stream.cancel)
        return True

    def _reject(self, error: Exception) -> None:
        """Give up a worker that has sent this."""
        if isinstance(error, UnexpectedResponse):
            reason = str(error)
        else:
            logger.error("%r can't take what has arrived", self, exc_info=error)
            reason = f"what it sent could not be taken: {error!r}"
        self._part(reason)
        self._stream.cancel()

    def _receive(self, frame: protocol.Response) -> None:
        kind = frame.WhichOneof("kind")
        if self._fetches is not None and self._fetches.receive(frame, kind):
            return
        call = self._calls.get(frame.call)
        if call is None:
            if kind == "room":
                self._allow(frame.room)
            return
        if kind == "chunk":
            self._assemblies.add(frame.call, frame.chunk)
            return
        if kind is None:
            raise UnexpectedResponse(f"a frame of call {frame.call} is of no kind known here")
        body = getattr(frame, kind)
        if kind in ("result", "item", "exception"):
            body = self._assemblies.take(frame.call, body)
        elif kind == "nack":
            self._refused(body.code)
        self._deliver(call, kind, body)

    def _refused(self, code: int) -> None:
        if code == BUSY:
            self._allowance = 0
        elif code == STOPPING and self._accepting:
            self._accepting = False
            if self._on_lost is not None:
                self._on_lost()
            self._grant()

    def _deliver(self, call: Call, kind: str, body: Any) -> None:
        if kind in TERMINAL:
            self._remove(call.number)
        call.feed(kind, body)

    # What comes through shared memory

    def _fetched(self, frame: protocol.Response, payload: Payload) -> None:
        call = self._calls.get(frame.call)
        if call is not None:
            self._deliver(call, str(frame.WhichOneof("kind")), payload)

    def _not_fetched(self, number: int, error: Exception) -> None:
        call = self._calls.get(number)
        if call is not None:
            self.send(call, "cancel")
            self.drop(call)
            call.fail(error)

    def _unshare(self) -> None:
        if self._shared is not None:
            self._shared.close()
        if self._fetches is not None:
            self._fetches.close()

    async def _lose(self, reason: str) -> None:
        self._part(reason)
        self._timer.cancel()
        if self._fetches is not None:
            await self._fetches.finish()
        sent = list(self._calls.values())
        if sent and self._ascertain is not None:
            reason = await self._ascertain() or reason
        for call in sent:
            if self._remove(call.number) is not None:
                call.fail(WorkerLost(self.metadata, reason))
        self._stream.cancel()
        self._unshare()

    def _part(self, reason: str) -> None:
        """The worker takes no more."""
        self._parting_reason = reason
        if not self._leaving and self._on_lost is not None:
            self._on_lost()
        self._leave()
        self._fail_unsent(reason)

    def _fail_unsent(self, reason: str) -> None:
        for call in [call for call in self._calls.values() if call.stage is Stage.QUEUED]:
            self.drop(call)
            call.fail(TransientRpcError(grpc.StatusCode.UNAVAILABLE, reason))

    def _beat(self) -> None:
        if self._heard:
            if self.busy:
                logger.info("%r: the routine loop runs again", self)
            self.busy = self._asked = False
        elif not self._asked:
            self._asked = True
            self._outbox.add(0).heartbeat = True
            self._wake_writer()
        elif not self.busy:
            self.busy = True
            logger.warning("%r: the routine loop is blocked", self)
        self._heard = False
        self._timer = self.loop.call_later(HEARTBEAT, self._beat)

    # The end

    def _leave(self) -> None:
        self._accepting = False
        self._leaving = True
        self._wake_writer()
        self._grant()

    async def idle(self) -> None:
        """Return when it has no calls, streams that wait for their consumer included."""
        await self._idle.wait()

    async def close(self, *, timeout: float | None = 0) -> None:
        """Leave when running calls have ended, at most `timeout` seconds later (None: any time).

        Streams that wait for their consumer are closed at once, others after the step they take.
        """
        self._accepting = False
        self._closing = True
        self._grant()
        try:
            for call in list(self._calls.values()):
                self.suspend(call)
            async with asyncio.timeout(timeout):
                await self._idle.wait()
            self._leave()
            async with asyncio.timeout(FAREWELL):
                await asyncio.wait([self._reader])
        except TimeoutError:
            logger.debug("%r is cut off", self)
        finally:
            await self._cut()

    def suspend(self, call: Call) -> None:
        """A stream waits for its consumer, in vain if the session is being closed."""
        if (self._closing or call.leaving) and call.suspended:
            self.send(call, "close")
            call.abandoned = RuntimeError(f"{call.tag} was open when its pool was left")

    async def _cut(self) -> None:
        self._leave()
        if self._stream.cancel() or self._exhausted:
            self._reader.cancel()
        else:  # It ends by itself, when it has read what core waits for.
            bound = self.loop.call_later(EXHAUSTION, self._reader.cancel)
            self._reader.add_done_callback(lambda _: bound.cancel())
        self._writer.cancel()
        self._abandon_calls()
        fetching = self._fetches.cancel() if self._fetches is not None else ()
        try:
            await asyncio.wait([self._reader, self._writer, *fetching])
        finally:
            self._timer.cancel()
            self._unshare()

    def _abandon_calls(self) -> None:
        for call in list(self._calls.values()):
            self._remove(call.number)
            call.fail(asyncio.CancelledError(f"{call.tag} was running when its pool was left"))


def _finish_large_value(kind: str, frame: protocol.Request) -> None:
    getattr(frame, kind).chunked = True
