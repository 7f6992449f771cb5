"""Routines that the tests of the command line run."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import wool
from tests.runtime.worker.routines import touch
from tests.support import eventually


@wool.routine
async def pid() -> int:
    return os.getpid()


@wool.routine
async def loop_kind() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


@wool.routine
async def has_imported(module: str) -> bool:
    return module in sys.modules


@wool.routine
async def held(path: str) -> int:
    """Run until there is a file at `path`; one at `path` + ".started" tells that it runs."""
    touch(f"{path}.started")
    await eventually(Path(path).exists, timeout=600)
    return os.getpid()
