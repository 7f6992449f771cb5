"""What a routine is told about itself: a timeout, and whether it may run again."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest

import wool
from tests.support import eventually
from wool import WorkerLost, WorkerPool
from wool.runtime.routine.task import do_dispatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@wool.routine(timeout=0.2)
async def quick(path: str, seconds: float) -> str:
    try:
        await asyncio.sleep(seconds)
        return "done"
    finally:
        sign(path)


@wool.routine
async def wait(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


@wool.routine(timeout=0.3)
async def ticks(pauses: list[float]) -> AsyncIterator[int]:
    for i, pause in enumerate(pauses):
        await asyncio.sleep(pause)
        yield i


@wool.routine(timeout=0.3, prefetch=4)
async def ticks_ahead(pauses: list[float]) -> AsyncIterator[int]:
    for i, pause in enumerate(pauses):
        await asyncio.sleep(pause)
        yield i


@wool.routine(timeout=30)
async def own_timeout() -> None:
    raise TimeoutError("mine")


@wool.routine(timeout=0.1)
async def stubborn() -> str:
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        return "all the same"
    return "never"


@wool.routine(idempotent=True)
async def die(path: str, times: int) -> int:
    """Kill the worker so many times; returns how often it has run."""
    if sign(path) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(600)
    return signatures(path)


@wool.routine(idempotent=True, retries=2, retry_on=ConnectionError)
async def refuse(path: str, times: int) -> set[int]:
    """Raise so many times; returns where it has run."""
    if sign(path) <= times:
        raise ConnectionRefusedError("nobody there")
    return where(path)


@wool.routine(idempotent=True)
async def change(path: str, values: list[int]) -> list[int]:
    if sign(path) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(600)
    return values


class Model:
    @wool.routine
    async def fit(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "fitted"


def sign(path: str) -> int:
    """Leave word of this process; returns how many have been left."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    os.close(descriptor)
    return signatures(path)


def signatures(path: str) -> int:
    return len(Path(path).read_text().split())


def where(path: str) -> set[int]:
    return {int(line) for line in Path(path).read_text().split()}


def with_options(routine: Any, **options: Any) -> Any:
    """mypy sees functions, which have no `options`."""
    return routine.options(**options)


async def collect(stream: AsyncIterator[int], into: list[int]) -> None:
    async for value in stream:
        into.append(value)  # noqa: PERF401 - What came before an error counts.


class TestTimeout:
    async def test_raises_at_the_caller_when_the_routine_has_cleaned_up(
        self, tmp_path: Path
    ) -> None:
        async with WorkerPool(size=1):
            with pytest.raises(TimeoutError, match=r"quick:\d+ took over 0.2 s"):
                await quick(str(tmp_path / "log"), 600)
            assert signatures(str(tmp_path / "log")) == 1
            assert await quick(str(tmp_path / "log"), 0) == "done"

    async def test_is_of_each_step_of_a_stream(self) -> None:
        async with WorkerPool(size=1):
            assert [tick async for tick in ticks([0.2] * 4)] == [0, 1, 2, 3]
            seen: list[int] = []
            with pytest.raises(TimeoutError, match=r"took over 0.3 s"):
                await collect(ticks([0, 0, 600]), seen)
        assert seen == [0, 1]

    async def test_does_not_run_while_the_consumer_thinks(self) -> None:
        async with WorkerPool(size=1):
            async for _ in ticks([0, 0]):
                await wait(0.5)

    async def test_is_of_each_step_of_a_stream_that_runs_ahead(self) -> None:
        async with WorkerPool(size=1):
            assert [tick async for tick in ticks_ahead([0.2] * 4)] == [0, 1, 2, 3]
            seen: list[int] = []
            with pytest.raises(TimeoutError, match=r"took over 0.3 s"):
                await collect(ticks_ahead([0, 0, 600]), seen)
        assert seen == [0, 1]

    async def test_leaves_timeouts_of_the_routine_alone(self) -> None:
        async with WorkerPool(size=1):
            with pytest.raises(TimeoutError, match=r"^mine$"):
                await own_timeout()

    async def test_of_a_routine_that_does_not_give_in_is_as_if_there_were_none(self) -> None:
        async with WorkerPool(size=1):
            assert await stubborn() == "all the same"

    async def test_does_not_take_the_callers_cancellation_for_its_own(self, tmp_path: Path) -> None:
        async with WorkerPool(size=1):
            with pytest.raises(TimeoutError) as raised:
                async with asyncio.timeout(0.1):
                    await with_options(quick, timeout=30)(str(tmp_path / "log"), 600)
        assert "took over" not in str(raised.value)

    async def test_holds_where_it_is_called_without_a_worker(self, tmp_path: Path) -> None:
        with do_dispatch(False):
            with pytest.raises(TimeoutError, match=r"took over 0.2 s"):
                await quick(str(tmp_path / "log"), 600)
            with pytest.raises(TimeoutError, match=r"took over 0.3 s"):
                await collect(ticks([0, 600]), [])


