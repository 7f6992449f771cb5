from __future__ import annotations

import asyncio
import pickle
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import dns.exception
import dns.rcode
import pytest

import wool
from tests.conformance.discovery import Consumer
from tests.dns_server import NameServer
from tests.runtime.routines import pid
from tests.runtime.worker.routines import echo
from tests.support import eventually
from wool import DiscoveryLike, DiscoveryPublisherLike, LocalWorker, WorkerPool
from wool.runtime.discovery.dns import DnsDiscovery
from wool.runtime.worker.base import ChannelOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NAME = "workers.farm.svc"


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    async with NameServer() as server:
        yield server


def at(server: NameServer, name: str = NAME, port: int | None = 5000, **more: Any) -> DnsDiscovery:
    return DnsDiscovery(name, port, nameserver=server.address, interval=0.05, **more)


def found(consumer: Consumer) -> set[str]:
    return {worker.address for worker in consumer.workers}


async def test_addresses_are_followed(server: NameServer) -> None:
    server.records[NAME, "A"] = ["192.0.2.1", "192.0.2.2"]
    async with Consumer(at(server).subscriber) as consumer:
        await consumer.count(2)
        assert found(consumer) == {"192.0.2.1:5000", "192.0.2.2:5000"}
        server.records[NAME, "A"] = ["192.0.2.2", "192.0.2.3"]
        await consumer.count(4)
        assert found(consumer) == {"192.0.2.2:5000", "192.0.2.3:5000"}
        asked = server.asked
        await eventually(lambda: server.asked > asked + 3)
        assert len(consumer.events) == 4


async def test_addresses_of_ipv6_count_where_there_are_no_others(server: NameServer) -> None:
    server.records[NAME, "AAAA"] = ["2001:db8::1"]
    async with Consumer(at(server).subscriber) as consumer:
        await consumer.count(1)
        assert found(consumer) == {"[2001:db8::1]:5000"}
        server.records[NAME, "A"] = ["192.0.2.1"]
        await consumer.count(3)
        assert found(consumer) == {"192.0.2.1:5000"}


async def test_services_are_followed(server: NameServer) -> None:
    name = "_wool._tcp.farm"
    server.records[name, "SRV"] = ["0 0 5001 a.farm.", "9 0 5002 b.farm."]
    async with Consumer(at(server, name, None).subscriber) as consumer:
        await consumer.count(2)
        assert found(consumer) == {"a.farm:5001", "b.farm:5002"}
        server.records[name, "SRV"] = ["0 0 0 ."]
        await consumer.count(4)
        assert found(consumer) == set()


async def test_name_may_come_and_go(server: NameServer) -> None:
    async with Consumer(at(server).subscriber) as consumer:
        await eventually(lambda: server.asked > 2)
        server.records[NAME, "A"] = ["192.0.2.1"]
        await consumer.count(1)
        server.records.clear()
        await consumer.count(2)
        assert consumer.types == ["worker-added", "worker-dropped"]


