"""What a session makes of what has arrived when the worker has ended the stream, and a write fails.

gRPC takes an RPC for ended once a write has failed, though what has arrived is not read: it can't
be cancelled any more, and lasts until it is.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests import wire_routines as routines
from tests.runtime.worker.peers import call, connected, frames, payload
from tests.support import eventually
from wool import protocol
from wool.protocol import RequestBatch, Response
from wool.runtime.errors import WorkerLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wool.runtime.worker.connection import WorkerConnection

CALLS = 40


class Departing:
    """A worker, on threads, that answers its first tasks at once when told to, and leaves."""

    def __init__(self, answer: Callable[[int], bytes]) -> None:
        self._answer = answer
        self._leave = threading.Event()
        self._left = threading.Event()

    def dispatch(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        assert context.add_callback(self._left.set)
        context.send_initial_metadata(protocol.versions())
        calls: list[int] = []
        while len(calls) < CALLS:
            batch = RequestBatch.FromString(next(requests))
            calls += [frame.call for frame in batch.frames if frame.HasField("task")]
        self._leave.wait(10)
        yield from map(self._answer, calls)

    def leave(self) -> None:
        """Returns when it has left."""
        self._leave.set()
        assert self._left.wait(10)

    @contextmanager
    def served(self) -> Iterator[str]:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]
        handlers = {"dispatch": grpc.stream_stream_rpc_method_handler(self.dispatch)}
        with ThreadPoolExecutor(1) as threads, tempfile.TemporaryDirectory(dir="/tmp") as directory:
            server = grpc.server(threads)
            handler = grpc.method_handlers_generic_handler(protocol.SERVICE, handlers)
            server.add_generic_rpc_handlers((handler,))
            server.add_insecure_port(f"unix:{directory}/s")
            server.start()
            try:
                yield f"unix:{directory}/s"
            finally:
                server.stop(0).wait()


async def part(connection: WorkerConnection, worker: Departing) -> list[asyncio.Task[Any]]:
    """Calls, the worker's leaving before any answer is read, and one more call, which fails."""
    calls = [asyncio.create_task(call(connection, routines.noop)) for _ in range(CALLS)]
    await eventually(lambda: sent(connection) == CALLS)
    worker.leave()  # This loop reads nothing meanwhile.
    return [*calls, asyncio.create_task(call(connection, routines.noop))]


def sent(connection: WorkerConnection) -> int:
    session = connection._link.ready if connection._link is not None else None
    return 0 if session is None else sum(c.stage.name == "SENT" for c in session._calls.values())


def result(number: int) -> bytes:
    return frames(Response(call=number, result=payload(number))).SerializeToString()


def misplaced(number: int) -> bytes:
    return frames(Response(call=number)).SerializeToString()


async def test_what_had_arrived_is_heard() -> None:
    worker = Departing(result)
    with worker.served() as address:
        async with connected(address) as connection:
            *answered, late = await asyncio.gather(
                *await part(connection, worker), return_exceptions=True
            )
    assert answered == [*range(1, CALLS + 1)]
    assert isinstance(late, WorkerLost)
    assert "closed the connection without a farewell" in str(late)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(misplaced, "of no kind known here"), (lambda number: b"\xff", "is no message")],
)
async def test_what_can_not_be_taken(
    answer: Callable[[int], bytes], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of gRPC's stays behind, which `task_check` sees to."""
    caplog.set_level(logging.CRITICAL)  # What is logged holds the channel.
    worker = Departing(answer)
    with worker.served() as address:
        async with connected(address) as connection:
            outcomes = await asyncio.gather(*await part(connection, worker), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {WorkerLost}
    assert all(reason in str(outcome) for outcome in outcomes)


@pytest.mark.parametrize("turns", range(12))
async def test_connection_closed_meanwhile(turns: int) -> None:
    """However far the write has failed."""
    worker = Departing(result)
    with worker.served() as address:
        async with connected(address) as connection:
            calls = await part(connection, worker)
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.wait_for(connection.close(), 10)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
    kinds = {type(outcome) for outcome in outcomes}
    assert kinds <= {int, asyncio.CancelledError, WorkerLost}
