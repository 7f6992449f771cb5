"""`wool.map`: calls for the items of inputs, a bounded number at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
)
from contextlib import AsyncExitStack, aclosing, nullcontext
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar, overload

from wool.runtime.capture import ROUTINE, undecorated
from wool.runtime.extras import need

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Self

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")

Input: TypeAlias = Iterable[A] | AsyncIterable[A]
Report: TypeAlias = "Callable[[MapProgress], object]"

CONCURRENCY: Final = 64
"""Calls. A worker runs many at a time, and as many share a message."""


@dataclass(frozen=True, slots=True)
class MapProgress:
    """How far the calls of a `wool.map` are.

    `done` calls have ended, of which `failed` raised something; `running` ones have not. `total` is
    how many there will be: the length of the shortest input that has one until the inputs end,
    and None while it is not known.
    """

    done: int
    failed: int
    running: int
    total: int | None


@overload
def map(
    routine: Callable[[A], Coroutine[Any, Any, T]],
    iterable: Input[A],
    /,
    *,
    concurrency: int | None = None,
    ordered: bool = True,
    return_exceptions: Literal[False] = False,
    progress: bool | Report | None = None,
) -> Results[T]: ...
@overload
def map(
    routine: Callable[[A], Coroutine[Any, Any, T]],
    iterable: Input[A],
    /,
    *,
    concurrency: int | None = None,
    ordered: bool = True,
    return_exceptions: bool,
    progress: bool | Report | None = None,
) -> Results[T | BaseException]: ...
@overload
def map(
    routine: Callable[[A, B], Coroutine[Any, Any, T]],
    iterable: Input[A],
    iterable2: Input[B],
    /,
    *,
    concurrency: int | None = None,
    ordered: bool = True,
    return_exceptions: Literal[False] = False,
    progress: bool | Report | None = None,
) -> Results[T]: ...
@overload
def map(
    routine: Callable[[A, B], Coroutine[Any, Any, T]],
    iterable: Input[A],
    iterable2: Input[B],
    /,
    *,
    concurrency: int | None = None,
    ordered: bool = True,
    return_exceptions: bool,
    progress: bool | Report | None = None,
) -> Results[T | BaseException]: ...
@overload
def map(
    routine: Callable[[A, B, C], Coroutine[Any, Any, T]],
    iterable: Input[A],
    iterable2: Input[B],
    iterable3: Input[C],
    /,
    *,
    concurrency: int | None = None,
    ordered: bool = True,
    return_exceptions: Literal[False] = False,
    progress: bool | Report | None = None,
) -> Results[T]: ...
@overload
def map(
    routine: Callable[[A, B, C], Coroutine[Any, Any, T]],
    iterable: Input[A],
    iterable2: Input[B],
    iterable3: Input[C],
    /,
    *,
    concurrency: int | None = None,
    ordered: bool = True,
    return_exceptions: bool,
    progress: bool | Report | None = None,
) -> Results[T | BaseException]: ...
@overload
def map(
    routine: Callable[..., Coroutine[Any, Any, T]],
    iterable: Input[Any],
    iterable2: Input[Any],
    iterable3: Input[Any],
    iterable4: Input[Any],
    /,
    *iterables: Input[Any],
    concurrency: int | None = None,
    ordered: bool = True,
    return_exceptions: Literal[False] = False,
    progress: bool | Report | None = None,
) -> Results[T]: ...
@overload
def map(
    routine: Callable[..., Coroutine[Any, Any, T]],
    iterable: Input[Any],
    iterable2: Input[Any],
    iterable3: Input[Any],
    iterable4: Input[Any],
    /,
    *iterables: Input[Any],
    concurrency: int | None = None,
    ordered: bool = True,
    return_exceptions: bool,
    progress: bool | Report | None = None,
) -> Results[T | BaseException]: ...
def map(
    routine: Callable[..., Coroutine[Any, Any, Any]],
    /,
    *iterables: Input[Any],
    concurrency: int | None = None,
    ordered: bool = True,
    return_exceptions: bool = False,
    progress: bool | Report | None = None,
) -> Results[Any]:
    """Call a routine for each item of an input, and iterate over the results.

        async with wool.map(parse, lines, concurrency=100) as documents:
            async for document in documents:
                ...

    Several inputs are zipped as by the builtin `map`: a call takes an item of each, and the
    shortest ends it. Inputs are sync or async iterables, may be mixed and endless, and are read
    on the caller's loop, one item at a time. Generators among them are closed in the end.

    `concurrency` (64 by default, in the pool as a whole) bounds the calls under way and the
    results not yet taken, together: while nobody takes results, no input is read. Give more to
    pools of more than some 32 workers, and less where items are large. Results come in the order
    of the inputs, so that a slow call holds up those after it, or with `ordered=False` as calls
    end.

    The first call that fails ends the iteration with what it raised, as does an input that fails:
    no more calls start, results that are there are still given, in order, and the others are not
    waited for but cancelled. With `return_exceptions`, what calls raise is given in the place of
    their results: any `Exception`, and the `CancelledError` of a call that its worker cancelled.

    `progress=True` shows a bar on standard error if that is a terminal, or in a notebook, and
    needs the extra `wool[cli]`. A function is called with a `MapProgress` whenever a call has
    ended, and when `total` has changed; what it raises ends the iteration.

    Nothing starts before the first result is asked for; the calls' context is that of who asks.
    However the iteration ends, it first cancels the calls under way and waits for them. After a
    `break` this happens at once if it is used as an async context manager, as above, or with
    `aclose()`; else, as with an async generator, soon after it is garbage collected.

    Raises `TypeError` if `routine` is not a routine that is a coroutine function, or a
    `functools.partial` of one, if there is no input, and for inputs that can't be iterated over;
    `ValueError` if `concurrency` is less than 1; `ImportError` if the bar's extra is missing.
    """
    _check_routine(routine)
    if concurrency is None:
        concurrency = CONCURRENCY
    elif type(concurrency) is not int or concurrency < 1:
        raise ValueError(f"concurrency must be a number of calls, 1 or more, got {concurrency!r}")
    inputs = _Inputs(iterables)
    return Results(
        _Calls(
            routine,
            inputs,
            concurrency,
            ordered=ordered,
            return_exceptions=return_exceptions,
            progress=_reporting(progress, routine, inputs.total),
        )
    )


class Results(AsyncIterator[T]):
    """The results of a `wool.map`: an async iterator, also a context manager that closes it."""

    def __init__(self, calls: _Calls) -> None:
        self._calls = calls
        self._generator: AsyncGenerator[T, None] = calls.results()

    def __repr__(self) -> str:
        return f"<wool.map of {self._calls.snapshot()}>"

    def __anext__(self) -> Coroutine[Any, Any, T]:
        return self._generator.__anext__()

    async def aclose(self) -> None:
        """End the iteration: cancel the calls under way and wait for them."""
        await self._generator.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class _Inputs:
    """The inputs, zipped."""

    def __init__(self, iterables: tuple[Input[Any], ...]) -> None:
        if not iterables:
            raise TypeError("wool.map takes a routine and at least one iterable")
        self._iterators = [_iterator(iterable) for iterable in iterables]
        lengths = [_length(iterable) for iterable in iterables]
        self.total = min((length for length in lengths if length is not None), default=None)

    async def rows(self) -> AsyncGenerator[tuple[Any, ...], None]:
        """What each call takes. Closes the generators, in the task that has read them."""
        async with AsyncExitStack() as stack:
            for iterator in self._iterators:
                if isinstance(iterator, Generator):
                    stack.callback(iterator.close)
                elif isinstance(iterator, AsyncGenerator | Results):
                    stack.push_async_callback(iterator.aclose)
            pulls = [_pull(iterator) for iterator in self._iterators]
            while True:
                row = []
                try:
                    for pull, waits in pulls:
                        item = pull()
                        row.append(await item if waits else item)
                except (StopIteration, StopAsyncIteration):
                    return
                yield tuple(row)


class _Stage(Enum):
    READING = auto()
    READ = auto()
    """The inputs have ended."""
    FAILED = auto()
    CLOSED = auto()


class _Calls:
    """The calls of one iteration.

    The feeder, a task, reads the inputs and starts calls while there is room. A call takes up room
    until its result is taken.
    """

    def __init__(
        self,
        routine: Callable[..., Coroutine[Any, Any, Any]],
        inputs: _Inputs,
        concurrency: int,
        *,
        ordered: bool,
        return_exceptions: bool,
        progress: AbstractContextManager[Report | None],
    ) -> None:
        self._routine = routine
        self._inputs = inputs
        self._total = inputs.total
        self._room = concurrency
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        self._progress = progress
        self._report: Report | None = None
        self._stage = _Stage.READING
        self._failure: BaseException | None = None
        self._running: dict[asyncio.Task[Any], None] = {}
        self._queue: deque[asyncio.Task[Any]] = deque()
        """Calls whose results are to be taken, in that order: all of them, or those that ended."""
        self._errors: dict[asyncio.Task[Any], BaseException] = {}
        self._done = 0
        self._failed = 0
        self._consumer: asyncio.Future[None] | None = None
        self._feeder: asyncio.Future[None] | None = None

    def snapshot(self) -> str:
        stage = self._stage.name.lower()
        return f"{_name(self._routine)}: {self._done} done, {len(self._running)} running, {stage}"

    async def results(self) -> AsyncGenerator[Any, None]:
        with self._progress as self._report:
            feeder = asyncio.get_running_loop().create_task(self._feed(), name="wool.map")
            feeder.add_done_callback(self._fed)
            try:
                while await self._ready():
                    yield self._take()
            finally:
                self._stage = _Stage.CLOSED
                self._queue.clear()
                self._errors.clear()
                await _end([feeder, *self._running])
                if self._failure is None and not feeder.cancelled():
                    feeder.result()  # raises what closing the inputs has raised

    async def _ready(self) -> bool:
        """Wait until there is a result; False if there will be none. Raises what has failed."""
        while not self._queue or self._queue[0] in self._running:
            if self._failure is not None:
                raise self._failure
            if self._stage is _Stage.READ and not self._running:
                return False
            self._consumer = asyncio.get_running_loop().create_future()
            await self._consumer
        return True

    def _take(self) -> Any:
        call = self._queue.popleft()
        self._room += 1
        _wake(self._feeder)
        error = self._errors.pop(call, None)
        if error is None:
            return call.result()
        if self._gives(error):
            return error
        assert self._failure is not None
        raise self._failure

    async def _feed(self) -> None:
        async with aclosing(self._inputs.rows()) as rows:
            while await self._has_room() and (row := await anext(rows, None)):
                if self._stage is not _Stage.READING:
                    break
                self._start(row)

    async def _has_room(self) -> bool:
        """Wait for room; False if no more calls are to start."""
        while not self._room and self._stage is _Stage.READING:
            self._feeder = asyncio.get_running_loop().create_future()
            await self._feeder
        return self._stage is _Stage.READING

    def _start(self, row: tuple[Any, ...]) -> None:
        call = asyncio.get_running_loop().create_task(self._routine(*row))
        self._room -= 1
        self._running[call] = None
        if self._ordered:
            self._queue.append(call)
        call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[Any]) -> None:
        error = _error(call)
        del self._running[call]
        if self._stage is _Stage.CLOSED:
            return
        self._done += 1
        if not self._ordered:
            self._queue.append(call)
        if error is not None:
            self._failed += 1
            self._errors[call] = error
            if not self._gives(error):
                self._fail(error)
        self._tell()
        if not self._queue or self._queue[0] not in self._running:
            _wake(self._consumer)

    def _gives(self, error: BaseException) -> bool:
        """Whether it is given in the place of a result."""
        return self._return_exceptions and isinstance(error, Exception | asyncio.CancelledError)

    def _fed(self, feeder: asyncio.Task[None]) -> None:
        error = _error(feeder)
        if self._stage is not _Stage.READING:
            return
        if error is not None:
            self._fail(error)
            return
        self._stage = _Stage.READ
        total = self._done + len(self._running)
        if self._total != total:
            self._total = total
            self._tell()
        _wake(self._consumer)

    def _fail(self, error: BaseException) -> None:
        """End with this, if with nothing before it."""
        if self._failure is None:
            self._failure = error
            self._stage = _Stage.FAILED
        _wake(self._consumer)
        _wake(self._feeder)

    def _tell(self) -> None:
        if self._report is None:
            return
        running = len(self._running)
        try:
            self._report(MapProgress(self._done, self._failed, running, self._total))
        except Exception as exc:
            self._report = None
            self._fail(exc)


def _check_routine(routine: Any) -> None:
    function = routine
    while isinstance(function, partial):
        function = function.func
    if not hasattr(function, ROUTINE):
        raise TypeError(
            f"wool.map takes a routine, got {routine!r}: decorate it with @wool.routine"
        )
    if not iscoroutinefunction(undecorated(function)):
        raise TypeError(
            f"wool.map takes a routine that is a coroutine function, and {routine!r} is an async "
            "generator function: its calls have many results"
        )


def _name(routine: Any) -> str:
    while isinstance(routine, partial):
        routine = routine.func
    return str(undecorated(routine).__name__)


def _reporting(
    progress: bool | Report | None, routine: Any, total: int | None
) -> AbstractContextManager[Report | None]:
    if progress is True:
        need("rich", extra="cli")
        from wool.runtime.progress import bar

        return bar(_name(routine), total)
    if progress is None or progress is False:
        return nullcontext()
    if not callable(progress):
        raise TypeError(f"progress must be True or a function, got {progress!r}")
    return nullcontext(progress)


def _iterator(iterable: Any) -> Iterator[Any] | AsyncIterator[Any]:
    try:
        return aiter(iterable) if isinstance(iterable, AsyncIterable) else iter(iterable)
    except TypeError as exc:
        raise TypeError(
            f"wool.map takes iterables and async iterables, got {type(iterable).__name__!r}"
        ) from exc


def _length(iterable: Any) -> int | None:
    try:
        return len(iterable)
    except (TypeError, OverflowError):
        return None


def _pull(iterator: Iterator[Any] | AsyncIterator[Any]) -> tuple[Callable[[], Any], bool]:
    """What gives the next item, and whether it has to be awaited."""
    if isinstance(iterator, AsyncIterator):
        return iterator.__anext__, True
    return iterator.__next__, False


def _error(task: asyncio.Task[Any]) -> BaseException | None:
    try:
        return task.exception()
    except asyncio.CancelledError as exc:
        return exc


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for them; again, with each cancellation of the wait."""
    cancellation = None
    for task in tasks:
        task.cancel()
    while waiting := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(waiting)
        except asyncio.CancelledError as exc:
            cancellation = exc
            for task in waiting:
                task.cancel()
    if cancellation is not None:
        raise cancellation
