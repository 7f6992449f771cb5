"""Very many mixed calls while workers come and go: nothing grows, and nothing slows down."""

from __future__ import annotations

import asyncio
import math
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import psutil

from tests.torture.faults import admitted, send
from tests.torture.load import SIZE, Load, pid, recovered
from tests.torture.result import Result
from wool import NoWorkersAvailable, WorkerLost, WorkerPool

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

LONGEST = 0.004
"""Seconds that routines sleep at most."""

PAUSE = 4.0, 6.0
"""Seconds between ends of workers, at least and at most."""

INTERVAL = 0.1
"""Seconds between samples."""

YOUNG = 1.0, 2.0
"""Seconds of age at which workers are compared that don't live long."""

ENOUGH = 100_000
"""Calls from which on fifths are compared: in fewer, what is used for the first time shows."""

GROWTH, MORE, SLOWER = 1.05, 1.1, 1.25
"""How much may become of memory, of things that are counted, and of the time that a call takes."""

MIB = 1024 * 1024


class Sample(NamedTuple):
    """What this process and its workers use at a moment, in MiB, and how quick they are."""

    caller: float
    oldest: float | None
    young: float | None
    tasks: int
    threads: int
    descriptors: int
    latency: float | None
    """Milliseconds that a call takes."""
    spin: float
    """Milliseconds that this machine, which may be busy with something else, takes to count."""


class Soak:
    """A load, and samples of what it takes."""

    def __init__(self, calls: int, rng: Random) -> None:
        self._calls = calls
        self._rng = rng
        self._samples: list[Sample] = []
        self._born: dict[int, float] = {}
        self._process = psutil.Process()

    async def run(self) -> Result:
        result = Result()
        with tempfile.TemporaryDirectory() as directory:
            load = Load(Path(directory), self._rng, self._calls, LONGEST)
            async with WorkerPool(size=SIZE):
                oldest = await pid()
                sampling = asyncio.create_task(self._sample_again_and_again(oldest))
                churning = asyncio.create_task(self._churn(oldest))
                begun = time.monotonic()
                await load.run()
                lasted = time.monotonic() - begun
                for task in (sampling, churning):
                    task.cancel()
                with suppress(asyncio.CancelledError):
                    await sampling
                result.times = await churning
                load.violations += await recovered()
            load.check()
        result.outcomes, result.violations = load.outcomes, load.violations
        result.figures.append(f"{self._calls:,} calls in {lasted:.0f} s")
        if self._calls >= ENOUGH:
            self._compare(result)
        return result

    async def _churn(self, spared: int) -> int:
        """End workers, all but one of them, until cancelled. Returns how many."""
        times = 0
        try:
            while True:
                await asyncio.sleep(self._rng.uniform(*PAUSE))
                others = [worker for worker in admitted() if worker.pid != spared]
                if others:
                    signum = self._rng.choice([signal.SIGKILL, signal.SIGTERM])
                    send(self._rng.choice(others), signum)
                    times += 1
        except asyncio.CancelledError:
            return times

    async def _sample_again_and_again(self, oldest: int) -> None:
        while True:
            latency = await self._latency()
            begun = time.perf_counter()
            for _ in range(20_000):
                pass
            spin = _since(begun)
            self._samples.append(
                Sample(
                    caller=self._process.memory_info().rss / MIB,
                    oldest=_resident(oldest),
                    young=self._young(),
                    tasks=len(asyncio.all_tasks()),
                    threads=threading.active_count(),
                    descriptors=self._process.num_fds(),
                    latency=latency,
                    spin=spin,
                )
            )
            await asyncio.sleep(INTERVAL)

    async def _latency(self) -> float | None:
        begun = time.perf_counter()
        try:
            await pid()
        except (WorkerLost, NoWorkersAvailable, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return None  # Its worker was ended.
        return _since(begun)

    def _young(self) -> float | None:
        now = time.monotonic()
        for worker in admitted():
            born = self._born.setdefault(worker.pid, now)
            if YOUNG[0] < now - born < YOUNG[1]:
                return _resident(worker.pid)
        return None

    def _compare(self, result: Result) -> None:
        result.figures.append("in the second fifth and in the last:")
        before, after = self._fifths(median, lambda s: s.spin)
        slower = SLOWER * max(after / before, 1)
        figures = (
            ("MiB of the caller", GROWTH, self._fifths(_low, lambda s: s.caller)),
            ("MiB of the worker that lived on", GROWTH, self._fifths(_low, lambda s: s.oldest)),
            ("MiB of a new worker", GROWTH, self._fifths(_low, lambda s: s.young)),
            ("tasks", MORE, self._fifths(median, lambda s: s.tasks)),
            ("threads", MORE, self._fifths(median, lambda s: s.threads)),
            ("descriptors", MORE, self._fifths(median, lambda s: s.descriptors)),
            ("ms a call", slower, self._fifths(median, lambda s: s.latency)),
            ("ms to count", math.inf, (before, after)),
        )
        for what, most, (before, after) in figures:
            line = f"{before:8.2f} → {after:8.2f} ({after / before - 1:+.1%}) {what}"
            result.figures.append(line)
            if after > before * most:
                result.violations.append(f"grew: {line.strip()}")

    def _fifths(
        self,
        typical: Callable[[list[float]], float],
        of: Callable[[Sample], float | None],
    ) -> tuple[float, float]:
        """What is typical of the second fifth and of the last."""
        fifth = max(len(self._samples) // 5, 1)
        parts = self._samples[fifth : 2 * fifth], self._samples[-fifth:]
        values = [[value for value in map(of, part) if value is not None] for part in parts]
        before, after = (typical(each) if each else math.nan for each in values)
        return before, after


def _low(values: list[float]) -> float:
    """What is there all the time, without the large payloads that come and go."""
    return sorted(values)[len(values) // 10]


def _resident(process: int) -> float | None:
    try:
        return float(psutil.Process(process).memory_info().rss / MIB)
    except psutil.NoSuchProcess:
        return None


def _since(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000
