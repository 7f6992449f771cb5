"""Another caller of the same workers is killed."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.support import eventually
from tests.torture.load import begun_twice
from wool import protocol
from wool.runtime.discovery.records import Directory

if TYPE_CHECKING:
    from random import Random

    from wool import WorkerPool

LIFE = 3.0
"""Seconds that it lives at most, the second or so that it takes to start among them."""

GONE = 10.0
"""Seconds for what it leaves to go."""


async def caller(pool: WorkerPool, rng: Random) -> None:
    """Another caller of the same workers killed, which has a pool of its own, under load as well.

    Its workers end, and with them what it had them run and their records; so does what it had the
    others run, and nobody keeps the memory that they shared. None of its calls ran twice.
    """
    assert pool.namespace is not None
    assert pool._crew is not None
    serving = pool._crew.serving.values()
    survivors = [os.getpid(), *(worker.metadata.pid for worker in serving if worker.metadata)]
    with tempfile.TemporaryDirectory() as directory:
        program = (sys.executable, "-m", "tests.torture.caller_program")
        process = await asyncio.create_subprocess_exec(
            *program, pool.namespace, directory, str(rng.random())
        )
        try:
            await asyncio.sleep(rng.uniform(0, LIFE))
            workers = await stop_and_look(process.pid)
            pids = {worker.pid for worker in workers}
            shared = segments(process.pid, *pids)
        finally:
            process.kill()
            await process.wait()
        await eventually(lambda: not any(map(runs, workers)), GONE)
        await eventually(lambda: not list(Path(directory).glob("held-*")), GONE)
        # This process is the other one that looks.
        records = Directory(pool.namespace)
        await eventually(lambda: not pids & announced(records), GONE)
        await eventually(lambda: not shared & segments(*survivors), GONE)
        if twice := list(begun_twice(f"{directory}/begun")):
            raise AssertionError(f"of the caller's calls, {twice[0]}")


async def stop_and_look(pid: int) -> list[psutil.Process]:
    """The children that a process has, stopped so that it starts no more."""
    process = psutil.Process(pid)
    process.suspend()
    await eventually(lambda: process.status() == psutil.STATUS_STOPPED)
    found: list[psutil.Process] = process.children()
    return found


def runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def segments(*pids: int) -> set[int]:
    """The memory of wool's that these processes share with others, by inode."""
    found = set()
    for pid in pids:
        for path in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(FileNotFoundError):
                if os.readlink(path).startswith("/memfd:wool"):
                    found.add(path.stat().st_ino)
    return found


def announced(records: Directory) -> set[int]:
    """The workers' processes that there are records of, whether their owners live or not."""
    found = set()
    for name in records.names() or ():
        with suppress(FileNotFoundError):
            content = Path(records.path, name).read_bytes()
            found.add(protocol.WorkerMetadata.FromString(content).pid)
    return found
