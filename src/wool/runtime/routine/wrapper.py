"""The decorator that makes a routine of an async function."""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextlib import nullcontext
from dataclasses import replace
from functools import partial, wraps
from types import FunctionType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

import wool
from wool.runtime import context, observation, serializer
from wool.runtime.capture import OPTIONS, ROUTINE
from wool.runtime.errors import UnexpectedResponse, WorkerLost
from wool.runtime.remote_exception import is_ordinary
from wool.runtime.routine.options import DEFAULTS, RoutineOptions
from wool.runtime.routine.task import Task, describe, do_dispatch, new_id, within

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        Awaitable,
        Callable,
        Coroutine,
        Iterable,
    )

    from wool.runtime.routine.task import WorkerProxyLike

logger = logging.getLogger("wool.routine")

FIRST_PAUSE, LAST_PAUSE = 0.1, 10.0
"""Seconds, at most, before another attempt, doubling."""

P = ParamSpec("P")
T = TypeVar("T", bound="Coroutine[Any, Any, Any] | AsyncIterable[Any]")


@overload
def routine(function: Callable[P, T], /) -> Callable[P, T]: ...
@overload
def routine(
    *,
    prefetch: int = 0,
    tags: Iterable[str] = (),
    timeout: float | None = None,
    retries: int | None = None,
    idempotent: bool = False,
    retry_on: type[Exception] | Iterable[type[Exception]] = (),
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def routine(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a routine of a coroutine function or an async generator function.

    Called while a pool is active, it runs in one of the pool's workers; arguments, results, values
    sent and yielded, and exceptions are pickled copies. On methods it goes innermost:

        class Model:
            @classmethod
            @wool.routine
            async def load(cls, path): ...

    With `prefetch`, for async generators, the worker may run up to that many values ahead of the
    consumer (default 0: no step before it is asked for):

        @wool.routine(prefetch=64)
        async def rows(path): ...

    Nothing can be sent or thrown into such a stream: `asend` and `athrow` raise `RuntimeError`.
    When it is left early, what was fetched is discarded, and the step under way is cancelled.

    With `tags`, it goes to workers alone that have all of them:

        @wool.routine(tags={"gpu"})
        async def train(model): ...

    With `timeout`, its worker cancels it when it has run for that many seconds (default: None,
    however long), an async generator when one step has, and the caller gets a `TimeoutError`:

        @wool.routine(timeout=30)
        async def fetch(url): ...

    With `idempotent`, for coroutine functions, it may run more than once for a call: when its
    worker is lost, or when it raises one of the exceptions in `retry_on`, it is tried again, up to
    `retries` times (default: 3), on another worker if there is one, after a pause of up to 0.1 s
    that doubles each time, to 10 s at most. The arguments are those of the call.

        @wool.routine(idempotent=True, retries=5, retry_on=ConnectionError)
        async def upload(path): ...

    Every routine has a method `options`, which makes one that differs in some of these, for a call:
    `await fetch.options(timeout=300)(url)`. For methods it is found through the class, and the
    instance, or the class of a class method, is an argument: `Model.fit.options(timeout=300)(it)`.
    Type checkers see functions, and don't know of it.

    Raises `ValueError` for another kind of function, and for options that are out of range, not for
    such a function, or need another one, and `TypeError` for those of another type. A call raises
    `RuntimeError` if no pool is active. If no worker turns up within a minute, that is a
    `TimeoutError`, or `NoWorkersAvailable` if the routine requires tags.
    """
    given = RoutineOptions(**options)
    return partial(_decorate, options=given) if function is None else _decorate(function, given)


def _decorate(function: Callable[..., Any], options: RoutineOptions = DEFAULTS) -> Any:
    if isinstance(function, classmethod | staticmethod):
        raise ValueError("@wool.routine must be applied before @classmethod/@staticmethod")
    coroutine = isinstance(function, FunctionType) and inspect.iscoroutinefunction(function)
    generator = isinstance(function, FunctionType) and inspect.isasyncgenfunction(function)
    if not (coroutine or generator):
        raise ValueError(
            f"Expected a coroutine function or async generator function, got {function!r}: "
            "decorate a function that is defined with `async def`"
        )
    options.check_for(function, generator=generator)
    function = cast("FunctionType", function)
    make = _generator_routine if generator else _coroutine_routine
    wrapper = make(function, options)
    setattr(wrapper, ROUTINE, function)
    setattr(wrapper, OPTIONS, options)
    wrapper.options = partial(_with_options, function, options)
    return wrapper


def _with_options(function: FunctionType, options: RoutineOptions, **overrides: Any) -> Any:
    return _decorate(function, replace(options, **overrides))


serializer.register_routine_decorator(_decorate)


def _coroutine_routine(function: FunctionType, options: RoutineOptions) -> Any:
    @wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not context.dispatching.get():
            with do_dispatch(True):
                return await within(options.timeout, function(*args, **kwargs), function)
        proxy, task = _task(function, args, kwargs, options)
        if observation.listeners or options.attempts > 1:
            return await _result_told(proxy, task, options)
        stream = await proxy.dispatch(task, timeout=context.dispatch_timeout.get())
        del task  # It holds the pickled arguments, which the call need not.
        return await _result(stream)

    return wrapper


async def _result(stream: Any) -> Any:
    """What a call returns that a worker has taken."""
    try:
        return await anext(stream)
    except StopAsyncIteration as exc:
        if exc is getattr(stream, "raised", None):
            raise
        raise UnexpectedResponse(
            "Expected 'result' or 'exception' response, received the end of the stream"
        ) from None
    finally:
        await stream.aclose()


async def _attempt(proxy: WorkerProxyLike, task: Task) -> Any:
    return await _result(await proxy.dispatch(task, timeout=context.dispatch_timeout.get()))


async def _result_told(proxy: WorkerProxyLike, task: Task, options: RoutineOptions) -> Any:
    """The result of one attempt or several, and tell of it whoever listens."""
    with observation.call_span(task):
        if options.attempts > 1:
            return await _result_of_any(proxy, task, options)
        return await _attempt(proxy, task)


async def _result_of_any(proxy: WorkerProxyLike, task: Task, options: RoutineOptions) -> Any:
    """The result of the first attempt that isn't to be followed by another one."""
    import random  # Few routines are tried again.

    reasons: tuple[type[Exception], ...] = (WorkerLost, *options.retry_on)
    task.tried = set()
    task.encode()  # What can't be pickled is not tried again.
    pause = FIRST_PAUSE
    for _ in range(1, options.attempts):
        try:
            return await _attempt(proxy, task)
        except reasons as exc:
            logger.info("%s is tried again: %r", task, exc)
            await asyncio.sleep(random.uniform(0, pause))
            if not getattr(proxy, "started", True):  # Its pool has been left.
                raise
        pause = min(2 * pause, LAST_PAUSE)
    return await _attempt(proxy, task)


def _generator_routine(function: FunctionType, options: RoutineOptions) -> Any:
    @wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        proxy, task = None, None
        if context.dispatching.get():
            proxy, task = _task(function, args, kwargs, options)
        with (
            observation.call_span(task) if task is not None and observation.listeners else _NOTHING
        ):
            if proxy is not None:
                stream = await proxy.dispatch(task, timeout=context.dispatch_timeout.get())
                del task  # It holds the pickled arguments, which the stream need not.
            else:
                stream = _Local(function(*args, **kwargs), options.timeout, function)
            try:
                value = await anext(stream)
                while True:
                    try:
                        step = stream.asend((yield value))
                    except BaseException as exc:
                        if not is_ordinary(exc):
                            raise
                        step = stream.athrow(exc)
                    value = await step
            except StopAsyncIteration:
                return
            finally:
                await stream.aclose()

    return wrapper


_NOTHING = nullcontext()


class _Local:
    """An async generator whose body runs here, with dispatch switched on for it alone."""

    def __init__(
        self, generator: AsyncGenerator[Any, Any], timeout: float, function: FunctionType
    ) -> None:
        self._generator = generator
        self._timeout = timeout
        self._function = function

    async def _step(self, step: Awaitable[Any]) -> Any:
        with do_dispatch(True):
            return await within(self._timeout, step, self._function)

    async def __anext__(self) -> Any:
        return await self._step(anext(self._generator))

    async def asend(self, value: Any) -> Any:
        return await self._step(self._generator.asend(value))

    async def athrow(self, error: BaseException) -> Any:
        return await self._step(self._generator.athrow(error))

    async def aclose(self) -> None:
        with do_dispatch(True):
            await self._generator.aclose()


def _task(
    function: FunctionType,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: RoutineOptions,
) -> tuple[Any, Task]:
    """A call as a task, and the active proxy, which comes first."""
    proxy = wool.__proxy__.get()
    if proxy is None:
        raise RuntimeError(
            f"No pool is active for routine {describe(function)}: call it inside `async "
            "with wool.WorkerPool()`, in the task that has entered it or in one created there"
        )
    task = Task(
        new_id(),
        function,
        args,
        kwargs,
        proxy,
        timeout=options.timeout,
        prefetch=options.prefetch,
        tags=options.tags,
    )
    return proxy, task
