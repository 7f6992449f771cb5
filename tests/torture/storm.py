"""Calls and streams of all kinds, each cancelled at a random moment, and what is left of them."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import wool
from tests import wire_routines as routines
from tests.torture.result import Result
from wool import LocalWorker, WorkerPool
from wool.runtime.worker.arena import Arena
from wool.runtime.worker.base import ChannelOptions, WorkerOptions
from wool.runtime.worker.call import Call
from wool.runtime.worker.connection import WorkerConnection, _links_of
from wool.runtime.worker.framing import Gate
from wool.runtime.worker.service import WorkerService

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
    from random import Random

    from wool.runtime.worker.connection import _Link
    from wool.runtime.worker.serversession import ServerSession
    from wool.runtime.worker.session import Session

    Kind = Callable[[], Coroutine[Any, Any, None]]

SIZE = 2
TOGETHER = 12
LARGE = 3 * 1024 * 1024
"""Bytes that take several turns, or chunks, to be on their way."""

END_TIMEOUT = 30.0
"""Seconds for a cancelled call to end."""

SETTLE = 10.0
"""Seconds for what is left of calls to go."""

STANDING = "wool session reader", "wool session writer", "wool connection watch", "wool sentinel"
"""Tasks that are of a connection, not of a call."""

STEPS = {
    "coroutine",
    "async_generator",
    "async_generator_asend",
    "async_generator_athrow",
    "anext_awaitable",
}
"""Names of types of what can be awaited in turn; some have no other name."""


@wool.routine
async def tidy(seconds: float) -> None:
    """Take as long to clean up as for all else."""
    try:
        await asyncio.sleep(seconds)
    finally:
        await asyncio.sleep(seconds)


@wool.routine
async def descend(depth: int) -> int:
    """Call itself so many times."""
    await asyncio.sleep(0.001)
    return 1 + await descend(depth - 1) if depth else 0


@wool.routine
async def answer() -> AsyncGenerator[Any, Any]:
    """Yield how long what it is sent is, and what is thrown into it; slow to close."""
    value: Any = b""
    try:
        while True:
            try:
                value = yield len(value)
            except LookupError as exc:
                value = yield exc.args[0]
    finally:
        await asyncio.sleep(0.002)


@wool.routine
async def left_here() -> tuple[int, list[str]]:
    """This worker's process, and what is left there of all calls but this one."""
    links = _links_of(asyncio.get_running_loop())
    service = next(each for each in gc.get_objects() if isinstance(each, WorkerService))
    sessions = [*service._sessions, *service._own]
    unanswered = sum(len(session._open) for session in sessions) - 1
    return os.getpid(), [
        *map(repr, tasks_of_calls() - {asyncio.current_task()}),
        *left_of_links(links.values()),
        *left_of_sessions(sessions),
        *([f"{unanswered} unanswered calls"] if unanswered else ()),
    ]


def tasks_of_calls() -> set[asyncio.Task[Any]]:
    """All tasks of this loop that are not of a connection, gRPC's own among these."""
    return {
        task
        for task in asyncio.all_tasks()
        if task.get_name() not in STANDING and "_AioCall" not in repr(task)
    }


def left_of_links(links: Iterable[_Link]) -> list[str]:
    """What callers' halves of sessions have left of calls."""
    found = []
    for link in links:
        if (session := link._session) is not None:
            found += [f"{what} of {session!r}" for what, left in _kept(session) if left]
        found += [f"{each.in_flight} in flight" for each in link.connections if each.in_flight]
    return found


def _kept(session: Session) -> list[tuple[str, object]]:
    shared = session._shared
    return [
        ("calls", session._calls),
        ("large payloads", session._outbox.large),
        ("chunks", session._assemblies._assemblies),
        ("the arena", shared is not None and shared.arena.used),
        ("fetches", session._fetches),
        ("turns", session._small_gate._queue or session._large_gate._queue),
        ("room", session._small_gate._granted or session._large_gate._granted),
    ]


def left_of_sessions(sessions: Iterable[ServerSession]) -> list[str]:
    """What workers' halves of sessions have left of calls, but for the one that asks."""
    found = []
    for session in sessions:
        arena = session._runner._arena
        kept = {
            "routines": len(session._runner._running) > 1,
            "tasks": session._exchange.pending,
            "chunks": session._assemblies._assemblies,
            "results": session._behind or session._outbox.large,
            "the arena": arena is not None and arena.used,
        }
        found += [f"{what} of a client's session" for what, left in kept.items() if left]
    return found


async def small() -> None:
    assert await routines.echo("small") == "small"


async def running() -> None:
    assert await routines.nap(0.005) == 0.005


async def cleaning_up() -> None:
    await tidy(0.003)


async def nested() -> None:
    assert await descend(3) == 3


async def large_argument() -> None:
    assert await routines.size(bytes(LARGE)) == LARGE


async def large_result() -> None:
    assert len(await routines.make(LARGE)) == LARGE


async def stream() -> None:
    assert [item async for item in routines.count(10)] == list(range(10))


async def large_items() -> None:
    assert [len(item) async for item in routines.pieces(LARGE, 2)] == [LARGE] * 2


