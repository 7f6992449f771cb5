"""The line in which calls wait for a worker to have room."""

from __future__ import annotations

import asyncio
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.conformance.loadbalancer import make_task
from tests.support import eventually
from wool.runtime.errors import DispatchTimeout, NoWorkersAvailable
from wool.runtime.worker.line import Line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Workers:
    """Workers with room for so many tasks each, and the line of those who wait for it."""

    def __init__(self, *room: int) -> None:
        self.room = list(room)
        self.attempts: list[Any] = []
        connections = [_Connection(self, i) for i in range(len(room))]
        self.context = SimpleNamespace(workers=dict(enumerate(connections)))
        self.line = Line(cast("Any", self.context), count())

    def call(self, name: Any, timeout: float | None = None) -> asyncio.Task[Any]:
        task = make_task()

        async def attempt() -> Any:
            self.attempts.append(name)
            await asyncio.sleep(0)
            for i, room in enumerate(self.room):
                if room:
                    self.room[i] -= 1
                    return name
            task.met_full = True
            raise NoWorkersAvailable

        return asyncio.create_task(self.line.dispatch(task, attempt, timeout))

    def free(self, worker: int, tasks: int = 1) -> None:
        self.room[worker] += tasks
        self.line.has_room(tasks)


class _Connection:
    def __init__(self, workers: Workers, number: int) -> None:
        self._workers = workers
        self._number = number

    @property
    def full(self) -> bool:
        return not self._workers.room[self._number]


async def failing(error: Exception) -> Any:
    raise error


async def test_nobody_waits_while_there_is_room() -> None:
    workers = Workers(2, 1)
    assert await asyncio.gather(*map(workers.call, "abc")) == ["a", "b", "c"]
    assert workers.attempts == ["a", "b", "c"]


async def test_those_who_wait_go_in_order_and_one_more_than_have_room_at_most() -> None:
    workers = Workers(0)
    calls = [workers.call(name) for name in "abcd"]
    await eventually(lambda: len(workers.line) == 4)
    assert workers.attempts == []
    workers.free(0, 2)
    assert await asyncio.gather(*calls[:2]) == ["a", "b"]
    assert workers.attempts in (["a", "b"], ["a", "b", "c"])
    assert not calls[2].done()
    workers.free(0, 5)
    assert await asyncio.gather(*calls[2:]) == ["c", "d"]


async def test_one_who_comes_later_waits_behind_the_others() -> None:
    workers = Workers(0)
    first = workers.call("first")
    await eventually(lambda: len(workers.line) == 1)
    workers.room[0] = 1
    second = workers.call("second")
    await eventually(lambda: len(workers.line) == 2)
    workers.line.has_room(1)
    assert await first == "first"
    assert len(workers.line) == 1
    second.cancel()


async def test_one_who_finds_no_room_keeps_its_place() -> None:
    workers = Workers(0)
    first, second = workers.call("first"), workers.call("second")
    await eventually(lambda: len(workers.line) == 2)
    workers.line.has_room(1)  # Somebody else takes it.
    await eventually(lambda: workers.attempts == ["first"] and len(workers.line) == 2)
    workers.free(0)
    assert await first == "first"
    assert not second.done()
    workers.free(0)
    assert await second == "second"


async def test_room_that_comes_as_the_first_is_cancelled_is_for_the_next() -> None:
    workers = Workers(0)
    first, second = workers.call("first"), workers.call("second")
    await eventually(lambda: len(workers.line) == 2)
    first.cancel()
    workers.free(0)
    assert await second == "second"
    assert first.cancelled()


async def test_room_that_comes_during_an_attempt_is_not_missed() -> None:
    workers = Workers(0)
    task = make_task()

    async def attempt() -> str:
        workers.attempts.append("a")
        if len(workers.attempts) > 1:
            return "a"
        task.met_full = True
        workers.free(0)
        raise NoWorkersAvailable

    workers.room[0] = 1
    async with asyncio.timeout(10):
        assert await workers.line.dispatch(task, attempt, None) == "a"
    assert len(workers.attempts) == 2


