"""Every test runs in a private runtime directory and must leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SETTLE = 20.0
"""Seconds that what a test used may take to go away after it: gRPC takes its time when busy."""

DESCRIPTORS = Path("/proc/self/fd")


@pytest.fixture(scope="session", autouse=True)
def runtime_directory() -> Iterator[Path]:
    """`XDG_RUNTIME_DIR` for this session; directly in /tmp, as a socket's path must be short."""
    with (
        tempfile.TemporaryDirectory(prefix="wool-", dir="/tmp") as path,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("XDG_RUNTIME_DIR", path)
        yield Path(path)


@pytest.fixture(autouse=True)
def leaves_nothing_behind(
    request: pytest.FixtureRequest, runtime_directory: Path
) -> Iterator[None]:
    """Fails a test that leaks threads, processes, descriptors or runtime files."""
    if request.node.get_closest_marker("leaky"):
        yield
        return
    before = _held(runtime_directory)
    yield
    deadline = time.monotonic() + SETTLE
    while leaked := _held(runtime_directory) - before:
        if time.monotonic() > deadline:
            pytest.fail("leaked " + ", ".join(sorted(leaked.elements())))
        gc.collect()
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def leaves_no_tasks(request: pytest.FixtureRequest, leaves_nothing_behind: None) -> None:
    """Adds the check for tasks, which needs the test's loop, to a test that has one.

    Depends on the other check so that this one, and the end of the loop, come before it.
    """
    if pytest_asyncio.is_async_test(request.node):
        request.getfixturevalue("task_check")


@pytest.fixture
async def task_check(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    yield
    if request.node.get_closest_marker("leaky"):
        return
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE
    while leaked := asyncio.all_tasks() - {asyncio.current_task()}:
        if loop.time() > deadline:
            pytest.fail(f"leaked {', '.join(sorted(map(repr, leaked)))}")
        await asyncio.sleep(0.01)


def _held(runtime_directory: Path) -> Counter[str]:
    """What this process holds at the moment, in words."""
    return Counter(
        [
            *(f"thread {thread.name} {thread.ident}" for thread in threading.enumerate()),
            *_children(),
            *_descriptors(),
            *(f"file {path}" for path in (runtime_directory / "wool").rglob("*")),
        ]
    )


def _children() -> Iterator[str]:
    """Child processes and theirs, zombies included."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            yield f"process {process.name()} {process.pid}"


def _descriptors() -> Iterator[str]:
    """Open descriptors by kind: their numbers are used again, so only their count tells."""
    if not DESCRIPTORS.exists():
        return
    for entry in os.listdir(DESCRIPTORS):
        with contextlib.suppress(FileNotFoundError):
            yield f"descriptor {os.readlink(DESCRIPTORS / entry).partition(':[')[0]}"