class TestRetries:
    async def test_runs_again_when_its_worker_is_lost(self, tmp_path: Path) -> None:
        async with WorkerPool(size=2):
            assert await die(str(tmp_path / "log"), 2) == 3

    async def test_gives_up_after_so_many(self, tmp_path: Path) -> None:
        log = str(tmp_path / "log")
        async with WorkerPool(size=1):
            with pytest.raises(WorkerLost):
                await with_options(die, retries=1)(log, 9)
        assert signatures(log) == 2

    async def test_runs_again_elsewhere_after_a_listed_exception(self, tmp_path: Path) -> None:
        async with WorkerPool(size=3):
            assert len(await refuse(str(tmp_path / "log"), 2)) == 3

    async def test_raises_the_last_exception(self, tmp_path: Path) -> None:
        log = str(tmp_path / "log")
        async with WorkerPool(size=1):
            with pytest.raises(ConnectionRefusedError, match="nobody there"):
                await refuse(log, 9)
        assert signatures(log) == 3

    async def test_does_not_run_again_after_another_exception(self, tmp_path: Path) -> None:
        log = str(tmp_path / "log")
        async with WorkerPool(size=1):
            with pytest.raises(ConnectionRefusedError):
                await with_options(refuse, retry_on=LookupError)(log, 1)
        assert signatures(log) == 1

    async def test_has_the_arguments_of_the_call(self, tmp_path: Path) -> None:
        log, values = str(tmp_path / "log"), [1]
        async with WorkerPool(size=1):
            call = asyncio.create_task(change(log, values))
            await eventually((tmp_path / "log").exists)
            values.append(2)
            assert await call == [1]

    async def test_can_be_cancelled_between_attempts(self, tmp_path: Path) -> None:
        async with WorkerPool(size=1):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2):
                    await with_options(refuse, retries=1000)(str(tmp_path / "log"), 10**6)

    async def test_ends_with_what_it_had_when_its_pool_is_left(self, tmp_path: Path) -> None:
        log = str(tmp_path / "log")
        async with WorkerPool(size=1):
            call = asyncio.create_task(with_options(refuse, retries=1000)(log, 10**6))
            await eventually(lambda: Path(log).exists() and signatures(log) > 3)
        with pytest.raises(ConnectionRefusedError, match="nobody there"):
            await call

    async def test_does_not_try_again_what_can_not_be_pickled(self) -> None:
        async with WorkerPool(size=1):
            with pytest.raises(TypeError, match="lock"):
                await with_options(refuse, retry_on=Exception)(threading.Lock(), 1)

    async def test_a_routine_that_is_not_idempotent_never_does(self, tmp_path: Path) -> None:
        log = str(tmp_path / "log")
        async with WorkerPool(size=1):
            with pytest.raises(WorkerLost):
                await with_options(die, idempotent=False)(log, 9)
        assert signatures(log) == 1


class TestOptions:
    async def test_are_for_one_call(self) -> None:
        async with WorkerPool(size=1):
            with pytest.raises(TimeoutError, match=r"took over 0.1 s"):
                await with_options(wait, timeout=0.1)(600)
            assert await wait(0.2) == "done"

    async def test_leave_the_others_as_they_are(self, tmp_path: Path) -> None:
        async with WorkerPool(size=1):
            changed = with_options(with_options(quick, tags=()), prefetch=0)
            with pytest.raises(TimeoutError, match=r"took over 0.2 s"):
                await changed(str(tmp_path / "log"), 600)

    async def test_of_streams(self) -> None:
        async with WorkerPool(size=1):
            assert [tick async for tick in with_options(ticks, timeout=None)([0.4, 0])] == [0, 1]

    async def test_of_methods(self) -> None:
        async with WorkerPool(size=1):
            with pytest.raises(TimeoutError):
                await with_options(Model.fit, timeout=0.1)(Model(), 600)
            assert await with_options(Model.fit, timeout=10)(Model(), 0) == "fitted"

    @pytest.mark.parametrize("pickler", [pickle, cloudpickle])
    async def test_travel(self, pickler: Any) -> None:
        changed = pickler.loads(cloudpickle.dumps(with_options(wait, timeout=0.1)))
        async with WorkerPool(size=1):
            with pytest.raises(TimeoutError, match=r"took over 0.1 s"):
                await changed(600)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"timeout": -1}, ValueError, "timeout must be a number of seconds"),
        ({"timeout": float("nan")}, ValueError, "timeout must be a number of seconds"),
        ({"timeout": float("inf")}, ValueError, "timeout must be a number of seconds"),
        ({"timeout": "1"}, TypeError, "timeout must be a number of seconds, or None, got '1'"),
        ({"timeout": True}, TypeError, "timeout must be a number of seconds"),
        ({"idempotent": 1}, TypeError, "idempotent must be a bool, got 1"),
        ({"idempotent": True, "retries": -1}, ValueError, "retries must be a number, 0 or more"),
        ({"idempotent": True, "retries": 1.5}, ValueError, "retries must be a number, 0 or more"),
        ({"retries": 1}, ValueError, "need idempotent=True: a call that failed may have run"),
        ({"retry_on": OSError}, ValueError, "need idempotent=True"),
        ({"retry_on": ["OSError"]}, TypeError, "retry_on must be classes of exceptions"),
        ({"retry_on": KeyboardInterrupt}, TypeError, "retry_on must be classes of exceptions"),
        ({"retry_on": 3}, TypeError, "retry_on must be classes of exceptions, got 3"),
        ({"retires": 3}, TypeError, "retires"),
    ],
)
def test_options_that_make_no_sense(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        wool.routine(**options)
    with pytest.raises(error, match=message):
        with_options(wait, **options)


def test_a_stream_can_not_be_idempotent() -> None:
    with pytest.raises(ValueError, match="idempotent is for coroutine functions"):
        with_options(ticks, idempotent=True)
