"""The routines of the integration matrix: two kinds in each of four bindings.

`one` is a coroutine and `many` an async generator. Both report where and how they run, and with
`nested`, the name of another routine in the same binding, what that reports when they call it.
`many` adds what it is sent, starts again at 100 when a `LookupError` is thrown in, and writes the
file `farewell` when it ends, after a while.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import wool
from wool.runtime.context import dispatch_timeout

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from pathlib import Path
    from uuid import UUID

STEPS = 3


@dataclass(frozen=True)
class Report:
    """How a step of a routine has run."""

    value: int
    process: int
    task: UUID
    caller: UUID | None
    timeout: float | None
    nested: tuple[Report, ...]


async def report(value: int, nested: Callable[[int], Any] | None) -> Report:
    task = wool.current_task()
    assert task is not None
    call = nested(value) if nested else None
    if call is None:
        inner: tuple[Report, ...] = ()
    elif hasattr(call, "asend"):
        inner = tuple([item async for item in call])
    else:
        inner = (await call,)
    return Report(value, os.getpid(), task.id, task.caller, dispatch_timeout.get(), inner)


@asynccontextmanager
async def leaving(farewell: Path | None) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if farewell is not None:
            await asyncio.sleep(0.05)
            await asyncio.to_thread(farewell.write_text, str(os.getpid()))


@wool.routine
async def one(value: int, nested: str | None = None) -> Report:
    return await report(value, globals()[nested] if nested else None)


@wool.routine
async def many(
    value: int, nested: str | None = None, farewell: Path | None = None
) -> AsyncGenerator[Report, int | None]:
    async with leaving(farewell):
        for _ in range(STEPS):
            try:
                sent = yield await report(value, globals()[nested] if nested else None)
                value += sent or 1
            except LookupError:
                value = 100


class Instance:
    def __init__(self, offset: int) -> None:
        self.offset = offset

    @wool.routine
    async def one(self, value: int, nested: str | None = None) -> Report:
        return await report(self.offset + value, getattr(self, nested) if nested else None)

    @wool.routine
    async def many(
        self, value: int, nested: str | None = None, farewell: Path | None = None
    ) -> AsyncGenerator[Report, int | None]:
        async with leaving(farewell):
            for _ in range(STEPS):
                try:
                    inner = getattr(self, nested) if nested else None
                    sent = yield await report(self.offset + value, inner)
                    value += sent or 1
                except LookupError:
                    value = 100


class Class:
    @classmethod
    @wool.routine
    async def one(cls, value: int, nested: str | None = None) -> Report:
        return await report(value, getattr(cls, nested) if nested else None)

    @classmethod
    @wool.routine
    async def many(
        cls, value: int, nested: str | None = None, farewell: Path | None = None
    ) -> AsyncGenerator[Report, int | None]:
        async with leaving(farewell):
            for _ in range(STEPS):
                try:
                    sent = yield await report(value, getattr(cls, nested) if nested else None)
                    value += sent or 1
                except LookupError:
                    value = 100


class Static:
    @staticmethod
    @wool.routine
    async def one(value: int, nested: str | None = None) -> Report:
        return await report(value, getattr(Static, nested) if nested else None)

    @staticmethod
    @wool.routine
    async def many(
        value: int, nested: str | None = None, farewell: Path | None = None
    ) -> AsyncGenerator[Report, int | None]:
        async with leaving(farewell):
            for _ in range(STEPS):
                try:
                    sent = yield await report(value, getattr(Static, nested) if nested else None)
                    value += sent or 1
                except LookupError:
                    value = 100
