from __future__ import annotations

import asyncio
import functools
import inspect
from typing import TYPE_CHECKING, Any

import pytest

import wool
from wool.runtime.routine.task import do_dispatch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from wool import Task


@wool.routine
async def add(a: int, b: int = 2) -> int:
    """Adds."""
    return a + b


@wool.routine
async def count(to: int) -> AsyncGenerator[int, None]:
    for i in range(to):
        yield i


@wool.routine
async def dispatching() -> bool:
    return do_dispatch()


@wool.routine
async def dispatchings() -> AsyncGenerator[bool, None]:
    try:
        yield do_dispatch()
        yield do_dispatch()
    except ValueError:
        yield do_dispatch()
    finally:
        assert do_dispatch()


def test_routine_keeps_metadata() -> None:
    assert add.__name__ == "add"
    assert add.__doc__ == "Adds."
    assert add.__module__ == __name__
    assert list(inspect.signature(add).parameters) == ["a", "b"]
    assert inspect.iscoroutinefunction(add)
    assert inspect.isasyncgenfunction(count)


def sync() -> None: ...


def generator() -> Any:
    yield


class Callable:
    async def __call__(self) -> None: ...

    async def method(self) -> None: ...


async def plain(a: int) -> int:
    return a


@pytest.mark.parametrize(
    "thing",
    [
        sync,
        generator,
        Callable,
        Callable(),
        Callable().method,
        functools.partial(plain, 1),
        lambda: None,
        3,
    ],
    ids=repr,
)
def test_routine_of_something_else(thing: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^Expected a coroutine function or async generator function, got .+async"
    ):
        wool.routine(thing)


@pytest.mark.parametrize("descriptor", [classmethod, staticmethod])
def test_routine_outside_of_a_descriptor(descriptor: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^@wool\.routine must be applied before @classmethod/@staticmethod$"
    ):
        wool.routine(descriptor(plain))


async def test_call_without_pool_names_the_routine() -> None:
    with pytest.raises(RuntimeError, match=r"No pool is active for routine .*test_wrapper\.add:"):
        await add(1)


async def test_generator_without_pool_fails_when_iterated() -> None:
    generator = count(3)
    with pytest.raises(RuntimeError, match=r"No pool is active for routine .*\.count:.*WorkerPool"):
        await anext(generator)
    assert [item async for item in generator] == []


def test_call_outside_of_a_loop_is_a_coroutine() -> None:
    call = add(1)
    assert inspect.iscoroutine(call)
    assert call.__qualname__ == "add"
    call.close()


async def test_call_with_dispatch_off_runs_here() -> None:
    with do_dispatch(False):
        assert await add(1) == 3
        assert [item async for item in count(3)] == [0, 1, 2]


async def test_nested_calls_with_dispatch_off_are_dispatched() -> None:
    with do_dispatch(False):
        assert await dispatching() is True
        assert not do_dispatch()
        stream = dispatchings()
        async for flag in stream:
            assert flag
            assert not do_dispatch()
            break
        assert await stream.athrow(ValueError())
        assert not do_dispatch()
        await stream.aclose()
        assert not do_dispatch()


def test_do_dispatch_nests() -> None:
    assert do_dispatch()
    with do_dispatch(False):
        assert not do_dispatch()
        with do_dispatch(True):
            assert do_dispatch()
        assert not do_dispatch()
    assert do_dispatch()


def test_do_dispatch_is_restored_after_an_error() -> None:
    with pytest.raises(LookupError), do_dispatch(False):
        raise LookupError
    assert do_dispatch()


async def test_do_dispatch_is_of_the_task_that_sets_it() -> None:
    async def other() -> bool:
        return do_dispatch()

    task = asyncio.create_task(other())
    with do_dispatch(False):
        assert await task
        assert not await asyncio.create_task(other())


class FakeProxy:
    """Answers calls with a stream of `items`."""

    def __init__(self, *items: object) -> None:
        self.id = "fake"
        self.items = items
        self.tasks: list[Task] = []
        self.timeouts: list[float | None] = []
        self.closed = 0

    async def dispatch(self, task: Task, *, timeout: float | None = None) -> AsyncIterator[Any]:
        self.tasks.append(task)
        self.timeouts.append(timeout)
        return self.stream()

    async def stream(self) -> AsyncGenerator[object, None]:
        try:
            for item in self.items:
                yield item
        finally:
            self.closed += 1


@pytest.fixture
def proxy(request: pytest.FixtureRequest) -> Any:
    return FakeProxy(*getattr(request, "param", ()))


async def through(proxy: Any, call: Any) -> Any:
    token = wool.__proxy__.set(proxy)
    try:
        return await call
    finally:
        wool.__proxy__.reset(token)


@pytest.mark.parametrize("proxy", [("one", "two")], indirect=True)
async def test_coroutine_takes_one_value_and_closes_the_stream(proxy: FakeProxy) -> None:
    """A23"""
    assert await through(proxy, add(5, b=6)) == "one"
    assert proxy.closed == 1
    [task] = proxy.tasks
    assert (task.args, task.kwargs) == ((5,), {"b": 6})
    assert task.callable is add.__wrapped__  # type: ignore[attr-defined]
    assert task.proxy is proxy  # type: ignore[comparison-overlap]


async def test_coroutine_whose_stream_is_empty(proxy: FakeProxy) -> None:
    """A.8 row 11"""
    with pytest.raises(wool.UnexpectedResponse, match="received the end of the stream"):
        await through(proxy, add(1))
    assert proxy.closed == 1


@pytest.mark.parametrize("proxy", [("one", "two")], indirect=True)
async def test_generator_closes_the_stream(proxy: FakeProxy) -> None:
    stream = count(5)
    assert await through(proxy, anext(stream)) == "one"
    assert proxy.closed == 0
    await stream.aclose()
    assert proxy.closed == 1


@pytest.mark.parametrize("proxy", [("one",)], indirect=True)
async def test_call_passes_the_dispatch_timeout(proxy: FakeProxy) -> None:
    with wool.RuntimeContext(dispatch_timeout=2.5):
        await through(proxy, add(1))
    await through(proxy, add(1))
    assert proxy.timeouts == [2.5, None]
