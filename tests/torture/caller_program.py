"""A program to be killed: it calls others' workers and its own, and some calls never end.

Run as `python -m tests.torture.caller_program NAMESPACE DIRECTORY SEED`. In the directory it logs
what it begins, and keeps a file for each call that doesn't end.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from random import Random
from uuid import uuid4

import wool
from tests.torture.load import Load
from wool import LocalDiscovery, WorkerPool

SIZE = 2
ENDLESS = 8


@wool.routine
async def stay(directory: str) -> None:
    """Keep a file there until cancelled."""
    path = f"{directory}/held-{os.getpid()}-{uuid4().hex}"
    os.close(os.open(path, os.O_CREAT))
    try:
        await asyncio.sleep(3600)
    finally:
        os.unlink(path)


async def main(namespace: str, directory: str, seed: str) -> None:
    async with WorkerPool(size=SIZE, discovery=LocalDiscovery(namespace)):
        endless = asyncio.gather(*(stay(directory) for _ in range(ENDLESS)))
        await Load(Path(directory), Random(seed)).run(endless)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
