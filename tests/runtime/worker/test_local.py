"""Local workers: stopping them, in all ways, and starting them again."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

import wool
from tests.runtime.worker.routines import block, ended, gone, nap, pid, spread, started
from wool import LocalWorker, WorkerProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "nap")


@pytest.fixture
async def worker() -> AsyncIterator[LocalWorker]:
    worker = LocalWorker("fast", shutdown_grace_period=5, colour="blue")
    await worker.start()
    yield worker
    with suppress(RuntimeError):
        await worker.stop()


def id_of(worker: LocalWorker) -> int:
    assert worker.metadata is not None
    return worker.metadata.pid


def proxy(worker: LocalWorker) -> WorkerProxy:
    assert worker.metadata is not None
    return WorkerProxy(workers=[worker.metadata])


async def refusal() -> str:
    """Wait until calls are refused; says why they are."""
    async with asyncio.timeout(30):
        while True:
            try:
                await pid()
            except wool.NoWorkersAvailable as exc:
                return str(exc)


async def test_worker_before_its_start() -> None:
    worker = LocalWorker("fast", colour="blue")
    assert (worker.metadata, worker.address) == (None, None)
    assert worker.tags == {"fast"}
    assert worker.extra == {"colour": "blue"}
    assert repr(worker) == f"<LocalWorker {worker.uid} at no address>"
    with pytest.raises(RuntimeError, match="Worker has not been started"):
        await worker.stop()
    with pytest.raises(ValueError, match="Timeout must be positive"):
        await worker.start(timeout=0)


async def test_worker_that_runs(worker: LocalWorker) -> None:
    assert worker.metadata is not None
    assert worker.metadata.uid == worker.uid
    assert worker.metadata.tags == {"fast"}
    assert worker.metadata.extra == {"colour": "blue"}
    assert worker.address == worker.metadata.address
    assert repr(worker) == f"<LocalWorker {worker.uid} at {worker.address}>"
    with pytest.raises(RuntimeError, match="Worker has already been started"):
        await worker.start()
    async with proxy(worker):
        assert await pid() == id_of(worker)


async def test_worker_can_be_started_again(worker: LocalWorker) -> None:
    first = id_of(worker)
    await worker.stop()
    await gone(first)
    await worker.start()
    assert id_of(worker) != first
    async with proxy(worker):
        assert await pid() == id_of(worker)


async def test_worker_whose_start_failed_can_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = LocalWorker()
    with monkeypatch.context() as patch:
        (tmp_path / "sitecustomize.py").write_text("import os; os._exit(3)")
        patch.syspath_prepend(tmp_path)
        with pytest.raises(RuntimeError, match="Worker process failed to start - no metadata"):
            await worker.start()
    await worker.start()
    await worker.stop()


async def test_stop_at_once_cancels(worker: LocalWorker, path: str) -> None:
    async with proxy(worker):
        call = asyncio.create_task(nap(path, cleaning=0.2))
        await started(path)
        await worker.stop()
        assert ended(path)
        with pytest.raises(asyncio.CancelledError):
            await call
    await gone(id_of(worker))
    assert await worker.wait() == "its process exited with code 0"


async def test_stop_with_a_timeout_drains(worker: LocalWorker, path: str) -> None:
    async with proxy(worker):
        call = asyncio.create_task(nap(path, seconds=1))
        await started(path)
        stopping = asyncio.create_task(worker.stop(timeout=60))
        assert await call == "slept"
        await stopping
    assert await worker.wait() == "its process exited with code 0"


async def test_stop_with_a_timeout_cancels_what_takes_longer(
    worker: LocalWorker, path: str
) -> None:
    async with proxy(worker):
        call = asyncio.create_task(nap(path))
        await started(path)
        await worker.stop(timeout=0.5)
        assert ended(path)
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_stop_with_a_negative_timeout_drains_and_refuses_what_is_new(
    worker: LocalWorker, path: str
) -> None:
    async with proxy(worker):
        call = asyncio.create_task(nap(path, seconds=1))
        await started(path)
        stopping = asyncio.create_task(worker.stop(timeout=-1))
        assert "shutting down" in await refusal()
        assert await call == "slept"
        await stopping


async def test_stop_of_a_routine_that_ignores_it_ends_within_its_grace(path: str) -> None:
    worker = LocalWorker(shutdown_grace_period=0.5)
    await worker.start()
    async with proxy(worker):
        call = asyncio.create_task(block(path, 600))
        await started(path)
        begun = time.monotonic()
        await worker.stop()
        assert time.monotonic() - begun < 30
        with pytest.raises((wool.WorkerLost, asyncio.CancelledError)):
            await call
    await gone(id_of(worker))


@wool.routine
async def generations(path: str, depth: int) -> None:
    """Cleans up in a task that starts another one, and so on."""

    async def clean(depth: int) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            if depth:
                await asyncio.create_task(clean(depth - 1))
            else:
                open(path + ".ended", "w").close()  # noqa: ASYNC230

    open(path + ".started", "w").close()  # noqa: ASYNC230
    try:
        await asyncio.sleep(600)
    finally:
        await asyncio.create_task(clean(depth))


async def test_stop_lets_cleaning_up_go_on_in_tasks_of_tasks(
    worker: LocalWorker, path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A53."""
    async with proxy(worker):
        call = asyncio.create_task(generations(path, 5))
        await started(path)
        await worker.stop()
        assert ended(path)
        with pytest.raises(asyncio.CancelledError):
            await call
    assert capfd.readouterr() == ("", "")


