"""What is done to the system that the workers run on, in surroundings that are like one."""

from __future__ import annotations

import errno
import logging
import os
import signal
import struct
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import wool
from tests.support import eventually
from tests.torture.faults import send, victim
from wool import LocalDiscovery
from wool.runtime.rundir import runtime_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from wool import WorkerPool

NOTICED = 20.0
"""Seconds for a worker to be missed and another one to be started."""

DAY = 24 * 3600
AHEAD = "CLOCK_AHEAD"
"""The variable that names the file that says by how many seconds the clock is ahead."""


async def full_disk(pool: WorkerPool, rng: Random) -> None:
    """The disk full when a worker is replaced, until the first attempt to announce it has failed.

    That is logged, with the system's own error.
    """
    with heard("wool.pool") as records, filled(Path(runtime_directory())) as fill:
        send(victim(rng), signal.SIGKILL)
        # What the dead worker had there leaves room.
        await eventually(lambda: fill() or any(map(tells_of_a_full_disk, records)), NOTICED)


class Ear(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def heard(name: str) -> Iterator[list[logging.LogRecord]]:
    """What is logged there."""
    handler = Ear()
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield handler.records
    finally:
        logger.removeHandler(handler)


@contextmanager
def filled(directory: Path) -> Iterator[Callable[[], None]]:
    """A disk without room, and what takes the room that others have left."""
    descriptor, path = tempfile.mkstemp(dir=directory.parent)

    def fill() -> None:
        with suppress(OSError):
            while True:
                os.write(descriptor, bytes(4096))

    try:
        fill()
        yield fill
    finally:
        os.close(descriptor)
        os.unlink(path)


def tells_of_a_full_disk(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return isinstance(error, OSError) and error.errno == errno.ENOSPC


@wool.routine
async def now() -> float:
    return time.time()


async def clock(pool: WorkerPool, rng: Random) -> None:
    """The wall clock stepped, by up to a day, as this process and its workers see it.

    Records are looked at under the new one: what is left of others is judged by its age.
    """
    before = time.time()
    step = rng.randint(-DAY, DAY)
    set_ahead(step)
    for seen in (time.time(), await now()):
        if abs(seen - before - step) > 10:
            raise AssertionError("the clock did not step")
    async with LocalDiscovery(pool.namespace).publisher:
        pass


def set_ahead(step: int) -> None:
    """Set the clock by so many seconds."""
    with open(os.environ[AHEAD], "r+b") as file:
        ahead = struct.unpack("l", file.read())[0]
        file.seek(0)
        file.write(struct.pack("l", ahead + step))
