from __future__ import annotations

import asyncio
import pickle
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wool.runtime.factory import is_pre_entered, resolve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@runtime_checkable
class Wanted(Protocol):
    def work(self) -> None: ...


class Thing:
    def work(self) -> None: ...


class Managed(Thing):
    """Both a thing and a context manager that gives another one."""

    def __init__(self) -> None:
        self.inner = Thing()
        self.left = False

    def __enter__(self) -> Thing:
        return self.inner

    def __exit__(self, *exc_info: object) -> None:
        self.left = True


class Journal:
    """Makes context managers that note when they are entered and left."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def sync(self, name: str, value: Any) -> Iterator[Any]:
        self.notes.append(f"+{name}")
        try:
            yield value
        finally:
            self.notes.append(f"-{name}")

    @asynccontextmanager
    async def async_(self, name: str, value: Any) -> AsyncIterator[Any]:
        with self.sync(name, value):
            yield value


async def give(value: Any) -> Any:
    return value


@pytest.fixture
def journal() -> Journal:
    return Journal()


async def test_resolve_plain() -> None:
    thing = Thing()
    async with AsyncExitStack() as stack:
        assert await resolve(thing, stack) is thing


async def test_resolve_class() -> None:
    async with AsyncExitStack() as stack:
        assert isinstance(await resolve(Thing, stack), Thing)


async def test_resolve_awaitable() -> None:
    thing = Thing()
    future: asyncio.Future[Thing] = asyncio.get_running_loop().create_future()
    future.set_result(thing)
    async with AsyncExitStack() as stack:
        for awaitable in (give(thing), future):
            found: Thing = await resolve(awaitable, stack)
            assert found is thing


async def test_resolve_context_managers_left_in_reverse(journal: Journal) -> None:
    async with AsyncExitStack() as stack:
        assert await resolve(journal.sync("a", 1), stack) == 1
        assert await resolve(journal.async_("b", 2), stack) == 2
        assert journal.notes == ["+a", "+b"]
    assert journal.notes == ["+a", "+b", "-b", "-a"]


async def test_resolve_left_when_a_later_step_fails(journal: Journal) -> None:
    def fail() -> Any:
        raise ValueError("no")

    async def enter() -> None:
        async with AsyncExitStack() as stack:
            await resolve(journal.async_("a", 1), stack)
            await resolve(fail, stack)

    with pytest.raises(ValueError, match="no"):
        await enter()
    assert journal.notes == ["+a", "-a"]


async def test_resolve_object_that_is_a_context_manager_is_entered() -> None:
    managed = Managed()
    async with AsyncExitStack() as stack:
        assert await resolve(cast("Any", managed), stack) is managed.inner
        assert not managed.left
    assert managed.left


async def test_resolve_class_of_context_managers_is_called_then_entered() -> None:
    async with AsyncExitStack() as stack:
        thing: Thing = await resolve(Managed, stack)
        assert type(thing) is Thing


async def test_resolve_what_is_entered_is_not_resolved_further(journal: Journal) -> None:
    inner = Managed()
    async with AsyncExitStack() as stack:
        assert await resolve(journal.sync("a", inner), stack) is inner


async def test_resolve_sync_context_manager_comes_first(journal: Journal) -> None:
    class All:
        def __enter__(self) -> str:
            return "sync"

        def __exit__(self, *exc_info: object) -> None: ...

        async def __aenter__(self) -> str:
            raise AssertionError

        async def __aexit__(self, *exc_info: object) -> None: ...

        def __call__(self) -> str:
            raise AssertionError

        def __await__(self) -> Iterator[Any]:
            raise AssertionError

    async with AsyncExitStack() as stack:
        assert await resolve(cast("Any", All()), stack) == "sync"


async def test_resolve_callable_comes_before_awaitable() -> None:
    class Both:
        def __call__(self) -> str:
            return "called"

        def __await__(self) -> Iterator[Any]:
            raise AssertionError

    async with AsyncExitStack() as stack:
        assert await resolve(cast("Any", Both()), stack) == "called"


@given(st.lists(st.sampled_from(["call", "await"]), max_size=5), st.sampled_from("psa"))
async def test_resolve_any_nesting(wrappers: list[str], core: str) -> None:
    """A callable's result and an awaitable's are resolved alike (#430)."""
    journal = Journal()
    value: Any = {"p": 1, "s": journal.sync("x", 1), "a": journal.async_("x", 1)}[core]
    for wrapper in wrappers:
        value = give(value) if wrapper == "await" else (lambda value=value: value)
    async with AsyncExitStack() as stack:
        assert await resolve(value, stack) == 1
    assert journal.notes == ([] if core == "p" else ["+x", "-x"])


def test_is_pre_entered_result_of_a_contextmanager_function(journal: Journal) -> None:
    for manager in (journal.sync("a", Thing()), journal.async_("a", Thing())):
        assert is_pre_entered(manager, Wanted)
        with pytest.raises(TypeError):
            pickle.dumps(manager)


@pytest.mark.parametrize("value", [Thing(), Managed(), Managed, Thing, Journal().sync])
def test_is_pre_entered_not(value: object) -> None:
    assert not is_pre_entered(value, Wanted)
