# ruff: noqa: ASYNC240 (a look at a directory in memory blocks nobody)

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import pickle
import signal
import sys
import threading
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance.discovery import Consumer, gpu, make_worker
from tests.runtime.discovery.announcer import ROOT, Announcer
from tests.support import eventually
from wool.runtime.discovery import local, records
from wool.runtime.discovery.base import Discovery, DiscoveryLike
from wool.runtime.discovery.local import LocalDiscovery, LocalIteration
from wool.runtime.discovery.records import Directory
from wool.runtime.discovery.watch import Hub, Listener, hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from wool.runtime.discovery.descriptors import Descriptor
    from wool.runtime.worker.metadata import WorkerMetadata

NEVER = 1e6 if sys.platform == "linux" else 1.0
"""Seconds between rescans where a test must not be saved by one, if the system reports deaths."""


@pytest.fixture
def namespace() -> Iterator[str]:
    namespace = f"test-{uuid4()}"
    yield namespace
    Directory(namespace).sweep()  # Tests may kill processes that nobody is left to bury.


@pytest.fixture
def discovery(namespace: str) -> LocalDiscovery:
    return LocalDiscovery(namespace)


@pytest.fixture
async def publisher(discovery: LocalDiscovery) -> AsyncIterator[LocalDiscovery.Publisher]:
    async with discovery.publisher as publisher:
        yield publisher


@pytest.fixture
async def consumer(discovery: LocalDiscovery) -> AsyncIterator[Consumer]:
    """Of what is told, not of what a rescan finds."""
    async with Consumer(discovery.subscribe(poll_interval=NEVER)) as consumer:
        yield consumer


@pytest.fixture
def announcer(namespace: str) -> Iterator[Announcer]:
    with Announcer(namespace) as announcer:
        yield announcer


@pytest.fixture
def path(namespace: str) -> Path:
    return Path(Directory(namespace).path)


async def watched(discovery: LocalDiscovery) -> None:
    await eventually(lambda: Directory(discovery.namespace).path in hub._watches)


def there(consumer: Consumer, *workers: WorkerMetadata) -> Callable[[object], bool]:
    """Whether these and no others are there, as far as the consumer knows."""
    return lambda _: consumer.workers == set(workers)


def watching_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread is not threading.main_thread()]


