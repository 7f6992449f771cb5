"""What every discovery owes its users: a suite to subclass, with a fixture that makes one.

    class TestMine(DiscoverySuite):
        @pytest.fixture
        async def discovery(self) -> AsyncIterator[DiscoveryLike]: ...

The namespace must be empty and nobody else's.
"""

from __future__ import annotations

import asyncio
import pickle
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from wool.runtime.discovery.base import (
    DiscoveryEvent,
    DiscoveryLike,
    DiscoveryPublisherLike,
    DiscoverySubscriberLike,
)
from wool.runtime.worker.metadata import WorkerMetadata

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType
    from typing import Self


def make_worker(**changes: Any) -> WorkerMetadata:
    worker = WorkerMetadata(uuid4(), "127.0.0.1:50051", 4711, "1.2.3", frozenset({"gpu"}))
    return replace(worker, **changes)


def gpu(worker: WorkerMetadata) -> bool:
    return "gpu" in worker.tags


class Consumer:
    """A task that iterates over a subscriber, and what it has heard so far."""

    def __init__(self, subscriber: DiscoverySubscriberLike) -> None:
        self.events: list[DiscoveryEvent] = []
        self._subscriber = subscriber
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._consume())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def until(
        self, predicate: Callable[[list[DiscoveryEvent]], bool], timeout: float = 20
    ) -> list[DiscoveryEvent]:
        """The events, once the predicate is true of them."""
        try:
            async with asyncio.timeout(timeout), self._news:
                await self._news.wait_for(lambda: self._task.done() or predicate(self.events))
        except TimeoutError:
            pytest.fail(f"after {timeout} s, only {self.events}")
        if self._task.done():
            await self._task
            pytest.fail(f"the iteration ended after {self.events}")
        return self.events

    async def count(self, number: int) -> list[DiscoveryEvent]:
        return await self.until(lambda events: len(events) >= number)

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events]

    @property
    def workers(self) -> set[WorkerMetadata]:
        """Who is there, according to the events."""
        found: dict[object, WorkerMetadata] = {}
        for event in self.events:
            if event.type == "worker-dropped":
                del found[event.metadata.uid]
            else:
                assert (event.metadata.uid in found) == (event.type == "worker-updated"), event
                found[event.metadata.uid] = event.metadata
        return set(found.values())

    async def _consume(self) -> None:
        iterator = aiter(self._subscriber)
        try:
            async for event in iterator:
                async with self._news:
                    self.events.append(event)
                    self._news.notify_all()
        finally:
            if close := getattr(iterator, "aclose", None):
                await close()
            async with self._news:
                self._news.notify_all()


