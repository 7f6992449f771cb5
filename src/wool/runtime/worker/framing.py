"""What both halves of a session do with frames: queue them, cut large payloads, put them together.

Small frames leave in the order they came. A payload over `CHUNK` bytes leaves in pieces, about
`CHUNK` bytes to a batch, large payloads taking turns; its frame follows the last piece. So no
message is much larger than `BATCH` and `CHUNK`, and a small frame waits for one message, not for a
large payload.
Frames of one call keep their order because a call has one payload under way at most.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from wool.runtime.errors import UnexpectedResponse
from wool.runtime.serializer import Payload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wool import protocol

CHUNK = 256 * 1024
BATCH = 512 * 1024
HIGH_WATER = 4 * 1024 * 1024
"""Bytes that may wait to be written in small frames; above, whoever has more to send waits too.

Of large payloads as much may wait as the largest may be, and small frames don't wait for them.
"""

TERMINAL = frozenset({"nack", "result", "done", "exception"})
"""The kinds of response that are a call's last."""

OVERHEAD = 256
"""What a queued frame counts for, in bytes, besides its payload."""

PIECE_OVERHEAD = 16
"""What a piece of a large payload counts for in a batch, in bytes, besides its data."""


class Frame(Protocol):
    """A `Request` or a `Response`."""

    call: int

    @property
    def chunk(self) -> protocol.Chunk: ...


class Batch(Protocol):
    """A `RequestBatch` or a `ResponseBatch`."""

    @property
    def frames(self) -> Any: ...


@dataclass(slots=True, eq=False)
class Outgoing:
    """A frame that waits to be written: its kind, and the body or the payload it carries."""

    call: int
    kind: str
    payload: Payload | None = None
    body: Any = True
    weight: int = 0
    """Bytes that its frame holds besides a payload."""
    over: bool = False
    """Whether it has left, or is to be left out."""
    size: int = field(init=False)
    """Bytes of it that wait to be written."""
    large: bool = field(init=False)

    def __post_init__(self) -> None:
        payload = self.payload.size if self.payload is not None else 0
        self.size = OVERHEAD + self.weight + payload
        self.large = payload > CHUNK


class Outbox:
    """What waits to be written to one stream. `build` makes a frame of what was queued.

    `small` and `large` are the bytes that wait in small frames and in large payloads.
    """

    def __init__(self, build: Callable[[Any, Outgoing], None]) -> None:
        self.small = 0
        self.large = 0
        self._build = build
        self._small: deque[Outgoing] = deque()
        self._large: deque[tuple[Outgoing, Iterator[tuple[int, int, memoryview]]]] = deque()

    def __bool__(self) -> bool:
        return bool(self._small or self._large)

    @property
    def size(self) -> int:
        """The bytes that wait."""
        return self.small + self.large

    def put(self, item: Outgoing) -> None:
        self._count(item, item.size)
        if item.payload is not None and item.large:
            self._large.append((item, _pieces(item.payload)))
        else:
            self._small.append(item)

    def drop(self, item: Outgoing) -> None:
        """Leave out what has not been written of it."""
        if not item.over:
            item.over = True
            self._count(item, -item.size)

    def _count(self, item: Outgoing, size: int) -> None:
        if item.large:
            self.large += size
        else:
            self.small += size

    def fill(self, batch: Batch) -> list[Outgoing]:
        """Put into `batch` what is next. Returns what has begun to leave with it."""
        begun = []
        size = 0
        while self._small and size < BATCH:
            item = self._small.popleft()
            if item.over:
                continue
            size += item.size
            self._finish(batch, item)
            begun.append(item)
        while self._large:
            item, pieces = self._large.popleft()
            if not item.over:
                self._fill_large(batch, item, pieces)
                begun.append(item)
                break
        return begun

    def _fill_large(
        self, batch: Batch, item: Outgoing, pieces: Iterator[tuple[int, int, memoryview]]
    ) -> None:
        room = CHUNK
        for part, size, data in pieces:
            frame = batch.frames.add()
            frame.call = item.call
            frame.chunk.part = part
            frame.chunk.size = size
            frame.chunk.data = bytes(data)
            item.size -= len(data)
            self.large -= len(data)
            room -= len(data) + PIECE_OVERHEAD
            if room <= 0:
                self._large.append((item, pieces))
                return
        self._finish(batch, item)

    def _finish(self, batch: Batch, item: Outgoing) -> None:
        self.drop(item)
        frame = batch.frames.add()
        frame.call = item.call
        self._build(frame, item)
        item.payload = item.body = None  # A call may last; what it was sent need not.


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


def _pieces(payload: Payload) -> Iterator[tuple[int, int, memoryview]]:
    for part, content in enumerate((payload.data, *payload.buffers)):
        view = memoryview(content).cast("B")
        for start in range(0, max(len(view), 1), CHUNK):
            yield part, len(view), view[start : start + CHUNK]


def write_payload(message: protocol.Payload, payload: Payload) -> None:
    """Put a payload into its message, unless it goes ahead in pieces."""
    if payload.size > CHUNK:
        message.chunked = True
        return
    message.data = bytes(payload.data)
    if payload.buffers:
        message.buffers.extend(map(bytes, payload.buffers))


class Assemblies:
    """Payloads under way from the peer, by call.

    `limit` is the largest one, in bytes; a piece that doesn't fit raises `UnexpectedResponse`.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._assemblies: dict[int, _Assembly] = {}

    def add(self, call: int, chunk: protocol.Chunk) -> None:
        assembly = self._assemblies.setdefault(call, _Assembly())
        if chunk.part == len(assembly.parts) and assembly.complete:
            if assembly.size + chunk.size > self._limit:
                self.discard(call)
                raise UnexpectedResponse(f"payload of call {call} exceeds {self._limit:,} bytes")
            assembly.begin(chunk.size)
        if chunk.part != len(assembly.parts) - 1 or not assembly.append(chunk.data):
            self.discard(call)
            raise UnexpectedResponse(f"misplaced chunk of call {call}")

    def discard(self, call: int) -> bool:
        """Forget what came of it; tells whether anything had."""
        return self._assemblies.pop(call, None) is not None

    def take(self, call: int, message: protocol.Payload) -> Payload:
        """The payload that a frame of `call` carries or refers to."""
        if not message.chunked:
            return Payload(message.data, tuple(message.buffers))
        assembly = self._assemblies.pop(call, None)
        if assembly is None or not assembly.complete:
            raise UnexpectedResponse(f"payload of call {call} is incomplete")
        return Payload(assembly.parts[0], tuple(assembly.parts[1:]))


class _Assembly:
    """The parts of one payload, the last of them filled up to `filled`."""

    __slots__ = ("filled", "parts", "size")

    def __init__(self) -> None:
        self.parts: list[bytearray] = []
        self.filled = 0
        self.size = 0

    @property
    def complete(self) -> bool:
        return not self.parts or self.filled == len(self.parts[-1])

    def begin(self, size: int) -> None:
        self.parts.append(bytearray(size))
        self.filled = 0
        self.size += size

    def append(self, data: bytes) -> bool:
        """Tells whether it fits."""
        end = self.filled + len(data)
        if end > len(self.parts[-1]):
            return False
        self.parts[-1][self.filled : end] = data
        self.filled = end
        return True
