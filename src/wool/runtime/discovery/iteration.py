"""Iterations over what tasks of their own collect, for discoveries that are told of changes."""

from __future__ import annotations

import asyncio
import weakref
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from wool.runtime.discovery.base import DiscoveryEvent
from wool.runtime.discovery.filtering import EventFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from typing import Self

    from wool.runtime.discovery.base import PredicateFunction
    from wool.runtime.worker.metadata import WorkerMetadata


CANCEL_AGAIN: Final = 0.1
"""Seconds."""


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended.

    Once is not enough for what uses `asyncio.wait_for`, which loses a cancellation that comes at
    the moment when what it waits for is there (python/cpython#86296, until Python 3.12).
    """
    waiting = set(tasks)
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=CANCEL_AGAIN)


class Collector(ABC):
    """Collects the events of one iteration, on the loop that it was made on."""

    def __init__(self) -> None:
        self.events: deque[DiscoveryEvent] = deque()
        self.seen: dict[str, WorkerMetadata] = {}
        """The workers that are there, by whatever the discovery calls them."""
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiter: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None

    async def news(self) -> None:
        """Return when there is an event, or no more. Raises what the collection has failed with."""
        if self._failure is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._failure is not None and not self.events:
            raise self._failure

    def take(self, key: str, new: WorkerMetadata | None) -> None:
        """Compare what a worker is now, None if it is gone, with what it was."""
        old = self.seen.pop(key, None)
        if new is not None:
            self.seen[key] = new
        if new == old:
            return
        if new is None:
            assert old is not None
            self.events.append(DiscoveryEvent("worker-dropped", old))
        else:
            self.events.append(DiscoveryEvent("worker-updated" if old else "worker-added", new))
        self._wake()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a part of the collection. If it fails, so does the iteration."""
        task = self._loop.create_task(coroutine, name="wool discovery")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def abandon(self) -> None:
        """Have it closed, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._close_soon)

    async def close(self) -> None:
        """End it, also for who waits for news."""
        self._wake()
        closing = asyncio.current_task()
        try:
            await end(task for task in self._tasks if task is not closing)
        finally:
            await self.release()

    @abstractmethod
    async def release(self) -> None:
        """Let go of what it holds besides its tasks."""

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
            self._wake()

    def _close_soon(self) -> None:
        self.spawn(self.close())

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Iteration:
    """One consumer's events: first those who are there, then what changes.

    Holds nothing before the first event is asked for, and ends when it is closed or collected.
    Cancelling the wait for an event does it no harm.
    """

    def __init__(
        self, collect: Callable[[], Collector], predicate: PredicateFunction | None
    ) -> None:
        self._collect = collect
        self._filter = EventFilter(predicate)
        self._collector: Collector | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DiscoveryEvent:
        while not self._closed:
            if self._collector is None:
                self._collector = self._collect()
                self._finalizer = weakref.finalize(self, self._collector.abandon)
                self._finalizer.atexit = False
            if not self._collector.events:
                await self._collector.news()
                continue
            event = self._filter.apply(self._collector.events.popleft())
            if event is not None:
                return event
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the iteration, also for who waits for its next event."""
        self._closed = True
        if self._collector is not None and self._finalizer.detach():
            await self._collector.close()
