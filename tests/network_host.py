"""What runs on a host of a test's network: a pool, and calls as it is asked for over stdin."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import warnings
from functools import partial
from typing import Any

import wool
from tests.support import eventually
from wool.runtime.worker.base import ChannelOptions, WorkerOptions

NAME = "WOOL_TEST_HOST"


@wool.routine
async def where() -> str:
    return os.environ[NAME]


@wool.routine
async def nested(expected: int) -> list[str]:
    """Where nested calls run, once the worker's own proxy has heard of so many."""
    await where()
    proxy = wool.__proxy__.get()
    assert isinstance(proxy, wool.WorkerProxy)
    await eventually(lambda: len(proxy.workers) == expected)
    return sorted({await where() for _ in range(2 * expected)})


@wool.routine
async def hold(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return os.environ[NAME]


class Host:
    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._holding: list[asyncio.Task[str]] = []

    async def run(self) -> None:
        lines = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        async with self._pool():
            _answer("ready")
            while line := await lines.readline():
                what, *arguments = json.loads(line)
                _answer(await getattr(self, what)(*arguments))
            for task in self._holding:
                task.cancel()
            await asyncio.gather(*self._holding, return_exceptions=True)

    def _pool(self) -> wool.WorkerPool:
        settings = self._settings
        milliseconds = settings.get("keepalive_ms", 30_000)
        channel = ChannelOptions(keepalive_time_ms=milliseconds, keepalive_timeout_ms=milliseconds)
        options = WorkerOptions(
            channel, http2_min_recv_ping_interval_without_data_ms=min(milliseconds, 7_500)
        )
        credentials = None
        if "tls" in settings:
            credentials = wool.WorkerCredentials.from_files(*settings["tls"])
        return wool.WorkerPool(
            size=settings.get("size"),
            lease=settings.get("lease"),
            discovery=wool.LanDiscovery(settings["namespace"]),
            worker=partial(wool.LocalWorker, options=options),
            credentials=credentials,
        )

    async def workers(self, expected: int) -> list[str]:
        """The addresses of the admitted workers, once there are so many."""
        proxy = wool.__proxy__.get()
        assert isinstance(proxy, wool.WorkerProxy)
        await eventually(lambda: len(proxy.workers) == expected, timeout=30)
        return sorted(worker.address for worker in proxy.workers)

    async def where(self, calls: int) -> list[str]:
        return sorted({await where() for _ in range(calls)})

    async def nested(self, expected: int) -> list[str]:
        return await nested(expected)

    async def hold(self, calls: int, seconds: float) -> int:
        """Make so many calls that last so long; `held` tells what came of them."""
        self._holding = [asyncio.create_task(hold(seconds)) for _ in range(calls)]
        for _ in range(calls):
            await where()
        return calls

    async def held(self) -> list[str]:
        results = await asyncio.gather(*self._holding, return_exceptions=True)
        self._holding = []
        return sorted(each if isinstance(each, str) else type(each).__name__ for each in results)

    async def refused(self) -> str:
        """Why a call can't be made."""
        with wool.RuntimeContext(dispatch_timeout=5):
            try:
                return await where()
            except Exception as exc:
                return f"{type(exc).__name__}: {exc}"


def _answer(answer: Any) -> None:
    print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    os.environ[NAME] = settings["host"]
    warnings.simplefilter("ignore", RuntimeWarning)
    asyncio.run(Host(settings).run())
