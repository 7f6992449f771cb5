"""The decorator that makes a routine of an async function."""

from __future__ import annotations

import inspect
from functools import partial, wraps
from types import FunctionType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import wool
from wool.runtime import context, serializer
from wool.runtime.capture import OPTIONS, ROUTINE
from wool.runtime.errors import UnexpectedResponse
from wool.runtime.remote_exception import is_ordinary
from wool.runtime.routine.task import Task, describe, do_dispatch, new_id
from wool.runtime.worker.metadata import check_tags

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable

P = ParamSpec("P")
T = TypeVar("T", bound="Coroutine[Any, Any, Any] | AsyncIterable[Any]")


@overload
def routine(function: Callable[P, T], /) -> Callable[P, T]: ...
@overload
def routine(
    *, prefetch: int = 0, tags: Iterable[str] = ()
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def routine(
    function: Callable[..., Any] | None = None,
    /,
    *,
    prefetch: int = 0,
    tags: Iterable[str] = (),
) -> Any:
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

    Raises `ValueError` for another kind of function, for a `prefetch` that is no number of values
    or comes with a coroutine function, and for `tags` that are not strings. A call raises
    `RuntimeError` if no pool is active. If no worker turns up within a minute, that is a
    `TimeoutError`, or `NoWorkersAvailable` if the routine requires tags.
    """
    if type(prefetch) is not int or not 0 <= prefetch < 2**31:
        raise ValueError(f"prefetch must be a number of values, 0 or more, got {prefetch!r}")
    required = check_tags(tags)
    if function is None:
        return partial(_decorate, prefetch=prefetch, tags=required)
    return _decorate(function, prefetch, required)


def _decorate(
    function: Callable[..., Any], prefetch: int = 0, tags: frozenset[str] = frozenset()
) -> Any:
    if isinstance(function, classmethod | staticmethod):
        raise ValueError("@wool.routine must be applied before @classmethod/@staticmethod")
    if isinstance(function, FunctionType) and inspect.iscoroutinefunction(function):
        if prefetch:
            raise ValueError(
                f"prefetch is for async generator functions, and {function!r} is a coroutine "
                "function: it has one result"
            )
        wrapper = _coroutine_routine(function, tags)
    elif isinstance(function, FunctionType) and inspect.isasyncgenfunction(function):
        wrapper = _generator_routine(function, prefetch, tags)
    else:
        raise ValueError(
            f"Expected a coroutine function or async generator function, got {function!r}: "
            "decorate a function that is defined with `async def`"
        )
    setattr(wrapper, ROUTINE, function)
    setattr(wrapper, OPTIONS, (prefetch, tags))
    return wrapper


serializer.register_routine_decorator(_decorate)


def _coroutine_routine(function: FunctionType, tags: frozenset[str]) -> Any:
    @wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not context.dispatching.get():
            with do_dispatch(True):
                return await function(*args, **kwargs)
        proxy, task = _task(function, args, kwargs, 0, tags)
        stream = await proxy.dispatch(task, timeout=context.dispatch_timeout.get())
        del task  # It holds the pickled arguments, which the call need not.
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

    return wrapper


def _generator_routine(function: FunctionType, prefetch: int, tags: frozenset[str]) -> Any:
    @wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if context.dispatching.get():
            proxy, task = _task(function, args, kwargs, prefetch, tags)
            stream = await proxy.dispatch(task, timeout=context.dispatch_timeout.get())
            del task  # It holds the pickled arguments, which the stream need not.
        else:
            stream = _Local(function(*args, **kwargs))
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


class _Local:
    """An async generator whose body runs here, with dispatch switched on for it alone."""

    def __init__(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generator = generator

    async def __anext__(self) -> Any:
        with do_dispatch(True):
            return await anext(self._generator)

    async def asend(self, value: Any) -> Any:
        with do_dispatch(True):
            return await self._generator.asend(value)

    async def athrow(self, error: BaseException) -> Any:
        with do_dispatch(True):
            return await self._generator.athrow(error)

    async def aclose(self) -> None:
        with do_dispatch(True):
            await self._generator.aclose()


def _task(
    function: FunctionType,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    prefetch: int,
    tags: frozenset[str],
) -> tuple[Any, Task]:
    """A call as a task, and the active proxy."""
    proxy = wool.__proxy__.get()
    if proxy is None:
        raise RuntimeError(
            f"No pool is active for routine {describe(function)}: call it inside "
            "`async with wool.WorkerPool()`"
        )
    return proxy, Task(new_id(), function, args, kwargs, proxy, prefetch=prefetch, tags=tags)
