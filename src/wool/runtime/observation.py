"""What happens in this process, told to whoever listens; nothing is made up while nobody does.

Calls are told of where they are made, tasks where they run, workers where they are called. Whoever
listens is called at once, in the context of what happens, and is given the task, if it is about
one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self
    from uuid import UUID

    from wool.runtime.routine.task import Task
    from wool.runtime.worker.metadata import WorkerMetadata

logger = logging.getLogger("wool.events")

EventKind: TypeAlias = Literal[
    "call-started",
    "call-refused",
    "call-ended",
    "task-started",
    "task-ended",
    "worker-admitted",
    "worker-removed",
    "worker-evicted",
]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened in this process, at `time`, in seconds since the epoch.

    | kind | what |
    | --- | --- |
    | `call-started` | A routine is called here. |
    | `call-refused` | A worker, `worker`, did not take the call, for `error`; it goes elsewhere. |
    | `call-ended` | The call has ended, after `seconds`, with `error` if it raised. |
    | `task-started` | This worker runs a task. |
    | `task-ended` | The task has ended, after `seconds`, with `error` if it raised. |
    | `worker-admitted` | A proxy calls `worker` from now on. |
    | `worker-removed` | It doesn't any more, as the worker has left or been lost. |
    | `worker-evicted` | It doesn't any more, as the worker failed. |

    `id` is that of the call or the task, which are the same, and `tag` says where the routine is
    defined. `error` of a call whose worker was lost is a `WorkerLost`; of a stream that was left
    early it is None.
    """

    kind: EventKind
    time: float
    id: UUID | None = None
    tag: str = ""
    worker: WorkerMetadata | None = None
    seconds: float | None = None
    error: BaseException | None = None


Listener: TypeAlias = "Callable[[Event, Task | None], object]"

listeners: tuple[Listener, ...] = ()
"""Replaced, not changed, so that it can be looked at from any thread."""


def listen(listener: Listener) -> Callable[[], None]:
    """Have a function called for every event, on the thread that it happens on.

    Returns what ends that. What the function raises is logged.
    """
    global listeners
    listeners = (*listeners, listener)

    def end() -> None:
        global listeners
        listeners = tuple(each for each in listeners if each is not listener)

    return end


def emit(event: Event, task: Task | None = None) -> None:
    for listener in listeners:
        try:
            listener(event, task)
        except Exception:
            logger.exception("%r failed on %r", listener, event)


def tell(
    kind: EventKind,
    task: Task | None = None,
    *,
    worker: WorkerMetadata | None = None,
    error: BaseException | None = None,
) -> None:
    """Emit an event of now. For where `listeners` is not looked at before."""
    if listeners:
        id, tag = (task.id, task.tag) if task is not None else (None, "")
        emit(Event(kind, time.time(), id, tag, worker, error=error), task)


class Span:
    """Tells of the beginning of a call or a task, and of its end."""

    __slots__ = ("_began", "_ended", "_id", "_tag")

    def __init__(self, started: EventKind, ended: EventKind, task: Task) -> None:
        self._id, self._tag = task.id, task.tag
        self._ended = ended
        self._began = time.monotonic()
        emit(Event(started, time.time(), self._id, self._tag), task)

    def end(self, error: BaseException | None) -> None:
        seconds = time.monotonic() - self._began
        if isinstance(error, GeneratorExit):
            error = None
        emit(Event(self._ended, time.time(), self._id, self._tag, None, seconds, error))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(exc)


def call_span(task: Task) -> Span:
    return Span("call-started", "call-ended", task)


def task_span(task: Task) -> Span:
    return Span("task-started", "task-ended", task)


def events(*, limit: int = 10_000) -> Events:
    """What happens in this process from now on, until it is closed.

        async with wool.events() as events:
            async for event in events:
                print(event.kind, event.tag, event.error)

    Of events that are not taken the last `limit` wait. Raises `ValueError` if that isn't positive.
    """
    if limit < 1:
        raise ValueError(f"limit must be positive, got {limit}")
    return Events(limit)


class Events(AsyncIterator[Event]):
    """The events of this process: an async iterator, and a context manager that closes it.

    `dropped` is how many have been left out because they were not taken in time.
    """

    def __init__(self, limit: int) -> None:
        self.dropped = 0
        self._waiting: deque[Event] = deque(maxlen=limit)
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self._end = listen(self._hear)

    def _hear(self, event: Event, task: Task | None) -> None:
        if len(self._waiting) == self._waiting.maxlen:
            self.dropped += 1
        self._waiting.append(event)
        if self._waiter is not None:
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # The loop has been closed.
                self._end()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._waiter = self._loop.create_future()
            try:
                if not self._waiting:  # Another thread may have been in between.
                    await self._waiter
            finally:
                self._waiter = None
        return self._waiting.popleft()

    async def aclose(self) -> None:
        """Listen no more. What waits can still be taken."""
        self._closed = True
        self._end()
        self._wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
