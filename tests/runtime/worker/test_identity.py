"""Workers that are known by a name instead of by their address."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import wool
from tests.runtime.worker.memory import MemoryDiscovery, made_up
from tests.runtime.worker.routines import pid
from tests.runtime.worker.test_handshake import issue
from wool import (
    LocalDiscovery,
    LocalWorker,
    NoWorkersAvailable,
    WorkerConnection,
    WorkerMetadata,
    WorkerPool,
    WorkerProxy,
)
from wool.runtime.errors import IneffectiveIdentityWarning

if TYPE_CHECKING:
    from wool.runtime.worker.base import WorkerLike

# For a name that no address resolves to: a client that is called by address finds no match.
NAMED = issue("worker.farm")


@wool.routine
async def inner() -> int:
    return await pid()


async def test_certificate_is_for_the_identity_instead_of_the_address() -> None:
    provider = NAMED.as_provider(peers="worker.farm")
    make = partial(LocalWorker, host="127.0.0.1")
    async with WorkerPool(size=2, worker=make, credentials=provider, identity="worker.farm"):
        assert len({await pid() for _ in range(4)}) == 2
        assert len({await inner() for _ in range(8)}) == 2


async def test_identity_on_a_unix_socket() -> None:
    provider = NAMED.as_provider(peers="worker.farm")
    async with WorkerPool(size=1, credentials=provider, identity="worker.farm"):
        assert await pid() == await inner()


async def test_without_peers_the_address_counts() -> None:
    worker = LocalWorker(host="127.0.0.1", credentials=NAMED, identity="worker.farm")
    await worker.start()
    assert worker.metadata is not None
    assert worker.metadata.identity == "worker.farm"
    async with WorkerProxy(workers=[worker.metadata], credentials=NAMED):
        with pytest.raises(NoWorkersAvailable, match=r"for another name than '127\.0\.0\.1'"):
            await pid()
    async with WorkerProxy(
        workers=[worker.metadata], credentials=NAMED.as_provider(peers=["worker.farm", "x"])
    ):
        assert await pid() == worker.metadata.pid
    await worker.stop()


async def test_identity_that_the_certificate_is_not_for() -> None:
    worker = LocalWorker(host="127.0.0.1", credentials=issue("127.0.0.1"), identity="worker.farm")
    await worker.start()
    assert worker.metadata is not None
    async with WorkerProxy(
        workers=[worker.metadata], credentials=NAMED.as_provider(peers="worker.farm")
    ):
        with pytest.raises(NoWorkersAvailable, match=r"for another name than 'worker\.farm'"):
            await pid()
    await worker.stop()


async def test_only_peers_are_admitted() -> None:
    discovery = MemoryDiscovery()
    provider = NAMED.as_provider(peers={"a", "b"})
    async with WorkerProxy(discovery=discovery.subscriber, credentials=provider) as proxy:
        a, b, c, nameless = (
            made_up(secure=True, identity=identity) for identity in ("a", "b", "c", None)
        )
        discovery.tell("worker-added", a, c, nameless, b)
        await discovery.drained()
        assert proxy.workers == [a, b]
        renamed = made_up(uid=a.uid, secure=True, identity="c")
        discovery.tell("worker-updated", renamed)
        await discovery.drained()
        assert proxy.workers == [b]
        discovery.tell("worker-updated", a)
        await discovery.drained()
        assert proxy.workers == [b, a]


def test_connection_of_another_identity_does_not_fit() -> None:
    provider = NAMED.as_provider(peers={"a", "b"})
    metadata = made_up(secure=True, identity="a")
    connection = WorkerConnection(metadata.address, credentials=provider, metadata=metadata)
    assert connection.fits(metadata)
    assert not connection.fits(made_up(secure=True, identity="b"))
    nobody = made_up(uid=metadata.uid, secure=True)
    anonymous = WorkerConnection(metadata.address, credentials=provider, metadata=nobody)
    assert anonymous.fits(nobody)
    assert not anonymous.fits(metadata)
    by_address = WorkerConnection(metadata.address, credentials=NAMED, metadata=metadata)
    assert by_address.fits(made_up(secure=True, identity="b"))


async def test_failed_verification_names_what_was_expected_once() -> None:
    provider = NAMED.as_provider(peers="worker.barn")
    worker = LocalWorker(host="127.0.0.1", credentials=NAMED, identity="worker.barn")
    await worker.start()
    assert worker.metadata is not None
    async with WorkerProxy(workers=[worker.metadata], credentials=provider):
        with pytest.raises(NoWorkersAvailable) as caught:
            await pid()
    assert str(caught.value).count("is for another name than 'worker.barn'") == 1
    await worker.stop()


@pytest.mark.parametrize("identity", [None, "worker.farm"])
async def test_worker_with_a_certificate_for_elsewhere_stops_as_any_other(
    identity: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    worker = LocalWorker(host="0.0.0.0", credentials=issue("192.0.2.1"), identity=identity)
    await worker.start()
    await worker.stop()
    assert await worker.wait() == "its process exited with code 0"
    assert caplog.text == ""


def test_peer_needs_credentials() -> None:
    with pytest.raises(ValueError, match="peer 'a' needs credentials"):
        WorkerConnection("127.0.0.1:1", peer="a")


@pytest.mark.parametrize("blank", ["", "  ", None])
def test_blank_identity_is_none(blank: str | None) -> None:
    assert made_up(identity=blank).identity is None
    assert WorkerMetadata.from_protobuf(made_up(identity=blank).to_protobuf()).identity is None


# What a pool says of it


@pytest.mark.parametrize("make", [WorkerPool, LocalWorker])
def test_identity_needs_credentials(make: Any) -> None:
    with pytest.raises(ValueError, match="identity 'a' needs credentials"):
        make(identity="a")
    with pytest.raises(ValueError, match="identity must be a name, or None, not blank"):
        make(identity=" ", credentials=NAMED)


@pytest.mark.parametrize("identity", [{}, {"identity": None}, {"identity": "b"}])
def test_pool_that_would_not_call_its_own_workers(identity: dict[str, Any]) -> None:
    provider = NAMED.as_provider(peers="a")
    with pytest.raises(
        ValueError, match=r"would have the identity .*, but its credentials are for "
    ):
        WorkerPool(size=1, credentials=provider, **identity)
    with pytest.warns(IneffectiveIdentityWarning, match="workers of identity 'a'"):
        WorkerPool(size=1, credentials=provider, discovery=LocalDiscovery("x"), **identity)


def plain(*tags: str, credentials: object = None) -> WorkerLike:
    raise NotImplementedError


def test_factory_that_does_not_take_an_identity() -> None:
    with pytest.warns(IneffectiveIdentityWarning, match="'a' is not passed on: <function plain"):
        WorkerPool(size=1, credentials=NAMED, identity="a", worker=plain)
    bound = partial(LocalWorker, identity="b")
    with pytest.warns(IneffectiveIdentityWarning, match="is not passed on: functools"):
        WorkerPool(size=1, credentials=NAMED, identity="a", worker=bound)


def test_pool_without_workers_of_its_own() -> None:
    with pytest.warns(IneffectiveIdentityWarning, match="workers of the pool's own, and it has"):
        WorkerPool(discovery=LocalDiscovery("x"), credentials=NAMED, identity="a")


def test_identity_of_another_type() -> None:
    with pytest.raises(TypeError, match="identity must be a name, or None, got 5"):
        WorkerPool(size=1, credentials=NAMED, identity=5)  # type: ignore[arg-type]


def test_pool_keeps_quiet_about_what_is_in_order() -> None:
    provider = NAMED.as_provider(peers="a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WorkerPool(size=1, credentials=provider, identity="a")
        WorkerPool(size=1, credentials=NAMED, identity="anything")
        WorkerPool(size=1, credentials=provider, worker=partial(LocalWorker, identity="a"))
        WorkerPool(credentials=provider, discovery=LocalDiscovery("x"))
