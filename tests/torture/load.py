"""Continuous load on a pool, and what became of every call."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import wool
from wool import NoWorkersAvailable, WorkerLost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path
    from random import Random

CALLERS = 16
END_TIMEOUT = 60.0
"""Seconds for the calls under way to end when no more are made."""


def sign(log: str, call: int) -> None:
    """Leave word that a call has been begun: one write, so that lines don't mix."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{call}\n".encode())
    finally:
        os.close(descriptor)


@wool.routine
async def work(log: str, call: int, seconds: float) -> int:
    sign(log, call)
    await asyncio.sleep(seconds)
    return call


@wool.routine
async def outer(log: str, call: int, seconds: float) -> int:
    sign(log, call)
    return await work(log + ".nested", call, seconds)


@wool.routine
async def count(log: str, call: int, seconds: float) -> AsyncIterator[int]:
    sign(log, call)
    for _ in range(3):
        await asyncio.sleep(seconds / 3)
        yield call


@wool.routine
async def pid() -> int:
    return os.getpid()


class Load:
    """Calls of all kinds, each with a number that it leaves in a file when it begins."""

    def __init__(self, directory: Path, rng: Random) -> None:
        self.outcomes: Counter[str] = Counter()
        self.violations: list[str] = []
        self._log = str(directory / "begun")
        self._rng = rng
        self._number = 0
        self._returned: set[int] = set()
        self._over = False

    async def run(self, seconds: float) -> None:
        """Keep it up for so long, and see every call end."""
        callers = [asyncio.create_task(self._call_again_and_again()) for _ in range(CALLERS)]
        await asyncio.sleep(seconds)
        self._over = True
        _, hanging = await asyncio.wait(callers, timeout=END_TIMEOUT)
        if hanging:
            self.violations.append(f"{len(hanging)} calls had not ended {END_TIMEOUT} s later")
            for caller in hanging:
                caller.cancel()

    async def _call_again_and_again(self) -> None:
        while not self._over:
            self._number += 1
            number, seconds = self._number, self._rng.uniform(0, 0.05)
            with self._judged(number):
                result = await self._call(number, seconds)
                if result != number:
                    self.violations.append(f"call {number} returned {result!r}")
                self._returned.add(number)

    async def _call(self, number: int, seconds: float) -> int | None:
        match self._rng.randrange(5):
            case 0:
                return await outer(self._log, number, seconds)
            case 1:
                values = [value async for value in count(self._log, number, seconds)]
                return values[0] if values == [number] * 3 else None
        return await work(self._log, number, seconds)

    @contextmanager
    def _judged(self, number: int) -> Iterator[None]:
        try:
            yield
        except WorkerLost:
            self.outcomes["lost"] += 1
        except NoWorkersAvailable:
            self.outcomes["refused"] += 1
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self.outcomes["cancelled"] += 1  # By a worker that is told to stop at once.
        except Exception as exc:
            if isinstance(exc, OSError) and exc.errno == errno.EMFILE:
                self.outcomes["raised"] += 1  # The routine's own, without descriptors.
            else:
                self.violations.append(f"call {number} raised {exc!r}")
        else:
            self.outcomes["returned"] += 1

    def check(self) -> None:
        """That no call was begun twice, and none returned that was not begun."""
        begun = self._begun(self._log)
        for name, numbers in (("call", begun), ("nested call", self._begun(f"{self._log}.nested"))):
            twice = sorted(number for number, times in numbers.items() if times > 1)
            if twice:
                self.violations.append(f"{name}s {twice[:5]} ran twice")
        if strange := self._returned - begun.keys():
            self.violations.append(f"calls {sorted(strange)[:5]} returned and had not run")

    @staticmethod
    def _begun(log: str) -> Counter[int]:
        try:
            with open(log) as file:
                return Counter(map(int, file))
        except FileNotFoundError:
            return Counter()
