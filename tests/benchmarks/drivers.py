"""Columns to try the runner with."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.drivers.base import Driver, Unsupported

PID_FILE = "WOOL_TEST_PID_FILE"


class Local(Driver):
    """Calls functions where it is."""

    async def open(self, workers: int, held: int = 1) -> None:
        pass

    async def close(self) -> None:
        pass

    async def noop(self) -> None:
        await asyncio.sleep(0)


class Incapable(Local):
    async def noop(self) -> None:
        raise Unsupported("not this one")


class Broken(Local):
    async def noop(self) -> None:
        raise OSError("broken on purpose")


class Gone(Local):
    async def noop(self) -> None:
        os._exit(3)


class Hanging(Local):
    """Leaves a process behind, too, in a session of its own."""

    async def open(self, workers: int, held: int = 1) -> None:
        _leave_a_process()

    async def noop(self) -> None:
        await asyncio.Event().wait()


def _leave_a_process() -> None:
    command = [sys.executable, "-c", "input()"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    Path(os.environ[PID_FILE]).write_text(str(child.pid))
