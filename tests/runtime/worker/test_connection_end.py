"""How connections part: from workers that can't be reached, and from sessions that others share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

import wool
from tests import wire_routines as routines
from tests.runtime.worker.peers import Scripted, call, connected, served, task_of, working
from tests.support import eventually
from wool import WorkerMetadata, WorkerProxy
from wool.runtime.worker.connection import WorkerConnection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.runtime.worker.peers import Dialogue
    from wool.protocol import ResponseBatch


async def silent(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
    await dialogue.end()
    return
    yield


class Counting(Scripted):
    """Counts the RPCs that have come and those that are over; answers none."""

    def __init__(self) -> None:
        super().__init__(silent)
        self.come = self.over = 0

    async def dispatch(self, requests: Any, context: Any) -> AsyncIterator[ResponseBatch]:
        self.come += 1
        context.add_done_callback(self._count)
        await asyncio.Event().wait()
        yield NotImplemented

    def _count(self, context: object) -> None:
        self.over += 1


async def test_opening_that_is_interrupted_ends_its_rpc() -> None:
    """A19: once, wherever it was interrupted."""
    worker = Counting()
    async with served(worker) as address:
        connection = WorkerConnection(address)
        waiting = asyncio.create_task(call(connection, routines.noop))
        await eventually(lambda: worker.come == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert worker.over == 0  # Others may be waiting for it.
        await connection.close()
        await eventually(lambda: worker.over == 1)
        assert worker.come == 1


async def test_one_of_two_connections_closed_at_once() -> None:
    """Its own calls are cancelled; those of the other go on over the session they share."""
    async with working() as worker, connected(worker.address) as staying:
        leaving = WorkerConnection(worker.address)
        kept = await staying.dispatch(task_of(routines.sleep, "kept"))
        cut = asyncio.create_task(call(leaving, routines.sleep, "cut"))
        stream = await leaving.dispatch(task_of(routines.count, 10, "stream"))
        assert await anext(stream) == 0
        await eventually(lambda: {"kept started", "cut started"} <= {*routines.log})

        await leaving.close()

        with pytest.raises(asyncio.CancelledError, match="was running when its pool was left"):
            await cut
        await eventually(lambda: {"cut ended", "stream ended"} <= {*routines.log})
        assert "kept ended" not in routines.log
        await call(staying, routines.noop)
        await kept.aclose()


async def test_one_of_two_connections_closed_in_time() -> None:
    """Its calls end, and only they are waited for."""
    async with working() as worker, connected(worker.address) as staying:
        leaving = WorkerConnection(worker.address)
        kept = await staying.dispatch(task_of(routines.sleep, "longer"))
        ending = asyncio.create_task(call(leaving, routines.nap, 0.2))
        await eventually(lambda: worker.service._sessions.unanswered == 2)
        await leaving.close(timeout=30)
        assert await ending == 0.2
        await kept.aclose()


async def test_unreachable_worker_is_benched() -> None:
    """Its slot goes to the next one, and who waited for a worker gets that."""
    async with working() as worker:
        dead, alive = (
            WorkerMetadata(uid=uuid4(), address=address, pid=1, version=wool.__version__)
            for address in ("unix:/nowhere/s", worker.address)
        )
        async with WorkerProxy(workers=[dead, alive], lease=1) as proxy:
            await eventually(lambda: proxy.workers == [dead])
            with pytest.raises(wool.NoWorkersAvailable):
                await routines.noop()
            assert proxy.workers == [alive]
            await routines.noop()


async def test_worker_that_has_parted_is_benched() -> None:
    async with working() as worker:
        metadata = WorkerMetadata(
            uid=uuid4(), address=worker.address, pid=1, version=wool.__version__
        )
        async with WorkerProxy(workers=[metadata]) as proxy:
            await routines.noop()
            await worker.service.stop(wool.protocol.StopRequest(timeout=0))
            await eventually(lambda: not proxy.workers)


@pytest.mark.parametrize("steps", range(8))
async def test_closing_that_is_cancelled_cancels_what_runs_at_once(steps: int) -> None:
    async with working() as (_, address):
        connection = WorkerConnection(address)
        running = await connection.dispatch(task_of(routines.sleep, f"cancelled {steps}"))
        closing = asyncio.create_task(connection.close(timeout=None))
        for _ in range(steps):
            await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        if steps:
            names = {task.get_name() for task in asyncio.all_tasks()}
            assert "wool session writer" not in names
            with pytest.raises(asyncio.CancelledError):
                await anext(running)
        await connection.close()
