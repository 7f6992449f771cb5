"""What workers say of themselves: status, health, what they run, and what blocks them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

import wool
from tests.programs import Surroundings
from tests.runtime.worker.routines import block, nap, pid, touch
from tests.support import eventually
from wool import LocalWorker, RpcError, WorkerConnection, WorkerProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
async def worker() -> AsyncIterator[LocalWorker]:
    worker = LocalWorker("a tag")
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()


@pytest.fixture
async def connection(worker: LocalWorker) -> AsyncIterator[WorkerConnection]:
    """To the worker, which is the only one that calls go to."""
    assert worker.metadata is not None
    connection = WorkerConnection(worker.metadata.address)
    async with WorkerProxy(workers=[worker.metadata]):
        yield connection
    await connection.close()


@pytest.fixture
def surroundings() -> Iterator[Surroundings]:
    with Surroundings.make() as surroundings:
        yield surroundings


@wool.routine
async def fail() -> None:
    raise LookupError("on purpose")


@wool.routine
async def numbers() -> AsyncIterator[int]:
    for number in range(10):
        await asyncio.sleep(0)
        yield number


@wool.routine
async def waits_for_numbers(path: str) -> None:
    async for _ in slowly(path):
        pass


async def slowly(path: str) -> AsyncIterator[int]:
    touch(path)
    await asyncio.Event().wait()
    yield 1


class TestStatus:
    async def test_tells_of_the_worker(
        self, worker: LocalWorker, connection: WorkerConnection
    ) -> None:
        status = await connection.status(timeout=10)
        assert status.worker == worker.metadata
        assert not status.draining
        assert 0 <= status.idle <= status.uptime < 60
        assert status.loop_lag < 1
        assert 0 < status.cpu < 60
        assert 10_000_000 < status.memory < 1_000_000_000
        assert (status.running, status.done, status.failed, status.refused) == (0, 0, 0, 0)
        assert status.tasks == ()

    async def test_counts_tasks(self, connection: WorkerConnection) -> None:
        await asyncio.gather(*(pid() for _ in range(10)))
        assert [number async for number in numbers()] == list(range(10))
        with pytest.raises(LookupError):
            await fail()
        status = await connection.status()
        assert (status.running, status.done, status.failed) == (0, 12, 1)
        assert status.sessions == 1

    async def test_counts_what_a_full_worker_refuses(self, tmp_path: Path) -> None:
        worker = LocalWorker(max_concurrent_tasks=1)
        await worker.start()
        assert worker.metadata is not None
        connection = WorkerConnection(worker.metadata.address)
        async with WorkerProxy(workers=[worker.metadata]):
            await asyncio.gather(*(pid() for _ in range(3)))
            status = await connection.status()
            assert status.refused > 0
            assert status.done == 3
        await connection.close()
        await worker.stop()

    async def test_tells_of_what_runs(self, connection: WorkerConnection, tmp_path: Path) -> None:
        napping = asyncio.create_task(nap(str(tmp_path / "nap")))
        await eventually((tmp_path / "nap.started").exists)
        waiting = asyncio.create_task(waits_for_numbers(str(tmp_path / "wait")))
        await eventually((tmp_path / "wait").exists)
        status = await connection.status(tasks=True)
        assert (status.running, status.idle) == (2, 0)
        first, second = status.tasks
        assert (first.caller, second.caller) == (None, None)
        assert 0 < second.seconds < first.seconds < 60
        assert "routines.nap:" in first.tag
        assert first.stack.splitlines()[0].endswith("in nap")
        assert "await asyncio.sleep(seconds)" in first.stack
        assert [line.split()[-1] for line in second.stack.splitlines()[::2]][:2] == [
            "waits_for_numbers",
            "slowly",
        ]
        for task in (napping, waiting):
            task.cancel()
        await asyncio.wait([napping, waiting])

    async def test_is_given_while_a_routine_blocks(
        self, connection: WorkerConnection, tmp_path: Path
    ) -> None:
        blocking = asyncio.create_task(block(str(tmp_path / "block"), 2))
        await eventually((tmp_path / "block.started").exists)
        (task,) = (await connection.status(tasks=True, timeout=1)).tasks
        assert "in block" in task.stack.splitlines()[0]
        assert task.stack.splitlines()[-2].endswith("in wait")
        await eventually(lambda: blocking.done() or None)
        assert (await connection.status()).loop_lag > 0.2

    async def test_tells_for_how_long_nothing_ran(self, connection: WorkerConnection) -> None:
        await pid()
        first = await connection.idle()
        assert 0 < first < await connection.idle(timeout=5)

    async def test_of_nobody(self) -> None:
        connection = WorkerConnection("unix:/nonexistent/s")
        with pytest.raises(RpcError):
            await connection.status(timeout=5)
        with pytest.raises(ValueError, match="Timeout must be positive, got 0"):
            await connection.status(timeout=0)


class TestHealth:
    """Seen by gRPC's own client."""

    async def test_of_a_worker_that_serves(self, worker: LocalWorker) -> None:
        async with grpc.aio.insecure_channel(str(worker.address)) as channel:
            for service in ("", "wool.protocol.Worker"):
                answer = await HealthStub(channel).Check(HealthCheckRequest(service=service))
                assert answer.status == HealthCheckResponse.SERVING

    async def test_of_a_service_that_is_not_known(self, worker: LocalWorker) -> None:
        async with grpc.aio.insecure_channel(str(worker.address)) as channel:
            stub = HealthStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match="unknown service 'other'") as raised:
                await stub.Check(HealthCheckRequest(service="other"))
            assert raised.value.code() is grpc.StatusCode.NOT_FOUND
            watch = stub.Watch(HealthCheckRequest(service="other"))
            assert (await watch.read()).status == HealthCheckResponse.SERVICE_UNKNOWN
            watch.cancel()

    async def test_of_a_worker_that_drains(self, tmp_path: Path) -> None:
        worker = LocalWorker()
        await worker.start()
        assert worker.metadata is not None
        async with grpc.aio.insecure_channel(worker.metadata.address) as channel:
            watch = HealthStub(channel).Watch(HealthCheckRequest())
            assert (await watch.read()).status == HealthCheckResponse.SERVING
            async with WorkerProxy(workers=[worker.metadata]):
                napping = asyncio.create_task(nap(str(tmp_path / "nap"), 0.5))
                await eventually((tmp_path / "nap.started").exists)
                stopping = asyncio.create_task(worker.stop(timeout=-1))
                assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
                answer = await HealthStub(channel).Check(HealthCheckRequest())
                assert answer.status == HealthCheckResponse.NOT_SERVING
                assert await napping == "slept"
                await stopping


