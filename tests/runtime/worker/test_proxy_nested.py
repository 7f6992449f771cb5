"""Proxies that have travelled: to workers with the calls that routines make, and in pickles."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
import trustme

import wool
from tests.runtime.worker.memory import MemoryDiscovery, made_up
from tests.runtime.worker.routines import echo, pid, proxies, spread, threads
from tests.support import eventually
from wool import LocalWorker, RoundRobinLoadBalancer, WorkerCredentials, WorkerPool, WorkerProxy

if TYPE_CHECKING:
    from uuid import UUID

    from wool.runtime.worker.roster import Roster


@wool.routine
async def seen_there() -> tuple[UUID, int | None, bool, bool, frozenset[UUID]]:
    """What the proxy of this call is like where the call runs."""
    proxy = wool.__proxy__.get()
    assert isinstance(proxy, WorkerProxy)
    return (
        proxy.id,
        proxy.lease,
        proxy.started,
        proxy._credentials is None,
        proxy._reserved,
    )


@wool.routine
async def seen_after_a_call() -> tuple[bool, int]:
    await pid()
    proxy = wool.__proxy__.get()
    assert isinstance(proxy, WorkerProxy)
    return proxy.started, len(proxy.workers)


@wool.routine
async def subscriptions() -> int:
    """How many proxies watch a discovery in this worker."""
    return sum(task.get_name() == "wool sentinel" for task in asyncio.all_tasks())


@wool.routine
async def starts_under_concurrency(calls: int) -> int:
    """How often the proxy of this call is started by that many first calls at once."""
    proxy = wool.__proxy__.get()
    assert isinstance(proxy, WorkerProxy)
    assert not proxy.started
    starts = []
    run = proxy._run

    async def counted() -> Roster:
        starts.append(1)
        return await run()

    proxy._run = counted  # type: ignore[method-assign]
    await asyncio.gather(*(pid() for _ in range(calls)))
    return len(starts)


async def test_proxy_travels_with_its_id_lease_and_reserved_workers() -> None:
    async with WorkerPool(size=1, lease=3):
        proxy = wool.__proxy__.get()
        assert isinstance(proxy, WorkerProxy)
        await eventually(lambda: proxy.workers)
        id, lease, *_, reserved = await seen_there()
        assert (id, lease) == (proxy.id, 4)
        assert reserved == {metadata.uid for metadata in proxy.workers}


async def test_proxy_starts_with_the_first_nested_call() -> None:
    """A32: a task that calls nothing makes its worker subscribe to nothing."""
    async with WorkerPool(size=1):
        assert (await seen_there())[2] is False
        assert await subscriptions() == 0
        assert (await proxies())[1] == 0
        assert await seen_after_a_call() == (True, 1)
        assert await subscriptions() == 1
        assert await proxies() == (1, 1)


async def test_proxy_starts_once_under_concurrency() -> None:
    """A32, A34."""
    async with WorkerPool(size=1):
        assert await starts_under_concurrency(20) == 1
        assert await subscriptions() == 1


async def test_proxy_that_could_not_start_is_tried_again() -> None:
    """A34."""

    class Unsteady:
        def __init__(self) -> None:
            self.attempts = 0

        def __call__(self) -> Any:
            self.attempts += 1
            if self.attempts == 1:
                raise OSError("no network")
            return MemoryDiscovery(*workers).subscriber

    worker = LocalWorker()
    await worker.start()
    try:
        workers = [worker.metadata] if worker.metadata else []
        proxy: WorkerProxy = cloudpickle.loads(cloudpickle.dumps(WorkerProxy("pool")))
        proxy._discovery = Unsteady()
        token = wool.__proxy__.set(proxy)
        with pytest.raises(OSError, match="no network"):
            await echo(1)
        assert [*await asyncio.gather(echo(2), echo(3))] == [2, 3]
        wool.__proxy__.reset(token)
        await proxy.stop()
    finally:
        await worker.stop()


async def test_pickled_proxy_leaves_its_credentials_behind() -> None:
    """Decision 10, instead of A12."""
    credentials = WorkerCredentials(b"the ca", b"the key", b"the cert")
    proxy = WorkerProxy(workers=[made_up()], credentials=credentials, lease=3)
    proxy.reserve([made_up().uid])
    pickled = cloudpickle.dumps(proxy)
    assert b"the key" not in pickled
    copy: WorkerProxy = cloudpickle.loads(pickled)
    assert (copy.id, copy.lease, copy._reserved) == (proxy.id, 3, proxy._reserved)
    assert copy._resolve_credentials() is None
    assert proxy.dump() == proxy.dump()
    assert cloudpickle.loads(proxy.dump()) == proxy


async def test_pickled_proxy_follows_later_pickles_of_itself() -> None:
    proxy = WorkerProxy(workers=[made_up()], lease=3)
    early: WorkerProxy = cloudpickle.loads(proxy.dump())
    uid = made_up().uid
    proxy.reserve([uid])
    late: WorkerProxy = cloudpickle.loads(proxy.dump())
    early.adopt(late)
    assert early._reserved == {uid}
    late.adopt(cloudpickle.loads(cloudpickle.dumps(WorkerProxy(workers=[made_up()]))))
    assert late._reserved == {uid}


async def test_worker_that_hosts_nested_proxies_stops_cleanly() -> None:
    """A41, A56."""
    worker = LocalWorker()
    await worker.start()
    assert worker.metadata is not None
    for _ in range(3):
        async with WorkerProxy(discovery=MemoryDiscovery(worker.metadata).subscriber):
            assert (await spread(3))[1] == {worker.metadata.pid}
    async with WorkerProxy(workers=[worker.metadata]):
        assert await seen_after_a_call() == (True, 1)
        assert await proxies() == (4, 4)
    assert worker._process._process is not None
    await worker.stop()
    assert await worker._process._process.wait() == 0


async def test_nested_proxies_end_when_they_are_not_used() -> None:
    """A41, A59: what watches and connects for them goes, too."""
    worker = LocalWorker(proxy_pool_ttl=0.2)
    await worker.start()
    assert worker.metadata is not None
    try:
        async with WorkerProxy(workers=[worker.metadata]):
            await echo(1)
            quiet = sorted(await threads())
            for _ in range(3):
                async with WorkerProxy(discovery=MemoryDiscovery(worker.metadata).subscriber):
                    assert await seen_after_a_call() == (True, 1)
            async with asyncio.timeout(30):
                while await proxies() != (1, 0):
                    pass
            assert await subscriptions() == 0
            # gRPC's own thread comes with the first channel and stays for the loop.
            more = [name for name in await threads() if "_poll_wrapper" not in name]
            assert sorted(more) == [name for name in quiet if "_poll_wrapper" not in name]
    finally:
        await worker.stop()


# TLS


@pytest.fixture(scope="module")
def credentials() -> WorkerCredentials:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1", "::1")
    return WorkerCredentials(
        authority.cert_pem.bytes(),
        certificate.private_key_pem.bytes(),
        certificate.cert_chain_pems[0].bytes(),
    )


def on_tcp(*tags: str, credentials: WorkerCredentials | None = None) -> LocalWorker:
    return LocalWorker(*tags, host="127.0.0.1", credentials=credentials)


@pytest.mark.parametrize("worker", [on_tcp, LocalWorker])
async def test_pool_with_credentials(worker: Any, credentials: WorkerCredentials) -> None:
    """Nested calls use those of the worker they are made in; others keep away."""
    async with WorkerPool(size=2, worker=worker, credentials=credentials) as pool:
        proxy = wool.__proxy__.get()
        assert isinstance(proxy, WorkerProxy)
        await eventually(lambda: len(proxy.workers) == 2)
        assert all(metadata.secure for metadata in proxy.workers)
        here, there = await spread(8)
        assert there == {metadata.pid for metadata in proxy.workers}
        assert here in there
        async with WorkerProxy(pool.namespace, credentials=None) as insecure:
            running = insecure._running
            assert running is not None
            await eventually(lambda: len(running.membership.refused) == 2)
            assert insecure.workers == []
        assert await echo("still here") == "still here"


async def test_certificate_of_another_authority_is_an_error_with_its_reason(
    credentials: WorkerCredentials,
) -> None:
    """A65: the caller is told, and the worker is benched, not forgotten."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    stranger = WorkerCredentials(
        authority.cert_pem.bytes(),
        issued.private_key_pem.bytes(),
        issued.cert_chain_pems[0].bytes(),
    )
    worker = on_tcp(credentials=credentials)
    await worker.start()
    assert worker.metadata is not None
    try:
        async with WorkerProxy(workers=[worker.metadata], credentials=stranger):
            with pytest.raises(wool.NoWorkersAvailable, match=r"(?i)handshake|certificate|ssl"):
                await echo(1)
            with pytest.raises(wool.NoWorkersAvailable, match=r"(?i)handshake|certificate|ssl"):
                await echo(2)
        async with WorkerProxy(workers=[worker.metadata], credentials=credentials):
            assert await pid() == worker.metadata.pid
    finally:
        await worker.stop()


async def test_balancer_of_a_proxy_travels_with_it() -> None:
    async with WorkerPool(size=2, loadbalancer=RoundRobinLoadBalancer()):
        assert len((await spread(8))[1]) == 2