async def conversation() -> None:
    stream = answer()
    try:
        assert await anext(stream) == 0
        assert await stream.asend(b"small") == 5
        assert await stream.asend(bytes(LARGE)) == LARGE
        assert await stream.athrow(LookupError("thrown")) == "thrown"
    finally:
        await stream.aclose()


KINDS: tuple[Kind, ...] = (
    small,
    running,
    cleaning_up,
    nested,
    large_argument,
    large_result,
    stream,
    large_items,
    conversation,
)


def moment(task: asyncio.Task[None]) -> str:
    """Where a call has come to: what is awaited for it, innermost of what we know."""
    if task.done():
        return "ended"
    found = "not begun"
    waiting: Any = task.get_coro()
    while waiting is not None:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "ag_frame", None)
        owner = frame.f_locals.get("self") if frame is not None else None
        name = frame.f_code.co_qualname if frame is not None else ""
        if isinstance(owner, Arena | Gate | WorkerConnection):
            found = name
        elif isinstance(owner, Call) and name != Call._event.__qualname__:
            found = f"{name} {owner.stage.name}"
        waiting = awaited_by(waiting)
    return found


def awaited_by(waiting: Any) -> Any:
    """What a coroutine, a generator or a step of one waits for, None if nothing of these kinds."""
    for name in ("cr_await", "ag_await"):
        if hasattr(waiting, name):
            return getattr(waiting, name)
    # A step of a generator does not say of which.
    referents = gc.get_referents(waiting)
    return next((each for each in referents if type(each).__name__ in STEPS), None)


class Storm:
    """Calls that are cancelled after a delay of between none and what they take."""

    def __init__(self, rng: Random) -> None:
        self.result = Result()
        self._moments: Counter[str] = Counter()
        self._rng = rng
        self._lasts: dict[Kind, float] = {}
        self._over = False

    async def run(self, seconds: float) -> Result:
        for kind in KINDS:
            begun = time.monotonic()
            await kind()
            self._lasts[kind] = TOGETHER / 3 * (time.monotonic() - begun)
        callers = [asyncio.create_task(self._again_and_again()) for _ in range(TOGETHER)]
        await asyncio.sleep(seconds)
        self._over = True
        await asyncio.gather(*callers)
        moments = (f"{where} {times}" for where, times in self._moments.most_common())
        self.result.figures.append(f"cancelled at {', '.join(moments)}")
        return self.result

    async def _again_and_again(self) -> None:
        while not self._over:
            kind = self._rng.choice(KINDS)
            task = asyncio.create_task(kind())
            await self._delay(self._lasts[kind])
            self._moments[moment(task)] += 1
            interrupted = task.cancel()
            self.result.times += interrupted
            if self._rng.randrange(10) == 0:
                await self._delay(0.002)
                self._moments[moment(task)] += 1
                task.cancel()
            await asyncio.wait([task], timeout=END_TIMEOUT)
            self._judge(kind, task, interrupted)

    async def _delay(self, longest: float) -> None:
        match self._rng.randrange(8):
            case 0:
                return
            case 1 | 2:
                for _ in range(self._rng.randrange(1, 30)):
                    await asyncio.sleep(0)
            case _:
                await asyncio.sleep(self._rng.uniform(0, longest))

    def _judge(self, kind: Kind, task: asyncio.Task[None], interrupted: bool) -> None:
        violation = ""
        if not task.done():
            violation = f"had not ended {END_TIMEOUT} s after it was cancelled: {moment(task)}"
        elif task.cancelled():
            self.result.outcomes["cancelled"] += 1
        elif error := task.exception():
            violation = f"raised {error!r}"
        elif interrupted:
            violation = "ended as if it had not been cancelled"
        else:
            self.result.outcomes["returned"] += 1
        if violation:
            self.result.violations.append(f"{kind.__name__} {violation}")


async def storm(rng: Random, seconds: float, host: str | None) -> Result:
    """Cancel for so long; large payloads go through shared memory, or with a host in chunks."""
    options = WorkerOptions(channel=ChannelOptions(2 * LARGE, 2 * LARGE))
    worker = partial(LocalWorker, host=host, options=options)
    async with WorkerPool(size=SIZE, worker=worker):
        workers = await _everywhere()
        links = _links_of(asyncio.get_running_loop())
        before = tasks_of_calls()
        sessions = {link._session for link in links.values()}
        result = await Storm(rng).run(seconds)
        result.violations += await left_of_all()
        result.violations += [f"left here: {task!r}" for task in tasks_of_calls() - before]
        if {link._session for link in links.values()} != sessions:
            result.violations.append("sessions were lost")
        if (await _everywhere()).keys() != workers.keys():
            result.violations.append("workers were lost")
    return result


async def left_of_all() -> list[str]:
    """What calls have left on either side, when it does not go away."""
    left = ["not looked"]
    with suppress(TimeoutError):
        async with asyncio.timeout(SETTLE):
            while left:
                there = await _everywhere()
                here = left_of_links(_links_of(asyncio.get_running_loop()).values())
                left = [f"left: {each}" for each in sum(there.values(), here)]
    return left


async def _everywhere() -> dict[int, list[str]]:
    """What is left in each worker, by its process."""
    found: dict[int, list[str]] = {}
    async with asyncio.timeout(SETTLE):
        while len(found) < SIZE:
            worker, left = await left_here()
            found[worker] = left
    return found
