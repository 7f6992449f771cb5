"""Starting and ending the process of a worker, and what it inherits."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psutil
import pytest

import wool
from tests.runtime.worker.routines import echo, gone, pid
from tests.support import eventually
from wool import LocalWorker, WorkerMetadata, WorkerPool, WorkerProxy
from wool.runtime.rundir import runtime_directory
from wool.runtime.worker.process import WorkerProcess, _lock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def process() -> AsyncIterator[WorkerProcess]:
    process = WorkerProcess(uid=uuid4())
    await process.start()
    yield process
    await process.reap(0)


def id_of(process: WorkerProcess) -> int:
    assert process.metadata is not None
    return process.metadata.pid


def directory_of(process: WorkerProcess) -> Path:
    assert process.address is not None
    return Path(process.address.removeprefix("unix:")).parent


# Construction


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": ""}, "Host must be a non-blank string"),
        ({"host": " "}, "Host must be a non-blank string"),
        ({"port": -1}, "Port must be a positive integer"),
        ({"port": 65536}, "Port must be a positive integer"),
        ({"shutdown_grace_period": 0}, "Shutdown grace period must be positive"),
        ({"proxy_pool_ttl": -1}, "Proxy pool TTL must be positive"),
    ],
)
def test_process_with_bad_settings_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorkerProcess(uid=uuid4(), **settings)


def test_process_with_extra_that_can_not_be_announced_is_refused() -> None:
    """Suspicion 2: at the call that is to blame, not at the start."""
    with pytest.raises(TypeError, match="not JSON serializable"):
        WorkerProcess(uid=uuid4(), extra={"lock": object()})


async def test_extra_of_any_json_kind_arrives() -> None:
    """Suspicion 2."""
    extra = {"gpus": 2, "names": ["a", "b"], "nested": {"on": True}, "nothing": None}
    process = WorkerProcess(uid=uuid4(), extra=extra)
    await process.start()
    assert process.metadata is not None
    assert process.metadata.extra == extra
    await process.reap(0)


# Start and end


async def test_process_before_its_start() -> None:
    process = WorkerProcess(uid=uuid4())
    assert process.address is None
    assert process.metadata is None
    assert not process.alive
    with pytest.raises(RuntimeError, match="Worker process has not been started"):
        await process.wait()
    with pytest.raises(ValueError, match="Timeout must be positive"):
        await process.start(timeout=0)
    await process.reap(0)


async def test_process_reports_its_metadata(process: WorkerProcess) -> None:
    metadata = process.metadata
    assert isinstance(metadata, WorkerMetadata)
    assert process.alive
    assert metadata.address == process.address
    assert metadata.version == wool.__version__
    assert metadata.pid != os.getpid()
    assert psutil.Process(metadata.pid).ppid() == os.getpid()
    assert not metadata.secure


@pytest.mark.parametrize(
    ("signum", "how"),
    [
        (signal.SIGTERM, "its process exited with code 0"),
        (signal.SIGINT, "its process exited with code 0"),
        (signal.SIGKILL, "its process was killed by signal SIGKILL"),
    ],
)
async def test_process_ends_on_a_signal(process: WorkerProcess, signum: int, how: str) -> None:
    directory = directory_of(process)
    os.kill(id_of(process), signum)
    assert await process.wait() == how
    assert not process.alive
    assert await process.wait() == how
    await process.reap(0)
    assert not directory.exists()


async def test_process_ends_on_a_second_signal_in_order_too(process: WorkerProcess) -> None:
    os.kill(id_of(process), signal.SIGINT)
    os.kill(id_of(process), signal.SIGTERM)
    assert await process.wait() == "its process exited with code 0"


async def test_process_that_ignores_signals_is_killed(
    process: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A51."""
    monkeypatch.setattr("wool.runtime.worker.process.TERMINATE_TIMEOUT", 0.2)
    os.kill(id_of(process), signal.SIGSTOP)
    await process.reap(0)
    assert await process.wait() == "its process was killed by signal SIGKILL"


