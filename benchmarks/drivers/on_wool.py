"""wool: this one, or the published one if that is what the interpreter has.

Imported, its routines are in a module; run as a script, they are in `__main__`.
"""

from __future__ import annotations

import asyncio
import os
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import wool
from benchmarks.drivers.base import Driver, Unsupported

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator


@wool.routine
async def noop() -> None:
    pass


@wool.routine
async def pid() -> int:
    return os.getpid()


@wool.routine
async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


@wool.routine
async def echo(value: Any) -> Any:
    return value


@wool.routine
async def count(items: int) -> AsyncGenerator[int, None]:
    for i in range(items):
        yield i


async def count_ahead(items: int) -> AsyncGenerator[int, None]:
    for i in range(items):
        yield i


def _decorate_count_ahead() -> bool:
    """Make it a routine that reads ahead, if this wool has such."""
    decorate: Any = wool.routine
    try:
        globals()["count_ahead"] = decorate(prefetch=64)(count_ahead)
    except TypeError:
        return False
    return True


reads_ahead = _decorate_count_ahead()


@wool.routine
async def fib(n: int) -> int:
    return n if n < 2 else await fib(n - 1) + await fib(n - 2)


@wool.routine
async def fan(n: int) -> int:
    return n if n < 2 else sum(await asyncio.gather(fan(n - 1), fan(n - 2)))


class Wool(Driver):
    packages = ("wool", "grpcio", "protobuf", "cloudpickle")
    imports = "import wool"
    size: ClassVar[str] = "size"
    """The name of the parameter for the number of workers."""

    async def open(self, workers: int, held: int = 1) -> None:
        make: Any = wool.WorkerPool
        self._pool = make(**{self.size: workers})
        await self._pool.__aenter__()

    async def close(self) -> None:
        await self._pool.__aexit__(None, None, None)

    async def noop(self) -> None:
        await noop()

    async def pid(self) -> int:
        return await pid()

    async def sleep(self, seconds: float) -> None:
        await sleep(seconds)

    async def echo(self, value: Any) -> Any:
        return await echo(value)

    def stream(self, items: int) -> AsyncIterator[int]:
        return count(items)

    def prefetched(self, items: int) -> AsyncIterator[int]:
        if not reads_ahead:
            raise Unsupported("has no read-ahead")
        return count_ahead(items)

    async def fib(self, n: int) -> int:
        return await fib(n)

    async def fan(self, n: int) -> int:
        return await fan(n)

    def membership(self, workers: int) -> float:
        """The best of some rounds in which one of `workers` workers leaves and comes back."""
        from uuid import uuid4

        from wool.runtime.discovery.base import DiscoveryEvent
        from wool.runtime.worker.membership import Membership

        everyone = [
            wool.WorkerMetadata(uuid4(), f"unix:/{i}", i + 1, wool.__version__)
            for i in range(workers)
        ]
        members = Membership(lease=max(workers // 2, 1), version=wool.__version__)
        for metadata in everyone:
            members.apply(DiscoveryEvent("worker-added", metadata))
        events = [
            DiscoveryEvent(kind, metadata)
            for metadata in everyone[:: max(workers // 500, 1)]
            for kind in ("worker-updated", "worker-dropped", "worker-added")
        ] * max(500 // workers, 1)
        rounds = []
        for _ in range(20):
            start = perf_counter()
            for event in events:
                members.apply(event)
            rounds.append((perf_counter() - start) / len(events))
        return min(rounds)


if __name__ == "__main__":
    from benchmarks.drivers.serving import serve

    serve(Wool)
