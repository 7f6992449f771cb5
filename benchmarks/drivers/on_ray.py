"""ray: tasks, and async actors for what has to wait."""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections import deque
from typing import TYPE_CHECKING, Any

os.environ.update(
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # Loopback only, on Linux too.
    RAY_USAGE_STATS_ENABLED="0",
    RAY_DEDUP_LOGS="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_DISABLE_IMPORT_WARNING="1",
)

import ray

from benchmarks.drivers.base import Direct, Driver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OBJECT_STORE = 2 * 1024**3


def noop() -> None:
    pass


def echo(value: Any) -> Any:
    return value


def count(items: int) -> Any:
    for i in range(items):  # noqa: UP028 - ray wants a generator of its own kind
        yield i


class Actor:
    """Holds calls that wait."""

    async def meet(self, actors: list[Any]) -> None:
        self._others = itertools.cycle(actors)

    async def pid(self) -> int:
        return os.getpid()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def fib(self, n: int) -> int:
        if n < 2:
            return n
        first: int = await next(self._others).fib.remote(n - 1)
        second: int = await next(self._others).fib.remote(n - 2)
        return first + second

    async def fan(self, n: int) -> int:
        if n < 2:
            return n
        calls = [next(self._others).fan.remote(each) for each in (n - 1, n - 2)]
        return sum(await asyncio.gather(*calls))


class DirectRay(Direct):
    def __init__(self, function: Any) -> None:
        self._noop = function

    def call(self) -> None:
        ray.get(self._noop.remote())

    def window(self, callers: int, calls: int) -> None:
        pending: deque[Any] = deque()
        for _ in range(calls):
            if len(pending) == callers:
                ray.get(pending.popleft())
            pending.append(self._noop.remote())
        ray.get(list(pending))

    def burst(self, calls: int) -> None:
        ray.get([self._noop.remote() for _ in range(calls)])


class Ray(Driver):
    packages = ("ray",)
    imports = "import ray"

    async def open(self, workers: int, held: int = 1) -> None:
        self._directory = tempfile.TemporaryDirectory(
            prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
        )
        ray.init(
            num_cpus=workers,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
            log_to_driver=False,
            logging_level="error",
            _temp_dir=self._directory.name,
        )
        self._noop, self._echo, self._count = map(ray.remote, (noop, echo, count))
        self._actors: list[Any] = []
        if held > 1:
            actor: Any = ray.remote(num_cpus=0, max_concurrency=held)(Actor)
            self._actors = [actor.remote() for _ in range(workers)]
            for each in self._actors:
                each.meet.remote(self._actors)

    async def close(self) -> None:
        ray.shutdown()
        self._directory.cleanup()

    @property
    def direct(self) -> Direct | None:
        return DirectRay(self._noop)

    async def noop(self) -> None:
        await self._noop.remote()

    async def pid(self) -> int:
        result: int = await self._actors[0].pid.remote()
        return result

    async def sleep(self, seconds: float) -> None:
        await self._actors[0].sleep.remote(seconds)

    async def echo(self, value: Any) -> Any:
        return await self._echo.remote(value)

    async def stream(self, items: int) -> AsyncIterator[int]:
        async for reference in self._count.remote(items):
            yield await reference

    async def fib(self, n: int) -> int:
        result: int = await self._actors[0].fib.remote(n)
        return result

    async def fan(self, n: int) -> int:
        result: int = await self._actors[0].fan.remote(n)
        return result
