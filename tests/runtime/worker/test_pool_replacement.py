"""What becomes of a pool whose workers die."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import wool
from tests.runtime.worker.memory import MemoryDiscovery
from tests.runtime.worker.routines import echo, gone, kill, nap, pid, spread
from tests.support import eventually
from wool import LocalWorker, WorkerPool, WorkerProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from wool import DiscoveryEventType, WorkerMetadata


def admitted() -> list[WorkerMetadata]:
    proxy = wool.__proxy__.get()
    assert isinstance(proxy, WorkerProxy)
    return proxy.workers


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wool.runtime.worker.crew.FIRST_DELAY", 0.01)


async def test_killed_worker_is_replaced_and_its_calls_are_lost() -> None:
    discovery = MemoryDiscovery()
    async with WorkerPool("tag", size=1, lease=0, discovery=discovery):
        there = await pid()
        [first] = discovery.told("worker-added")
        with pytest.raises(wool.WorkerLost, match="was killed by signal SIGKILL") as caught:
            await kill()
        assert caught.value.metadata == first
        assert await pid() != there
        assert discovery.told("worker-dropped") == [first]
        second = discovery.told("worker-added")[1]
        assert second.uid != first.uid
        assert second.tags == {"tag"}
        assert admitted() == [second]
        await gone(there)
    assert discovery.told("worker-dropped") == [first, second]


async def test_worker_lost_says_how_its_process_ended() -> None:
    async with WorkerPool(size=1):
        with pytest.raises(wool.WorkerLost, match="its process exited with code 7"):
            await leave(7)
        with pytest.raises(wool.WorkerLost, match="its process was killed by signal SIGSEGV"):
            await kill(signal.SIGSEGV)
        assert await echo("on another") == "on another"


async def test_worker_that_is_terminated_cancels_its_calls_and_is_replaced() -> None:
    async with WorkerPool(size=2):
        await eventually(lambda: len(admitted()) == 2)
        before = admitted()
        with pytest.raises(asyncio.CancelledError):
            await kill(signal.SIGTERM)
        assert await echo("on another") == "on another"
        await eventually(lambda: len({*admitted()} - {*before}) == 1 and len(admitted()) == 2)


@wool.routine
async def leave(code: int) -> None:
    os._exit(code)


async def test_idle_worker_that_is_killed_is_replaced() -> None:
    async with WorkerPool(size=2):
        await eventually(lambda: len(admitted()) == 2)
        victim, survivor = admitted()
        os.kill(victim.pid, signal.SIGKILL)
        await eventually(lambda: victim not in admitted() and len(admitted()) == 2, timeout=30)
        assert survivor in admitted()
        assert {await pid() for _ in range(4)} == {metadata.pid for metadata in admitted()}


async def test_calls_nested_in_routines_use_the_replacement() -> None:
    """Also under a lease: the workers that were there hear of it with the next call."""
    async with WorkerPool(size=2, lease=0):
        await eventually(lambda: len(admitted()) == 2)
        assert [len((await spread(8))[1]) for _ in range(2)] == [2, 2]
        victim = admitted()[0]
        os.kill(victim.pid, signal.SIGKILL)
        await eventually(lambda: victim not in admitted() and len(admitted()) == 2, timeout=30)
        pids = {metadata.pid for metadata in admitted()}
        for here in pids:
            await eventually_spread(here, pids)


async def eventually_spread(here: int, pids: set[int]) -> None:
    async with asyncio.timeout(30):
        while await spread(8) != (here, pids):
            pass


async def test_replacement_that_fails_to_start_is_tried_again(
    impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[LocalWorker] = []

    class Lame(LocalWorker):
        async def _start(self, timeout: float | None) -> None:
            raise OSError("lame")

    def worker(*tags: str, credentials: Any = None) -> LocalWorker:
        if len(made) == 1:
            made.append(LocalWorker())
            raise OSError("out of machines")
        made.append((Lame if len(made) == 2 else LocalWorker)())
        return made[-1]

    async with WorkerPool(size=1, worker=worker):
        there = await pid()
        os.kill(there, signal.SIGKILL)
        await eventually(lambda: len(made) == 4, timeout=30)
        assert await pid() != there
    assert "OSError: out of machines" in caplog.text
    assert "OSError: lame" in caplog.text


async def test_replacement_that_can_not_be_announced_is_stopped_and_tried_again(
    impatient: None,
) -> None:
    class Board(MemoryDiscovery):
        async def publish(self, type: DiscoveryEventType, metadata: WorkerMetadata) -> None:
            await super().publish(type, metadata)
            if type == "worker-added" and len(self.told("worker-added")) == 2:
                raise OSError("the notice board is full")

    discovery = Board()
    async with WorkerPool(size=1, lease=0, discovery=discovery):
        os.kill(await pid(), signal.SIGKILL)
        await eventually(lambda: len(discovery.told("worker-added")) == 3, timeout=30)
        _, second, third = discovery.told("worker-added")
        await gone(second.pid)
        await eventually(lambda: admitted() == [third])
        assert await pid() == third.pid


@pytest.mark.filterwarnings("default:.* is not replaced:RuntimeWarning")
async def test_worker_that_dies_repeatedly_at_start_is_given_up_on(
    impatient: None, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    made: list[LocalWorker] = []

    class Lame(LocalWorker):
        async def _start(self, timeout: float | None) -> None:
            raise OSError("lame")

    def worker(*tags: str, credentials: Any = None) -> LocalWorker:
        made.append((LocalWorker if len(made) < 2 else Lame)())
        return made[-1]

    last = "has died and is not replaced: 5 others did not start"
    async with WorkerPool(size=2, lease=0, worker=worker):
        await eventually(lambda: len(admitted()) == 2)
        victim, survivor = admitted()
        os.kill(victim.pid, signal.SIGKILL)
        await eventually(lambda: last in caplog.text, timeout=30)
        assert len(made) == 2 + 5
        assert {await pid() for _ in range(3)} == {survivor.pid}
    assert last in str(recwarn.pop(RuntimeWarning).message)
    [record] = [record for record in caplog.records if last in record.message]
    assert record.levelname == "ERROR"


@pytest.mark.filterwarnings("ignore:.* is not replaced:RuntimeWarning")
async def test_slot_of_a_worker_given_up_on_is_open_to_strangers(
    impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wool.runtime.worker.crew.ATTEMPTS", 0)
    stranger = LocalWorker()
    await stranger.start()
    try:
        assert stranger.metadata is not None
        discovery = MemoryDiscovery(stranger.metadata)
        async with WorkerPool(size=1, lease=0, discovery=discovery):
            os.kill(await pid(), signal.SIGKILL)
            await eventually(lambda: admitted() == [stranger.metadata], timeout=30)
            assert await pid() == stranger.metadata.pid
    finally:
        await stranger.stop()


async def test_left_while_a_replacement_starts() -> None:
    """The replacement's process ends, too."""
    starting = asyncio.Event()

    class Slow(LocalWorker):
        async def _start(self, timeout: float | None) -> None:
            await super()._start(timeout)
            starting.set()
            await asyncio.Event().wait()

    made: list[LocalWorker] = []

    def worker(*tags: str, credentials: Any = None) -> LocalWorker:
        made.append((Slow if made else LocalWorker)())
        return made[-1]

    async with WorkerPool(size=1, worker=slowly(worker)):
        os.kill(await pid(), signal.SIGKILL)
        await starting.wait()


