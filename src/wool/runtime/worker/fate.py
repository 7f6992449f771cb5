"""How the workers that this process started have ended, for those who lost them."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID

PATIENCE = 2.0
"""Seconds to wait for the exit status of a worker whose connection has broken."""

REMEMBERED = 100
"""How many workers that have ended are remembered."""

_running: dict[UUID, asyncio.Future[int]] = {}
_ended: dict[UUID, int] = {}


def register(uid: UUID, exited: asyncio.Future[int]) -> None:
    """Remember a worker of ours; `exited` is to hold its return code."""
    for each, future in list(_running.items()):
        if future.get_loop().is_closed():
            _running.pop(each, None)
    _running[uid] = exited
    exited.add_done_callback(partial(_record, uid))


def _record(uid: UUID, exited: asyncio.Future[int]) -> None:
    # The code alone: the traceback of a cancelled task keeps all that was cancelled with it.
    _running.pop(uid, None)
    if not exited.cancelled():
        _ended[uid] = exited.result()
    for each in list(_ended)[:-REMEMBERED]:
        _ended.pop(each, None)


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
    exited = _running.get(uid)
    if exited is not None and exited.get_loop() is asyncio.get_running_loop():
        await asyncio.wait([exited], timeout=PATIENCE)
    return describe(_ended[uid]) if uid in _ended else None
