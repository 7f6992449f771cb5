"""A caller is cancelled at every stage of a call: nothing is left of it, and the session is good.

The worker is a process of its own, shared by these tests. Stages at which only a scripted worker
can hold a call are in `runtime/worker/test_call.py`.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import pytest_asyncio

from tests import wire_routines as routines
from tests.runtime.worker.peers import (
    settled,
)
from tests.support import eventually
from tests.torture.storm import storm
from wool import WorkerProxy
from wool.runtime.worker.arena import Arena
from wool.runtime.worker.connection import _links_of
from wool.runtime.worker.local import LocalWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from wool import WorkerMetadata
    from wool.runtime.worker.session import Session

MIB = 1024 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[WorkerMetadata]:
    worker = LocalWorker()
    await worker.start()
    assert worker.metadata is not None
    yield worker.metadata
    await worker.stop()


@asynccontextmanager
async def calling(worker: WorkerMetadata) -> AsyncIterator[None]:
    """Calls go to the worker. In the end nothing of them is left, and the session is good."""
    async with WorkerProxy(workers=[worker]):
        await routines.noop()
        session = the_session()
        yield
        assert await routines.echo("good") == "good"
        assert the_session() is session
        assert not session._calls
        await eventually(lambda: not session._outbox and session._outbox.size == 0)
        assert not session._assemblies._assemblies
        if session._shared is not None:
            assert session._shared.arena.used == 0
            assert not session._fetches
        assert session._small_gate._granted == session._large_gate._granted == 0
        await settled(_no_residue)


async def _no_residue() -> bool:
    return not await routines.residue()


def the_session() -> Session:
    (link,) = _links_of(asyncio.get_running_loop()).values()
    assert link._session is not None
    return link._session


async def heard(key: str, *entries: str) -> None:
    """Wait for the worker's log to have these entries."""

    async def matches() -> bool:
        return await routines.seen(key) == list(entries)

    await settled(matches)


