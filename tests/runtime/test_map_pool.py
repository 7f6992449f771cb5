"""`wool.map` in a pool."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

import wool
from tests.programs import Surroundings
from tests.runtime.routines import echo, note, noted, pid, warm_pool
from tests.support import eventually
from wool.runtime.context import dispatch_timeout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
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
async def stay(log: str, item: int, stays: int) -> int:
    """Leave word; stay if `item` is that or more."""
    note(log, f"begin {item}")
    try:
        if item >= stays:
            await asyncio.sleep(3600)
        return os.getpid()
    finally:
        await asyncio.sleep(0.01)
        note(log, f"end {item}")


@wool.routine
async def square(item: int) -> int:
    await asyncio.sleep(0)
    return item * item


@wool.routine
async def squares(numbers: int) -> list[int]:
    """With calls of its own."""
    return [result async for result in wool.map(square, range(numbers), concurrency=4)]


@wool.routine
async def nested(log: str) -> list[int]:
    calls = wool.map(stay, [log] * 4, count(), [0] * 4)
    return [result async for result in calls]


@wool.routine
async def divide(item: int) -> float:
    return 1 / item


@wool.routine
async def timeout(item: int) -> float | None:
    return dispatch_timeout.get()


async def test_many_calls_in_order() -> None:
    assert [r async for r in wool.map(square, range(2_000))] == [i * i for i in range(2_000)]


async def test_calls_go_to_all_workers() -> None:
    @wool.routine
    async def where(item: int) -> int:
        return os.getpid()

    pids = {await pid(), await pid()}
    assert {r async for r in wool.map(where, range(8), ordered=False)} == pids


async def test_failure_arrives_as_it_does_from_a_call() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        [r async for r in wool.map(divide, [1, 2, 0, 4])]
    with pytest.raises(ZeroDivisionError) as expected:
        await divide(0)
    assert str(caught.value) == str(expected.value)

    first, second, third = [
        r async for r in wool.map(divide, [1, 0, 2], return_exceptions=True, ordered=True)
    ]
    assert (first, third) == (1, 0.5)
    assert isinstance(second, ZeroDivisionError)


async def test_argument_that_cannot_be_pickled_fails_its_call_alone() -> None:
    items = [1, asyncio.get_running_loop(), 3]

    first, second, third = [r async for r in wool.map(echo, items, return_exceptions=True)]

    assert (first, third) == (1, 3)
    assert isinstance(second, TypeError)


async def test_leaving_early_ends_the_calls_in_the_workers(log: str) -> None:
    async with wool.map(partial(stay, log, stays=1), count(), concurrency=4) as results:
        async for _ in results:
            await eventually(lambda: len(noted(log)) == 1 + 1 + 4)
            break

    assert sorted(noted(log)) == sorted(
        f"{word} {i}" for word in ("begin", "end") for i in range(5)
    )


async def test_calls_of_a_routine_end_when_it_is_cancelled(log: str) -> None:
    call = asyncio.ensure_future(nested(log))
    await eventually(lambda: len(noted(log)) == 4)

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    assert sorted(noted(log)) == sorted(
        f"{word} {i}" for word in ("begin", "end") for i in range(4)
    )


async def test_map_in_routines_of_a_map() -> None:
    results = wool.map(squares, [3, 4, 5], concurrency=2)
    assert [r async for r in results] == [[0, 1, 4], [0, 1, 4, 9], [0, 1, 4, 9, 16]]


async def test_calls_have_the_options_set_around() -> None:
    with wool.RuntimeContext(dispatch_timeout=30):
        results = wool.map(timeout, range(3))
        assert [r async for r in results] == [30, 30, 30]


async def test_worker_that_is_lost_fails_its_calls(log: str) -> None:
    @wool.routine
    async def die(item: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(3600)

    async with wool.WorkerPool(size=1):
        with pytest.raises(wool.WorkerLost):
            await anext(wool.map(die, [1]))


async def test_without_a_pool_a_call_says_so() -> None:
    token = wool.__proxy__.set(None)
    try:
        with pytest.raises(RuntimeError, match=r"No pool is active for routine .*square"):
            await anext(wool.map(square, [1]))
    finally:
        wool.__proxy__.reset(token)


LEAVE = """
import asyncio, itertools
import wool

@wool.routine
async def stay(item):
    if item:
        await asyncio.sleep(3600)

async def main():
    async with wool.WorkerPool(size=1):
        async for result in wool.map(stay, itertools.count()):
            print(result)
            break

asyncio.run(main())
"""

EXIT = """
import asyncio
import wool
from wool.runtime.routine.task import do_dispatch

@wool.routine
async def leave(item):
    raise SystemExit(item)

async def main():
    with do_dispatch(False):
        async for result in wool.map(leave, [3], return_exceptions=True):
            print(result)

asyncio.run(main())
"""


@pytest.mark.parametrize(("program", "output", "code"), [(LEAVE, "None\n", 0), (EXIT, "", 3)])
async def test_program_that_is_left(program: str, output: str, code: int) -> None:
    """By a `break` and nothing else: the pool waits for no call."""
    with Surroundings.make() as surroundings:
        path = surroundings.write("program.py", program)
        ended = await asyncio.to_thread(surroundings.run, "-W", "error", path)
        left = surroundings.left()

    assert (ended.code, ended.output, ended.errors) == (code, output, "")
    assert left == []
