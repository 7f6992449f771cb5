"""Routines that the tests of pools and proxies run, and waiting for what they do."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

import psutil

import wool
from tests.support import eventually


def touch(path: str) -> None:
    Path(path).touch()


@wool.routine
async def echo(value: Any) -> Any:
    return value


@wool.routine
async def pid() -> int:
    return os.getpid()


@wool.routine
async def spread(calls: int) -> tuple[int, set[int]]:
    """Where it runs, and where that many calls nested in it do."""
    return os.getpid(), set(await asyncio.gather(*(pid() for _ in range(calls))))


@wool.routine
async def nap(path: str, seconds: float = 600, cleaning: float = 0) -> str:
    """Sleep, and leave word in files that begin with `path`."""
    touch(path + ".started")
    try:
        await asyncio.sleep(seconds)
        return "slept"
    finally:
        await asyncio.sleep(cleaning)
        touch(path + ".ended")


@wool.routine
async def block(path: str, seconds: float) -> None:
    """Keep the routine loop from running anything else."""
    touch(path + ".started")
    threading.Event().wait(seconds)


@wool.routine
async def kill(signum: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), signum)
    await asyncio.sleep(600)


@wool.routine
async def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


@wool.routine
async def proxies() -> tuple[int, int]:
    """How many proxies this worker has, and how many of them are started."""
    pool = wool.__proxy_pool__.get()
    assert pool is not None
    entries: list[Any] = pool._all()
    return len(entries), sum(entry.value.started for entry in entries)


async def started(path: str) -> None:
    """Return when the routine that was given `path` runs."""
    await eventually(Path(path + ".started").exists, timeout=30)


def ended(path: str) -> bool:
    return Path(path + ".ended").exists()


async def gone(*pids: int) -> None:
    """Return when none of these processes is there any more."""
    await eventually(lambda: not any(map(psutil.pid_exists, pids)), timeout=30)
