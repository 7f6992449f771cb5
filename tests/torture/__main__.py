"""Breaks things under load, and checks what wool promises: `python -m tests.torture --help`."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.torture.faults import FAULTS
from tests.torture.load import Load, pid
from wool import WorkerLost, WorkerPool

if TYPE_CHECKING:
    from tests.torture.faults import Fault

OUTCOMES = "returned", "raised", "cancelled", "lost", "refused"
SIZE = 3
PAUSE = 0.3, 1.0
"""Seconds between faults, at least and at most."""

RECOVERY_TIMEOUT = 20.0
"""Seconds for the pool to be of its full size again."""

SETTLE = 20.0
"""Seconds for what is left over to go away."""


class Held:
    """What this process has: children, threads, descriptors, files of wool's."""

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime
        self._before = self._look()

    def _look(self) -> dict[str, int]:
        process = psutil.Process()
        return {
            "processes": len(process.children(recursive=True)),
            "threads": threading.active_count(),
            "descriptors": process.num_fds(),
            "files": sum(1 for path in self._runtime.rglob("*") if path.name != "README"),
        }

    def left(self) -> list[str]:
        """What there is now that was not there before, when it does not go away."""
        deadline = time.monotonic() + SETTLE
        while True:
            now = self._look()
            more = [f"{now[k] - n} {k}" for k, n in self._before.items() if now[k] > n]
            if not more or time.monotonic() > deadline:
                return more
            time.sleep(0.1)


async def inflict(fault: Fault, pool: WorkerPool, rng: random.Random) -> int:
    times = 0
    try:
        while True:
            await asyncio.sleep(rng.uniform(*PAUSE))
            await fault(pool, rng)
            times += 1
    except asyncio.CancelledError:
        return times


async def recover() -> bool:
    """Whether calls reach as many workers as the pool has started with."""
    try:
        async with asyncio.timeout(RECOVERY_TIMEOUT):
            while True:
                calls = (pid() for _ in range(4 * SIZE))
                found = await asyncio.gather(*calls, return_exceptions=True)
                if len({each for each in found if isinstance(each, int)}) == SIZE:
                    return True
                if strange := [each for each in found if not isinstance(each, int | WorkerLost)]:
                    print(f"    meanwhile: {strange[0]!r}")
                await asyncio.sleep(0.1)
    except TimeoutError:
        return False


async def torture(name: str, fault: Fault, seconds: float, seed: int) -> tuple[int, Load]:
    rng = random.Random(f"{seed} {name}")
    with tempfile.TemporaryDirectory() as directory:
        load = Load(Path(directory), rng)
        async with WorkerPool(size=SIZE) as pool:
            await asyncio.gather(*(pid() for _ in range(2 * SIZE)))
            inflicting = asyncio.create_task(inflict(fault, pool, rng))
            await load.run(seconds)
            inflicting.cancel()
            try:
                times = await inflicting
            except Exception as exc:
                load.violations.append(f"the fault itself failed: {exc!r}")
                times = 0
            if not await recover():
                load.violations.append(f"not of full size within {RECOVERY_TIMEOUT} s")
        load.check()
    return times, load


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of load for each fault")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", default=",".join(FAULTS), help=", ".join(FAULTS))
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.seconds} s each, {SIZE} workers")
    print(f"{'what':14}{'times':>6}{''.join(f'{each:>10}' for each in OUTCOMES)}  violations")
    with tempfile.TemporaryDirectory(prefix="wool-", dir="/tmp") as runtime:
        os.environ["XDG_RUNTIME_DIR"] = runtime
        # What is loaded and opened once in a process is not left behind by what is done later.
        asyncio.run(torture("nothing", nothing, 1, options.seed))
        held = Held(Path(runtime))
        results = [
            report(
                name, *asyncio.run(torture(name, FAULTS[name], options.seconds, options.seed)), held
            )
            for name in options.only.split(",")
        ]
    return int(not all(results))


async def nothing(pool: WorkerPool, rng: random.Random) -> None:
    """No fault."""


def report(name: str, times: int, load: Load, held: Held) -> bool:
    """Print what came of a fault; whether all that is promised was kept."""
    violations = load.violations + [f"left behind: {each}" for each in held.left()]
    counts = "".join(f"{load.outcomes[outcome]:10}" for outcome in OUTCOMES)
    more = f" and {len(violations) - 3} more" if len(violations) > 3 else ""
    print(f"{name:14}{times:6}{counts}  {'; '.join(violations[:3]) or 'none'}{more}", flush=True)
    return not violations


if __name__ == "__main__":
    sys.exit(main())
