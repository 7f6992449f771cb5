"""The routine loop: the thread and the event loop that routines run on, and what runs them.

gRPC is served on another loop, which runs on this thread, too, and on its own while a routine
blocks this (see `guest`). So routines never keep the worker from answering. `exchange` has what the
two loops share of a session. Of the worker's session with itself both sides are here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Any

from wool import protocol
from wool.runtime import serializer, unimportable
from wool.runtime.errors import PayloadTooLarge, UnexpectedResponse
from wool.runtime.routine import task as task_module
from wool.runtime.routine.task import is_generator, within
from wool.runtime.serializer import Payload
from wool.runtime.unpicklable import refuse
from wool.runtime.worker import exchange
from wool.runtime.worker.arena import WORTHWHILE, in_turns
from wool.runtime.worker.exchange import GIVEN_BACK, reply_size
from wool.runtime.worker.framing import OVERHEAD, pause
from wool.runtime.worker.relay import Relay

if TYPE_CHECKING:
    import contextvars
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
    from types import TracebackType

    from wool.runtime.routine.task import Task
    from wool.runtime.worker.arena import Arena, Shared
    from wool.runtime.worker.backpressure import Admission
    from wool.runtime.worker.exchange import Arrival, Body, Exchange
    from wool.runtime.worker.guest import Guest

logger = logging.getLogger("wool.executor")

REPLIES = 64
"""How many replies may wait for the rest of what runs in one turn of the loop."""

REQUESTS = 64
"""How much of what a client asks of a call may wait for its routine. Some three is all there is."""


class RoutineLoop:
    """An event loop on a thread of its own, which may have a guest."""

    _relay: Relay

    def __init__(self, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
        self.loop = (loop_factory or asyncio.new_event_loop)()
        self._guest: Guest | None = None
        self._ending = False
        self._thread = threading.Thread(target=self._main, name="wool routines", daemon=True)

    @property
    def thread_id(self) -> int | None:
        return self._thread.ident

    def start(self, guest: Guest | None = None) -> None:
        self._relay = Relay(self.loop)
        self._thread.start()
        if guest is not None:
            self._guest = guest
            guest.lend(self)

    def post(self, callback: Callable[[], object]) -> None:
        """Have it called there, unless the loop has ended."""
        self._relay.post(callback)

    async def run(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
        """Have a coroutine function run there, unless the loop has ended."""
        coroutine = function(*args)
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except RuntimeError:
            coroutine.close()
            return None
        return await asyncio.wrap_future(future)

    async def stop(self, timeout: float) -> None:
        """Cancel what runs there, wait for it `timeout` seconds at most, and end the loop.

        A guest is on its own thread afterwards.
        """
        if self._guest is not None:
            await self._guest.recall()
        asyncio.run_coroutine_threadsafe(self._drain(timeout), self.loop)
        await asyncio.to_thread(self._thread.join, timeout + 1)

    async def _drain(self, timeout: float) -> None:
        deadline = self.loop.time() + timeout
        me = asyncio.current_task()
        while (tasks := asyncio.all_tasks() - {me}) and self.loop.time() < deadline:
            await asyncio.sleep(0)  # A task can clean up if it has taken its first step.
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=deadline - self.loop.time())
        self._ending = True
        self.loop.stop()

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._ending:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                logger.exception("A task of a routine's, or a callback, tried to end the worker")
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self._relay.close()
        self.loop.close()


class Runner:
    """Runs the tasks of one session, on the routine loop, which is `loop`.

    Each runs in a copy of `context`. `limit` is the largest result, in bytes, `shared` the memory
    shared with the client, if any, which this closes. If it `asks`, `admission` may refuse a task,
    which is not acknowledged before that is known.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        exchange: Exchange,
        context: contextvars.Context,
        limit: int,
        *,
        shared: Shared | None = None,
        admission: Admission | None = None,
        asks: bool = False,
    ) -> None:
        self.limit = limit
        self.loop = loop
        self.admission = admission
        self.asks = asks
        self._shared = shared
        self._arena: Arena | None = None
        self._exchange = exchange
        self._running: dict[int, Execution] = {}
        self._unacknowledged: dict[int, None] = {}
        self._flushing = False
        self._context = context
        self._stalled: deque[asyncio.Future[None]] = deque()
        self._closing = False

    def receive(self) -> None:
        """Take what has arrived."""
        mail = self._exchange.mail
        while mail:
            call, kind, body = mail.popleft()
            if kind == "task":
                self._start(call)
            elif kind == "heartbeat":
                self.reply(call, kind)
            elif kind in ("release", "reachable"):
                self._receive_shared(call, kind)
            elif call in self._running:
                self._running[call].tell(kind, body)
        self._schedule()  # What begins now takes its first step before that.

    def _receive_shared(self, call: int, kind: str) -> None:
        if self._shared is not None:
            if kind == "release":
                self._shared.arena.free(call)
            else:
                self._arena = self._shared.arena

    def _start(self, call: int) -> None:
        if call in self._exchange.pending:
            self._running[call] = Execution(self, call, self._context.copy())

    def claim(self, call: int) -> Arrival | None:
        """The task, unless it has been given back."""
        arrival = self._exchange.pending.pop(call, None)
        if arrival is not None and not self.asks:
            self._unacknowledged[call] = None
        return arrival

    def acknowledge(self, call: int) -> None:
        self._unacknowledged[call] = None
        self._schedule()

    async def take(self, call: int, payload: Payload | protocol.Segment) -> Payload:
        """What came for a call, copied out of shared memory if it lies there."""
        if isinstance(payload, Payload):
            return payload
        if self._shared is None:
            raise UnexpectedResponse("A client refers to memory that it has not shared")
        copied = await in_turns(self._shared.window.copy(payload))
        self.reply(call, "release")
        return copied

    async def place(self, call: int, payload: Payload) -> Payload | protocol.Segment:
        """What leaves for a call, put into shared memory if there is some, and room in it."""
        if self._arena is None:
            return payload
        return await self._arena.put(call, payload) or payload

    def reply(self, call: int, kind: str, payload: Body = None) -> None:
        self._unacknowledged.pop(call, None)
        size = OVERHEAD if payload is None else reply_size(payload)
        self._exchange.replies.append((call, kind, payload, size))
        self._exchange.replied += size
        if len(self._exchange.replies) % REPLIES == 0:
            self._exchange.collect()
        self._schedule()

    def _schedule(self) -> None:
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        for call in self._unacknowledged:
            self._exchange.replies.append((call, "ack", None, OVERHEAD))
            self._exchange.replied += OVERHEAD
        self._unacknowledged.clear()
        if self._exchange.replies:
            self._exchange.collect()

    async def room(self) -> None:
        """Return when no more replies wait for the client than may."""
        while self.crowded:
            turn = self.loop.create_future()
            self._stalled.append(turn)
            self._exchange.stalled = True
            if not self.crowded:  # Who makes room looks at `stalled` after that, so look again.
                self.go_on()
            try:
                await turn
            except asyncio.CancelledError:
                self.go_on()
                raise
        self.go_on()  # The next one looks when this one has done its step.

    @property
    def crowded(self) -> bool:
        """Whether more replies wait for the client than may."""
        return self._exchange.crowded() and not self._closing

    def go_on(self) -> None:
        """There may be room for more replies: let whoever has waited longest see."""
        while self._stalled:
            turn = self._stalled.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def finished(self, call: int, execution: Execution) -> None:
        self._running.pop(call, None)
        if self.admission is not None:
            self.admission.running.discard(execution)

    @property
    def running(self) -> list[Execution]:
        """The tasks that have begun. From any thread."""
        return list(self._running.values())

    async def close(self) -> None:
        """Cancel what runs, unless it was cancelled already, and wait for its end."""
        self._closing = True
        self.go_on()  # One after the other.
        try:
            while self._running:
                executions = list(self._running.values())
                for execution in executions:
                    if not execution.cancelled:
                        execution.stop()
                await asyncio.wait([execution.task for execution in executions])
        finally:
            if self._shared is not None:
                self._shared.close()


