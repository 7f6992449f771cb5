"""Large payloads between processes of one user on one host, through shared memory.

Each side of a session has an arena, which it alone writes to: an anonymous file in memory that has
no name in any file system. Its peer opens it by way of /proc, once, when the session opens. A
payload is written into a free extent, the frame that it belongs to says where, and the peer copies
it out and says so (a `release`, or the call's last frame), which frees the extent. So the
kernel frees the memory when both processes have closed it or died, in whatever order and at
whatever point, and pages are used again while it is busy, which matters: the first use of a page
costs several times as much as copying into it.

Nothing is mapped: an arena that has been cut off, or that holds less than a frame says, is a short
read. Both sides copy slice by slice and let their loop run in between.

An offer, `pid:descriptor:nonce`, tells where the peer finds an arena. The nonce, which the arena
starts with, tells that what it has found there is the arena: in another PID namespace the same
numbers may lead to something else.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from wool import protocol
from wool.runtime.errors import UnexpectedResponse
from wool.runtime.memory import PAGE, Form, Landing
from wool.runtime.serializer import Payload
from wool.runtime.worker.framing import pause

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    Copying = Generator[None, None, Payload]

T = TypeVar("T")

NAME = "wool"
NONCE = 32

SLICE = 1024 * 1024
"""Bytes that are copied at a time: for a fraction of a millisecond."""

TURNS = 3
"""How often the loop runs between two slices: a small call takes some turns."""

ROOM = 2
"""How many of the largest payloads an arena has room for.

