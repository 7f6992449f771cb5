"""How the workers that this process started have ended, for those who lost them."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID

PATIENCE = 2.0
"""Seconds to wait for the exit status of a worker whose connection has broken."""

REMEMBERED = 100
"""How many workers that have ended are remembered."""

_children: dict[UUID, asyncio.Future[int]] = {}


def register(uid: UUID, exited: asyncio.Future[int]) -> None:
    """Remember a worker of ours; `exited` is to hold its return code."""
    _children[uid] = exited
    ended = [
        each
        for each, future in list(_children.items())
        if future.done() or future.get_loop().is_closed()
    ]
    for each in ended[:-REMEMBERED]:
        _children.pop(each, None)


def describe(returncode: int) -> str:
    """A return code in words."""
    if returncode >= 0:
        return f"its process exited with code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = str(-returncode)
    return f"its process was killed by signal {name}"


async def ascertain(uid: UUID) -> str | None:
    """How that worker's process died, in words; None if it isn't ours or has not."""
    exited = _children.get(uid)
    if exited is None or exited.get_loop() is not asyncio.get_running_loop():
        return None
    await asyncio.wait([exited], timeout=PATIENCE)
    return describe(exited.result()) if exited.done() and not exited.cancelled() else None
