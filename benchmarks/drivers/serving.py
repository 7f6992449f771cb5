"""How a driver's process talks with the runner.

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
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from benchmarks.drivers import loads
from benchmarks.drivers.base import Unsupported

if TYPE_CHECKING:
    from benchmarks.drivers.base import Driver


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
    load = getattr(loads, request["load"])
    try:
        return {"metrics": asyncio.run(load(driver(), **request["parameters"]))}
    except Unsupported as exc:
        return {"unsupported": str(exc)}
    except Exception as exc:
        traceback.print_exc()
        return {"error": f"{type(exc).__name__}: {exc}"}


def _versions(driver: type[Driver]) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in driver.packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions
