"""What is done to a pool under load, each at a random moment to a random worker."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import wool
from wool import LocalWorker, WorkerLost
from wool.runtime.rundir import runtime_directory

if TYPE_CHECKING:
    from random import Random

    from wool import WorkerMetadata, WorkerPool

GONE = 10.0
"""Seconds for a worker without its parent to end."""


def admitted() -> list[WorkerMetadata]:
    """The workers of the pool that is entered."""
    return getattr(wool.__proxy__.get(), "workers", [])


def victim(rng: Random) -> WorkerMetadata | None:
    """One of them, if there are any."""
    workers = admitted()
    return rng.choice(workers) if workers else None


def send(worker: WorkerMetadata | None, signum: signal.Signals) -> None:
    if worker is not None:
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signum)


async def kill(pool: WorkerPool, rng: Random) -> None:
    """SIGKILL."""
    send(victim(rng), signal.SIGKILL)


async def terminate(pool: WorkerPool, rng: Random) -> None:
    """SIGTERM, which nobody but its parent should send."""
    send(victim(rng), signal.SIGTERM)


async def freeze(pool: WorkerPool, rng: Random) -> None:
    """SIGSTOP, and SIGCONT up to a second later."""
    worker = victim(rng)
    send(worker, signal.SIGSTOP)
    try:
        await asyncio.sleep(rng.uniform(0, 1))
    finally:
        send(worker, signal.SIGCONT)


@wool.routine
async def leave() -> None:
    os._exit(3)


@wool.routine
async def crash() -> None:
    ctypes.string_at(0)


@wool.routine
async def exhaust_memory() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**31, hard))
    try:
        bytes(2**32)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@wool.routine
async def exhaust_descriptors() -> None:
    opened = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        with suppress(OSError):
            while True:
                opened.append(os.open("/dev/null", os.O_RDONLY))
        await asyncio.sleep(0.2)
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@wool.routine
async def raise_exit() -> None:
    raise SystemExit(4)


async def exit_inside(pool: WorkerPool, rng: Random) -> None:
    """`os._exit` in a routine."""
    with suppress(WorkerLost):
        await leave()


async def segfault(pool: WorkerPool, rng: Random) -> None:
    """A segmentation fault in a routine."""
    with suppress(WorkerLost):
        await crash()


async def memory(pool: WorkerPool, rng: Random) -> None:
    """A routine that wants more memory than `RLIMIT_AS` allows."""
    with suppress(MemoryError, WorkerLost):
        await exhaust_memory()


async def descriptors(pool: WorkerPool, rng: Random) -> None:
    """A routine that takes all descriptors of its worker for a while."""
    with suppress(OSError, WorkerLost):
        await exhaust_descriptors()


async def system_exit(pool: WorkerPool, rng: Random) -> None:
    """`SystemExit` raised in a routine."""
    try:
        await raise_exit()
    except SystemExit as exc:
        raise AssertionError("SystemExit of a routine was raised at its caller") from exc
    except Exception:
        return


async def socket_file(pool: WorkerPool, rng: Random) -> None:
    """A worker's socket file deleted."""
    worker = victim(rng)
    if worker is not None:
        with suppress(FileNotFoundError):
            os.unlink(worker.address.removeprefix("unix:"))


def namespace(pool: WorkerPool) -> list[Path]:
    """The directories of records."""
    root = Path(runtime_directory())
    return [path for path in root.rglob("*") if path.is_dir() and not path.name.startswith("w")]


async def directory(pool: WorkerPool, rng: Random) -> None:
    """The discovery's directories deleted."""
    for path in namespace(pool):
        shutil.rmtree(path, ignore_errors=True)


async def garbage(pool: WorkerPool, rng: Random) -> None:
    """Garbage, truncated and foreign files among the discovery's records, for a second at most."""
    contents = {uuid4().hex: rng.randbytes(size) for size in (0, 1, 40, 200)} | {"notes": b"hello"}
    written = [path / name for path in namespace(pool) for name in contents]
    for path in written:
        path.write_bytes(contents[path.name])
    try:
        await asyncio.sleep(rng.uniform(0, 1))
    finally:
        for path in written:
            path.unlink(missing_ok=True)


async def control_pipe(pool: WorkerPool, rng: Random) -> None:
    """The parent's end of a worker's control pipe closed: the worker takes it for orphaned."""
    serving = pool._crew.serving.values() if pool._crew is not None else ()
    workers = [worker for worker in serving if isinstance(worker, LocalWorker)]
    worker = rng.choice(workers) if workers else None
    control = worker._process._control if worker is not None else None
    if worker is not None and control is not None:
        # The number stays in use, as the parent will close it some time.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, control, inheritable=False)
        os.close(null)
        async with asyncio.timeout(GONE):
            await worker.wait()