One more is let in while less than one waits, so that is enough but for the gaps between them.
"""

MOST_BUFFERS = 1024
"""Of one payload: the frame that says where they are is to stay small."""

REST = 5.0
"""Seconds after which an arena gives back the memory that it has not needed since."""


WORTHWHILE = 64 * 1024
"""Bytes above which a payload is better off here than in the stream."""


class Extent(NamedTuple):
    """A range of an arena, in bytes."""

    start: int
    end: int


class Arena:
    """Memory for payloads that a peer is to read, for one event loop.

    At most `limit` bytes are in use, and `on_room` is called when there are fewer.
    """

    def __init__(self, descriptor: int, limit: int) -> None:
        nonce = os.urandom(NONCE)
        os.pwrite(descriptor, nonce, 0)
        self.offer = f"{os.getpid()}:{descriptor}:{nonce.hex()}"
        self.used = 0
        self.on_room: Callable[[], object] = _ignore
        self._descriptor = descriptor
        self._limit = limit
        self._extents: set[Extent] = set()
        self._lent: dict[int, deque[Extent]] = {}
        self._peak = 0
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def create(cls, limit: int) -> Arena | None:
        """A new one, or None if the system has none to give."""
        if sys.platform != "linux":
            return None
        try:
            descriptor = os.memfd_create(NAME, os.MFD_CLOEXEC)
        except OSError:
            return None
        try:
            return cls(descriptor, limit)
        except OSError:
            os.close(descriptor)
            return None

    async def put(self, call: int, payload: Payload) -> protocol.Segment | None:
        """Lend a payload to the peer, for `call`; None if it has to go another way."""
        extent = self._find(payload.size)
        if self._descriptor < 0 or extent is None or len(payload.buffers) > MOST_BUFFERS:
            return None
        self._take(extent)
        try:
            await in_turns(self._write(extent.start, payload))
        except OSError:
            self._give(extent)
            return None
        except BaseException:
            self._give(extent)
            raise
        self._lent.setdefault(call, deque()).append(extent)
        sizes = [memoryview(part).nbytes for part in (payload.data, *payload.buffers)]
        return protocol.Segment(offset=extent.start, sizes=sizes, forms=payload.forms)

    def free(self, call: int) -> None:
        """The peer has copied the oldest of what was lent to it for `call`, if anything was."""
        extents = self._lent.get(call)
        if extents:
            extent = extents.popleft()
            if not extents:
                del self._lent[call]
            self._give(extent)

    def end(self, call: int) -> None:
        """The peer needs nothing more of what was lent to it for `call`."""
        for extent in self._lent.pop(call, ()):
            self._give(extent)

    def _find(self, size: int) -> Extent | None:
        """The first gap that is large enough."""
        start = PAGE
        length = -(-size // PAGE) * PAGE
        for extent in sorted(self._extents):
            if extent.start - start >= length:
                break
            start = extent.end
        return Extent(start, start + length) if start + length <= PAGE + self._limit else None

    def _take(self, extent: Extent) -> None:
        self._extents.add(extent)
        self.used += extent.end - extent.start
        self._peak = max(self._peak, extent.end)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REST, self._trim)

    def _give(self, extent: Extent) -> None:
        self._extents.remove(extent)
        self.used -= extent.end - extent.start
        self.on_room()

    def _write(self, at: int, payload: Payload) -> Generator[None, None, None]:
        pause = at + SLICE
        for part in (payload.data, *payload.buffers):
            view = memoryview(part).cast("B")
            while view:
                if at >= pause:
                    yield
                    pause = at + SLICE
                written = os.pwrite(self._open(), view[:SLICE], at)
                at += written
                view = view[written:]

    def _open(self) -> int:
        if self._descriptor < 0:
            raise OSError(errno.EBADF, "the arena was closed")
        return self._descriptor

    def _trim(self) -> None:
        """Give back the memory that has not been needed for a while."""
        os.ftruncate(self._descriptor, self._peak)
        idle = not self._peak
        self._peak = max((extent.end for extent in self._extents), default=0)
        self._timer = None if idle else asyncio.get_running_loop().call_later(REST, self._trim)

    def close(self) -> None:
        """Let go of it; the peer can still read what it has been told of."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class Window:
    """A peer's arena, to read from. `limit` is the largest payload, in bytes."""

    def __init__(self, descriptor: int, limit: int) -> None:
        self._descriptor = descriptor
        self._limit = limit

    @classmethod
    def open(cls, offer: str, limit: int) -> Window | None:
        """What was offered, or None if it can't be found here."""
        try:
            pid, number, nonce = offer.split(":")
            path = f"/proc/{int(pid)}/fd/{int(number)}"
            # Opening what is something else could have an effect.
            if not os.readlink(path).startswith(f"/memfd:{NAME} "):
                return None
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None
        if os.pread(descriptor, NONCE, 0).hex() != nonce:
            os.close(descriptor)
            return None
        return cls(descriptor, limit)

    def copy(self, segment: protocol.Segment) -> Copying:
        """Copy a payload, slice by slice. Raises `UnexpectedResponse` if it can't be there."""
        self._check(segment)
        at = segment.offset
        pause = at + SLICE
        parts = []
        for size, form in zip(segment.sizes, (Form.BYTES, *segment.forms), strict=True):
            landing = Landing(form, size)
            while landing.left:
                if at >= pause:
                    yield
                    pause = at + SLICE
                with landing.room(SLICE) as room:
                    self._fill(room, at)
                    at += len(room)
            parts.append(landing.take())
        return Payload(parts[0], tuple(parts[1:]))

    def _check(self, segment: protocol.Segment) -> None:
        if len(segment.sizes) != len(segment.forms) + 1:
            raise UnexpectedResponse(
                f"a segment has {len(segment.sizes)} parts and {len(segment.forms)} forms"
            )
        if len(segment.sizes) > MOST_BUFFERS + 1:
            raise UnexpectedResponse(f"a segment has {len(segment.sizes):,} parts")
        size = sum(segment.sizes)
        if size > self._limit:
            raise UnexpectedResponse(f"a segment of {size:,} bytes exceeds {self._limit:,}")
        if segment.offset + size > self._held():
            raise UnexpectedResponse("a segment reaches beyond the end of the peer's arena")

    def _held(self) -> int:
        return os.fstat(self._descriptor).st_size if self._descriptor >= 0 else 0

    def _fill(self, room: memoryview, at: int) -> None:
        filled = 0
        while filled < len(room):
            with room[filled:] as rest:  # No view may be left in what is raised (see `Landing`).
                held = self._descriptor >= 0
                read = os.preadv(self._descriptor, [rest], at + filled) if held else 0
            if not read:
                raise UnexpectedResponse("the peer's arena was cut off")
            filled += read

    def close(self) -> None:
        """Let go of it."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class Shared(NamedTuple):
    """What two processes share: the arena of this one and a window on the other's."""

    arena: Arena
    window: Window

    @classmethod
    def accept(cls, offer: str, *, largest_in: int, largest_out: int) -> Shared | None:
        """Answer an offer; None if it can't be taken. The sizes are of payloads, in bytes."""
        window = Window.open(offer, largest_in)
        if window is None:
            return None
        arena = Arena.create(ROOM * largest_out)
        if arena is None:
            window.close()
            return None
        return cls(arena, window)

    def close(self) -> None:
        """Let go of both."""
        self.arena.close()
        self.window.close()


async def in_turns(steps: Generator[None, None, T]) -> T:
    """Take `steps` one after the other, the loop running in between. Returns what they do."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value
        await pause(TURNS)


def _ignore() -> None:
    pass
