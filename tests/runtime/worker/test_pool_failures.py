"""Pools that can't be entered, and what is left of the attempt: nothing."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

import wool
from tests.runtime.worker.memory import MemoryDiscovery
from tests.runtime.worker.routines import gone
from tests.support import eventually
from wool import LocalWorker, WorkerPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from wool import DiscoveryEventType, WorkerMetadata


class Recording(MemoryDiscovery):
    """As a context manager it tells whether it was left."""

    entered = left = False

    async def __aenter__(self) -> Recording:
        self.entered = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.left = True


async def test_pool_with_a_discovery_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(TypeError, match="Expected DiscoveryLike, got: 42"):
        await WorkerPool(size=1, discovery=42).__aenter__()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected DiscoveryLike, got: 42"):
        await WorkerPool(discovery=lambda: 42).__aenter__()  # type: ignore[arg-type]


async def test_pool_with_a_publisher_of_the_wrong_type_is_refused() -> None:
    class Odd(Recording):
        publisher = "paper"  # type: ignore[assignment]

    discovery = Odd()
    with pytest.raises(ValueError, match="Expected DiscoveryPublisherLike, got: 'paper'"):
        await WorkerPool(size=1, discovery=discovery).__aenter__()
    assert discovery.left


async def test_pool_with_a_balancer_of_the_wrong_type_is_refused() -> None:
    """A33: the pool's workers, its discovery and the active proxy are as before."""
    discovery = Recording()
    with pytest.raises(ValueError, match="Expected LoadBalancerLike, got: 42"):
        async with WorkerPool(size=1, discovery=discovery, loadbalancer=lambda: 42):  # type: ignore[arg-type]
            pass
    assert discovery.left
    [own] = discovery.told("worker-added")
    assert discovery.told("worker-dropped") == [own]
    await gone(own.pid)
    assert wool.__proxy__.get() is None


async def test_pool_with_a_discovery_that_fails_is_not_entered() -> None:
    @asynccontextmanager
    async def failing() -> AsyncIterator[MemoryDiscovery]:
        raise OSError("no network")
        yield MemoryDiscovery()

    pool = WorkerPool(size=1, discovery=failing)
    with pytest.raises(OSError, match="no network"):
        await pool.__aenter__()
    with pytest.raises(RuntimeError, match="can be entered once"):
        await pool.__aenter__()


async def test_factory_that_raises_for_the_second_worker() -> None:
    """A39."""
    made: list[LocalWorker] = []

    def worker(*tags: str, credentials: Any = None) -> LocalWorker:
        if made:
            raise OSError("out of machines")
        made.append(LocalWorker())
        return made[0]

    discovery = Recording()
    with pytest.raises(OSError, match="out of machines"):
        await WorkerPool(size=3, worker=worker, discovery=discovery).__aenter__()
    assert discovery.left
    assert made[0].metadata is None


@pytest.mark.parametrize("made", [None, 42, LocalWorker])
async def test_factory_that_makes_no_worker_is_refused(made: object) -> None:
    def worker(*tags: str, credentials: Any = None) -> Any:
        return made if made is not LocalWorker else "a worker"

    with pytest.raises(TypeError, match=r"Expected WorkerLike from .*worker.*, got: "):
        await WorkerPool(size=1, worker=worker).__aenter__()


class Lame(LocalWorker):
    async def _start(self, timeout: float | None) -> None:
        raise OSError(f"lame {self.extra['number']}")


async def test_failed_starts_are_raised_together_and_the_rest_is_stopped() -> None:
    made: list[LocalWorker] = []

    def worker(*tags: str, credentials: Any = None) -> LocalWorker:
        kind = LocalWorker if len(made) == 1 else Lame
        made.append(kind(number=len(made)))
        return made[-1]

    discovery = Recording()
    with pytest.raises(ExceptionGroup, match="worker spawn failures") as caught:
        await WorkerPool(size=3, worker=worker, discovery=discovery).__aenter__()
    assert [str(error) for error in caught.value.exceptions] == ["lame 0", "lame 2"]
    assert discovery.left
    [started] = discovery.told("worker-added")
    assert started.uid == made[1].uid
    assert discovery.told("worker-dropped") == [started]
    await gone(started.pid)


