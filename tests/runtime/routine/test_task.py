from __future__ import annotations

import asyncio
from types import ModuleType
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

import wool
from wool import RuntimeContext, Task, TaskException, current_task
from wool.runtime.context import dispatch_timeout
from wool.runtime.resourcepool import ResourcePool
from wool.runtime.routine.task import WorkerProxyLike, do_dispatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


class Proxy:
    """One that travels."""

    def __init__(self, id: UUID | None = None) -> None:
        self.id = id or uuid4()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Proxy) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    async def dispatch(self, task: Task, *, timeout: float | None = None) -> AsyncIterator[Any]:
        raise NotImplementedError


async def add(a: int, b: int = 1) -> int:
    return a + b


async def ambient(*_: object) -> tuple[Task | None, Any, bool, float | None]:
    return current_task(), wool.__proxy__.get(), do_dispatch(), dispatch_timeout.get()


async def ambience(*_: object) -> AsyncIterator[Any]:
    yield await ambient()
    yield await ambient()


async def failing() -> None:
    raise Falsy("no")


async def failing_later() -> AsyncIterator[int]:
    yield 1
    raise Falsy("no")


class Falsy(Exception):
    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0


def make(callable: Callable[..., Any] = add, *args: Any, **fields: Any) -> Task:
    proxy = fields.pop("proxy", None) or Proxy()
    kwargs = fields.pop("kwargs", {})
    return Task(uuid4(), callable, args, kwargs, proxy, **fields)


@pytest.fixture
def in_worker() -> Iterator[None]:
    """What a worker has around its tasks."""
    token = wool.__proxy_pool__.set(ResourcePool(lambda proxy: proxy))
    yield
    wool.__proxy_pool__.reset(token)


# Making one


def test_defaults() -> None:
    task = make()
    assert (task.timeout, task.caller, task.exception) == (0, None, None)
    line = add.__code__.co_firstlineno
    assert task.tag == f"{__name__}.add:{line}"
    assert task.context is not None
    assert task.context.dispatch_timeout is None
    assert current_task() is None


def test_tag_has_no_argument_values() -> None:
    assert "secret" not in str(make(add, "secret", kwargs={"b": "secret"}).tag)


def test_tag_of_what_has_no_code() -> None:
    class Callable:
        async def __call__(self) -> None: ...

    assert str(make(Callable()).tag).endswith("Callable:0")


@pytest.mark.parametrize("proxy", [3, object(), "proxy", ModuleType("dispatch")])
def test_proxy_of_wrong_type(proxy: Any) -> None:
    with pytest.raises(TypeError, match=r"^proxy must conform to WorkerProxyLike, got <class .+>$"):
        Task(uuid4(), add, (), {}, proxy)


def test_proxy_protocol() -> None:
    assert isinstance(Proxy(), WorkerProxyLike)


def test_caller_is_the_task_around_it() -> None:
    outer = make()
    with outer:
        inner = make()
        with inner:
            assert make().caller == inner.id
    assert inner.caller == outer.id
    assert make().caller is None


def test_explicit_caller_wins() -> None:
    """A94"""
    caller = uuid4()
    with make():
        assert make(caller=caller).caller == caller


def test_context_is_that_of_the_call() -> None:
    with RuntimeContext(dispatch_timeout=3):
        task = make()
    assert task.context is not None
    assert task.context.dispatch_timeout == 3
    context = RuntimeContext()
    assert make(context=context).context is context


# Entering one


async def test_entering_gives_what_runs_it() -> None:
    task = make(add, 2, kwargs={"b": 5})
    with task as run:
        assert current_task() is task
        assert await run() == 7
    assert current_task() is None
    assert task.exception is None


async def test_entering_sets_the_scope() -> None:
    task = make(ambient, context=RuntimeContext(dispatch_timeout=8))
    with do_dispatch(False), task as run:
        assert await run() == (task, None, True, 8)
    assert dispatch_timeout.get() is None
    assert do_dispatch()


def test_entering_again_is_an_error() -> None:
    """A94"""
    task = make()
    with task:
        with pytest.raises(RuntimeError, match="already entered"):
            task.__enter__()
        assert current_task() is task
    assert current_task() is None
    with task:
        assert current_task() is task


def test_entering_one_that_is_not_async() -> None:
    task = make(len, [])
    with pytest.raises(
        ValueError, match=r"^Expected coroutine function or async generator function$"
    ):
        task.__enter__()
    assert current_task() is None
    with pytest.raises(ValueError, match=r"^Expected routine to be coroutine or async generator$"):
        task.dispatch()


@pytest.mark.parametrize("error", [Falsy("no"), ValueError("v"), asyncio.CancelledError()])
def test_exception_is_kept_and_propagates(error: BaseException) -> None:
    """A95"""
    task = make()
    with pytest.raises(type(error)) as info, task:
        raise error
    assert info.value is error
    assert task.exception is not None
    assert task.exception.type == type(error).__qualname__
    assert isinstance(task.exception, TaskException)
    text = "".join(task.exception.traceback)
    assert "raise error" in text
    assert text.strip().splitlines()[-1].endswith(f"{type(error).__name__}: {error}".rstrip(": "))


# Running one


@pytest.mark.parametrize("callable", [add, ambience])
async def test_dispatch_outside_of_a_worker(callable: Any) -> None:
    running = make(callable, 1).dispatch()
    with pytest.raises(RuntimeError, match=r"^No proxy pool available for task execution$"):
        await (anext(running) if callable is ambience else running)


@pytest.mark.usefixtures("in_worker")
async def test_dispatch_of_coroutine() -> None:
    assert await make(add, 1).dispatch() == 2
    task = make(ambient)
    assert await task.dispatch() == (task, task.proxy, True, None)
    assert wool.__proxy__.get() is None


@pytest.mark.usefixtures("in_worker")
async def test_dispatch_of_generator() -> None:
    """A13"""
    task = make(ambience, context=RuntimeContext(dispatch_timeout=2))
    expected = (task, task.proxy, True, 2)
    assert [scope async for scope in task.dispatch()] == [expected, expected]
    assert wool.__proxy__.get() is None
    assert current_task() is None


@pytest.mark.usefixtures("in_worker")
async def test_dispatch_of_generator_that_is_closed() -> None:
    closed = []

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(current_task())

    task = make(endless)
    items = task.dispatch()
    assert await anext(items) == 1
    await items.aclose()
    assert closed == [task]


@pytest.mark.usefixtures("in_worker")
@pytest.mark.parametrize("callable", [failing, failing_later])
async def test_dispatch_that_fails(callable: Any) -> None:
    """A95"""
    task = make(callable)
    running = task.dispatch()
    if callable is failing_later:
        assert await anext(running) == 1
        running = anext(running)
    with pytest.raises(Falsy):
        await running
    assert task.exception is not None
    assert task.exception.type == "Falsy"
