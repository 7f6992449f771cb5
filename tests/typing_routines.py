"""What a type checker sees of routines: checked by mypy, never run."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Sequence,
)
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, assert_type

import wool

T = TypeVar("T")
Call = Coroutine[Any, Any, T]


@wool.routine
async def add(a: int, /, b: int = 2, *rest: int, scale: float = 1.0, **others: str) -> float:
    return (a + b + sum(rest)) * scale + len(others)


@wool.routine
async def first(items: Sequence[T]) -> T:
    return items[0]


@wool.routine
async def nothing() -> None: ...


@wool.routine
async def average(start: float) -> AsyncGenerator[float, int]:
    sent = yield start
    assert_type(sent, int)


@wool.routine
async def repeat(item: T) -> AsyncIterator[T]:
    yield item


@wool.routine
async def words() -> AsyncIterable[str]:
    yield "word"


class Model(Generic[T]):
    def __init__(self, value: T) -> None:
        self.value = value

    @wool.routine
    async def get(self, default: T | None = None) -> T | None:
        return self.value or default

    @wool.routine
    async def stream(self, count: int) -> AsyncGenerator[T, None]:
        for _ in range(count):
            yield self.value

    @classmethod
    @wool.routine
    async def name(cls, upper: bool) -> str:
        return cls.__name__.upper() if upper else cls.__name__

    @staticmethod
    @wool.routine
    async def version(minor: int) -> tuple[int, int]:
        return 1, minor


class Doubler(Protocol):
    def __call__(self, number: int, *, twice: bool) -> Coroutine[Any, Any, int]: ...


@wool.routine
async def double(number: int, *, twice: bool = False) -> int:
    return number * (4 if twice else 2)


async def coroutines() -> None:
    call: Call[float] = add(1)
    assert_type(await call, float)
    assert_type(await add(1, 2, 3, scale=2.0, word="x"), float)
    assert_type(await first(["a"]), str)
    assert_type(await first([1]), int)
    assert_type(nothing, Callable[[], Call[None]])
    doubler: Doubler = double
    assert_type(await doubler(1, twice=True), int)


async def generators() -> None:
    running = average(1.0)
    assert_type(running, AsyncGenerator[float, int])
    assert_type(await anext(running), float)
    assert_type(await running.asend(1), float)
    assert_type(await running.athrow(ValueError()), float)
    await running.aclose()
    async for item in repeat("a"):
        assert_type(item, str)
    assert_type(words(), AsyncIterable[str])


async def methods() -> None:
    model = Model(3)
    assert_type(await model.get(), int | None)
    assert_type(await model.get(default=1), int | None)
    assert_type(await Model.get(model), int | None)
    assert_type([item async for item in model.stream(2)], list[int])
    assert_type(await Model.name(True), str)
    assert_type(await model.name(upper=False), str)
    assert_type(await Model.version(2), tuple[int, int])
    assert_type(await model.version(minor=2), tuple[int, int])


async def maps(numbers: list[int], lines: AsyncIterable[str]) -> None:
    async for number in wool.map(add, numbers):
        assert_type(number, float)
    async for number in wool.map(add, numbers, range(3), ordered=False, concurrency=8):
        assert_type(number, float)
    async for number in wool.map(add, numbers, numbers, words_of(lines), progress=print):
        assert_type(number, float)
    assert_type([r async for r in wool.map(add, *[numbers] * 4)], list[float])
    async with wool.map(first, [["a"], ["b"]]) as results:
        assert_type(await anext(results), str)
    async for item in wool.map(first, [[1]], return_exceptions=True):
        assert_type(item, int | BaseException)
    async for text in wool.map(Model(3).get, [1], progress=report):
        assert_type(text, int | None)
    async for name in wool.map(Model.name, wool.map(truth, lines)):
        assert_type(name, str)
    async for pair in wool.map(partial(both, 1), lines, return_exceptions=False):
        assert_type(pair, tuple[int, str])


def report(progress: wool.MapProgress) -> None:
    assert_type(progress.total, int | None)


async def words_of(lines: AsyncIterable[str]) -> AsyncIterator[int]:
    async for line in lines:
        yield len(line)


@wool.routine
async def truth(text: str) -> bool:
    return bool(text)


@wool.routine
async def both(number: int, text: str) -> tuple[int, str]:
    return number, text


async def mistakes() -> None:
    await add("a")  # type: ignore[arg-type]
    await add()  # type: ignore[call-arg]
    await double(1, True)  # type: ignore[call-arg]
    await double(number="1")  # type: ignore[arg-type]
    await average(1.0).asend("a")  # type: ignore[arg-type]
    await average(1.0)  # type: ignore[misc]
    await Model(3).get("a")  # type: ignore[arg-type]
    await Model.name()  # type: ignore[call-arg]
    await Model.version("2")  # type: ignore[arg-type]
    wool.map(add, ["a"])  # type: ignore[arg-type]
    wool.map(add)  # type: ignore[call-overload]
    wool.map(both, [1])  # type: ignore[arg-type]
    wool.map(both, [1], [1])  # type: ignore[arg-type]
    wool.map(average, [1.0])  # type: ignore[arg-type]
    wool.map(add, 3)  # type: ignore[call-overload]
    wool.map(add, [1], progress=3)  # type: ignore[call-overload]


def not_async() -> int:
    return 1


if TYPE_CHECKING:
    wool.routine(not_async)  # type: ignore[type-var]
    wool.routine(3)  # type: ignore[call-overload]
    wool.routine(prefetch="1")  # type: ignore[call-overload]
