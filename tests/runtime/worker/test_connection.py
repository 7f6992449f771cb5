"""Connections: what is shared by whom, and workers that die, hang or are stopped, for real."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

import wool
from tests import wire_routines as routines
from tests.runtime.worker.peers import (
    LAST,
    Dialogue,
    Scripted,
    call,
    connected,
    frames,
    payload,
    served,
    settled,
    task_of,
    working,
)
from tests.support import eventually
from wool import WorkerMetadata, WorkerProxy
from wool.protocol import Response
from wool.runtime.context import RuntimeContext
from wool.runtime.errors import (
    DispatchTimeout,
    TransientRpcError,
    WorkerLost,
    WorkerUnresponsive,
)
from wool.runtime.worker.base import ChannelOptions
from wool.runtime.worker.connection import WorkerConnection, _links, _links_of
from wool.runtime.worker.local import LocalWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from wool.protocol import ResponseBatch


@asynccontextmanager
async def process() -> AsyncIterator[WorkerMetadata]:
    """A worker in a process of its own."""
    worker = LocalWorker()
    await worker.start()
    assert worker.metadata is not None
    try:
        yield worker.metadata
    finally:
        await worker.stop()


async def obliging(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
    while True:
        try:
            frame = await dialogue.kind("task")
        except StopAsyncIteration:
            break
        yield frames(Response(call=frame.call, result=payload("good")))
    yield LAST


# What is shared


async def test_one_session_for_a_loop_and_a_worker() -> None:
    """Shared by all tasks, and by several connections; it ends with the last of them."""
    servicer = Scripted(obliging)
    async with served(servicer) as address:
        first, second = WorkerConnection(address), WorkerConnection(address)
        await asyncio.gather(*(call(each, routines.noop) for each in (first, second) * 50))
        assert len(servicer.dialogues) == 1
        await first.close()
        assert await call(second, routines.noop) == "good"
        assert len(servicer.dialogues) == 1
        await second.close()
        assert not _links_of(asyncio.get_running_loop())
        await first.close()


async def test_other_options_are_another_channel() -> None:
    servicer = Scripted(obliging)
    other = ChannelOptions(max_receive_message_length=1000)
    async with (
        served(servicer) as address,
        connected(address) as first,
        connected(address, options=other) as second,
    ):
        await asyncio.gather(call(first, routines.noop), call(second, routines.noop))
        assert len(servicer.dialogues) == 2


async def test_each_loop_has_its_own_session() -> None:
    """A57: also loops in threads at the same time."""
    async with working() as worker:

        async def use() -> object:
            async with connected(worker.address) as connection:
                results = [await call(connection, routines.echo, i) for i in range(50)]
                return results == list(range(50))

        threads = (asyncio.to_thread(asyncio.run, use()) for _ in range(3))
        assert await asyncio.gather(use(), *threads) == [True] * 4


async def test_connection_of_another_loop_is_refused() -> None:
    async with working() as worker, connected(worker.address) as connection:
        await call(connection, routines.noop)

        async def misuse() -> None:
            with pytest.raises(RuntimeError, match="belongs to another event loop"):
                await call(connection, routines.noop)

        await asyncio.to_thread(asyncio.run, misuse())
        assert await call(connection, routines.echo, 1) == 1


def test_channels_of_dead_loops_are_dropped() -> None:
    """A57, A58: loops that end without closing anything, one after the other."""
    address: list[str] = []
    stop = threading.Event()

    async def serve() -> None:
        async with working() as worker:
            address.append(worker.address)
            await asyncio.to_thread(stop.wait, 60)

    async def use() -> weakref.ref[object]:
        connection = WorkerConnection(address[0])
        assert await call(connection, routines.echo, "good") == "good"
        assert len(_links) == 1
        return weakref.ref(connection._link)

    server = threading.Thread(target=asyncio.run, args=(serve(),))
    server.start()
    try:
        while not address:
            server.join(0.01)
        links = [asyncio.run(use()) for _ in range(3)]
        gc.collect()
        assert [link() for link in links[:2]] == [None, None]
    finally:
        stop.set()
        server.join()

    async def drop() -> None:
        _links_of(asyncio.get_running_loop())
        del _links[asyncio.get_running_loop()]

    asyncio.run(drop())
    assert not _links


# How it ends


async def test_closed_connection_dispatches_nothing() -> None:
    async with working() as worker, connected(worker.address) as connection:
        await call(connection, routines.noop)
        await connection.close()
        with pytest.raises(TransientRpcError, match="is closed"):
            await call(connection, routines.noop)
        assert not _links_of(asyncio.get_running_loop())


async def test_closed_while_it_opens() -> None:
    """Those who wait for it may go elsewhere; they are not cancelled."""
    ready = asyncio.Event()

    class Slow(Scripted):
        async def dispatch(self, requests: object, context: object) -> AsyncIterator[ResponseBatch]:
            await ready.wait()
            yield LAST

    async with served(Slow(obliging)) as address:
        connection = WorkerConnection(address)
        waiting = [asyncio.create_task(call(connection, routines.noop)) for _ in range(3)]
        await eventually(lambda: connection._link is not None and connection._link._opening)
        await connection.close()
        for each in waiting:
            with pytest.raises(TransientRpcError, match="was closed"):
                await each
        ready.set()


async def test_close_lets_calls_end() -> None:
    async with working() as worker:
        connection = WorkerConnection(worker.address)
        task = asyncio.create_task(call(connection, routines.nap, 0.3))
        await eventually(lambda: worker.service._sessions.unanswered)
        await connection.close(timeout=30)
        assert await task == 0.3


async def test_close_cuts_calls_off() -> None:
    async with working() as worker:
        connection = WorkerConnection(worker.address)
        task = asyncio.create_task(call(connection, routines.sleep, "cut"))
        await eventually(lambda: "cut started" in routines.log)
        await connection.close(timeout=0.05)
        with pytest.raises(asyncio.CancelledError, match="was running when its pool was left"):
            await task
        await eventually(lambda: "cut ended" in routines.log)


async def test_close_ends_streams_that_wait_for_their_consumer() -> None:
    async with working() as worker:
        connection = WorkerConnection(worker.address)
        stream = await connection.dispatch(task_of(routines.count, 3, "open"))
        assert await anext(stream) == 0
        await connection.close(timeout=30)
        assert "open ended" in routines.log
        with pytest.raises(RuntimeError, match="was open when its pool was left"):
            await anext(stream)
        with pytest.raises(KeyError):
            await stream.athrow(KeyError())
        await stream.aclose()


@pytest.mark.parametrize("timeout", [0, -1.5])
async def test_dispatch_timeout_that_is_not_positive(timeout: float) -> None:
    connection = WorkerConnection("unix:/tmp/wool-nobody/s")
    with pytest.raises(ValueError, match=f"Dispatch timeout must be positive, got {timeout}"):
        await connection.dispatch(task_of(routines.noop), timeout=timeout)


async def test_nothing_is_held_after_a_call() -> None:
    """A17, A18, A23: at every early exit."""
    async with working() as worker, connected(worker.address) as connection:
        for _ in range(100):
            await call(connection, routines.noop)
            stream = await connection.dispatch(task_of(routines.count, 3))
            await stream.aclose()
            stream = await connection.dispatch(task_of(routines.count, 3))
            await anext(stream)
            await stream.aclose()
            with pytest.raises(LookupError):
                await call(connection, routines.fail, "on purpose")
        assert connection._link is not None
        assert connection._link._session is not None
        assert not connection._link._session._calls
        assert worker.service._sessions.unanswered == 0


# Workers that die or hang


async def test_worker_killed() -> None:
    """The calls that it had are lost, with its metadata and how it died."""
    async with process() as metadata, WorkerProxy(workers=[metadata]):
        tasks = [asyncio.create_task(routines.sleep("killed")) for _ in range(5)]
        stream = routines.count(3)
        await anext(stream)
        await settled(lambda: routines.seen("killed"))
        os.kill(metadata.pid, signal.SIGKILL)
        for task in tasks:
            with pytest.raises(WorkerLost, match="killed by signal SIGKILL") as caught:
                await task
            assert caught.value.metadata == metadata
        with pytest.raises(WorkerLost, match="SIGKILL"):
            await anext(stream)


async def test_blocked_worker_gives_the_task_back_and_another_takes_it() -> None:
    """A03: a timeout doesn't evict."""
    async with process() as one, process() as other, WorkerProxy(workers=[one, other]) as proxy:
        await asyncio.gather(*(routines.noop() for _ in range(4)))
        freezing = asyncio.create_task(routines.freeze(3))
        await asyncio.sleep(0)
        with RuntimeContext(dispatch_timeout=0.2):
            for _ in range(6):
                assert await routines.echo("good") == "good"
            assert not freezing.done()
            assert len(proxy.workers) == 2
        await freezing


