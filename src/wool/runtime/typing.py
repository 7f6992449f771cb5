"""Types that several modules share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from enum import Enum
from typing import Final, TypeAlias, TypeVar

T = TypeVar("T")

Factory: TypeAlias = (
    Callable[
        [],
        T | Awaitable[T] | AbstractContextManager[T] | AbstractAsyncContextManager[T],
    ]
    | Awaitable[T]
    | AbstractContextManager[T]
    | AbstractAsyncContextManager[T]
)
"""A way to get a `T`: a callable (a class, say), an awaitable, or a context manager of either kind.

What a callable or an awaitable gives is resolved in turn, so a callable may return a context
manager, for instance.
"""


class UndefinedType(Enum):
    """The type of `Undefined`."""

    UNDEFINED = "Undefined"

    def __repr__(self) -> str:
        return self.value


Undefined: Final = UndefinedType.UNDEFINED
"""Stands for an argument that was not given, where None means something."""
