"""What is measured: the workloads with their parameters, and the rows of the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PEERS = ("executor", "distributed", "ray", "aiomultiprocess", "published")
EVERYONE = ("ours", "main", "floor", *PEERS)


@dataclass(frozen=True, slots=True)
class Row:
    """A metric that a workload reports."""

    metric: str
    title: str
    unit: str
    higher_is_better: bool = False
    absolute: bool = False
    """Whether it may be nothing at all, so that a ratio says nothing."""

    def better(self, ours: float, theirs: float) -> float:
        """How many times better `ours` is."""
        return ours / theirs if self.higher_is_better else theirs / ours


@dataclass(frozen=True, slots=True)
class Workload:
    """`quick` has parameters that replace some of `parameters` in a quick run."""

    key: str
    rows: tuple[Row, ...]
    parameters: dict[str, Any]
    quick: dict[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = EVERYONE
    deadline: float = 120.0
    """Seconds that one turn of a column may take."""


def _rate(metric: str, title: str, unit: str = "/s") -> Row:
    return Row(metric, title, unit, higher_is_better=True)


def _kept(metric: str, title: str) -> Row:
    return Row(metric, title, "KiB/call", absolute=True)


_SIDES = ("caller", "worker")

WORKLOADS = {
    workload.key: workload
    for workload in (
        Workload(
            "latency",
            (Row("p50_ms", "latency p50", "ms"), Row("p99_ms", "latency p99", "ms")),
            {"calls": 2_000},
            {"calls": 200},
        ),
        Workload(
            "concurrent",
            (_rate("per_s", "concurrent, 64 callers"),),
            {"callers": 64, "calls": 10_000},
            {"calls": 1_000},
        ),
        Workload(
            "burst", (_rate("per_s", "burst of 10,000"),), {"calls": 10_000}, {"calls": 1_000}
        ),
        Workload(
            "hold",
            (Row("seconds", "hold 1,000 × 2 s", "s"),),
            {"calls": 1_000, "seconds": 2.0},
            {"calls": 100, "seconds": 0.5},
        ),
        Workload(
            "stream",
            (_rate("per_s", "stream"), _rate("prefetched_per_s", "stream, read ahead")),
            {"items": 10_000},
            {"items": 500},
        ),
        Workload("nested", (Row("seconds", "nested fib(16)", "s"),), {"n": 16}, {"n": 8}),
        Workload(
            "fanned",
            (Row("seconds", "nested fib(16), gathered", "s"),),
            {"n": 16},
            {"n": 8},
            deadline=60.0,
        ),
        Workload(
            "payload",
            (
                _rate("small_mb_s", "echo 1 MiB", "MB/s"),
                _rate("large_mb_s", "echo 32 MiB", "MB/s"),
                _rate("array_mb_s", "echo 64 MiB array", "MB/s"),
                Row("beside_p99_ms", "64 at once beside 32 MiB, p99", "ms"),
                Row("beside_in_turn_p99_ms", "in turn beside 32 MiB, p99", "ms"),
            ),
            {"small_mib": 1, "large_mib": 32, "array_mib": 64, "beside": 64, "repeats": 5},
            {"large_mib": 4, "array_mib": 4, "repeats": 2},
        ),
        Workload(
            "start",
            (
                Row("import_s", "import", "s"),
                Row("few_s", "first result of 2", "s"),
                Row("many_s", "first result of 8", "s"),
                Row("few_shutdown_s", "shutdown of 2", "s"),
                Row("many_shutdown_s", "shutdown of 8", "s"),
            ),
            {"few": 2, "many": 8},
            {"many": 4},
        ),
        Workload(
            "memory",
            (
                Row("idle_mib", "idle worker", "MiB"),
                Row("used_mib", "idle worker, used before", "MiB"),
                *(Row(f"{side}_kib", f"in flight, {side}", "KiB/call") for side in _SIDES),
                *(_kept(f"{side}_kept_kib", f"kept, {side}") for side in _SIDES),
                *(_kept(f"{side}_kept_kib_again", f"kept 2nd time, {side}") for side in _SIDES),
            ),
            {"calls": 10_000, "seconds": 4.0},
            {"calls": 500, "seconds": 0.5},
        ),
        Workload(
            "growth",
            (
                *(Row(f"calls_{n}_us", f"64 callers, {n:,}", "µs") for n in (1000, 10000, 100000)),
                *(Row(f"burst_{n}_us", f"burst, {n:,}", "µs") for n in (1000, 10000, 100000)),
                *(
                    Row(f"workers_{n}_us", f"{n} workers, {n * 32:,} callers", "µs")
                    for n in (2, 8, 32)
                ),
                *(Row(f"members_{n}_us", f"event, {n:,} members", "µs") for n in (10, 1000, 10000)),
            ),
            {
                "calls": [1_000, 10_000, 100_000],
                "workers": [2, 8, 32],
                "callers": 64,
                "members": [10, 1_000, 10_000],
            },
            {"calls": [100, 1_000], "workers": [2, 4], "members": [10, 100]},
            columns=("ours",),
            deadline=240.0,
        ),
    )
}