async def test_blocked_worker_alone() -> None:
    async with process() as metadata, WorkerProxy(workers=[metadata]) as proxy:
        await routines.noop()
        freezing = asyncio.create_task(routines.freeze(2))
        await asyncio.sleep(0)
        with RuntimeContext(dispatch_timeout=0.2):
            with pytest.raises(wool.NoWorkersAvailable, match="did not take") as caught:
                await routines.noop()
            assert isinstance(caught.value.__cause__, DispatchTimeout)
        assert len(proxy.workers) == 1
        await freezing
        assert await routines.echo("good") == "good"


async def test_worker_that_never_answers_holds_up_no_other() -> None:
    """A05."""

    async def mute(dialogue: Dialogue) -> AsyncIterator[ResponseBatch]:
        await dialogue.end()
        yield LAST

    async with served(Scripted(mute)) as stuck, working() as worker:
        metadata = [
            WorkerMetadata(uid=uuid4(), address=address, pid=1, version=wool.__version__)
            for address in (stuck, worker.address)
        ]
        async with WorkerProxy(workers=metadata):
            calls = [asyncio.create_task(routines.echo(i)) for i in range(20)]
            await eventually(lambda: sum(task.done() for task in calls) == 10)
            for task in calls:
                task.cancel()


async def test_routine_that_blocks_is_accepted_within_its_timeout() -> None:
    """It has been taken, if it can't say so itself."""
    async with process() as metadata, WorkerProxy(workers=[metadata]):
        await routines.noop()
        with RuntimeContext(dispatch_timeout=0.3):
            await routines.freeze(1)


