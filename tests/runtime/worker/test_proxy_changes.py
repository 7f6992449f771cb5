"""What a proxy does when its workers change, fail, or can't be heard of any more."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.runtime.worker.memory import MemoryDiscovery, made_up
from tests.runtime.worker.routines import pid
from tests.support import eventually
from wool import DiscoveryEvent, LocalWorker, WorkerMetadata, WorkerProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def worker() -> AsyncIterator[WorkerMetadata]:
    worker = LocalWorker("fast")
    await worker.start()
    assert worker.metadata is not None
    yield worker.metadata
    await worker.stop()


@pytest.fixture
async def discovery() -> MemoryDiscovery:
    return MemoryDiscovery()


async def test_worker_at_a_new_address_is_followed(
    discovery: MemoryDiscovery, worker: WorkerMetadata
) -> None:
    """A42: by uid; it keeps its one slot, and a drop finds it."""
    before = made_up(uid=worker.uid)
    async with WorkerProxy(discovery=discovery.subscriber, lease=2) as proxy:
        discovery.tell("worker-added", before, made_up(), made_up())
        discovery.tell("worker-updated", worker)
        discovery.tell("worker-added", worker)
        await discovery.drained()
        assert len(proxy.workers) == 2
        assert proxy.workers[0] == worker
        assert await pid() == worker.pid
        discovery.tell("worker-dropped", before)
        await discovery.drained()
        assert worker not in proxy.workers


async def test_worker_evicted_for_an_error_comes_back(
    discovery: MemoryDiscovery, worker: WorkerMetadata
) -> None:
    """A09: when discovery speaks of it, or by itself after a while."""
    gone = made_up(uid=worker.uid, address="unix:/nowhere/s")
    async with WorkerProxy(discovery=discovery.subscriber) as proxy:
        running = proxy._running
        assert running is not None
        discovery.tell("worker-added", worker)
        await discovery.drained()
        running.context.remove_worker(gone)
        assert proxy.workers == []
        discovery.tell("worker-updated", worker)
        await discovery.drained()
        assert proxy.workers == [worker]
        running.context.remove_worker(gone)
        assert proxy.workers == []
        assert await pid() == worker.pid
        assert proxy.workers == [worker]
        running.context.remove_worker(worker)
    running.context.remove_worker(worker)


async def test_discovery_that_fails_is_subscribed_to_again(
    worker: WorkerMetadata, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Suspicion 7: it is logged once, and the workers that were admitted stay."""

    class Unsteady:
        async def __aiter__(self) -> AsyncIterator[DiscoveryEvent]:
            subscriptions.append(len(subscriptions))
            if len(subscriptions) == 1:
                yield DiscoveryEvent("worker-added", worker)
            if len(subscriptions) < 4:
                raise OSError("no network")
            yield DiscoveryEvent("worker-added", other)
            await asyncio.Event().wait()

    monkeypatch.setattr("wool.runtime.worker.roster.FIRST_RETRY", 0.05)
    subscriptions: list[int] = []
    other = made_up()
    async with WorkerProxy(discovery=Unsteady()) as proxy:
        await eventually(lambda: len(subscriptions) == 2)
        assert proxy.workers == [worker]
        await eventually(lambda: proxy.workers == [worker, other])
        assert len(subscriptions) == 4
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "failed and is subscribed to again" in warnings[0].message


async def test_discovery_that_ends_leaves_the_workers() -> None:
    class Brief:
        """Without `aclose`, as an iterator may be."""

        def __init__(self) -> None:
            self._workers = [made_up()]

        def __aiter__(self) -> Brief:
            return self

        async def __anext__(self) -> DiscoveryEvent:
            if not self._workers:
                raise StopAsyncIteration
            return DiscoveryEvent("worker-added", self._workers.pop())

    async with WorkerProxy(discovery=Brief()) as proxy:
        await eventually(lambda: len(proxy.workers) == 1)
        await asyncio.sleep(0)
        assert len(proxy.workers) == 1
