"""Connections that are used for a time only."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

import wool
from tests.runtime.worker.peers import task_of
from tests.runtime.worker.routines import echo
from tests.support import eventually
from wool import LocalWorker, WorkerConnection, WorkerLost
from wool.runtime.worker.base import WorkerOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@wool.routine
async def hold() -> None:
    await asyncio.Event().wait()


@wool.routine
async def nap(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


@asynccontextmanager
async def connection(options: WorkerOptions) -> AsyncIterator[WorkerConnection]:
    """To a worker with these options."""
    worker = LocalWorker(options=options)
    await worker.start()
    assert worker.address is not None
    connection = WorkerConnection(worker.address, metadata=worker.metadata)
    try:
        yield connection
    finally:
        await connection.close()
        await worker.stop()


def session(connection: WorkerConnection) -> object:
    link = connection._link
    return link.ready if link is not None else None


async def aged(connection: WorkerConnection, first: object) -> None:
    """Return when a session has been retired, which it may have been before one could look."""
    await eventually(lambda: first is None or session(connection) is not first)


async def call(connection: WorkerConnection) -> None:
    assert await anext(await connection.dispatch(task_of(echo, 1))) == 1


async def test_old_connection_gets_no_more_calls_and_what_runs_there_ends() -> None:
    async with connection(WorkerOptions(max_connection_age_ms=500)) as way:
        for _ in range(2):
            await call(way)
            first = session(way)
            assert first is not None
            running = await way.dispatch(task_of(hold))
            await eventually(lambda: session(way) is not first)  # noqa: B023
            await call(way)
            assert session(way) not in (first, None)
            assert way.in_flight == 1
            await running.aclose()


@wool.routine
async def count(values: int) -> AsyncIterator[int]:
    for i in range(values):
        yield i


async def test_stream_goes_on_over_the_old_connection() -> None:
    async with connection(WorkerOptions(max_connection_age_ms=200)) as way:
        stream = await way.dispatch(task_of(count, 3))
        first = session(way)
        assert await anext(stream) == 0
        await aged(way, first)
        await call(way)
        assert [await stream.asend(None) for _ in range(2)] == [1, 2]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_what_runs_over_the_old_connection_may_end_when_it_is_closed() -> None:
    async with connection(WorkerOptions(max_connection_age_ms=200)) as way:
        running = await way.dispatch(task_of(nap, 1.0))
        await aged(way, session(way))
        closing = asyncio.create_task(way.close(timeout=30))
        assert await anext(running) == "slept"
        await closing


async def test_calls_never_notice() -> None:
    loop = asyncio.get_running_loop()
    async with connection(WorkerOptions(max_connection_age_ms=200)) as way:
        end = loop.time() + 2
        sessions = set()
        while loop.time() < end:
            await asyncio.gather(*(call(way) for _ in range(20)))
            sessions.add(id(session(way)))
        assert len(sessions) > 2


async def test_call_that_outlives_the_grace_is_lost() -> None:
    options = WorkerOptions(max_connection_age_ms=300, max_connection_age_grace_ms=300)
    async with connection(options) as way:
        with pytest.raises(WorkerLost):
            await anext(await way.dispatch(task_of(hold)))
        await call(way)


async def test_idle_connection_is_closed_and_opened_again() -> None:
    async with connection(WorkerOptions(max_connection_idle_ms=100)) as way:
        await call(way)
        await call(way)
