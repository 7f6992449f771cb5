"""A program that leaves a pool: `python -m tests.shutdown_program WAY STATE LOOP`.

Its standard input is a terminal that becomes its own. It says "ready" when what `STATE` names is
under way in the pool, and then goes the way named, or waits to be sent it.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import signal
import sys
import termios
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

import wool
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

WAY, STATE, LOOP = sys.argv[1:]

# A shell's background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

held: list[object] = []
"""What is under way, lest it is collected."""


def pool(size: int = 1) -> wool.WorkerPool:
    worker = partial(wool.LocalWorker, shutdown_grace_period=1.0, blocking_threshold=None)
    return wool.WorkerPool(size=size, worker=worker, shutdown_timeout=1)


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


# What may be under way


def mark(name: str) -> Path:
    return Path.home() / name


@wool.routine
async def nap(name: str) -> None:
    mark(name).touch()
    await asyncio.sleep(600)


@wool.routine
async def nested(name: str) -> None:
    await nap(name)


@wool.routine
async def pooled(name: str) -> None:
    async with pool():
        await nap(name)


@wool.routine
async def stubborn(name: str) -> None:
    """Go on for almost as long as a worker bears it."""
    mark(name).touch()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(600)
    mark("cancelled").touch()
    for _ in range(8):
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.1)


@wool.routine
async def block(name: str) -> None:
    mark(name).touch()
    threading.Event().wait(600)


@wool.routine
async def count() -> AsyncIterator[int]:
    for number in itertools.count():
        yield number


@wool.routine(prefetch=8)
async def count_ahead() -> AsyncIterator[int]:
    for number in itertools.count():
        yield number


async def call(routine: Callable[[str], Coroutine[Any, Any, None]]) -> None:
    name = f"{routine.__name__}-{len(held)}"
    held.append(asyncio.create_task(routine(name)))
    await eventually(mark(name).exists, timeout=30)


async def nothing() -> None:
    pass


async def calls() -> None:
    for routine in (nap, nested):
        await call(routine)
    for stream in (count(), count_ahead()):
        held.append(stream)
        assert await anext(stream) == 0


STATES: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
    "nothing": nothing,
    "calls": calls,
    "pools": partial(call, pooled),
    "stubborn": partial(call, stubborn),
    "blocked": partial(call, block),
}


# How to leave


async def use() -> None:
    """Leave the pool, or both, in the way that is gone inside."""
    async with pool(size=2):
        if STATE == "pools":
            await call(nap)
            async with pool():
                await inside()
        else:
            await inside()


async def inside() -> None:
    await STATES[STATE]()
    say("ready")
    ready.set()
    await INSIDE.get(WAY, wait)()


async def wait() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise KeyError("mine")


async def leave_by_exit() -> None:
    sys.exit(3)


async def leave_at_once() -> None:
    os._exit(4)


async def interrupt() -> None:
    raise KeyboardInterrupt


async def stop() -> None:
    asyncio.get_running_loop().stop()
    await wait()


INSIDE = {
    "end": nothing,
    "end-interrupted": nothing,
    "exception": fail,
    "exit": leave_by_exit,
    "_exit": leave_at_once,
    "KeyboardInterrupt": interrupt,
    "loop-stopped": stop,
    "loop-closed": nothing,
    "never-left": nothing,
}

ready = asyncio.Event()


async def main() -> None:
    match WAY:
        case "cancelled" | "cancelled-again":
            using = asyncio.create_task(use())
            await asyncio.wait(
                [using, asyncio.create_task(ready.wait())], return_when="FIRST_COMPLETED"
            )
            using.cancel()
            while WAY == "cancelled-again" and not using.done():
                await asyncio.wait([using], timeout=0.02)
                using.cancel()
            await using
        case "SIGTERM-handled":
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
            await use()
        case "task-left-behind":
            held.append(asyncio.create_task(use()))
            await ready.wait()
        case "never-left" | "loop-closed":
            await pool(size=2).__aenter__()
            await inside()
        case _:
            await use()


if __name__ == "__main__":
    fcntl.ioctl(sys.stdin, termios.TIOCSCTTY, 0)
    if WAY == "loop-closed":
        loop = uvloop.new_event_loop() if LOOP == "uvloop" else asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
    else:
        (uvloop if LOOP == "uvloop" else asyncio).run(main())
