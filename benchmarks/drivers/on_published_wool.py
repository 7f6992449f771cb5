"""The published wool. Run by the interpreter that has it."""

from __future__ import annotations

from benchmarks.drivers.on_wool import Wool


class PublishedWool(Wool):
    slow = True
    size = "spawn"
