"""The decorator that makes a routine of an async function."""

from __future__ import annotations

import inspect
from functools import wraps
from types import FunctionType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from uuid import uuid4

import wool
from wool.runtime import context, serializer
from wool.runtime.capture import ROUTINE
from wool.runtime.errors import UnexpectedResponse
from wool.runtime.remote_exception import is_ordinary
from wool.runtime.routine.task import Task, describe, do_dispatch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine

P = ParamSpec("P")
T = TypeVar("T", bound="Coroutine[Any, Any, Any] | AsyncIterable[Any]")


def routine(function: Callable[P, T]) -> Callable[P, T]:
    """Make a routine of a coroutine function or an async generator function.

    Called while a pool is active, it runs in one of the pool's workers; arguments, results, values
    sent and yielded, and exceptions are pickled copies. On methods it goes innermost:

        class Model:
            @classmethod
            @wool.routine
            async def load(cls, path): ...

    Raises `ValueError` for anything else. A call raises `RuntimeError` if no pool is active.
    """
    if isinstance(function, classmethod | staticmethod):
        raise ValueError("@wool.routine must be applied before @classmethod/@staticmethod")
    if isinstance(function, FunctionType) and inspect.iscoroutinefunction(function):
        wrapper: Callable[P, T] = _coroutine_routine(function)
    elif isinstance(function, FunctionType) and inspect.isasyncgenfunction(function):
        wrapper = _generator_routine(function)
    else:
        raise ValueError(
            f"Expected a coroutine function or async generator function, got {function!r}: "
            "decorate a function that is defined with `async def`"
        )
    setattr(wrapper, ROUTINE, function)
    return wrapper


serializer.register_routine_decorator(routine)


def _coroutine_routine(function: FunctionType) -> Any:
    @wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not context.dispatching.get():
            with do_dispatch(True):
                return await function(*args, **kwargs)
        stream = await _dispatch(function, args, kwargs)
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


def _generator_routine(function: FunctionType) -> Any:
    @wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if context.dispatching.get():
            stream = await _dispatch(function, args, kwargs)
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


async def _dispatch(function: FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    proxy = wool.__proxy__.get()
    if proxy is None:
        raise RuntimeError(
            f"No pool is active for routine {describe(function)}: call it inside "
            "`async with wool.WorkerPool()`"
        )
    task = Task(id=uuid4(), callable=function, args=args, kwargs=kwargs, proxy=proxy)
    return await proxy.dispatch(task, timeout=context.dispatch_timeout.get())
