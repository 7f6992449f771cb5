"""A small discovery of the tests' own, in memory, and workers that need not exist."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import wool
from tests.support import eventually
from wool import DiscoveryEvent, WorkerMetadata

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from wool import DiscoveryEventType, PredicateFunction


def made_up(**changes: Any) -> WorkerMetadata:
    """A worker that nobody will find at its address."""
    return replace(WorkerMetadata(uuid4(), "unix:/nowhere", 1, wool.__version__), **changes)


class MemoryDiscovery:
    """Publisher and discovery in one. `log` is all that was published."""

    def __init__(self, *workers: WorkerMetadata) -> None:
        self.workers: dict[UUID, WorkerMetadata] = {each.uid: each for each in workers}
        self.log: list[DiscoveryEvent] = []
        self.subscriptions: list[asyncio.Queue[DiscoveryEvent]] = []

    @property
    def publisher(self) -> MemoryDiscovery:
        return self

    @property
    def subscriber(self) -> MemorySubscriber:
        return self.subscribe()

    def subscribe(self, filter: PredicateFunction | None = None) -> MemorySubscriber:
        return MemorySubscriber(self, filter)

    async def publish(self, type: DiscoveryEventType, metadata: WorkerMetadata) -> None:
        self.tell(type, metadata)

    def tell(self, type: DiscoveryEventType, *workers: WorkerMetadata) -> None:
        """Announce it; subscribers have it when `drained` returns."""
        for metadata in workers:
            event = DiscoveryEvent(type, metadata)
            self.log.append(event)
            if type == "worker-dropped":
                self.workers.pop(metadata.uid, None)
            else:
                self.workers[metadata.uid] = metadata
            for subscription in self.subscriptions:
                subscription.put_nowait(event)

    def told(self, type: DiscoveryEventType) -> list[WorkerMetadata]:
        return [event.metadata for event in self.log if event.type == type]

    async def drained(self) -> None:
        """Return when every subscriber asks for more than there is."""
        await eventually(lambda: self.subscriptions)
        async with asyncio.timeout(20):
            for subscription in self.subscriptions:
                await subscription.join()


class MemorySubscriber:
    """Pickled, it tells of the workers that are there at that moment."""

    def __init__(self, discovery: MemoryDiscovery, filter: PredicateFunction | None = None) -> None:
        self._discovery = discovery
        self._filter = filter or (lambda _: True)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, tuple(self._discovery.workers.values())

    async def __aiter__(self) -> AsyncIterator[DiscoveryEvent]:
        events: asyncio.Queue[DiscoveryEvent] = asyncio.Queue()
        for metadata in self._discovery.workers.values():
            events.put_nowait(DiscoveryEvent("worker-added", metadata))
        self._discovery.subscriptions.append(events)
        try:
            while True:
                event = await events.get()
                if self._filter(event.metadata):
                    yield event
                events.task_done()
        finally:
            self._discovery.subscriptions.remove(events)


def _restore(*workers: WorkerMetadata) -> MemorySubscriber:
    return MemoryDiscovery(*workers).subscriber
