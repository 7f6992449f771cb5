"""Pools in pools, in routines, in threads, and one after the other."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psutil
import pytest

import wool
from tests.runtime.worker.memory import MemoryDiscovery
from tests.runtime.worker.routines import echo, ended, gone, nap, pid, spread, started
from wool import WorkerPool, WorkerProxy

if TYPE_CHECKING:
    from pathlib import Path


async def test_pool_in_a_pool_is_the_active_one_until_it_is_left() -> None:
    async with WorkerPool(size=1):
        outer = await pid()
        async with WorkerPool(size=1):
            inner = await pid()
            assert inner != outer
            assert (await spread(2)) == (inner, {inner})
        assert await pid() == outer
    with pytest.raises(RuntimeError, match="No pool is active"):
        await pid()


async def test_inner_pool_that_is_left_by_an_exception_leaves_the_outer_one() -> None:
    async def use() -> None:
        async with WorkerPool(size=1):
            raise KeyError("mine")

    async with WorkerPool(size=1):
        outer = await pid()
        with pytest.raises(KeyError, match="mine"):
            await use()
        assert await pid() == outer


@wool.routine
async def with_a_pool() -> tuple[int, int, int, int | None]:
    """Where it runs, where a call in a pool of its own does, and where one after that."""
    async with WorkerPool(size=1):
        inner = await pid()
        parent = psutil.Process(inner).ppid()
    return os.getpid(), inner, await pid(), parent


@wool.routine
async def nap_in_a_pool(path: str) -> None:
    async with WorkerPool(size=1):
        await nap(path)


@wool.routine
async def nap_in_a_pool_that_leaves_no_record(path: str) -> None:
    async with WorkerPool(size=1, discovery=MemoryDiscovery()):
        await nap(path)


async def test_pool_in_a_routine() -> None:
    async with WorkerPool(size=1):
        here, inner, after, parent = await with_a_pool()
        assert inner != here
        assert parent == here == after
        await gone(inner)


async def test_pool_in_a_routine_ends_with_it(tmp_path: Path) -> None:
    path = str(tmp_path / "nap")
    async with WorkerPool(size=1):
        here = psutil.Process(await pid())
        call = asyncio.create_task(nap_in_a_pool(path))
        await started(path)
        inner = [child.pid for child in here.children(recursive=True)]
        assert inner
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert ended(path)
        await gone(*inner)


async def test_pool_in_a_routine_ends_with_its_worker(tmp_path: Path) -> None:
    """A50: when that is killed."""
    path = str(tmp_path / "nap")
    async with WorkerPool(size=1):
        here = psutil.Process(await pid())
        call = asyncio.create_task(nap_in_a_pool_that_leaves_no_record(path))
        await started(path)
        inner = [child.pid for child in here.children(recursive=True)]
        here.kill()
        with pytest.raises(wool.WorkerLost):
            await call
        await gone(*inner)


def test_successive_loops() -> None:
    """A57, A58: each `asyncio.run` has its own channels, and leaves nothing pending."""

    async def use() -> int:
        async with WorkerPool(size=1):
            await echo(1)
            return await pid()

    assert len({asyncio.run(use()) for _ in range(3)}) == 3


def test_successive_loops_that_share_a_worker() -> None:
    """A57: the worker outlives the first loop that calls it."""
    ready, over = threading.Event(), threading.Event()
    namespace: list[str | None] = []

    async def own() -> None:
        async with WorkerPool(size=1) as pool:
            namespace.append(pool.namespace)
            ready.set()
            await asyncio.to_thread(over.wait)

    async def use() -> int:
        async with WorkerProxy(namespace[0]):
            return await pid()

    with ThreadPoolExecutor(1) as executor:
        owning = executor.submit(asyncio.run, own())
        assert ready.wait(60)
        try:
            first, second = asyncio.run(use()), asyncio.run(use())
        finally:
            over.set()
        owning.result(60)
    assert first == second


def test_pools_in_several_threads() -> None:
    """A57: loops that run at the same time are isolated."""
    together = threading.Barrier(3)

    async def use() -> set[int]:
        async with WorkerPool(size=1):
            await asyncio.to_thread(together.wait, 60)
            pids = set(await asyncio.gather(*(pid() for _ in range(50))))
            assert [await echo(number) for number in range(20)] == list(range(20))
            await asyncio.to_thread(together.wait, 60)
        return pids

    with ThreadPoolExecutor(3) as executor:
        results = [executor.submit(asyncio.run, use()) for _ in range(3)]
        pids = [result.result(100) for result in results]
    assert list(map(len, pids)) == [1, 1, 1]
    assert len(set.union(*pids)) == 3


async def test_pool_is_not_for_another_loop() -> None:
    """A57: `to_thread` copies the context, but a pool belongs to the loop that has entered it."""
    async with WorkerPool(size=1):
        with pytest.raises(RuntimeError, match="was started in another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(echo(1)))
        assert await echo(2) == 2


def test_proxy_of_a_loop_that_is_closed_can_be_started_again() -> None:
    proxy = WorkerProxy(discovery=MemoryDiscovery().subscriber)
    asyncio.run(proxy.start())
    assert not proxy.started

    async def again() -> None:
        with pytest.raises(RuntimeError, match="Proxy not started"):
            await proxy.stop()
        async with proxy:
            assert proxy.started

    asyncio.run(again())


async def test_second_task_in_a_shared_context_is_refused() -> None:
    """A40: it fails before it takes the first one's calls, and leaves nothing."""

    async def first() -> None:
        async with WorkerPool(size=1):
            there = await pid()
            entered.set()
            await tried.wait()
            assert await pid() == there
        with pytest.raises(RuntimeError, match="No pool is active"):
            await pid()

    async def second() -> None:
        await entered.wait()
        try:
            with pytest.raises(RuntimeError, match="Another task that shares this context"):
                await WorkerPool(size=1).__aenter__()
            with pytest.raises(RuntimeError, match="Another task that shares this context"):
                await WorkerProxy(discovery=MemoryDiscovery().subscriber).start()
        finally:
            tried.set()

    entered, tried = asyncio.Event(), asyncio.Event()
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(each(), context=context) for each in (first, second)]
    await asyncio.gather(*tasks)


