"""What a routine does in a worker is what its undecorated function does here.

Each scenario runs on both, and on the routine with dispatch switched off, and has to end equally:
same values, same exceptions, same order of events inside the body.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

import wool
from tests.runtime.routines import (
    Oops,
    countdown,
    diary,
    echo,
    fail,
    fail_while_handling,
    note,
    noted,
    nothing,
    refusing,
    sleeper,
    sleepers,
    sore,
    stubborn,
    tried,
    warm_pool,
)
from tests.support import eventually
from wool.runtime.routine.task import do_dispatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="module")

Function = Any


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def pool() -> AsyncIterator[wool.WorkerPool]:
    async with warm_pool() as pool:
        yield pool


async def compare(
    scenario: Callable[[Function, str], Awaitable[object]], routine: Any, directory: Path
) -> object:
    """What came of the scenario, after checking that it is the same wherever it takes place."""
    local, remote, off = (str(directory / name) for name in ("local", "remote", "off"))
    expected = await scenario(routine.__wrapped__, local), noted(local)
    assert (await scenario(routine, remote), noted(remote)) == expected
    with do_dispatch(False):
        assert (await scenario(routine, off), noted(off)) == expected
    return expected[0]


# Generators

NEXT = ("__anext__",)
CLOSE = ("aclose",)


def send(value: object) -> tuple[str, object]:
    return "asend", value


def throw(error: BaseException | type[BaseException]) -> tuple[str, object]:
    return "athrow", error


async def step_through(steps: list[tuple[Any, ...]], function: Function, log: str) -> object:
    """Take the steps, and say what came of each and how far the body was after it."""
    generator = function(log)
    came = []
    for operation, *arguments in steps:
        came.append((await tried(getattr(generator, operation)(*arguments)), noted(log)))
    await generator.aclose()
    return came


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([NEXT, NEXT, NEXT], id="next"),
        pytest.param([send(None), send(1), send(None), NEXT], id="send"),
        pytest.param([send([1, {"a": b"b"}]), NEXT], id="send-too-early"),
        pytest.param([NEXT, throw(ValueError("v", 2)), NEXT], id="throw-caught"),
        pytest.param([NEXT, throw(ValueError), NEXT], id="throw-class"),
        pytest.param([NEXT, throw(KeyError("k")), NEXT, NEXT], id="throw-translated"),
        pytest.param([NEXT, throw(TypeError("t")), NEXT, send(3)], id="throw-uncaught"),
        pytest.param([NEXT, throw(Oops(code=8)), throw(ValueError("late"))], id="throw-own"),
        pytest.param([throw(ValueError("early")), NEXT, NEXT], id="throw-first"),
        pytest.param([NEXT, throw(StopAsyncIteration()), NEXT], id="throw-end-caught"),
        pytest.param([NEXT, throw(StopIteration("s")), NEXT], id="throw-stop-iteration"),
        pytest.param([NEXT, throw(asyncio.CancelledError("c")), NEXT], id="throw-cancelled"),
        pytest.param([NEXT, throw(GeneratorExit()), NEXT], id="throw-generator-exit"),
        pytest.param([NEXT, throw(KeyboardInterrupt("k")), NEXT], id="throw-interrupt"),
        pytest.param([NEXT, throw(SystemExit(3)), NEXT], id="throw-exit"),
        pytest.param([NEXT, throw(ExceptionGroup("g", [ValueError(1)])), NEXT], id="throw-group"),
        pytest.param([NEXT, CLOSE, NEXT, CLOSE, send(1), throw(ValueError())], id="close"),
        pytest.param([CLOSE, NEXT, throw(ValueError())], id="close-first"),
        pytest.param([NEXT, send("return"), NEXT, send("x"), CLOSE], id="return"),
        pytest.param([NEXT, send("return"), throw(ValueError("x")), CLOSE], id="return-throw"),
        pytest.param([NEXT, send(Oops(code=3)), NEXT, CLOSE], id="raise"),
        pytest.param([NEXT, send(ExceptionGroup("g", [Oops(code=1)])), NEXT], id="raise-group"),
        pytest.param([NEXT, send(StopAsyncIteration("end")), NEXT], id="raise-end"),
        pytest.param([NEXT, send(asyncio.CancelledError("c")), NEXT], id="raise-cancelled"),
        pytest.param([NEXT, send(StopIteration(1)), NEXT], id="raise-stop-iteration"),
    ],
)
async def test_generator_by_steps(steps: list[tuple[Any, ...]], tmp_path: Path) -> None:
    await compare(partial(step_through, steps), diary, tmp_path)


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([NEXT, NEXT, NEXT], id="next"),
        pytest.param([NEXT, CLOSE, NEXT], id="close"),
        pytest.param([NEXT, throw(ValueError(1)), NEXT], id="throw"),
    ],
)
@pytest.mark.parametrize(
    "routine", [stubborn, sore, nothing, refusing], ids=lambda routine: routine.__name__
)
async def test_generator_that_ends_badly(
    routine: Any, steps: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    await compare(partial(step_through, steps), routine, tmp_path)


async def exhausted(function: Function, log: str) -> object:
    async def consume() -> None:
        async for item in function(log):
            note(log, f"consumed {item}")

    return await tried(consume())


async def broken_off(function: Function, log: str) -> object:
    async with aclosing(function(log)) as generator:
        async for _ in generator:
            break
    return await tried(anext(generator))


async def failing_consumer(function: Function, log: str) -> object:
    async def consume() -> None:
        async with aclosing(function(log)) as generator:
            async for _ in generator:
                raise Oops(code=7)

    return await tried(consume())


async def as_context_manager(function: Function, log: str) -> object:
    manager = asynccontextmanager(function)

    async def use(error: BaseException) -> None:
        async with manager(log) as value:
            note(log, value)
            raise error

    errors = [ValueError("v"), KeyError("k"), asyncio.CancelledError("c"), SystemExit(2)]
    return [(await tried(use(error)))[:5] for error in errors]


async def by_several_tasks(function: Function, log: str) -> object:
    generator = function(log)
    return [
        await asyncio.create_task(tried(generator.__anext__())),
        await asyncio.create_task(tried(generator.asend("two"))),
        await asyncio.create_task(tried(generator.aclose())),
    ]


async def used_at_once(function: Function, log: str) -> object:
    generator = function(log)
    return [
        await asyncio.gather(
            tried(anext(generator)),
            tried(anext(generator)),
            tried(generator.asend(1)),
            tried(generator.athrow(ValueError())),
            tried(generator.aclose()),
        ),
        await tried(anext(generator)),
        await tried(generator.aclose()),
    ]


@pytest.mark.parametrize(
    ("scenario", "routine"),
    [
        (exhausted, countdown),
        (exhausted, sore),
        (exhausted, nothing),
        (broken_off, countdown),
        (broken_off, diary),
        (failing_consumer, diary),
        (as_context_manager, diary),
        (by_several_tasks, diary),
        (used_at_once, countdown),
    ],
    ids=lambda value: value.__name__,
)
async def test_generator_used_otherwise(
    scenario: Callable[[Function, str], Awaitable[object]], routine: Any, tmp_path: Path
) -> None:
    await compare(scenario, routine, tmp_path)


# Coroutines


@pytest.mark.parametrize(
    "value",
    [
        None,
        0.1 + 0.2,
        "snow ☃ \udc80",
        b"\x00" * 70_000,
        {"deep": [({1, 2}, frozenset({3})), bytearray(b"b")]},
        Oops,
        len,
        range(3),
        NotImplemented,
        asyncio.CancelledError,
    ],
    ids=lambda value: type(value).__name__,
)
async def test_coroutine_returns(value: object, tmp_path: Path) -> None:
    async def scenario(function: Function, log: str) -> object:
        return await tried(function(value))

    assert await compare(scenario, echo, tmp_path) == ("value", value)


def chained(exc: Exception, cause: Exception | None, context: Exception | None) -> Exception:
    exc.__cause__, exc.__context__ = cause, context
    return exc


def annotated(exc: Exception, *notes: str) -> Exception:
    for text in notes:
        exc.add_note(text)
    return exc


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        ValueError("a", 2, [3]),
        Oops(code=4),
        KeyError(("k", 1)),
        FileNotFoundError(2, "No such file", "/a", None, "/b"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        ImportError("no", name="n", path="p"),
        StopAsyncIteration("x"),
        StopIteration("x"),
        TimeoutError(),
        asyncio.CancelledError("by itself"),
        ExceptionGroup("g", [Oops(code=1), ExceptionGroup("h", [ValueError(2)])]),
        BaseExceptionGroup("b", [asyncio.CancelledError("c"), Oops(code=1)]),
        annotated(Oops(code=1), "first", "second"),
        chained(ValueError(1), Oops(code=2), Oops(code=3)),
        chained(ValueError(1), None, KeyError(2)),
        wool.NoWorkersAvailable("none"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_coroutine_raises(error: Exception, tmp_path: Path) -> None:
    async def scenario(function: Function, log: str) -> object:
        return await tried(function(error))

    await compare(scenario, fail, tmp_path)


async def test_coroutine_raises_while_caller_handles_another(tmp_path: Path) -> None:
    """The context that the exception came with stays, and goes on with the one handled here."""

    async def scenario(function: Function, log: str) -> object:
        async def call() -> None:
            try:
                raise TimeoutError("outer")
            except TimeoutError:
                await function()

        return await tried(call())

    await compare(scenario, fail_while_handling, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [((), {}), ((1, 2), {}), ((), {"wrong": 1}), ((1,), {"value": 1})],
    ids=["none", "too-many", "wrong-name", "twice"],
)
async def test_coroutine_called_with_wrong_arguments(
    arguments: tuple[int, ...], keywords: dict[str, int], tmp_path: Path
) -> None:
    async def scenario(function: Function, log: str) -> object:
        async def call() -> object:
            return await function(*arguments, **keywords)

        kind, error, args, *_ = await tried(call())
        return kind, error, args

    outcome: Any = await compare(scenario, echo, tmp_path)
    assert outcome[1] is TypeError


async def cancelled(behaviour: str, function: Function, log: str) -> object:
    counts = []

    async def call() -> object:
        task = asyncio.current_task()
        assert task is not None
        try:
            return await function(behaviour, log)
        finally:
            counts.append(task.cancelling())
            await asyncio.sleep(0)

    task = asyncio.create_task(call())
    await eventually(lambda: "began" in noted(log))
    task.cancel()
    return await tried(task), counts, task.cancelled()


async def timed_out(behaviour: str, function: Function, log: str) -> object:
    async def call() -> object:
        async with asyncio.timeout(None) as scope:
            waiter = asyncio.create_task(expire(scope))
            try:
                return await function(behaviour, log)
            finally:
                await waiter

    async def expire(scope: asyncio.Timeout) -> None:
        await eventually(lambda: "began" in noted(log))
        scope.reschedule(0)

    return await tried(call())


async def group_failed(behaviour: str, function: Function, log: str) -> object:
    async def call() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(function(behaviour, log))
            await eventually(lambda: "began" in noted(log))
            raise Oops(code=2)

    return await tried(call())


@pytest.mark.parametrize("behaviour", ["give in", "return", "raise", "sleep"])
@pytest.mark.parametrize("scenario", [cancelled, timed_out, group_failed])
async def test_coroutine_is_cancelled(scenario: Any, behaviour: str, tmp_path: Path) -> None:
    await compare(partial(scenario, behaviour), sleeper, tmp_path)


async def step_cancelled(behaviour: str, function: Function, log: str) -> object:
    generator = function(behaviour, log)
    first = await anext(generator)
    step = asyncio.create_task(generator.__anext__())
    await eventually(lambda: "began" in noted(log))
    step.cancel()
    second = await tried(step), noted(log)
    return first, second, await tried(anext(generator)), await tried(generator.aclose())


async def consumer_cancelled(behaviour: str, function: Function, log: str) -> object:
    async def consume() -> None:
        async for item in function(behaviour, log):
            note(log, f"consumed {item}")

    task = asyncio.create_task(consume())
    await eventually(lambda: "began" in noted(log))
    task.cancel()
    return await tried(task)


@pytest.mark.parametrize("behaviour", ["give in", "return", "raise", "sleep"])
@pytest.mark.parametrize("scenario", [step_cancelled, consumer_cancelled])
async def test_generator_is_cancelled(scenario: Any, behaviour: str, tmp_path: Path) -> None:
    await compare(partial(scenario, behaviour), sleepers, tmp_path)
