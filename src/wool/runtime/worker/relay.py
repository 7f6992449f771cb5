"""Calls from other threads on an event loop's own."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_ONE = (1).to_bytes(8, sys.byteorder)


class Relay:
    """Calls on `loop`, in order, what is posted from any thread.

    It is what `call_soon_threadsafe` does, at half the price, which every call pays twice: that
    wakes the loop through a pair of sockets, once for each callback. Made where the loop runs, or
    before it does; closed on its thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._posted: deque[Callable[[], object]] = deque()
        self._rung = False
        self._closing = threading.Lock()
        self._ends = _eventfd() if hasattr(os, "eventfd") else _pipe()
        loop.add_reader(self._ends[0], self._answer)

    def post(self, callback: Callable[[], object]) -> None:
        """Have it called there, unless the relay has been closed."""
        self._posted.append(callback)
        if not self._rung:
            self._ring()

    def _ring(self) -> None:
        with self._closing:  # The descriptor must not become another file's meanwhile.
            if self._ends:
                self._rung = True
                os.write(self._ends[-1], _ONE)

    def _answer(self) -> None:
        with suppress(BlockingIOError):  # A loop that was interrupted may ask twice.
            os.read(self._ends[0], len(_ONE))
        self._rung = False
        try:
            for _ in range(len(self._posted)):
                self._posted.popleft()()
        finally:
            if self._posted:
                self._ring()

    def close(self) -> None:
        with self._closing:
            ends, self._ends = self._ends, ()
        if ends:
            self._loop.remove_reader(ends[0])
            for end in {*ends}:
                os.close(end)


def _eventfd() -> tuple[int, ...]:
    return (os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC),)


def _pipe() -> tuple[int, ...]:
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends
