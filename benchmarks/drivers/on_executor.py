"""concurrent.futures.ProcessPoolExecutor, from asyncio and on its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections import deque
from concurrent.futures import ProcessPoolExecutor, wait
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from benchmarks.drivers.base import Direct, Driver

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

P = ParamSpec("P")
T = TypeVar("T")


def noop() -> None:
    pass


def echo(value: T) -> T:
    return value


class DirectExecutor(Direct):
    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor

    def call(self) -> None:
        self._executor.submit(noop).result()

    def window(self, callers: int, calls: int) -> None:
        pending: deque[Future[None]] = deque()
        for _ in range(calls):
            if len(pending) == callers:
                pending.popleft().result()
            pending.append(self._executor.submit(noop))
        wait(pending)

    def burst(self, calls: int) -> None:
        wait([self._executor.submit(noop) for _ in range(calls)])


class Executor(Driver):
    imports = "from concurrent.futures import ProcessPoolExecutor"

    async def open(self, workers: int, held: int = 1) -> None:
        self._executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))

    async def close(self) -> None:
        self._executor.shutdown()

    @property
    def direct(self) -> Direct:
        return DirectExecutor(self._executor)

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        assert not kwargs
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    async def noop(self) -> None:
        await self._run(noop)

    async def pid(self) -> int:
        return await self._run(os.getpid)

    async def echo(self, value: Any) -> Any:
        return await self._run(echo, value)
