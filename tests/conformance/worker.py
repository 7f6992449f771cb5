"""What a pool expects of what makes its workers: derive a test class and say how to make one."""

from __future__ import annotations

import asyncio
import os
import signal
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.runtime.routines import pid
from wool import WorkerLike, WorkerLost, WorkerPool, WorkerProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from wool import WorkerMetadata


@asynccontextmanager
async def started(worker: WorkerLike) -> AsyncIterator[WorkerMetadata]:
    await worker.start()
    try:
        assert worker.metadata is not None
        yield worker.metadata
    finally:
        await worker.stop()


def alive(metadata: WorkerMetadata) -> bool:
    try:
        os.kill(metadata.pid, 0)
    except ProcessLookupError:
        return False
    return True


class WorkerConformance(ABC):
    """Of workers in processes of this host."""

    @abstractmethod
    def factory(self) -> Callable[..., WorkerLike]: ...

    @pytest.fixture
    def make(self) -> Callable[..., WorkerLike]:
        return self.factory()

    def test_satisfies_protocol(self, make: Callable[..., WorkerLike]) -> None:
        worker, other = make("a", credentials=None), make(credentials=None)
        assert isinstance(worker, WorkerLike)
        assert worker.uid != other.uid
        assert worker.metadata is None

    async def test_describes_itself_when_it_has_started(
        self, make: Callable[..., WorkerLike]
    ) -> None:
        worker = make("a", "b", credentials=None)
        async with started(worker) as metadata:
            assert metadata.uid == worker.uid
            assert metadata.tags >= {"a", "b"}
            assert not metadata.secure

    async def test_is_called_where_it_says_it_is(self, make: Callable[..., WorkerLike]) -> None:
        async with started(make(credentials=None)) as metadata, WorkerProxy(workers=[metadata]):
            assert await pid() == metadata.pid

    async def test_is_gone_when_it_has_stopped(self, make: Callable[..., WorkerLike]) -> None:
        async with started(make(credentials=None)) as metadata:
            assert alive(metadata)
        assert not alive(metadata)

    async def test_several_run_side_by_side(self, make: Callable[..., WorkerLike]) -> None:
        async with (
            started(make(credentials=None)) as first,
            started(make(credentials=None)) as second,
        ):
            assert first.address != second.address

    async def test_pool_replaces_it_if_it_can_tell_its_end(
        self, make: Callable[..., WorkerLike]
    ) -> None:
        if not hasattr(make(), "wait"):
            pytest.skip("it can't tell its end")
        async with WorkerPool("a", size=2, worker=make):
            before = {await pid() for _ in range(4)}
            victim = min(before)
            os.kill(victim, signal.SIGKILL)
            after: set[int] = set()
            async with asyncio.timeout(30):
                while len(after) < 2 or victim in after:
                    with suppress(WorkerLost):
                        after = {await pid() for _ in range(4)}
            assert after & before == before - {victim}