async def test_second_task_in_a_shared_context_may_enter_when_the_first_has_left() -> None:
    """A40: be it that it has left the pool, or has ended in it, as fixtures do."""

    async def use() -> None:
        async with WorkerProxy(discovery=MemoryDiscovery().subscriber) as proxy:
            assert wool.__proxy__.get() is proxy

    async def enter() -> WorkerProxy:
        return await WorkerProxy(discovery=MemoryDiscovery().subscriber).__aenter__()

    async def leave(proxy: WorkerProxy) -> None:
        await use()
        assert wool.__proxy__.get() is proxy
        await proxy.stop()
        assert wool.__proxy__.get() is None

    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    await loop.create_task(use(), context=context)
    proxy = await loop.create_task(enter(), context=context)
    await loop.create_task(use(), context=context)
    await loop.create_task(leave(proxy), context=context)


async def test_child_tasks_may_enter_pools_of_their_own() -> None:
    """A40: a copy of a context is not the same context."""

    async def use() -> None:
        async with WorkerProxy(discovery=MemoryDiscovery().subscriber) as proxy:
            assert wool.__proxy__.get() is proxy
            await both.wait()
        assert wool.__proxy__.get() is outer

    both = asyncio.Barrier(2)
    async with WorkerProxy(discovery=MemoryDiscovery().subscriber) as outer:
        await asyncio.gather(use(), use())
        async with WorkerProxy(discovery=MemoryDiscovery().subscriber) as inner:
            assert wool.__proxy__.get() is inner
        assert wool.__proxy__.get() is outer