async def test_worker_whose_start_is_cancelled_from_inside_counts_as_failed() -> None:
    class Odd(LocalWorker):
        async def _start(self, timeout: float | None) -> None:
            raise asyncio.CancelledError

    with pytest.raises(BaseExceptionGroup, match="worker spawn failures"):
        await WorkerPool(size=1, worker=Odd).__aenter__()


async def test_worker_that_starts_without_metadata_counts_as_failed() -> None:
    stopped = []

    class Secretive(LocalWorker):
        async def _start(self, timeout: float | None) -> None:
            pass

        async def _stop(self, timeout: float | None) -> None:
            stopped.append(self)

    with pytest.raises(ExceptionGroup, match="worker spawn failures") as caught:
        await WorkerPool(size=1, worker=Secretive).__aenter__()
    assert "has started without metadata" in str(caught.value.exceptions[0])
    assert len(stopped) == 1


class Failing(Recording):
    """Fails to announce the second worker, or takes forever over it."""

    hangs = False

    async def publish(self, type: DiscoveryEventType, metadata: WorkerMetadata) -> None:
        if type == "worker-added" and self.log:
            if self.hangs:
                await asyncio.Event().wait()
            raise OSError("the notice board is full")
        await super().publish(type, metadata)


async def test_announcement_that_fails_at_entry() -> None:
    discovery = Failing()
    with pytest.raises(ExceptionGroup, match="worker spawn failures") as caught:
        await WorkerPool(size=2, discovery=discovery).__aenter__()
    assert "notice board" in str(caught.value.exceptions[0])
    assert discovery.left
    assert len(discovery.told("worker-dropped")) == 2
    await gone(*(metadata.pid for metadata in discovery.told("worker-dropped")))


async def test_announcement_that_hangs_at_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wool.runtime.worker.crew.START_TIMEOUT", 3)
    monkeypatch.setattr("wool.runtime.worker.crew.START_MARGIN", 0)
    discovery = Failing()
    discovery.hangs = True
    with pytest.raises(ExceptionGroup, match="worker spawn failures") as caught:
        await WorkerPool(size=2, discovery=discovery).__aenter__()
    assert isinstance(caught.value.exceptions[0], TimeoutError)
    assert len(discovery.told("worker-dropped")) == 2


async def test_worker_that_hangs_at_start_is_given_up_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A66: the interpreter is alive, but never gets to report."""
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("wool.runtime.worker.process.START_TIMEOUT", 1)
    begun = time.monotonic()
    with pytest.raises(ExceptionGroup, match="worker spawn failures") as caught:
        await WorkerPool(size=2).__aenter__()
    assert [str(error) for error in caught.value.exceptions] == [
        "Worker process failed to start within 1 seconds"
    ] * 2
    assert time.monotonic() - begun < 20


async def test_worker_that_hangs_at_start_for_its_own_reasons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A66: a worker of the user's own, which knows no timeout."""

    class Hanging(LocalWorker):
        async def _start(self, timeout: float | None) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr("wool.runtime.worker.crew.START_TIMEOUT", 0.1)
    monkeypatch.setattr("wool.runtime.worker.crew.START_MARGIN", 0)
    with pytest.raises(ExceptionGroup, match="worker spawn failures") as caught:
        await WorkerPool(size=1, worker=Hanging).__aenter__()
    assert isinstance(caught.value.exceptions[0], TimeoutError)


async def test_entering_that_is_cancelled_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the second worker hangs at its start."""

    class Hanging(LocalWorker):
        async def _start(self, timeout: float | None) -> None:
            await asyncio.Event().wait()

    made: list[LocalWorker] = []

    def worker(*tags: str, credentials: Any = None) -> LocalWorker:
        made.append((Hanging if made else LocalWorker)())
        return made[-1]

    discovery = Recording()
    entering = asyncio.create_task(
        WorkerPool(size=2, worker=worker, discovery=discovery).__aenter__()
    )
    await eventually(lambda: discovery.log)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert discovery.left
    await gone(discovery.log[0].metadata.pid)


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3])
async def test_entering_that_is_cancelled_at_some_time_leaves_nothing(delay: float) -> None:
    """Wherever that catches it; the fixtures look for what is left."""
    entering = asyncio.create_task(WorkerPool(size=1).__aenter__())
    await asyncio.wait([entering], timeout=delay)
    entering.cancel()
    entering.cancel()
    await asyncio.wait([entering])
    if not entering.cancelled():
        await entering.result().__aexit__(None, None, None)
