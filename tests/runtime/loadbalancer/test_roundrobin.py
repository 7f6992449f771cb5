from __future__ import annotations

import asyncio
import gc
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.loadbalancer import (
    BROKEN,
    BUSY,
    Cluster,
    FakeConnection,
    LoadBalancerConformance,
    make_task,
    worker,
)
from wool.runtime.errors import DispatchTimeout, NoWorkersAvailable, RpcError
from wool.runtime.loadbalancer.roundrobin import RoundRobinLoadBalancer


class TestConformance(LoadBalancerConformance):
    def make(self) -> RoundRobinLoadBalancer:
        return RoundRobinLoadBalancer()


async def calls(cluster: Cluster, balancer: RoundRobinLoadBalancer, count: int) -> list[int]:
    return [await cluster.call(balancer) for _ in range(count)]


async def test_workers_take_turns() -> None:
    cluster = Cluster(None, None, None)
    assert await calls(cluster, RoundRobinLoadBalancer(), 7) == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("rounds", [1, 2])
async def test_concurrent_calls_spread_evenly(rounds: int) -> None:
    cluster, balancer = Cluster(*[None] * 5), RoundRobinLoadBalancer()
    for connection in cluster.connections:
        connection.gate.clear()
    pending = [asyncio.create_task(cluster.call(balancer)) for _ in range(5 * rounds)]
    for connection in cluster.connections:
        await connection.called.wait()
        connection.gate.set()
    assert sorted(await asyncio.gather(*pending)) == sorted([*range(5)] * rounds)


async def test_turn_is_kept_when_the_next_worker_leaves() -> None:
    cluster, balancer = Cluster(*[None] * 4), RoundRobinLoadBalancer()
    await calls(cluster, balancer, 2)
    cluster.context.discard(worker(2))
    assert await calls(cluster, balancer, 4) == [3, 0, 1, 3]


async def test_turn_is_kept_when_an_earlier_worker_leaves() -> None:
    cluster, balancer = Cluster(*[None] * 4), RoundRobinLoadBalancer()
    await calls(cluster, balancer, 2)
    cluster.context.discard(worker(0))
    assert await calls(cluster, balancer, 4) == [2, 3, 1, 2]


async def test_turn_is_kept_when_a_worker_joins() -> None:
    cluster, balancer = Cluster(None, None), RoundRobinLoadBalancer()
    await calls(cluster, balancer, 1)
    cluster.context.add_worker(worker(7), FakeConnection(7))
    assert await calls(cluster, balancer, 3) == [1, 7, 0]


async def test_worker_that_moves_during_a_call_is_tried_where_it_is() -> None:
    """A42."""
    cluster = Cluster(BUSY, None)
    cluster.connections[0].then = lambda: cluster.context.update_worker(
        worker(1, "unix:/new"), FakeConnection(11)
    )
    assert await cluster.call(RoundRobinLoadBalancer()) == 11


async def test_eviction_during_a_call_skips_nobody() -> None:
    cluster, balancer = Cluster(BROKEN, None, None), RoundRobinLoadBalancer()
    assert await calls(cluster, balancer, 3) == [1, 2, 1]


async def test_late_retry_takes_nobody_elses_turn() -> None:
    cluster, balancer = Cluster(BUSY, None, None, None), RoundRobinLoadBalancer()
    late = cluster.connections[0]
    late.gate.clear()
    call = asyncio.create_task(cluster.call(balancer))
    await late.called.wait()
    assert await calls(cluster, balancer, 2) == [1, 2]
    late.gate.set()
    assert await call == 1
    assert await calls(cluster, balancer, 1) == [3]


async def test_concurrent_failures_evict_once() -> None:
    cluster, balancer = Cluster(BROKEN), RoundRobinLoadBalancer()
    results = await asyncio.gather(
        *(cluster.call(balancer) for _ in range(5)), return_exceptions=True
    )
    assert {type(result) for result in results} == {NoWorkersAvailable}
    assert cluster.evicted == [0]


async def test_message_is_the_default_without_a_failure() -> None:
    with pytest.raises(NoWorkersAvailable) as caught:
        await Cluster().call(RoundRobinLoadBalancer())
    assert str(caught.value) == "No healthy workers available for dispatch"
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("error", "text"), [(BUSY, "UNAVAILABLE: busy"), (DispatchTimeout(), "DispatchTimeout")]
)
async def test_message_names_the_last_failure(error: RpcError, text: str) -> None:
    with pytest.raises(NoWorkersAvailable) as caught:
        await Cluster(BROKEN, error).call(RoundRobinLoadBalancer())
    assert str(caught.value) == f"No healthy workers available for dispatch: {text}"


@given(st.lists(st.lists(st.sampled_from([None, BUSY, BROKEN]), min_size=4, max_size=4)))
async def test_sequential_calls_follow_the_rule(script: list[list[RpcError | None]]) -> None:
    """Against the rule as it is written: one index, and what each outcome does to it."""
    cluster, balancer = Cluster(*[None] * 4), RoundRobinLoadBalancer()
    left, index = [0, 1, 2, 3], 0
    for errors in script:
        for connection, error in zip(cluster.connections, errors, strict=True):
            connection.error = error
        expected = None
        for _ in range(len(left)):
            number = left[index]
            if errors[number] is BROKEN:
                left.pop(index)
            else:
                index += 1
            index %= len(left) or 1
            if errors[number] is None:
                expected = number
                break
        try:
            actual = await cluster.call(balancer)
        except NoWorkersAvailable:
            actual = None
        assert actual == expected
        assert cluster.left == left


@given(st.integers(1, 8), st.integers(0, 40))
async def test_any_number_of_concurrent_calls_spreads_evenly(workers: int, count: int) -> None:
    cluster, balancer = Cluster(*[None] * workers), RoundRobinLoadBalancer()
    await asyncio.gather(*(cluster.call(balancer) for _ in range(count)))
    assert max(cluster.tried()) - min(cluster.tried()) <= 1


async def dispatch_cost(workers: int) -> float:
    """Seconds per call, at best, with so many workers."""
    cluster, balancer, task = Cluster(*[None] * workers), RoundRobinLoadBalancer(), make_task()
    await cluster.call(balancer)
    costs = []
    gc.disable()
    try:
        for _ in range(10):
            start = time.perf_counter()
            for _ in range(200):
                await balancer.dispatch(task, context=cluster.context)
            costs.append((time.perf_counter() - start) / 200)
    finally:
        gc.enable()
    return min(costs)


async def test_cost_of_a_call_does_not_grow_with_the_number_of_workers() -> None:
    assert await dispatch_cost(10_000) < 10 * await dispatch_cost(10)
