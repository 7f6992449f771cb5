"""The workloads, the same for every column: each opens the column, measures, closes it."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.drivers.base import Unsupported
from benchmarks.drivers.memory import Peak, resident, residents

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from benchmarks.drivers.base import Driver

Metrics = dict[str, float]

MIB = 1024 * 1024
WARM_UP = 200


@asynccontextmanager
async def _opened(
    driver: Driver, workers: int, held: int = 1, *, warm: bool = True
) -> AsyncIterator[None]:
    try:
        await driver.open(workers, held)
        if warm:
            await _warm_up(driver)
        yield
    finally:
        await driver.close()


async def _warm_up(driver: Driver) -> None:
    await asyncio.gather(*(driver.noop() for _ in range(WARM_UP)))
    for _ in range(WARM_UP // 4):
        await driver.noop()


def _percentile(samples: list[float], share: float) -> float:
    return sorted(samples)[min(int(len(samples) * share), len(samples) - 1)]


async def latency(driver: Driver, calls: int) -> Metrics:
    """Calls one after the other."""
    async with _opened(driver, 2):
        ways = {"asyncio": await _sequence(driver.noop, calls)}
        if (direct := driver.direct) is not None:
            direct.burst(WARM_UP)
            ways["direct"] = _direct_sequence(direct.call, calls)
    metrics = {}
    for name, samples in ways.items():
        metrics[f"p50_ms_{name}"] = _percentile(samples, 0.5) * 1e3
        metrics[f"p99_ms_{name}"] = _percentile(samples, 0.99) * 1e3
    best = min(ways, key=lambda way: metrics[f"p50_ms_{way}"])
    return {"p50_ms": metrics[f"p50_ms_{best}"], "p99_ms": metrics[f"p99_ms_{best}"], **metrics}


async def _sequence(call: Callable[[], Awaitable[None]], calls: int) -> list[float]:
    samples = []
    for _ in range(calls):
        start = perf_counter()
        await call()
        samples.append(perf_counter() - start)
    return samples


def _direct_sequence(call: Callable[[], None], calls: int) -> list[float]:
    samples = []
    for _ in range(calls):
        start = perf_counter()
        call()
        samples.append(perf_counter() - start)
    return samples


async def concurrent(driver: Driver, callers: int, calls: int) -> Metrics:
    """So many callers, each of which makes one call after the other."""
    async with _opened(driver, 2):
        ways = {"asyncio": calls / await _callers(driver, callers, calls)}
        if (direct := driver.direct) is not None:
            start = perf_counter()
            direct.window(callers, calls)
            ways["direct"] = calls / (perf_counter() - start)
    return _best(ways)


async def _callers(driver: Driver, callers: int, calls: int) -> float:
    if (window := getattr(driver, "window", None)) is not None:
        start = perf_counter()
        await window(callers, calls)
        return perf_counter() - start
    left = iter(range(calls))

    async def caller() -> None:
        for _ in left:
            await driver.noop()

    start = perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return perf_counter() - start


async def burst(driver: Driver, calls: int) -> Metrics:
    """All calls at once."""
    async with _opened(driver, 2):
        ways = {"asyncio": calls / await _gather(driver, calls)}
        if (direct := driver.direct) is not None:
            start = perf_counter()
            direct.burst(calls)
            ways["direct"] = calls / (perf_counter() - start)
    return _best(ways)


async def _gather(driver: Driver, calls: int) -> float:
    if (window := getattr(driver, "window", None)) is not None:
        start = perf_counter()
        await window(calls, calls)
        return perf_counter() - start
    start = perf_counter()
    await asyncio.gather(*(driver.noop() for _ in range(calls)))
    return perf_counter() - start


def _best(ways: dict[str, float]) -> Metrics:
    return {"per_s": max(ways.values()), **{f"per_s_{way}": rate for way, rate in ways.items()}}


async def hold(driver: Driver, calls: int, seconds: float) -> Metrics:
    """Sleeps that all wait at once on one worker."""
    async with _opened(driver, 1, held=calls):
        start = perf_counter()
        await asyncio.gather(*(driver.sleep(seconds) for _ in range(calls)))
        return {"seconds": perf_counter() - start}


async def stream(driver: Driver, items: int) -> Metrics:
    """One async generator."""
    async with _opened(driver, 2):
        metrics = {"per_s": items / await _exhaust(driver.stream, items)}
        try:
            seconds = await _exhaust(driver.prefetched, items)
        except Unsupported:
            return metrics
        return {**metrics, "prefetched_per_s": items / seconds}


async def _exhaust(stream: Callable[[int], AsyncIterator[int]], items: int) -> float:
    async for _ in stream(100):
        pass
    start = perf_counter()
    count = 0
    async for _ in stream(items):
        count += 1
    if count != items:
        raise AssertionError(f"{count} items instead of {items}")
    return perf_counter() - start


async def nested(driver: Driver, n: int) -> Metrics:
    """A recursion of which every call is dispatched, one after the other."""
    return await _recursion(driver, driver.fib, n)


async def fanned(driver: Driver, n: int) -> Metrics:
    """A recursion of which every call is dispatched, as many at once as there can be."""
    return await _recursion(driver, driver.fan, n)


async def _recursion(driver: Driver, fib: Callable[[int], Awaitable[int]], n: int) -> Metrics:
    async with _opened(driver, 2, held=4096):
        await fib(5)
        start = perf_counter()
        result = await fib(n)
        seconds = perf_counter() - start
    if result != _fib(n):
        raise AssertionError(f"fib({n}) is not {result}")
    return {"seconds": seconds}


def _fib(n: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


async def payload(
    driver: Driver, small_mib: int, large_mib: int, array_mib: int, beside: int, repeats: int
) -> Metrics:
    """Echoes of large values, and small calls beside them."""
    small, large = bytes(small_mib * MIB), bytes(large_mib * MIB)
    metrics: Metrics = {}
    async with _opened(driver, 2):
        metrics["small_mb_s"] = await _echo(driver, small, len(small), repeats * 4)
        metrics["large_mb_s"] = await _echo(driver, large, len(large), repeats)
        together, in_turn = await _beside(driver, large, beside, repeats)
        metrics["beside_p99_ms"] = _percentile(together, 0.99) * 1e3
        metrics["beside_in_turn_p99_ms"] = _percentile(in_turn, 0.99) * 1e3
        try:
            import numpy as np
        except ModuleNotFoundError:
            return metrics
        array = np.ones(array_mib * MIB // 8)
        metrics["array_mb_s"] = await _echo(driver, array, array.nbytes, repeats)
    return metrics


async def _echo(driver: Driver, value: Any, size: int, repeats: int) -> float:
    await driver.echo(value)
    samples = []
    for _ in range(repeats):
        start = perf_counter()
        echoed = await driver.echo(value)
        samples.append(perf_counter() - start)
        if len(echoed) != len(value):
            raise AssertionError("the echo is of another length")
        del echoed
    return size / 1e6 / _percentile(samples, 0.5)


async def _beside(
    driver: Driver, large: bytes, calls: int, repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of small calls made all at once, and one after the other, beside a large one."""

    async def timed() -> float:
        start = perf_counter()
        await driver.noop()
        return perf_counter() - start

    together: list[float] = []
    in_turn: list[float] = []
    for _ in range(repeats):
        task = asyncio.ensure_future(driver.echo(large))
        await asyncio.sleep(0)
        together += await asyncio.gather(*(timed() for _ in range(calls)))
        await task
        task = asyncio.ensure_future(driver.echo(large))
        await asyncio.sleep(0)
        while not task.done():
            in_turn.append(await timed())
    return together, in_turn


