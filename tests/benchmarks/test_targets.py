"""What passes and what doesn't."""

from __future__ import annotations

import pytest

from benchmarks.columns import COLUMNS
from benchmarks.results import Results
from benchmarks.targets import TARGETS, Verdict, check
from benchmarks.workloads import WORKLOADS


def _results(**metrics: dict[str, float]) -> Results:
    results = Results(rounds=1)
    for column, values in metrics.items():
        results.versions[column] = {}
        results.add("latency", column, 0, values)
    return results


def _verdict(results: Results, other: str) -> Verdict:
    return next(v for v in check(results) if v.target.other == other and v.column == "ours")


@pytest.mark.parametrize(("ours", "met"), [(1.9, True), (2.1, False)])
def test_ratio_is_compared_with_its_bound(ours: float, met: bool) -> None:
    results = _results(ours={"p50_ms": ours}, floor={"p50_ms": 1.0})

    assert _verdict(results, "floor").met is met


def test_missing_peer_leaves_a_target_open() -> None:
    results = _results(ours={"p50_ms": 1.0})

    assert _verdict(results, "published").met is None


def test_missing_figure_of_ours_is_a_miss() -> None:
    results = _results(ours={"p99_ms": 1.0}, floor={"p50_ms": 1.0})

    assert _verdict(results, "floor").met is False


def test_missing_figure_in_a_quick_run_leaves_a_target_open() -> None:
    results = _results(ours={"p99_ms": 1.0}, floor={"p50_ms": 1.0})
    results.quick = True

    assert _verdict(results, "floor").met is None


def test_growth_is_compared_within_a_column() -> None:
    results = Results(rounds=1, versions={"ours": {}})
    results.add("growth", "ours", 0, {"workers_2_us": 100.0, "workers_8_us": 119.0})

    verdict = next(v for v in check(results) if v.target.metric == "workers_8_us")

    assert verdict.met
    assert verdict.figure is not None
    assert verdict.figure.median == pytest.approx(1.19)


def test_columns_that_did_not_run_are_not_judged() -> None:
    results = _results(ours={"p50_ms": 1.0}, floor={"p50_ms": 1.0})

    assert {verdict.column for verdict in check(results)} == {"ours"}


def test_targets_speak_of_what_is_measured() -> None:
    """`other_metric` may also be one of a peer's ways to do the same, which is no row."""
    known = {(w.key, row.metric) for w in WORKLOADS.values() for row in w.rows}

    assert {(target.workload, target.metric) for target in TARGETS} <= known
    assert {target.other for target in TARGETS} <= {"", "self", *COLUMNS}
