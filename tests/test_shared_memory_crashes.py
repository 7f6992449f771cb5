"""Either side is killed at any point of a payload's way through shared memory: nothing is left."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.programs import Surroundings
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is shared on Linux only")

PROGRAM = """
import asyncio, os, signal, sys
from contextlib import suppress
import wool

point, side, victim = sys.argv[1:]

def arm(point, pid):
    \"""Kill that process where this one comes to `point`.\"""
    from wool.runtime.worker.arena import Arena, Window

    def kill():
        os.kill(pid, signal.SIGKILL)

    def before(owner, name, times):
        original = getattr(owner, name)
        def replacement(self, *args):
            nonlocal times
            times -= 1
            if times == 0:
                kill()
            return original(self, *args)
        setattr(owner, name, replacement)

    put, copy = Arena.put, Window.copy

    async def put_and_kill(self, *args):
        segment = await put(self, *args)
        kill()
        return segment

    def copy_and_kill(self, *args):
        payload = yield from copy(self, *args)
        kill()
        return payload

    match point:
        case "before it is written":
            before(Arena, "_find", 1)
        case "while it is written":
            before(Arena, "_open", 9)
        case "when it is written":
            Arena.put = put_and_kill
        case "before it is read":
            before(Window, "_check", 1)
        case "while it is read":
            before(Window, "_fill", 9)
        case "when it is read":
            Window.copy = copy_and_kill

@wool.routine
async def pid():
    return os.getpid()

@wool.routine
async def arm_worker(point, pid):
    arm(point, pid)

@wool.routine
async def echo(value):
    return value

async def main():
    async with wool.WorkerPool(size=1):
        pids = {"client": os.getpid(), "worker": await pid()}
        if side == "client":
            arm(point, pids[victim])
        else:
            await arm_worker(point, pids[victim])
        with suppress(wool.WorkerLost, wool.NoWorkersAvailable):
            await echo(bytes(32 * 1024 * 1024))

def held():
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            yield os.readlink(f"/proc/self/fd/{descriptor}")

asyncio.run(main())
assert not [name for name in held() if "memfd:wool" in name], list(held())
assert "memfd:wool" not in open("/proc/self/maps").read()
print("survived")
"""

POINTS = [
    "before it is written",
    "while it is written",
    "when it is written",
    "before it is read",
    "while it is read",
    "when it is read",
]


@pytest.fixture
def surroundings() -> Iterator[Surroundings]:
    with Surroundings.make() as surroundings:
        yield surroundings


def segments() -> set[str]:
    """Whatever has a name in shared memory."""
    return set(os.listdir("/dev/shm"))


@pytest.mark.parametrize("victim", ["client", "worker"])
@pytest.mark.parametrize("side", ["client", "worker"])
@pytest.mark.parametrize("point", POINTS)
async def test_nothing_is_left_when_one_is_killed(
    surroundings: Surroundings, point: str, side: str, victim: str
) -> None:
    before = segments()
    program = surroundings.write("program.py", PROGRAM)

    ended = surroundings.run(program, point, side, victim)

    if victim == "client":
        assert ended.code == -signal.SIGKILL, ended
    else:
        assert ended.output == "survived\n", ended
    await eventually(lambda: not surroundings.processes(), timeout=20)
    # A record of a worker is removed by whoever looks next.
    assert [path for path in surroundings.left() if "/discovery" not in path] == []
    assert segments() <= before
