"""The routine loop and what runs on it, in a worker's service in this process."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests import wire_routines as routines
from tests.runtime.worker.peers import Serving, call, connected, task_of, working
from tests.support import eventually
from wool import protocol
from wool.runtime.errors import TransientRpcError
from wool.runtime.worker.executor import RoutineLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from wool.runtime.worker.connection import WorkerConnection


@pytest.fixture(autouse=True)
def quiet() -> None:
    routines.log.clear()
    routines.gates.clear()


@pytest.fixture
async def worker() -> AsyncIterator[Serving]:
    async with working() as worker:
        yield worker


@pytest.fixture
async def connection(worker: Serving) -> AsyncIterator[WorkerConnection]:
    async with connected(worker.address) as connection:
        yield connection


@pytest.fixture
def no_cyclic_gc() -> Any:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def test_routines_run_on_one_thread_of_their_own(connection: WorkerConnection) -> None:
    """A55."""
    idents = {await call(connection, ident) for _ in range(20)}
    assert len(idents) == 1
    assert idents.isdisjoint({threading.get_ident()})


async def ident() -> int:
    return threading.get_ident()


async def test_routine_that_blocks_keeps_no_request_to_the_service_waiting(
    worker: Serving, connection: WorkerConnection
) -> None:
    blocking = asyncio.create_task(call(connection, routines.block, "blocks"))
    await eventually(lambda: "blocks started" in routines.log)
    stopping = asyncio.create_task(connection.stop(timeout=-1))
    await eventually(worker.service.stopping.is_set)
    with pytest.raises(TransientRpcError, match="shutting down"):
        await call(connection, routines.noop)
    routines.gates["blocks"].set()
    assert await blocking == "blocks"
    await stopping


# Ways to end


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_routine_that_raises_what_ends_a_process(
    connection: WorkerConnection, kind: type[BaseException]
) -> None:
    """A.8 row 6: it ends its call alone."""
    with pytest.raises(RuntimeError, match=kind.__name__):
        await call(connection, routines.throw, kind)
    assert await call(connection, routines.echo, "good") == "good"


async def test_task_of_a_routine_that_raises_system_exit(
    connection: WorkerConnection, caplog: pytest.LogCaptureFixture
) -> None:
    """It doesn't end the loop, nor what else runs there."""
    with caplog.at_level(logging.ERROR, "wool.executor"):
        other = asyncio.create_task(call(connection, routines.nap, 0.2))
        assert await call(connection, routines.spawn_exit) == "still here"
        assert await other == 0.2
    assert "tried to end the worker" in caplog.text
    assert isinstance(routines.kept.pop().exception(), SystemExit)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
async def test_callback_of_a_routine_that_raises_what_ends_a_process(
    connection: WorkerConnection, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "wool.executor"):
        other = asyncio.create_task(call(connection, routines.nap, 0.1))
        assert await call(connection, routines.spawn_callback, kind) == "still here"
        assert await other == 0.1
    assert "tried to end the worker" in caplog.text


async def test_routine_that_stops_its_loop(connection: WorkerConnection) -> None:
    other = asyncio.create_task(call(connection, routines.nap, 0.1))
    assert await call(connection, routines.stop_loop) == "still here"
    assert await other == 0.1


FATAL = pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
WHEN = pytest.mark.parametrize("when", ["pickled", "unpickled"])


@FATAL
async def test_argument_that_raises_what_ends_a_process(
    connection: WorkerConnection, kind: type[BaseException]
) -> None:
    """Pickled, it raises in whoever makes the call, as it would in a call of `pickle.dumps`."""
    with pytest.raises(kind, match="sprung"):
        await call(connection, routines.echo, routines.Trap(kind, "pickled"))
    with pytest.raises(RuntimeError, match=f"unpickling raised {kind.__name__}: sprung"):
        await call(connection, routines.echo, routines.Trap(kind, "unpickled"))
    assert await call(connection, routines.echo, "good") == "good"


@FATAL
@WHEN
@pytest.mark.parametrize("routine", [routines.set_trap, routines.set_traps])
async def test_value_that_raises_what_ends_a_process(
    connection: WorkerConnection, routine: Any, kind: type[BaseException], when: str
) -> None:
    by = "routine" if when == "pickled" else "unpickling"
    with pytest.raises(RuntimeError, match=f"{by} raised {kind.__name__}: sprung"):
        await call(connection, routine, kind, when)
    assert await call(connection, routines.echo, "good") == "good"


