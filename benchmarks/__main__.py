"""The command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import stages, table
from benchmarks.chart import chart
from benchmarks.columns import COLUMNS
from benchmarks.results import Results
from benchmarks.runner import run
from benchmarks.targets import check
from benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RESULTS = Path(__file__).parent / "results"
ROUNDS = 5


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--only", type=_keys(WORKLOADS), metavar="WORKLOAD,...", help=f"of {', '.join(WORKLOADS)}")
    add("--columns", type=_keys(COLUMNS), metavar="COLUMN,...", help=f"of {', '.join(COLUMNS)}")
    add("--rounds", type=int, help=f"default {ROUNDS}; 1 if quick")
    add("--quick", action="store_true", help="few calls, to try the benchmark")
    add("--output", type=Path, metavar="FILE.json", help="default: results/results.json")
    add("--from", dest="source", type=Path, metavar="FILE.json", help="show an earlier run's")
    add("--check", action="store_true", help="fail if a target is missed")
    add("--markdown", action="store_true", help="print the table as markdown")
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be positive")
    return options


def _keys(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    def parse_keys(text: str) -> list[str]:
        keys = text.split(",")
        if unknown := [key for key in keys if key not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
        return keys

    return parse_keys


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    results = Results.read(options.source) if options.source else _measure(options)
    if results.quick:
        print("A quick run: fewer calls and smaller payloads than the table says.\n")
    print(table.table(results, markdown=options.markdown))
    for workload, reasons in results.reasons.items():
        for column in results.logs.get(workload, {}):
            print(f"{column} failed at {workload}: {reasons[column]}")
    if results.stages:
        print(f"\nWhere the time of one call goes:\n{table.stages(results)}")
    if not options.check:
        return 0
    verdicts = check(results)
    print(f"\n{table.targets(verdicts)}")
    return int(any(verdict.met is False for verdict in verdicts))


def _measure(options: argparse.Namespace) -> Results:
    partial = options.only or options.columns or options.quick
    path = options.output or RESULTS / ("partial.json" if partial else "results.json")

    def save(results: Results) -> None:
        path.write_text(results.to_json())
        path.with_suffix(".svg").write_text(chart(results))

    results = run(
        options.only or list(WORKLOADS),
        options.columns or list(COLUMNS),
        options.rounds or (1 if options.quick else ROUNDS),
        quick=options.quick,
        save=save,
    )
    if not partial:
        results.stages = stages.measure()
    save(results)
    print(f"Written to {path} and {path.with_suffix('.svg')}", file=sys.stderr)
    return results


if __name__ == "__main__":
    sys.exit(main())
