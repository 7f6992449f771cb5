"""What is expected of any load balancer: derive a test class and say how to make one."""

from __future__ import annotations

import asyncio
import gc
import pickle
import weakref
from abc import ABC, abstractmethod
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid4

import grpc
import pytest

from wool.runtime.errors import (
    DispatchTimeout,
    NoWorkersAvailable,
    PayloadTooLarge,
    RpcError,
    TransientRpcError,
    UnexpectedResponse,
    WorkerLost,
)
from wool.runtime.loadbalancer.base import LoadBalancerContext, LoadBalancerLike
from wool.runtime.routine.task import Task
from wool.runtime.worker.metadata import WorkerMetadata

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from wool.runtime.routine.task import WorkerProxyLike

BUSY = TransientRpcError(grpc.StatusCode.UNAVAILABLE, "busy")
BROKEN = RpcError(grpc.StatusCode.INTERNAL, "broken")


async def nothing() -> None: ...


def make_task() -> Task:
    proxy = cast("WorkerProxyLike", SimpleNamespace(id=uuid4(), dispatch=None))
    return Task(uuid4(), nothing, (), {}, proxy)


def worker(number: int, address: str = "unix:/w") -> WorkerMetadata:
    return WorkerMetadata(uid=UUID(int=number), address=address, pid=number, version="1.0")


class FakeConnection:
    """A worker that answers every task with its own number, or with `error`.

    `then` is called on each dispatch; while `gate` is not set, a dispatch hangs. `in_flight` is
    for the test to set.
    """

    in_flight = 0

    def __init__(
        self,
        number: int,
        error: BaseException | None = None,
        then: Callable[[], object] | None = None,
    ) -> None:
        self.number = number
        self.error = error
        self.then = then
        self.gate = asyncio.Event()
        self.gate.set()
        self.called = asyncio.Event()
        self.calls: list[tuple[Task, float | None]] = []

    async def dispatch(self, task: Task, *, timeout: float | None = None) -> AsyncIterator[Any]:
        self.calls.append((task, timeout))
        self.called.set()
        if self.then is not None:
            self.then()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self._answer()

    async def _answer(self) -> AsyncIterator[int]:
        yield self.number


class Cluster:
    """A context with one fake worker for each of `errors`."""

    def __init__(self, *errors: BaseException | None) -> None:
        self.evicted: list[int] = []
        self.context = LoadBalancerContext(on_evict=lambda gone: self.evicted.append(gone.pid))
        self.connections = [FakeConnection(i, error) for i, error in enumerate(errors)]
        for connection in self.connections:
            self.context.add_worker(worker(connection.number), connection)

    @property
    def left(self) -> list[int]:
        return [metadata.pid for metadata in self.context.workers]

    def tried(self) -> list[int]:
        """How often each worker was."""
        return [len(connection.calls) for connection in self.connections]

    async def call(self, balancer: LoadBalancerLike, timeout: float | None = None) -> int:
        stream = await balancer.dispatch(make_task(), context=self.context, timeout=timeout)
        [number] = [result async for result in stream]
        return int(number)