@FATAL
@WHEN
async def test_exception_that_raises_what_ends_a_process(
    connection: WorkerConnection, kind: type[BaseException], when: str
) -> None:
    """Its type arrives, if not what it has to say."""
    with pytest.raises(routines.TrapError):
        await call(connection, routines.throw_trap, kind, when)
    assert await call(connection, routines.echo, "good") == "good"


@FATAL
@WHEN
async def test_what_a_stream_is_sent_raises_what_ends_a_process(
    connection: WorkerConnection, kind: type[BaseException], when: str
) -> None:
    trap = routines.Trap(kind, when)
    stream = await connection.dispatch(task_of(routines.parrot))
    assert await anext(stream) is None
    with pytest.raises(kind if when == "pickled" else RuntimeError, match="sprung"):
        await stream.asend(trap)
    await stream.aclose()
    stream = await connection.dispatch(task_of(routines.parrot))
    assert await anext(stream) is None
    with pytest.raises(routines.TrapError):
        await stream.athrow(routines.TrapError(kind, when))
    await stream.aclose()
    assert await call(connection, routines.echo, "good") == "good"


async def test_routine_that_cancels_itself(connection: WorkerConnection) -> None:
    """The caller sees the cancellation, and is not being cancelled. A20."""
    with pytest.raises(asyncio.CancelledError):
        await call(connection, routines.throw, asyncio.CancelledError)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


# What a dispatch leaves behind


@pytest.mark.parametrize("way", ["result", "exception", "stream", "closed", "cancelled"])
async def test_nothing_of_a_dispatch_survives_it(
    connection: WorkerConnection, way: str, no_cyclic_gc: None
) -> None:
    """A59."""
    if way == "result":
        await call(connection, routines.hold, routines.Thing())
    elif way == "exception":
        with pytest.raises(LookupError):
            await call(connection, routines.hold, routines.Thing(), True)
    elif way == "cancelled":
        task = asyncio.create_task(call(connection, routines.hold_on, routines.Thing()))
        await eventually(lambda: "hold started" in routines.log)
        task.cancel()
        await asyncio.wait([task])
    else:
        stream = await connection.dispatch(task_of(routines.hold_stream, routines.Thing()))
        await anext(stream)
        if way == "stream":
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        await stream.aclose()
    assert len(routines.references) >= 3
    assert await call(connection, routines.survivors) == []


async def test_tasks_that_routines_leave_behind(worker: Serving) -> None:
    """A53, A61, A62: generation by generation, each entered before it is cancelled."""
    async with connected(worker.address) as connection:
        await call(connection, routines.spawn_cleanup, "family")
    await worker.service.stop(protocol.StopRequest(timeout=0))
    assert routines.log == [
        f"family {what} {depth}" for depth in (2, 1, 0) for what in ("entered", "left")
    ]
    assert all(task.done() for task in routines.kept)
    routines.kept.clear()


# The loop itself


async def test_loop_that_has_ended() -> None:
    """A54: it is closed by its own thread; what is asked of it afterwards is ignored."""
    routines_loop = RoutineLoop()
    routines_loop.start()
    assert await routines_loop.run(asyncio.sleep, 0, "ran") == "ran"

    await routines_loop.stop(1)

    assert routines_loop.loop.is_closed()
    routines_loop.post(print)
    assert await routines_loop.run(asyncio.sleep, 0, "not run") is None


async def test_loop_with_a_task_that_will_not_end() -> None:
    """A61: it is left at the deadline."""
    routines_loop = RoutineLoop()
    routines_loop.start()
    attempts = 0

    async def stay() -> None:
        nonlocal attempts
        while not routines_loop.loop.is_closed() and attempts < 1000:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                attempts += 1
                await asyncio.sleep(0.01)

    staying = asyncio.run_coroutine_threadsafe(stay(), routines_loop.loop)
    await routines_loop.run(asyncio.sleep, 0)

    await routines_loop.stop(0.3)

    assert routines_loop.loop.is_closed()
    assert attempts > 0
    assert not staying.done() or staying.cancelled()


async def test_calls_while_the_loop_is_stopped_end(worker: Serving) -> None:
    """A60: nobody waits for a loop that is gone, and two loops don't settle one future."""
    async with connected(worker.address) as connection:
        calls = [asyncio.create_task(call(connection, routines.sleep, "c")) for _ in range(20)]
        await eventually(lambda: routines.log.count("c started") == 20)
        await asyncio.gather(
            *(worker.service.stop(protocol.StopRequest(timeout=0)) for _ in range(3))
        )
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
