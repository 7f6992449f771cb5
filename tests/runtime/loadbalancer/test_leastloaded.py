from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wool
from tests.conformance.loadbalancer import (
    BROKEN,
    BUSY,
    Cluster,
    FakeConnection,
    LoadBalancerConformance,
    worker,
)
from tests.runtime.routines import pid
from tests.support import eventually
from wool.runtime.loadbalancer.leastloaded import LeastLoadedLoadBalancer


class TestConformance(LoadBalancerConformance):
    def make(self) -> LeastLoadedLoadBalancer:
        return LeastLoadedLoadBalancer()


def load(cluster: Cluster, *in_flight: int) -> None:
    for connection, number in zip(cluster.connections, in_flight, strict=True):
        connection.in_flight = number


async def calls(cluster: Cluster, balancer: LeastLoadedLoadBalancer, count: int) -> list[int]:
    return [await cluster.call(balancer) for _ in range(count)]


async def test_the_least_loaded_is_called() -> None:
    cluster, balancer = Cluster(*[None] * 4), LeastLoadedLoadBalancer()
    load(cluster, 3, 2, 1, 2)
    assert await calls(cluster, balancer, 3) == [2, 2, 2]
    load(cluster, 0, 2, 1, 2)
    assert await calls(cluster, balancer, 3) == [0, 0, 0]


async def test_equally_loaded_workers_take_turns() -> None:
    cluster, balancer = Cluster(*[None] * 3), LeastLoadedLoadBalancer()
    assert await calls(cluster, balancer, 5) == [0, 1, 2, 0, 1]
    load(cluster, 4, 9, 4)
    assert await calls(cluster, balancer, 4) == [2, 0, 2, 0]


async def test_turn_is_kept_when_workers_come_and_go() -> None:
    cluster, balancer = Cluster(*[None] * 3), LeastLoadedLoadBalancer()
    assert await calls(cluster, balancer, 1) == [0]
    cluster.context.discard(worker(2))
    cluster.context.add_worker(worker(7), FakeConnection(7))
    assert await calls(cluster, balancer, 4) == [1, 7, 0, 1]


async def test_next_least_loaded_is_tried_next() -> None:
    cluster, balancer = Cluster(BUSY, None, BROKEN, None), LeastLoadedLoadBalancer()
    load(cluster, 0, 3, 1, 2)
    assert await calls(cluster, balancer, 1) == [3]
    assert cluster.tried() == [1, 0, 1, 1]
    assert cluster.left == [0, 1, 3]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 30))
async def test_calls_that_stay_level_the_load(loads: list[int], count: int) -> None:
    cluster, balancer = Cluster(*[None] * len(loads)), LeastLoadedLoadBalancer()
    load(cluster, *loads)
    for _ in range(count):
        called = cluster.connections[await cluster.call(balancer)]
        assert called.in_flight == min(each.in_flight for each in cluster.connections)
        called.in_flight += 1


@wool.routine
async def stay() -> int:
    await asyncio.Event().wait()
    return 0


async def test_long_calls_keep_short_ones_away() -> None:
    async with wool.WorkerPool(size=2, loadbalancer=LeastLoadedLoadBalancer) as pool:
        proxy = pool._proxy
        assert proxy is not None
        busy, idle = {await pid() for _ in range(2)}, await pid()
        assert idle in busy
        long = [asyncio.create_task(stay())]
        running = proxy._running
        assert running is not None
        ways = running.context.workers.values()
        await eventually(lambda: sum(way.in_flight for way in ways) == 1)
        [other] = {await pid() for _ in range(6)}
        long += [asyncio.create_task(stay()) for _ in range(2)]
        await eventually(lambda: sum(way.in_flight for way in ways) == 3)
        assert sorted(way.in_flight for way in ways) == [1, 2]
        assert len({await pid() for _ in range(6)}) == 1
        assert other in busy
        for call in long:
            call.cancel()
        for call in long:
            with pytest.raises(asyncio.CancelledError):
                await call
        assert [way.in_flight for way in ways] == [0, 0]
