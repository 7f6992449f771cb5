"""What a column is to the loads, and how its process talks with the runner.

A driver's process reads one JSON object per line from stdin and answers each with one line:

    {"do": "hello"}                                  -> {"versions": {...}} or {"missing": "..."}
    {"do": "run", "load": ..., "parameters": {...}}  -> {"metrics": {...}}, {"unsupported": "..."}
                                                        or {"error": "..."}

End of input ends it. What the driven package prints goes to stderr.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import platform
import sys
import traceback
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Unsupported(Exception):
    """The column can't do this, for the reason given."""


class Direct:
    """A column's blocking way to do the same, for those that have one. All no-ops."""

    def call(self) -> None:
        raise NotImplementedError

    def window(self, callers: int, calls: int) -> None:
        """Make `calls` calls, `callers` of them in flight."""
        raise NotImplementedError

    def burst(self, calls: int) -> None:
        raise NotImplementedError


class Driver:
    """A column. What it doesn't override it can't do."""

    packages: ClassVar[tuple[str, ...]] = ()
    imports: ClassVar[str] = ""
    """The statement whose cost a program pays before it starts."""
    slow: ClassVar[bool] = False
    """Whether it takes so long to start thousands of calls that the first would end before."""

    async def open(self, workers: int, held: int = 1) -> None:
        """Start workers, each of which must be able to hold `held` waiting calls if it can."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    @property
    def direct(self) -> Direct | None:
        return None

    async def noop(self) -> None:
        raise NotImplementedError

    async def pid(self) -> int:
        """Of the process that runs the call."""
        raise Unsupported("does not tell where it runs")

    async def sleep(self, seconds: float) -> None:
        raise Unsupported("holds no waiting calls")

    async def echo(self, value: Any) -> Any:
        raise Unsupported("has no payloads")

    def stream(self, items: int) -> AsyncIterator[int]:
        raise Unsupported("has no streams")

    def prefetched(self, items: int) -> AsyncIterator[int]:
        raise Unsupported("has no read-ahead")

    async def fib(self, n: int) -> int:
        """A recursion whose two calls follow each other."""
        raise Unsupported("has no nested calls")

    async def fan(self, n: int) -> int:
        """The same with its two calls at once."""
        raise Unsupported("has no nested calls")

    def membership(self, workers: int) -> float:
        """Seconds that one event costs with this many workers."""
        raise Unsupported("has no membership")


def serve(driver: type[Driver]) -> None:
    """Do what the runner asks for until it is done."""
    with os.fdopen(os.dup(1), "w", buffering=1) as replies:
        os.dup2(2, 1)
        for line in sys.stdin:
            replies.write(json.dumps(_answer(driver, json.loads(line))) + "\n")


def serve_module(name: str, attribute: str) -> None:
    """The same, for a driver whose package may be missing."""
    try:
        driver = getattr(importlib.import_module(name), attribute)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith("benchmarks"):
            raise
        print(json.dumps({"missing": f"{exc.name} is not installed"}), flush=True)
        return
    serve(driver)


def _answer(driver: type[Driver], request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "hello":
        return {"versions": _versions(driver)}
    from benchmarks.drivers import loads

    load = getattr(loads, request["load"])
    try:
        return {"metrics": asyncio.run(load(driver(), **request["parameters"]))}
    except Unsupported as exc:
        return {"unsupported": str(exc)}
    except Exception as exc:
        traceback.print_exc()
        return {"error": f"{type(exc).__name__}: {exc}"}


def _versions(driver: type[Driver]) -> dict[str, str]:
    # Here, because workers import this module, and their size is measured.
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for package in driver.packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions
