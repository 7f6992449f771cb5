from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.support import eventually
from wool.runtime.worker import fate, oom

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID


CRASH = ", a crash in native code: set PYTHONFAULTHANDLER=1 to see where"


@pytest.fixture(autouse=True)
def registers(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[UUID, Any], dict[UUID, str]]:
    """Of those that run and of those that have ended."""
    running: dict[UUID, Any] = {}
    ended: dict[UUID, str] = {}
    monkeypatch.setattr(fate, "_running", running)
    monkeypatch.setattr(fate, "_ended", ended)
    monkeypatch.setattr(fate, "_watches", {})
    return running, ended


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "its process exited with code 0"),
        (3, "its process exited with code 3"),
        (-signal.SIGKILL, "its process was killed by signal SIGKILL"),
        (-250, "its process was killed by signal 250"),
        (-signal.SIGSEGV, f"its process was killed by signal SIGSEGV{CRASH}"),
    ],
)
def test_return_code_in_words(code: int, words: str) -> None:
    assert fate.describe(code) == words


async def test_fate_of_a_stranger_is_unknown() -> None:
    assert await fate.ascertain(uuid4()) is None


async def test_fate_of_a_child_is_waited_for() -> None:
    exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    uid = uuid4()
    fate.register(uid, exited)
    asking = asyncio.create_task(fate.ascertain(uid))
    await asyncio.sleep(0)
    exited.set_result(-9)
    assert await asking == "its process was killed by signal SIGKILL"
    assert await fate.ascertain(uid) == "its process was killed by signal SIGKILL"


async def test_fate_of_a_child_that_lives_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fate, "PATIENCE", 0.01)
    exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    uid = uuid4()
    fate.register(uid, exited)
    assert await fate.ascertain(uid) is None
    exited.cancel()
    assert await fate.ascertain(uid) is None


async def test_fate_of_a_child_of_another_loop_is_known_when_it_has_ended() -> None:
    async def register(ends: bool) -> UUID:
        exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        fate.register(uid := uuid4(), exited)
        if ends:
            exited.set_result(0)
            await asyncio.sleep(0)
        return uid

    uid = await asyncio.to_thread(lambda: asyncio.run(register(True)))
    assert await fate.ascertain(uid) == "its process exited with code 0"
    uid = await asyncio.to_thread(lambda: asyncio.run(register(False)))
    assert await fate.ascertain(uid) is None


async def test_fates_are_remembered_for_a_while(
    registers: tuple[dict[UUID, Any], dict[UUID, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A59."""
    monkeypatch.setattr(fate, "REMEMBERED", 3)
    running, ended = registers
    loop = asyncio.get_running_loop()
    fate.register(living := uuid4(), loop.create_future())
    for code in range(10):
        exited = loop.create_future()
        fate.register(uuid4(), exited)
        exited.set_result(code)
        await asyncio.sleep(0)
    assert list(running) == [living]
    assert [*ended.values()] == [f"its process exited with code {code}" for code in (7, 8, 9)]


def end(code: int) -> UUID:
    """A worker that has ended."""
    exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    fate.register(uid := uuid4(), exited)
    exited.set_result(code)
    return uid


async def test_kill_for_want_of_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    killed, starved = (
        "its process was killed by signal SIGKILL",
        "its process was killed by signal SIGKILL, probably by the kernel, for want of memory",
    )
    (tmp_path / "proc").mkdir()
    counter = tmp_path / "proc/vmstat"
    counter.write_text("oom_kill 5\n")
    monkeypatch.setattr(oom, "ROOT", tmp_path)
    before = end(-signal.SIGKILL)
    await eventually(lambda: not fate._running)
    workers = [end(-signal.SIGTERM), *(end(-signal.SIGKILL) for _ in range(4))]
    fate.expect_kill(workers[1])
    counter.write_text("oom_kill 7\n")
    await eventually(lambda: not fate._running)
    after = end(-signal.SIGKILL)
    await eventually(lambda: not fate._running)
    assert await fate.ascertain(before) == killed
    # One by SIGTERM, one killed by us, the two that were counted, and one that was not.
    assert [await fate.ascertain(uid) for uid in workers] == [
        "its process was killed by signal SIGTERM",
        killed,
        starved,
        starved,
        killed,
    ]
    assert await fate.ascertain(after) == killed
    assert fate.recall(workers[2], -signal.SIGKILL) == starved
    assert fate.recall(uuid4(), 1) == "its process exited with code 1"


async def test_workers_of_a_closed_loop_are_forgotten(
    registers: tuple[dict[UUID, Any], dict[UUID, str]],
) -> None:
    running, _ = registers
    other = asyncio.new_event_loop()
    fate.register(uuid4(), other.create_future())
    other.close()
    fate.register(living := uuid4(), asyncio.get_running_loop().create_future())
    assert list(running) == [living]


async def test_cancelled_watch_over_a_worker_leaves_no_trace(
    registers: tuple[dict[UUID, Any], dict[UUID, str]],
) -> None:
    """The end of `asyncio.run` cancels it, in company of which its traceback tells."""
    exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    fate.register(uuid4(), exited)
    exited.cancel()
    await asyncio.sleep(0)
    assert registers == ({}, {})
