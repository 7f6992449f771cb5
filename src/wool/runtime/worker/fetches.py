"""Payloads that a session copies out of its worker's arena, while other calls go on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from wool.runtime.errors import UnexpectedResponse
from wool.runtime.worker.arena import in_turns

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from wool import protocol
    from wool.runtime.serializer import Payload
    from wool.runtime.worker.arena import Copying, Shared

FAULTS = (UnexpectedResponse, OSError, MemoryError)
"""What may come of copying a payload."""


class Fetches:
    """Copies payloads from the worker's part of `shared`, one of a call at a time.

    `fetched` is called with a frame and the payload that lay there for it, or `failed` with a frame
    and why it can't be had. Frames of the call that come meanwhile go to `resume` then, in order.
    """

    def __init__(
        self,
        shared: Shared,
        *,
        fetched: Callable[[protocol.Response, Payload], object],
        failed: Callable[[protocol.Response, Exception], object],
        resume: Callable[[protocol.Response], object],
    ) -> None:
        self.shared = shared
        self._fetched = fetched
        self._failed = failed
        self._resume = resume
        self._later: dict[int, list[protocol.Response]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __bool__(self) -> bool:
        return bool(self._later)

    def postpone(self, frame: protocol.Response) -> bool:
        """Have it wait if a payload of its call is being copied. Tells whether it does."""
        later = self._later.get(frame.call)
        if later is None:
            return False
        later.append(frame)
        return True

    def begin(self, frame: protocol.Response, segment: protocol.Segment) -> None:
        """Copy what `frame` refers to; what takes one slice is done at once."""
        copying = self.shared.window.copy(segment)
        try:
            next(copying)
        except StopIteration as end:
            self._fetched(frame, end.value)
        except FAULTS as exc:
            self._failed(frame, exc)
        else:
            self._later[frame.call] = []
            task = asyncio.create_task(self._go_on(frame, copying), name="wool session fetch")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _go_on(self, frame: protocol.Response, copying: Copying) -> None:
        try:
            self._fetched(frame, await in_turns(copying))
        except FAULTS as exc:
            self._failed(frame, exc)
        try:
            for later in self._later.pop(frame.call):
                self._resume(later)
        except FAULTS as exc:
            self._failed(frame, exc)

    async def finish(self) -> None:
        """Return when all has been copied."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> Collection[asyncio.Task[None]]:
        """Stop copying. Returns what is to be waited for."""
        for task in self._tasks:
            task.cancel()
        return self._tasks.copy()
