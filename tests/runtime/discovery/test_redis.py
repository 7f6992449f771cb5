from __future__ import annotations

import asyncio
import logging
import pickle
import signal
import sys
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import TYPE_CHECKING

import pytest
import redis

import wool
from tests.conformance.discovery import Consumer, make_worker
from tests.redis_server import RedisServer, needs_redis
from tests.runtime.routines import pid
from tests.support import eventually
from wool import LocalWorker, WorkerPool
from wool.runtime import extras
from wool.runtime.discovery.redis import RedisDiscovery, RedisPublisher
from wool.runtime.errors import AdvertiseHostError, LoopbackAdvertisementWarning

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_redis

ANNOUNCER = """
import asyncio, sys
from tests.conformance.discovery import make_worker
from wool.runtime.discovery.redis import RedisDiscovery, RedisPublisher

async def main():
    discovery = RedisDiscovery("test", url=sys.argv[1], lifetime=0.6)
    async with discovery.publisher as publisher:
        await publisher.publish("worker-added", make_worker())
        print("announced", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def discovery(server: RedisServer) -> RedisDiscovery:
    return RedisDiscovery("test", url=server.url, lifetime=0.6)


async def test_workers_of_a_process_that_was_killed_are_dropped(
    discovery: RedisDiscovery, server: RedisServer
) -> None:
    async with Consumer(discovery.subscriber) as consumer:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ANNOUNCER, server.url, stdout=asyncio.subprocess.PIPE
        )
        await consumer.count(1)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await consumer.count(2)
        assert consumer.types == ["worker-added", "worker-dropped"]
    assert server.client().keys() == []


async def test_records_outlive_their_lifetime_while_their_publisher_lives(
    discovery: RedisDiscovery,
) -> None:
    loop = asyncio.get_running_loop()
    async with discovery.publisher as publisher, Consumer(discovery.subscriber) as consumer:
        await publisher.publish("worker-added", make_worker())
        await consumer.count(1)
        end = loop.time() + 4 * 0.6
        await eventually(lambda: loop.time() > end)
        assert consumer.types == ["worker-added"]


async def test_nothing_is_left_on_the_server(
    discovery: RedisDiscovery, server: RedisServer
) -> None:
    async with discovery.publisher as publisher:
        await publisher.publish("worker-added", make_worker())
        await publisher.publish("worker-added", make_worker())
        assert len(server.client().keys()) == 3
    assert server.client().keys() == []


async def test_subscriber_survives_a_server_that_comes_back_empty(
    discovery: RedisDiscovery, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with discovery.publisher as publisher, Consumer(discovery.subscriber) as consumer:
        staying, leaving = make_worker(), make_worker()
        await publisher.publish("worker-added", staying)
        await publisher.publish("worker-added", leaving)
        await consumer.count(2)
        server.stop()
        await eventually(lambda: "does not answer and is tried again" in caplog.text)
        server.start()
        newcomer = make_worker()
        await publisher.publish("worker-added", newcomer)
        await publisher.publish("worker-dropped", leaving)
        await consumer.until(lambda events: len(events) >= 4)
        assert consumer.workers == {staying, newcomer}
        assert len(consumer.events) == 4
    lost = [record for record in caplog.records if "is tried again" in record.getMessage()]
    assert len(lost) == 1


async def test_publisher_without_a_server(discovery: RedisDiscovery, server: RedisServer) -> None:
    server.stop()
    with pytest.raises(redis.ConnectionError, match=f"connecting to 127.0.0.1:{server.port}"):
        async with discovery.publisher:
            pass


async def test_subscriber_without_a_server(discovery: RedisDiscovery, server: RedisServer) -> None:
    server.stop()
    async with aclosing(aiter(discovery.subscriber)) as events:
        for _ in range(2):
            with pytest.raises(redis.ConnectionError, match="connecting to"):
                await anext(events)


async def test_change_that_can_not_be_told_leaves_what_was(
    discovery: RedisDiscovery, server: RedisServer
) -> None:
    async with discovery.publisher as publisher:
        server.stop()
        with pytest.raises(redis.ConnectionError):
            await publisher.publish("worker-added", make_worker())
        assert "0 announced" in repr(publisher)
        server.start()
        await publisher.publish("worker-added", make_worker())
        assert "1 announced" in repr(publisher)


async def test_records_that_can_not_be_read_are_passed_over(
    discovery: RedisDiscovery, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    worker, other = make_worker(), make_worker()
    client = server.client()
    foreign = worker.to_protobuf()
    foreign.wire = 99
    deep = make_worker(extra={"a": 1})
    nested = deep.to_protobuf()
    nested.extra = "[" * 100_000
    records = {
        make_worker().uid.hex: b"\xff\xff\xff",
        "no uid": worker.to_protobuf().SerializeToString(),
        make_worker().uid.hex: worker.to_protobuf().SerializeToString(),
        worker.uid.hex: foreign.SerializeToString(),
        deep.uid.hex: nested.SerializeToString(),
    }
    for uid, record in records.items():
        client.sadd("wool:{test}", uid)
        client.set(f"wool:{{test}}:{uid}", record)
    async with discovery.publisher as publisher, Consumer(discovery.subscriber) as consumer:
        await publisher.publish("worker-added", other)
        await consumer.count(1)
        await eventually(lambda: caplog.text.count("Passing over the record of") == len(records))
        assert consumer.workers == {other}
    assert "wire format 99" in caplog.text


async def test_messages_that_name_nobody_are_passed_over(
    discovery: RedisDiscovery, server: RedisServer
) -> None:
    worker = make_worker()
    async with discovery.publisher as publisher, Consumer(discovery.subscriber) as consumer:
        await publisher.publish("worker-added", make_worker())
        await consumer.count(1)
        for message in (b"\xff\xfe", b"", b"x" * 10_000):
            server.client().publish("wool:{test}", message)
        await publisher.publish("worker-added", worker)
        await consumer.count(2)
        assert consumer.types == ["worker-added"] * 2


async def test_url_may_have_options(server: RedisServer) -> None:
    discovery = RedisDiscovery("test", url=f"{server.url}/1?decode_responses=True&protocol=2")
    assert await announced(discovery, "127.0.0.1:1") == "127.0.0.1:1"


@pytest.mark.parametrize("steps", range(6))
async def test_leaving_that_is_cancelled_leaves_no_connection(
    discovery: RedisDiscovery, server: RedisServer, steps: int
) -> None:
    publisher = discovery.publisher
    await publisher.__aenter__()
    await publisher.publish("worker-added", make_worker())
    leaving = asyncio.create_task(publisher.__aexit__(None, None, None))
    for _ in range(steps + 1):
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    client = server.client()
    await eventually(lambda: client.info("clients")["connected_clients"] == 1)


async def test_everything_travels(discovery: RedisDiscovery) -> None:
    options = wool.runtime.worker.base.ChannelOptions(keepalive_time_ms=12_345)
    worker = make_worker(
        extra={"a": [1, {"b": None}]}, secure=True, identity="farm", options=options
    )
    async with discovery.publisher as publisher, Consumer(discovery.subscriber) as consumer:
        await publisher.publish("worker-added", worker)
        await consumer.count(1)
        assert consumer.workers == {worker}


@pytest.mark.filterwarnings("ignore:A worker on 0.0.0.0 without credentials:RuntimeWarning")
async def test_pools_in_one_namespace_share_workers(server: RedisServer) -> None:
    discovery = RedisDiscovery("pools", url=lambda: server.url)
    async with (
        WorkerPool(size=2, discovery=discovery),
        WorkerPool(discovery=discovery) as pool,
    ):
        await eventually(lambda: "2 admitted" in repr(pool))
        assert len({await pid() for _ in range(4)}) == 2


# Where workers are announced


async def announced(discovery: RedisDiscovery, address: str) -> str:
    async with AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(discovery.publisher)
        consumer = await stack.enter_async_context(Consumer(discovery.subscriber))
        await publisher.publish("worker-added", make_worker(address=address))
        [event] = await consumer.count(1)
        return event.metadata.address


async def test_worker_on_all_interfaces_is_where_the_server_is_reached_from(
    discovery: RedisDiscovery,
) -> None:
    assert await announced(discovery, "0.0.0.0:5000") == "127.0.0.1:5000"


@pytest.mark.parametrize("host", ["worker.farm", lambda: " worker.farm "])
async def test_advertise_host(server: RedisServer, host: str) -> None:
    discovery = RedisDiscovery("test", url=server.url, advertise_host=host)
    assert await announced(discovery, "0.0.0.0:5000") == "worker.farm:5000"
    copy = pickle.loads(pickle.dumps(discovery))
    assert copy == discovery
    assert await announced(copy, "[::1]:5000") == "worker.farm:5000"


async def test_loopback_is_warned_of_unless_the_server_is_there(
    discovery: RedisDiscovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await announced(discovery, "127.0.0.1:5000") == "127.0.0.1:5000"

    async def elsewhere(url: str) -> str:
        return "192.0.2.1"

    monkeypatch.setattr("wool.runtime.discovery.redis._own_address", elsewhere)
    with pytest.warns(LoopbackAdvertisementWarning, match=r"announced at 127\.0\.0\.1, where only"):
        await announced(discovery, "127.0.0.1:5000")
    assert await announced(discovery, "0.0.0.0:5000") == "192.0.2.1:5000"


async def test_worker_on_a_unix_socket(discovery: RedisDiscovery) -> None:
    async with discovery.publisher as publisher:
        with pytest.raises(AdvertiseHostError, match="can't be reached from other hosts"):
            await publisher.publish("worker-added", make_worker(address="unix:/w"))


# Construction and life cycle


@pytest.mark.parametrize("lifetime", [0, -1, 0.05, float("inf"), float("nan")])
def test_lifetime_out_of_range(lifetime: float) -> None:
    with pytest.raises(ValueError, match=r"lifetime must be a number of seconds, 0.1 or more"):
        RedisDiscovery(lifetime=lifetime)


def test_url_of_another_kind() -> None:
    with pytest.raises(ValueError, match="must specify one of the following schemes"):
        RedisDiscovery(url="http://localhost")


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_advertise_host_that_is_none(host: str) -> None:
    with pytest.raises(ValueError, match="advertise_host must be an address or a host's name"):
        RedisDiscovery(advertise_host=host)


def test_extra_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio.connection", None)
    with pytest.raises(ImportError, match=r"install the extra wool\[redis\]"):
        RedisDiscovery()
    with pytest.raises(ImportError, match=r"nothing_like_it can't be imported"):
        extras.need("nothing_like_it", extra="redis")


def test_equality_and_names() -> None:
    assert RedisDiscovery("a") == RedisDiscovery("a")
    assert hash(RedisDiscovery("a")) == hash(RedisDiscovery("a"))
    assert RedisDiscovery("a") != RedisDiscovery("b")
    assert RedisDiscovery("a") != RedisDiscovery("a", url="redis://elsewhere")
    assert RedisDiscovery("a") != "a"
    assert RedisDiscovery().namespace != RedisDiscovery().namespace


def test_password_is_not_shown() -> None:
    discovery = RedisDiscovery("a", url="redis://:secret@localhost")
    for shown in (discovery, discovery._place, discovery.publisher, discovery.subscriber):
        assert "secret" not in repr(shown)


async def test_publisher_is_used_inside_its_context_only(discovery: RedisDiscovery) -> None:
    publisher = discovery.publisher
    with pytest.raises(RuntimeError, match="must be entered before it can publish"):
        await publisher.publish("worker-added", make_worker())
    async with publisher:
        with pytest.raises(RuntimeError, match="is in use; make another one"):
            await publisher.__aenter__()
    with pytest.raises(RuntimeError, match="must be entered before it can publish"):
        await publisher.publish("worker-added", make_worker())


async def test_wrong_password_is_an_error() -> None:
    with RedisServer("--requirepass", "secret") as server:
        wrong = RedisDiscovery("a", url=server.url)
        with pytest.raises(redis.AuthenticationError):
            async with wrong.publisher:
                pass
        right = RedisDiscovery("a", url=server.url.replace("//", "//:secret@"))
        assert await announced(right, "127.0.0.1:1") == "127.0.0.1:1"


async def test_drop_has_the_last_word_over_a_heartbeat_under_way(
    discovery: RedisDiscovery, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, begun, go_on = RedisPublisher._write, asyncio.Event(), asyncio.Event()

    async def slow(self: RedisPublisher, records: dict[str, bytes], *, tell: bool = False) -> None:
        records = dict(records)
        if not tell:
            begun.set()
            await go_on.wait()
        await write(self, records, tell=tell)

    monkeypatch.setattr(RedisPublisher, "_write", slow)
    async with discovery.publisher as publisher:
        worker = make_worker()
        await publisher.publish("worker-added", worker)
        await begun.wait()
        dropping = asyncio.create_task(publisher.publish("worker-dropped", worker))
        await asyncio.wait([dropping], timeout=0.1)
        go_on.set()
        await dropping
        assert server.client().keys() == []


async def test_heartbeat_that_fails_is_logged_once(
    discovery: RedisDiscovery, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "wool.discovery")
    async with discovery.publisher as publisher:
        await publisher.publish("worker-added", make_worker())
        server.stop()
        await eventually(lambda: "can't tell that its workers are alive" in caplog.text)
        server.start()
        await eventually(lambda: len(server.client().keys()) == 2)
    assert len(caplog.records) == 1


async def test_worker_factory_is_told_to_listen_on_all_interfaces(server: RedisServer) -> None:
    hosts: list[str] = []

    def make(*tags: str, host: str = "", credentials: None = None) -> LocalWorker:
        hosts.append(host)
        return LocalWorker(*tags, host="127.0.0.1")

    discovery = RedisDiscovery(url=server.url)
    async with WorkerPool(size=1, discovery=discovery, worker=partial(make)):
        assert hosts == ["0.0.0.0"]
