"""Getting the object that a `Factory` stands for."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from wool.runtime.typing import Factory

T = TypeVar("T")


async def resolve(factory: Factory[T] | T, stack: AsyncExitStack) -> T:
    """What `factory` gives; whatever is entered on the way is left by `stack`.

    In this order: a context manager, sync or async, is entered, and what that gives is it; a
    callable, such as a class, is called, and an awaitable is awaited, and what they give is
    resolved in turn; anything else is it.
    """
    value: Any = factory
    if isinstance(value, AbstractContextManager):
        value = stack.enter_context(value)
    elif isinstance(value, AbstractAsyncContextManager):
        value = await stack.enter_async_context(value)
    elif callable(value):
        value = await resolve(value(), stack)
    elif isawaitable(value):
        value = await resolve(await value, stack)
    return cast("T", value)


def is_pre_entered(value: object, protocol: type) -> bool:
    """Whether `value` is good for one entry only: a context manager to get a `protocol` from.

    Such as the result of calling a `@contextmanager` function, which can neither be pickled nor
    entered again. One that satisfies the protocol by itself, as `LocalDiscovery` does, is not.
    """
    manager = isinstance(value, AbstractContextManager | AbstractAsyncContextManager)
    return manager and not isinstance(value, protocol)
