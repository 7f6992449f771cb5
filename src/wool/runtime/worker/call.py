"""One task on a session, as its caller sees it; `session` has the theory."""

from __future__ import annotations

import asyncio
import logging
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from wool.runtime import remote_exception, serializer, unimportable
from wool.runtime.errors import DispatchTimeout, UnexpectedResponse, WorkerUnresponsive
from wool.runtime.unpicklable import refuse
from wool.runtime.worker.framing import TERMINAL
from wool.runtime.worker.transport import nack_error

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from wool import protocol
    from wool.runtime.serializer import Payload
    from wool.runtime.worker.framing import LargePayload
    from wool.runtime.worker.session import Session

    Event = tuple[str, Any]

logger = logging.getLogger("wool.session")

CANCEL_GRACE = 60.0
"""Seconds that a cancelled caller waits for the routine to clean up."""

WITHDRAW_GRACE = 1.0
"""Seconds that a worker may take to give a task back."""


class Stage(Enum):
    """How far a call has come."""

    QUEUED = auto()
    SENT = auto()
    TAKEN = auto()
    ENDED = auto()


UNTAKEN = (Stage.QUEUED, Stage.SENT)

FAILURE = "failure"
"""The kind of the event that is an exception raised here, not by the routine."""


class Call:
    """One task on a session: an async generator, in effect, of what it returns or yields.

    The first step is part of the task itself: a worker runs a coroutine to its end, and an async
    generator to its first value, without being asked; with `prefetch`, up to as many values ahead
    of whoever iterates, all of which wait here. `abandoned`, if set, is for whoever takes
    the next step. What waits to be written of it is `large`, or its task, the frame at `place` of
    `batch`.
    """

    __slots__ = (
        "__weakref__",
        "_events",
        "_on_end",
        "_session",
        "_stepped",
        "_stepping",
        "_unheeded",
        "_used",
        "_waiter",
        "abandoned",
        "batch",
        "large",
        "leaving",
        "number",
        "place",
        "prefetch",
        "raised",
        "stage",
        "tag",
    )

    def __init__(
        self,
        session: Session,
        number: int,
        tag: str,
        prefetch: int = 0,
        on_end: Callable[[Call], None] | None = None,
    ) -> None:
        self.number = number
        self.leaving = False
        self.tag = tag
        self.prefetch = prefetch
        self.batch: protocol.RequestBatch | None = None
        self.place = 0
        self.large: LargePayload | None = None
        self.stage = Stage.QUEUED
        self.abandoned: Exception | None = None
        self.raised: StopAsyncIteration | None = None
        self._session = session
        self._on_end = on_end
        self._stepped = False
        self._stepping = False
        self._unheeded = 0
        self._used = 0
        self._events: list[Event] | tuple[()] = ()
        self._waiter: asyncio.Future[None] | None = None

    @property
    def suspended(self) -> bool:
        """Whether it is a stream that waits for its consumer."""
        return self._stepped and not self._stepping and self.stage is Stage.TAKEN

    def closing(self) -> None:
        """It is asked to end; a worker that runs ahead says when it has heard of that."""
        if self.prefetch:
            self._unheeded += 1

    def sent(self) -> None:
        """It has begun to leave."""
        if self.stage is Stage.QUEUED:
            self.stage = Stage.SENT
            self.batch = None

    def feed(self, kind: str, payload: Any) -> None:
        """What the worker sent for it."""
        self.stage = Stage.ENDED if kind in TERMINAL else Stage.TAKEN
        if kind == "cancelling":
            self._unheeded -= 1
        elif kind not in ("ack", "release"):
            self._add((kind, payload))
        self._wake()

    def fail(self, error: BaseException) -> None:
        """End it here, with `error` for whoever awaits it."""
        self.stage = Stage.ENDED
        self._add((FAILURE, error))
        self._wake()

    def ended(self) -> None:
        """The session has no more to do with it."""
        if self._on_end is not None:
            self._on_end(self)

    def leave(self) -> None:
        """Its pool is being left: if it is a stream, it ends after the step that it takes."""
        self.leaving = True
        self._session.suspend(self)

    def abandon(self) -> None:
        """Its pool has been left: end it, here at once."""
        self._session.send(self, "cancel")
        self._session.drop(self)
        self.fail(asyncio.CancelledError(f"{self.tag} was running when its pool was left"))

    def _add(self, event: Event) -> None:
        if self._events:
            self._events.append(event)
        else:
            self._events = [event]

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _change(self) -> asyncio.Future[None]:
        self._waiter = self._session.loop.create_future()
        return self._waiter

    async def _event(self) -> Event:
        while not self._events:
            await self._change()
        return self._events.pop(0)

    async def accepted(self, deadline: float | None) -> None:
        """Return when the worker has taken it, or the loop's clock has reached `deadline`.

        Raises a `TransientRpcError` if it has not run and may go elsewhere, `DispatchTimeout`
        among them, or `WorkerLost` if it may have run.
        """
        try:
            if deadline is None:
                while self.stage in UNTAKEN:
                    await self._change()
            else:
                await self._taken_by(deadline)
        except asyncio.CancelledError as cancelled:
            self._events = [await self._unwind(cancelled), *self._events]
            return
        if self._events:
            kind, body = self._events[0]
            if kind == "nack":
                raise nack_error(body)
            if kind == FAILURE:
                raise body

    async def _taken_by(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self._taken()
        except TimeoutError:
            await self._withdraw()

    async def _taken(self) -> None:
        while self.stage in UNTAKEN:
            await self._change()

    async def _withdraw(self) -> None:
        if self.stage is Stage.QUEUED:
            self._session.drop(self)
            raise self._expired()
        self._session.send(self, "withdraw")
        try:
            async with asyncio.timeout(WITHDRAW_GRACE):
                await self._taken()
        except TimeoutError:
            self._session.send(self, "cancel")
            self._session.drop(self)
            raise WorkerUnresponsive(
                self._session.metadata, f"it did not acknowledge {self.tag} in time"
            ) from None
        if self._events and self._events[0][0] == "nack":
            raise self._expired()

    def _expired(self) -> DispatchTimeout:
        return DispatchTimeout(
            grpc.StatusCode.DEADLINE_EXCEEDED, f"{self._session!r} did not take {self.tag} in time"
        )

    async def _unwind(self, cancelled: asyncio.CancelledError) -> Event:
        """Have the routine cancelled. Returns what it does after all, if it does not give in."""
        deadline = asyncio.get_running_loop().time() + CANCEL_GRACE
        try:
            while self.stage is not Stage.QUEUED:
                self._session.send(self, "cancel")
                self._unheeded += 1
                try:
                    async with asyncio.timeout_at(deadline):
                        event = await self._event()
                except asyncio.CancelledError as again:
                    cancelled = again
                    continue
                except TimeoutError:
                    self._log_left_behind()
                    break
                return self._outcome(event, cancelled)
            self._session.drop(self)
            raise cancelled
        finally:
            del cancelled  # Its traceback refers to this frame.

    def _outcome(self, event: Event, cancelled: asyncio.CancelledError) -> Event:
        kind, body = event
        try:
            if kind == FAILURE:
                raise cancelled from body
            if kind == "nack" or self._unheeded:
                raise cancelled
            if kind == "exception":
                error = serializer.load_exception(body)
                if isinstance(error, asyncio.CancelledError):
                    raise cancelled from error
                return FAILURE, error
            return event
        finally:
            del cancelled, body

    def _log_left_behind(self) -> None:
        logger.warning(
            "%s still runs on %s, %s s after it was cancelled; it is left behind",
            self.tag,
            self._session,
            CANCEL_GRACE,
        )

    def __aiter__(self) -> Call:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Any]:
        return self._step("next")

    async def asend(self, value: Any) -> Any:
        if value is None:
            return await self._step("next")
        if self.prefetch:
            raise self._ahead("a value can't be sent to it")
        return await self._step("send", self._dump(value))

    async def athrow(self, error: BaseException) -> Any:
        if self.abandoned is not None or (self.stage is Stage.ENDED and not self._events):
            raise error
        if self.prefetch:
            raise self._ahead("an exception can't be thrown into it") from error
        return await self._step("throw", serializer.dump_exception(error))

    def _dump(self, value: Any) -> Payload:
        try:
            return serializer.dumps(value)
        except Exception as exc:
            refuse(exc, f"what is sent to {self.tag}", value, "value")

    def _ahead(self, consequence: str) -> RuntimeError:
        return RuntimeError(
            f"{self.tag} has prefetch={self.prefetch}, so it is ahead of its consumer and "
            f"{consequence}; leave out prefetch to do so"
        )

    async def _step(self, kind: str, payload: Payload | None = None) -> Any:
        if asyncio.get_running_loop() is not self._session.loop:
            self._refuse_loop()
        if self.abandoned is not None:
            raise self.abandoned
        if self.stage is Stage.ENDED and not self._events:
            raise StopAsyncIteration
        first, self._stepped = not self._stepped, True
        self._stepping = True
        try:
            if payload is not None:
                await self._send_value(kind, payload)
            elif not first:
                self._want_next()
            try:
                while not self._events:
                    await self._change()
                event = self._events.pop(0)
            except asyncio.CancelledError as cancelled:
                event = await self._unwind(cancelled)
            return self._value(event)
        finally:
            self._stepping = False
            if self.stage is not Stage.ENDED:
                self._session.suspend(self)

    def _refuse_loop(self) -> NoReturn:
        """It is used in another event loop than its own: have it end there."""
        self.abandoned = RuntimeError(
            f"{self.tag} was called in another event loop; use what it yields in that one"
        )
        if not self._session.loop.is_closed():
            self._session.loop.call_soon_threadsafe(self.abandon)
        raise self.abandoned

    def _want_next(self) -> None:
        """Ask for another value; with a prefetch, for several when half of it has been used."""
        self._used += 1
        if self._used > self.prefetch // 2:
            self._session.want(self, self._used)
            self._used = 0

    async def _send_value(self, kind: str, payload: Payload) -> None:
        try:
            await self._session.send_value(self, kind, payload)
        except asyncio.CancelledError as cancelled:
            self._events = [await self._unwind(cancelled), *self._events]

    def _value(self, event: Event) -> Any:
        kind, payload = event
        if kind in ("result", "item"):
            return self._load(payload)
        if kind == "done":
            raise StopAsyncIteration
        if kind == "exception":
            payload = serializer.load_exception(payload)
        elif kind != FAILURE:
            raise UnexpectedResponse(
                f"Expected 'result' or 'exception' response, received {kind!r}"
            )
        if isinstance(payload, StopAsyncIteration):
            self.raised = payload
        try:
            remote_exception.raise_here(payload)
        finally:
            del event, payload

    def _load(self, payload: Payload) -> Any:
        try:
            return serializer.loads(payload)
        except ModuleNotFoundError as exc:
            unimportable.refuse(exc, f"this program, which is to load a result of {self.tag}")

    async def aclose(self) -> None:
        """End it; returns when the routine has cleaned up."""
        if asyncio.get_running_loop() is not self._session.loop:
            if self.abandoned is None:
                self._refuse_loop()
            return
        if self.stage is Stage.QUEUED:
            self._session.drop(self)
        elif self.stage is not Stage.ENDED:
            await self._close()
        self._events = ()
        self.raised = None

    async def _close(self) -> None:
        self._session.send(self, "close")
        if self.prefetch:  # What it did before it heard of that is of no use any more.
            self._events = ()
        while self.stage is not Stage.ENDED or self._events:
            try:
                event = await self._event()
            except asyncio.CancelledError as cancelled:
                event = await self._unwind(cancelled)
            if event[0] == FAILURE or (event[0] == "exception" and not self._unheeded):
                try:
                    self._value(event)
                except asyncio.CancelledError:
                    if self._stepped:
                        raise
