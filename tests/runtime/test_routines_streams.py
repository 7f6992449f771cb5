"""Async generators in workers: who moves them, and how they end."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

import wool
from tests.runtime.routines import countdown, diary, note, noted, pid, warm_pool
from tests.support import eventually
from wool.runtime.worker.call import Call

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def pool() -> AsyncIterator[wool.WorkerPool]:
    async with warm_pool() as pool:
        yield pool


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(tmp_path / "log")


@wool.routine
async def squares(log: str) -> AsyncGenerator[int, None]:
    number = 0
    while True:
        note(log, number)
        yield number**2
        number += 1


@wool.routine
async def relay() -> AsyncGenerator[Any, Any]:
    """Yields what is sent."""
    value = None
    while True:
        value = yield value


@wool.routine
async def locks(log: str) -> AsyncGenerator[object, None]:
    try:
        yield "picklable"
        yield threading.Lock()
    finally:
        note(log, "ended")


async def round_trips() -> None:
    """Both workers run what they have to run, several times over."""
    for _ in range(10):
        await asyncio.gather(pid(), pid())


async def test_body_is_pulled(log: str) -> None:
    """One step for each value asked for, however long the consumer takes."""
    stream = squares(log)
    await round_trips()
    assert noted(log) == []
    for i in range(3):
        assert await anext(stream) == i**2
        await round_trips()
        assert noted(log) == [str(n) for n in range(i + 1)]
    await stream.aclose()
    await round_trips()
    assert noted(log) == ["0", "1", "2"]


async def test_asynchronous_comprehension_and_anext_default(log: str) -> None:
    assert [item async for item in countdown(log) if item != 2] == [3, 1]
    stream = countdown(log)
    assert [await anext(stream, None) for _ in range(4)] == [3, 2, 1, None]


async def test_streams_are_independent() -> None:
    streams = [relay() for _ in range(20)]
    await asyncio.gather(*(anext(stream) for stream in streams))
    for round_number in range(3):
        values = [(i, round_number) for i in range(20)]
        sends = (stream.asend(value) for stream, value in zip(streams, values, strict=True))
        assert await asyncio.gather(*sends) == values
    await asyncio.gather(*(stream.aclose() for stream in streams))


async def test_values_of_all_sizes_go_both_ways() -> None:
    async with aclosing(relay()) as stream:
        await anext(stream)
        for size in (0, 1, 70_000, 300_000, 5_000_000):
            assert await stream.asend(b"x" * size) == b"x" * size


async def test_values_are_copies() -> None:
    """A10"""
    async with aclosing(relay()) as stream:
        await anext(stream)
        value = [1]
        copy = await stream.asend(value)
        assert copy == value
        assert copy is not value


async def test_many_steps(log: str) -> None:
    total = 0
    async with aclosing(squares(log)) as stream:
        async for square in stream:
            total += square
            if square == 999**2:
                break
    assert total == sum(i * i for i in range(1000))


async def test_yielded_value_that_can_not_be_pickled(log: str) -> None:
    stream = locks(log)
    assert await anext(stream) == "picklable"
    what = rf"^What routine {__name__}\.locks:\d+ yielded can't be pickled: cannot pickle '_thread"
    with pytest.raises(TypeError, match=what):
        await anext(stream)
    assert noted(log) == ["ended"]
    assert await anext(stream, "the end") == "the end"


async def test_sent_value_that_can_not_be_pickled(log: str) -> None:
    stream = diary(log)
    await anext(stream)
    what = (
        r"^What is sent to .*\.diary:\d+ can't be pickled: cannot pickle .* \(it is value\[0\]\)$"
    )
    with pytest.raises(TypeError, match=what):
        await stream.asend([threading.Lock()])
    assert noted(log) == ["began", "ending", "ended"]
    assert await anext(stream, "the end") == "the end"


async def test_thrown_exception_that_can_not_be_pickled(log: str) -> None:
    """What can't travel of it is replaced, as on the way back."""
    stream = diary(log)
    await anext(stream)
    assert await stream.athrow(ValueError("v", threading.Lock())) == noted(log)[-1]
    assert noted(log)[-1].startswith("caught ('v', '<unlocked _thread.lock")
    await stream.aclose()


async def test_concurrent_use_is_an_error_that_harms_nothing(log: str) -> None:
    stream = countdown(log)
    first = asyncio.create_task(stream.__anext__())
    await eventually(lambda: noted(log))
    for operation in (stream.__anext__(), stream.asend(None), stream.athrow(ValueError())):
        with pytest.raises(RuntimeError, match="asynchronous generator is already running"):
            await operation
    with pytest.raises(RuntimeError, match="asynchronous generator is already running"):
        await stream.aclose()
    assert await first == 3
    assert [item async for item in stream] == [2, 1]


async def test_stream_that_is_dropped_is_closed(log: str) -> None:
    stream = diary(log)
    async for _ in stream:
        break
    assert noted(log) == ["began"]
    del stream
    gc.collect()
    await eventually(lambda: noted(log) == ["began", "ending", "ended"])


async def test_stream_that_is_never_begun_is_no_call(log: str) -> None:
    stream = squares(log)
    del stream
    await round_trips()
    assert noted(log) == []


def calls() -> int:
    return sum(isinstance(thing, wool.Task | Call) for thing in gc.get_objects())


@pytest.fixture
def no_collection() -> Any:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
async def test_nothing_is_kept_of_a_call_that_has_ended(log: str) -> None:
    """A23, A59: no object of a call outlives it, without the help of the collector."""
    before = calls()
    await pid()
    assert calls() == before
    async with aclosing(diary(log)) as stream:
        await anext(stream)
        assert calls() > before
        await stream.athrow(ValueError("v"))
    del stream
    assert calls() == before
    with pytest.raises(LookupError):
        await raising(LookupError("l"))
    assert calls() == before


@wool.routine
async def raising(error: Exception) -> None:
    raise error


# Left open when the pool is left: each with a pool of its own.


async def test_stream_left_open_when_the_pool_is_left(log: str) -> None:
    async with wool.WorkerPool(size=1):
        stream = diary(log)
        await anext(stream)
    assert noted(log) == ["began", "ending", "ended"]
    with pytest.raises(RuntimeError, match=r"\.diary:\d+ was open when its pool was left"):
        await anext(stream)
    assert await anext(stream, "the end") == "the end"


async def test_stream_left_open_is_closed_after_the_pool(log: str) -> None:
    async with wool.WorkerPool(size=1):
        stream = diary(log)
        await anext(stream)
    await stream.aclose()
    assert await anext(stream, "the end") == "the end"
    assert noted(log) == ["began", "ending", "ended"]


async def test_stream_that_is_never_begun_needs_no_pool(log: str) -> None:
    async with wool.WorkerPool(size=1):
        stream = diary(log)
    await stream.aclose()
    assert noted(log) == []


async def test_stream_left_in_the_middle_of_a_step(log: str) -> None:
    """The pool, left normally, lets it take that step, and then it is closed."""
    async with wool.WorkerPool(size=1):
        stream = countdown(log)
        step = asyncio.create_task(stream.__anext__())
        await eventually(lambda: noted(log) == ["3"])
    assert await step == 3
    assert noted(log) == ["3"]
    with pytest.raises(RuntimeError, match="was open when its pool was left"):
        await anext(stream)
