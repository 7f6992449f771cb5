"""Payloads that a session copies out of its worker's arena, while other calls go on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from wool.runtime.errors import UnexpectedResponse
from wool.runtime.worker.arena import in_turns
from wool.runtime.worker.framing import TERMINAL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from wool import protocol
    from wool.runtime.serializer import Payload
    from wool.runtime.worker.arena import Copying, Shared
    from wool.runtime.worker.framing import Outbox

RELEASE_DELAY = 0.005
"""Seconds that a `release` may wait for a frame to leave with."""

FAULTS = (UnexpectedResponse, OSError, MemoryError)
"""What may come of copying a payload."""


class Fetches:
    """Copies payloads from the worker's part of `shared`, one of a call at a time.

    A call, by its number, is `wanted` or not. `fetched` is called with a frame and the payload
    that lay there for it, or `failed` with the call and why it can't be had. Frames of the call
    that come meanwhile go to `resume` then, in order. The worker is told, in `outbox`, what it
    has back; `wake` has that sent.
    """

    def __init__(
        self,
        shared: Shared,
        outbox: Outbox[protocol.RequestBatch],
        *,
        wanted: Callable[[int], bool],
        fetched: Callable[[protocol.Response, Payload], object],
        failed: Callable[[int, Exception], object],
        resume: Callable[[protocol.Response], object],
        wake: Callable[[], object],
    ) -> None:
        self._shared = shared
        self._outbox = outbox
        self._wanted = wanted
        self._fetched = fetched
        self._failed = failed
        self._resume = resume
        self._wake = wake
        self._releasing: asyncio.TimerHandle | None = None
        self._later: dict[int, list[protocol.Response]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __bool__(self) -> bool:
        return bool(self._later)

    def receive(self, frame: protocol.Response, kind: str | None) -> bool:
        """See to what a frame says of shared memory. Tells whether that is all, for now."""
        if self._postpone(frame):
            return True
        if kind == "release":
            self._shared.arena.free(frame.call)
        elif kind in TERMINAL:
            self._shared.arena.end(frame.call)
        if kind not in ("result", "item"):
            return False
        payload = getattr(frame, kind)
        if not payload.HasField("segment"):
            return False
        if self._wanted(frame.call):
            self._begin(frame, payload.segment)
        else:
            self._release(frame.call)
        return True

    def _postpone(self, frame: protocol.Response) -> bool:
        later = self._later.get(frame.call)
        if later is None:
            return False
        later.append(frame)
        return True

    def _begin(self, frame: protocol.Response, segment: protocol.Segment) -> None:
        """Copy what `frame` refers to; what takes one slice is done at once."""
        copying = self._shared.window.copy(segment)
        try:
            next(copying)
        except StopIteration as end:
            self._succeed(frame, end.value)
        except FAULTS as exc:
            self._fail(frame, exc)
        else:
            self._later[frame.call] = []
            task = asyncio.create_task(self._go_on(frame, copying), name="wool session fetch")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _go_on(self, frame: protocol.Response, copying: Copying) -> None:
        try:
            self._succeed(frame, await in_turns(copying))
        except FAULTS as exc:
            self._fail(frame, exc)
        try:
            for later in self._later.pop(frame.call):
                self._resume(later)
        except FAULTS as exc:
            self._fail(frame, exc)

    def _succeed(self, frame: protocol.Response, payload: Payload) -> None:
        self._fetched(frame, payload)
        self._release(frame.call)

    def _fail(self, frame: protocol.Response, error: Exception) -> None:
        self._release(frame.call)
        self._failed(frame.call, error)

    def _release(self, number: int) -> None:
        """Let the worker know, with what leaves next or a little later."""
        self._outbox.add(number).release = True
        if self._releasing is None:
            self._releasing = asyncio.get_running_loop().call_later(
                RELEASE_DELAY, self._release_now
            )

    def _release_now(self) -> None:
        self._releasing = None
        self._wake()

    async def finish(self) -> None:
        """Return when all has been copied."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> Collection[asyncio.Task[None]]:
        """Stop copying. Returns what is to be waited for."""
        for task in self._tasks:
            task.cancel()
        return self._tasks.copy()

    def close(self) -> None:
        """Release nothing any more."""
        if self._releasing is not None:
            self._releasing.cancel()
