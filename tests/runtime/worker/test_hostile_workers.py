"""Workers that say anything at all, and what becomes of the calls of their client."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import wire_routines as routines
from tests.runtime.worker import hostile
from tests.runtime.worker.peers import call, connected, task_of
from wool import protocol
from wool.protocol import RequestBatch
from wool.runtime.worker import call as call_module
from wool.runtime.worker import connection as connection_module
from wool.runtime.worker import session as session_module

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from wool.runtime.worker.connection import WorkerConnection

GRACE = 0.05
"""Seconds that callers here are patient."""

DEADLINE = 10.0
"""Seconds within which calls end on a machine that is busy, with no more than that patience."""


class Scenario:
    """A worker that answers what it hears with what it was told to, whatever that is."""

    def __init__(self, versions: Any, offer: str | None, answers: list[bytes], ends: bool) -> None:
        self._metadata = (*versions, *([(protocol.ARENA_KEY, offer)] if offer else []))
        self._answers = answers
        self._ends = ends

    async def dispatch(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        await context.send_initial_metadata(self._metadata)
        answers = iter(self._answers)
        async for batch in requests:
            if any(frame.HasField("task") for frame in RequestBatch.FromString(batch).frames):
                for answer in answers:
                    yield answer
                if self._ends:
                    return

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        server = grpc.aio.server()
        handler: grpc.RpcMethodHandler[bytes, bytes]
        handler = grpc.stream_stream_rpc_method_handler(self.dispatch)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(protocol.SERVICE, {"dispatch": handler}),)
        )
        with tempfile.TemporaryDirectory(prefix="w", dir="/tmp") as directory:
            server.add_insecure_port(f"unix:{directory}/s")
            await server.start()
            try:
                yield f"unix:{directory}/s"
            finally:
                await server.stop(0)


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # What is logged holds sessions, and they their channels.
    monkeypatch.setattr(call_module, "CANCEL_GRACE", GRACE)
    monkeypatch.setattr(call_module, "WITHDRAW_GRACE", GRACE)
    monkeypatch.setattr(session_module, "FAREWELL", GRACE)
    monkeypatch.setattr(connection_module, "OPEN_TIMEOUT", 10 * GRACE)
    monkeypatch.setattr(connection_module, "REFUSAL_TIMEOUT", GRACE)


async def result_of(connection: WorkerConnection) -> Any:
    return await call(connection, routines.echo, "asked")


async def stream_of(connection: WorkerConnection, prefetch: int) -> list[Any]:
    task = task_of(routines.talk, "asked")
    task.prefetch = prefetch
    stream = await connection.dispatch(task, timeout=10 * GRACE)
    try:
        items = [await anext(stream)]
        items += [await (anext(stream) if prefetch else stream.asend("more")) for _ in range(3)]
        return items
    except StopAsyncIteration:
        return []
    finally:
        await stream.aclose()


async def within_patience(calling: Any) -> BaseException | None:
    """How it ends, cancelled if it doesn't by itself."""
    task = asyncio.create_task(calling)
    await asyncio.wait([task], timeout=GRACE)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=DEADLINE)
    assert done, f"{task!r} hangs"
    return asyncio.CancelledError() if task.cancelled() else task.exception()


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    versions=hostile.versions,
    offer=hostile.offers,
    answers=st.lists(hostile.response_batches, max_size=4),
    ends=st.booleans(),
)
async def test_whatever_a_worker_says_every_call_ends(
    impatience: None, versions: Any, offer: str | None, answers: list[bytes], ends: bool
) -> None:
    unhandled: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    before = asyncio.all_tasks()
    async with (
        Scenario(versions, offer, answers, ends).served() as address,
        connected(address) as connection,
    ):
        outcomes = await asyncio.gather(
            within_patience(result_of(connection)),
            within_patience(stream_of(connection, 0)),
            within_patience(stream_of(connection, 2)),
        )
    for outcome in outcomes:
        assert outcome is None or isinstance(outcome, Exception | asyncio.CancelledError)
    await asyncio.wait_for(_gone(before), DEADLINE)
    assert not unhandled


async def _gone(before: set[asyncio.Task[Any]]) -> None:
    while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
        await asyncio.wait(left, timeout=GRACE)
