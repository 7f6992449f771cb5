"""Continuous load on a pool, and what became of every call."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import wool
from wool import NoWorkersAvailable, WorkerLost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path
    from random import Random

SIZE = 3
"""Workers of the pool."""

CALLERS = 16
END_TIMEOUT = 60.0
"""Seconds for the calls under way to end when no more are made."""

RECOVERY_TIMEOUT = 20.0
"""Seconds for the pool to be of its full size again."""

MOST_CALLS = 1_000_000
LARGE = 64 * 1024, 4 * 1024 * 1024
"""Bytes of a large payload, at least and at most."""


class DeliberateError(Exception):
    """Raised by a routine that is asked to."""


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
async def fail(log: str, call: int, seconds: float) -> int:
    sign(log, call)
    await asyncio.sleep(seconds)
    raise DeliberateError(call)


@wool.routine
async def give_back(log: str, call: int, payload: bytes) -> bytes:
    sign(log, call)
    return payload


def be_quiet() -> None:
    """In a worker, which is to be told what it can't make sense of."""
    logging.getLogger("wool").setLevel(logging.ERROR)


@wool.routine
async def pid() -> int:
    return os.getpid()


class Load:
    """Calls of all kinds, each with a number that it leaves in a file when it begins.

    There are `calls` of them at most; routines sleep for up to `longest` seconds.
    """

    def __init__(
        self, directory: Path, rng: Random, calls: int = MOST_CALLS, longest: float = 0.05
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.violations: list[str] = []
        self._log = str(directory / "begun")
        self._rng = rng
        self._calls = calls
        self._longest = longest
        self._number = 0
        self._returned = bytearray(calls + 1)  # Of one size, as the memory in use is watched.
        self._over = False

    async def run(self, until: asyncio.Future[Any] | None = None) -> None:
        """Keep it up until then, or until there are no calls left, and see every call end."""
        callers = {asyncio.create_task(self._call_again_and_again()) for _ in range(CALLERS)}
        await asyncio.wait(callers if until is None else [until])
        self._over = True
        _, hanging = await asyncio.wait(callers, timeout=END_TIMEOUT)
        if hanging:
            self.violations.append(f"{len(hanging)} calls had not ended {END_TIMEOUT} s later")
            for caller in hanging:
                caller.cancel()

    async def _call_again_and_again(self) -> None:
        while not self._over and self._number < self._calls:
            self._number += 1
            number, seconds = self._number, self._rng.uniform(0, self._longest)
            with self._judged(number):
                result = await self._call(number, seconds)
                if result != number:
                    self.violations.append(f"call {number} returned {result!r}")
                self._returned[number] = 1

    async def _call(self, number: int, seconds: float) -> int | None:
        match self._rng.randrange(20):
            case 0 | 1 | 2 | 3:
                return await outer(self._log, number, seconds)
            case 4 | 5 | 6 | 7:
                values = [value async for value in count(self._log, number, seconds)]
                return values[0] if values == [number] * 3 else None
            case 8:
                return await fail(self._log, number, seconds)
            case 9:
                return await self._cancel(number, seconds)
            case 10 if self._rng.randrange(20) == 0:
                payload = bytes([number % 256]) * self._rng.randint(*LARGE)
                same = await give_back(self._log, number, payload) == payload
                return number if same else None
        return await work(self._log, number, seconds)

    async def _cancel(self, number: int, seconds: float) -> int:
        try:
            async with asyncio.timeout(seconds) as timeout:
                return await work(self._log, number, 3600)
        except TimeoutError as exc:
            if timeout.expired():
                raise asyncio.CancelledError from exc
            raise

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
            self.outcomes["cancelled"] += 1  # Also by a worker that is told to stop at once.
        except Exception as exc:
            if self._is_its_own(exc, number):
                self.outcomes["raised"] += 1
            else:
                self.violations.append(f"call {number} raised {exc!r}")
        else:
            self.outcomes["returned"] += 1

    @staticmethod
    def _is_its_own(exc: Exception, number: int) -> bool:
        """Whether it is what the routine raised, which may have been without descriptors."""
        if isinstance(exc, DeliberateError):
            return exc.args == (number,)
        return isinstance(exc, OSError) and exc.errno == errno.EMFILE

    def check(self) -> None:
        """That no call was begun twice, and none returned that was not begun."""
        begun = begun_calls(self._log)
        self.violations += begun_twice(self._log)
        strange = [n for n, returned in enumerate(self._returned) if returned and n not in begun]
        if strange:
            self.violations.append(f"calls {strange[:5]} returned and had not run")


async def recovered() -> list[str]:
    """What is wrong if calls don't reach as many workers as the pool has started with."""
    strange: list[object] = []
    try:
        async with asyncio.timeout(RECOVERY_TIMEOUT):
            while True:
                calls = (pid() for _ in range(4 * SIZE))
                found = await asyncio.gather(*calls, return_exceptions=True)
                if len({each for each in found if isinstance(each, int)}) == SIZE:
                    return []
                strange += [each for each in found if not isinstance(each, int | WorkerLost)]
                await asyncio.sleep(0.1)
    except TimeoutError:
        meanwhile = f", but {strange[0]!r}" if strange else ""
        return [f"not of full size within {RECOVERY_TIMEOUT} s{meanwhile}"]


def begun_calls(log: str) -> Counter[int]:
    """How often each call was begun."""
    try:
        with open(log) as file:
            return Counter(map(int, file))
    except FileNotFoundError:
        return Counter()


def begun_twice(log: str) -> Iterator[str]:
    """In words, what ran more than once."""
    for name, path in (("call", log), ("nested call", f"{log}.nested")):
        twice = sorted(number for number, times in begun_calls(path).items() if times > 1)
        if twice:
            yield f"{name}s {twice[:5]} ran twice"