async def test_a_worker_that_is_never_full_and_never_takes_one_is_not_asked_on_and_on() -> None:
    workers = Workers(1, 0)
    tasks = [make_task() for _ in range(3)]

    def attempt(i: int) -> Callable[[], Awaitable[Any]]:
        def fail() -> Awaitable[Any]:
            workers.attempts.append(i)
            tasks[i].met_full = True
            return failing(NoWorkersAvailable())

        return fail

    calls = [
        asyncio.create_task(workers.line.dispatch(tasks[i], attempt(i), None)) for i in range(3)
    ]
    await eventually(lambda: len(workers.line) == 3)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(workers.attempts) <= 3
    for call in calls:
        call.cancel()


async def test_a_failed_attempt_lets_the_next_one_go() -> None:
    workers = Workers(0)
    broken = asyncio.create_task(
        workers.line.dispatch(make_task(), lambda: failing(LookupError("on purpose")), None)
    )
    await eventually(lambda: len(workers.line) == 1)
    call = workers.call("next")
    await eventually(lambda: len(workers.line) == 2)
    workers.free(0)
    with pytest.raises(LookupError):
        await broken
    assert await call == "next"


async def test_no_worker_for_another_reason_is_no_reason_to_wait() -> None:
    workers = Workers(1)
    with pytest.raises(NoWorkersAvailable, match="on purpose"):
        await workers.line.dispatch(
            make_task(), lambda: failing(NoWorkersAvailable("on purpose")), None
        )


async def test_the_wait_ends_with_its_timeout() -> None:
    workers = Workers(0, 0)
    with pytest.raises(NoWorkersAvailable, match=r"all 2 workers .* full for 0.05 s") as raised:
        await workers.call("a", 0.05)
    assert isinstance(raised.value.__cause__, DispatchTimeout)
    assert len(workers.line) == 0


@pytest.mark.parametrize("order", [1, -1])
async def test_those_who_are_cancelled_leave_the_line(order: int) -> None:
    workers = Workers(0)
    calls = [workers.call(i) for i in range(100)]
    await eventually(lambda: len(workers.line) == 100)
    for call in calls[:-1][::order]:
        call.cancel()
    await asyncio.wait(calls[:-1])
    assert len(workers.line) == 1
    workers.free(0)
    assert await calls[-1] == 99


async def test_one_who_is_let_go_and_cancelled_passes_it_on() -> None:
    workers = Workers(0)
    first, second = workers.call("first"), workers.call("second")
    await eventually(lambda: len(workers.line) == 2)
    workers.free(0)
    first.cancel()
    async with asyncio.timeout(10):
        assert await second == "second"


async def test_all_go_when_there_is_no_worker_any_more() -> None:
    workers = Workers(0)
    calls = [workers.call(name) for name in "abc"]
    await eventually(lambda: len(workers.line) == 3)
    workers.context.workers.clear()
    workers.room[0] = 9
    workers.line.workers_changed()
    assert await asyncio.gather(*calls) == ["a", "b", "c"]


async def test_closed_line_lets_nobody_wait() -> None:
    workers = Workers(0)
    call = workers.call("a")
    await eventually(lambda: len(workers.line) == 1)
    workers.line.close()
    for each in (call, workers.call("b")):
        with pytest.raises(RuntimeError, match="stopped while a call waited for room"):
            await each
    assert workers.attempts == []


async def test_tells_when_nothing_moves(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wool.runtime.worker.line.PATIENCE", 0.05)
    workers = Workers(0, 0)
    calls = [workers.call(name) for name in "ab"]
    await eventually(lambda: "2 calls wait, as all 2 workers" in caplog.text)
    workers.free(0, 2)
    await asyncio.gather(*calls)
    assert caplog.text.count("calls wait") == 1


async def test_is_idle_when_those_in_it_have_ended() -> None:
    workers = Workers(0)
    call = workers.call("a")
    await eventually(lambda: len(workers.line) == 1)
    idle = asyncio.create_task(workers.line.idle())
    await asyncio.sleep(0)
    assert not idle.done()
    workers.free(0)
    await idle
    assert workers.attempts == ["a"]
    await call
