"""Routines to compare with their undecorated functions, and a way to write down what they do."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wool
from tests.support import eventually
from wool.runtime.discovery.watch import hub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable


@wool.routine
async def pid() -> int:
    return os.getpid()


@asynccontextmanager
async def warm_pool(size: int = 2) -> AsyncIterator[wool.WorkerPool]:
    """A pool that tests can share: what is opened at the first call to a worker is open."""
    async with wool.WorkerPool(size=size) as pool:
        pids = await asyncio.gather(*(pid() for _ in range(size)))
        assert len(set(pids)) == size
        await eventually(lambda: str(pool.namespace) in str(hub._watches))
        yield pool
        assert set(await asyncio.gather(*(pid() for _ in range(2 * size)))) == set(pids)


async def tried(awaitable: Awaitable[Any]) -> tuple[Any, ...]:
    """What came of it: its value, or all that can be said of what it raised."""
    try:
        return "value", await awaitable
    except BaseException as exc:
        return "raised", *described(exc)


def described(exc: BaseException | None) -> tuple[Any, ...]:
    """Everything but the traceback, and what goes with how it got here.

    The cause of a cancellation is how the routine ended; a GeneratorExit is in the context twice.
    """
    if exc is None or isinstance(exc, GeneratorExit):
        return ()
    attributes = {name: value for name, value in vars(exc).items() if name != "__notes__"}
    members = exc.exceptions if isinstance(exc, BaseExceptionGroup) else ()
    return (
        type(exc),
        exc.args[0] if members else exc.args,
        str(exc),
        attributes,
        getattr(exc, "__notes__", []),
        [described(member) for member in members],
        () if isinstance(exc, asyncio.CancelledError) else described(exc.__cause__),
        described(exc.__context__),
        exc.__suppress_context__ or isinstance(exc, asyncio.CancelledError),
    )


def note(log: str, word: object) -> None:
    with Path(log).open("a") as file:
        file.write(f"{word}\n")


def noted(log: str) -> list[str]:
    path = Path(log)
    return path.read_text().splitlines() if path.exists() else []


class Oops(Exception):
    """With a signature that pickle can't guess, and an attribute."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"oops {code}")
        self.code = code


@wool.routine
async def diary(log: str) -> AsyncGenerator[object, object]:
    """Yields what happens to it, and writes it down. Raises the exceptions sent to it."""
    note(log, "began")
    happened, sent = "began", None
    try:
        while True:
            try:
                sent = yield happened
                happened = f"sent {sent}"
            except ValueError as exc:
                happened = f"caught {exc.args}"
            except StopAsyncIteration:
                happened = "caught the end"
            except LookupError as exc:
                raise Oops(code=5) from exc
            note(log, happened)
            if sent == "return":
                return
            if isinstance(sent, BaseException):
                raise sent
    finally:
        note(log, "ending")
        await asyncio.sleep(0)
        note(log, "ended")


@wool.routine
async def stubborn(log: str) -> AsyncGenerator[str, None]:
    """Does not want to end."""
    try:
        yield "first"
    except GeneratorExit:
        note(log, "ignored")
        yield "again"


@wool.routine
async def sore(log: str) -> AsyncGenerator[str, None]:
    """Fails when it is ended."""
    try:
        yield "only"
    finally:
        note(log, "failing")
        raise Oops(code=9)


@wool.routine
async def nothing(log: str) -> AsyncGenerator[str, None]:
    note(log, "ran")
    return
    yield


@wool.routine
async def refusing(log: str) -> AsyncGenerator[str, None]:
    note(log, "ran")
    raise Oops(code=0)
    yield


@wool.routine
async def countdown(log: str) -> AsyncGenerator[int, None]:
    """Takes a while over each step."""
    for i in (3, 2, 1):
        note(log, i)
        await asyncio.sleep(0.05)
        yield i


@wool.routine
async def echo(value: object) -> object:
    return value


@wool.routine
async def fail(error: BaseException) -> None:
    raise error


@wool.routine
async def fail_while_handling() -> None:
    try:
        try:
            raise KeyError("innermost")
        finally:
            raise LookupError("inner")
    except LookupError:
        raise Oops(code=6)  # noqa: B904


@wool.routine
async def sleeper(behaviour: str, log: str) -> str:
    """Sleeps until it is cancelled, and then does as it was told."""
    try:
        note(log, "began")
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        note(log, "cancelled")
        if behaviour == "return":
            return "after all"
        if behaviour == "raise":
            raise Oops(code=1) from None
        if behaviour == "sleep":
            await asyncio.sleep(0.1)
        raise
    finally:
        note(log, "ended")
    return "slept"


@wool.routine
async def sleepers(behaviour: str, log: str) -> AsyncGenerator[str, None]:
    """Sleeps in its second step until it is cancelled, and then does as it was told."""
    yield "first"
    yield await sleeper.__wrapped__(behaviour, log)  # type: ignore[attr-defined]
    yield "last"