class LoadBalancerConformance(ABC):
    @abstractmethod
    def make(self) -> LoadBalancerLike: ...

    @pytest.fixture
    def balancer(self) -> LoadBalancerLike:
        return self.make()

    def test_satisfies_protocol(self, balancer: LoadBalancerLike) -> None:
        assert isinstance(balancer, LoadBalancerLike)

    def test_pickles(self, balancer: LoadBalancerLike) -> None:
        assert type(pickle.loads(pickle.dumps(balancer))) is type(balancer)

    async def test_used_one_pickles_without_its_contexts(self, balancer: LoadBalancerLike) -> None:
        """A07."""
        await Cluster(None).call(balancer)
        copy = pickle.loads(pickle.dumps(balancer))
        assert await Cluster(None, None).call(copy) in (0, 1)

    async def test_one_worker_takes_all(self, balancer: LoadBalancerLike) -> None:
        cluster = Cluster(None)
        assert [await cluster.call(balancer) for _ in range(3)] == [0, 0, 0]

    async def test_task_and_timeout_are_passed_on(self, balancer: LoadBalancerLike) -> None:
        cluster, task = Cluster(BUSY, None), make_task()
        for _ in range(2):
            await balancer.dispatch(task, context=cluster.context, timeout=1.5)
        for connection in cluster.connections:
            assert set(connection.calls) <= {(task, 1.5)}
        assert cluster.connections[1].calls

    async def test_empty_context(self, balancer: LoadBalancerLike) -> None:
        with pytest.raises(NoWorkersAvailable, match="No healthy workers available for dispatch"):
            await Cluster().call(balancer)

    async def test_worker_that_joins_is_used(self, balancer: LoadBalancerLike) -> None:
        cluster = Cluster()
        with pytest.raises(NoWorkersAvailable):
            await cluster.call(balancer)
        cluster.context.add_worker(worker(7), FakeConnection(7))
        assert await cluster.call(balancer) == 7

    async def test_worker_that_leaves_is_not_used(self, balancer: LoadBalancerLike) -> None:
        cluster = Cluster(None, None)
        await cluster.call(balancer)
        cluster.context.discard(worker(0))
        assert [await cluster.call(balancer) for _ in range(3)] == [1, 1, 1]

    async def test_worker_that_moves_is_used_where_it_is(self, balancer: LoadBalancerLike) -> None:
        """A42."""
        cluster = Cluster(None)
        await cluster.call(balancer)
        cluster.context.update_worker(worker(0, "unix:/new"), FakeConnection(70))
        assert await cluster.call(balancer) == 70

    @pytest.mark.parametrize("error", [BUSY, DispatchTimeout()], ids=["busy", "timeout"])
    async def test_transient_failure_passes_over(
        self, balancer: LoadBalancerLike, error: RpcError
    ) -> None:
        """A03: a worker that is slow to take a call stays."""
        cluster = Cluster(error, None)
        assert [await cluster.call(balancer) for _ in range(4)] == [1, 1, 1, 1]
        assert cluster.left == [0, 1]
        assert cluster.evicted == []

    async def test_transient_failure_of_all(self, balancer: LoadBalancerLike) -> None:
        """A06: each is tried, once, and that is it."""
        cluster = Cluster(BUSY, BUSY, BUSY)
        with pytest.raises(NoWorkersAvailable, match="busy") as caught:
            await cluster.call(balancer)
        assert caught.value.__cause__ is BUSY
        assert cluster.tried() == [1, 1, 1]
        assert cluster.left == [0, 1, 2]

    async def test_other_rpc_error_evicts(self, balancer: LoadBalancerLike) -> None:
        cluster = Cluster(BROKEN, None)
        assert [await cluster.call(balancer) for _ in range(4)] == [1, 1, 1, 1]
        assert cluster.left == [1]
        assert cluster.evicted == [0]

    async def test_other_rpc_error_of_all(self, balancer: LoadBalancerLike) -> None:
        cluster = Cluster(BROKEN, BROKEN)
        with pytest.raises(NoWorkersAvailable, match="INTERNAL: broken"):
            await cluster.call(balancer)
        assert cluster.tried() == [1, 1]
        assert sorted(cluster.evicted) == [0, 1]

    @pytest.mark.parametrize(
        "error",
        [
            WorkerLost(None, "gone"),
            UnexpectedResponse("what?"),
            PayloadTooLarge("The call", 2, "max_receive_message_length", 1),
            TypeError("cannot pickle"),
            TimeoutError(),
            asyncio.CancelledError(),
        ],
        ids=lambda error: type(error).__name__,
    )
    async def test_other_error_goes_to_the_caller(
        self, balancer: LoadBalancerLike, error: BaseException
    ) -> None:
        """A02: whatever isn't the worker's failure to take the call is raised, and evicts nobody.

        Nor is the call made again: it may have run.
        """
        cluster = Cluster(error, error)
        with pytest.raises(type(error)) as caught:
            await cluster.call(balancer)
        assert caught.value is error
        assert sum(cluster.tried()) == 1
        assert cluster.left == [0, 1]
        for connection in cluster.connections:
            connection.error = None
        await cluster.call(balancer)

    async def test_cancelled_call_ends(self, balancer: LoadBalancerLike) -> None:
        cluster = Cluster(None)
        cluster.connections[0].gate.clear()
        call = asyncio.create_task(cluster.call(balancer))
        await cluster.connections[0].called.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert cluster.left == [0]

    async def test_hanging_worker_holds_up_nobody_else(self, balancer: LoadBalancerLike) -> None:
        """A05."""
        cluster = Cluster(None)
        stuck = cluster.connections[0]
        stuck.gate.clear()
        held = asyncio.create_task(cluster.call(balancer))
        await stuck.called.wait()
        cluster.context.add_worker(worker(1), FakeConnection(1))
        cluster.context.discard(worker(0))
        async with asyncio.timeout(10):
            assert await cluster.call(balancer) == 1
        stuck.gate.set()
        assert await held == 0

    @pytest.mark.parametrize("leaver", range(3))
    async def test_departure_during_a_call(self, balancer: LoadBalancerLike, leaver: int) -> None:
        """A06: the call ends even if the worker that it began with has left."""
        cluster = Cluster(BUSY, BUSY, BUSY)
        for connection in cluster.connections:
            connection.then = lambda: cluster.context.discard(worker(leaver))
        async with asyncio.timeout(10):
            with pytest.raises(NoWorkersAvailable):
                await cluster.call(balancer)
        assert max(cluster.tried()) == 1

    async def test_departure_of_all_during_a_call(self, balancer: LoadBalancerLike) -> None:
        cluster = Cluster(BUSY, BUSY, BUSY)
        for connection in cluster.connections:
            connection.then = lambda: [cluster.context.discard(worker(i)) for i in range(3)]
        with pytest.raises(NoWorkersAvailable):
            await cluster.call(balancer)
        assert sum(cluster.tried()) == 1

    async def test_arrivals_during_a_call_do_not_prolong_it(
        self, balancer: LoadBalancerLike
    ) -> None:
        """A06: at most one cycle over the workers there were when the call began."""
        cluster = Cluster(BUSY, BUSY)

        def join() -> None:
            connection = FakeConnection(len(cluster.connections), BUSY, join)
            cluster.connections.append(connection)
            cluster.context.add_worker(worker(connection.number), connection)

        for connection in cluster.connections:
            connection.then = join
        async with asyncio.timeout(10):
            with pytest.raises(NoWorkersAvailable):
                await cluster.call(balancer)
        assert sum(cluster.tried()) == 2

    async def test_contexts_are_independent(self, balancer: LoadBalancerLike) -> None:
        broken, sound = Cluster(BROKEN), Cluster(None, None)
        with pytest.raises(NoWorkersAvailable):
            await broken.call(balancer)
        assert await sound.call(balancer) in (0, 1)
        assert sound.left == [0, 1]

    async def test_contexts_are_collectable(self, balancer: LoadBalancerLike) -> None:
        """A07."""
        cluster = Cluster(None, None)
        await cluster.call(balancer)
        context: Callable[[], object] = weakref.ref(cluster.context)
        connection: Callable[[], object] = weakref.ref(cluster.connections[0])
        del cluster
        gc.collect()
        assert context() is None
        assert connection() is None
