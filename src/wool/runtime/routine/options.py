"""What `@wool.routine` can be told about a routine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from wool.runtime.worker.metadata import check_tags

RETRIES = 3
"""How often an idempotent routine is tried again, if not told otherwise."""


@dataclass(frozen=True, slots=True)
class RoutineOptions:
    """See `wool.routine`. A `timeout` of 0 is none.

    Raises `ValueError` for what is out of range or needs another option, `TypeError` for what is of
    another type.
    """

    prefetch: int = 0
    tags: frozenset[str] = frozenset()
    timeout: float = 0
    retries: int | None = None
    idempotent: bool = False
    retry_on: tuple[type[Exception], ...] = field(default=())

    def __post_init__(self) -> None:
        if type(self.prefetch) is not int or not 0 <= self.prefetch < 2**31:
            raise ValueError(
                f"prefetch must be a number of values, 0 or more, got {self.prefetch!r}"
            )
        self._set("tags", check_tags(self.tags))
        self._set("timeout", _check_timeout(self.timeout))
        if type(self.idempotent) is not bool:
            raise TypeError(f"idempotent must be a bool, got {self.idempotent!r}")
        self._set("retry_on", _check_classes(self.retry_on))
        self._check_retries()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def attempts(self) -> int:
        """How often it may be run for a call."""
        retries = RETRIES if self.retries is None else self.retries
        return 1 + retries if self.idempotent else 1

    def _check_retries(self) -> None:
        if self.retries is not None and (type(self.retries) is not int or self.retries < 0):
            raise ValueError(f"retries must be a number, 0 or more, got {self.retries!r}")
        if not self.idempotent and (self.retries or self.retry_on):
            raise ValueError(
                "retries and retry_on need idempotent=True: a call that failed may have run, and "
                "only a routine that may run twice is called again"
            )

    def check_for(self, function: object, *, generator: bool) -> None:
        """Raises `ValueError` if they are not for that kind of function."""
        if self.prefetch and not generator:
            raise ValueError(
                f"prefetch is for async generator functions, and {function!r} is a coroutine "
                "function: it has one result"
            )
        if self.idempotent and generator:
            raise ValueError(
                f"idempotent is for coroutine functions, and {function!r} is an async generator "
                "function: its consumer has seen values that it would yield again"
            )


def _check_timeout(timeout: Any) -> float:
    if timeout is None:
        return 0
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be a number of seconds, or None, got {timeout!r}")
    if not 0 <= timeout < math.inf:
        raise ValueError(f"timeout must be a number of seconds, 0 for none, got {timeout!r}")
    return timeout


def _check_classes(classes: Any) -> tuple[type[Exception], ...]:
    if isinstance(classes, type):
        classes = (classes,)
    if isinstance(classes, Iterable):
        checked = tuple(classes)
        if all(isinstance(each, type) and issubclass(each, Exception) for each in checked):
            return checked
    raise TypeError(f"retry_on must be classes of exceptions, got {classes!r}")


DEFAULTS = RoutineOptions()
