"""How the workers that this process started have ended, for those who lost them."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import TYPE_CHECKING

from wool.runtime.worker import oom

if TYPE_CHECKING:
    from uuid import UUID

PATIENCE = 2.0
"""Seconds to wait for the exit status of a worker whose connection has broken."""

REMEMBERED = 100
"""How many workers that have ended are remembered."""

CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS}
)

_running: dict[UUID, asyncio.Future[int]] = {}
_ended: dict[UUID, str] = {}
_watches: dict[UUID, oom.Watch] = {}


def register(uid: UUID, exited: asyncio.Future[int]) -> None:
    """Remember a worker of ours that has just been started; `exited` is to hold its return code."""
    for each, future in list(_running.items()):
        if future.get_loop().is_closed():
            _running.pop(each, None)
            _watches.pop(each, None)
    _running[uid] = exited
    _watches[uid] = oom.Watch()
    exited.add_done_callback(partial(_record, uid))


def expect_kill(uid: UUID) -> None:
    """Say that this process is about to kill a worker of its own."""
    _watches.pop(uid, None)


def _record(uid: UUID, exited: asyncio.Future[int]) -> None:
    # In words alone: the traceback of a cancelled task keeps all that was cancelled with it.
    _running.pop(uid, None)
    watch = _watches.pop(uid, None)
    if not exited.cancelled():
        code = exited.result()
        starved = code == -signal.SIGKILL and watch is not None and watch.blames()
        _ended[uid] = describe(code, starved=starved)
    for each in list(_ended)[:-REMEMBERED]:
        _ended.pop(each, None)


def describe(returncode: int, *, starved: bool = False) -> str:
    """A return code in words. `starved` tells that the kernel has killed for want of memory."""
    if returncode >= 0:
        return f"its process exited with code {returncode}"
    try:
        number = signal.Signals(-returncode)
    except ValueError:
        return f"its process was killed by signal {-returncode}"
    text = f"its process was killed by signal {number.name}"
    if starved:
        text += ", probably by the kernel, for want of memory"
    elif number in CRASHES:
        text += ", a crash in native code: set PYTHONFAULTHANDLER=1 to see where"
    return text


def recall(uid: UUID, returncode: int) -> str:
    """How a worker of ours has ended, in words, of which the return code is known."""
    return _ended.get(uid) or describe(returncode)


async def ascertain(uid: UUID) -> str | None:
    """How that worker's process died, in words; None if it isn't ours or has not."""
    exited = _running.get(uid)
    if exited is not None and exited.get_loop() is asyncio.get_running_loop():
        await asyncio.wait([exited], timeout=PATIENCE)
    return _ended.get(uid)
