"""Leaving a pool, in order and otherwise. The fixtures see to it that nothing is left of it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

import wool
from tests.runtime.worker.memory import MemoryDiscovery
from tests.runtime.worker.routines import block, echo, ended, gone, nap, pid, started
from tests.support import eventually
from wool import LocalWorker, RoundRobinLoadBalancer, WorkerPool, WorkerProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from wool import DiscoveryEventType, WorkerMetadata


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "nap")


async def test_left_normally_it_lets_calls_finish(path: str) -> None:
    async with WorkerPool(size=1):
        call = asyncio.create_task(nap(path, seconds=1))
        await started(path)
    assert ended(path)
    assert await call == "slept"


async def test_left_normally_it_lets_nested_calls_finish(path: str) -> None:
    async with WorkerPool(size=1):
        call = asyncio.create_task(nap_elsewhere(path))
        await started(path)
    assert await call == "slept"


@wool.routine
async def nap_elsewhere(path: str) -> str:
    return await nap(path, seconds=1)


async def test_left_normally_it_cancels_what_takes_too_long(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    begun = time.monotonic()
    async with WorkerPool(size=1, shutdown_timeout=1):
        call = asyncio.create_task(nap(path))
        await started(path)
    assert time.monotonic() - begun < 30
    assert ended(path)
    with pytest.raises(asyncio.CancelledError, match="was running when its pool was left"):
        await call
    assert "was cut off" in caplog.text


async def test_left_without_timeout_it_waits(path: str) -> None:
    async with WorkerPool(size=1, shutdown_timeout=None):
        call = asyncio.create_task(nap(path, seconds=1))
        await started(path)
    assert await call == "slept"


async def test_left_by_an_exception_it_cancels_at_once(path: str) -> None:
    async def use() -> None:
        async with WorkerPool(size=1):
            calls.append(asyncio.create_task(nap(path)))
            await started(path)
            raise KeyError("mine")

    calls: list[asyncio.Task[str]] = []
    with pytest.raises(KeyError, match="mine"):
        await use()
    assert ended(path)
    with pytest.raises(asyncio.CancelledError):
        await calls[0]


async def test_left_by_a_cancellation_it_cancels_at_once(path: str) -> None:
    async def use() -> None:
        async with WorkerPool(size=1):
            await nap(path)

    using = asyncio.create_task(use())
    await started(path)
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert ended(path)


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_leaving_that_is_cancelled_reaps_everything(path: str, times: int) -> None:
    """While it waits for a call to finish; and again, while that cleans up."""
    pids: list[int] = []

    async def use() -> None:
        async with WorkerPool(size=2):
            pids.extend({await pid() for _ in range(4)})
            asyncio.create_task(suppressed(nap(path, cleaning=0.5)))  # noqa: RUF006
            await started(path)
            leaving.set()

    leaving = asyncio.Event()
    using = asyncio.create_task(use())
    await leaving.wait()
    for _ in range(times):
        await asyncio.sleep(0.05)
        using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert len(pids) == 2
    await gone(*pids)


async def suppressed(awaitable: Any) -> None:
    with suppress(asyncio.CancelledError):
        await awaitable


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 30])
async def test_leaving_that_is_cancelled_at_any_stage_reaps_everything(turns: int) -> None:
    """A62: also in the turn of the loop in which a step has been scheduled, and not begun."""

    async def use() -> None:
        async with WorkerPool(size=2, discovery=discovery):
            await echo(1)
            leaving.set()

    discovery = MemoryDiscovery()
    leaving = asyncio.Event()
    using = asyncio.create_task(use())
    await leaving.wait()
    for _ in range(turns):
        await asyncio.sleep(0)
    using.cancel()
    await asyncio.wait([using])
    assert len(discovery.told("worker-dropped")) == 2
    assert not discovery.subscriptions
    await gone(*(metadata.pid for metadata in discovery.told("worker-added")))


async def test_routine_that_ignores_its_cancellation_is_killed(path: str) -> None:
    """A36."""
    begun = time.monotonic()
    async with WorkerPool(size=1, shutdown_timeout=1):
        there = await pid()
        call = asyncio.create_task(suppressed(block(path, 600)))
        await started(path)
    assert time.monotonic() - begun < 40
    await gone(there)
    await call


async def test_stopped_worker_does_not_hang_leaving() -> None:
    """A51."""
    async with WorkerPool(size=1, shutdown_timeout=1):
        there = await pid()
        os.kill(there, signal.SIGSTOP)
        begun = time.monotonic()
    assert time.monotonic() - begun < 40
    await gone(there)


class Announcer(MemoryDiscovery):
    """Fails when it is told of a drop, or takes forever over it."""

    def __init__(self, hangs: bool = False) -> None:
        super().__init__()
        self._hangs = hangs

    async def publish(self, type: DiscoveryEventType, metadata: WorkerMetadata) -> None:
        await super().publish(type, metadata)
        if type == "worker-dropped":
            if self._hangs:
                await asyncio.Event().wait()
            raise OSError("the notice board is gone")


@pytest.mark.parametrize("hangs", [False, True])
async def test_announcement_that_fails_or_hangs_does_not_keep_workers_alive(
    hangs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A37."""
    discovery = Announcer(hangs)
    async with WorkerPool(size=1, discovery=discovery):
        there = await pid()
    await gone(there)
    assert f"{discovery.log[0].metadata.uid} could not be announced as dropped" in caplog.text


