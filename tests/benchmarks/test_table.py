"""Results as text and as an image."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks import table
from benchmarks.chart import chart
from benchmarks.results import Results, Spread
from benchmarks.targets import check

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def results() -> Results:
    results = Results(rounds=2, versions={"ours": {}, "floor": {}})
    for turn in range(2):
        results.add("latency", "ours", turn, {"p50_ms": 0.5, "p99_ms": 1.0})
        results.add("latency", "floor", turn, {"p50_ms": 0.25, "p99_ms": 0.5 + turn})
    results.reasons["latency"] = {"ray": "ray is not installed", "executor": "hung"}
    results.logs["latency"] = {"executor": "a traceback"}
    return results


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (12345.6, "12,346")],
)
def test_number_has_about_three_digits(value: float, text: str) -> None:
    assert table.number(value) == text


def test_ratio_shows_its_spread() -> None:
    assert table.ratio(Spread(2.0, 1.5, 3.0)) == "2.00× (1.50–3.00)"


def test_table_has_ours_as_a_figure_and_others_as_ratios(results: Results) -> None:
    lines = table.table(results, markdown=True).splitlines()

    assert "| latency p50 | 0.50 ms | 0.50× (0.50–0.50) | failed | – |" in lines
    assert "| latency p99 | 1.00 ms | 1.00× (0.50–1.50) | failed | – |" in lines


def test_table_for_a_terminal_is_aligned(results: Results) -> None:
    head, *rows = table.table(results).splitlines()

    assert all(row.index("0.50 ms") == head.index("wool") for row in rows[:1])


def test_rows_that_may_be_nothing_are_shown_as_they_are() -> None:
    results = Results(rounds=1)
    results.add("memory", "ours", 0, {"caller_kept_kib": 0.0})
    results.add("memory", "ray", 0, {"caller_kept_kib": 2.0})

    assert "| 0 KiB/call | 2.00 KiB/call |" in table.table(results, markdown=True)


def test_targets_say_pass_or_fail(results: Results) -> None:
    text = table.targets(check(results))

    assert "pass" in next(line for line in text.splitlines() if "floor" in line)
    assert "not measured" in next(line for line in text.splitlines() if "published" in line)


def test_chart_has_a_bar_for_each_column_with_a_figure(results: Results) -> None:
    image = ElementTree.fromstring(chart(results))
    ours, floor = image.iter(f"{SVG}rect")

    assert ours.get("class") == "bar ours"
    assert float(floor.get("width", 0)) == pytest.approx(2 * float(ours.get("width", 0)), rel=0.01)


def test_chart_of_nothing_is_an_image_still() -> None:
    assert ElementTree.fromstring(chart(Results(rounds=1))).tag == f"{SVG}svg"
