"""Exceptions across processes, and bad input: an error for the call at fault, and for no other."""

from __future__ import annotations

import asyncio
import threading
import traceback
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

import wool
from tests.runtime.routines import Oops, diary, echo, fail, note, noted, pid, warm_pool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def pool() -> AsyncIterator[wool.WorkerPool]:
    """That nothing happens to its workers is checked when it is left."""
    async with warm_pool() as pool:
        yield pool


def innermost() -> None:
    raise Oops(code=1)


@wool.routine
async def deep() -> None:
    innermost()


@wool.routine
async def deeper() -> None:
    await deep()


@wool.routine
async def deep_stream() -> AsyncGenerator[int, None]:
    yield 1
    innermost()


@wool.routine
async def translating() -> None:
    try:
        await deep()
    except Oops as exc:
        raise RuntimeError("translated") from exc


def frames(exc: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(exc.__traceback__)]


async def consume() -> None:
    async for _ in deep_stream():
        pass


@pytest.mark.parametrize("call", [deep, deeper, consume], ids=lambda call: call.__name__)
async def test_traceback_has_the_remote_frames(call: Any) -> None:
    """A.8 row 8: of a class defined after wool was imported, too."""
    with pytest.raises(Oops) as info:
        await call()
    names = frames(info.value)
    assert names[0] == "test_traceback_has_the_remote_frames"
    assert names[-1] == "innermost"
    hops = {"deep": ["deep"], "deeper": ["deeper", "deep"], "consume": ["consume", "deep_stream"]}
    assert [name for name in names if name in hops[call.__name__]] == hops[call.__name__]
    text = "".join(traceback.format_exception(info.value))
    assert f'File "{__file__}", line {innermost.__code__.co_firstlineno + 1}, in innermost' in text
    assert "raise Oops(code=1)" in text
    assert "executor.py" not in text


async def test_traceback_of_the_cause() -> None:
    with pytest.raises(RuntimeError, match="translated") as info:
        await translating()
    assert isinstance(info.value.__cause__, Oops)
    assert info.value.__cause__.code == 1
    assert frames(info.value.__cause__)[-1] == "innermost"


async def test_each_call_raises_an_exception_of_its_own() -> None:
    caught = []
    for _ in range(2):
        with pytest.raises(Oops) as info:
            await deep()
        caught.append(info.value)
    assert caught[0] is not caught[1]
    assert frames(caught[0]) == frames(caught[1])


async def test_group_is_split_by_type() -> None:
    caught: list[tuple[Exception, ...]] = []
    try:
        await fail(ExceptionGroup("g", [Oops(code=1), ValueError("v"), Oops(code=2)]))
    except* Oops as group:
        caught.append(group.exceptions)
    except* ValueError as group:
        caught.append(group.exceptions)
    assert [[type(each) for each in group] for group in caught] == [[Oops, Oops], [ValueError]]


async def test_cancelled_error_of_the_routine_itself() -> None:
    """A20: it is raised, and nothing else: the caller was not cancelled."""
    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(asyncio.CancelledError):
        await fail(asyncio.CancelledError())
    assert task.cancelling() == 0
    await asyncio.sleep(0)
    assert await echo("goes on") == "goes on"


# What would end a process


@wool.routine
async def leave(kind: type[BaseException]) -> None:
    raise kind("now")


@wool.routine
async def leave_stream(kind: type[BaseException]) -> AsyncGenerator[int, None]:
    yield 1
    raise kind("now")


@wool.routine
async def leave_in_task(kind: type[BaseException]) -> str:
    async def go() -> None:
        raise kind("now")

    try:
        await asyncio.create_task(go())
    except kind as exc:
        return f"caught {exc}"
    return "nothing"


class Ominous(BaseException):
    pass


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, Ominous])
async def test_what_would_end_a_process_does_not(kind: type[BaseException]) -> None:
    """A22, A.8 row 6"""
    for call in (leave(kind), anext_of(leave_stream(kind))):
        with pytest.raises(RuntimeError, match=f"routine raised {kind.__name__}: now") as info:
            await call
        assert type(info.value.__cause__) is kind


async def anext_of(stream: Any) -> None:
    assert await anext(stream) == 1
    await anext(stream)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
async def test_task_of_a_routine_that_would_end_the_process(kind: type[BaseException]) -> None:
    """A.8 row 6: the routine loop goes on, and so do the routines there."""
    assert await asyncio.wait_for(leave_in_task(kind), 30) == "caught now"


# What can't be pickled


