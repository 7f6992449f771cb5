"""Streams whose worker runs ahead of the consumer."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
import pytest_asyncio

import wool
from tests.runtime.routines import note, noted, pid, warm_pool
from tests.support import eventually

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


def taken(log: str) -> list[int]:
    """The steps that have been taken."""
    return [int(word) for word in noted(log) if word.isdecimal()]


async def steps(log: str, values: int) -> AsyncGenerator[int, None]:
    try:
        for i in range(values):
            note(log, i)
            yield i
    finally:
        note(log, "ended")


by_five = wool.routine(prefetch=5)(steps)
by_one = wool.routine(prefetch=1)(steps)
pulled = wool.routine(prefetch=0)(steps)


@wool.routine(prefetch=5)
async def ahead(log: str) -> AsyncGenerator[str, None]:
    try:
        yield "first"
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        note(log, "cleaned up")


@wool.routine(prefetch=2)
async def late(log: str) -> AsyncGenerator[str, None]:
    try:
        note(log, "began")
        await asyncio.Event().wait()
        yield "never"
    finally:
        note(log, "cleaned up")


@wool.routine(prefetch=5)
async def failing(log: str) -> AsyncGenerator[int, None]:
    yield 1
    yield 2
    note(log, "failing")
    raise LookupError("third")


@wool.routine(prefetch=5)
async def failing_at_the_end() -> AsyncGenerator[int, None]:
    try:
        yield 1
        await asyncio.Event().wait()
    finally:
        raise LookupError("cleaning up")


@pytest.mark.parametrize("routine", [by_five, by_one, pulled])
@pytest.mark.parametrize("values", [0, 1, 5, 6, 7, 1000])
async def test_every_value_in_order(log: str, routine: Any, values: int) -> None:
    assert [value async for value in routine(log, values)] == [*range(values)]
    assert noted(log)[-1] == "ended"


async def test_worker_runs_as_far_ahead_as_it_may(log: str) -> None:
    """The value asked for and five more; each that is used makes room for another, in time."""
    async with aclosing(by_five(log, 100)) as stream:
        assert await anext(stream) == 0
        await eventually(lambda: taken(log) == [0, 1, 2, 3, 4, 5])
        for i in range(1, 20):
            assert await anext(stream) == i
            await pid()
            assert max(taken(log)) <= i + 5
        await eventually(lambda: max(taken(log)) >= 22)


async def test_nothing_runs_before_it_is_asked_for(log: str) -> None:
    stream = by_five(log, 1)
    await pid()
    assert noted(log) == []
    await stream.aclose()
    assert noted(log) == []


async def test_leaving_early_discards_the_rest_and_cleans_up(log: str) -> None:
    async with aclosing(by_five(log, 100)) as stream:
        async for value in stream:
            if value == 3:
                break
    assert noted(log)[-1] == "ended"
    assert max(taken(log)) < 10
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_leaving_cancels_the_step_under_way(log: str) -> None:
    stream = ahead(log)
    assert await anext(stream) == "first"
    await stream.aclose()
    assert noted(log) == ["cleaned up"]


async def test_cancelled_before_the_first_value(log: str) -> None:
    step = asyncio.ensure_future(anext(late(log)))
    await eventually(lambda: noted(log) == ["began"])
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert noted(log) == ["began", "cleaned up"]


async def test_cancelled_consumer(log: str) -> None:
    begun = asyncio.Event()

    async def consume() -> None:
        async for _ in ahead(log):
            begun.set()

    consumer = asyncio.create_task(consume())
    await begun.wait()
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    assert noted(log) == ["cleaned up"]


async def test_error_comes_after_the_values_before_it(log: str) -> None:
    stream = failing(log)
    assert await anext(stream) == 1
    await eventually(lambda: noted(log) == ["failing"])
    assert await anext(stream) == 2
    with pytest.raises(LookupError, match="third"):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_error_of_what_was_not_asked_for_is_discarded(log: str) -> None:
    stream = failing(log)
    assert await anext(stream) == 1
    await eventually(lambda: noted(log) == ["failing"])
    await stream.aclose()


async def test_error_of_cleaning_up_is_raised() -> None:
    stream = failing_at_the_end()
    assert await anext(stream) == 1
    with pytest.raises(LookupError, match="cleaning up"):
        await stream.aclose()


async def test_nothing_can_be_sent_or_thrown(log: str) -> None:
    stream: Any = by_five(log, 100)
    assert await anext(stream) == 0
    with pytest.raises(RuntimeError, match=r"steps:\d+ has prefetch=5, .* can't be sent"):
        await stream.asend(1)
    assert noted(log)[-1] == "ended"
    other = by_five(log, 100)
    assert await other.asend(None) == 0
    with pytest.raises(RuntimeError, match="can't be thrown") as caught:
        await other.athrow(LookupError("mine"))
    assert isinstance(caught.value.__cause__, LookupError)
    assert noted(log)[-1] == "ended"


async def test_prefetch_travels_by_value(log: str) -> None:
    @wool.routine(prefetch=3)
    async def local(log: str) -> AsyncGenerator[int, None]:
        for i in range(100):
            note(log, i)
            yield i

    @wool.routine
    async def consume(log: str) -> list[int]:
        async with aclosing(local(log)) as stream:
            await anext(stream)
            await eventually(lambda: taken(log) == [0, 1, 2, 3])
        return taken(log)

    assert await consume(log) == [0, 1, 2, 3]
    again = cloudpickle.loads(cloudpickle.dumps(local))
    assert again.__wool_options__.prefetch == 3


async def test_slow_reader_stalls_only_itself(log: str) -> None:
    async with aclosing(by_five(log, 1000)) as stream:
        await anext(stream)
        assert len([value async for value in pulled(log + "2", 100)]) == 100
        await eventually(lambda: len(noted(log)) == 6)


@pytest.mark.parametrize("prefetch", [-1, 1.5, True, "1", None, 2**31])
async def test_prefetch_must_be_a_number_of_values(prefetch: Any) -> None:
    with pytest.raises(ValueError, match="prefetch must be a number of values"):
        wool.routine(prefetch=prefetch)


async def test_prefetch_is_for_generators() -> None:
    async def one() -> None: ...

    with pytest.raises(ValueError, match="prefetch is for async generator functions"):
        wool.routine(prefetch=1)(one)
    wool.routine(prefetch=0)(one)


@wool.routine(prefetch=8)
async def blobs(sizes: list[int]) -> AsyncGenerator[bytes, None]:
    for size in sizes:
        yield bytes([size % 251]) * size


def over_tcp(*tags: str, credentials: Any = None) -> wool.LocalWorker:
    return wool.LocalWorker(*tags, host="127.0.0.1", credentials=credentials)


@pytest.mark.parametrize("worker", [wool.LocalWorker, over_tcp])
async def test_large_and_small_values_keep_their_order(worker: Any) -> None:
    """Whether through shared memory or in pieces, among which small frames pass."""
    sizes = [1, 300_000, 5, 700_000, 600_000, 70_000, 2, 300_001, *range(20), 900_000, 3]
    async with wool.WorkerPool(size=1, worker=worker):
        received = [value async for value in blobs(sizes)]
    assert received == [bytes([size % 251]) * size for size in sizes]


@wool.routine(prefetch=2)
async def failing_when_closed(log: str) -> AsyncGenerator[int, None]:
    try:
        for i in range(100):
            note(log, i)
            yield i
    finally:
        raise LookupError("cleaning up")


@wool.routine(prefetch=2)
async def stubborn(log: str) -> AsyncGenerator[str, None]:
    try:
        yield "first"
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            note(log, "cancelled")
        yield "second"
    finally:
        note(log, "ended")


async def test_error_of_cleaning_up_while_it_waits_is_raised(log: str) -> None:
    stream = failing_when_closed(log)
    assert await anext(stream) == 0
    await eventually(lambda: taken(log) == [0, 1, 2])
    await pid()
    with pytest.raises(LookupError, match="cleaning up"):
        await stream.aclose()


async def test_stream_that_survives_the_end_of_its_step_is_closed(log: str) -> None:
    stream = stubborn(log)
    assert await anext(stream) == "first"
    await stream.aclose()
    assert noted(log) == ["cancelled", "ended"]
