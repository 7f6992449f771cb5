"""Routines for tests of the wire. What they do is in `log`, wherever they run."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import psutil

import wool
from wool.runtime import context

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

log: list[str] = []
gates: defaultdict[str, threading.Event] = defaultdict(threading.Event)
"""For routines that block their loop, to be opened by a test in the same process."""

kept: list[Any] = []


@wool.routine
async def echo(value: Any) -> Any:
    return value


@wool.routine
async def size(value: Any) -> int:
    return len(value)


@wool.routine
async def make(amount: int) -> bytes:
    log.append(f"made {amount}")
    return bytes(amount)


@wool.routine
async def noop() -> None:
    pass


@wool.routine
async def fail(message: str) -> None:
    raise LookupError(message)


@wool.routine
async def nap(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@wool.routine
async def seen(key: str) -> list[str]:
    """What the log has about `key`."""
    return [entry.removeprefix(f"{key} ") for entry in log if entry.startswith(f"{key} ")]


@wool.routine
async def residue() -> list[str]:
    """What runs on the loop besides this."""
    return [repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()}]


class Standing(NamedTuple):
    """What a worker holds, this call apart."""

    sessions: int
    unanswered: int
    tasks: int
    descriptors: int
    waiting: int
    """Bytes for clients to read."""
    memory: int
    """Bytes of it."""


@wool.routine
async def standing() -> Standing:
    loopback = context.loopback.get()
    assert loopback is not None
    service = cast("Any", loopback).__self__
    process = psutil.Process()
    gc.collect()
    return Standing(
        sessions=len(service._sessions) - 1,
        unanswered=service._sessions.unanswered - 1,
        tasks=len(asyncio.all_tasks()) - 1,
        descriptors=process.num_fds(),
        waiting=sum(each._outbox.size + each._held_back for each in [*service._sessions]),
        memory=process.memory_info().rss,
    )


@wool.routine
async def sleep(key: str, cleanup: float = 0) -> None:
    """Sleep until cancelled, and take that long to clean up."""
    log.append(f"{key} started")
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(cleanup)
        log.append(f"{key} ended")


@wool.routine
async def suppress(key: str, value: Any = None) -> Any:
    """Return a value after all, when cancelled."""
    log.append(f"{key} started")
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        log.append(f"{key} cancelled")
    return value


@wool.routine
async def insist(key: str, times: int) -> int:
    """Ignore that many cancellations."""
    log.append(f"{key} started")
    for _ in range(times):
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            log.append(f"{key} cancelled")
    await asyncio.sleep(3600)
    return times


@wool.routine
async def never_mind(key: str) -> None:
    """Raise something else when cancelled."""
    log.append(f"{key} started")
    try:
        await asyncio.sleep(3600)
    finally:
        raise LookupError(key)


@wool.routine
async def block(key: str) -> str:
    """Block the loop until the test opens the gate."""
    log.append(f"{key} started")
    gates[key].wait(60)
    return key


@wool.routine
async def freeze(seconds: float) -> None:
    """Block the loop."""
    time.sleep(seconds)  # noqa: ASYNC251


@wool.routine
async def count(n: int, key: str = "") -> AsyncGenerator[int, Any]:
    try:
        for i in range(n):
            yield i
    finally:
        log.append(f"{key} ended")


@wool.routine
async def talk(key: str) -> AsyncGenerator[Any, Any]:
    """Yield what is sent, or how long it is if it has a length."""
    value: Any = None
    try:
        while True:
            value = yield len(value) if hasattr(value, "__len__") else value
    finally:
        log.append(f"{key} ended")


@wool.routine
async def drip(key: str, cleanup: float = 0) -> AsyncGenerator[int, None]:
    """Yield once, then sleep until cancelled."""
    try:
        yield 1
        log.append(f"{key} started")
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(cleanup)
        log.append(f"{key} ended")


@wool.routine
async def linger(key: str) -> AsyncGenerator[int, None]:
    """Sleep while closed, until cancelled."""
    try:
        yield 1
    finally:
        log.append(f"{key} started")
        try:
            await asyncio.sleep(3600)
        finally:
            log.append(f"{key} ended")


@wool.routine
async def shrug(key: str) -> AsyncGenerator[str, None]:
    """Yield another value when cancelled."""
    yield "first"
    log.append(f"{key} started")
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        yield "after all"
    yield "more"


@wool.routine
async def pieces(amount: int, n: int, key: str = "") -> AsyncGenerator[bytes, Any]:
    try:
        for _ in range(n):
            yield bytes(amount)
    finally:
        log.append(f"{key} ended")


class Thing:
    """Something that can be referred to weakly."""

    def __init__(self, content: object = None) -> None:
        self.content = content


references: list[weakref.ref[Any]] = []


@wool.routine
async def hold(thing: Thing, fails: bool = False) -> Thing:
    """Keep weak references to all that this call is made of."""
    references[:] = [weakref.ref(thing), weakref.ref(asyncio.current_task())]
    references.append(weakref.ref(wool.current_task()))
    if fails:
        raise LookupError("with frames")
    result = Thing()
    references.append(weakref.ref(result))
    return result


@wool.routine
async def hold_on(thing: Thing) -> None:
    references[:] = [weakref.ref(thing), weakref.ref(asyncio.current_task())]
    references.append(weakref.ref(wool.current_task()))
    log.append("hold started")
    await asyncio.Event().wait()  # A loop keeps the timer of a cancelled sleep for a while.


@wool.routine
async def hold_stream(thing: Thing) -> AsyncGenerator[Thing, None]:
    references[:] = [weakref.ref(thing), weakref.ref(asyncio.current_task())]
    references.append(weakref.ref(wool.current_task()))
    yield Thing()


@wool.routine
async def collect(cyclic: bool) -> None:
    """Switch cyclic garbage collection off, or on again."""
    (gc.enable if cyclic else gc.disable)()


@wool.routine
async def survivors() -> list[str]:
    """What is left of the call before."""
    return [repr(reference()) for reference in references if reference() is not None]


@wool.routine
async def spawn_exit() -> str:
    """Have a task of one's own try to end the process."""

    async def leave() -> None:
        raise SystemExit(3)

    kept.append(asyncio.create_task(leave()))
    await asyncio.sleep(0.01)
    return "still here"


