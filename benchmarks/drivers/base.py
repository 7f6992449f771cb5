"""What a column is to the loads.

Workers import this with the routines they run, and what it imports counts as theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Unsupported(Exception):
    """The column can't do this, for the reason given."""


class Direct:
    """A column's blocking way to do the same, for those that have one. All no-ops."""

    def call(self) -> None:
        raise NotImplementedError

    def window(self, callers: int, calls: int) -> None:
        """Make `calls` calls, `callers` of them in flight."""
        raise NotImplementedError

    def burst(self, calls: int) -> None:
        raise NotImplementedError


class Driver:
    """A column. What it doesn't override it can't do."""

    packages: ClassVar[tuple[str, ...]] = ()
    imports: ClassVar[str] = ""
    """The statement whose cost a program pays before it starts."""
    slow: ClassVar[bool] = False
    """Whether it takes so long to start thousands of calls that the first would end before."""

    async def open(self, workers: int, held: int = 1) -> None:
        """Start workers, each of which must be able to hold `held` waiting calls if it can."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    @property
    def direct(self) -> Direct | None:
        return None

    async def noop(self) -> None:
        raise NotImplementedError

    async def pid(self) -> int:
        """Of the process that runs the call."""
        raise Unsupported("does not tell where it runs")

    async def idle(self) -> int | None:
        """Bytes of what stands for a worker that has had no call. None: such a worker itself."""
        return None

    async def sleep(self, seconds: float) -> None:
        raise Unsupported("holds no waiting calls")

    async def echo(self, value: Any) -> Any:
        raise Unsupported("has no payloads")

    def stream(self, items: int) -> AsyncIterator[int]:
        raise Unsupported("has no streams")

    def prefetched(self, items: int) -> AsyncIterator[int]:
        raise Unsupported("has no read-ahead")

    async def fib(self, n: int) -> int:
        """A recursion whose two calls follow each other."""
        raise Unsupported("has no nested calls")

    async def fan(self, n: int) -> int:
        """The same with its two calls at once."""
        raise Unsupported("has no nested calls")

    def membership(self, workers: int) -> float:
        """Seconds that one event costs with this many workers."""
        raise Unsupported("has no membership")