async def test_cancelled_during_an_announcement_that_hangs(path: str) -> None:
    async def use() -> None:
        async with WorkerPool(size=1, discovery=discovery):
            pids.append(await pid())

    pids: list[int] = []
    discovery = Announcer(hangs=True)
    using = asyncio.create_task(use())
    await eventually(lambda: discovery.told("worker-dropped"), timeout=30)
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    await gone(*pids)


class Clumsy(LocalWorker):
    """Stops, but raises an error, or hangs when it has."""

    hangs = False

    async def _stop(self, timeout: float | None) -> None:
        await super()._stop(timeout)
        if self.hangs:
            await asyncio.Event().wait()
        raise OSError("stumbled")


class Stuck(Clumsy):
    hangs = True


async def test_stop_that_raises_is_logged_and_masks_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A38."""
    with pytest.raises(KeyError, match="mine"):
        async with WorkerPool(size=2, worker=Clumsy):
            raise KeyError("mine")
    assert caplog.text.count("did not stop in order") == 2
    assert caplog.text.count("OSError: stumbled") == 2


async def test_stop_that_hangs_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    """A36."""
    async with WorkerPool(size=1, worker=Stuck, shutdown_timeout=2):
        there = await pid()
    await gone(there)
    assert "did not stop in time and was cut off" in caplog.text


class Sticky(MemoryDiscovery):
    """Fails when it is left, or takes forever over it, or its subscriber does."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self._error = error

    async def __aenter__(self) -> Sticky:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._error is None:
            await asyncio.Event().wait()
        else:
            raise self._error


@pytest.mark.parametrize("error", [OSError("the door is stuck"), None])
async def test_discovery_that_fails_or_hangs_when_left(
    error: Exception | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("wool.runtime.worker.pool.ANNOUNCE_TIMEOUT", 1)
    async with WorkerPool(size=1, discovery=Sticky(error)):
        there = await pid()
    await gone(there)
    assert "was not left in order" in caplog.text


async def test_subscriber_that_hangs_when_closed_does_not_hang_leaving(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Clinging:
        def __aiter__(self) -> Clinging:
            return self

        async def __anext__(self) -> Any:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await release.wait()

    class Discovery(MemoryDiscovery):
        @property
        def subscriber(self) -> Any:
            return Clinging()

    release = asyncio.Event()
    async with WorkerPool(size=1, discovery=Discovery(), shutdown_timeout=1):
        pass
    assert "was cut off" in caplog.text
    release.set()


class Interrupting(MemoryDiscovery):
    """A second Ctrl-C comes when its subscriber is closed."""

    @property
    def subscriber(self) -> Any:
        return self._events()

    async def _events(self) -> AsyncIterator[Any]:
        try:
            yield await asyncio.Event().wait()
        finally:
            raise KeyboardInterrupt


@asynccontextmanager
async def interrupting() -> AsyncIterator[RoundRobinLoadBalancer]:
    """A second Ctrl-C comes when this is left."""
    yield RoundRobinLoadBalancer()
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "options", [{"discovery": Interrupting()}, {"loadbalancer": interrupting}], ids=list
)
def test_interrupt_while_it_is_left_is_raised_when_all_is_gone(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """And asyncio does not report it as well, whichever task happens to run then."""

    async def use() -> None:
        async with WorkerPool(size=1, **options):
            await asyncio.sleep(0)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(use())
    gc.collect()
    assert caplog.text == ""


async def test_call_that_waits_for_a_worker_ends_when_the_pool_is_left() -> None:
    async with WorkerPool(discovery=MemoryDiscovery()):
        call = asyncio.create_task(echo(1))
        await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="Proxy was stopped while a call waited for a worker"):
        await call


async def test_proxy_stopped_by_hand_does_not_disturb_leaving() -> None:
    async with WorkerPool(size=1):
        proxy = wool.__proxy__.get()
        assert isinstance(proxy, WorkerProxy)
        await proxy.stop()
        with pytest.raises(RuntimeError, match="No pool is active"):
            await echo(1)


def test_pool_in_a_task_that_the_end_of_asyncio_run_cancels(path: str) -> None:
    """The loop cancels the pool's own tasks together with the one that has entered it."""
    pids: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    async def use() -> None:
        async with WorkerPool(size=2):
            pids.extend({await pid() for _ in range(4)})
            await nap(path)

    async def main() -> None:
        tasks.append(asyncio.create_task(use()))
        await started(path)

    asyncio.run(main())
    assert ended(path)
    asyncio.run(gone(*pids))
