"""A worker's stream to itself, for calls that its routines make and that it gets to run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from wool import protocol


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
        await self._server.take(batch)

    async def done_writing(self) -> None:
        self._server.end_of_input()

    async def read(self) -> protocol.ResponseBatch | None:
        """What comes next; None at the end."""
        try:
            return await anext(self._batches)
        except StopAsyncIteration:
            self.cancel()
            return None

    def cancel(self) -> None:
        """End it, in whatever state it is."""
        if not self._over:
            self._over = True
            self._server.lose()
            self._close()