class Holding(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


@wool.routine
async def fail_holding(part: str) -> None:
    if part == "attribute":
        raise Holding("held")
    if part == "cause":
        raise Oops(code=2) from Holding("held")
    if part == "group":
        raise ExceptionGroup("g", [Holding("held"), Oops(code=3)])
    raise ValueError("held", threading.Lock())


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("attribute", Holding),
        ("cause", Oops),
        ("group", ExceptionGroup),
        ("argument", ValueError),
    ],
)
async def test_exception_that_can_not_be_pickled_as_it_is(part: str, kind: type[Exception]) -> None:
    """A21: what can't travel is replaced; the class, and the rest, arrive."""
    with pytest.raises(kind) as info:
        await fail_holding(part)
    error = info.value
    assert type(error) is kind
    if part == "attribute":
        assert error.args == ("held",)
        assert "_thread.lock" in error.lock  # type: ignore[attr-defined]
    elif part == "cause":
        assert type(error.__cause__) is Holding
    elif part == "group":
        assert [type(each) for each in error.exceptions] == [Holding, Oops]  # type: ignore[attr-defined]
    else:
        assert error.args[0] == "held"


@wool.routine
async def fail_with_local_class() -> None:
    lock = threading.Lock()

    class Inner(ValueError):
        held = lock

    raise Inner("from within")


async def test_exception_of_a_class_that_can_not_be_pickled() -> None:
    with pytest.raises(ValueError, match="Inner") as info:
        await fail_with_local_class()
    assert "from within" in str(info.value)


@wool.routine
async def locked() -> object:
    return threading.Lock()


async def lock_as_argument() -> None:
    await echo(threading.Lock())


async def lock_as_keyword() -> None:
    await echo(value=threading.Lock())


async def lock_in_generator() -> None:
    await anext(diary(threading.Lock()))  # type: ignore[arg-type]


async def lock_in_closure() -> None:
    lock = threading.Lock()

    @wool.routine
    async def closure() -> object:
        return lock

    await closure()


@pytest.mark.parametrize(
    ("call", "about"),
    [
        (lock_as_argument, "Argument 'value' of routine {}.echo:"),
        (lock_as_keyword, "Argument 'value' of routine {}.echo:"),
        (lock_in_generator, "Argument 'log' of routine {}.diary:"),
        (lock_in_closure, "closure:"),
        (locked, "What routine {}.locked:"),
    ],
)
async def test_what_can_not_be_pickled(
    call: Callable[[], Any], about: str, pool: wool.WorkerPool
) -> None:
    """A02: the error says what it was, and no worker is less."""
    before = repr(pool)
    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock' object") as info:
        await call()
    module = locked.__module__ if call is locked else echo.__module__
    assert about.format(module) in str(info.value)
    assert repr(pool) == before
    assert len({await pid() for _ in range(4)}) == 2


class Stale:
    """Can be pickled, and can't be loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_stale, ()


def _load_stale() -> Stale:
    raise ModuleNotFoundError("No module named 'stale'", name="stale")


@wool.routine
async def make_stale() -> Stale:
    return Stale()


async def test_argument_that_can_not_be_loaded(pool: wool.WorkerPool) -> None:
    """A04: it is the caller's error, as it was, and no worker is less."""
    before = repr(pool)
    for call in (echo(Stale()), anext(diary(Stale()))):  # type: ignore[arg-type]
        with pytest.raises(ModuleNotFoundError, match="No module named 'stale'") as info:
            await call
        assert info.value.name == "stale"
    assert repr(pool) == before
    assert len({await pid() for _ in range(4)}) == 2


async def test_result_that_can_not_be_loaded() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'stale'"):
        await make_stale()
    assert await echo(1) == 1


async def test_sent_value_that_can_not_be_loaded(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    async with aclosing(diary(log)) as stream:
        await anext(stream)
        with pytest.raises(ModuleNotFoundError, match="No module named 'stale'"):
            await stream.asend(Stale())
    assert noted(log) == ["began", "ending", "ended"]


@wool.routine
async def stale_stream(log: str) -> AsyncGenerator[object, None]:
    try:
        yield 1
        yield Stale()
    finally:
        note(log, "ended")


async def test_yielded_value_that_can_not_be_loaded(tmp_path: Path) -> None:
    """The body ends with the stream that can't go on."""
    log = str(tmp_path / "log")
    stream = stale_stream(log)
    assert await anext(stream) == 1
    with pytest.raises(ModuleNotFoundError, match="No module named 'stale'"):
        await anext(stream)
    assert noted(log) == ["ended"]
    assert await anext(stream, "the end") == "the end"
