"""A worker's stream to itself, for calls that its routines make and that it gets to run.

Both halves of such a session are on the routine loop. Where gRPC would let that loop go on, while a
large payload is under way, so does this.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from wool.runtime.errors import UnexpectedResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from wool import protocol


logger = logging.getLogger("wool.service")


class StreamLike(Protocol):
    """What a session uses of a gRPC call."""

    def write(self, batch: protocol.RequestBatch, /) -> Awaitable[None]: ...

    def done_writing(self) -> Awaitable[None]: ...

    def __aiter__(self) -> AsyncIterator[protocol.ResponseBatch | None]: ...

    def cancel(self) -> bool: ...


class ServerHalf(Protocol):
    """What serves the stream, on the same event loop."""

    async def take(self, batch: protocol.RequestBatch) -> None: ...

    def end_of_input(self) -> None: ...

    def batches(self) -> AsyncIterator[protocol.ResponseBatch]: ...

    def lose(self) -> None: ...


class Loopback:
    """What a client's session uses of a gRPC call, without gRPC.

    Batches are handed over as they are; what is in them is pickled all the same, and so a copy.
    `close` is called once, when the stream is over.
    """

    def __init__(self, server: ServerHalf, close: Callable[[], object]) -> None:
        self._server = server
        self._batches = server.batches()
        self._close = close
        self._over = False

    async def write(self, batch: protocol.RequestBatch) -> None:
        """Raises `asyncio.InvalidStateError` if the stream is over, as gRPC does."""
        if self._over:
            raise asyncio.InvalidStateError("the stream is over")
        try:
            await self._server.take(batch)
        except UnexpectedResponse as exc:
            logger.warning("A routine's session with its own worker is cut off: %s", str(exc))
            self.cancel()
        await _breathe(batch)

    async def done_writing(self) -> None:
        self._server.end_of_input()

    async def __aiter__(self) -> AsyncIterator[protocol.ResponseBatch]:
        async for batch in self._batches:
            await _breathe(batch)
            yield batch
        self.cancel()

    def cancel(self) -> bool:
        """End it, in whatever state it is. Tells whether that has ended it."""
        if self._over:
            return False
        self._over = True
        self._server.lose()
        self._close()
        return True


async def _breathe(batch: protocol.RequestBatch | protocol.ResponseBatch) -> None:
    """Let others run after a piece of a large payload."""
    if batch.frames and batch.frames[-1].HasField("chunk"):
        await asyncio.sleep(0)
