"""distributed, with an asynchronous client and a local cluster."""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import Any

import dask
from distributed import Client, LocalCluster, get_client

from benchmarks.drivers.base import Driver

QUIET = {
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.comm.timeouts.connect": "60s",
}


def noop() -> None:
    pass


def echo(value: Any) -> Any:
    return value


async def fib(n: int) -> int:
    if n < 2:
        return n
    client: Any = get_client()
    first: int = await client.submit(fib, n - 1, pure=False)
    second: int = await client.submit(fib, n - 2, pure=False)
    return first + second


async def fan(n: int) -> int:
    if n < 2:
        return n
    client: Any = get_client()
    calls = [client.submit(fan, n - 1, pure=False), client.submit(fan, n - 2, pure=False)]
    return sum(await asyncio.gather(*calls))


class Distributed(Driver):
    packages = ("distributed", "dask")
    imports = "import distributed"

    async def open(self, workers: int, held: int = 1) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="distributed-")
        dask.config.set({**QUIET, "temporary-directory": self._directory.name})
        self._cluster: Any = await LocalCluster(
            n_workers=workers,
            threads_per_worker=held,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            memory_limit=0,
            asynchronous=True,
            silence_logs=50,
        )
        self._client: Any = await Client(self._cluster, asynchronous=True)

    async def close(self) -> None:
        await self._client.close()
        await self._cluster.close()
        self._directory.cleanup()

    async def _run(self, function: Any, *args: Any) -> Any:
        return await self._client.submit(function, *args, pure=False)

    async def noop(self) -> None:
        await self._run(noop)

    async def pid(self) -> int:
        result: int = await self._run(os.getpid)
        return result

    async def sleep(self, seconds: float) -> None:
        await self._run(asyncio.sleep, seconds)

    async def echo(self, value: Any) -> Any:
        return await self._run(echo, value)

    async def fib(self, n: int) -> int:
        result: int = await self._run(fib, n)
        return result

    async def fan(self, n: int) -> int:
        result: int = await self._run(fan, n)
        return result
