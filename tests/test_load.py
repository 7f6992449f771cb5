"""Many calls at once, and large ones, on real workers."""

from __future__ import annotations

import asyncio
import time

import pytest

import wool
from tests import wire_routines as routines

MIB = 1024 * 1024


@pytest.mark.slow
async def test_a_thousand_sleeps_on_one_worker_take_as_long_as_one() -> None:
    async with wool.WorkerPool(size=1):
        await routines.noop()
        begun = time.monotonic()
        assert await asyncio.gather(*(routines.nap(2) for _ in range(1000))) == [2] * 1000
        assert time.monotonic() - begun < 4


@pytest.mark.slow
async def test_ten_thousand_calls_on_two_workers() -> None:
    async with wool.WorkerPool(size=2):
        calls = (routines.echo(i) for i in range(10_000))
        assert await asyncio.gather(*calls) == list(range(10_000))


async def test_bursts_that_turn_over() -> None:
    """A08."""
    async with wool.WorkerPool(size=1):
        for _ in range(14):
            assert await asyncio.gather(*(routines.noop() for _ in range(256))) == [None] * 256


async def test_small_calls_stay_quick_beside_large_ones() -> None:
    async with wool.WorkerPool(size=1):
        await routines.noop()
        large = asyncio.gather(routines.size(bytes(60 * MIB)), routines.make(60 * MIB))
        times = []
        while not large.done():
            begun = time.monotonic()
            await routines.noop()
            times.append(time.monotonic() - begun)
        assert [*await large] == [60 * MIB, bytes(60 * MIB)]
        times.sort()
        assert len(times) >= 10
        assert times[len(times) // 2] < 0.1


async def test_streams_and_calls_together() -> None:
    async def take(n: int) -> list[int]:
        return [item async for item in routines.count(n)]

    async with wool.WorkerPool(size=2):
        streams = [take(n) for n in range(200)]
        calls = [routines.echo(n) for n in range(200)]
        results = await asyncio.gather(*streams, *calls)
        assert results[:200] == [list(range(n)) for n in range(200)]
        assert results[200:] == list(range(200))
