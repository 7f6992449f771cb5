"""The 21 cases of the lease, with real pools and proxies."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wool
from tests.runtime.worker.memory import MemoryDiscovery, made_up
from tests.runtime.worker.routines import pid
from tests.support import eventually
from wool import LocalWorker, WorkerMetadata, WorkerPool, WorkerProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

sizes = st.integers(min_value=1, max_value=10_000)
leases = st.integers(min_value=0)
negative_leases = st.integers(max_value=-1)


async def lease_when_entered(**settings: Any) -> int | None:
    async with WorkerPool(**settings):
        proxy = wool.__proxy__.get()
        assert isinstance(proxy, WorkerProxy)
        return proxy.lease


def uids(proxy: WorkerProxy) -> list[UUID]:
    return [metadata.uid for metadata in proxy.workers]


@pytest.fixture
async def discovery() -> MemoryDiscovery:
    return MemoryDiscovery()


@pytest.fixture
async def proxy(discovery: MemoryDiscovery) -> AsyncIterator[WorkerProxy]:
    """With a lease of two."""
    async with WorkerProxy(discovery=discovery.subscriber, lease=2) as proxy:
        yield proxy


def test_case_01_size_and_lease_is_constructed() -> None:
    WorkerPool(size=4, lease=8)


def test_case_02_discovery_and_lease_is_constructed() -> None:
    WorkerPool(discovery=MemoryDiscovery(), lease=8)


def test_case_03_size_and_lease_zero_is_constructed() -> None:
    WorkerPool(size=4, lease=0)


def test_case_04_discovery_and_lease_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="Lease must be positive for discovery-only pools"):
        WorkerPool(discovery=MemoryDiscovery(), lease=0)


@pytest.mark.parametrize("mode", [{}, {"size": 4}, {"discovery": MemoryDiscovery()}])
def test_case_05_negative_lease_is_refused(mode: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Lease must be non-negative"):
        WorkerPool(lease=-1, **mode)


async def test_case_06_size_lease_and_discovery_add_up() -> None:
    assert await lease_when_entered(size=2, lease=4, discovery=MemoryDiscovery()) == 6


async def test_case_07_size_and_lease_add_up() -> None:
    assert await lease_when_entered(size=2, lease=4) == 6


async def test_case_08_discovery_and_lease_is_the_lease() -> None:
    assert await lease_when_entered(discovery=MemoryDiscovery(), lease=6) == 6


async def test_case_09_lease_alone_is_added_to_the_cpu_count() -> None:
    cpus = os.cpu_count()
    assert cpus is not None
    assert await lease_when_entered(lease=4) == cpus + 4


@pytest.mark.parametrize("mode", [{}, {"discovery": MemoryDiscovery()}])
async def test_case_10_size_alone_is_without_lease(mode: dict[str, Any]) -> None:
    assert await lease_when_entered(size=1, **mode) is None


@given(size=sizes, lease=leases, discovery=st.sampled_from([None, MemoryDiscovery()]))
def test_case_11_any_size_and_lease_is_constructed(
    size: int, lease: int, discovery: MemoryDiscovery | None
) -> None:
    WorkerPool(size=size, lease=lease, discovery=discovery)


@given(size=st.none() | sizes, lease=negative_leases)
def test_case_12_any_negative_lease_is_refused(size: int | None, lease: int) -> None:
    for discovery in (None, MemoryDiscovery()):
        with pytest.raises(ValueError, match="Lease must be non-negative"):
            WorkerPool(size=size, lease=lease, discovery=discovery)


def test_case_13_proxy_with_lease_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="Lease must be a positive, non-zero integer"):
        WorkerProxy(discovery=MemoryDiscovery().subscriber, lease=0)


@given(lease=negative_leases)
def test_case_14_proxy_with_negative_lease_is_refused(lease: int) -> None:
    with pytest.raises(ValueError, match="Lease must be a positive, non-zero integer"):
        WorkerProxy(discovery=MemoryDiscovery().subscriber, lease=lease)


@given(lease=st.integers(min_value=1))
def test_case_15_proxy_with_any_positive_lease_is_constructed(lease: int) -> None:
    assert WorkerProxy(discovery=MemoryDiscovery().subscriber, lease=5).lease == 5
    assert WorkerProxy(discovery=MemoryDiscovery().subscriber, lease=lease).lease == lease


async def test_case_16_lease_two_of_three_added(
    discovery: MemoryDiscovery, proxy: WorkerProxy
) -> None:
    workers = [made_up() for _ in range(3)]
    discovery.tell("worker-added", *workers)
    await discovery.drained()
    assert proxy.workers == workers[:2]


async def test_case_17_without_lease_all_of_three_added(discovery: MemoryDiscovery) -> None:
    workers = [made_up() for _ in range(3)]
    async with WorkerProxy(discovery=discovery.subscriber) as proxy:
        discovery.tell("worker-added", *workers)
        await discovery.drained()
        assert proxy.workers == workers


async def test_case_18_full_update_of_admitted_is_applied(
    discovery: MemoryDiscovery, proxy: WorkerProxy
) -> None:
    first, second = made_up(), made_up()
    changed = made_up(uid=first.uid, tags={"changed"}, address="unix:/elsewhere")
    discovery.tell("worker-added", first, second)
    discovery.tell("worker-updated", changed)
    await discovery.drained()
    assert proxy.workers == [changed, second]


async def test_case_19_full_drop_makes_room_for_the_next(
    discovery: MemoryDiscovery, proxy: WorkerProxy
) -> None:
    first, second, third = made_up(), made_up(), made_up()
    discovery.tell("worker-added", first, second)
    discovery.tell("worker-dropped", first)
    discovery.tell("worker-added", third)
    await discovery.drained()
    assert proxy.workers == [second, third]


async def test_case_20_refused_stays_out_when_updated(discovery: MemoryDiscovery) -> None:
    first, refused = made_up(), made_up()
    async with WorkerProxy(discovery=discovery.subscriber, lease=1) as proxy:
        discovery.tell("worker-added", first, refused)
        discovery.tell("worker-updated", made_up(uid=refused.uid, tags={"changed"}))
        await discovery.drained()
        assert proxy.workers == [first]


async def test_case_21_pickled_keeps_the_lease(discovery: MemoryDiscovery) -> None:
    workers = [made_up() for _ in range(3)]
    discovery.tell("worker-added", *workers)
    proxy = WorkerProxy(discovery=discovery.subscriber, lease=2)
    restored: WorkerProxy = cloudpickle.loads(cloudpickle.dumps(proxy))
    assert (restored.lease, restored.id) == (2, proxy.id)
    async with restored:
        await eventually(lambda: "2/2 admitted, 1 waiting" in repr(restored))
        assert restored.workers == workers[:2]


async def test_lease_of_a_hybrid_pool_is_for_strangers() -> None:
    """Strangers that were there first don't take the places of the pool's own workers."""
    strangers = [made_up() for _ in range(3)]
    discovery = MemoryDiscovery(*strangers)
    async with WorkerPool(size=1, lease=2, discovery=discovery):
        proxy = wool.__proxy__.get()
        assert isinstance(proxy, WorkerProxy)
        await eventually(lambda: len(proxy.workers) == 3)
        await discovery.drained()
        own = [metadata for metadata in proxy.workers if metadata.pid != 1]
        assert len(own) == 1
        assert [metadata for metadata in proxy.workers if metadata.pid == 1] == strangers[:2]


async def test_lease_zero_uses_own_workers_alone() -> None:
    discovery = MemoryDiscovery(made_up())
    async with WorkerPool(size=1, lease=0, discovery=discovery):
        own = discovery.told("worker-added")
        assert {await pid() for _ in range(4)} == {own[0].pid}


async def test_lease_caps_who_joins_a_private_namespace() -> None:
    """A35: a lease without a discovery is about those who join at `pool.namespace`."""
    async with WorkerPool(size=1, lease=1) as pool:
        proxy = wool.__proxy__.get()
        assert isinstance(proxy, WorkerProxy)
        strangers: list[WorkerMetadata] = [made_up(), made_up()]
        async with wool.LocalDiscovery(pool.namespace).publisher as publisher:
            for stranger in strangers:
                await publisher.publish("worker-added", stranger)
            await eventually(lambda: len(proxy.workers) == 2)
            assert uids(proxy)[1] == strangers[0].uid
            await publisher.publish("worker-dropped", strangers[0])
            await eventually(lambda: strangers[1].uid in uids(proxy))
            assert len(proxy.workers) == 2


async def test_lease_of_a_durable_pool_over_real_workers() -> None:
    discovery = MemoryDiscovery()
    workers = [LocalWorker(), LocalWorker()]
    try:
        for worker in workers:
            await worker.start()
            assert worker.metadata is not None
            discovery.tell("worker-added", worker.metadata)
        first, second = discovery.told("worker-added")
        async with WorkerPool(discovery=discovery, lease=1):
            assert {await pid() for _ in range(4)} == {first.pid}
            discovery.tell("worker-dropped", first)
            await discovery.drained()
            assert {await pid() for _ in range(4)} == {second.pid}
    finally:
        for worker in workers:
            await worker.stop()