async def test_reaping_that_is_cancelled_goes_on_to_the_end(process: WorkerProcess) -> None:
    """A51: each cancellation shortens it, and is raised when the process is gone."""
    os.kill(id_of(process), signal.SIGSTOP)
    reaping = asyncio.create_task(process.reap(600))
    for _ in range(4):
        await asyncio.sleep(0)
        reaping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reaping
    assert not process.alive
    assert not directory_of(process).exists()


async def test_reaping_goes_on_when_every_task_is_cancelled(process: WorkerProcess) -> None:
    """As at the end of `asyncio.run`, which a second Ctrl-C brings about."""
    os.kill(id_of(process), signal.SIGSTOP)
    me = asyncio.current_task()
    reaping = asyncio.create_task(process.reap(600))
    await asyncio.sleep(0)
    for _ in range(2):
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {me}:
            task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reaping
    assert not process.alive


async def test_start_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    for cancellations in (1, 2, 3):
        process = WorkerProcess(uid=uuid4())
        starting = asyncio.create_task(process.start())
        await eventually(lambda: process.alive)  # noqa: B023
        for _ in range(cancellations):
            starting.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not process.alive


# Failed starts


@pytest.mark.parametrize(
    ("host", "reason"),
    [("192.0.2.1", os.strerror(errno.EADDRNOTAVAIL)), ("nosuch.invalid", r"\[Errno -?\d+\]")],
)
async def test_process_that_can_not_listen_says_why(host: str, reason: str) -> None:
    process = WorkerProcess(uid=uuid4(), host=host)
    message = f"Worker process failed to start - RuntimeError: Failed to bind to .*{host}:0: .*"
    with pytest.raises(RuntimeError, match=message + reason):
        await process.start()
    assert not process.alive


async def test_process_whose_port_is_taken_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = WorkerProcess(uid=uuid4(), port=taken.getsockname()[1])
        with pytest.raises(RuntimeError, match=r"Failed to bind to .*: .*Address already in use"):
            await process.start()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "import os; os._exit(3)",
            r"no metadata \(its process exited with code 3\); its standard error may say why",
        ),
        ("import os; os.kill(os.getpid(), 9)", r"no metadata \(.* was killed by signal SIGKILL\)"),
    ],
)
async def test_process_that_ends_at_start_is_reported(
    program: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match=f"Worker process failed to start - {message}"):
        await WorkerProcess(uid=uuid4()).start()


