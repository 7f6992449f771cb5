"""Routines that require tags of the workers they run in."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest

import wool
from tests.conformance.loadbalancer import BROKEN, Cluster, FakeConnection, make_task
from tests.conformance.loadbalancer import worker as some_worker
from tests.runtime.worker.memory import MemoryDiscovery, made_up
from tests.runtime.worker.routines import pid
from wool import LocalWorker, NoWorkersAvailable, WorkerMetadata, WorkerProxy
from wool.runtime.loadbalancer.base import (
    LoadBalancerContext,
    LoadBalancerContextLike,
    TaggedContext,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@wool.routine(tags={"gpu"})
async def on_gpu() -> frozenset[str]:
    return tags_here()


@wool.routine(tags=["gpu", "large"])
async def on_large_gpu() -> frozenset[str]:
    return tags_here()


@wool.routine(tags={"gpu"}, prefetch=2)
async def stream_on_gpu(values: int) -> AsyncIterator[frozenset[str]]:
    for _ in range(values):
        yield tags_here()


@wool.routine
async def nested() -> list[frozenset[str]]:
    return await asyncio.gather(*(on_gpu() for _ in range(4)))


def tags_here() -> frozenset[str]:
    metadata = wool.__worker_metadata__
    assert metadata is not None
    return metadata.tags


@asynccontextmanager
async def workers(*tagged: set[str]) -> AsyncIterator[list[WorkerMetadata]]:
    """Workers with these tags."""
    started = [LocalWorker(*tags) for tags in tagged]
    await asyncio.gather(*(worker.start() for worker in started))
    try:
        yield [worker.metadata for worker in started if worker.metadata is not None]
    finally:
        await asyncio.gather(*(worker.stop() for worker in started))


async def test_only_workers_with_all_the_tags_are_called() -> None:
    async with (
        workers({"cpu"}, {"gpu"}, {"gpu", "large", "new"}, {"large"}) as found,
        WorkerProxy(workers=found),
    ):
        assert {await on_gpu() for _ in range(8)} == {found[1].tags, found[2].tags}
        assert {await on_large_gpu() for _ in range(4)} == {found[2].tags}
        assert {tags async for tags in stream_on_gpu(5)} <= {found[1].tags, found[2].tags}
        assert {await pid() for _ in range(8)} == {worker.pid for worker in found}


async def test_tags_are_required_in_nested_calls() -> None:
    async with workers({"cpu"}, {"gpu"}) as found, WorkerProxy(workers=found):
        for _ in range(2):
            assert await nested() == [found[1].tags] * 4


async def test_routine_that_travels_by_value_keeps_its_tags() -> None:
    @wool.routine(tags={"gpu"})
    async def inner() -> frozenset[str]:
        return tags_here()

    @wool.routine
    async def outer() -> list[frozenset[str]]:
        return [await inner() for _ in range(4)]

    async with workers({"cpu"}, {"gpu"}) as found, WorkerProxy(workers=found):
        for _ in range(2):
            assert await outer() == [found[1].tags] * 4
        assert await cloudpickle.loads(cloudpickle.dumps(inner))() == found[1].tags


async def test_call_waits_for_a_worker_with_the_tags() -> None:
    discovery = MemoryDiscovery()
    async with workers({"cpu"}, {"gpu"}) as found, WorkerProxy(discovery=discovery.subscriber):
        discovery.tell("worker-added", found[0])
        call = asyncio.create_task(on_gpu())
        assert await pid() == found[0].pid
        assert not call.done()
        discovery.tell("worker-added", found[1])
        assert await call == {"gpu"}


async def test_worker_that_gets_the_tags_is_called() -> None:
    discovery = MemoryDiscovery()
    async with workers({"gpu"}) as [worker], WorkerProxy(discovery=discovery.subscriber):
        plain = made_up(uid=worker.uid, address=worker.address, tags=frozenset())
        discovery.tell("worker-added", plain)
        call = asyncio.create_task(on_gpu())
        await discovery.drained()
        assert not call.done()
        discovery.tell("worker-updated", worker)
        assert await call == {"gpu"}


@pytest.mark.parametrize("others", [0, 1])
async def test_nobody_with_the_tags(others: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wool.runtime.worker.roster.FIRST_WORKER_TIMEOUT", 0.2)
    discovery = MemoryDiscovery()
    async with WorkerProxy(discovery=discovery.subscriber):
        discovery.tell("worker-added", *(made_up() for _ in range(others)))
        await discovery.drained()
        message = r"requires, \['gpu', 'large'\], within 0.2 s; " + (
            r"admitted: \S+ with tags \[\]$" if others else "none has been discovered$"
        )
        with pytest.raises(NoWorkersAvailable, match=message):
            await on_large_gpu()


async def test_tags_do_not_matter_where_nothing_is_dispatched() -> None:
    wool.__worker_metadata__ = made_up(tags=frozenset({"here"}))
    try:
        with wool.runtime.routine.task.do_dispatch(False):
            assert await on_gpu() == {"here"}
    finally:
        wool.__worker_metadata__ = None


@pytest.mark.parametrize("tags", ["gpu", 1, [1], {"gpu", None}, None])
def test_tags_that_are_none(tags: Any) -> None:
    with pytest.raises(ValueError, match="tags must be several strings, such as"):
        wool.routine(tags=tags)


# The context that a load balancer sees


def tagged(number: int, *tags: str) -> WorkerMetadata:
    metadata = some_worker(number)
    return WorkerMetadata(
        uid=metadata.uid, address="unix:/w", pid=number, version="1.0", tags=frozenset(tags)
    )


def pids(context: LoadBalancerContextLike) -> list[int]:
    return [metadata.pid for metadata in context.workers]


def test_tagged_context_follows_the_whole_one() -> None:
    whole = LoadBalancerContext()
    context = TaggedContext(whole, frozenset({"a", "b"}))
    assert isinstance(context, LoadBalancerContextLike)
    assert pids(context) == []
    context.add_worker(tagged(1, "a", "b"), FakeConnection(1))
    whole.add_worker(tagged(2, "b"), FakeConnection(2))
    whole.add_worker(tagged(3, "c", "b", "a"), FakeConnection(3))
    assert pids(context) == [1, 3]
    assert context.workers is context.workers
    context.update_worker(tagged(2, "a", "b"), FakeConnection(2))
    context.update_worker(tagged(1), FakeConnection(1))
    assert pids(context) == [2, 3]
    context.update_worker(tagged(4, "a", "b"), FakeConnection(4), upsert=True)
    context.remove_worker(tagged(3))
    assert pids(whole) == [1, 2, 4]
    assert pids(context) == [2, 4]
    assert repr(context) == "<TaggedContext 2 workers with ['a', 'b']>"


async def test_worker_that_fails_is_evicted_from_the_whole_context() -> None:
    cluster = Cluster(BROKEN, None)
    whole = cluster.context
    for number, connection in enumerate(cluster.connections):
        whole.update_worker(tagged(number, "a"), connection)
    whole.add_worker(tagged(2), FakeConnection(2))
    balancer = wool.RoundRobinLoadBalancer()
    stream = await balancer.dispatch(
        make_task(), context=TaggedContext(whole, frozenset({"a"})), timeout=None
    )
    assert [number async for number in stream] == [1]
    assert cluster.evicted == [0]
    assert pids(whole) == [1, 2]