def slowly(worker: Callable[..., LocalWorker]) -> Callable[..., LocalWorker]:
    """A factory whose workers end their processes when their start is cancelled."""

    def make(*tags: str, credentials: Any = None) -> LocalWorker:
        made = worker(*tags, credentials=credentials)
        start = made._start

        async def undone(timeout: float | None) -> None:
            try:
                await start(timeout)
            except BaseException:
                await made._stop(0)
                raise

        made._start = undone  # type: ignore[method-assign]
        return made

    return make


async def test_left_while_the_death_of_a_worker_is_being_announced() -> None:
    """What the dead worker had is given back all the same."""
    announcing = asyncio.Event()

    class Board(MemoryDiscovery):
        async def publish(self, type: DiscoveryEventType, metadata: WorkerMetadata) -> None:
            await super().publish(type, metadata)
            if type == "worker-dropped" and not announcing.is_set():
                announcing.set()
                await asyncio.Event().wait()

    async with WorkerPool(size=1, discovery=Board()):
        os.kill(await pid(), signal.SIGKILL)
        await announcing.wait()


async def test_worker_of_a_kind_that_can_not_be_waited_for_is_not_supervised() -> None:
    class Foreign:
        """A worker that satisfies the protocol and no more."""

        def __init__(self, *tags: str, credentials: Any = None) -> None:
            self._worker = LocalWorker(*tags)
            self.uid = self._worker.uid
            self.start, self.stop = self._worker.start, self._worker.stop

        @property
        def metadata(self) -> WorkerMetadata | None:
            return self._worker.metadata

    async with WorkerPool(size=1, worker=Foreign):
        assert await echo(1) == 1


async def test_dead_worker_whose_stop_fails_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    class Clumsy(LocalWorker):
        async def _stop(self, timeout: float | None) -> None:
            await super()._stop(timeout)
            raise OSError("stumbled")

    async with WorkerPool(size=1, worker=Clumsy):
        there = await pid()
        os.kill(there, signal.SIGKILL)
        await gone(there)
        await eventually(lambda: "OSError: stumbled" in caplog.text)
        assert await pid() != there


@wool.routine
async def forever() -> AsyncIterator[int]:
    number = 0
    while True:
        yield number
        number += 1


async def test_stream_of_a_killed_worker_is_lost() -> None:
    async with WorkerPool(size=1):
        there = await pid()
        stream = forever()
        assert await anext(stream) == 0
        os.kill(there, signal.SIGKILL)
        await gone(there)
        with pytest.raises(wool.WorkerLost, match="was killed by signal SIGKILL"):
            await anext(stream)


async def test_stream_of_a_worker_that_is_dropped_goes_on() -> None:
    """Nor does a new address disturb it; it ends when the pool is left."""
    worker = LocalWorker()
    await worker.start()
    try:
        assert worker.metadata is not None
        discovery = MemoryDiscovery(worker.metadata)
        async with WorkerPool(discovery=discovery):
            stream = forever()
            assert await anext(stream) == 0
            elsewhere = replace(worker.metadata, address="unix:/nowhere")
            discovery.tell("worker-updated", elsewhere)
            await discovery.drained()
            assert await anext(stream) == 1
            discovery.tell("worker-dropped", worker.metadata)
            await discovery.drained()
            assert await anext(stream) == 2
        with pytest.raises(RuntimeError, match="was open when its pool was left"):
            await anext(stream)
    finally:
        await worker.stop()


async def test_call_waits_for_the_successor_of_a_worker_that_drains(tmp_path: Path) -> None:
    async with WorkerPool(size=1):
        first = await pid()
        napping = asyncio.create_task(nap(str(tmp_path / "nap"), 1))
        await eventually((tmp_path / "nap.started").exists)
        os.kill(first, signal.SIGINT)
        while await pid() == first:
            pass
        assert await napping == "slept"
