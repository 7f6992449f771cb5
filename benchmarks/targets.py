"""What the benchmark must show, and whether it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from benchmarks.results import Results, Spread


@dataclass(frozen=True, slots=True)
class Target:
    """A figure of ours, divided by `other`'s if given, that must be at most or at least `bound`.

    `other_metric` is the metric of `other`, if it is not the same one. A relation to a column of
    ours with another metric (`other="self"`) is how growth is stated.
    """

    row: str
    workload: str
    metric: str
    bound: float
    at_least: bool = False
    other: str = ""
    other_metric: str = ""
    unit: str = ""
    columns: tuple[str, ...] = ("ours", "main")

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {self.bound:g}{' ' + self.unit if self.unit else ''}{self._of()}"

    def _of(self) -> str:
        if not self.other:
            return ""
        if self.other == "self":
            return f" × {self.other_metric}"
        return f" × {self.other}" + (f" ({self.other_metric})" if self.other_metric else "")

    def measure(self, results: Results, column: str) -> Spread | None:
        if not self.other:
            return results.absolute(self.workload, self.metric, column)
        other = column if self.other == "self" else self.other
        return results.quotient(self.workload, self.metric, column, other, self.other_metric)

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


class Verdict(NamedTuple):
    """Whether a target is met, by the median; None if what it needs was not measured."""

    target: Target
    column: str
    figure: Spread | None
    met: bool | None


def _at_most(row: str, workload: str, metric: str, bound: float, other: str = "") -> Target:
    return Target(row, workload, metric, bound, other=other)


def _at_least(row: str, workload: str, metric: str, bound: float, other: str) -> Target:
    return Target(row, workload, metric, bound, at_least=True, other=other)


def _flat(metric: str, base: str) -> Target:
    return Target("growth", "growth", metric, 1.2, other="self", other_metric=base,
                  columns=("ours",))  # fmt: skip


TARGETS = (
    _at_most("latency p50", "latency", "p50_ms", 2.0, "floor"),
    # The executor is driven from asyncio, as the callers of a coroutine would have to do.
    Target("latency p50", "latency", "p50_ms", 2.0, other="executor",
           other_metric="p50_ms_asyncio"),
    _at_most("latency p50", "latency", "p50_ms", 1 / 6, "published"),
    # Here its best is asked for, which is without asyncio.
    _at_least("concurrent", "concurrent", "per_s", 1.5, "executor"),
    _at_least("concurrent", "concurrent", "per_s", 25, "published"),
    Target("burst", "burst", "per_s", 3, at_least=True, other="executor",
           other_metric="per_s_asyncio"),
    _at_least("burst", "burst", "per_s", 40, "published"),
    _at_least("burst", "burst", "per_s", 10, "ray"),
    _at_least("burst", "burst", "per_s", 10, "distributed"),
    Target("hold", "hold", "seconds", 2.3, unit="s"),
    _at_least("stream", "stream", "per_s", 2, "published"),
    Target("stream", "stream", "prefetched_per_s", 3, at_least=True, other="ray",
           other_metric="per_s"),
    Target("nested", "nested", "seconds", 1 / 8, other="published"),
    _at_least("payload, 1 MiB", "payload", "small_mb_s", 1.5, "executor"),
    _at_least("payload, 32 MiB", "payload", "large_mb_s", 1.5, "executor"),
    _at_least("payload, numpy", "payload", "array_mb_s", 3, "executor"),
    Target("payload, beside", "payload", "beside_p99_ms", 10, unit="ms"),
    _at_most("import", "start", "import_s", 1.5, "floor"),
    _at_most("first result of 2", "start", "few_s", 0.9, "published"),
    _at_most("idle worker", "memory", "idle_mib", 1.3, "floor"),
    Target("in flight, caller", "memory", "caller_kib", 10, unit="KiB/call"),
    Target("in flight, worker", "memory", "worker_kib", 10, unit="KiB/call"),
    Target("kept, caller", "memory", "caller_kept_kib", 0.1, other="self",
           other_metric="caller_kib"),
    Target("kept, worker", "memory", "worker_kept_kib", 0.1, other="self",
           other_metric="worker_kib"),
    # Whatever the allocator keeps of the first wave, the second must add nothing.
    Target("kept 2nd time, caller", "memory", "caller_kept_kib_again", 0.1, unit="KiB/call"),
    Target("kept 2nd time, worker", "memory", "worker_kept_kib_again", 0.1, unit="KiB/call"),
    _flat("calls_10000_us", "calls_1000_us"),
    _flat("calls_100000_us", "calls_1000_us"),
    _flat("burst_10000_us", "burst_1000_us"),
    _flat("burst_100000_us", "burst_1000_us"),
    _flat("workers_8_us", "workers_2_us"),
    _flat("workers_32_us", "workers_2_us"),
    _flat("members_1000_us", "members_10_us"),
    _flat("members_10000_us", "members_10_us"),
)  # fmt: skip


def check(results: Results) -> list[Verdict]:
    """The verdicts on what was run. What ours should have and hasn't is missed, unless quick."""
    return [
        _judge(results, target, column)
        for target in TARGETS
        if target.workload in results.samples
        for column in target.columns
        if column in results.versions
    ]


def _judge(results: Results, target: Target, column: str) -> Verdict:
    figure = target.measure(results, column)
    if figure is not None:
        return Verdict(target, column, figure, target.met(figure.median))
    lacking = not results.values(target.workload, target.metric, column)
    return Verdict(target, column, None, False if lacking and not results.quick else None)
