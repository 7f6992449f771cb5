"""How a worker's service ends: it drains, cancels, gives up, and loses no call not begun."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests import wire_routines as routines
from tests.runtime.worker.peers import Serving, call, connected, raw, task_frame, working
from tests.support import eventually
from wool import protocol
from wool.runtime.errors import TransientRpcError, WorkerLost
from wool.runtime.worker import service as service_module
from wool.runtime.worker.base import ChannelOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture(autouse=True)
def quiet() -> None:
    routines.log.clear()
    routines.gates.clear()


@pytest.fixture
async def worker() -> AsyncIterator[Serving]:
    async with working() as worker:
        yield worker


async def stop(worker: Serving, timeout: float) -> None:
    await worker.service.stop(protocol.StopRequest(timeout=timeout))


def begin(coroutine: Any) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(coroutine)


async def running(key: str) -> None:
    await eventually(lambda: f"{key} started" in routines.log)


async def test_stop_at_once(worker: Serving) -> None:
    async with connected(worker.address) as connection:
        task = begin(call(connection, routines.sleep, "stop", 0.2))
        await running("stop")
        await stop(worker, 0)
        assert routines.log == ["stop started", "stop ended"]
        with pytest.raises(asyncio.CancelledError):
            await task
    assert worker.service.stopping.is_set()
    assert worker.service.stopped.is_set()
    await worker.service.stopped.wait()


@pytest.mark.parametrize("timeout", [30, -1])
async def test_stop_drains(worker: Serving, timeout: float) -> None:
    """What runs ends, and what comes meanwhile is refused."""
    async with connected(worker.address) as connection:
        task = begin(call(connection, routines.nap, 0.5))
        await eventually(lambda: worker.service._sessions.unanswered)
        stopping = begin(stop(worker, timeout))
        await eventually(worker.service.stopping.is_set)
        with pytest.raises(TransientRpcError, match="Worker service is shutting down"):
            await call(connection, routines.noop)
        async with connected(worker.address, options=ChannelOptions(compression=1)) as late:
            with pytest.raises(TransientRpcError, match="Worker service is shutting down"):
                await call(late, routines.noop)
        assert not stopping.done()
        assert await task == 0.5
        await stopping


async def test_stop_cancels_what_has_not_ended_in_time(worker: Serving) -> None:
    async with connected(worker.address) as connection:
        task = begin(call(connection, routines.sleep, "late"))
        await running("late")
        await stop(worker, 0.2)
        assert routines.log == ["late started", "late ended"]
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("first", [-1, 3600])
@pytest.mark.parametrize("at_once", [True, False])
async def test_stop_shortened_by_another(worker: Serving, first: float, at_once: bool) -> None:
    """Also if both come before the first has begun."""
    async with connected(worker.address) as connection:
        task = begin(call(connection, routines.sleep, "shortened"))
        await running("shortened")
        stops = [begin(stop(worker, first))]
        if not at_once:
            await eventually(lambda: worker.service._drain is not None)
        stops.append(begin(stop(worker, 0.1)))
        stops.append(begin(stop(worker, 3600)))
        await asyncio.gather(*stops)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_stop_gives_up_on_a_routine_that_ignores_cancellation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service_module, "FAREWELL", 0.3)
    async with working(grace=0.3) as worker, connected(worker.address) as connection:
        task = begin(call(connection, routines.insist, "insists", 1))
        await running("insists")
        await stop(worker, 0)
        assert "Routines still run 0.3 s after they were cancelled" in caplog.text
        with pytest.raises(WorkerLost):
            await task


async def test_stop_while_the_loop_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has not taken is given back; what blocks it is lost."""
    monkeypatch.setattr(service_module, "FAREWELL", 0.3)
    async with working(grace=0.3) as worker, connected(worker.address) as connection:
        blocking = begin(call(connection, routines.block, "blocked"))
        await running("blocked")
        behind = begin(call(connection, routines.noop))
        await eventually(lambda: [s for s in worker.service._sessions if s._exchange.pending])
        stopping = begin(stop(worker, 0))
        with pytest.raises(TransientRpcError, match="it was withdrawn before it ran"):
            await behind
        with pytest.raises(WorkerLost, match="the worker has stopped"):
            await blocking
        routines.gates["blocked"].set()
        await stopping


async def test_tasks_sent_to_a_worker_that_has_said_farewell(worker: Serving) -> None:
    """They are refused, not lost."""
    async with raw(worker.address) as client:
        await client.write(task_frame(1, routines.noop))
        await client.reply(1)
        stopping = begin(stop(worker, 0))
        assert (await client.stream.read()).last
        await client.write(task_frame(2, routines.noop))
        assert (await client.reply(2)).nack.reason == "Worker service is shutting down"
        await client.write(last=True)
        await client.stream.done_writing()
        assert await client.ended() is grpc.StatusCode.OK
        await stopping


async def test_calls_in_a_hail_while_the_worker_stops() -> None:
    """A call has run, or is refused: none is lost that has not begun."""
    async with working() as worker, connected(worker.address) as connection:
        ran = 0

        async def hail() -> None:
            nonlocal ran
            while True:
                await call(connection, routines.noop)
                ran += 1

        callers = [begin(hail()) for _ in range(50)]
        await eventually(lambda: ran > 500)
        await stop(worker, 10)
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {TransientRpcError}