class Execution:
    """One task being run: decoded, executed and answered."""

    __slots__ = (
        "_arrived",
        "_call",
        "_closed",
        "_entered",
        "_prefetch",
        "_requests",
        "_runner",
        "_stopped",
        "_undecided",
        "_yielded",
        "began",
        "caller",
        "cancelled",
        "id",
        "tag",
        "task",
    )

    def __init__(self, runner: Runner, call: int, context: contextvars.Context) -> None:
        self._runner = runner
        self._call = call
        self.tag = ""
        self.id = self.caller = b""
        self.began = 0.0
        self._entered = False
        self.cancelled = False
        self._requests: list[tuple[str, Any]] = []
        self._arrived: asyncio.Future[None] | None = None
        self._yielded = False
        self._prefetch = 0
        self._closed = False
        self._stopped = False
        self._undecided = runner.asks
        # Not by the loop's task factory, which may begin it before it is known here.
        self.task = asyncio.Task(self._run(), loop=runner.loop, context=context)

    def tell(self, kind: str, body: Any) -> None:
        """Pass on what the client asks of it."""
        if kind == "cancel":
            if self._stopped or self.cancel():
                self._send("cancelling")
            self._stopped = False
        elif kind == "withdraw":
            if self._undecided:
                self.cancel()
            else:
                self._send("ack")
        elif kind == "close" and self._prefetch and self._arrived is None:
            self._send("cancelling")
            if not self._closed and not self.cancelled:
                self.task.cancel()
            self._closed = True
        elif kind == "close" and not self._prefetch and not self._yielded:
            self.cancel()
        else:
            self._queue(kind, body)

    def _queue(self, kind: str, body: Any) -> None:
        if len(self._requests) >= REQUESTS:
            if not self.cancelled:
                logger.warning("A client asks %s for more than it can, and it is ended", self.tag)
                self.cancel()
            return
        self._requests.append((kind, body))
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def stop(self) -> None:
        """Cancel it as the worker stops; so does, then, whoever waits for it, by the same token."""
        self.cancel()
        self._stopped = self._entered

    def cancel(self) -> bool:
        """Tells whether that interrupts the routine."""
        self.cancelled = True
        if not self._entered:
            return False
        self.task.cancel()
        return self._arrived is None

    async def _run(self) -> None:
        if self._runner.crowded:
            await self._runner.room()
        self._entered = True
        try:
            await self._execute(self._runner.claim(self._call))
        except GeneratorExit as exc:
            with contextlib.suppress(RuntimeError):  # There is no loop, and it isn't the routine's.
                self._fail(exc)
        except BaseException as exc:
            if self._undecided and self.cancelled:
                self._send("nack", protocol.Nack(reason=GIVEN_BACK))
            else:
                self._fail(exc)
        finally:
            self._runner.finished(self._call, self)

    async def _execute(self, arrival: Arrival | None) -> None:
        if arrival is None:
            return
        header = arrival.header
        self.tag, self.id, self.caller = header.tag, header.id, header.caller
        self.began = self._runner.loop.time()
        self._prefetch = header.prefetch
        if self.cancelled:
            raise asyncio.CancelledError
        arguments = arrival.arguments
        if not isinstance(arguments, Payload):
            arguments = await self._runner.take(self._call, arguments)
        task = arrival.load(arguments)
        del arrival, header, arguments  # What came need not last as long as the routine.
        if task.trace is not None:
            _take_up_traces()
        admission = self._runner.admission
        if admission is not None and not await self._admit(task, admission):
            return
        async with task.execution() as start:
            if is_generator(task.callable):
                await (self._run_ahead if self._prefetch else self._stream)(start(), task)
                self._send("done")
                return
            value = await within(task.timeout, start(), task.callable)
        await self._reply("result", value)

    async def _admit(self, task: Task, admission: Admission) -> bool:
        if self._undecided:
            refusal = await admission.refuses(self, task)
            if self.cancelled:
                raise asyncio.CancelledError
            if refusal is not None:
                self._send("nack", refusal)
                return False
            self._undecided = False
            self._runner.acknowledge(self._call)
        else:
            admission.running.add(self)
        return True

    async def _stream(self, generator: AsyncGenerator[Any, Any], task: Task) -> None:
        step: Awaitable[Any] = anext(generator)
        try:
            while True:
                await self._reply("item", await within(task.timeout, step, task.callable))
                self._yielded = True
                kind, body = await self._request()
                if kind == "close":
                    break
                if kind == "send":
                    value = await self._runner.take(self._call, body)
                    step = generator.asend(self._load(value))
                elif kind == "throw":
                    error = await self._runner.take(self._call, body)
                    step = generator.athrow(serializer.load_exception(error))
                else:
                    step = anext(generator)
        except StopAsyncIteration:
            pass
        finally:
            await generator.aclose()

    def _load(self, value: Payload) -> Any:
        try:
            return serializer.loads(value)
        except ModuleNotFoundError as exc:
            unimportable.refuse(exc, f"the worker that runs routine {self.tag}", by_value=True)

    async def _run_ahead(self, generator: AsyncGenerator[Any, Any], task: Task) -> None:
        """Advance it while the client wants more, which may be before it asks for each value."""
        wanted = 1 + self._prefetch
        try:
            while True:
                while self._requests or not wanted:
                    kind, body = await self._request()
                    if kind == "close":
                        self._send("cancelling")
                        return
                    wanted += body
                if self._runner.crowded:
                    await self._runner.room()
                elif not wanted % REPLIES:
                    await pause(1)  # Its steps may be such that nothing else runs.
                value = await within(task.timeout, anext(generator), task.callable)
                if self._closed:
                    return
                await self._reply("item", value)
                wanted -= 1
        except StopAsyncIteration:
            pass
        except asyncio.CancelledError:
            if self.cancelled or not self._closed:
                raise
            self.task.uncancel()
        finally:
            await generator.aclose()

    async def _request(self) -> tuple[str, Any]:
        try:
            while not self._requests:
                self._arrived = self._runner.loop.create_future()
                await self._arrived
        finally:
            self._arrived = None
        return self._requests.pop(0)

    async def _reply(self, kind: str, value: Any) -> None:
        try:
            payload = serializer.dumps(value)
        except Exception as exc:
            verb = "returned" if kind == "result" else "yielded"
            refuse(exc, f"what routine {self.tag} {verb}", value, "value")
        if payload.size > self._runner.limit:
            raise PayloadTooLarge(
                f"A {kind} of {self.tag}",
                payload.size,
                "max_send_message_length",
                self._runner.limit,
            )
        if payload.size > WORTHWHILE:
            self._send(kind, await self._runner.place(self._call, payload))
        else:
            self._send(kind, payload)

    def _fail(self, exc: BaseException) -> None:
        exc.__traceback__ = _remote_frames(exc.__traceback__)
        payload = serializer.dump_exception(exc)
        if payload.size > self._runner.limit:
            payload = serializer.dump_exception(
                PayloadTooLarge(
                    f"The {type(exc).__qualname__} that {self.tag} raised",
                    payload.size,
                    "max_send_message_length",
                    self._runner.limit,
                )
            )
        self._send("exception", payload)

    def _send(self, kind: str, payload: Body = None) -> None:
        self._runner.reply(self._call, kind, payload)


def _remote_frames(traceback: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that isn't this module's, nor the task's scope."""
    rest = traceback
    while rest is not None and rest.tb_frame.f_code.co_filename in OWN_FILES:
        rest = rest.tb_next
    return rest or traceback


@cache
def _take_up_traces() -> None:
    """A task has come with a trace: have OpenTelemetry go on with such, if it is here."""
    try:
        from wool.otel import instrument

        instrument()
    except ImportError:
        pass
    except Exception:
        logger.exception("This worker takes part in no trace: OpenTelemetry failed")


OWN_FILES = frozenset({__file__, exchange.__file__, task_module.__file__})
"""Whose frames are not of a routine."""

RUN = Execution._run.__code__
"""The outermost frame of a task."""
