"""Making, entering and using pools."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import wool
from tests.runtime.worker.memory import MemoryDiscovery, made_up
from tests.runtime.worker.routines import echo, pid, spread
from tests.support import eventually
from wool import LocalDiscovery, LocalWorker, RoundRobinLoadBalancer, WorkerPool, WorkerProxy
from wool.runtime.worker.pool import _resolve_size

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


def active() -> WorkerProxy:
    proxy = wool.__proxy__.get()
    assert isinstance(proxy, WorkerProxy)
    return proxy


# Construction


def test_resolve_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _resolve_size(3) == 3
    assert _resolve_size(0) == os.cpu_count()
    with pytest.raises(ValueError, match=r"^Size must be non-negative$"):
        _resolve_size(-1)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert _resolve_size(1) == 1
    for make in (partial(_resolve_size, 0), WorkerPool, partial(WorkerPool, size=0)):
        with pytest.raises(ValueError, match=r"^Unable to determine CPU count$"):
            make()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": -1}, "Size must be non-negative"),
        ({"size": -1, "discovery": MemoryDiscovery()}, "Size must be non-negative"),
        ({"size": -1, "lease": -1}, "Lease must be non-negative"),
        ({"shutdown_timeout": 0}, "Shutdown timeout must be positive"),
        ({"shutdown_timeout": -1.0}, "Shutdown timeout must be positive"),
        ({"worker": 42}, "worker must be a callable that makes workers, got 42"),
        ({"worker": lambda: None}, "worker must be callable as worker"),
        ({"worker": lambda *tags, credentials, more: None}, "missing a required argument: 'more'"),
    ],
)
def test_pool_with_bad_settings_is_refused(settings: dict[str, Any], message: str) -> None:
    """A44, among others."""
    with pytest.raises(ValueError, match=message):
        WorkerPool(**settings)


def test_pool_whose_size_is_taken_for_a_tag() -> None:
    make: Any = WorkerPool
    with pytest.raises(TypeError, match="tags must be strings, got 4; for 4 workers, write size=4"):
        make(4)
    with pytest.raises(TypeError, match=r"tags must be strings, got None$"):
        make("gpu", None)


async def test_pool_is_not_entered_by_with() -> None:
    pool: Any = WorkerPool(size=1)
    with pytest.raises(TypeError, match="`async with`, not with `with`"), pool:
        pass
    async with pool:
        assert await echo(1) == 1


def test_pool_with_factory_of_unknown_signature_is_made() -> None:
    class Factory:
        __signature__ = "none"

        def __call__(self, *tags: str, credentials: Any = None) -> LocalWorker:
            raise NotImplementedError

    WorkerPool(worker=Factory())


class Bound(MemoryDiscovery):
    """A discovery whose workers must listen on `bind_host`."""

    def __init__(self, bind_host: str) -> None:
        super().__init__()
        self.bind_host = bind_host


def recording(calls: list[dict[str, Any]]) -> Any:
    """A factory that takes any options, writes them down and makes no worker."""

    def make(*tags: str, **options: Any) -> Any:
        calls.append(options)
        raise LookupError("made nothing")

    return make


def deaf(*tags: str, credentials: Any = None) -> Any:
    raise LookupError("made nothing")


@pytest.mark.parametrize("bind_host", ["0.0.0.0", "192.0.2.1"])
async def test_factory_is_given_the_host_that_the_discovery_asks_for(bind_host: str) -> None:
    calls: list[dict[str, Any]] = []
    for factory in (recording(calls), partial(recording(calls), port=5)):
        with pytest.raises(LookupError):
            await WorkerPool(size=1, discovery=Bound(bind_host), worker=factory).__aenter__()
    assert calls == [
        {"credentials": None, "host": bind_host},
        {"credentials": None, "host": bind_host, "port": 5},
    ]


@pytest.mark.parametrize("bind_host", ["127.0.0.1", "::1", "localhost"])
async def test_workers_are_private_where_only_this_host_has_to_reach_them(bind_host: str) -> None:
    calls: list[dict[str, Any]] = []
    with pytest.raises(LookupError):
        await WorkerPool(size=1, discovery=Bound(bind_host), worker=recording(calls)).__aenter__()
    assert calls == [{"credentials": None}]


async def test_factory_that_has_a_host_or_takes_none_is_not_given_one() -> None:
    calls: list[dict[str, Any]] = []
    bound = partial(partial(recording(calls), host="10.0.0.1"), port=5)
    with pytest.raises(LookupError):
        await WorkerPool(size=1, discovery=Bound("0.0.0.0"), worker=bound).__aenter__()
    assert calls == [{"credentials": None, "host": "10.0.0.1", "port": 5}]
    with pytest.raises(LookupError):
        await WorkerPool(size=1, discovery=Bound("0.0.0.0"), worker=deaf).__aenter__()


def test_pool_without_discovery_has_a_namespace() -> None:
    first, second = WorkerPool(size=1), WorkerPool(size=1)
    assert first.namespace is not None
    assert first.namespace.startswith("pool-")
    assert len(first.namespace) == len("pool-") + 32
    assert first.namespace != second.namespace
    assert WorkerPool(discovery=MemoryDiscovery()).namespace is None


# Modes


async def test_default_pool_has_a_worker_for_each_cpu() -> None:
    async with WorkerPool() as pool:
        await eventually(lambda: len(active().workers) == os.cpu_count())
        assert await echo("here") == "here"
        assert f"{os.cpu_count()} admitted" in repr(pool)
    assert "stopped" in repr(pool)


async def test_ephemeral_pool_has_its_size_and_tags() -> None:
    async with WorkerPool("a", "b", size=2) as pool:
        await eventually(lambda: len(active().workers) == 2)
        assert {metadata.tags for metadata in active().workers} == {frozenset({"a", "b"})}
        pids = {metadata.pid for metadata in active().workers}
        assert {await pid() for _ in range(4)} == pids
        assert os.getpid() not in pids
        assert (await spread(8))[1] == pids
        async with WorkerProxy(pool.namespace, "b"):
            assert await pid() in pids


async def test_hybrid_pool_announces_its_own_and_uses_others_that_share_a_tag() -> None:
    fitting, other = made_up(tags={"gpu", "big"}), made_up(tags={"cpu"})
    discovery = MemoryDiscovery(fitting, other)
    async with WorkerPool("gpu", size=1, discovery=discovery):
        [own] = discovery.told("worker-added")
        await eventually(lambda: len(active().workers) == 2)
        await discovery.drained()
        assert {metadata.uid for metadata in active().workers} == {own.uid, fitting.uid}
        assert own.tags == {"gpu"}
    assert discovery.told("worker-dropped") == [own]


async def test_durable_pool_ignores_tags_and_spawns_nothing() -> None:
    def worker(*tags: str, credentials: Any = None) -> LocalWorker:
        raise AssertionError

    stranger = made_up(tags={"cpu"})
    discovery = MemoryDiscovery(stranger)
    async with WorkerPool("gpu", discovery=discovery, worker=worker):
        await eventually(lambda: active().workers == [stranger])
    assert not discovery.log


async def test_durable_pool_over_another_pools_namespace() -> None:
    async with WorkerPool(size=1) as outer:
        there = await pid()
        assert outer.namespace is not None
        async with WorkerPool(discovery=LocalDiscovery(outer.namespace)):
            assert await pid() == there
        assert await pid() == there


# Factories


@pytest.mark.parametrize("form", ["instance", "callable", "async", "manager", "async manager"])
async def test_pool_takes_discovery_and_balancer_in_any_form(form: str) -> None:
    left = []

    def given(thing: Any) -> Any:
        @contextmanager
        def manager() -> Iterator[Any]:
            yield thing
            left.append(thing)

        @asynccontextmanager
        async def async_manager() -> AsyncIterator[Any]:
            yield thing
            left.append(thing)

        async def make() -> Any:
            return thing

        forms = {
            "instance": thing,
            "callable": lambda: thing,
            "async": make,
            "manager": manager,
            "async manager": async_manager,
        }
        return forms[form]

    discovery, balancer = MemoryDiscovery(), RoundRobinLoadBalancer()
    async with WorkerPool(size=1, discovery=given(discovery), loadbalancer=given(balancer)):
        assert await echo(1) == 1
        assert len(discovery.told("worker-added")) == 1
        assert left == []
    assert left == ([balancer, discovery] if "manager" in form else [])


async def test_pool_publishes_through_what_its_publisher_gives_when_entered() -> None:
    """A39."""
    inner = MemoryDiscovery()
    left = []

    class Outer(MemoryDiscovery):
        @property
        def publisher(self) -> Any:
            return self._manager()

        @asynccontextmanager
        async def _manager(self) -> AsyncIterator[MemoryDiscovery]:
            yield inner
            left.append([event.type for event in inner.log])

    async with WorkerPool(size=1, discovery=Outer()):
        assert len(inner.log) == 1
    assert left == [["worker-added", "worker-dropped"]]


async def test_pool_makes_workers_with_its_factory() -> None:
    made = []

    def worker(*tags: str, credentials: Any = None) -> LocalWorker:
        made.append((tags, credentials))
        return LocalWorker(*tags, port=0, credentials=credentials, colour="blue")

    async with WorkerPool("a", size=1, worker=worker):
        await eventually(lambda: active().workers)
        [metadata] = active().workers
        assert metadata.extra == {"colour": "blue"}
        assert metadata.address.startswith("127.0.0.1:")
    assert made == [(("a",), None)]


async def test_pool_takes_a_partial_as_factory() -> None:
    async with WorkerPool(size=1, worker=partial(LocalWorker, "more", host="localhost")):
        await eventually(lambda: active().workers)
        assert active().workers[0].tags == {"more"}


# Life cycle


async def test_pool_is_entered_once() -> None:
    """A30."""
    async with WorkerPool(size=1) as pool:
        there = await pid()
        with pytest.raises(RuntimeError, match="can be entered once"):
            await pool.__aenter__()
        with pytest.raises(RuntimeError, match="can be entered once"):
            async with pool:
                pass
        assert await pid() == there
    with pytest.raises(RuntimeError, match="can be entered once"):
        await pool.__aenter__()


async def test_pool_on_an_exit_stack_and_by_hand() -> None:
    """A24."""
    async with AsyncExitStack() as stack:
        entered = await stack.enter_async_context(pool := WorkerPool(size=1))
        assert entered is pool
        assert await echo(1) == 1
        with pytest.raises(RuntimeError, match="can be entered once"):
            await stack.enter_async_context(pool)
    by_hand = WorkerPool(size=1)
    await by_hand.__aenter__()
    try:
        assert await echo(2) == 2
    finally:
        await by_hand.__aexit__(None, None, None)
    with pytest.raises(RuntimeError, match="No pool is active"):
        await echo(3)


async def test_pool_that_was_not_entered_can_be_left() -> None:
    await WorkerPool(size=1).__aexit__(None, None, None)


async def test_pool_does_not_swallow_exceptions() -> None:
    @asynccontextmanager
    async def swallowing() -> AsyncIterator[MemoryDiscovery]:
        with suppress(KeyError):
            yield MemoryDiscovery()

    with pytest.raises(KeyError, match="mine"):
        async with WorkerPool(discovery=swallowing):
            raise KeyError("mine")


async def test_concurrent_pools_have_their_own_workers() -> None:
    """Each task's calls go to the pool that it has entered."""

    async def use() -> tuple[set[int], set[int]]:
        async with WorkerPool(size=1) as pool:
            assert pool.namespace is not None
            await eventually(lambda: active().workers)
            await entered.wait()
            return {metadata.pid for metadata in active().workers}, {await pid() for _ in range(9)}

    entered = asyncio.Barrier(2)
    (mine, used), (other, used_by_other) = await asyncio.gather(use(), use())
    assert mine == used
    assert other == used_by_other
    assert mine != other
