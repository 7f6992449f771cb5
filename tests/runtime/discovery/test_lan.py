"""Discovery by real multicast DNS, on this host's own interfaces."""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
import threading
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psutil
import pytest
from zeroconf import ServiceInfo

import wool
from tests.conformance.discovery import Consumer, make_worker
from tests.support import eventually
from wool.runtime.discovery import txt
from wool.runtime.discovery.lan import LanDiscovery, LanPublisher, service_type
from wool.runtime.worker.base import ChannelOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.filterwarnings("ignore::wool.LoopbackAdvertisementWarning")


@pytest.fixture
def discovery() -> LanDiscovery:
    return LanDiscovery(f"test-{uuid4()}")


@pytest.fixture
async def publisher(discovery: LanDiscovery) -> AsyncIterator[LanPublisher]:
    async with discovery.publisher as publisher:
        yield publisher


@asynccontextmanager
async def announced(
    publisher: LanPublisher, name: str, properties: dict[str, Any], **changes: Any
) -> AsyncIterator[None]:
    """A record as somebody else may put it on the network."""
    fields: dict[str, Any] = {"parsed_addresses": ["127.0.0.1"], "port": 50051} | changes
    info = ServiceInfo(
        publisher.service_type,
        f"{name}.{publisher.service_type}",
        properties=properties,
        server=f"{name}.local.",
        **fields,
    )
    assert publisher.aiozc is not None
    await publisher.aiozc.async_register_service(info, cooperating_responders=True)
    yield


def test_service_type_stands_for_the_namespace() -> None:
    assert service_type("a namespace") == LanDiscovery("a namespace").service_type
    assert service_type("a namespace") != service_type("another")
    assert service_type("pool") == "_wool-b10a8c._tcp.local."


def test_namespace_of_its_own() -> None:
    first, second = LanDiscovery(), LanDiscovery()
    assert first != second
    assert first.namespace.startswith("pool-")
    assert LanDiscovery("n") == LanDiscovery("n")
    assert hash(LanDiscovery("n")) == hash(LanDiscovery("n"))
    assert LanDiscovery("n") != "n"
    assert "'n'" in repr(LanDiscovery("n"))


def test_it_can_be_pickled() -> None:
    port = 5
    discovery = LanDiscovery(
        "n", advertise_host=lambda: "192.0.2.1", filter=lambda worker: worker.pid == port
    )
    copy = pickle.loads(pickle.dumps(discovery))
    assert copy == discovery
    assert copy.publisher._advertise_host() == "192.0.2.1"
    assert copy.subscriber.filter(make_worker(pid=5))
    assert not copy.subscriber.filter(make_worker(pid=6))


def test_workers_must_listen_on_all_interfaces() -> None:
    assert LanDiscovery("n").publisher.bind_host == "0.0.0.0"


async def test_everything_a_worker_says_arrives(
    discovery: LanDiscovery, publisher: LanPublisher
) -> None:
    worker = make_worker(
        tags=frozenset({"gpu", "größe"}),
        extra={"zone": "a", "slots": [1, 2]},
        secure=True,
        options=ChannelOptions(max_receive_message_length=5, compression=2),
    )
    async with Consumer(discovery.subscriber) as consumer:
        await publisher.publish("worker-added", worker)
        (event,) = await consumer.count(1)
    assert event.metadata == worker


async def test_several_addresses_and_ipv6(discovery: LanDiscovery, publisher: LanPublisher) -> None:
    worker = make_worker()
    properties = txt.encode(worker)
    name = str(worker.uid)
    async with (
        announced(publisher, name, properties, parsed_addresses=["2001:db8::1", "198.51.100.1"]),
        Consumer(discovery.subscriber) as consumer,
    ):
        (event,) = await consumer.count(1)
    assert event.metadata == replace(worker, address="198.51.100.1:50051")


async def test_worker_with_an_ipv6_address_alone(
    discovery: LanDiscovery, publisher: LanPublisher
) -> None:
    """A78."""
    worker = make_worker(address="[2001:db8::1]:50051")
    async with Consumer(discovery.subscriber) as consumer:
        await publisher.publish("worker-added", worker)
        (event,) = await consumer.count(1)
    assert event.metadata == worker


async def test_worker_on_all_interfaces_is_announced_where_others_reach_it(
    publisher: LanPublisher,
) -> None:
    """A77: what is announced is never a wildcard."""
    worker = make_worker(address="0.0.0.0:50051")
    try:
        await publisher.publish("worker-added", worker)
    except wool.AdvertiseHostError:
        pytest.skip("no interface of this host has an address that others can reach")
    addresses = publisher.services[str(worker.uid)].parsed_addresses()
    assert addresses
    assert not {"0.0.0.0", "::", "127.0.0.1", "::1"} & set(addresses)


async def test_advertise_host(discovery: LanDiscovery) -> None:
    hosts = iter(["192.0.2.1", "192.0.2.2"])
    discovery = LanDiscovery(discovery.namespace, advertise_host=lambda: next(hosts))
    worker = make_worker(address="0.0.0.0:50051")
    async with discovery.publisher as publisher, Consumer(discovery.subscriber) as consumer:
        await publisher.publish("worker-added", worker)
        await consumer.count(1)
        await publisher.publish("worker-updated", worker)
        await consumer.count(2)
    assert [event.metadata.address for event in consumer.events] == [
        "192.0.2.1:50051",
        "192.0.2.2:50051",
    ]


