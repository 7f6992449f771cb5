"""aiomultiprocess."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import aiomultiprocess

from benchmarks.drivers.base import Driver


async def noop() -> None:
    pass


async def pid() -> int:
    return os.getpid()


async def echo(value: Any) -> Any:
    return value


class AioMultiprocess(Driver):
    packages = ("aiomultiprocess",)
    imports = "import aiomultiprocess"

    async def open(self, workers: int, held: int = 1) -> None:
        self._pool: Any = aiomultiprocess.Pool(workers, childconcurrency=max(held, 16))
        await self._pool.__aenter__()

    async def close(self) -> None:
        self._pool.close()
        await self._pool.join()

    async def noop(self) -> None:
        await self._pool.apply(noop)

    async def pid(self) -> int:
        result: int = await self._pool.apply(pid)
        return result

    async def sleep(self, seconds: float) -> None:
        await self._pool.apply(asyncio.sleep, (seconds,))

    async def echo(self, value: Any) -> Any:
        return await self._pool.apply(echo, (value,))