async def test_process_that_hangs_at_start_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A66."""
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(600)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match=r"Worker process failed to start within 0.5 seconds"):
        await WorkerProcess(uid=uuid4()).start(timeout=0.5)


async def test_settings_that_the_interpreter_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "junk")
    with pytest.raises(
        RuntimeError, match=r"no metadata \(its process exited with code 1\); its st"
    ):
        await WorkerProcess(uid=uuid4()).start()


async def test_path_with_what_is_no_string(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path, b"/nowhere"])
    process = WorkerProcess(uid=uuid4())
    await process.start()
    await process.reap(0)


async def test_python_without_an_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(RuntimeError, match=r"need a Python interpreter, and sys\.executable names"):
        await WorkerProcess(uid=uuid4()).start()


async def test_interpreter_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(FileNotFoundError):
        await WorkerProcess(uid=uuid4()).start()


# The socket


async def test_socket_is_for_this_user_alone(process: WorkerProcess) -> None:
    """A64."""
    directory = directory_of(process)
    assert stat.S_IMODE(directory.lstat().st_mode) == 0o700
    assert directory.is_dir()
    assert not directory.is_symlink()
    assert directory.parent == runtime_directory()
    assert [path.is_socket() for path in directory.iterdir()] == [True]
    assert not psutil.Process(id_of(process)).net_connections("tcp")


async def test_socket_of_a_long_runtime_directory_is_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A64: its path is short, whatever the directory's."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    process = WorkerProcess(uid=uuid4())
    await process.start()
    directory = directory_of(process)
    assert directory.parent == Path("/tmp")
    assert stat.S_IMODE(directory.lstat().st_mode) == 0o700
    await process.reap(0)
    assert not directory.exists()


@pytest.mark.parametrize("settings", [{"port": 0}, {"host": "127.0.0.1"}, {"host": "localhost"}])
async def test_process_with_a_host_or_a_port_listens_on_tcp(settings: dict[str, Any]) -> None:
    worker = LocalWorker(**settings)
    await worker.start()
    assert worker.metadata is not None
    host, _, port = worker.metadata.address.rpartition(":")
    assert host == settings.get("host", "127.0.0.1")
    assert int(port) > 0
    async with WorkerProxy(workers=[worker.metadata]):
        assert await pid() == worker.metadata.pid
    await worker.stop()


async def test_process_on_ipv6() -> None:
    worker = LocalWorker(host="::1")
    try:
        await worker.start()
    except RuntimeError:
        pytest.skip("no IPv6 here")
    assert worker.metadata is not None
    assert worker.metadata.address.startswith("[::1]:")
    async with WorkerProxy(workers=[worker.metadata]):
        assert await pid() == worker.metadata.pid
    await worker.stop()


async def test_directory_that_nobody_has_any_more_is_swept(process: WorkerProcess) -> None:
    """As is left by a worker that was killed together with its parent."""
    stale = runtime_directory() / "wstale"
    stale.mkdir(mode=0o700)
    (stale / "s").touch()
    strange = runtime_directory() / "wfile"
    strange.touch()
    locked = runtime_directory() / "wlocked"
    locked.mkdir(mode=0o700)
    lock = _lock(str(locked))
    assert lock is not None
    another = WorkerProcess(uid=uuid4())
    await another.start()
    try:
        assert not stale.exists()
        assert strange.exists()
        assert locked.exists()
        assert directory_of(process).exists()
        assert _lock(str(directory_of(process))) is None
        assert _lock(str(stale)) is None
    finally:
        os.close(lock)
        strange.unlink()
        await another.reap(0)
    third = WorkerProcess(uid=uuid4())
    await third.start()
    assert not locked.exists()
    await third.reap(0)


async def test_worker_keeps_its_directory_from_being_swept(process: WorkerProcess) -> None:
    """Also when its parent no longer does."""
    assert process._lock is not None
    os.close(process._lock)
    process._lock = None
    another = WorkerProcess(uid=uuid4())
    await another.start()
    await another.reap(0)
    assert directory_of(process).exists()


# What it inherits


@wool.routine
async def surroundings() -> dict[str, Any]:
    return {
        "path": sys.path,
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "options": sys.warnoptions,
        "arguments": sys.argv[1:],
        "main": getattr(sys.modules["__main__"], "__spec__").name,  # noqa: B009
        "flags": (sys.flags.optimize, sys.flags.dont_write_bytecode),
        "dev": dict(sys._xoptions),
    }


async def test_worker_inherits_its_surroundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A63, and the rest of the environment, which is the parent's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "more")
    monkeypatch.setenv("MINE", "yes")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("GRPC_ENABLE_FORK_SUPPORT", raising=False)
    before = dict(os.environ)
    async with WorkerPool(size=1):
        there = await surroundings()
    assert there["path"] == sys.path
    assert there["directory"] == str(tmp_path)
    assert there["environment"]["MINE"] == "yes"
    assert "PYTHONPATH" not in there["environment"]
    assert there["environment"]["GRPC_ENABLE_FORK_SUPPORT"] == "0"
    assert there["arguments"] == []
    assert there["main"] == "wool.runtime.worker.main"
    assert dict(os.environ) == before


async def test_worker_takes_the_users_word_on_grpc_and_python_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A63."""
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "1")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    async with WorkerPool(size=1):
        there = await surroundings()
    assert there["environment"]["GRPC_ENABLE_FORK_SUPPORT"] == "1"
    assert there["environment"]["PYTHONPATH"] == "/nowhere"


async def test_interrupt_of_the_terminal_does_not_reach_the_worker(process: WorkerProcess) -> None:
    """Suspicion 12: Ctrl-C is for the process group in front, and the worker isn't in it."""
    assert os.getpgid(id_of(process)) != os.getpgrp()
    async with WorkerPool(size=1):
        assert await echo(1) == 1
    await process.reap(0)
    await gone(id_of(process))
