"""What is done and watched, by name."""

from __future__ import annotations

import asyncio
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.torture import faults
from tests.torture.caller import caller
from tests.torture.crowd import crowd
from tests.torture.load import SIZE, Load, be_quiet, pid, recovered
from tests.torture.result import Result
from tests.torture.soak import Soak
from tests.torture.storm import storm
from tests.torture.surroundings import clock_ahead, memory_given_back, ordinary, tiny_disk
from tests.torture.system import clock, full_disk
from wool import LocalWorker, WorkerPool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextlib import AbstractContextManager
    from random import Random

    from tests.torture.surroundings import Surroundings

    Fault = Callable[[WorkerPool, Random], Awaitable[None]]
    Surround = Callable[[Path], AbstractContextManager[Surroundings]]

PAUSE = 0.3, 1.0
"""Seconds between faults, at least and at most."""


class Amount(NamedTuple):
    """How much is done: seconds of each fault, calls of the soak."""

    seconds: float
    calls: int


class Scenario(NamedTuple):
    """What is run, and what it needs around a process of its own, if it runs in one."""

    run: Callable[[Random, Amount], Coroutine[Any, Any, Result]]
    surround: Surround | None = None


async def inflict(fault: Fault, pool: WorkerPool, rng: Random, seconds: float) -> int:
    """Again and again for so long, at least once. Returns how often."""
    times = 0
    end = time.monotonic() + seconds
    while not times or time.monotonic() < end:
        await asyncio.sleep(rng.uniform(*PAUSE))
        await fault(pool, rng)
        times += 1
    return times


async def under_load(fault: Fault, rng: Random, seconds: float, limit: int | None = None) -> Result:
    """`limit` is how many calls a worker runs at once."""
    result = Result()
    with tempfile.TemporaryDirectory() as directory:
        load = Load(Path(directory), rng)
        worker = partial(LocalWorker, max_concurrent_tasks=limit, initializer=be_quiet)
        async with WorkerPool(size=SIZE, worker=worker) as pool:
            await asyncio.gather(*(pid() for _ in range(2 * SIZE)))
            inflicting = asyncio.create_task(inflict(fault, pool, rng, seconds))
            await load.run(inflicting)
            try:
                result.times = await inflicting
            except Exception as exc:
                load.violations.append(f"the fault itself failed: {exc!r}")
            load.violations += await recovered()
        load.check()
    result.outcomes, result.violations = load.outcomes, load.violations
    return result


async def nothing(pool: WorkerPool, rng: Random) -> None:
    """No fault."""


def _of(fault: Fault, surround: Surround | None = None, limit: int | None = None) -> Scenario:
    return Scenario(lambda rng, amount: under_load(fault, rng, amount.seconds, limit), surround)


FAULTS: tuple[Fault, ...] = (
    faults.kill,
    faults.terminate,
    faults.freeze,
    faults.exit_inside,
    faults.segfault,
    faults.memory,
    faults.descriptors,
    faults.system_exit,
    faults.socket_file,
    faults.directory,
    faults.garbage,
    faults.control_pipe,
    caller,
)

SCENARIOS: dict[str, Scenario] = {
    **{fault.__name__: _of(fault) for fault in FAULTS},
    "kill_full": _of(faults.kill, limit=2),
    "full_disk": _of(full_disk, tiny_disk),
    "clock": _of(clock, clock_ahead),
    "storm": Scenario(lambda rng, amount: storm(rng, 2 * amount.seconds, None)),
    "storm_in_chunks": Scenario(lambda rng, amount: storm(rng, 2 * amount.seconds, "127.0.0.1")),
    "crowd": Scenario(lambda rng, amount: crowd(amount.calls // 2), ordinary),
    "soak": Scenario(lambda rng, amount: Soak(amount.calls, rng).run(), memory_given_back),
}
