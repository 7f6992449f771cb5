"""An event loop that runs on another one's thread, in passing.

A worker serves on one event loop and runs routines on another, so that a routine that blocks keeps
nobody from being answered. Were these on a thread each all the time, every call would be handed
from one to the other and back, and on an otherwise idle machine it is that which costs most. So the
loop that serves is the guest of the other, which looks in on it whenever it has something to do. It
has a thread of its own all the same, which stands by, and runs it for as long as the host is held
up.

Whoever runs the guest holds `_turn`. The host is woken for it by a reader of its selector, which is
readable when one of its descriptors is, by an alarm for its next timer, and by itself if something
is ready when a visit ends. Its own thread sleeps until one of the first two happens, too, and then
gives the host `PATIENCE` seconds for a visit. Visits move the next timer, so they ring a bell if it
is before the end of that sleep.

All of the rest is as if the two were on different threads always: what one has for the other goes
through a `Relay`, and neither is ever called by the other.
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

PATIENCE = 0.01
"""Seconds that a host may leave its guest waiting before the guest's own thread runs it."""

TICK = 1e-3
"""Seconds to which event loops round their timers, some of them down."""

ROUNDS = 4
"""How often, at most, a guest goes through what is ready before its host does."""


class _Waits(BaseException):
    """A guest has nothing to do, or has done enough for once."""


class _Selector(selectors.DefaultSelector):
    """What an event loop waits in; for a guest, what gives the thread back to its host."""

    def __init__(self) -> None:
        super().__init__()
        self.visiting = False
        """Whether it runs on its host's thread."""
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
        self._descriptor = self._selector.fileno()
        self.loop = asyncio.SelectorEventLoop(self._selector)
        self._thread = threading.get_ident()
        self._turn = threading.Lock()
        self._lent = False
        self._left = threading.Event()  # The host has, for good.
        self._returned = asyncio.Event()
        self._host: RoutineLoop
        self._bell: tuple[int, int]
        self._visits = 0
        self._watched = False
        self._going_on = False
        self._due = math.inf  # When it has something to do, as whoever ran it last left it.
        self._sleeps_until = -math.inf  # Its own thread; or less, while it is awake.
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_due = math.inf

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run it, once, until that has ended, on whichever thread. Raises what that raises."""
        self._bell = os.pipe()
        main = self.loop.create_task(coroutine)
        main.add_done_callback(self._end)
        try:
            while not main.done():
                with self._turn:
                    self._run_here(main)
                if self._lent:
                    self._host.post(self._visit)
                    self._stand_by()
        finally:
            main.remove_done_callback(self._end)
            with self._turn:  # The host may be about to leave.
                self._lent = False
            for end in self._bell:
                os.close(end)
        main.result()

    def _run_here(self, main: asyncio.Task[Any]) -> None:
        if main.done():
            return
        if self._lent:
            self._host.post(self._visit)  # When the host gets to it, it asks for its turn.
        else:
            self._returned.set()
        self.loop.run_forever()
        self._due = time.monotonic()  # There may be something to do by now.

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

    def _give_way(self, rounds: int) -> None:
        """Stop, for the host to go on, after so many rounds, as that may be held up again."""
        if rounds:
            self.loop.call_soon(self._give_way, rounds - 1)
        elif self._lent:
            self.loop.stop()

    def _stand_by(self) -> None:
        """Return when the host is held up, or may not run it any more."""
        with selectors.DefaultSelector() as events:
            events.register(self._descriptor, selectors.EVENT_READ)
            events.register(self._bell[0], selectors.EVENT_READ)
            while self._lent:
                self._sleeps_until = due = self._due
                self._readable(events, _remaining(min(due, self._due)))
                self._sleeps_until = -math.inf
                visits = self._visits
                if self._left.wait(PATIENCE):
                    return
                waits = _remaining(self._due) == 0 or self._readable(events, 0)
                if waits and visits == self._visits:
                    return

    def _readable(self, events: selectors.BaseSelector, timeout: float | None) -> bool:
        ready = [key.fd for key, _ in events.select(timeout)]
        if self._bell[0] in ready:
            os.read(self._bell[0], 1)
        return self._descriptor in ready

    # On the host's thread

    def _visit(self) -> None:
        """Run what is ready. If its own thread has it, have it let go, which then posts this."""
        if not self._turn.acquire(blocking=False):
            self._unwatch()
            if self._lent:
                self.loop.call_soon_threadsafe(self._give_way, ROUNDS)
            return
        try:
            if self._lent:
                self._visits += 1
                try:
                    self._enter()
                finally:
                    self._leave()
            else:
                self._unwatch()
        finally:
            self._turn.release()

    def _enter(self) -> None:
        selector = self._selector
        selector.visiting, selector.rounds, selector.timeout = True, ROUNDS, 0
        asyncio._set_running_loop(None)
        try:
            self.loop.run_forever()
        except _Waits:
            pass
        finally:
            asyncio._set_running_loop(self._host.loop)
            selector.visiting = False

    def _leave(self) -> None:
        """See to it that there is another visit, when there is something to do."""
        timeout = self._selector.timeout
        self._due = math.inf if timeout is None else time.monotonic() + timeout
        if not self._lent:
            self._unwatch()
            self._left.set()
            self._ring()
            return
        if self._due < self._sleeps_until:
            self._ring()
        if not self._watched:
            self._watched = True
            self._host.loop.add_reader(self._descriptor, self._visit)
        if timeout == 0:
            if not self._going_on:
                self._going_on = True
                self._host.loop.call_soon(self._go_on)
        elif timeout is not None and self._due < self._alarm_due:
            if self._alarm is not None:
                self._alarm.cancel()
            later = math.ceil(timeout / TICK) * TICK
            self._alarm = self._host.loop.call_later(later, self._wake)
            self._alarm_due = self._due

    def _ring(self) -> None:
        self._sleeps_until = -math.inf
        os.write(self._bell[1], b"!")

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._host.loop.remove_reader(self._descriptor)

    def _go_on(self) -> None:
        self._going_on = False
        self._visit()

    def _wake(self) -> None:
        self._alarm = None
        self._alarm_due = math.inf
        self._visit()


def _remaining(due: float) -> float | None:
    return None if due == math.inf else max(0, due - time.monotonic())
