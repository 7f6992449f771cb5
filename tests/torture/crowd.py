"""Very many calls at once from one caller."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from tests.torture.result import Result
from tests.wire_routines import echo
from wool import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 2
GOAL = 10.0
"""KiB in the caller for each call that is queued."""

KIB = 1024
INTERVAL = 0.01
"""Seconds between looks at the memory in use."""


async def crowd(calls: int) -> Result:
    """Make all calls at once, and see what memory they take and all of them end, each once."""
    result = Result(times=1)
    async with WorkerPool(size=SIZE):
        await asyncio.gather(*map(echo, range(4 * SIZE)))
        with peak() as sizes:
            answers = await asyncio.gather(*map(echo, range(calls)), return_exceptions=True)
        right = sum(answer == number for number, answer in enumerate(answers))
    if right < calls:
        result.violations.append(f"{calls - right} calls returned something else, or nothing")
    each = (max(sizes) - sizes[0]) / KIB / calls
    if each > GOAL:
        result.violations.append(f"more than {GOAL} KiB each")
    result.outcomes["returned"] = right
    result.figures.append(f"{each:.1f} KiB in the caller for each of {calls:,} calls")
    return result


@contextmanager
def peak() -> Iterator[list[int]]:
    """The memory that this process had before, and while the context lasted, in bytes."""
    memory, over = psutil.Process().memory_info, threading.Event()
    sizes = [memory().rss]

    def watch() -> None:
        while not over.wait(INTERVAL):
            sizes.append(memory().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield sizes
    finally:
        over.set()
        thread.join()
