"""What is loaded when: by importing wool, by using it, and in a worker."""

from __future__ import annotations

import os
import subprocess
import sys

HEAVY = {
    "click",
    "cryptography",
    "importlib.metadata",
    "multiprocessing",
    "numpy",
    "prometheus_client",
    "psutil",
    "rich",
    "watchdog",
    "wool.cli",
    "zeroconf",
}

FOR_CALLERS = {
    "json",
    "packaging",
    "pathlib",
    "shutil",
    "tempfile",
    "wool.runtime.discovery.local",
    "wool.runtime.discovery.records",
    "wool.runtime.worker.connection",
    "wool.runtime.worker.membership",
    "wool.runtime.worker.pool",
    "wool.runtime.worker.process",
}
"""What takes part in making calls, and not in serving them."""

WORKER = """
import asyncio, sys, wool

@wool.routine
async def modules():
    import sys
    return [*sys.modules]

async def main():
    async with wool.WorkerPool(size=1):
        print(*await modules())

asyncio.run(main())
"""


def loaded(program: str) -> set[str]:
    """The names of modules that a program prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    printed = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return set(printed.split())


def test_importing_wool_loads_little_but_grpc() -> None:
    grpc = loaded("import grpc.aio, sys; print(*sys.modules)")

    more = loaded("import wool, sys; print(*sys.modules)") - grpc

    assert more == {"wool", "wool._grpc", "wool._version"}


def test_using_wool_loads_nothing_heavy() -> None:
    modules = loaded("from wool import *; import sys; print(*sys.modules)")

    assert "wool.runtime.worker.pool" in modules
    assert HEAVY.isdisjoint(modules)


def test_worker_loads_what_serving_takes() -> None:
    modules = loaded(WORKER)

    assert "wool.runtime.worker.service" in modules
    assert modules & (HEAVY | FOR_CALLERS) == set()