@wool.routine
async def spawn_callback(kind: type[BaseException]) -> str:
    """Have a callback of one's own try to end the process."""

    def leave() -> None:
        raise kind("sprung")

    asyncio.get_running_loop().call_soon(leave)
    await asyncio.sleep(0.01)
    return "still here"


@wool.routine
async def stop_loop() -> str:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.01)
    return "still here"


@wool.routine
async def throw(kind: type[BaseException]) -> None:
    raise kind("thrown")


class Trap:
    """Raises `kind` when it is `"pickled"` or `"unpickled"`."""

    def __init__(self, kind: type[BaseException], when: str) -> None:
        self.kind = kind
        self.when = when

    def __reduce__(self) -> Any:
        if self.when == "pickled":
            raise self.kind("sprung")
        return spring, (self.kind,)


class TrapError(Trap, Exception):
    """Raises `kind` when it is asked for its message, too."""

    def __str__(self) -> str:
        raise self.kind("sprung")


def spring(kind: type[BaseException]) -> None:
    raise kind("sprung")


@wool.routine
async def set_trap(kind: type[BaseException], when: str) -> Trap:
    return Trap(kind, when)


@wool.routine
async def set_traps(kind: type[BaseException], when: str) -> AsyncGenerator[Trap, None]:
    yield Trap(kind, when)


@wool.routine
async def throw_trap(kind: type[BaseException], when: str) -> None:
    raise TrapError(kind, when)


@wool.routine
async def spawn_cleanup(key: str) -> None:
    """Leave a task behind whose end makes another, which makes another."""

    async def descend(depth: int) -> None:
        log.append(f"{key} entered {depth}")
        try:
            await asyncio.sleep(3600)
        finally:
            if depth:
                kept.append(asyncio.create_task(descend(depth - 1)))
            log.append(f"{key} left {depth}")

    kept.append(asyncio.create_task(descend(2)))
    await asyncio.sleep(0)


@wool.routine
async def parrot() -> AsyncGenerator[Any, Any]:
    """Yields what it is sent."""
    value = None
    while True:
        value = yield value


@wool.routine
async def overwrite(size: int) -> AsyncGenerator[Any, None]:
    """Yields an array three times, which it overwrites after each."""
    import numpy

    array = numpy.zeros(size, "u1")
    for i in range(3):
        yield array
        array[:] = i + 1
