"""The results of a run: samples by workload, metric and column, and the ratios between columns."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.workloads import Row

Samples = dict[str, list[float | None]]
"""By column, one for each round."""


class Spread(NamedTuple):
    """A median with the lowest and the highest."""

    median: float
    low: float
    high: float


def spread(values: list[float]) -> Spread | None:
    """None if there are no values."""
    return Spread(statistics.median(values), min(values), max(values)) if values else None


def describe_machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


@dataclass(slots=True)
class Results:
    """What a run measured. `reasons` says, by workload and column, why there is no figure."""

    rounds: int
    quick: bool = False
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    machine: dict[str, Any] = field(default_factory=describe_machine)
    load: list[float] = field(default_factory=list)
    """The machine's load average over a minute, before each round of each workload."""
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    samples: dict[str, dict[str, Samples]] = field(default_factory=dict)
    reasons: dict[str, dict[str, str]] = field(default_factory=dict)
    logs: dict[str, dict[str, str]] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    """Microseconds of one call's stages."""

    def add(self, workload: str, column: str, turn: int, metrics: dict[str, float]) -> None:
        for metric, value in metrics.items():
            columns = self.samples.setdefault(workload, {}).setdefault(metric, {})
            values = columns.setdefault(column, [None] * self.rounds)
            values[turn] = value

    def values(self, workload: str, metric: str, column: str) -> list[float]:
        """Of the rounds that have one."""
        samples = self.samples.get(workload, {}).get(metric, {}).get(column, [])
        return [value for value in samples if value is not None]

    def absolute(self, workload: str, metric: str, column: str) -> Spread | None:
        return spread(self.values(workload, metric, column))

    def quotient(
        self, workload: str, metric: str, column: str, other: str, other_metric: str = ""
    ) -> Spread | None:
        """A column's figure divided by another's of the same round."""
        metrics = self.samples.get(workload, {})
        ours = metrics.get(metric, {}).get(column, [])
        theirs = metrics.get(other_metric or metric, {}).get(other, [])
        pairs = zip(ours, theirs, strict=False)
        return spread([a / b for a, b in pairs if a is not None and b])

    def better(self, workload: str, row: Row, other: str, column: str = "ours") -> Spread | None:
        """How many times better a column is than another."""
        metrics = self.samples.get(workload, {}).get(row.metric, {})
        pairs = zip(metrics.get(column, []), metrics.get(other, []), strict=False)
        return spread([row.better(a, b) for a, b in pairs if a and b])

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Results:
        return cls(**json.loads(path.read_text()))
