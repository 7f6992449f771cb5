"""Runs the workloads: in every round of each, every column has one turn."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, TextIO

from benchmarks.columns import COLUMNS, set_up_published
from benchmarks.results import Results
from benchmarks.turns import take
from benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.turns import Outcome
    from benchmarks.workloads import Workload


class Progress:
    """A line that tells where a run is; on a terminal it is rewritten in place."""

    def __init__(self, turns: int, file: TextIO = sys.stderr) -> None:
        self._turns = turns
        self._done = 0
        self._start = time.monotonic()
        self._file = file

    def show(self, what: str) -> None:
        self._done += 1
        elapsed = time.monotonic() - self._start
        left = elapsed / max(self._done - 1, 1) * (self._turns - self._done + 1)
        line = f"[{self._done}/{self._turns}] {what}"
        if self._done > 1:
            line += f", {left // 60:.0f} min {left % 60:02.0f} s left"
        self._write(f"\r\x1b[K{line}" if self._file.isatty() else f"{line}\n")

    def skip(self, turns: int) -> None:
        self._turns -= turns

    def note(self, text: str) -> None:
        self._write(f"\r\x1b[K{text}\n" if self._file.isatty() else f"{text}\n")

    def end(self) -> None:
        if self._file.isatty():
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()


def rotated(columns: Sequence[str], turn: int) -> list[str]:
    """So that no column always follows the same one's heat: each round starts one further."""
    start = turn % len(columns)
    return [*columns[start:], *columns[:start]]


def run(
    workloads: Sequence[str],
    columns: Sequence[str],
    rounds: int,
    *,
    quick: bool = False,
    save: Callable[[Results], object] = lambda results: None,
) -> Results:
    """`save` is called after each workload."""
    results = Results(rounds, quick)
    plan = {key: [c for c in columns if c in WORKLOADS[key].columns] for key in workloads}
    progress = Progress(sum(map(len, plan.values())) * rounds)
    if "published" in columns and (problem := set_up_published()):
        progress.note(f"wool 0.15.7 {problem}")
    for key in workloads:
        _run_workload(results, WORKLOADS[key], plan[key], progress)
        save(results)
    progress.end()
    return results


def _run_workload(
    results: Results, workload: Workload, columns: list[str], progress: Progress
) -> None:
    out: set[str] = set()
    parameters = {**workload.parameters, **(workload.quick if results.quick else {})}
    for turn in range(results.rounds):
        results.load.append(os.getloadavg()[0])
        for column in rotated(columns, turn):
            if column in out:
                continue
            progress.show(f"{workload.key}, round {turn + 1}, {column}")
            outcome = take(COLUMNS[column], workload.key, parameters, workload.deadline)
            results.add(workload.key, column, turn, outcome.metrics)
            if outcome.versions:
                results.versions[column] = outcome.versions
            if reason := outcome.failure or outcome.absent:
                out.add(column)
                progress.skip(results.rounds - turn - 1)
                _note(results, workload.key, column, outcome, progress)
                results.reasons.setdefault(workload.key, {})[column] = reason


def _note(
    results: Results, workload: str, column: str, outcome: Outcome, progress: Progress
) -> None:
    if outcome.failure:
        results.logs.setdefault(workload, {})[column] = outcome.log
        progress.note(f"{column} failed at {workload}: {outcome.failure}")
