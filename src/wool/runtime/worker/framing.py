"""What both halves of a session do with frames: queue them, cut large payloads, put them together.

Small frames are written into the batch they leave in at once, and leave in the order they came. A
payload over `CHUNK` bytes leaves in pieces, about `CHUNK` bytes to a batch, large payloads taking
turns; its frame follows the last piece. So no message is much larger than `BATCH` and `CHUNK`, and
a small frame waits for one message, not for a large payload.
Frames of one call keep their order: a client has one payload of a call under way at most, and a
worker holds back what follows one.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from wool.runtime.errors import UnexpectedResponse
from wool.runtime.memory import Form, Landing
from wool.runtime.serializer import Payload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wool import protocol

CHUNK = 256 * 1024
BATCH = 512 * 1024
HIGH_WATER = 4 * 1024 * 1024
"""Bytes that may wait to be written in small frames; above, whoever has more to send waits too.

A client doesn't count the overhead of frames: a call without a payload takes more in its caller
than here. Of large payloads as much may wait as the largest may be, and small frames don't wait for
them.
"""

UNDER_WAY = 8
"""How many of the largest payloads may be under way from a client, in pieces.

It begins another while less than one waits, and they take turns, so that four are all there can be.
"""

DEFINITIONS = 256
"""How many callables and proxies a session keeps numbers for."""

FEW = 8
"""How many calls may be under way before a writer lets others add to what it is about to write.

A message costs much more than a frame, so those that go on now had better share one.
"""

GATHERING = 2
"""How many turns of the loop they have for that: who is ready, and whom those wake."""

TERMINAL = frozenset({"nack", "result", "done", "exception"})
"""The kinds of response that are a call's last."""

OVERHEAD = 256
"""What a frame that waits counts for, in bytes, besides its payload."""

PIECE_OVERHEAD = 16
"""What a piece of a large payload counts for in a batch, in bytes, besides its data."""


class Batch(Protocol):
    """A `RequestBatch` or a `ResponseBatch`."""

    @property
    def frames(self) -> Any: ...


B = TypeVar("B", bound=Batch)


class Piece(NamedTuple):
    """`data` belongs to the part of that number, which has `size` bytes in all."""

    part: int
    size: int
    form: Form
    data: memoryview


class LargePayload:
    """A payload that leaves in pieces, before the frame that `finish` fills in.

    `size` is how many bytes of it wait to be written. `owner` is told of when it begins to leave.
    """

    __slots__ = ("_finish", "_pieces", "after", "call", "owner", "size")

    def __init__(
        self, call: int, payload: Payload, finish: Callable[[Any], object], owner: Any = None
    ) -> None:
        self.call = call
        self.owner = owner
        self.after = 0
        self.size = payload.size
        self._finish: Callable[[Any], object] | None = finish
        self._pieces = _pieces(payload)

    def fill(self, batch: Batch) -> int:
        """Put what is next of it into `batch`. Returns how many bytes that was."""
        before = self.size
        room = CHUNK
        for piece in self._pieces:
            frame = batch.frames.add()
            frame.call = self.call
            frame.chunk.part = piece.part
            frame.chunk.size = piece.size
            frame.chunk.form = piece.form
            frame.chunk.data = bytes(piece.data)
            self.size -= len(piece.data)
            room -= len(piece.data) + PIECE_OVERHEAD
            if room <= 0:
                return before - self.size
        frame = batch.frames.add()
        frame.call = self.call
        finish, self._finish = self._finish, None  # A call may last; what it was sent need not.
        assert finish is not None
        finish(frame)
        return before - self.size

    @property
    def over(self) -> bool:
        """Whether all of it has left."""
        return self._finish is None


class _Waiting(Generic[B]):
    """A batch to be written, what it counts for in bytes, and who is to know when it leaves."""

    __slots__ = ("batch", "number", "owners", "size")

    def __init__(self, batch: B, number: int) -> None:
        self.batch = batch
        self.number = number
        self.size = 0
        self.owners: list[Any] = []


class Outbox(Generic[B]):
    """What waits to be written to one stream, in batches that `new` makes.

    `small` and `large` are the bytes that wait in small frames, `frames` of them, and in large
    payloads.
    """

    def __init__(self, new: Callable[[], B]) -> None:
        self.small = 0
        self.frames = 0
        self.large = 0
        self._new = new
        self._last = _Waiting(new(), 0)
        self._full: deque[_Waiting[B]] = deque()
        self._large: deque[LargePayload] = deque()

    def __bool__(self) -> bool:
        return self.small > 0 or bool(self._large)

    @property
    def size(self) -> int:
        """The bytes that wait."""
        return self.small + self.large

    @property
    def payloads(self) -> int:
        """The bytes that wait in small frames, without the overhead of each."""
        return self.small - OVERHEAD * self.frames

    def add(self, call: int, size: int = 0, owner: Any = None) -> Any:
        """A frame of `call`, to be filled in with `size` bytes, after all that waits.

        Its `owner`, if any, learns the batch that it is in, and its place there.
        """
        last = self._last
        if last.size >= BATCH:
            self._full.append(last)
            last = self._begin()
        size += OVERHEAD
        last.size += size
        self.small += size
        self.frames += 1
        frames = last.batch.frames
        if owner is not None:
            last.owners.append(owner)
            owner.batch = last.batch
            owner.place = len(frames)
        frame = frames.add()
        frame.call = call
        return frame

    def _begin(self) -> _Waiting[B]:
        self._last = _Waiting(self._new(), self._last.number + 1)
        return self._last

    def add_large(self, large: LargePayload) -> None:
        """Queue a large payload, with the frame that follows it, after all that waits."""
        self.large += large.size
        large.after = self._last.number
        self._large.append(large)

    def drop(self, large: LargePayload) -> None:
        """Leave out what has not been written of a large payload, and its frame."""
        if large in self._large:
            self._large.remove(large)
            self.large -= large.size

    def next(self) -> tuple[B, list[Any]]:
        """The batch to write next, and the owners of what begins to leave with it."""
        if self._full:
            waiting = self._full.popleft()
        else:
            waiting = self._last
            self._begin()
        self.small -= waiting.size
        self.frames -= len(waiting.batch.frames)
        if self._large and self._large[0].after <= waiting.number:
            large = self._large.popleft()
            if large.owner is not None:
                waiting.owners.append(large.owner)
            self.large -= large.fill(waiting.batch)
            if not large.over:
                self._large.append(large)
        return waiting.batch, waiting.owners