async def test_workers_are_kept_while_there_is_no_answer(
    server: NameServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.records[NAME, "A"] = ["192.0.2.1"]
    async with Consumer(at(server).subscriber) as consumer:
        await consumer.count(1)
        server.failure = dns.rcode.SERVFAIL
        asked = server.asked
        await eventually(lambda: server.asked > asked + 3)
        server.records[NAME, "A"] = ["192.0.2.1", "192.0.2.2"]
        server.failure = None
        await consumer.count(2)
        assert consumer.types == ["worker-added"] * 2
    assert caplog.text.count("No answer for 'workers.farm.svc'; its workers are kept") == 1


async def test_first_question_without_an_answer(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wool.runtime.discovery.dns.ANSWER_TIMEOUT", 0.2)
    server.silent = True
    async with aclosing(aiter(at(server).subscriber)) as events:
        with pytest.raises(dns.exception.Timeout):
            await anext(events)


async def test_what_workers_are_like(server: NameServer) -> None:
    server.records[NAME, "A"] = ["192.0.2.1"]
    options = ChannelOptions(keepalive_time_ms=12_345)
    discovery = at(server, tags=["gpu"], secure=True, identity="farm", options=options)
    subscriber = discovery.subscriber
    async with (
        Consumer(subscriber) as consumer,
        Consumer(pickle.loads(pickle.dumps(subscriber))) as copy,
    ):
        [event] = await consumer.count(1)
        assert await copy.count(1) == [event]
        worker = event.metadata
    assert (worker.tags, worker.secure, worker.identity) == (frozenset({"gpu"}), True, "farm")
    assert worker.options == options
    assert worker.version == wool.__version__


async def test_filter(server: NameServer) -> None:
    server.records[NAME, "A"] = ["192.0.2.1", "192.0.2.2"]
    discovery = at(server, filter=lambda worker: worker.address.startswith("192.0.2.2:"))
    copy = pickle.loads(pickle.dumps(discovery))
    for subscriber in (discovery.subscriber, copy.subscriber):
        async with Consumer(subscriber) as consumer:
            await consumer.count(1)
            assert found(consumer) == {"192.0.2.2:5000"}


@wool.routine
async def nested() -> int:
    return await pid()


async def test_pool_calls_the_workers_at_a_name(server: NameServer) -> None:
    workers = [LocalWorker(host=f"127.0.0.{i}", port=0) for i in (1, 2)]
    await workers[0].start()
    assert workers[0].address is not None
    port = int(workers[0].address.rpartition(":")[2])
    other = LocalWorker(host="127.0.0.2", port=port)
    await other.start()
    server.records[NAME, "A"] = ["127.0.0.1", "127.0.0.2"]
    async with WorkerPool(discovery=at(server, port=port)) as pool:
        await eventually(lambda: "2 admitted" in repr(pool))
        pids = {await pid() for _ in range(4)}
        assert len(pids) == 2
        assert {await nested() for _ in range(4)} == pids
        server.records[NAME, "A"] = ["127.0.0.2"]
        await eventually(lambda: "1 admitted" in repr(pool))
        assert other.metadata is not None
        assert {await pid() for _ in range(4)} == {other.metadata.pid}
        assert await echo("still") == "still"
    await workers[0].stop()
    await other.stop()


# Announcing


async def test_nothing_can_be_announced(server: NameServer) -> None:
    discovery = at(server)
    assert isinstance(discovery, DiscoveryLike)
    assert isinstance(discovery.publisher, DiscoveryPublisherLike)
    with pytest.raises(RuntimeError, match="Workers can't be announced in the DNS"):
        async with WorkerPool(size=1, discovery=discovery):
            pass
    with pytest.raises(RuntimeError, match="Workers can't be announced in the DNS"):
        await discovery.publisher.publish("worker-added", None)  # type: ignore[arg-type]


# Construction


@pytest.mark.parametrize("name", ["", ".", "a..b", "a" * 64])
def test_name_that_is_none(name: str) -> None:
    with pytest.raises(ValueError, match="is not a name in the DNS"):
        DnsDiscovery(name, 1)


@pytest.mark.parametrize("port", [0, -1, 65536, True, "53"])
def test_port_out_of_range(port: Any) -> None:
    with pytest.raises(ValueError, match=r"port must be in 1\.\.65535"):
        DnsDiscovery(NAME, port)


@pytest.mark.parametrize("interval", [0, -1, float("inf"), float("nan")])
def test_interval_out_of_range(interval: float) -> None:
    with pytest.raises(ValueError, match="interval must be a positive number of seconds"):
        DnsDiscovery(NAME, 1, interval=interval)


@pytest.mark.parametrize(
    "nameserver",
    ["", "localhost", "127.0.0.1:x", "127.0.0.1:", "127.0.0.1:99999", "[::1]x", "[::1]53", "::1:x"],
)
def test_nameserver_that_is_none(nameserver: str) -> None:
    with pytest.raises(ValueError, match="nameserver must be an IP address"):
        DnsDiscovery(NAME, 1, nameserver=nameserver)


@pytest.mark.parametrize(
    "nameserver", ["127.0.0.1", "127.0.0.1:8600", "::1", "[::1]:8600", "[::1]"]
)
def test_nameserver(nameserver: str) -> None:
    DnsDiscovery(NAME, 1, nameserver=nameserver)


def test_tags_are_several_and_an_identity_is_a_name() -> None:
    with pytest.raises(ValueError, match="tags must be several strings"):
        DnsDiscovery(NAME, 1, tags="gpu")
    with pytest.raises(TypeError, match="identity must be a name, or None, got 5"):
        DnsDiscovery(NAME, 1, identity=5)  # type: ignore[arg-type]


def test_extra_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dns.name", None)
    with pytest.raises(ImportError, match=r"install the extra wool\[dns\]"):
        DnsDiscovery(NAME)


def test_equality_and_names() -> None:
    assert DnsDiscovery(NAME, 1) == DnsDiscovery(NAME, 1)
    assert hash(DnsDiscovery(NAME, 1)) == hash(DnsDiscovery(NAME, 1))
    assert DnsDiscovery(NAME, 1) != DnsDiscovery(NAME)
    assert DnsDiscovery(NAME) != NAME
    assert repr(DnsDiscovery(NAME)) == f"<DnsDiscovery '{NAME}' SRV>"
    assert repr(DnsDiscovery(NAME, 1).subscriber) == f"<DnsDiscovery.Subscriber '{NAME}'>"


async def test_system_name_servers_are_asked_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()

    async def resolve(self: object, name: str, kind: str, **options: object) -> list[object]:
        asked.set()
        return []

    monkeypatch.setattr("dns.asyncresolver.Resolver.resolve", resolve)
    async with Consumer(DnsDiscovery(NAME, 1).subscriber):
        await asked.wait()