async def start(driver: Driver, few: int, many: int) -> Metrics:
    """From nothing to a first result, and back."""
    metrics: Metrics = {}
    if driver.imports:
        metrics["import_s"] = _import_seconds(driver.imports)
    for name, workers in (("few", few), ("many", many)):
        begin = perf_counter()
        await driver.open(workers)
        await driver.noop()
        metrics[f"{name}_s"] = perf_counter() - begin
        for _ in range(10):
            await driver.noop()
        begin = perf_counter()
        await driver.close()
        metrics[f"{name}_shutdown_s"] = perf_counter() - begin
    return metrics


def _import_seconds(statement: str) -> float:
    code = f"from time import perf_counter as t; a = t(); {statement}; print(t() - a)"
    runs = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
        for _ in range(6)
    ]
    return _percentile(runs[1:], 0.5)


async def memory(driver: Driver, calls: int, seconds: float) -> Metrics:
    """Resident sizes, in MiB or in KiB per call; two waves of calls in flight on one worker."""
    if driver.slow:
        calls //= 10
    async with _opened(driver, 1, held=calls, warm=False):
        await asyncio.sleep(1)  # Some open before their workers have started.
        fresh = residents()
        await _warm_up(driver)
        pid = await driver.pid()
        gc.collect()
        metrics = {"used_mib": resident(pid) / MIB}
        if (idle := await driver.idle() or fresh.get(pid)) is not None:
            metrics["idle_mib"] = idle / MIB
        with suppress(Unsupported):
            for wave in ("", "_again"):
                metrics.update(await _wave(driver, calls, seconds, pid, wave))
    return metrics


async def _wave(driver: Driver, calls: int, seconds: float, pid: int, suffix: str) -> Metrics:
    before = resident(None), resident(pid)
    with Peak((None, pid)) as peak:
        await asyncio.gather(*(driver.sleep(seconds) for _ in range(calls)))
    await driver.noop()
    await asyncio.sleep(1)
    gc.collect()
    after = resident(None), resident(pid)
    metrics = {}
    for i, side in enumerate(("caller", "worker")):
        metrics[f"{side}_kib{suffix}"] = (peak.sizes[i] - before[i]) / 1024 / calls
        metrics[f"{side}_kept_kib{suffix}"] = (after[i] - before[i]) / 1024 / calls
    return metrics


async def growth(
    driver: Driver, calls: list[int], workers: list[int], callers: int, members: list[int]
) -> Metrics:
    """Microseconds of one call, or of one event, for more and more of something.

    More workers have as many more callers.
    """
    metrics: Metrics = {}
    async with _opened(driver, 2):
        for count in calls:
            metrics[f"calls_{count}_us"] = await _cost(driver, callers, count, max(calls))
        for count in calls:
            repeats = max(min(max(calls) // count, 5), 1)
            best = min([await _gather(driver, count) for _ in range(repeats)])
            metrics[f"burst_{count}_us"] = best / count * 1e6
    for count in workers:
        async with _opened(driver, count):
            load = callers // 2 * count
            metrics[f"workers_{count}_us"] = await _cost(driver, load, calls[1], calls[1] * 3)
    for count in members:
        try:
            metrics[f"members_{count}_us"] = driver.membership(count) * 1e6
        except Unsupported:
            break
    return metrics


async def _cost(driver: Driver, callers: int, calls: int, total: int) -> float:
    """Microseconds of one of `calls` calls, the median of what fits into `total` calls."""
    repeats = max(min(total // calls, 15), 1)
    runs = [await _callers(driver, callers, calls) / calls for _ in range(repeats)]
    return _percentile(runs, 0.5) * 1e6
