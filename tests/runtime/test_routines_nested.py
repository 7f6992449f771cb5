"""Routines that call routines, and what surrounds a call in a worker."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

import wool
from tests.runtime.routines import Oops, diary, echo, fail, noted, pid, tried, warm_pool
from tests.support import eventually
from wool import current_task
from wool.runtime.context import dispatch_timeout
from wool.runtime.routine.task import do_dispatch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path
    from uuid import UUID

pytestmark = pytest.mark.asyncio(loop_scope="module")

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def pool() -> AsyncIterator[wool.WorkerPool]:
    async with warm_pool() as pool:
        yield pool


@wool.routine
async def pids(count: int) -> AsyncGenerator[int, None]:
    for _ in range(count):
        yield os.getpid()


async def leaves() -> set[int]:
    """Where four nested calls of each shape run."""
    singles = await asyncio.gather(*(pid() for _ in range(4)))
    streams = [[item async for item in pids(2)] for _ in range(4)]
    assert all(len(set(stream)) == 1 for stream in streams)
    assert {stream[0] for stream in streams} == set(singles)
    return set(singles)


@wool.routine
async def from_coroutine() -> tuple[int, set[int]]:
    return os.getpid(), await leaves()


@wool.routine
async def from_generator() -> AsyncGenerator[tuple[int, set[int]], None]:
    yield os.getpid(), await leaves()
    yield os.getpid(), await leaves()


class Methods:
    @wool.routine
    async def instance(self) -> tuple[int, set[int]]:
        return os.getpid(), await leaves()

    @wool.routine
    async def stream(self) -> AsyncGenerator[tuple[int, set[int]], None]:
        yield os.getpid(), await leaves()

    @classmethod
    @wool.routine
    async def of_class(cls) -> tuple[int, set[int]]:
        return await cls().instance()

    @staticmethod
    @wool.routine
    async def static() -> tuple[int, set[int]]:
        return await Methods.of_class()


@pytest.mark.parametrize(
    "routine",
    [
        from_coroutine,
        from_generator,
        Methods().instance,
        Methods().stream,
        Methods.of_class,
        Methods.static,
    ],
    ids=lambda routine: routine.__name__,
)
async def test_nested_calls_go_to_the_pool(routine: Any) -> None:
    """A01"""
    here = {await pid() for _ in range(4)}
    if routine.__name__ in ("from_generator", "stream"):
        outcomes = [item async for item in routine()]
    else:
        outcomes = [await routine()]
    for outer, inner in outcomes:
        assert outer in here
        assert inner == here


@wool.routine
async def fib(n: int) -> int:
    return n if n < 2 else sum(await asyncio.gather(fib(n - 1), fib(n - 2)))


async def test_recursion() -> None:
    assert await fib(9) == 34


@wool.routine
async def call(routine: Any, *args: Any) -> Any:
    return await routine(*args)


@wool.routine
async def steps(log: str) -> list[Any]:
    """Take a nested stream through its paces."""
    async with aclosing(diary(log)) as stream:
        return [
            await anext(stream),
            await stream.asend("word"),
            await stream.athrow(ValueError("v")),
            (await tried(stream.athrow(Oops(code=2))))[:3],
            await anext(stream, "the end"),
        ]


async def test_routine_as_argument() -> None:
    assert await call(echo, "there") == "there"
    assert await call(call, echo, "far") == "far"


async def test_nested_stream(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    assert await steps(log) == [
        "began",
        "sent word",
        "caught ('v',)",
        ("raised", Oops, ("oops 2",)),
        "the end",
    ]
    assert noted(log)[-2:] == ["ending", "ended"]


@wool.routine
async def leave_open(log: str) -> list[str]:
    async for _ in diary(log):
        break
    gc.collect()
    return noted(log)


async def test_nested_stream_that_is_dropped_is_closed(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    assert (await leave_open(log))[0] == "began"
    await eventually(lambda: noted(log) == ["began", "ending", "ended"])


@wool.routine
async def catch(levels: int, error: Exception) -> tuple[Any, ...]:
    try:
        await (catch(levels - 1, error) if levels else fail(error))
    except Oops as exc:
        return "caught", exc.code
    return ("nothing",)


@wool.routine
async def pass_on(levels: int, error: Exception) -> None:
    await (pass_on(levels - 1, error) if levels else fail(error))


async def test_error_is_caught_on_every_hop() -> None:
    """A11"""
    assert await catch(0, Oops(code=3)) == ("caught", 3)
    with pytest.raises(Oops) as info:
        await pass_on(3, Oops(code=4))
    assert info.value.code == 4


# Arguments


@wool.routine
async def mutate(items: list[int]) -> list[int]:
    items.append(0)
    return items


@wool.routine
async def mutate_elsewhere() -> tuple[list[int], list[list[int]]]:
    items = [1]
    return items, [await mutate(items) for _ in range(4)]


async def test_arguments_are_copies_wherever_the_call_lands() -> None:
    """A10: some of the nested calls run in the worker that makes them."""
    assert await mutate_elsewhere() == ([1], [[1, 0]] * 4)


@wool.routine
async def send_locks() -> list[Any]:
    return [(await tried(echo(threading.Lock())))[1:4:2] for _ in range(4)]


async def test_nested_argument_that_can_not_be_pickled() -> None:
    """A10"""
    for kind, text in await send_locks():
        assert kind is TypeError
        assert text.startswith("Argument 'value' of routine tests.runtime.routines.echo:")
        assert text.endswith(" can't be pickled: cannot pickle '_thread.lock' object")


# What surrounds a call


@wool.routine
async def whoami() -> tuple[UUID, UUID | None, str | None]:
    task = current_task()
    assert task is not None
    return task.id, task.caller, task.tag


@wool.routine
async def family() -> AsyncGenerator[Any, None]:
    task = current_task()
    for _ in range(2):
        yield await whoami.__wrapped__()  # type: ignore[attr-defined]
        assert current_task() is task
        yield await whoami()
        yield await asyncio.create_task(whoami())
        async for item in tasks():
            yield item


@wool.routine
async def tasks() -> AsyncGenerator[tuple[UUID, UUID | None, str | None], None]:
    yield await whoami.__wrapped__()  # type: ignore[attr-defined]
    assert await asyncio.to_thread(current_task) is current_task()


@wool.routine
async def family_once() -> list[Any]:
    return [await whoami.__wrapped__(), await whoami(), *[item async for item in tasks()]]  # type: ignore[attr-defined]


async def test_current_task_and_caller() -> None:
    """A13"""
    assert current_task() is None
    first, second = await whoami(), await whoami()
    assert first[0] != second[0]
    assert first[1] is None
    line = whoami.__wrapped__.__code__.co_firstlineno  # type: ignore[attr-defined]
    assert first[2] == f"{__name__}.whoami:{line}"
    assert current_task() is None


async def test_current_task_and_caller_of_nested_calls() -> None:
    """A13: coroutines and generators are alike."""
    streamed = [item async for item in family()]
    returned = await family_once()
    for own, *nested in (streamed[:4], streamed[4:], returned):
        assert own[1] is None
        assert all(caller == own[0] for _, caller, _ in nested)
    assert streamed[0] == streamed[4]
    ids = [item[0] for item in (*streamed[:4], *streamed[5:], *returned)]
    assert len(set(ids)) == len(ids)


@wool.routine
async def options() -> tuple[float | None, bool]:
    return dispatch_timeout.get(), do_dispatch()


@wool.routine
async def options_of_nested() -> AsyncGenerator[Any, None]:
    for _ in range(2):
        yield await options.__wrapped__()  # type: ignore[attr-defined]
        yield await options()
        with wool.RuntimeContext(dispatch_timeout=40):
            yield await options()
        with wool.RuntimeContext(dispatch_timeout=None):
            yield await options()


async def test_dispatch_timeout_holds_for_nested_calls() -> None:
    """A13"""
    with wool.RuntimeContext(dispatch_timeout=50):
        assert await options() == (50, True)
        stream = options_of_nested()
        first = await anext(stream)
    assert await options() == (None, True)
    rest = [first, *[item async for item in stream]]
    assert rest == [(50, True), (50, True), (40, True), (None, True)] * 2


@wool.routine
async def undispatched() -> list[int]:
    with do_dispatch(False):
        singles = [await pid() for _ in range(4)]
        streams = [item for _ in range(4) async for item in pids(1)]
    return [os.getpid(), *singles, *streams]


async def test_dispatch_off_in_a_routine() -> None:
    assert len(set(await undispatched())) == 1


async def test_dispatch_off_here() -> None:
    with do_dispatch(False):
        assert await pid() == os.getpid()
        outer, inner = await from_coroutine()
    assert outer == os.getpid()
    assert outer not in inner
    assert len(inner) == 2


@wool.routine
async def set_variable() -> str:
    before = variable.get()
    variable.set("set")
    await asyncio.sleep(0)
    return before


async def test_calls_have_contexts_of_their_own() -> None:
    assert {await set_variable() for _ in range(6)} == {"unset"}