class Gate:
    """Lets those who have something to queue pass, in order, while less than `limit` bytes wait."""

    def __init__(self, limit: int, waiting: Callable[[], int]) -> None:
        self._limit = limit
        self._waiting = waiting
        self._granted = 0
        self._queue: deque[tuple[asyncio.Future[None], int]] = deque()

    @property
    def crowded(self) -> bool:
        """Whether one has to wait for one's turn."""
        return bool(self._queue) or self._waiting() + self._granted >= self._limit

    async def enter(self, size: int) -> None:
        """Wait for one's turn to queue that many bytes."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((turn, size))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._granted -= size
                self.advance()
            raise
        self._granted -= size

    def advance(self, *, everyone: bool = False) -> None:
        """Let pass whoever may by now."""
        while self._queue and (everyone or self._waiting() + self._granted < self._limit):
            turn, size = self._queue.popleft()
            if not turn.done():
                self._granted += size
                turn.set_result(None)


def _pieces(payload: Payload) -> Iterator[Piece]:
    for part, content in enumerate((payload.data, *payload.buffers)):
        form = Form.of(content)
        view = memoryview(content).cast("B")
        for start in range(0, max(len(view), 1), CHUNK):
            yield Piece(part, len(view), form, view[start : start + CHUNK])


async def pause(turns: int) -> None:
    """Let this event loop run what is ready, as many times over. Nothing is waited for."""
    for _ in range(turns):
        await asyncio.sleep(0)


def write_payload(message: protocol.Payload, payload: Payload | protocol.Segment) -> None:
    """Put a small payload into its message, or where a large one lies."""
    if not isinstance(payload, Payload):
        message.segment.CopyFrom(payload)
        return
    message.data = bytes(payload.data)
    if payload.buffers:
        message.buffers.extend(map(bytes, payload.buffers))
        message.forms = payload.forms


class Assemblies:
    """Payloads under way from the peer, by call.

    `limit` is the largest one, in bytes, `total` what all of them may come to, with an overhead for
    each part; a piece that doesn't fit raises `UnexpectedResponse`.
    """

    def __init__(self, limit: int, total: float = math.inf) -> None:
        self._limit = limit
        self._total = total
        self._room = total
        self._assemblies: dict[int, _Assembly] = {}

    def add(self, call: int, chunk: protocol.Chunk) -> None:
        assembly = self._assemblies.setdefault(call, _Assembly())
        if chunk.part == len(assembly.parts) and assembly.complete:
            if assembly.size + chunk.size > self._limit:
                self.discard(call)
                raise UnexpectedResponse(f"payload of call {call} exceeds {self._limit:,} bytes")
            if chunk.size + OVERHEAD > self._room:
                self.discard(call)
                raise UnexpectedResponse(f"payloads under way exceed {self._total:,} bytes")
            self._room -= chunk.size + OVERHEAD
            assembly.begin(chunk)
        if chunk.part != len(assembly.parts) - 1 or not assembly.append(chunk.data):
            self.discard(call)
            raise UnexpectedResponse(f"misplaced chunk of call {call}")

    def discard(self, call: int) -> bool:
        """Forget what came of it; tells whether anything had."""
        return self._pop(call) is not None

    def take(self, call: int, message: protocol.Payload) -> Payload:
        """The payload that a frame of `call` carries or refers to."""
        if not message.chunked:
            return Payload.received(message.data, message.buffers, message.forms)
        assembly = self._pop(call)
        if assembly is None or not assembly.parts or not assembly.complete:
            raise UnexpectedResponse(f"payload of call {call} is incomplete")
        data, *buffers = (part.take() for part in assembly.parts)
        return Payload(data, tuple(buffers))

    def _pop(self, call: int) -> _Assembly | None:
        assembly = self._assemblies.pop(call, None)
        if assembly is not None:
            self._room += assembly.size + OVERHEAD * len(assembly.parts)
        return assembly


class _Assembly:
    """The parts of one payload, all of them filled but for the last."""

    __slots__ = ("parts", "size")

    def __init__(self) -> None:
        self.parts: list[Landing] = []
        self.size = 0

    @property
    def complete(self) -> bool:
        return not self.parts or not self.parts[-1].left

    def begin(self, chunk: protocol.Chunk) -> None:
        form = chunk.form if chunk.part else Form.BYTES
        self.parts.append(Landing(form, chunk.size))
        self.size += chunk.size

    def append(self, data: bytes) -> bool:
        """Tells whether it fits."""
        part = self.parts[-1]
        if len(data) > part.left:
            return False
        with part.room(len(data)) as room:
            room[:] = data
        return True