async def test_worker_on_a_unix_socket_can_not_be_announced(publisher: LanPublisher) -> None:
    with pytest.raises(wool.AdvertiseHostError, match="give it a host and a port"):
        await publisher.publish("worker-added", make_worker(address="unix:/run/wool/s"))
    assert publisher.services == {}


async def test_update_of_an_unknown_worker_adds_it(
    discovery: LanDiscovery, publisher: LanPublisher
) -> None:
    worker = make_worker()
    async with Consumer(discovery.subscriber) as consumer:
        await publisher.publish("worker-updated", worker)
        await consumer.count(1)
    assert consumer.types == ["worker-added"]


async def test_record_that_is_too_long_leaves_the_former_one(
    discovery: LanDiscovery, publisher: LanPublisher
) -> None:
    worker = make_worker()
    async with Consumer(discovery.subscriber) as consumer:
        await publisher.publish("worker-added", worker)
        await consumer.count(1)
        with pytest.raises(ValueError, match="The extra of worker"):
            await publisher.publish("worker-updated", replace(worker, extra={"x": "x" * 300}))
        changed = replace(worker, extra={"x": "y"})
        await publisher.publish("worker-updated", changed)
        await consumer.count(2)
    assert [event.metadata for event in consumer.events] == [worker, changed]


async def test_records_that_are_no_workers_of_ours_are_passed_over(
    discovery: LanDiscovery, publisher: LanPublisher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "wool.discovery")
    published = {"pid": "1", "version": "0.15.7", "secure": "false"}
    worker = make_worker()
    broken = txt.encode(worker) | {"tags": "{"}
    async with (
        announced(publisher, str(uuid4()), published),
        announced(publisher, str(uuid4()), broken),
        announced(publisher, "not-a-uid", txt.encode(worker)),
        Consumer(discovery.subscriber) as consumer,
    ):
        await publisher.publish("worker-added", worker)
        await consumer.count(1)
        await eventually(lambda: len(caplog.records) >= 3)
    assert consumer.workers == {worker}
    levels = sorted(record.levelname for record in caplog.records)
    assert levels == ["DEBUG", "WARNING", "WARNING"]


async def test_publisher_that_is_left_says_goodbye(discovery: LanDiscovery) -> None:
    worker = make_worker()
    async with Consumer(discovery.subscriber) as consumer:
        async with discovery.publisher as publisher:
            await publisher.publish("worker-added", worker)
            await consumer.count(1)
        await consumer.count(2)
    assert consumer.types == ["worker-added", "worker-dropped"]


async def test_publisher_must_be_entered_once() -> None:
    publisher = LanDiscovery().publisher
    with pytest.raises(RuntimeError, match="Publisher not properly initialized"):
        await publisher.publish("worker-added", make_worker())
    async with publisher:
        with pytest.raises(RuntimeError, match="in use"):
            await publisher.__aenter__()
    await publisher.__aexit__(None, None, None)


async def test_closing_leaves_nothing(discovery: LanDiscovery) -> None:
    process = psutil.Process()
    threads, descriptors = threading.active_count(), process.num_fds()
    iterator = aiter(discovery.subscriber)
    async with discovery.publisher as publisher:
        await publisher.publish("worker-added", make_worker())
        await anext(iterator)
        waiting = asyncio.create_task(anext(iterator))
        await asyncio.sleep(0)
        await iterator.aclose()
        with pytest.raises(StopAsyncIteration):
            await waiting
    with pytest.raises(StopAsyncIteration):
        await anext(iterator)
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    assert threading.active_count() == threads
    assert process.num_fds() == descriptors


async def test_iteration_that_is_dropped_is_closed(
    discovery: LanDiscovery, publisher: LanPublisher
) -> None:
    process = psutil.Process()
    descriptors = process.num_fds()
    await publisher.publish("worker-added", make_worker())
    iterator = aiter(discovery.subscriber)
    await anext(iterator)
    assert process.num_fds() > descriptors
    del iterator
    gc.collect()
    await eventually(lambda: process.num_fds() == descriptors)
    await eventually(lambda: len(asyncio.all_tasks()) == 1)


async def test_wait_that_is_cancelled_harms_no_iteration(
    discovery: LanDiscovery, publisher: LanPublisher
) -> None:
    iterator = aiter(discovery.subscriber)
    for _ in range(3):
        waiting = asyncio.create_task(anext(iterator))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    worker = make_worker()
    await publisher.publish("worker-added", worker)
    assert (await anext(iterator)).metadata == worker
    await iterator.aclose()


@wool.routine
async def double(value: int) -> int:
    return 2 * value


@wool.routine
async def nested(value: int) -> int:
    return sum([await double(value) for _ in range(4)])


@pytest.mark.filterwarnings("ignore:A worker on 0.0.0.0 without credentials:RuntimeWarning")
async def test_pool_meets_a_pool(discovery: LanDiscovery) -> None:
    """A pool of two, and one that has none of its own and may use one of them."""
    discovery = LanDiscovery(discovery.namespace, advertise_host="127.0.0.1")
    async with (
        wool.WorkerPool(size=2, discovery=discovery),
        wool.WorkerPool(discovery=discovery, lease=1),
    ):
        proxy = wool.__proxy__.get()
        assert isinstance(proxy, wool.WorkerProxy)
        assert await nested(3) == 24
        assert len(proxy.workers) == 1
        assert proxy.workers[0].address.startswith("127.0.0.1:")
