"""Results as text: the table of ratios, and the targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.columns import COLUMNS
from benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.results import Results, Spread
    from benchmarks.targets import Verdict
    from benchmarks.workloads import Row

ABSENT = "–"
FAILED = "failed"


def number(value: float) -> str:
    """With three significant digits, or more in front of the point."""
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    digits = 2 if abs(value) < 10 else 1
    return f"{value:.{digits + (abs(value) < 0.1)}f}"


def ratio(value: Spread) -> str:
    return f"{number(value.median)}× ({number(value.low)}–{number(value.high)})"


def table(results: Results, *, markdown: bool = False) -> str:
    """A row for each metric: ours in its unit, the others as how many times better ours is."""
    others = [key for key in COLUMNS if key != "ours" and _appears(results, key)]
    lines = [["", "wool", *(COLUMNS[key].title for key in others)]]
    for workload in WORKLOADS.values():
        for row in workload.rows:
            if row.metric in results.samples.get(workload.key, {}):
                cells = [_cell(results, workload.key, row, key) for key in others]
                lines.append([row.title, _ours(results, workload.key, row), *cells])
    return _markdown(lines) if markdown else _aligned(lines)


def _appears(results: Results, column: str) -> bool:
    return any(
        column in columns for metrics in results.samples.values() for columns in metrics.values()
    ) or any(column in reasons for reasons in results.reasons.values())


def _ours(results: Results, workload: str, row: Row) -> str:
    value = results.absolute(workload, row.metric, "ours")
    if value is None:
        return FAILED if "ours" in results.logs.get(workload, {}) else ABSENT
    return f"{number(value.median)} {row.unit}"


def _cell(results: Results, workload: str, row: Row, column: str) -> str:
    if column in results.logs.get(workload, {}):
        return FAILED
    value = None if row.absolute else results.better(workload, row, column)
    if value is not None:
        return ratio(value)
    alone = results.absolute(workload, row.metric, column)
    return f"{number(alone.median)} {row.unit}" if alone else ABSENT


def targets(verdicts: Iterable[Verdict]) -> str:
    lines = [["", "target", "column", "measured", ""]]
    for target, column, figure, met in verdicts:
        measured = ABSENT
        if figure is not None:
            low, high = number(figure.low), number(figure.high)
            measured = f"{number(figure.median)} ({low}–{high})"
        word = {True: "pass", False: "FAIL", None: "not measured"}[met]
        name = f"{target.row}" if target.workload != "growth" else f"growth, {target.metric}"
        lines.append([name, str(target), column, measured, word])
    return _aligned(lines)


def stages(results: Results) -> str:
    return _aligned([[name, f"{value:.1f} µs"] for name, value in results.stages.items()])


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    rows = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(row.rstrip() for row in rows)


def _markdown(lines: list[list[str]]) -> str:
    head, *body = lines
    ruled = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled)
