"""An event loop that runs on another one's thread, in passing.

A worker serves on one event loop and runs routines on another, so that a routine that blocks keeps
nobody from being answered. Were these on a thread each all the time, every call would be handed
from one to the other and back, and on an otherwise idle machine it is that which costs most. So the
loop that serves is the guest of the other, which looks in on it whenever it has something to do. It
has a thread of its own all the same, which stands by, and runs it for as long as the host is held
up.

Who runs it has its `_turn`. All of the rest is as if the two were on different threads always: what
one has for the other goes through a `Relay`, and neither is ever called by the other.
"""

from __future__ import annotations

import asyncio
import math
import os
import selectors
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from selectors import SelectorKey

    from wool.runtime.worker.executor import RoutineLoop

PATIENCE = 0.02
"""Seconds that a host may leave its guest waiting before the guest's own thread runs it."""

ROUNDS = 4
"""How often, at most, a guest goes through what is ready before its host does."""


class _Waits(BaseException):
    """A guest has nothing to do, or has done enough for once."""


class _Selector(selectors.DefaultSelector):
    """What an event loop waits in; for a guest, what gives the thread back to its host."""

    def __init__(self) -> None:
        super().__init__()
        self.visiting = False
        self.rounds = 0
        self.timeout: float | None = None
        """In how many seconds a guest that has given it back has something to do."""

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        if not self.visiting:
            return super().select(timeout)
        if self.rounds == ROUNDS or (self.rounds and timeout == 0):
            self.rounds -= 1
            return super().select(0)
        self.timeout = timeout
        raise _Waits


class Guest:
    """An event loop, `loop`, that runs on the thread that makes it, until it is lent to a host."""

    def __init__(self) -> None:
        self._selector = _Selector()
        self.loop = asyncio.SelectorEventLoop(self._selector)
        self._thread = threading.get_ident()
        self._turn = threading.Lock()
        self._lent = False
        self._recalled = threading.Event()
        self._bell: tuple[int, int]
        self._returned = asyncio.Event()
        self._host: RoutineLoop
        self._watched = False
        self._visits = 0
        self._going_on = False
        self._due = math.inf
        self._looks_at = -math.inf
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_due = math.inf

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run it, once, until that has ended, on whichever thread. Raises what that raises."""
        self._bell = os.pipe()
        main = self.loop.create_task(coroutine)
        main.add_done_callback(self._end)
        while not main.done():
            with self._turn:
                if self._lent:
                    self._host.post(self._visit)  # When the host gets to it, it asks for its turn.
                else:
                    self._returned.set()
                self.loop.run_forever()
            if self._lent:
                self._host.post(self._visit)
                self._stand_by()
        with self._turn:  # The host may be about to leave.
            for end in self._bell:
                os.close(end)
        main.result()

    def lend(self, host: RoutineLoop) -> None:
        """Have it run on the host's thread. Called on `loop`, once."""
        self._host = host
        self._lent = True
        self._returned.clear()
        self.loop.stop()

    async def recall(self) -> None:
        """Have it run on its own thread again, for good; returns there."""
        self._lent = False
        if threading.get_ident() != self._thread:
            await self._returned.wait()

    def _end(self, _: asyncio.Task[Any]) -> None:
        self._lent = False
        self.loop.stop()

    def _stand_by(self) -> None:
        """Return when the host is held up, or may not run it any more."""
        with selectors.DefaultSelector() as events:
            events.register(self._selector.fileno(), selectors.EVENT_READ)
            events.register(self._bell[0], selectors.EVENT_READ)
            while self._lent:
                self._looks_at = self._due
                for key, _ in events.select(self._overdue_in()):
                    if key.fd == self._bell[0]:
                        os.read(key.fd, 1)
                self._looks_at = -math.inf
                visits = self._visits
                if self._recalled.wait(PATIENCE):
                    return
                waits = self._overdue_in() == 0 or events.select(0)
                if waits and visits == self._visits:
                    return

    def _overdue_in(self) -> float | None:
        due = self._due
        return None if due == math.inf else max(0, due + PATIENCE - time.monotonic())

    # On the host's thread

    def _visit(self) -> None:
        """Run what is ready. If its own thread runs it, ask that to stop, which then calls this."""
        if not self._lent:
            self._unwatch()
        elif not self._turn.acquire(blocking=False):
            self._unwatch()
            self.loop.call_soon_threadsafe(self.loop.stop)
        else:
            self._visits += 1
            self._selector.timeout = 0
            try:
                self._enter()
            finally:
                self._leave(self._selector.timeout)
                self._turn.release()

    def _enter(self) -> None:
        selector = self._selector
        selector.visiting, selector.rounds = True, ROUNDS
        asyncio._set_running_loop(None)
        try:
            self.loop.run_forever()
        except _Waits:
            pass
        finally:
            asyncio._set_running_loop(self._host.loop)
            selector.visiting = False

    def _leave(self, timeout: float | None) -> None:
        """See to it that there is another visit, when there is something to do."""
        self._due = math.inf if timeout is None else time.monotonic() + timeout
        if not self._lent:
            self._unwatch()
            self._recalled.set()
        if self._due < self._looks_at or not self._lent:
            self._looks_at = -math.inf
            os.write(self._bell[1], b"!")
        if not self._lent:
            return
        if not self._watched:
            self._watched = True
            self._host.loop.add_reader(self._selector.fileno(), self._visit)
        if timeout == 0:
            self._go_on_soon()
        elif timeout is not None and self._due < self._alarm_due:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = self._host.loop.call_later(timeout, self._wake)
            self._alarm_due = self._due

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._host.loop.remove_reader(self._selector.fileno())

    def _go_on_soon(self) -> None:
        if not self._going_on:
            self._going_on = True
            self._host.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._going_on = False
        self._visit()

    def _wake(self) -> None:
        self._alarm = None
        self._alarm_due = math.inf
        self._visit()
