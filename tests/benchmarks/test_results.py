"""How figures are made of samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.results import Results, Spread, spread
from benchmarks.workloads import Row

if TYPE_CHECKING:
    from pathlib import Path

RATE = Row("per_s", "rate", "/s", higher_is_better=True)
TIME = Row("p50_ms", "time", "ms")


@pytest.fixture
def results() -> Results:
    results = Results(rounds=3)
    for turn, (ours, theirs) in enumerate([(10.0, 5.0), (30.0, 10.0), (20.0, 2.0)]):
        results.add("burst", "ours", turn, {"per_s": ours})
        results.add("burst", "ray", turn, {"per_s": theirs})
    return results


def test_spread_is_the_median_between_the_extremes() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_spread_of_nothing_is_none() -> None:
    assert spread([]) is None


def test_better_of_a_rate_divides_within_each_round(results: Results) -> None:
    assert results.better("burst", RATE, "ray") == Spread(3.0, 2.0, 10.0)


def test_better_of_a_time_is_the_inverse() -> None:
    assert TIME.better(ours=0.5, theirs=2.0) == 4.0


def test_better_seen_from_another_column(results: Results) -> None:
    figure = results.better("burst", RATE, "ours", column="ray")

    assert figure == pytest.approx((1 / 3, 0.1, 0.5))


def test_quotient_may_take_another_metric_of_the_other_column(results: Results) -> None:
    results.add("burst", "ray", 0, {"per_s_direct": 20.0})

    figure = results.quotient("burst", "per_s", "ours", "ray", "per_s_direct")

    assert figure == Spread(0.5, 0.5, 0.5)


def test_rounds_without_a_figure_are_left_out(results: Results) -> None:
    results.samples["burst"]["per_s"]["ray"][1] = None

    assert results.better("burst", RATE, "ray") == Spread(6.0, 2.0, 10.0)
    assert results.values("burst", "per_s", "ray") == [5.0, 2.0]


def test_what_was_not_measured_has_no_figure(results: Results) -> None:
    assert results.absolute("latency", "p50_ms", "ours") is None
    assert results.better("burst", RATE, "distributed") is None
    assert results.quotient("latency", "p50_ms", "ours", "floor") is None


def test_results_survive_their_file(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(results.to_json())

    assert Results.read(path) == results
