"""Several event loops in a process: at once in threads, one after the other, and other ones."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import itertools
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

import wool
from tests.runtime.worker.routines import echo, ended, nap, pid, spread, started, touch
from tests.support import eventually
from wool import LocalDiscovery, WorkerPool, WorkerProxy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine
    from pathlib import Path

TIMEOUT = 60.0


@pytest.fixture(scope="module", autouse=True)
def signal_pipe() -> None:
    """Have it made before anybody counts descriptors: libuv keeps it."""
    uvloop.new_event_loop().close()


@wool.routine
async def count(path: str) -> AsyncGenerator[int, None]:
    """Count, and leave word at the end."""
    try:
        for number in itertools.count():
            yield number
    finally:
        touch(path)


@wool.routine(prefetch=4)
async def count_ahead(path: str) -> AsyncGenerator[int, None]:
    try:
        for number in itertools.count():
            yield number
    finally:
        touch(path)


def active() -> WorkerProxy:
    proxy = wool.__proxy__.get()
    assert isinstance(proxy, WorkerProxy)
    return proxy


async def elsewhere(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run it on another loop, in a thread, in a copy of this context."""
    return await asyncio.to_thread(asyncio.run, coroutine)


async def finish(awaitable: Any) -> Any:
    return await awaitable


STEPS: dict[str, Callable[[Any], Any]] = {
    "anext": anext,
    "asend": lambda stream: stream.asend(None),
    "athrow": lambda stream: stream.athrow(KeyError("mine")),
    "aclose": lambda stream: stream.aclose(),
}


@pytest.mark.parametrize("routine", [count, count_ahead], ids=["pulled", "prefetched"])
@pytest.mark.parametrize("step", STEPS)
async def test_stream_is_not_for_another_loop(
    step: str, routine: Callable[[str], AsyncGenerator[int, None]], tmp_path: Path
) -> None:
    """It ends, also in the worker."""
    path = tmp_path / "ended"
    async with WorkerPool(size=1):
        stream = routine(str(path))
        assert await anext(stream) == 0
        with pytest.raises(RuntimeError, match="was called in another event loop"):
            await elsewhere(finish(STEPS[step](stream)))
        await eventually(path.exists)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert await echo(1) == 1


async def test_stream_is_not_begun_in_another_loop(tmp_path: Path) -> None:
    async with WorkerPool(size=1):
        stream = count(str(tmp_path / "ended"))
        with pytest.raises(RuntimeError, match="was started in another event loop"):
            await elsewhere(finish(anext(stream)))


async def test_stream_of_a_loop_that_is_closed(tmp_path: Path) -> None:
    stream = count(str(tmp_path / "ended"))

    async def begin() -> None:
        async with WorkerPool(size=1):
            assert await anext(stream) == 0
            kept.append(stream)

    kept: list[object] = []
    loop = asyncio.new_event_loop()  # `asyncio.run` would close the stream.
    await asyncio.to_thread(loop.run_until_complete, begin())
    loop.close()
    with pytest.raises(RuntimeError, match="was called in another event loop"):
        await anext(stream)


async def test_pool_is_not_left_in_another_loop() -> None:
    async with WorkerPool(size=1) as pool:
        with pytest.raises(RuntimeError, match="leave it in that one"):
            await elsewhere(pool.__aexit__(None, None, None))
        assert await echo(1) == 1


async def test_proxy_is_not_entered_or_stopped_in_another_loop() -> None:
    async with WorkerPool(size=1):
        proxy = active()
        with pytest.raises(RuntimeError, match="Proxy already started"):
            await elsewhere(proxy.start())
        with pytest.raises(RuntimeError, match="was started in another event loop"):
            await elsewhere(proxy.stop())
        assert await echo(1) == 1


@pytest.mark.parametrize("make", [copy.copy, lambda proxy: pickle.loads(proxy.dump())])
async def test_copy_of_a_proxy_is_good_for_another_loop(
    make: Callable[[WorkerProxy], WorkerProxy],
) -> None:
    async def use(proxy: WorkerProxy) -> int:
        async with proxy:
            return await pid()

    async with WorkerPool(size=1):
        assert await elsewhere(use(make(active()))) == await pid()


def test_pools_in_several_threads_that_share_a_namespace() -> None:
    """Each sees the workers of all, whoever comes and goes."""
    together = threading.Barrier(3)

    async def use(turn: int) -> tuple[int, set[int]]:
        async with WorkerPool(size=1, discovery=LocalDiscovery("loops")) as pool:
            await eventually(lambda: len(workers()) == 3, TIMEOUT)
            everybody = workers()
            assert set(await asyncio.gather(*(pid() for _ in range(60)))) == everybody
            await asyncio.to_thread(together.wait, TIMEOUT)
            # They leave one after the other, and the others go on.
            await eventually(lambda: len(workers()) == 3 - turn, TIMEOUT)
            assert [await echo(number) for number in range(30)] == list(range(30))
            assert pool.namespace is None
        return turn, everybody

    def workers() -> set[int]:
        return {worker.pid for worker in active().workers}

    with ThreadPoolExecutor(3) as executor:
        futures = [executor.submit(asyncio.run, use(turn)) for turn in range(3)]
        results = [future.result(100) for future in futures]
    assert len({frozenset(everybody) for _, everybody in results}) == 1


@pytest.mark.parametrize(
    ("run", "times"), [(asyncio.run, 10), (uvloop.run, 3)], ids=["asyncio", "uvloop"]
)
def test_loops_in_succession(run: Callable[[Any], Any], times: int, tmp_path: Path) -> None:
    """On each: calls, calls in calls, streams and a cancellation. Nothing grows."""

    async def use(path: str) -> None:
        async with WorkerPool(size=1):
            assert await asyncio.gather(*map(echo, range(20))) == list(range(20))
            here, there = await spread(3)
            assert there == {here}
            for stream in (count(path), count_ahead(path)):
                assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
                await stream.aclose()
            await cancelled(path)
            left.append(count(path))  # Begun, and left to the pool to end.
            assert await anext(left[-1]) == 0

    async def cancelled(path: str) -> None:
        call = asyncio.create_task(nap(path))
        await started(path)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        assert ended(path)

    left: list[Any] = []
    for turn in range(times):
        run(use(str(tmp_path / str(turn))))


async def test_routine_of_a_thread_s_loop_without_the_context_finds_no_pool() -> None:
    async with WorkerPool(size=1):
        empty = contextvars.Context()
        with pytest.raises(RuntimeError, match="No pool is active"):
            await asyncio.to_thread(empty.run, asyncio.run, echo(1))


async def test_pool_is_active_in_another_task_that_asks_for_it() -> None:
    entered, over = asyncio.Event(), asyncio.Event()
    pool = WorkerPool(size=1)

    async def lifespan() -> None:
        async with pool:
            entered.set()
            await over.wait()

    with pytest.raises(RuntimeError, match="is not entered"), pool.activate():
        pass
    living = asyncio.create_task(lifespan())
    await entered.wait()
    with pytest.raises(RuntimeError, match="No pool is active"):
        await pid()
    with pool.activate():
        assert await pid() != os.getpid()
    with pytest.raises(RuntimeError, match="No pool is active"):
        await pid()
    over.set()
    await living
    with pytest.raises(RuntimeError, match="is not entered"), pool.activate():
        pass