ROUTINES = """
import asyncio, os, signal, time
import wool

@wool.routine
async def sleeper():
    await asyncio.sleep(0.2)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.sleep(0.2)

@wool.routine
async def blocker():
    time.sleep(1.7)
"""

PROGRAM = """
import asyncio
import wool
from routines import blocker, sleeper

async def main():
    async with wool.WorkerPool(size=1):
        await sleeper()
        await blocker()
        await sleeper()

asyncio.run(main())
"""


def test_shows_what_runs_and_what_blocks(surroundings: Surroundings) -> None:
    surroundings.write("routines.py", ROUTINES)
    ended = surroundings.run(surroundings.write("program.py", PROGRAM))
    assert (ended.code, ended.output) == (0, "")
    assert ended.errors.count(": 1 run\nroutines.sleeper:5, for 0.2 s:\n") == 2
    assert ended.errors.count(", line 9, in sleeper\n    await asyncio.sleep(0.2)\n") == 2
    assert ended.errors.count("from running anything else for 1.") == 1
    assert ", line 13, in blocker\n    time.sleep(1.7)\n" in ended.errors


@pytest.mark.parametrize("threshold", [0, -1])
def test_blocking_threshold_that_makes_no_sense(threshold: float) -> None:
    with pytest.raises(ValueError, match="Blocking threshold must be positive, or None"):
        LocalWorker(blocking_threshold=threshold)
