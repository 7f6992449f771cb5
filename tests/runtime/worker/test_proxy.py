"""Proxies: their sources, their life cycle, who is admitted, and waiting for workers."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import pickle
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest

import wool
from tests.runtime.worker.memory import MemoryDiscovery, MemorySubscriber, made_up
from tests.runtime.worker.routines import echo, pid
from tests.support import eventually
from wool import (
    DiscoveryEvent,
    LocalDiscovery,
    LocalWorker,
    RoundRobinLoadBalancer,
    WorkerCredentials,
    WorkerMetadata,
    WorkerProxy,
)
from wool.runtime.worker.auth import CredentialContext
from wool.runtime.worker.proxy import ReducibleAsyncIterator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

CREDENTIALS = WorkerCredentials(b"ca", b"key", b"cert")


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


# Construction


def test_proxy_needs_exactly_one_source() -> None:
    nothing = "Must specify either a workerpool URI, discovery event stream, or a sequence of"
    with pytest.raises(ValueError, match=nothing):
        WorkerProxy()
    with pytest.raises(ValueError, match=nothing):
        WorkerProxy(workers=[])
    several = "Must specify exactly one of: pool_uri, discovery_event_stream, or workers"
    subscriber = MemoryDiscovery().subscriber
    for settings in (
        {"pool_uri": "pool", "discovery": subscriber},
        {"pool_uri": "pool", "workers": [made_up()]},
        {"discovery": subscriber, "workers": [made_up()]},
    ):
        with pytest.raises(ValueError, match=several):
            WorkerProxy(**settings)


def test_proxies_are_equal_by_id() -> None:
    first, second = WorkerProxy("pool"), WorkerProxy("pool")
    copy = cloudpickle.loads(cloudpickle.dumps(first))
    assert first != second
    assert first == copy
    assert hash(first) == hash(copy)
    assert first != first.id
    assert len({first, second, copy}) == 2


async def test_proxy_says_in_its_repr_who_is_in(discovery: MemoryDiscovery) -> None:
    proxy = WorkerProxy(discovery=discovery.subscriber, lease=1)
    assert repr(proxy) == f"<WorkerProxy {str(proxy.id)[:4]} stopped>"
    async with proxy:
        discovery.tell("worker-added", made_up(), made_up())
        await discovery.drained()
        assert "1/1 admitted, 1 waiting" in repr(proxy)


# The three sources


async def test_proxy_of_a_pool_uri_finds_workers_that_share_a_tag(worker: WorkerMetadata) -> None:
    other = made_up(tags={"slow"})
    namespace = "test-proxy-of-a-pool-uri"
    async with LocalDiscovery(namespace) as discovery, discovery.publisher as publisher:
        await publisher.publish("worker-added", other)
        await publisher.publish("worker-added", worker)
        async with WorkerProxy(namespace, "fast", "faster") as proxy:
            assert await pid() == worker.pid
            assert proxy.workers == [worker]
        async with WorkerProxy(namespace) as proxy:
            await eventually(lambda: len(proxy.workers) == 2)


async def test_proxy_of_workers_admits_those_that_fit(worker: WorkerMetadata) -> None:
    secure = made_up(secure=True)
    async with WorkerProxy(workers=[secure, worker]) as proxy:
        assert await pid() == worker.pid
        assert proxy.workers == [worker]
        await eventually(lambda: proxy.workers == [worker])
    assert proxy.workers == []


@pytest.mark.parametrize("form", ["subscriber", "callable", "async", "manager", "async manager"])
async def test_proxy_of_a_discovery_in_any_form(worker: WorkerMetadata, form: str) -> None:
    @contextmanager
    def manager() -> Iterator[MemorySubscriber]:
        yield subscriber
        left.append(form)

    @asynccontextmanager
    async def async_manager() -> AsyncIterator[MemorySubscriber]:
        yield subscriber
        left.append(form)

    async def make() -> MemorySubscriber:
        return subscriber

    left: list[str] = []
    subscriber = MemoryDiscovery(worker).subscriber
    forms: dict[str, Any] = {
        "subscriber": subscriber,
        "callable": lambda: subscriber,
        "async": make,
        "manager": manager,
        "async manager": async_manager,
    }
    async with WorkerProxy(discovery=forms[form]):
        assert await pid() == worker.pid
        assert left == []
    assert left == ([form] if "manager" in form else [])


async def test_reducible_iterator_starts_afresh_when_iterated_and_pickled() -> None:
    iterator = ReducibleAsyncIterator([1, 2])
    assert await anext(iterator) == 1
    assert [item async for item in iterator] == [1, 2]
    assert [item async for item in pickle.loads(pickle.dumps(iterator))] == [1, 2]
    assert await anext(iterator) == 2
    with pytest.raises(StopAsyncIteration):
        await anext(iterator)


# Context managers that are good for one entry


def test_proxy_of_a_context_manager_warns_and_does_not_pickle() -> None:
    @contextmanager
    def manager(thing: Any) -> Iterator[Any]:
        yield thing

    subscriber = MemoryDiscovery().subscriber
    with pytest.warns(UserWarning, match="discovery is a context manager") as warned:
        proxy = WorkerProxy(discovery=manager(subscriber))
    assert warned[0].filename == __file__
    with pytest.raises(TypeError, match=r"discovery of <WorkerProxy .*> is a context manager"):
        cloudpickle.dumps(proxy)
    with pytest.warns(UserWarning, match="loadbalancer is a context manager"):
        proxy = WorkerProxy("pool", loadbalancer=manager(RoundRobinLoadBalancer()))
    with pytest.raises(TypeError, match=r"loadbalancer of <WorkerProxy .*> is a context manager"):
        cloudpickle.dumps(proxy)


# Life cycle


async def test_proxy_is_started_and_stopped_in_turn(discovery: MemoryDiscovery) -> None:
    proxy = WorkerProxy(discovery=discovery.subscriber)
    not_started = r"Proxy not started - call start\(\) first"
    with pytest.raises(RuntimeError, match=not_started):
        await proxy.stop()
    with pytest.raises(RuntimeError, match=not_started):
        await proxy.dispatch(None)  # type: ignore[arg-type]
    for _ in range(2):
        await proxy.start()
        assert proxy.started
        assert wool.__proxy__.get() is proxy
        with pytest.raises(RuntimeError, match="Proxy already started"):
            await proxy.start()
        await discovery.drained()
        await proxy.stop()
        assert not proxy.started
        assert wool.__proxy__.get() is None
        assert discovery.subscriptions == []


async def test_proxy_that_is_being_started_can_not_be_started() -> None:
    async def slowly() -> MemorySubscriber:
        await proceed.wait()
        return MemoryDiscovery().subscriber

    proceed = asyncio.Event()
    proxy = WorkerProxy(discovery=slowly)
    starting = asyncio.create_task(proxy.start())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="Proxy already started"):
        await proxy.start()
    proceed.set()
    await starting
    await proxy.stop()


async def test_failed_start_leaves_nothing() -> None:
    """A33, A34."""

    @asynccontextmanager
    async def balancer() -> AsyncIterator[RoundRobinLoadBalancer]:
        entered.append("balancer")
        try:
            yield RoundRobinLoadBalancer()
        finally:
            entered.remove("balancer")

    def discovery() -> Any:
        if len(attempts) == 0:
            attempts.append(1)
            raise OSError("no network")
        return MemoryDiscovery().subscriber

    entered: list[str] = []
    attempts: list[int] = []
    proxy = WorkerProxy(discovery=discovery, loadbalancer=balancer)
    with pytest.raises(OSError, match="no network"):
        await proxy.start()
    assert entered == []
    assert not proxy.started
    assert wool.__proxy__.get() is None
    async with proxy:
        assert entered == ["balancer"]
    assert entered == []


async def test_start_with_the_wrong_types_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected LoadBalancerLike, got: 42"):
        await WorkerProxy("pool", loadbalancer=lambda: 42).start()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected DiscoverySubscriberLike, got: 42"):
        await WorkerProxy(discovery=42).start()  # type: ignore[arg-type]


async def test_proxy_leaves_its_discovery_then_its_balancer_even_if_one_fails() -> None:
    """A33."""

    @asynccontextmanager
    async def discovery() -> AsyncIterator[MemorySubscriber]:
        yield MemoryDiscovery().subscriber
        left.append("discovery")
        raise OSError("the door is stuck")

    @asynccontextmanager
    async def balancer() -> AsyncIterator[RoundRobinLoadBalancer]:
        try:
            yield RoundRobinLoadBalancer()
        finally:
            left.append("balancer")

    left: list[str] = []
    proxy = WorkerProxy(discovery=discovery, loadbalancer=balancer)
    await proxy.start()
    with pytest.raises(OSError, match="the door is stuck"):
        await proxy.stop()
    assert left == ["discovery", "balancer"]
    assert not proxy.started
    assert wool.__proxy__.get() is None


async def test_proxy_can_be_stopped_in_another_context(discovery: MemoryDiscovery) -> None:
    """A41: it stops watching, all the same."""
    proxy = WorkerProxy(discovery=discovery.subscriber)
    loop = asyncio.get_running_loop()
    await loop.create_task(proxy.start(), context=contextvars.Context())
    await discovery.drained()
    await loop.create_task(proxy.stop(), context=contextvars.Context())
    assert discovery.subscriptions == []


# Waiting for workers


async def test_call_waits_for_the_first_worker_without_using_the_cpu(
    discovery: MemoryDiscovery, worker: WorkerMetadata
) -> None:
    """A31."""
    async with WorkerProxy(discovery=discovery.subscriber):
        call = asyncio.create_task(pid())
        await discovery.drained()
        before = time.process_time()
        await asyncio.wait([call], timeout=1)
        assert time.process_time() - before < 0.5
        assert not call.done()
        discovery.tell("worker-added", worker)
        assert await call == worker.pid


async def test_call_times_out_if_no_worker_comes_and_says_who_was_refused(
    discovery: MemoryDiscovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wool.runtime.worker.roster.FIRST_WORKER_TIMEOUT", 0.2)
    async with WorkerProxy(discovery=discovery.subscriber):
        discovery.tell("worker-added", made_up(secure=True))
        await discovery.drained()
        with pytest.raises(TimeoutError, match=r"admitted no worker within 0.2 s; refused: "):
            await echo(1)


async def test_call_that_waits_long_for_a_worker_says_so_once(
    discovery: MemoryDiscovery,
    worker: WorkerMetadata,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("wool.runtime.worker.roster.SILENCE", 0.05)
    caplog.set_level(logging.WARNING, "wool.proxy")
    async with WorkerProxy(discovery=discovery.subscriber):
        for expected in (1, 2):
            calls = [asyncio.create_task(pid()) for _ in range(3)]
            await eventually(lambda expected=expected: len(caplog.messages) >= expected)  # type: ignore[misc]
            discovery.tell("worker-added", worker)
            assert await asyncio.gather(*calls) == [worker.pid] * 3
            assert len(caplog.messages) == expected
            discovery.tell("worker-dropped", worker)
            await discovery.drained()
    for message in caplog.messages:
        assert message.endswith(
            " admitted no worker within 0.05 s; none has been discovered; calls wait for one"
        )


async def test_call_times_out_and_says_that_discovery_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing:
        async def __aiter__(self) -> AsyncIterator[DiscoveryEvent]:
            raise OSError("no network")
            yield

    monkeypatch.setattr("wool.runtime.worker.roster.FIRST_WORKER_TIMEOUT", 0.2)
    async with WorkerProxy(discovery=Failing()):
        with pytest.raises(
            TimeoutError, match=r"discovery failed: OSError\('no network'\)"
        ) as info:
            await echo(1)
    assert isinstance(info.value.__cause__, OSError)


# Who is admitted


@pytest.mark.parametrize(
    ("credentials", "ambient", "secure"),
    [(CREDENTIALS, None, True), (None, CREDENTIALS, False), (None, None, False)],
)
async def test_secure_workers_are_for_proxies_with_credentials(
    credentials: WorkerCredentials | None,
    ambient: WorkerCredentials | None,
    secure: bool,
    discovery: MemoryDiscovery,
) -> None:
    """A43: whatever the source; explicit credentials go before those of the surroundings."""
    workers = [made_up(secure=True), made_up(secure=False)]
    with CredentialContext(ambient):
        async with WorkerProxy(discovery=discovery.subscriber, credentials=credentials) as proxy:
            discovery.tell("worker-added", *workers)
            await discovery.drained()
            assert [metadata.secure for metadata in proxy.workers] == [secure]
        async with WorkerProxy(workers=workers, credentials=credentials) as proxy:
            await eventually(lambda: [metadata.secure for metadata in proxy.workers] == [secure])


async def test_credentials_default_to_those_of_the_surroundings() -> None:
    with CredentialContext(CREDENTIALS):
        async with WorkerProxy(workers=[made_up(secure=True), made_up()]) as proxy:
            await eventually(lambda: [metadata.secure for metadata in proxy.workers] == [True])


async def test_workers_of_other_versions_are_refused(discovery: MemoryDiscovery) -> None:
    """A43: an update that makes a worker incompatible puts it out, another one lets it in."""
    odd, fitting = made_up(version="odd"), made_up()
    async with WorkerProxy(discovery=discovery.subscriber, lease=1) as proxy:
        discovery.tell("worker-added", odd, made_up(version="999.0"), fitting)
        await discovery.drained()
        assert proxy.workers == [fitting]
        discovery.tell("worker-updated", made_up(uid=fitting.uid, version="999.0"))
        await discovery.drained()
        assert proxy.workers == []
        discovery.tell("worker-updated", fitting)
        await discovery.drained()
        assert proxy.workers == [fitting]
