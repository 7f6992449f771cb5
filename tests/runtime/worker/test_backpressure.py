"""Workers that run a limited number of tasks at once, and calls that wait for them."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import aclosing, asynccontextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest

import wool
from tests.runtime.worker.routines import nap, pid, touch
from tests.support import eventually
from wool import (
    BackpressureContext,
    BackpressureLike,
    DispatchTimeout,
    LocalWorker,
    NoWorkersAvailable,
    RuntimeContext,
    WorkerMetadata,
    WorkerPool,
    WorkerProxy,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

running: set[object] = set()
most = 0


@wool.routine
async def work(seconds: float = 0.01, size: bytes = b"") -> tuple[int, int]:
    """Which worker ran it, and how many of these it has run at once so far."""
    global most
    me = object()
    running.add(me)
    most = max(most, len(running))
    try:
        await asyncio.sleep(seconds)
        return os.getpid(), most
    finally:
        running.discard(me)


@wool.routine
async def tree(depth: int) -> int:
    """How many calls, this one included, it takes to call itself twice, so many levels deep."""
    if not depth:
        return 1
    return 1 + sum(await asyncio.gather(tree(depth - 1), tree(depth - 1)))


@wool.routine
async def numbers(values: int) -> AsyncGenerator[int, None]:
    for value in range(values):
        yield value


@wool.routine(tags={"special"})
async def special(seconds: float) -> None:
    await asyncio.sleep(seconds)


@wool.routine
async def fail() -> None:
    raise LookupError("on purpose")


def limited(size: int, tasks: int, **options: Any) -> WorkerPool:
    return WorkerPool(size=size, worker=partial(LocalWorker, max_concurrent_tasks=tasks), **options)


@asynccontextmanager
async def one_worker(**options: Any) -> AsyncIterator[WorkerMetadata]:
    worker = LocalWorker(**options)
    await worker.start()
    try:
        assert worker.metadata is not None
        yield worker.metadata
    finally:
        await worker.stop()


class TestLimit:
    """How many tasks run at once."""

    async def test_keeps_to_it_and_runs_everything(self) -> None:
        async with limited(2, 3):
            results = await asyncio.gather(*(work() for _ in range(60)))
            peaks = dict(results)
        assert len(peaks) == 2
        assert set(peaks.values()) == {3}

    async def test_counts_the_calls_of_several_clients(self) -> None:
        async with (
            one_worker(max_concurrent_tasks=2) as metadata,
            WorkerProxy(workers=[metadata]),
        ):
            first = [asyncio.create_task(work()) for _ in range(20)]
            async with WorkerProxy(workers=[metadata]):
                results = await asyncio.gather(*(work() for _ in range(20)), *first)
        assert {peak for _, peak in results} == {2}

    async def test_counts_the_calls_of_several_event_loops(self) -> None:
        async with one_worker(max_concurrent_tasks=2) as metadata:

            async def use() -> list[tuple[int, int]]:
                async with WorkerProxy(workers=[metadata]):
                    return await asyncio.gather(*(work() for _ in range(50)))

            elsewhere = asyncio.to_thread(lambda: asyncio.run(use()))
            results = list(chain(*await asyncio.gather(use(), elsewhere)))
        assert len(results) == 100
        assert {peak for _, peak in results} <= {1, 2}

    async def test_full_workers_are_passed_over(self, tmp_path: Path) -> None:
        async with limited(2, 1):
            napping = asyncio.create_task(nap(str(tmp_path / "n")))
            await eventually((tmp_path / "n.started").exists)
            pids = set(await asyncio.gather(*(pid() for _ in range(10))))
            assert len(pids) == 1
            napping.cancel()

    async def test_waiting_calls_run_in_the_order_in_which_they_were_made(self) -> None:
        ended: list[int] = []

        async def call(number: int) -> None:
            await work()
            ended.append(number)

        async with limited(1, 1):
            await asyncio.gather(*map(call, range(30)))
        assert ended == list(range(30))

    async def test_a_call_made_later_does_not_go_first(self, tmp_path: Path) -> None:
        async with limited(1, 1) as pool:
            napping = asyncio.create_task(nap(str(tmp_path / "n")))
            await eventually((tmp_path / "n.started").exists)
            ended: list[str] = []

            async def call(name: str) -> None:
                await work()
                ended.append(name)

            first = asyncio.create_task(call("first"))
            await eventually(lambda: waiting(pool) == 1)
            napping.cancel()
            await asyncio.gather(call("second"), first)
        assert ended == ["first", "second"]

    async def test_a_caller_that_goes_on_and_on_leaves_turns_to_others(self) -> None:
        ended = 0

        async def go_on() -> None:
            nonlocal ended
            while True:
                await work(0)
                ended += 1

        async with limited(1, 1):
            going_on = asyncio.create_task(go_on())
            await eventually(lambda: ended > 0)
            for _ in range(300):
                before = ended
                await work(0)
                assert ended - before <= 5
            going_on.cancel()

    async def test_calls_that_require_tags_take_turns_with_others(self) -> None:
        ended: list[str] = []

        async def call(name: str, routine: Any) -> None:
            await routine(0.001)
            ended.append(name)

        worker = partial(LocalWorker, max_concurrent_tasks=1)
        async with WorkerPool("special", size=1, worker=worker) as pool:
            first = [asyncio.create_task(call("first", work)) for _ in range(20)]
            await eventually(lambda: waiting(pool) > 10)
            tagged = asyncio.create_task(call("tagged", special))
            await asyncio.sleep(0)  # It is made before the others.
            await asyncio.gather(tagged, *first, *(call("later", work) for _ in range(20)))
        assert ended.index("tagged") < ended.index("later")

    async def test_proxies_take_turns(self) -> None:
        async with one_worker(max_concurrent_tasks=1) as metadata:
            proxies = [WorkerProxy(workers=[metadata]) for _ in range(2)]
            for much, little in (proxies, proxies[::-1]) * 5:
                async with much:
                    many = [asyncio.create_task(work(0)) for _ in range(100)]
                    await asyncio.wait(many, return_when=asyncio.FIRST_COMPLETED)
                    async with little:
                        await work(0)
                    assert not many[-1].done()
                    await asyncio.gather(*many)

    async def test_a_stream_counts_until_it_is_closed(self) -> None:
        async with limited(1, 1) as pool:
            async with aclosing(numbers(10)) as stream:
                assert await anext(stream) == 0
                call = asyncio.create_task(work())
                await eventually(lambda: waiting(pool) == 1)
                assert await anext(stream) == 1
                assert not call.done()
            await call

    async def test_a_failed_task_makes_room(self) -> None:
        async with limited(1, 1):
            results = await asyncio.gather(*(fail() for _ in range(10)), return_exceptions=True)
            assert all(isinstance(result, LookupError) for result in results)
            await work()

    async def test_recursion_deeper_than_it_does_not_wait_for_itself(self) -> None:
        async with limited(2, 1):
            async with asyncio.timeout(30):
                assert await asyncio.gather(*(tree(6) for _ in range(4))) == [127] * 4

    async def test_large_arguments_wait_as_well(self) -> None:
        async with limited(1, 2):
            sizes = (bytes(3_000_000) for _ in range(10))
            results = await asyncio.gather(*(work(0.01, size) for size in sizes))
        assert {peak for _, peak in results} == {2}

    async def test_a_worker_that_is_replaced_takes_what_waits(self, tmp_path: Path) -> None:
        async with limited(1, 1) as pool:
            napping = asyncio.create_task(nap(str(tmp_path / "n")))
            await eventually((tmp_path / "n.started").exists)
            calls = [asyncio.create_task(work()) for _ in range(5)]
            await eventually(lambda: waiting(pool) == 5)
            (worker,) = pool_proxy(pool).workers
            os.kill(worker.pid, 9)
            assert len(await asyncio.gather(*calls)) == 5
            with pytest.raises(wool.WorkerLost):
                await napping

    @pytest.mark.parametrize("stage", ["waiting", "let go"])
    async def test_a_cancelled_call_leaves_its_turn_to_the_next(
        self, stage: str, tmp_path: Path
    ) -> None:
        async with limited(1, 1) as pool:
            napping = asyncio.create_task(nap(str(tmp_path / "n")))
            await eventually((tmp_path / "n.started").exists)
            first, second = (asyncio.create_task(work()) for _ in range(2))
            await eventually(lambda: waiting(pool) == 2)
            if stage == "waiting":
                first.cancel()
                napping.cancel()
            else:
                napping.cancel()
                await eventually(lambda: waiting(pool) < 2, interval=0)
                first.cancel()
            async with asyncio.timeout(10):
                await second

    async def test_storm_of_cancellations_leaves_room(self) -> None:
        async with limited(2, 2) as pool:
            calls = [asyncio.create_task(work(0.001, bytes(i % 7 * 50_000))) for i in range(500)]
            for i, call in enumerate(calls):
                if i % 3:
                    await asyncio.sleep(0)
                    call.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert sum(isinstance(each, tuple) for each in results) >= 167
            assert not waiting(pool)
            async with asyncio.timeout(10):
                peaks = await asyncio.gather(*(work() for _ in range(20)))
        assert {peak for _, peak in peaks} <= {1, 2}


class TestDispatchTimeout:
    """How long a call waits for room."""

    async def test_bounds_it(self, tmp_path: Path) -> None:
        async with limited(2, 1):
            naps = [asyncio.create_task(nap(str(tmp_path / f"n{i}"))) for i in range(2)]
            for i in range(2):
                await eventually((tmp_path / f"n{i}.started").exists)
            began = time.monotonic()
            with (
                RuntimeContext(dispatch_timeout=0.3),
                pytest.raises(
                    NoWorkersAvailable, match=r"all 2 workers .* full for 0.3 s"
                ) as raised,
            ):
                await work()
            assert 0.3 <= time.monotonic() - began < 3
            assert isinstance(raised.value.__cause__, DispatchTimeout)
            for each in naps:
                each.cancel()

    async def test_a_pool_that_is_left_lets_calls_have_their_turn(self, tmp_path: Path) -> None:
        async with limited(1, 1) as pool:
            napping = asyncio.create_task(nap(str(tmp_path / "n"), 0.5))
            await eventually((tmp_path / "n.started").exists)
            calls = [asyncio.create_task(work()) for _ in range(5)]
            await eventually(lambda: waiting(pool) == 5)
        assert napping.result() == "slept"
        assert {peak for _, peak in [call.result() for call in calls]} == {1}

    async def test_a_pool_that_is_left_by_an_exception_ends_the_wait(self, tmp_path: Path) -> None:
        calls: list[asyncio.Task[Any]] = []

        async def leave() -> None:
            async with limited(1, 1) as pool:
                calls.append(asyncio.create_task(nap(str(tmp_path / "n"))))
                await eventually((tmp_path / "n.started").exists)
                calls.append(asyncio.create_task(work()))
                await eventually(lambda: waiting(pool) == 1)
                raise LookupError

        with pytest.raises(LookupError):
            await leave()
        napping, call = calls
        with pytest.raises(RuntimeError, match="stopped while a call waited"):
            await call
        with pytest.raises(asyncio.CancelledError):
            await napping


class TestBackpressure:
    """The hook that may refuse tasks."""

    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_refused_tasks_wait_until_it_lets_them_pass(self, asynchronous: bool) -> None:
        hook: BackpressureLike = at_most_two_later if asynchronous else at_most_two
        async with WorkerPool(size=1, worker=partial(LocalWorker, backpressure=hook)):
            async with asyncio.timeout(30):
                results = await asyncio.gather(*(work() for _ in range(30)))
        assert {peak for _, peak in results} == {2}

    async def test_is_given_the_task(self) -> None:
        hook = partial(refuse_if, lambda task: "fail" in task.tag)
        async with WorkerPool(size=1, worker=partial(LocalWorker, backpressure=hook)):
            await work()
            with RuntimeContext(dispatch_timeout=0.2), pytest.raises(NoWorkersAvailable):
                await fail()
            await work()

    async def test_is_asked_again_when_nothing_runs(self, tmp_path: Path) -> None:
        flag = tmp_path / "open"
        hook = partial(closed_unless, str(flag))
        async with WorkerPool(size=1, worker=partial(LocalWorker, backpressure=hook)) as pool:
            call = asyncio.create_task(work())
            await eventually(lambda: waiting(pool) == 1)
            flag.touch()
            async with asyncio.timeout(10):
                await call

    async def test_is_not_asked_about_the_calls_of_routines(self) -> None:
        worker = partial(LocalWorker, backpressure=at_most_two)
        async with WorkerPool(size=1, worker=worker), asyncio.timeout(30):
            assert await asyncio.gather(*(tree(4) for _ in range(4))) == [31] * 4

    async def test_works_with_a_limit(self) -> None:
        worker = partial(LocalWorker, max_concurrent_tasks=3, backpressure=at_most_two)
        async with WorkerPool(size=1, worker=worker), asyncio.timeout(30):
            results = await asyncio.gather(*(work() for _ in range(30)))
        assert {peak for _, peak in results} == {2}

    async def test_a_task_that_it_thinks_about_can_be_cancelled(self, tmp_path: Path) -> None:
        hook = partial(think, str(tmp_path / "thinking"))
        async with WorkerPool(size=1, worker=partial(LocalWorker, backpressure=hook)):
            call = asyncio.create_task(nap(str(tmp_path / "n")))
            await eventually((tmp_path / "thinking").exists)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        assert not (tmp_path / "n.started").exists()

    async def test_a_task_that_it_thinks_about_can_be_withdrawn(self, tmp_path: Path) -> None:
        hook = partial(think, str(tmp_path / "thinking"))
        async with WorkerPool(size=1, worker=partial(LocalWorker, backpressure=hook)):
            with RuntimeContext(dispatch_timeout=0.5), pytest.raises(NoWorkersAvailable) as raised:
                await nap(str(tmp_path / "n"))
            assert isinstance(raised.value.__cause__, DispatchTimeout)
        assert (tmp_path / "thinking").exists()
        assert not (tmp_path / "n.started").exists()

    async def test_a_worker_whose_hook_raises_is_out(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with (
            one_worker(backpressure=broken) as metadata,
            WorkerProxy(workers=[metadata]) as proxy,
        ):
            with pytest.raises(NoWorkersAvailable, match=r"hook raised ValueError\('on purpose'\)"):
                await work()
            assert not proxy.workers
        assert "is out for an error" in caplog.text

    async def test_a_pool_whose_workers_all_fail_so_does_not_wait_for_others(self) -> None:
        async with WorkerPool(size=2, worker=partial(LocalWorker, backpressure=broken)):
            for _ in range(2):
                async with asyncio.timeout(20):
                    with pytest.raises(NoWorkersAvailable, match="hook raised ValueError"):
                        await work()


class TestBadInput:
    @pytest.mark.parametrize("tasks", [0, -1])
    def test_a_number_below_one(self, tasks: int) -> None:
        with pytest.raises(ValueError, match=f"max_concurrent_tasks must be positive, got {tasks}"):
            LocalWorker(max_concurrent_tasks=tasks)

    @pytest.mark.parametrize("tasks", [1.0, "3", True])
    def test_no_number(self, tasks: Any) -> None:
        with pytest.raises(TypeError, match="max_concurrent_tasks must be an int, or None, got"):
            LocalWorker(max_concurrent_tasks=tasks)

    def test_a_hook_that_cannot_be_called(self) -> None:
        hook: Any = 3
        with pytest.raises(TypeError, match="Expected BackpressureLike, got: 3"):
            LocalWorker(backpressure=hook)

    def test_a_hook_that_cannot_travel(self) -> None:
        lock = threading.Lock()
        with pytest.raises(TypeError) as raised:
            LocalWorker(backpressure=lambda context: lock.locked())
        assert "while pickling the backpressure hook" in "".join(raised.value.__notes__)


def pool_proxy(pool: WorkerPool) -> WorkerProxy:
    proxy = wool.__proxy__.get()
    assert isinstance(proxy, WorkerProxy)
    return proxy


def waiting(pool: WorkerPool) -> int:
    """How many calls wait for room."""
    running = pool_proxy(pool)._running
    assert running is not None
    return sum(len(line) for line in running.lines.values())


def at_most_two(context: BackpressureContext) -> bool:
    return context.active_task_count >= 2


async def at_most_two_later(context: BackpressureContext) -> bool:
    await asyncio.sleep(0)
    return context.active_task_count >= 2


def refuse_if(condition: Any, context: BackpressureContext) -> bool:
    return bool(condition(context.task))


def closed_unless(path: str, context: BackpressureContext) -> bool:
    return not os.path.exists(path)


async def think(path: str, context: BackpressureContext) -> bool:
    touch(path)
    await asyncio.sleep(600)
    return False


def broken(context: BackpressureContext) -> bool:
    raise ValueError("on purpose")