class DiscoverySuite:
    @pytest.fixture
    async def publisher(self, discovery: DiscoveryLike) -> AsyncIterator[DiscoveryPublisherLike]:
        async with AsyncExitStack() as stack:
            publisher = discovery.publisher
            if isinstance(publisher, AbstractAsyncContextManager):
                await stack.enter_async_context(publisher)
            yield publisher

    def test_satisfies_protocols(self, discovery: DiscoveryLike) -> None:
        assert isinstance(discovery, DiscoveryLike)
        assert isinstance(discovery.publisher, DiscoveryPublisherLike)
        assert isinstance(discovery.subscriber, DiscoverySubscriberLike)

    async def test_publish_reaches_subscriber_in_order(
        self, discovery: DiscoveryLike, publisher: DiscoveryPublisherLike
    ) -> None:
        worker = make_worker()
        changed = replace(worker, tags=frozenset({"cpu"}), address="127.0.0.1:50052")
        async with Consumer(discovery.subscriber) as consumer:
            await publisher.publish("worker-added", worker)
            await consumer.count(1)
            await publisher.publish("worker-updated", changed)
            await consumer.count(2)
            await publisher.publish("worker-dropped", changed)
            await consumer.count(3)

        assert consumer.types == ["worker-added", "worker-updated", "worker-dropped"]
        assert [event.metadata.uid for event in consumer.events] == [worker.uid] * 3
        assert [event.metadata for event in consumer.events][:2] == [worker, changed]

    async def test_late_subscriber_hears_of_everyone(
        self, discovery: DiscoveryLike, publisher: DiscoveryPublisherLike
    ) -> None:
        workers = {make_worker() for _ in range(3)}
        for worker in workers:
            await publisher.publish("worker-added", worker)

        async with Consumer(discovery.subscriber) as consumer:
            await consumer.count(3)

        assert consumer.types == ["worker-added"] * 3
        assert consumer.workers == workers

    async def test_late_subscriber_hears_of_nobody_dropped(
        self, discovery: DiscoveryLike, publisher: DiscoveryPublisherLike
    ) -> None:
        gone, there = make_worker(), make_worker()
        await publisher.publish("worker-added", gone)
        await publisher.publish("worker-dropped", gone)
        await publisher.publish("worker-added", there)

        async with Consumer(discovery.subscriber) as consumer:
            await consumer.count(1)

        assert consumer.workers == {there}

    async def test_add_again_updates(
        self, discovery: DiscoveryLike, publisher: DiscoveryPublisherLike
    ) -> None:
        """A72: a second add takes no second place, so that one drop undoes both."""
        worker = make_worker()
        changed = replace(worker, address="127.0.0.1:50052")
        async with Consumer(discovery.subscriber) as consumer:
            await publisher.publish("worker-added", worker)
            await consumer.count(1)
            await publisher.publish("worker-added", changed)
            await consumer.count(2)
            await publisher.publish("worker-dropped", changed)
            await consumer.count(3)

        assert consumer.types == ["worker-added", "worker-updated", "worker-dropped"]
        assert consumer.events[1].metadata == changed

    async def test_drop_of_unknown_worker_is_nothing(
        self, discovery: DiscoveryLike, publisher: DiscoveryPublisherLike
    ) -> None:
        worker = make_worker()
        async with Consumer(discovery.subscriber) as consumer:
            await publisher.publish("worker-dropped", make_worker())
            await publisher.publish("worker-added", worker)
            await consumer.count(1)

        assert consumer.workers == {worker}

    async def test_publish_unknown_type(self, publisher: DiscoveryPublisherLike) -> None:
        with pytest.raises(RuntimeError, match="Unexpected discovery event type: worker-bored"):
            await publisher.publish("worker-bored", make_worker())  # type: ignore[arg-type]

    async def test_filter_hides_and_reveals(
        self, discovery: DiscoveryLike, publisher: DiscoveryPublisherLike
    ) -> None:
        inside = make_worker()
        outside = replace(inside, tags=frozenset())
        hidden = make_worker(tags=frozenset())
        async with Consumer(discovery.subscribe(gpu)) as consumer:
            await publisher.publish("worker-added", hidden)
            await publisher.publish("worker-added", outside)
            await publisher.publish("worker-updated", inside)
            await consumer.count(1)
            await publisher.publish("worker-updated", outside)
            await consumer.count(2)
            await publisher.publish("worker-dropped", hidden)
            await publisher.publish("worker-updated", inside)
            await consumer.count(3)

        assert consumer.types == ["worker-added", "worker-dropped", "worker-added"]
        assert [event.metadata for event in consumer.events] == [inside] * 3

    async def test_filter_state_is_per_iteration(
        self, discovery: DiscoveryLike, publisher: DiscoveryPublisherLike
    ) -> None:
        worker = make_worker()
        await publisher.publish("worker-added", worker)
        subscriber = discovery.subscribe(gpu)

        for _ in range(2):
            async with Consumer(subscriber) as consumer:
                await consumer.count(1)
            assert consumer.types == ["worker-added"]

    async def test_iterations_are_independent(
        self, discovery: DiscoveryLike, publisher: DiscoveryPublisherLike
    ) -> None:
        subscriber = discovery.subscriber
        first, second = make_worker(), make_worker()
        async with Consumer(subscriber) as early:
            await publisher.publish("worker-added", first)
            await early.count(1)
            async with Consumer(subscriber) as late, Consumer(discovery.subscriber) as other:
                await publisher.publish("worker-added", second)
                for consumer in (early, late, other):
                    await consumer.count(2)
                    assert consumer.workers == {first, second}

    async def test_cancelled_consumer_harms_no_other(
        self, discovery: DiscoveryLike, publisher: DiscoveryPublisherLike
    ) -> None:
        """A79: none of those who share a subscription owns it."""
        subscriber = discovery.subscriber
        consumers = [Consumer(subscriber) for _ in range(4)]
        async with AsyncExitStack() as stack:
            for consumer in consumers:
                await stack.enter_async_context(consumer)
            workers = set()
            while consumers:
                workers.add(worker := make_worker())
                await publisher.publish("worker-added", worker)
                for consumer in consumers:
                    await consumer.count(len(workers))
                    assert consumer.workers == workers
                await consumers.pop(0).stop()

    async def test_subscriber_picklable(
        self, discovery: DiscoveryLike, publisher: DiscoveryPublisherLike
    ) -> None:
        port = 50051
        subscriber = discovery.subscribe(lambda worker: worker.address.endswith(str(port)))
        worker = make_worker()
        await publisher.publish("worker-added", make_worker(address="127.0.0.1:1"))
        await publisher.publish("worker-added", worker)

        async with Consumer(pickle.loads(pickle.dumps(subscriber))) as consumer:
            await consumer.count(1)

        assert consumer.workers == {worker}

    def test_bind_host_is_text(self, discovery: DiscoveryLike) -> None:
        assert isinstance(getattr(discovery.publisher, "bind_host", ""), str)
