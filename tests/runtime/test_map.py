"""`wool.map` with calls that run here, where a test can hold them."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import random
import sys
import weakref
from contextlib import aclosing, closing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import wool
from tests.support import eventually
from wool import MapProgress
from wool.runtime.map import CONCURRENCY, Results
from wool.runtime.routine.task import do_dispatch

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Callable,
        Coroutine,
        Generator,
        Iterable,
        Iterator,
    )
    from pathlib import Path

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture(autouse=True)
async def here() -> AsyncIterator[None]:
    """Routines run where they are called."""
    with do_dispatch(False):
        yield


class Floor:
    """Calls that end when they are told to, and the inputs that they are for."""

    def __init__(self) -> None:
        self.read = 0
        self.closed = 0
        self.most = 0
        self.cancelled: list[int] = []
        self.tidied: list[int] = []
        self.calls: dict[int, asyncio.Future[int]] = {}

    async def enter(self, item: int) -> int:
        self.calls[item] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.calls))
        try:
            return await self.calls[item]
        except asyncio.CancelledError:
            self.cancelled.append(item)
            await asyncio.sleep(0.01)
            self.tidied.append(item)
            raise
        finally:
            del self.calls[item]

    async def end(self, *items: int, error: BaseException | None = None) -> None:
        """Have calls end, and let what follows from it happen."""
        for item in items:
            await eventually(lambda item=item: item in self.calls)  # type: ignore[misc]
            if error is None:
                self.calls[item].set_result(-item)
            else:
                self.calls[item].set_exception(error)
        await settle()

    def items(self, count: int | None = None) -> Generator[int, None, None]:
        """0, 1, 2, ..., by default without an end."""
        try:
            for item in itertools.count() if count is None else range(count):
                self.read += 1
                yield item
        finally:
            self.closed += 1

    async def async_items(self, count: int | None = None) -> AsyncGenerator[int, None]:
        with closing(self.items(count)) as items:
            for item in items:
                await asyncio.sleep(0)
                yield item

    @property
    def left(self) -> bool:
        """Whether nothing runs any more, and what was cancelled has cleaned up."""
        return not self.calls and self.closed == 1 and self.tidied == self.cancelled


@wool.routine
async def stay(floor: Floor, item: int) -> int:
    return await floor.enter(item)


@wool.routine
async def stay_twice(floor: Floor, item: int, same: int) -> int:
    assert item == same
    return await floor.enter(item)


@wool.routine
async def add(*numbers: int) -> int:
    await asyncio.sleep(0)
    return sum(numbers)


@wool.routine
async def stream(item: int) -> AsyncGenerator[int, None]:
    yield item


async def undecorated(item: int) -> int:
    return item


async def settle() -> None:
    """Let everything happen that waits for nothing but its turn."""
    for _ in range(20):
        await asyncio.sleep(0)


def begin(results: Results[Any]) -> asyncio.Task[Any]:
    """Ask for the next result."""

    async def take() -> Any:
        return await anext(results)

    return asyncio.get_running_loop().create_task(take())


async def slowly(items: Iterable[int]) -> AsyncIterator[int]:
    for item in items:
        await asyncio.sleep(0)
        yield item


@pytest.fixture
def floor() -> Floor:
    return Floor()


@pytest.fixture(params=["sync", "async"])
def items(request: pytest.FixtureRequest, floor: Floor) -> Callable[..., Any]:
    return floor.items if request.param == "sync" else floor.async_items


class Countdown:
    """An async iterable that is no generator."""

    async def __aiter__(self) -> AsyncIterator[int]:
        yield 2
        yield 1


@pytest.mark.parametrize(
    ("inputs", "sums"),
    [
        ([[1, 2, 3]], [1, 2, 3]),
        ([slowly([1, 2, 3])], [1, 2, 3]),
        ([[]], []),
        ([slowly([])], []),
        ([[1, 2, 3], (10, 20)], [11, 22]),
        ([itertools.count(), {5: None, 6: None}], [5, 7]),
        ([slowly([1, 2]), slowly([10, 20, 30])], [11, 22]),
        ([slowly([1, 2, 3]), [10, 20, 30], slowly([100, 200])], [111, 222]),
        ([[1], [2], [3], slowly([4]), [5]], [15]),
        ([Countdown(), itertools.repeat(1)], [3, 2]),
        ([range(1_000)], [*range(1_000)]),
    ],
)
async def test_inputs_are_zipped(inputs: list[Any], sums: list[int]) -> None:
    assert [result async for result in wool.map(add, *inputs)] == sums


@pytest.mark.parametrize("seed", range(20))
async def test_results_of_calls_that_end_in_any_order(floor: Floor, seed: int) -> None:
    generator = random.Random(seed)
    count, concurrency = generator.randint(0, 40), generator.randint(1, 12)
    ordered = generator.choice([True, False])
    results = wool.map(
        partial(stay, floor), floor.items(count), concurrency=concurrency, ordered=ordered
    )

    async def end_all() -> list[int]:
        ended: list[int] = []
        while len(ended) < count:
            await eventually(lambda: floor.calls, interval=0)
            item = generator.choice([*floor.calls])
            await floor.end(item)
            ended.append(-item)
        return ended

    ending = asyncio.get_running_loop().create_task(end_all())
    taken = [result async for result in results]

    ended = await ending
    assert taken == ([-item for item in range(count)] if ordered else ended)
    assert floor.most == min(count, concurrency)
    assert floor.left


async def test_concurrency_by_default(floor: Floor) -> None:
    async with wool.map(partial(stay, floor), floor.items()) as results:
        first = begin(results)
        await settle()

        assert len(floor.calls) == floor.read == CONCURRENCY

        await floor.end(0)
        assert await first == 0
    assert floor.left


@pytest.mark.parametrize("ordered", [True, False])
async def test_no_input_is_read_while_no_result_is_taken(
    floor: Floor, items: Callable[[], Any], ordered: bool
) -> None:
    """Not even when all calls have ended."""
    results = wool.map(partial(stay, floor), items(), concurrency=3, ordered=ordered)
    first = begin(results)
    await floor.end(0)
    assert await first == 0
    await eventually(lambda: len(floor.calls) == 3)

    await floor.end(1, 2, 3)
    assert (floor.read, floor.calls) == (4, {})

    assert await anext(results) == -1
    await eventually(lambda: floor.read == 5)
    assert await anext(results) == -2
    await eventually(lambda: [*floor.calls] == [4, 5])
    await results.aclose()
    assert floor.left


async def test_slow_call_holds_up_those_after_it_but_no_more_start(floor: Floor) -> None:
    results = wool.map(partial(stay, floor), floor.items(), concurrency=3)
    first = begin(results)

    await floor.end(2, 1)

    assert not first.done()
    assert floor.read == 3
    await floor.end(0)
    assert [await first, await anext(results), await anext(results)] == [0, -1, -2]
    await results.aclose()


async def test_unordered_results_do_not_wait_for_a_slow_call(floor: Floor) -> None:
    results = wool.map(partial(stay, floor), floor.items(), concurrency=3, ordered=False)
    first = begin(results)

    await floor.end(2)
    assert await first == -2
    await floor.end(1)
    assert await anext(results) == -1
    await floor.end(4)
    assert await anext(results) == -4
    assert 0 in floor.calls
    await results.aclose()
    assert 0 in floor.tidied


async def test_result_does_not_wait_for_an_input(floor: Floor) -> None:
    silence = asyncio.Event()

    async def once() -> AsyncIterator[int]:
        yield 0
        await silence.wait()
        yield 1

    results = wool.map(partial(stay, floor), once())
    first = begin(results)
    await floor.end(0)
    assert await first == 0

    second = begin(results)
    silence.set()
    await floor.end(1)
    assert await second == -1
    assert [result async for result in results] == []


async def test_nothing_starts_before_the_first_result_is_asked_for(floor: Floor) -> None:
    results = wool.map(partial(stay, floor), floor.items(), progress=lambda progress: None)
    await settle()
    assert (floor.read, floor.calls) == (0, {})

    await results.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(results)
    assert floor.read == 0


async def test_calls_have_the_context_of_who_asks_first() -> None:
    @wool.routine
    async def look(item: int) -> str:
        return variable.get()

    results = wool.map(look, range(3), concurrency=1)
    variable.set("asked")
    assert await anext(results) == "asked"
    variable.set("later")
    assert [result async for result in results] == ["asked", "asked"]


class Model:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    @wool.routine
    async def scale(self, item: int) -> int:
        return self.factor * item

    @classmethod
    @wool.routine
    async def double(cls, item: int) -> int:
        return cls(2).factor * item

    @staticmethod
    @wool.routine
    async def same(item: int) -> int:
        return item


async def test_routine_of_any_binding() -> None:
    assert [result async for result in wool.map(Model(3).scale, [1, 2])] == [3, 6]
    assert [result async for result in wool.map(Model.double, [1, 2])] == [2, 4]
    assert [result async for result in wool.map(Model.same, [1, 2])] == [1, 2]
    assert [result async for result in wool.map(partial(add, 10), [1, 2])] == [11, 12]


async def test_first_failure_ends_it_with_exactly_that(
    floor: Floor, items: Callable[[], Any]
) -> None:
    error = LookupError("three")
    results = wool.map(partial(stay, floor), items(), concurrency=5)
    first = begin(results)

    await floor.end(3, error=error)

    with pytest.raises(LookupError) as caught:
        await first
    assert caught.value is error
    assert floor.cancelled == [0, 1, 2, 4]
    assert floor.left
    with pytest.raises(StopAsyncIteration):
        await anext(results)


@pytest.mark.parametrize("ordered", [True, False])
async def test_results_that_are_there_are_given_before_a_failure(
    floor: Floor, ordered: bool
) -> None:
    """And of several failures it is the first, in time, that ends it."""
    results = wool.map(partial(stay, floor), floor.items(), concurrency=5, ordered=ordered)
    first = begin(results)
    await floor.end(0)
    assert await first == 0
    await eventually(lambda: [*floor.calls] == [1, 2, 3, 4, 5])

    await floor.end(1)
    await floor.end(4, error=LookupError("first"))
    await floor.end(2, error=LookupError("second"))

    assert await anext(results) == -1
    await settle()
    assert floor.read == 6
    with pytest.raises(LookupError, match="first"):
        await anext(results)
    assert floor.cancelled == [3, 5]
    assert floor.left


async def test_call_that_is_cancelled_by_itself_ends_it(floor: Floor) -> None:
    results = wool.map(partial(stay, floor), floor.items(3))
    first = begin(results)

    await floor.end(1, error=asyncio.CancelledError("worker stopped"))

    with pytest.raises(asyncio.CancelledError, match="worker stopped"):
        await first
    assert floor.left


async def test_exceptions_are_returned_in_place(floor: Floor) -> None:
    results = wool.map(partial(stay, floor), floor.items(4), return_exceptions=True)
    first = begin(results)
    error = LookupError("one")

    await floor.end(2, error=asyncio.CancelledError("worker stopped"))
    await floor.end(1, error=error)
    await floor.end(0, 3)

    taken = [await first, *[result async for result in results]]
    assert taken[:2] + taken[3:] == [0, error, -3]
    assert isinstance(taken[2], asyncio.CancelledError)
    assert taken[2].args == ("worker stopped",)


async def test_exceptions_that_are_to_end_the_program_are_not_returned(floor: Floor) -> None:
    class End(BaseException):
        """As `SystemExit`, which asyncio would raise out of the loop."""

    results = wool.map(partial(stay, floor), floor.items(4), return_exceptions=True)
    first = begin(results)

    await floor.end(2, error=End())

    with pytest.raises(End):
        await first
    assert floor.left


async def test_call_that_raises_what_would_end_the_loop_unseen() -> None:
    @wool.routine
    async def stop(item: int) -> None:
        raise StopAsyncIteration(item)

    with pytest.raises(RuntimeError, match="raised StopAsyncIteration") as caught:
        await anext(wool.map(stop, [1]))
    assert isinstance(caught.value.__cause__, StopAsyncIteration)


@pytest.mark.parametrize("return_exceptions", [True, False])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_input_that_fails_ends_it(floor: Floor, kind: str, return_exceptions: bool) -> None:
    error = OSError("unreadable")

    def lines() -> Any:
        yield from range(3)
        raise error

    async def async_lines() -> Any:
        for item in range(3):
            yield item
        raise error

    results = wool.map(
        partial(stay_twice, floor),
        lines() if kind == "sync" else async_lines(),
        floor.items(),
        return_exceptions=return_exceptions,
    )

    with pytest.raises(OSError, match="unreadable") as caught:
        await anext(results)
    assert caught.value is error
    assert sorted(floor.cancelled) == [0, 1, 2]
    assert floor.left


async def leave_by_break(results: Results[int]) -> None:
    async with results:
        async for _ in results:
            break


async def leave_by_closing(results: Results[int]) -> None:
    await anext(results)
    await results.aclose()
    await results.aclose()


async def leave_by_exception(results: Results[int]) -> None:
    async def consume() -> None:
        async with results:
            async for _ in results:
                raise LookupError("body")

    with pytest.raises(LookupError, match="body"):
        await consume()


async def leave_by_cancellation_of_the_wait(results: Results[int]) -> None:
    await anext(results)
    task = begin(results)
    await settle()
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await task
    assert task.cancelled()


async def leave_by_timeout(results: Results[int]) -> None:
    await anext(results)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await anext(results)


@pytest.mark.parametrize(
    "leave",
    [
        leave_by_break,
        leave_by_closing,
        leave_by_exception,
        leave_by_cancellation_of_the_wait,
        leave_by_timeout,
    ],
)
async def test_leaving_early_cancels_what_is_in_flight_and_waits(
    floor: Floor,
    items: Callable[[], Any],
    leave: Callable[[Results[int]], Coroutine[Any, Any, None]],
) -> None:
    results = wool.map(partial(stay, floor), items(), concurrency=4)
    leaving = asyncio.get_running_loop().create_task(leave(results))
    await floor.end(0)

    await leaving

    assert len(floor.tidied) >= 3
    assert floor.left
    with pytest.raises(StopAsyncIteration):
        await anext(results)


async def test_results_that_nobody_takes_are_dropped_at_the_end() -> None:
    class Large:
        pass

    made: list[weakref.ref[Large]] = []

    @wool.routine
    async def make(item: int) -> Large:
        large = Large()
        made.append(weakref.ref(large))
        return large

    results = wool.map(make, itertools.count(), concurrency=3)
    await anext(results)
    await eventually(lambda: len(made) == 4)
    await settle()

    await results.aclose()

    assert [large() for large in made] == [None] * 4


async def test_break_alone_closes_it_soon(floor: Floor, items: Callable[[], Any]) -> None:
    """As it is collected: asyncio has what it holds closed by a task."""

    async def leave() -> None:
        async for _ in wool.map(partial(stay, floor), items(), concurrency=4):
            break

    leaving = asyncio.get_running_loop().create_task(leave())
    await floor.end(0)
    await leaving

    await eventually(lambda: floor.left and floor.tidied)


async def test_cancelling_again_cuts_clean_up_short(floor: Floor) -> None:
    @wool.routine
    async def linger(item: int) -> None:
        floor.calls[item] = asyncio.get_running_loop().create_future()
        try:
            await floor.calls[item]
        finally:
            floor.cancelled.append(item)
            await asyncio.sleep(3600)

    task = begin(wool.map(linger, floor.items(), concurrency=2))
    await settle()
    task.cancel("first")
    await settle()
    assert floor.cancelled == [0, 1]
    assert not task.done()

    task.cancel("second")

    with pytest.raises(asyncio.CancelledError, match="second"):
        await task
    assert floor.closed == 1


async def test_input_that_loses_a_cancellation_is_read_no_further(floor: Floor) -> None:
    async def deaf() -> AsyncIterator[int]:
        yield 0
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            yield 1
        raise AssertionError("was read")

    results = wool.map(partial(stay, floor), deaf())
    first = begin(results)
    await floor.end(0)
    await first

    await results.aclose()

    await settle()
    assert floor.calls == {}


async def test_input_that_fails_to_close_is_heard_of(floor: Floor) -> None:
    def items() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            raise OSError("stuck")

    results = wool.map(partial(stay, floor), items(), concurrency=2)
    first = begin(results)
    await floor.end(0)
    await first

    with pytest.raises(OSError, match="stuck"):
        await results.aclose()
    assert floor.calls == {}

    failing = begin(wool.map(partial(stay, floor), items(), concurrency=2))
    await floor.end(1, error=LookupError("one"))
    with pytest.raises(LookupError, match="one"):
        await failing


async def test_longer_input_is_closed_and_a_file_is_not(floor: Floor, tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_text("1\n2\n3\n")

    @wool.routine
    async def parse(line: str, item: int, other: int) -> int:
        return int(line) + item + other

    with path.open() as file:
        results = wool.map(parse, file, floor.items(), slowly([0, 0]))
        assert [result async for result in results] == [1, 3]
        assert not file.closed
    assert floor.closed == 1


async def test_maps_of_maps(floor: Floor) -> None:
    """The inner one is closed with the outer one."""
    inner = wool.map(add, floor.items(), [1] * 100, concurrency=2)
    async with wool.map(partial(stay, floor), inner, concurrency=3) as outer:
        first = begin(outer)
        await floor.end(1)
        assert await first == -1
        await eventually(lambda: [*floor.calls] == [2, 3, 4])
        assert floor.read <= 4 + 2
    assert floor.left
    with pytest.raises(StopAsyncIteration):
        await anext(inner)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks start eagerly from Python 3.12 on")
async def test_tasks_that_start_eagerly() -> None:
    @wool.routine
    async def same(item: int) -> int:
        return item

    loop = asyncio.get_running_loop()
    factory = loop.get_task_factory()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    try:
        for ordered in (True, False):
            results = wool.map(same, range(100), concurrency=3, ordered=ordered)
            assert [result async for result in results] == [*range(100)]
    finally:
        loop.set_task_factory(factory)


async def test_progress_is_told_of_each_call(floor: Floor) -> None:
    told: list[MapProgress] = []
    results = wool.map(
        partial(stay_twice, floor),
        floor.items(),
        range(3),
        concurrency=2,
        return_exceptions=True,
        progress=told.append,
    )
    taking = asyncio.get_running_loop().create_task(collect(results))

    await floor.end(1)
    await floor.end(0, error=LookupError())
    await floor.end(2)
    await taking

    assert told == [
        MapProgress(done=1, failed=0, running=1, total=3),
        MapProgress(done=2, failed=1, running=0, total=3),
        MapProgress(done=3, failed=1, running=0, total=3),
    ]


async def test_progress_knows_the_total_when_the_inputs_have_ended(floor: Floor) -> None:
    told: list[MapProgress] = []
    results = wool.map(partial(stay, floor), floor.items(2), concurrency=3, progress=told.append)
    taking = asyncio.get_running_loop().create_task(collect(results))

    await floor.end(0, 1)
    await taking

    assert [(progress.done, progress.total) for progress in told] == [(0, 2), (1, 2), (2, 2)]


class Shy(list[int]):
    """As a data set that can be iterated over and has no length."""

    def __len__(self) -> int:
        raise TypeError("no length")


@pytest.mark.parametrize(
    ("inputs", "total"),
    [
        ([range(10**30), range(5), itertools.count()], 5),
        ([range(10**30)], None),
        ([Shy([1, 2])], None),
        ([{1, 2}, "word", slowly([1, 2, 3])], 2),
    ],
)
async def test_progress_has_the_total_of_inputs_that_have_a_length(
    floor: Floor, inputs: list[Any], total: int | None
) -> None:
    told: list[MapProgress] = []

    @wool.routine
    async def enter(*items: int) -> int:
        return await floor.enter(0)

    first = begin(wool.map(enter, *inputs, concurrency=1, progress=told.append))
    await floor.end(0)
    await first

    assert told == [MapProgress(done=1, failed=0, running=0, total=total)]


async def test_progress_is_told_of_a_failure_and_of_nothing_later(floor: Floor) -> None:
    told: list[MapProgress] = []
    results = wool.map(partial(stay, floor), floor.items(), concurrency=3, progress=told.append)
    first = begin(results)
    await floor.end(1, error=LookupError())

    with pytest.raises(LookupError):
        await first
    await settle()

    assert told == [MapProgress(done=1, failed=1, running=2, total=None)]


async def test_progress_that_raises_ends_it(floor: Floor) -> None:
    error = OSError("no screen")

    def tell(progress: MapProgress) -> None:
        raise error

    results = wool.map(partial(stay, floor), floor.items(), concurrency=3, progress=tell)
    first = begin(results)
    await floor.end(1)

    with pytest.raises(OSError, match="no screen") as caught:
        await first
    assert caught.value is error
    assert floor.cancelled == [0, 2]
    assert floor.left


async def test_progress_that_has_raised_is_told_no_more(floor: Floor) -> None:
    """And what was there before is given first."""
    told: list[int] = []

    def tell(progress: MapProgress) -> None:
        told.append(progress.done)
        if progress.done == 2:
            raise OSError("no screen")

    results = wool.map(partial(stay, floor), floor.items(), concurrency=3, progress=tell)
    first = begin(results)
    await floor.end(0)
    await first

    await floor.end(1, 2)

    assert told == [1, 2]
    assert [await anext(results), await anext(results)] == [-1, -2]
    with pytest.raises(OSError, match="no screen"):
        await anext(results)
    assert floor.left


async def collect(results: Results[Any]) -> list[Any]:
    return [result async for result in results]


async def test_repr_says_how_far_it_is(floor: Floor) -> None:
    results = wool.map(partial(stay, floor), floor.items(3), concurrency=2)
    assert repr(results) == "<wool.map of stay: 0 done, 0 running, reading>"
    first = begin(results)
    await floor.end(0)
    await first
    assert repr(results) == "<wool.map of stay: 1 done, 2 running, reading>"
    await results.aclose()
    assert repr(results) == "<wool.map of stay: 1 done, 0 running, closed>"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((undecorated, [1]), {}, TypeError, r"takes a routine, got .*@wool\.routine"),
        ((3, [1]), {}, TypeError, "takes a routine, got 3"),
        ((partial(undecorated, 1), [1]), {}, TypeError, "takes a routine, got functools.partial"),
        ((stream, [1]), {}, TypeError, "is an async generator function"),
        ((add,), {}, TypeError, "at least one iterable"),
        ((add, 3), {}, TypeError, "takes iterables and async iterables, got 'int'"),
        ((add, [1], undecorated), {}, TypeError, "got 'function'"),
        ((add, [1]), {"concurrency": 0}, ValueError, "1 or more, got 0"),
        ((add, [1]), {"concurrency": -1}, ValueError, "1 or more, got -1"),
        ((add, [1]), {"concurrency": 1.5}, ValueError, r"got 1\.5"),
        ((add, [1]), {"progress": "bar"}, TypeError, "True or a function, got 'bar'"),
    ],
)
def test_mistakes_show_at_the_call(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        wool.map(*arguments, **options)


async def test_used_with_aclosing(floor: Floor) -> None:
    results = wool.map(partial(stay, floor), floor.items(), concurrency=2)
    async with aclosing(results):
        first = begin(results)
        await floor.end(0)
        await first
    assert floor.left
