"""What programs are told of what happens: `wool.events`."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

import wool
from tests.runtime.worker.routines import echo, kill, pid
from wool import Event, LocalWorker, WorkerFull, WorkerLost, WorkerPool
from wool.runtime import observation

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


@wool.routine
async def numbers() -> AsyncGenerator[int, None]:
    for number in range(10):
        yield number


@wool.routine
async def fail() -> None:
    raise LookupError("on purpose")


@wool.routine
async def seen_here() -> list[str]:
    """What a worker sees of a task, and of a call that it makes."""
    async with wool.events() as events:
        await pid()
        await events.aclose()
        return [event.kind async for event in events if event.tag]


@asynccontextmanager
async def used_pool() -> AsyncGenerator[None, None]:
    """A pool of one worker, which has been admitted."""
    async with WorkerPool(size=1):
        await pid()
        yield


async def kinds(events: wool.Events) -> list[str]:
    """Those so far, of calls."""
    await events.aclose()
    return [event.kind async for event in events if event.tag]


class TestEvents:
    async def test_of_a_call(self) -> None:
        async with used_pool(), wool.events() as events:
            await echo(1)
            started, ended = [await anext(events) for _ in range(2)]
        assert (started.kind, ended.kind) == ("call-started", "call-ended")
        assert started.id == ended.id is not None
        assert "routines.echo:" in started.tag
        assert started.tag == ended.tag
        assert started.seconds is None
        assert ended.seconds is not None
        assert 0 < ended.seconds < 60
        assert ended.error is None
        assert 0 <= ended.time - started.time < 60

    async def test_of_a_call_that_fails(self) -> None:
        async with used_pool(), wool.events() as events:
            with pytest.raises(LookupError):
                await fail()
            _, ended = [await anext(events) for _ in range(2)]
        assert isinstance(ended.error, LookupError)

    async def test_of_a_call_that_is_lost(self) -> None:
        async with used_pool(), wool.events() as events:
            with pytest.raises(WorkerLost):
                await kill(signal.SIGKILL)
            found = [await anext(events) for _ in range(3)]
        assert {event.kind for event in found} == {"call-started", "worker-removed", "call-ended"}
        (error,) = [event.error for event in found if event.error is not None]
        assert isinstance(error, WorkerLost)

    async def test_of_a_stream(self) -> None:
        async with used_pool(), wool.events() as events:
            assert [number async for number in numbers()] == list(range(10))
            async with aclosing(numbers()) as stream:
                await anext(stream)
            found = [await anext(events) for _ in range(4)]
        assert [event.kind for event in found] == ["call-started", "call-ended"] * 2
        assert [event.error for event in found] == [None] * 4

    async def test_of_workers(self) -> None:
        async with wool.events() as events:
            async with WorkerPool(size=2) as pool:
                await asyncio.gather(*(pid() for _ in range(4)))
                assert pool.namespace
            await events.aclose()
            admitted = [event.worker async for event in events if event.kind == "worker-admitted"]
        assert len({worker.uid for worker in admitted if worker is not None}) == 2

    async def test_of_a_worker_that_refuses(self) -> None:
        worker = partial(LocalWorker, max_concurrent_tasks=1)
        async with WorkerPool(size=1, worker=worker), wool.events() as events:
            await asyncio.gather(*(pid() for _ in range(3)))
            await events.aclose()
            found = [event async for event in events]
        refused = [event for event in found if event.kind == "call-refused"]
        assert refused
        assert all(isinstance(event.error, WorkerFull) for event in refused)
        assert {event.worker for event in refused} == {event.worker for event in found} - {None}
        assert {event.id for event in refused} < {event.id for event in found}

    async def test_of_a_worker(self) -> None:
        async with WorkerPool(size=1):
            assert await seen_here() == ["call-started", "task-started", "task-ended", "call-ended"]

    async def test_that_wait_are_limited(self) -> None:
        async with used_pool(), wool.events(limit=3) as events:
            await echo(1)
            await echo(2)
            assert events.dropped == 1
            assert await kinds(events) == ["call-ended", "call-started", "call-ended"]

    async def test_from_another_thread(self) -> None:
        async with wool.events() as events:
            taken = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            event = Event("call-started", 0.0)
            threading.Thread(target=observation.emit, args=[event]).start()
            async with asyncio.timeout(10):
                assert await taken is event

    async def test_end_when_closed(self) -> None:
        events = wool.events()
        waiting = asyncio.ensure_future(anext(events, None))
        await asyncio.sleep(0)
        await events.aclose()
        assert await waiting is None
        assert observation.listeners == ()

    async def test_limit_that_makes_no_sense(self) -> None:
        with pytest.raises(ValueError, match="limit must be positive, got 0"):
            wool.events(limit=0)


def test_a_listener_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def listener(event: Event, task: object) -> None:
        raise ValueError("on purpose")

    heard: list[Event] = []
    ends = [
        observation.listen(listener),
        observation.listen(lambda event, task: heard.append(event)),
    ]
    event = Event("call-started", 0.0)
    observation.emit(event)
    for end in ends:
        end()
    observation.emit(event)
    assert heard == [event]
    assert "failed on Event" in caplog.text