class TestLocalDiscovery:
    def test_is_discovery(self, discovery: LocalDiscovery) -> None:
        like: DiscoveryLike = discovery

        assert isinstance(like, Discovery)
        assert isinstance(like, DiscoveryLike)

    def test_namespace_made_up(self) -> None:
        one, other = LocalDiscovery(), LocalDiscovery()

        assert one.namespace.startswith("workerpool-")
        assert len(one.namespace) == len("workerpool-") + 32
        assert one != other

    def test_equality_is_of_the_namespace(self) -> None:
        assert LocalDiscovery("a") == LocalDiscovery("a", filter=gpu)
        assert hash(LocalDiscovery("a")) == hash(LocalDiscovery("a"))
        assert LocalDiscovery("a") != LocalDiscovery("b")
        assert LocalDiscovery("a") != "a"

    def test_repr_names_namespace(self) -> None:
        discovery = LocalDiscovery("a")

        assert repr(discovery) == "<LocalDiscovery 'a'>"
        assert repr(discovery.publisher) == "<LocalDiscovery.Publisher 'a' 0 announced>"
        assert repr(discovery.subscriber) == "<LocalDiscovery.Subscriber 'a'>"

    @pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf")])
    def test_poll_interval_out_of_range(self, discovery: LocalDiscovery, interval: float) -> None:
        """A76: refused when it is given, by name and value."""
        with pytest.raises(ValueError, match=f"poll_interval must be .* got {interval}"):
            discovery.subscribe(poll_interval=interval)
        with pytest.raises(ValueError, match="poll_interval"):
            LocalDiscovery.Subscriber("a", poll_interval=interval)

    def test_poll_interval_default(self, discovery: LocalDiscovery) -> None:
        assert discovery.subscriber.poll_interval == local.POLL_INTERVAL

    async def test_filter_of_the_subscription_wins(
        self, namespace: str, publisher: LocalDiscovery.Publisher
    ) -> None:
        discovery = LocalDiscovery(namespace, filter=gpu)
        with_gpu, without = make_worker(), make_worker(tags=frozenset())
        await publisher.publish("worker-added", with_gpu)
        await publisher.publish("worker-added", without)

        async with Consumer(discovery.subscriber) as consumer:
            await consumer.count(1)
            assert consumer.workers == {with_gpu}
        async with Consumer(discovery.subscribe(lambda worker: not gpu(worker))) as consumer:
            await consumer.count(1)
            assert consumer.workers == {without}

    def test_picklable(self) -> None:
        tag = "gpu"
        discovery = LocalDiscovery("a", filter=lambda worker: tag in worker.tags)
        copy = pickle.loads(pickle.dumps(discovery))

        assert copy == discovery
        subscriber = pickle.loads(pickle.dumps(copy.subscribe(poll_interval=7)))
        assert subscriber.namespace == "a"
        assert subscriber.poll_interval == 7
        assert subscriber.filter(make_worker())
        assert not subscriber.filter(make_worker(tags=frozenset()))

    async def test_entered_again_and_again(self, discovery: LocalDiscovery, path: Path) -> None:
        """A74, #377: only the last to leave tidies up, and never fails."""
        async with discovery as entered:
            assert entered is discovery
            with discovery:
                path.mkdir(parents=True)
            assert path.exists()
        assert not path.exists()
        with discovery:
            pass

    def test_left_by_someone_else_stays(self, discovery: LocalDiscovery, path: Path) -> None:
        """A75: whoever merely attaches takes nothing away with it."""
        path.mkdir(parents=True)
        (path / "record").touch()
        with discovery:
            pass
        assert path.exists()
        (path / "record").unlink()
        with discovery:
            pass

    def test_left_without_runtime_directory(
        self, discovery: LocalDiscovery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A74."""

        def refuse() -> None:
            raise PermissionError("not yours")

        with discovery:
            monkeypatch.setattr(records, "runtime_directory", refuse)


class TestPublisher:
    def test_bind_host_is_loopback(self) -> None:
        assert LocalDiscovery.Publisher.bind_host == "127.0.0.1"

    async def test_publish_outside_its_context(self, discovery: LocalDiscovery) -> None:
        publisher = discovery.publisher
        with pytest.raises(RuntimeError, match="must be entered"):
            await publisher.publish("worker-added", make_worker())
        async with publisher:
            pass
        with pytest.raises(RuntimeError, match="must be entered"):
            await publisher.publish("worker-added", make_worker())

    async def test_enter_twice(self, publisher: LocalDiscovery.Publisher) -> None:
        with pytest.raises(RuntimeError, match="is in use"):
            await publisher.__aenter__()

    async def test_leave_without_entering(self, discovery: LocalDiscovery) -> None:
        await discovery.publisher.__aexit__(None, None, None)

    async def test_leave_withdraws_what_is_still_announced(
        self, discovery: LocalDiscovery, consumer: Consumer, path: Path
    ) -> None:
        async with discovery.publisher as publisher:
            await publisher.publish("worker-added", make_worker())
            await consumer.count(1)
        await consumer.count(2)

        assert consumer.types == ["worker-added", "worker-dropped"]
        assert list(path.iterdir()) == []

    def test_publisher_of_a_loop_that_has_ended_withdraws_when_it_is_collected(
        self, namespace: str, path: Path
    ) -> None:
        async def announce() -> None:
            publisher = await LocalDiscovery(namespace).publisher.__aenter__()
            await publisher.publish("worker-added", make_worker())
            assert path.exists()

        asyncio.run(announce())
        gc.collect()
        assert not path.exists()

    async def test_leave_when_directory_is_gone(
        self, discovery: LocalDiscovery, path: Path
    ) -> None:
        """A74."""
        worker = make_worker()
        async with discovery.publisher as publisher:
            await publisher.publish("worker-added", worker)
            (path / worker.uid.hex).unlink()
            path.rmdir()

    async def test_update_of_unknown_worker(self, publisher: LocalDiscovery.Publisher) -> None:
        """A73."""
        worker = make_worker()
        with pytest.raises(KeyError, match=str(worker.uid)):
            await publisher.publish("worker-updated", worker)

    async def test_update_of_what_is_no_record(
        self, publisher: LocalDiscovery.Publisher, path: Path
    ) -> None:
        worker = make_worker()
        path.mkdir(parents=True)
        (path / worker.uid.hex).touch()
        with pytest.raises(KeyError, match=str(worker.uid)):
            await publisher.publish("worker-updated", worker)
        await publisher.publish("worker-added", worker)
        await publisher.publish("worker-updated", worker)

    async def test_update_by_another_publisher(
        self, discovery: LocalDiscovery, publisher: LocalDiscovery.Publisher, consumer: Consumer
    ) -> None:
        """A73: the worker is then the other's, and stays when the first one leaves."""
        worker = make_worker()
        changed = replace(worker, pid=1)
        async with discovery.publisher as first:
            await first.publish("worker-added", worker)
            await consumer.count(1)
            await publisher.publish("worker-updated", changed)
            await consumer.count(2)
        await publisher.publish("worker-updated", replace(worker, pid=2))
        await consumer.count(3)

        assert consumer.types == ["worker-added", "worker-updated", "worker-updated"]

    async def test_drop_by_another_publisher(
        self, discovery: LocalDiscovery, publisher: LocalDiscovery.Publisher, consumer: Consumer
    ) -> None:
        """A72: added by two, dropped by one, it is gone."""
        worker = make_worker()
        async with discovery.publisher as other:
            await publisher.publish("worker-added", worker)
            await other.publish("worker-added", worker)
            await consumer.count(1)
            await publisher.publish("worker-dropped", worker)
            await consumer.count(2)

        assert consumer.types == ["worker-added", "worker-dropped"]

    async def test_publish_what_cannot_be_encoded(
        self, publisher: LocalDiscovery.Publisher, consumer: Consumer
    ) -> None:
        """A73: what was announced before still stands."""
        worker = make_worker()
        await publisher.publish("worker-added", worker)
        for type in ("worker-added", "worker-updated"):
            with pytest.raises(TypeError):
                await publisher.publish(type, replace(worker, extra={"it": object()}))
        await publisher.publish("worker-updated", changed := replace(worker, pid=1))
        await consumer.until(there(consumer, changed))

        assert consumer.workers == {changed}

    async def test_publish_left_meanwhile(
        self, discovery: LocalDiscovery, announcer: Announcer
    ) -> None:
        worker = make_worker()
        announcer.publish("worker-added", worker)
        async with discovery.publisher as publisher:
            adding = asyncio.create_task(publisher.publish("worker-added", worker))
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="must be entered"):
            await adding

    async def test_publish_over_dead_record(
        self, discovery: LocalDiscovery, consumer: Consumer, announcer: Announcer, path: Path
    ) -> None:
        """Its lock is taken first, so that nobody takes our record for the dead one."""
        worker = make_worker()
        async with discovery.publisher as publisher:
            dead = Directory(discovery.namespace).write(worker)
            dead.close()
            await publisher.publish("worker-added", worker)
            await consumer.count(1)
            assert (path / worker.uid.hex).exists()

    async def test_many(
        self,
        discovery: LocalDiscovery,
        publisher: LocalDiscovery.Publisher,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """There is no capacity, and a change costs no more where there are many (A70, A71)."""
        workers = {make_worker() for _ in range(1000)}
        for worker in workers:
            await publisher.publish("worker-added", worker)
        async with Consumer(discovery.subscribe(poll_interval=NEVER)) as consumer:
            await consumer.count(1000)
            assert consumer.workers == workers
            await watched(discovery)
            await quiet(discovery, publisher, consumer)
            looks = spy(monkeypatch, Directory, "look")
            await publisher.publish("worker-added", make_worker())
            await consumer.count(len(consumer.events) + 1)
            assert len(looks) < 10


def spy(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[tuple[Any, ...]]:
    calls = []
    original = getattr(owner, name)

    def record(*args: Any) -> Any:
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(owner, name, record)
    return calls


async def quiet(
    discovery: LocalDiscovery, publisher: LocalDiscovery.Publisher, consumer: Consumer
) -> None:
    """Until all that was on its way to the consumer has arrived, by way of watchdog too."""
    fence = Listener(Directory(discovery.namespace))
    worker = make_worker()
    for type in ("worker-added", "worker-dropped"):
        await publisher.publish(type, worker)
        await consumer.count(len(consumer.events) + 1)
    hub.add(fence)
    try:
        path = Path(fence.directory.path) / make_worker().uid.hex
        path.mkdir()
        path.rmdir()
        while path.name not in await fence.wait(NEVER):
            pass
    finally:
        hub.remove(fence)


class TestSubscriber:
    async def test_nothing_is_opened_early(self, discovery: LocalDiscovery, path: Path) -> None:
        iterator = aiter(discovery.subscriber)

        assert not path.exists()
        assert str(path) not in hub._listeners
        await iterator.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)

    async def test_first_event_comes_before_watchdog(
        self,
        discovery: LocalDiscovery,
        publisher: LocalDiscovery.Publisher,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        watches = spy(monkeypatch, Hub, "watch")
        await publisher.publish("worker-added", make_worker())

        async with aclosing(aiter(discovery.subscriber)) as iterator:
            await anext(iterator)
            assert watches == []

    async def test_nothing_is_missed_before_the_watch_is_on(
        self, discovery: LocalDiscovery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        renew = Hub._renew
        records: list[Descriptor] = []

        def announce_then_renew(self: Hub, directory: Directory) -> bool:
            if not records:
                records.append(directory.write(make_worker()))
            return renew(self, directory)

        monkeypatch.setattr(Hub, "_renew", announce_then_renew)
        async with Consumer(discovery.subscribe(poll_interval=NEVER)) as consumer:
            await consumer.count(1)
            records[0].close()
            await consumer.count(2)

    async def test_this_process_needs_no_watch(
        self,
        discovery: LocalDiscovery,
        publisher: LocalDiscovery.Publisher,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(Hub, "watch", lambda self, directory: None)
        worker = make_worker()
        async with Consumer(discovery.subscribe(poll_interval=NEVER)) as consumer:
            await asyncio.sleep(0)
            await publisher.publish("worker-added", worker)
            await consumer.count(1)
            await publisher.publish("worker-dropped", worker)
            await consumer.count(2)
            async with discovery.publisher as other:
                await other.publish("worker-added", worker)
                await consumer.count(3)
            await consumer.count(4)

    async def test_those_there_come_in_order(
        self, discovery: LocalDiscovery, publisher: LocalDiscovery.Publisher
    ) -> None:
        workers = [make_worker() for _ in range(20)]
        for worker in workers:
            await publisher.publish("worker-added", worker)
        async with Consumer(discovery.subscriber) as consumer:
            events = await consumer.count(20)

        assert [event.metadata for event in events] == workers

    async def test_refresh_without_change_is_no_event(
        self, publisher: LocalDiscovery.Publisher, consumer: Consumer
    ) -> None:
        worker, other = make_worker(), make_worker()
        await publisher.publish("worker-added", worker)
        await consumer.count(1)
        for type in ("worker-added", "worker-updated"):
            await publisher.publish(type, replace(worker))
        await publisher.publish("worker-added", other)
        await consumer.count(2)

        assert consumer.types == ["worker-added", "worker-added"]

    async def test_cancelled_wait_loses_nothing(
        self, discovery: LocalDiscovery, publisher: LocalDiscovery.Publisher
    ) -> None:
        async with aclosing(aiter(discovery.subscribe(poll_interval=NEVER))) as iterator:
            for _ in range(3):
                waiting = asyncio.create_task(anext(iterator))
                await asyncio.sleep(0)
                waiting.cancel()
                with suppress(asyncio.CancelledError):
                    await waiting
            worker = make_worker()
            await publisher.publish("worker-added", worker)

            assert (await anext(iterator)).metadata == worker

    async def test_close_ends_waits(self, discovery: LocalDiscovery) -> None:
        iterator = aiter(discovery.subscriber)
        waits = [asyncio.create_task(anext(iterator)) for _ in range(2)]
        await watched(discovery)
        await iterator.aclose()
        await iterator.aclose()

        for wait in waits:
            with pytest.raises(StopAsyncIteration):
                await wait
        assert Directory(discovery.namespace).path not in hub._listeners

    async def test_filter_that_fails(
        self, discovery: LocalDiscovery, publisher: LocalDiscovery.Publisher
    ) -> None:
        """The consumer gets its filter's error, and can go on."""

        def fussy(worker: WorkerMetadata) -> bool:
            if worker.pid == 0:
                raise LookupError("no such process")
            return True

        await publisher.publish("worker-added", make_worker(pid=0))
        await publisher.publish("worker-added", worker := make_worker())
        async with aclosing(aiter(discovery.subscribe(fussy))) as iterator:
            with pytest.raises(LookupError):
                await anext(iterator)
            assert (await anext(iterator)).metadata == worker

    @pytest.mark.parametrize("way", ["closed", "cancelled", "dropped", "collected"])
    async def test_nothing_is_left(self, discovery: LocalDiscovery, way: str) -> None:
        """No thread, no descriptor, no listener, however an iteration ends."""
        threads = set(threading.enumerate())

        async def consume() -> None:
            async for _ in discovery.subscriber:
                pytest.fail("nobody is there")

        if way == "cancelled":
            waiting = asyncio.create_task(consume())
            await watched(discovery)
        else:
            iterator = aiter(discovery.subscriber)
            waiting = asyncio.create_task(step(iterator))
            await watched(discovery)
            if way == "closed":
                await iterator.aclose()
            if way == "collected":
                iterator.myself = iterator  # type: ignore[attr-defined]
            del iterator
        waiting.cancel()
        await asyncio.wait([waiting])
        del waiting
        gc.collect()

        await eventually(lambda: set(threading.enumerate()) == threads)
        assert not os.path.exists(Directory(discovery.namespace).path)

    def test_nothing_is_left_of_a_dead_loop(self, discovery: LocalDiscovery) -> None:
        threads = set(threading.enumerate())

        async def abandon() -> LocalIteration:
            iterator = aiter(discovery.subscriber)
            waiting = asyncio.create_task(step(iterator))
            await watched(discovery)
            waiting.cancel()
            return iterator

        iterator = asyncio.run(abandon())
        hub.announce(Directory(discovery.namespace).path, None)
        del iterator
        gc.collect()

        asyncio.run(eventually(lambda: set(threading.enumerate()) == threads))

    def test_listener_of_a_dead_loop_goes_with_the_next(self, discovery: LocalDiscovery) -> None:
        other = LocalDiscovery()

        async def begin(discovery: LocalDiscovery) -> LocalIteration:
            iterator = aiter(discovery.subscriber)
            waiting = asyncio.create_task(step(iterator))
            await watched(discovery)
            waiting.cancel()
            return iterator

        async def begin_and_end() -> None:
            await (await begin(other)).aclose()

        kept = asyncio.run(begin(discovery))
        asyncio.run(begin_and_end())

        assert Directory(discovery.namespace).path not in hub._listeners
        asyncio.run(kept.aclose())

    async def test_closed_before_watchdog_is_there(
        self, discovery: LocalDiscovery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hub, "_imported", False)
        iterator = aiter(discovery.subscriber)
        waiting = asyncio.create_task(step(iterator))
        await eventually(lambda: hub._listeners)
        await iterator.aclose()
        with pytest.raises(StopAsyncIteration):
            await waiting

        await eventually(lambda: watching_threads() == [])
        assert hub._watches == {}


async def step(iterator: LocalIteration) -> None:
    await anext(iterator)


class TestDirectory:
    """What happens to the directory happens to nobody's iteration."""

    async def test_vanishes(self, consumer: Consumer, announcer: Announcer, path: Path) -> None:
        """A80: whoever listens makes it again, and hears what is put there."""
        for number in range(1, 4):
            await eventually(path.exists)
            await eventually(lambda: hub._watches[str(path)].is_good)
            path.rmdir()
            await eventually(path.exists)
            await eventually(lambda: hub._watches[str(path)].is_good)
            worker = make_worker()
            announcer.publish("worker-added", worker)
            await consumer.count(2 * number - 1)
            announcer.publish("worker-dropped", worker)
            await consumer.count(2 * number)

    async def test_is_removed_with_all_records(
        self, discovery: LocalDiscovery, announcer: Announcer, path: Path
    ) -> None:
        """A81: which the system doesn't report as long as a record's owner has it open.

        Who has announced them does so again.
        """
        worker = make_worker()
        async with Consumer(discovery.subscribe(poll_interval=0.05)) as consumer:
            announcer.publish("worker-added", worker)
            for number in range(1, 4):
                await consumer.count(2 * number - 1)
                (path / worker.uid.hex).unlink()
                with suppress(FileNotFoundError):
                    path.rmdir()
                await consumer.count(2 * number)
            await consumer.count(7)

        assert consumer.types == ["worker-added", *["worker-dropped", "worker-added"] * 3]
        assert consumer.workers == {worker}

    async def test_is_removed_when_a_publisher_is_used_again(
        self, discovery: LocalDiscovery, path: Path
    ) -> None:
        publisher, worker = discovery.publisher, make_worker()
        async with publisher:
            await publisher.publish("worker-added", make_worker())
        async with publisher, Consumer(discovery.subscribe(poll_interval=0.05)) as consumer:
            await publisher.publish("worker-added", worker)
            await eventually(lambda: publisher._place is not None)
            await consumer.count(1)
            (path / worker.uid.hex).unlink()
            with suppress(FileNotFoundError):
                path.rmdir()
            await consumer.count(3)
            assert consumer.workers == {worker}

    async def test_is_exchanged_for_another(
        self, discovery: LocalDiscovery, announcer: Announcer, path: Path
    ) -> None:
        """A80: which the system doesn't report; a rescan notices that the watch is worthless."""
        async with Consumer(discovery.subscribe(poll_interval=0.05)) as consumer:
            await watched(discovery)
            path.rename(path.with_name("elsewhere"))
            announcer.publish("worker-added", make_worker())
            await consumer.count(1)
            await eventually(lambda: hub._watches[str(path)].is_good)
            path.with_name("elsewhere").rmdir()

    async def test_owner_restarts_under_the_same_name(
        self, namespace: str, consumer: Consumer
    ) -> None:
        """A80."""
        for number in range(1, 4):
            worker = make_worker(pid=number)
            with Announcer(namespace) as announcer:
                announcer.publish("worker-added", worker)
                await consumer.until(there(consumer, worker))
                assert announcer.end() == ""
            await consumer.until(there(consumer))

    async def test_attacher_leaves(
        self, publisher: LocalDiscovery.Publisher, namespace: str, consumer: Consumer
    ) -> None:
        """A75: it takes nothing of the others' along and says nothing on standard error."""
        worker = make_worker()
        await publisher.publish("worker-added", worker)
        with Announcer(namespace) as announcer:
            announcer.publish("worker-added", make_worker())
            await consumer.count(2)
            assert announcer.end() == ""
        await consumer.count(3)

        assert consumer.workers == {worker}

    async def test_holds_nonsense(
        self,
        publisher: LocalDiscovery.Publisher,
        consumer: Consumer,
        path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A81: a record that makes no sense is one absent worker."""
        await consumer.until(lambda _: path.exists())
        worker = make_worker()
        (path / "README").touch()
        (path / worker.uid.hex).write_bytes(b"\xff")
        await publisher.publish("worker-added", make_worker())
        await consumer.count(1)
        await publisher.publish("worker-added", worker)
        await consumer.count(2)
        (path / "nonsense").write_bytes(b"\xff")
        (path / "nonsense").rename(path / worker.uid.hex)
        await consumer.count(3)
        (path / "README").unlink()
        (path / worker.uid.hex).unlink()

        assert consumer.types == ["worker-added", "worker-added", "worker-dropped"]
        assert {record.name for record in caplog.records} == {"wool.discovery.local"}

    async def test_is_a_file(
        self, discovery: LocalDiscovery, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path.parent.mkdir(exist_ok=True)
        path.touch()
        async with Consumer(discovery.subscribe(poll_interval=0.01)) as consumer:
            await eventually(lambda: "Not a directory" in caplog.text)
            path.unlink()
            async with discovery.publisher as publisher:
                await publisher.publish("worker-added", make_worker())
                await consumer.count(1)

    async def test_is_not_watched_where_the_system_runs_out_of_watches(
        self,
        discovery: LocalDiscovery,
        announcer: Announcer,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Rescans find everything, and it is said once."""

        def exhausted(*args: object) -> None:
            raise OSError(errno.ENOSPC, "inotify watch limit reached")

        monkeypatch.setattr(Hub, "_schedule", exhausted)
        monkeypatch.setattr(hub, "_warned", False)
        worker = make_worker()
        async with Consumer(discovery.subscribe(poll_interval=0.02)) as consumer:
            announcer.publish("worker-added", worker)
            await consumer.count(1)
            announcer.publish("worker-updated", replace(worker, pid=1))
            await consumer.count(2)
            announcer.kill()
            await consumer.count(3)

        assert consumer.types == ["worker-added", "worker-updated", "worker-dropped"]
        assert caplog.text.count("inotify watch limit reached") == 1

    async def test_looking_causes_no_events(
        self, discovery: LocalDiscovery, publisher: LocalDiscovery.Publisher, consumer: Consumer
    ) -> None:
        """Subscribers that look at records don't make others look."""
        for _ in range(5):
            await publisher.publish("worker-added", make_worker())
        await consumer.count(5)
        await watched(discovery)
        await quiet(discovery, publisher, consumer)
        with pytest.MonkeyPatch.context() as patch:
            heard = spy(patch, Listener, "hear")
            for _ in range(20):
                async with Consumer(discovery.subscriber) as other:
                    await other.count(5)
                await asyncio.sleep(0)
            before = {args[0] for args in heard if args[1] is not None}
        assert before == set()
        await quiet(discovery, publisher, consumer)

    async def test_rescans_add_nothing_to_what_is_there(
        self, discovery: LocalDiscovery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        renewals = spy(monkeypatch, Hub, "_renew")
        async with Consumer(discovery.subscribe(poll_interval=0.01)):
            await watched(discovery)
            before, rescans = list(logging.getLogger("watchdog").handlers), len(renewals)
            await eventually(lambda: len(renewals) > rescans + 5)
            assert logging.getLogger("watchdog").handlers == before

    async def test_is_removed_while_a_watch_is_set(
        self, discovery: LocalDiscovery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A74: the next rescan does it."""
        with monkeypatch.context() as patch:
            patch.setattr(hub, "_imported", True)
            patch.setattr(Directory, "make", lambda self: None)
            iterator = aiter(discovery.subscribe(poll_interval=0.02))
            waiting = asyncio.create_task(step(iterator))
            watches = spy(patch, Hub, "_renew")
            await eventually(lambda: len(watches) > 1)
        await watched(discovery)
        waiting.cancel()
        await iterator.aclose()


class TestElsewhere:
    """A subscriber belongs to no loop, thread, context or process (A.8, 4)."""

    async def test_iterated_in_another_thread(
        self, discovery: LocalDiscovery, publisher: LocalDiscovery.Publisher
    ) -> None:
        subscriber = discovery.subscribe(poll_interval=NEVER)

        async def consume() -> set[WorkerMetadata]:
            async with Consumer(subscriber) as consumer:
                await consumer.count(2)
            return consumer.workers

        heard = asyncio.create_task(asyncio.to_thread(asyncio.run, consume()))
        await watched(discovery)
        workers = {make_worker() for _ in range(2)}
        for worker in workers:
            await publisher.publish("worker-added", worker)

        assert await heard == workers
        assert hub._listeners == {}

    async def test_iterated_in_a_forked_child(self, namespace: str) -> None:
        """It has none of its parent's threads, and starts its own.

        Each hears twice of a worker of another process, and the parent once more afterwards.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-W", "ignore", "-m", "tests.runtime.discovery.forker", namespace),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()

        assert out.split() == [b"worker-added"] * 5
        assert process.returncode == 0


class TestProcesses:
    async def test_events_of_another_process(
        self, announcer: Announcer, consumer: Consumer
    ) -> None:
        worker = make_worker()
        for number, type in enumerate(["worker-added", "worker-updated", "worker-dropped"], 1):
            announcer.publish(type, replace(worker, pid=min(number, 2)))
            await consumer.count(number)

        assert consumer.types == ["worker-added", "worker-updated", "worker-dropped"]
        assert [event.metadata.pid for event in consumer.events] == [1, 2, 2]

    async def test_killed_announcer(self, announcer: Announcer, consumer: Consumer) -> None:
        workers = {make_worker() for _ in range(3)}
        announcer.publish("worker-added", *workers)
        await consumer.count(3)
        announcer.kill()
        await consumer.count(6)

        assert consumer.types == ["worker-added"] * 3 + ["worker-dropped"] * 3
        assert consumer.workers == set()

    async def test_killed_announcer_is_not_heard_of_later(
        self, namespace: str, discovery: LocalDiscovery, path: Path
    ) -> None:
        with Announcer(namespace) as announcer, Announcer(namespace) as killed:
            killed.publish("worker-added", make_worker())
            announcer.publish("worker-added", worker := make_worker())
            killed.kill()
            assert len(list(path.iterdir())) == 2
            async with Consumer(discovery.subscriber) as consumer:
                await consumer.count(1)
                assert consumer.workers == {worker}
                assert len(list(path.iterdir())) == 1
                announcer.kill()
                await consumer.count(2)

    async def test_killed_announcer_is_swept_away_by_the_next(
        self, discovery: LocalDiscovery, announcer: Announcer, path: Path
    ) -> None:
        """Also where nobody will ever look again: most namespaces are made up."""
        announcer.publish("worker-added", make_worker())
        announcer.kill()
        assert path.exists()
        async with LocalDiscovery().publisher:
            assert not path.exists()

    async def test_killed_announcer_with_a_forked_child(
        self, announcer: Announcer, consumer: Consumer
    ) -> None:
        """The child shares the locks it was born with, so it lets go of them."""
        announcer.publish("worker-added", make_worker())
        await consumer.count(1)
        child = int(announcer.ask("fork"))
        try:
            os.kill(announcer._process.pid, signal.SIGKILL)
            await consumer.count(2)
            assert consumer.types == ["worker-added", "worker-dropped"]
            os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)

    async def test_updates_are_never_taken_for_deaths(
        self, announcer: Announcer, discovery: LocalDiscovery
    ) -> None:
        """A record is at no moment without its lock, nor under another's."""
        worker = make_worker()
        versions = [replace(worker, address=f"127.0.0.1:{port}") for port in range(2000, 3000)]
        async with AsyncExitStack() as stack:
            consumers = [
                await stack.enter_async_context(Consumer(discovery.subscribe(poll_interval=0.001)))
                for _ in range(3)
            ]
            announcer.start("publish", "worker-added", versions)
            for consumer in consumers:
                await consumer.until(there(consumer, versions[-1]))
                assert consumer.workers == {versions[-1]}
                assert "worker-dropped" not in consumer.types
            announcer.wait()

    async def test_taken_over_from_a_living_announcer(
        self, announcer: Announcer, publisher: LocalDiscovery.Publisher, consumer: Consumer
    ) -> None:
        """A71, A72: its lock blocks nobody, and its end is not the worker's."""
        worker = make_worker()
        announcer.publish("worker-added", worker)
        await consumer.count(1)
        os.kill(announcer._process.pid, signal.SIGSTOP)
        await publisher.publish("worker-added", replace(worker, pid=1))
        await consumer.count(2)
        announcer.kill()
        await publisher.publish("worker-updated", replace(worker, pid=2))
        await consumer.count(3)

        assert consumer.types == ["worker-added", "worker-updated", "worker-updated"]

    async def test_two_processes_announce_the_same_worker(
        self, namespace: str, consumer: Consumer
    ) -> None:
        worker = make_worker()
        versions = [[replace(worker, pid=pid) for pid in range(n, 600, 2)] for n in (0, 1)]
        with Announcer(namespace) as one, Announcer(namespace) as other:
            one.start("publish", "worker-added", versions[0])
            other.start("publish", "worker-added", versions[1])
            await consumer.count(2)
            for announcer in (one, other):
                await asyncio.to_thread(announcer.wait)
            assert len(consumer.workers) == 1
        await consumer.until(there(consumer))

    @pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
    async def test_subscribers_that_die_leave_nothing_to_fear(
        self, publisher: LocalDiscovery.Publisher, consumer: Consumer, signal_number: int
    ) -> None:
        source = (
            "import asyncio, sys\n"
            "from wool.runtime.discovery.local import LocalDiscovery\n"
            "async def main():\n"
            "    async for event in LocalDiscovery(sys.argv[1]).subscriber:\n"
            "        print(event.type, flush=True)\n"
            "asyncio.run(main())\n"
        )
        await publisher.publish("worker-added", make_worker())
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", source, publisher.namespace, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"worker-added\n"
        await publisher.publish("worker-added", make_worker())
        assert await process.stdout.readline() == b"worker-added\n"
        process.send_signal(signal_number)
        await process.communicate()
        await consumer.count(2)

        assert len(consumer.workers) == 2


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from([0, 1]),
            st.sampled_from(["worker-added", "worker-updated", "worker-dropped"]),
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.just("pause"),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_any_history_leads_to_what_is_there(steps: list[Any]) -> None:
    """Two publishers, any order of events, and consumers that see them early, late, or in part."""
    asyncio.run(replay(steps))


async def replay(steps: list[Any]) -> None:
    discovery = LocalDiscovery()
    uids = [make_worker().uid for _ in range(3)]
    announced: dict[int, WorkerMetadata] = {}
    async with AsyncExitStack() as stack:
        publishers = [await stack.enter_async_context(discovery.publisher) for _ in range(2)]
        early = await stack.enter_async_context(Consumer(discovery.subscriber))
        tagged = await stack.enter_async_context(Consumer(discovery.subscribe(gpu)))
        for step in steps:
            if step == "pause":
                await asyncio.sleep(0)
                continue
            publisher, type, number, version = step
            tags = frozenset({"gpu"} if version else ())
            worker = make_worker(uid=uids[number], pid=version, tags=tags)
            try:
                await publishers[publisher].publish(type, worker)
            except KeyError:
                assert type == "worker-updated"
                assert number not in announced
            else:
                if type == "worker-dropped":
                    announced.pop(number, None)
                else:
                    announced[number] = worker
        late = await stack.enter_async_context(Consumer(discovery.subscriber))
        present = set(announced.values())
        for consumer in (early, late):
            await consumer.until(there(consumer, *present))
        wanted = {worker for worker in present if gpu(worker)}
        await tagged.until(there(tagged, *wanted))
