"""Breaks things under load, and checks what wool promises: `python -m tests.torture --help`."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.torture.load import SIZE
from tests.torture.result import HEAD
from tests.torture.scenarios import SCENARIOS, Amount, nothing, under_load
from tests.torture.surroundings import ImpossibleError

if TYPE_CHECKING:
    from tests.torture.scenarios import Surround

SETTLE = 20.0
"""Seconds for what is left over to go away."""

PLACE = "XDG_RUNTIME_DIR"


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


def run(names: list[str], amount: Amount, seed: int) -> bool:
    """Run scenarios here, in this order; whether all that is promised was kept."""
    # What is loaded and opened once in a process is not left behind by what is done later.
    asyncio.run(under_load(nothing, random.Random(seed), 1))
    held = Held(Path(os.environ[PLACE]))
    results = []
    for name in names:
        rng = random.Random(f"{seed} {name}")
        result = asyncio.run(SCENARIOS[name].run(rng, amount))
        result.violations += [f"left behind: {each}" for each in held.left()]
        print(result.row(name), flush=True)
        results.append(not result.violations)
    return all(results)


def run_apart(name: str, surround: Surround, options: argparse.Namespace) -> bool:
    """Run one in a process of its own; whether all that is promised was kept, or it can't be."""
    arguments = {each: getattr(options, each) for each in ("seconds", "calls", "seed")}
    with tempfile.TemporaryDirectory() as directory:
        try:
            with surround(Path(directory)) as (prefix, environment):
                command = [*prefix, sys.executable, "-m", "tests.torture", "--apart"]
                command += [f"--{each}={value}" for each, value in arguments.items()]
                ended = subprocess.run(
                    [*command, f"--only={name}"], env={**os.environ, **environment}, check=False
                )
        except ImpossibleError as exc:
            print(f"{name:14}  skipped: {exc}", flush=True)
            return True
    return ended.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="of load for each fault")
    parser.add_argument(
        "--calls", type=int, default=200_000, help="of the soak; half as many are made at once"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", default=",".join(SCENARIOS), help=", ".join(SCENARIOS))
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.only.split(",")
    amount = Amount(options.seconds, options.calls)
    if options.apart:
        return int(not run(names, amount, options.seed))
    print(f"seed {options.seed}, {options.seconds} s each, {SIZE} workers")
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory(prefix="wool-", dir="/tmp") as runtime:
        os.environ[PLACE] = runtime
        here = [name for name in names if SCENARIOS[name].surround is None]
        kept = [
            *([run(here, amount, options.seed)] if here else ()),
            *(
                run_apart(name, surround, options)
                for name in names
                if (surround := SCENARIOS[name].surround) is not None
            ),
        ]
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