@wool.routine
async def mutual() -> None:
    """Starts two tasks each of which, when cancelled, cancels and waits for all the others."""

    async def selfish() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    kept.extend(asyncio.create_task(selfish()) for _ in range(2))
    await asyncio.sleep(0)


kept: list[asyncio.Task[None]] = []


async def test_stop_with_tasks_that_wait_for_each_other_ends(
    worker: LocalWorker, capfd: pytest.CaptureFixture[str]
) -> None:
    """A61."""
    async with proxy(worker):
        await mutual()
        begun = time.monotonic()
        await worker.stop()
        assert time.monotonic() - begun < 30
    assert await worker.wait() == "its process exited with code 0"
    assert "RecursionError" not in capfd.readouterr().err


async def test_stop_with_a_nested_call_in_flight_says_nothing(
    worker: LocalWorker, path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A60, A62."""
    async with proxy(worker):
        call = asyncio.create_task(nested(path))
        await started(path)
        await worker.stop()
        assert ended(path)
        with pytest.raises(asyncio.CancelledError):
            await call
    assert capfd.readouterr() == ("", "")


@wool.routine
async def nested(path: str) -> str:
    return await nap(path)


async def test_stop_of_a_dead_worker_is_quiet(worker: LocalWorker) -> None:
    os.kill(id_of(worker), signal.SIGKILL)
    assert await worker.wait() == "its process was killed by signal SIGKILL"
    await worker.stop()


async def test_stop_of_a_worker_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A51, A54."""
    monkeypatch.setattr("wool.runtime.worker.local.STOP_MARGIN", 0.1)
    monkeypatch.setattr("wool.runtime.worker.process.TERMINATE_TIMEOUT", 0.1)
    worker = LocalWorker(shutdown_grace_period=0.1)
    await worker.start()
    os.kill(id_of(worker), signal.SIGSTOP)
    await worker.stop()
    assert await worker.wait() == "its process was killed by signal SIGKILL"
    assert "has not ended in" in caplog.text


async def test_signals_of_a_worker_with_calls(worker: LocalWorker, path: str) -> None:
    """SIGINT drains, SIGTERM cancels, also what is being drained."""
    async with proxy(worker):
        await spread(1)
        call = asyncio.create_task(nap(path))
        await started(path)
        os.kill(id_of(worker), signal.SIGINT)
        await refusal()
        assert not ended(path)
        os.kill(id_of(worker), signal.SIGTERM)
        with pytest.raises(asyncio.CancelledError):
            await call
    assert await worker.wait() == "its process exited with code 0"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_worker_for_the_network_without_credentials_warns(host: str) -> None:
    with pytest.warns(RuntimeWarning, match="without credentials runs code for anyone") as warned:
        LocalWorker(host=host)
    assert warned[0].filename == __file__


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", None])
def test_worker_for_this_machine_does_not_warn(host: str | None) -> None:
    LocalWorker(host=host)
    LocalWorker(host="0.0.0.0", credentials=wool.WorkerCredentials(b"", b"", b""))


def prepare(path: str) -> None:
    with open(path, "w") as file:
        file.write(str(os.getpid()))


def fail_to_prepare() -> None:
    raise LookupError("nothing to prepare")


@wool.routine
async def kind_of_loop() -> str:
    return type(asyncio.get_running_loop()).__module__


async def test_worker_is_prepared_before_it_serves(path: str) -> None:
    worker = LocalWorker(initializer=partial(prepare, path), loop_factory=uvloop.new_event_loop)
    await worker.start()
    with open(path) as file:  # noqa: ASYNC230
        assert int(file.read()) == id_of(worker)
    async with proxy(worker):
        assert await kind_of_loop() == "uvloop"
    await worker.stop()


async def test_worker_that_can_not_be_prepared_does_not_start() -> None:
    with pytest.raises(RuntimeError, match="LookupError: nothing to prepare"):
        await LocalWorker(initializer=fail_to_prepare).start()


@pytest.mark.parametrize("name", ["initializer", "loop_factory"])
def test_hook_that_can_not_be_called_or_pickled_is_refused(name: str) -> None:
    options: dict[str, Any] = {name: "a name"}
    with pytest.raises(TypeError, match=f"{name} must be callable, or None, got 'a name'"):
        LocalWorker(**options)
    lock = threading.Lock()
    options = {name: lambda: lock}
    with pytest.raises(TypeError, match="pickle") as caught:
        LocalWorker(**options)
    assert f"while pickling {name}" in "".join(caught.value.__notes__)
