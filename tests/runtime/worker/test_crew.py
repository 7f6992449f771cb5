"""Workers that retire, and those that are not replaced."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.runtime.worker.memory import MemoryDiscovery, made_up
from tests.support import eventually
from wool.runtime.worker.crew import Crew, Departure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_DELAY", "LAST_DELAY", "HEARD"):
        monkeypatch.setattr(f"wool.runtime.worker.crew.{name}", 0.01)


class Workers:
    """Makes workers that run nowhere, in `all`; after `good` of them, those that don't start."""

    def __init__(self, good: int) -> None:
        self.all: list[FakeWorker] = []
        self._good = good

    def __call__(self, slot: int) -> FakeWorker:
        worker = FakeWorker(slot, len(self.all) < self._good)
        self.all.append(worker)
        return worker


class FakeWorker:
    """Ends when it is told to, and when it is stopped, which `drained` holds up."""

    def __init__(self, slot: int, good: bool) -> None:
        self.slot = slot
        self.metadata = made_up()
        self.uid = self.metadata.uid
        self.drained = asyncio.Event()
        self.stopped: list[float | None] = []
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._good = good

    async def start(self, *, timeout: float | None = None) -> None:
        if not self._good:
            raise RuntimeError("no room")

    async def stop(self, *, timeout: float | None = None) -> None:
        self.stopped.append(timeout)
        if timeout == -1:
            await self.drained.wait()
        if not self.end.done():
            self.end.set_result("over")

    async def wait(self) -> str:
        return await asyncio.shield(self.end)


@asynccontextmanager
async def running(
    workers: Workers, discovery: MemoryDiscovery, **options: Any
) -> AsyncIterator[Crew]:
    crew = Crew(workers, 1, discovery, **options)
    await crew.start()
    crew.supervise()
    try:
        yield crew
    finally:
        await crew.stop_supervising()
        for worker in workers.all:
            worker.drained.set()
        await crew.stop(Departure(drain=True, timeout=None))


def kinds(discovery: MemoryDiscovery) -> list[str]:
    return [event.type.removeprefix("worker-") for event in discovery.log]


async def test_retiring_worker_is_there_until_another_one_is() -> None:
    workers, discovery = Workers(good=2), MemoryDiscovery()
    async with running(workers, discovery) as crew:
        [first] = workers.all
        assert crew.retire(first)
        assert not crew.retire(first)
        await eventually(lambda: first.stopped == [-1])
        second = workers.all[1]
        assert kinds(discovery) == ["added", "added", "dropped"]
        assert discovery.told("worker-dropped") == [first.metadata]
        assert crew.serving == {0: second}
        assert not first.end.done()
        first.drained.set()
        await eventually(first.end.done)
    assert second.stopped == [-1]


async def test_crew_that_stops_waits_for_who_retires() -> None:
    workers, discovery = Workers(good=2), MemoryDiscovery()
    async with running(workers, discovery) as crew:
        [first] = workers.all
        crew.retire(first)
        await eventually(lambda: first.stopped == [-1])
        await crew.stop_supervising()
        stopping = asyncio.create_task(crew.stop(Departure(drain=True, timeout=None)))
        await eventually(lambda: workers.all[1].stopped == [-1])
        workers.all[1].drained.set()
        await asyncio.sleep(0)
        assert not stopping.done()
        first.drained.set()
        await stopping
    assert first.stopped == [-1]


async def test_without_overlap_a_worker_has_ended_before_another_one_starts() -> None:
    workers, discovery = Workers(good=2), MemoryDiscovery()
    async with running(workers, discovery, overlap=False) as crew:
        [first] = workers.all
        crew.retire(first)
        await eventually(lambda: first.stopped == [-1])
        assert kinds(discovery) == ["added", "dropped"]
        assert len(workers.all) == 1
        first.drained.set()
        await eventually(lambda: kinds(discovery) == ["added", "dropped", "added"])
        assert [worker.slot for worker in workers.all] == [0, 0]


async def test_worker_that_no_other_can_replace_stays() -> None:
    workers, discovery = Workers(good=1), MemoryDiscovery()
    async with running(workers, discovery) as crew:
        [first] = workers.all
        crew.retire(first)
        await eventually(lambda: len(workers.all) == 6)
        await eventually(lambda: crew.serving == {0: first})
        assert (first.stopped, crew.failed, kinds(discovery)) == ([], False, ["added"])


async def test_without_overlap_a_place_that_nobody_takes_is_given_up() -> None:
    workers, discovery = Workers(good=1), MemoryDiscovery()
    async with running(workers, discovery, overlap=False) as crew:
        [first] = workers.all
        first.drained.set()
        crew.retire(first)
        with pytest.warns(RuntimeWarning, match="is not replaced: 5 others did not start"):
            await crew.over()
        assert (crew.failed, crew.workers) == (True, {})


async def test_worker_that_is_over_is_not_replaced() -> None:
    workers, discovery = Workers(good=2), MemoryDiscovery()
    async with running(workers, discovery, is_over=lambda how: how == "over") as crew:
        [first] = workers.all
        first.end.set_result("over")
        await crew.over()
        assert (crew.failed, crew.workers, len(workers.all)) == (False, {}, 1)
        assert not crew.retire(first)
        assert kinds(discovery) == ["added", "dropped"]
