"""Every way out of a program with a pool: in time, with what the user raised, and without a trace.

What is left and by when, and what is said on stderr, is what a user would see of it.
"""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.programs import ROOT, SECONDS, Surroundings
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT = 30.0
"""Seconds from the way out to the end; of those of a pool, and a worker's, there are few."""

CTRL_C = b"\x03"

TRACEBACKS = (
    r"((Traceback \(most recent call last\):\n((  .*)?\n)+)?\S.*\n(\n(During|The above) .*\n\n|$))+"
)

SLOW = r"Executing <.*> took [0-9.]+ seconds\n"
"""What asyncio says in its debug mode, on a machine that is busy."""

BLOCKED = r"Routines still run 1.0 s after they were cancelled\n"
"""What a worker says whose routine blocks it."""


class Way(NamedTuple):
    """A way out: the exit code and the last line on stderr, and whether workers outlive it."""

    code: int
    last: str = ""
    orphans: bool = False


CANCELLED = "asyncio.exceptions.CancelledError"

WAYS = {
    "end": Way(0),
    "end-interrupted": Way(-signal.SIGINT, "KeyboardInterrupt"),
    "exception": Way(1, "KeyError: 'mine'"),
    "cancelled": Way(1, CANCELLED),
    "cancelled-again": Way(1, CANCELLED),
    "exit": Way(3),
    "_exit": Way(4, orphans=True),
    "KeyboardInterrupt": Way(-signal.SIGINT, "KeyboardInterrupt"),
    "interrupted": Way(-signal.SIGINT, "KeyboardInterrupt"),
    "interrupted-again": Way(-signal.SIGINT, "KeyboardInterrupt"),
    "SIGTERM": Way(-signal.SIGTERM, orphans=True),
    "SIGTERM-handled": Way(1, CANCELLED),
    "SIGKILL": Way(-signal.SIGKILL, orphans=True),
    "loop-stopped": Way(1, "RuntimeError: Event loop stopped before Future completed."),
    "loop-closed": Way(0, orphans=True),
    "task-left-behind": Way(0),
    "never-left": Way(0, orphans=True),
}

# Every way with calls under way, and every state with the ways that it might be in the way of.
CASES = [
    *((way, "calls") for way in WAYS if way != "interrupted-again"),
    ("never-left", "nothing"),
    ("_exit", "nothing"),
    *((way, "pools") for way in ("end", "exception", "interrupted", "SIGTERM")),
    *((way, "stubborn") for way in ("exception", "interrupted-again")),
    *((way, "blocked") for way in ("cancelled-again", "SIGTERM")),
]


class Program:
    """One that runs in a terminal of its own, with what it says besides in pipes."""

    def __init__(self, surroundings: Surroundings, *arguments: str) -> None:
        self._screen, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=surroundings.work,
            env=surroundings.environment | {"PYTHONPATH": str(ROOT)},
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        os.close(terminal)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._screen)
        self.process.kill()
        self.process.communicate()

    def expect(self, word: str) -> None:
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said == f"{word}\n", (said, self.process.communicate(timeout=SECONDS))

    def type(self, keys: bytes) -> None:
        os.write(self._screen, keys)


async def send_off(program: Program, way: str, surroundings: Surroundings) -> None:
    """Have a program that is ready go the way, unless it does so by itself."""
    match way:
        case "SIGTERM" | "SIGTERM-handled":
            program.process.send_signal(signal.SIGTERM)
        case "SIGKILL":
            program.process.kill()
        case "interrupted" | "end-interrupted":
            program.type(CTRL_C)
        case "interrupted-again":
            program.type(CTRL_C)
            # While it waits for its workers. Elsewhere asyncio itself may hang over an interrupt.
            await eventually((Path(surroundings.environment["HOME"]) / "cancelled").exists)
            program.type(CTRL_C)


@pytest.fixture
def surroundings() -> Iterator[Surroundings]:
    with Surroundings.make() as surroundings:
        yield surroundings


@pytest.mark.parametrize(("way", "state"), CASES)
async def test_way_out(way: str, state: str, surroundings: Surroundings) -> None:
    await go(surroundings, way, state, "-W", "error")


@pytest.mark.parametrize("way", ["end", "interrupted"])
async def test_way_out_in_development_mode(way: str, surroundings: Surroundings) -> None:
    """In which asyncio and the interpreter tell of whatever is amiss, in workers too."""
    await go(surroundings, way, "calls", "-X", "dev", "-W", "error")


@pytest.mark.parametrize("way", ["end", "interrupted", "task-left-behind", "never-left"])
async def test_way_out_on_uvloop(way: str, surroundings: Surroundings) -> None:
    """Not with `-W error`, with which it hangs when a process is left to itself."""
    await go(surroundings, way, "calls", loop="uvloop")


async def go(
    surroundings: Surroundings, way: str, state: str, *options: str, loop: str = "asyncio"
) -> None:
    """Run the program with those options of the interpreter, and check how it ends."""
    command = (*options, "-m", "tests.shutdown_program", way, state, loop)
    with Program(surroundings, *command) as program:
        program.expect("ready")
        begun = time.monotonic()
        await send_off(program, way, surroundings)
        code = program.process.wait(TIMEOUT)
        if not WAYS[way].orphans:
            assert surroundings.left() == []
        await surroundings.emptied(TIMEOUT - (time.monotonic() - begun))
        _, errors = program.process.communicate(timeout=SECONDS)

    errors = re.sub(f"{SLOW}|{BLOCKED}" if state == "blocked" else SLOW, "", errors)
    # An interrupt may come with an empty text.
    last = [line.removesuffix(": ") for line in errors.splitlines()[-1:]]
    assert (code, last) == (WAYS[way].code, [WAYS[way].last][: bool(errors)])
    check(errors, WAYS[way].last)


def check(errors: str, last: str) -> None:
    """That it is the traceback of an exception and those of its context, and nothing else."""
    assert bool(errors) == bool(last)
    assert not errors or re.fullmatch(TRACEBACKS, errors), errors