async def test_stopped_process() -> None:
    """Neither taken nor given back, and known within a bounded time."""
    async with process() as metadata, WorkerProxy(workers=[metadata]):
        await routines.noop()
        os.kill(metadata.pid, signal.SIGSTOP)
        try:
            with RuntimeContext(dispatch_timeout=0.2):
                async with asyncio.timeout(20):
                    with pytest.raises(WorkerUnresponsive, match="did not acknowledge"):
                        await routines.noop()
        finally:
            os.kill(metadata.pid, signal.SIGCONT)
        assert await routines.echo("good") == "good"


async def test_stopped_process_before_a_session_is_open() -> None:
    async with process() as metadata:
        os.kill(metadata.pid, signal.SIGSTOP)
        try:
            async with connected(metadata.address, options=metadata.options) as connection:
                with pytest.raises(DispatchTimeout, match="had no room"):
                    await connection.dispatch(task_of(routines.noop), timeout=0.3)
        finally:
            os.kill(metadata.pid, signal.SIGCONT)


@pytest.mark.slow
async def test_frozen_peer_is_noticed_by_keepalive() -> None:
    options = wool.runtime.worker.base.WorkerOptions(
        channel=ChannelOptions(keepalive_time_ms=1000, keepalive_timeout_ms=1000),
        http2_min_recv_ping_interval_without_data_ms=500,
    )
    worker = LocalWorker(options=options)
    await worker.start()
    assert worker.metadata is not None
    try:
        async with WorkerProxy(workers=[worker.metadata]):
            task = asyncio.create_task(routines.sleep("frozen"))
            await settled(lambda: routines.seen("frozen"))
            os.kill(worker.metadata.pid, signal.SIGSTOP)
            async with asyncio.timeout(30):
                with pytest.raises(WorkerLost):
                    await task
    finally:
        os.kill(worker.metadata.pid, signal.SIGCONT)
        await worker.stop()