def begin(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(coroutine)


async def cancelled(task: asyncio.Task[Any], message: str = "enough") -> None:
    """Cancel it, and see it end with that cancellation."""
    task.cancel(message)
    with pytest.raises(asyncio.CancelledError, match=message):
        await task
    assert task.cancelled()


async def test_call_cancelled_while_it_runs(worker: WorkerMetadata) -> None:
    async with calling(worker):
        task = begin(routines.sleep("runs"))
        await heard("runs", "started")

        await cancelled(task)

        assert await routines.seen("runs") == ["started", "ended"]


async def test_caller_resumes_after_slow_cleanup(worker: WorkerMetadata) -> None:
    async with calling(worker):
        task = begin(routines.sleep("slow", cleanup=0.5))
        await heard("slow", "started")

        await cancelled(task)

        assert await routines.seen("slow") == ["started", "ended"]


async def test_call_cancelled_twice_cuts_its_cleanup_short(worker: WorkerMetadata) -> None:
    async with calling(worker):
        task = begin(routines.sleep("twice", cleanup=3600))
        await heard("twice", "started")
        task.cancel("first")
        assert await routines.seen("twice") == ["started"]

        task.cancel("second")
        with pytest.raises(asyncio.CancelledError):
            await task

        assert await routines.seen("twice") == ["started"]


async def test_value_returned_after_all(worker: WorkerMetadata) -> None:
    async with calling(worker):
        task = begin(routines.suppress("after", "a value"))
        await heard("after", "started")

        task.cancel()

        assert await task == "a value"
        assert await routines.seen("after") == ["started", "cancelled"]


async def test_large_value_returned_after_all(worker: WorkerMetadata) -> None:
    async with calling(worker):
        task = begin(routines.suppress("large", bytes(8 * MIB)))
        await heard("large", "started")

        task.cancel()

        assert await task == bytes(8 * MIB)


async def test_exception_raised_by_cleanup(worker: WorkerMetadata) -> None:
    async with calling(worker):
        task = begin(routines.never_mind("raises"))
        await heard("raises", "started")
        task.cancel()
        with pytest.raises(LookupError, match="raises") as caught:
            await task
        assert isinstance(caught.value.__context__, asyncio.CancelledError)


async def test_routine_that_ignores_cancellations_is_cancelled_again(
    worker: WorkerMetadata,
) -> None:
    async with calling(worker):
        task = begin(routines.insist("insists", 2))
        for n in range(2):
            await heard("insists", "started", *["cancelled"] * n)
            task.cancel()

        await heard("insists", "started", "cancelled", "cancelled")
        assert not task.done()
        await cancelled(task)


async def test_timeout_around_a_call(worker: WorkerMetadata) -> None:
    """The caller's own cancellation comes back to it: `timeout` knows its own by the count."""
    async with calling(worker):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await routines.sleep("timeout", cleanup=0.1)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert await routines.seen("timeout") == ["started", "ended"]


async def test_cancellation_of_a_call_that_has_ended_is_not_lost(worker: WorkerMetadata) -> None:
    """A result that is on its way is no answer to a cancellation, which the routine never saw.

    Otherwise one that calls again and again may not end when it is cancelled.
    """
    async with calling(worker):
        for delay in range(150):

            async def forever() -> None:
                while True:
                    await routines.noop()

            task = begin(forever())
            for _ in range(delay % 30 + 1):
                await asyncio.sleep(0)
            if delay % 3 == 0:
                await asyncio.sleep(0.0001 * delay)
            task.cancel("once")
            async with asyncio.timeout(20):
                with pytest.raises(asyncio.CancelledError, match="once"):
                    await task


async def test_calls_cancelled_at_any_moment(worker: WorkerMetadata) -> None:
    """A14, A15, A16: many calls and streams, each cancelled after another number of turns."""
    makers: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        lambda: routines.noop(),
        lambda: routines.sleep("many"),
        lambda: routines.size(bytes(MIB)),
        lambda: routines.make(MIB),
        lambda: _exhaust(routines.count(20)),
        lambda: _exhaust(routines.pieces(MIB, 3)),
        lambda: _converse("many", bytes(MIB)),
    ]
    async with calling(worker):
        tasks = []
        for turn in range(280):
            task = begin(makers[turn % len(makers)]())
            tasks.append(task)
            for _ in range(turn % 23):
                await asyncio.sleep(0)
            if turn % 5 == 0:
                await asyncio.sleep(0.002 * (turn % 9))
            tasks[turn // 2].cancel()
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [
            o
            for o in outcomes
            if isinstance(o, Exception | asyncio.CancelledError)
            and not isinstance(o, asyncio.CancelledError)
        ] == []


@pytest.mark.parametrize("host", [None, "127.0.0.1"], ids=["shared memory", "the stream"])
async def test_storm(host: str | None) -> None:
    """Calls of all kinds, nested ones too; `make torture` does so for longer."""
    result = await storm(Random(14), 2, host)
    assert result.violations == []
    assert result.outcomes["cancelled"] > 50


async def _exhaust(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


async def _converse(key: str, value: Any) -> None:
    stream = routines.talk(key)
    try:
        await anext(stream)
        while True:
            await stream.asend(value)
    finally:
        await stream.aclose()


@pytest.fixture(params=["shared memory", "the stream"])
def transit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Transit:
    """What large payloads go through, and when."""
    if request.param == "the stream":
        monkeypatch.setattr(Arena, "create", lambda limit: None)
        return Transit(
            request.param,
            lambda session: session._outbox.large,
            lambda session: session._assemblies._assemblies,
        )
    if sys.platform != "linux":
        pytest.skip("memory is shared on Linux only")
    return Transit(
        request.param,
        lambda session: session._shared.arena.used,
        lambda session: session._fetches,
    )


class Transit(NamedTuple):
    """Whether something of a session is on its way to the worker, or from it."""

    name: str
    leaves: Callable[[Any], object]
    arrives: Callable[[Any], object]


async def test_arguments_in_transit(worker: WorkerMetadata, transit: Transit) -> None:
    """What has not been sent of them is left out, and what has is forgotten there."""
    async with calling(worker):
        await routines.seen("nothing")
        session = the_session()
        task = begin(routines.size(bytes(60 * MIB)))
        await eventually(lambda: transit.leaves(session), interval=0)

        await cancelled(task)

        assert session._outbox.size < MIB
        await eventually(lambda: not transit.leaves(session))


async def test_sent_value_in_transit(worker: WorkerMetadata, transit: Transit) -> None:
    """It is the stream that is cancelled, not a task that has not arrived."""
    async with calling(worker):
        stream = routines.talk(transit.name)
        await anext(stream)
        session = the_session()
        task = begin(stream.asend(bytes(60 * MIB)))
        await eventually(lambda: transit.leaves(session), interval=0)

        await cancelled(task)

        assert await routines.seen(transit.name) == ["ended"]
        await eventually(lambda: not transit.leaves(session))


async def test_result_in_transit(worker: WorkerMetadata, transit: Transit) -> None:
    async with calling(worker):
        task = begin(routines.make(60 * MIB))
        session = the_session()
        await eventually(lambda: transit.arrives(session), interval=0)

        await cancelled(task)

        await eventually(lambda: not transit.arrives(session))


async def test_item_in_transit(worker: WorkerMetadata, transit: Transit) -> None:
    async with calling(worker):
        stream = routines.pieces(60 * MIB, 2, f"items, {transit.name}")
        task = begin(anext(stream))
        session = the_session()
        await eventually(lambda: transit.arrives(session), interval=0)

        await cancelled(task)

        assert await routines.seen(f"items, {transit.name}") == ["ended"]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await eventually(lambda: not transit.arrives(session))


async def test_stream_cancelled_inside_an_await(worker: WorkerMetadata) -> None:
    """A14."""
    async with calling(worker):
        other = begin(routines.sleep("a14"))
        stream = routines.drip("stream", cleanup=0.2)
        await anext(stream)
        task = begin(anext(stream))
        await heard("stream", "started")

        await cancelled(task)

        assert await routines.seen("stream") == ["started", "ended"]
        await cancelled(other)


async def test_stream_that_yields_after_all(worker: WorkerMetadata) -> None:
    async with calling(worker):
        stream = routines.shrug("shrugs")
        assert await anext(stream) == "first"
        task = begin(anext(stream))
        await heard("shrugs", "started")
        task.cancel()

        assert await task == "after all"
        assert [item async for item in stream] == ["more"]


async def test_aclose_cancelled(worker: WorkerMetadata) -> None:
    async with calling(worker):
        stream = routines.linger("closing")
        await anext(stream)
        task = begin(stream.aclose())
        await heard("closing", "started")

        await cancelled(task)

        assert await routines.seen("closing") == ["started", "ended"]


async def test_consumer_cancelled_between_steps(worker: WorkerMetadata) -> None:
    async with calling(worker):
        reached = asyncio.Event()

        async def consume() -> None:
            stream = routines.count(10, "between")
            try:
                async for _ in stream:
                    reached.set()
                    await asyncio.sleep(3600)
            finally:
                await stream.aclose()

        task = begin(consume())
        await reached.wait()

        await cancelled(task)

        assert await routines.seen("between") == ["ended"]


async def test_gather_of_many_cancelled(worker: WorkerMetadata) -> None:
    async with calling(worker):
        together = asyncio.gather(*(routines.sleep("gather", cleanup=0.1) for _ in range(500)))
        await heard("gather", *["started"] * 500)

        together.cancel()
        with pytest.raises(asyncio.CancelledError):
            await together

        await eventually(lambda: not the_session()._calls, 30)
        assert (await routines.seen("gather")).count("ended") == 500
