"""The chart for the README: one panel for each workload, one bar for each column."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import escape

from benchmarks.columns import COLUMNS
from benchmarks.table import number
from benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from benchmarks.results import Results, Spread
    from benchmarks.workloads import Row

PANELS = (
    ("latency", "p50_ms", "Latency of one call"),
    ("concurrent", "per_s", "64 callers at once"),
    ("burst", "per_s", "Burst of 10,000 calls"),
    ("stream", "per_s", "Stream, item by item"),
    ("nested", "seconds", "Nested calls, fib(16)"),
    ("payload", "large_mb_s", "Echo of 32 MiB"),
)
ACROSS = 2
WIDTH, BAR, GAP, TITLE, LABEL = 440, 18, 6, 30, 150
SPAN = WIDTH - LABEL - 90

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600; font-size: 14px }
.bar { fill: #8c959f } .ours { fill: #1f6feb } .whisker { stroke: #1f2328; stroke-width: 1.5 }
.value { font-size: 11px }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .bar { fill: #6e7681 } .ours { fill: #58a6ff } .whisker { stroke: #e6edf3 } }
"""  # noqa: E501


class Bar(NamedTuple):
    """How fast a column is compared to ours, which is 1."""

    column: str
    speed: Spread
    value: float


def bars(results: Results, workload: str, row: Row) -> list[Bar]:
    """Those of the columns that have a figure, ours first; empty without ours."""
    found = []
    for column in COLUMNS:
        speed = results.better(workload, row, "ours", column=column)
        value = results.absolute(workload, row.metric, column)
        if speed is not None and value is not None:
            found.append(Bar(column, speed, value.median))
    return found


def chart(results: Results) -> str:
    """An SVG image. Longer bars are faster; whiskers are the spread over the rounds."""
    panels = []
    for workload, metric, title in PANELS:
        row = next(row for row in WORKLOADS[workload].rows if row.metric == metric)
        if found := bars(results, workload, row):
            panels.append(_panel(title, row.unit, found))
    tallest = TITLE + len(COLUMNS) * (BAR + GAP) + 20
    height = -(-len(panels) // ACROSS) * tallest + 24
    width = WIDTH * ACROSS
    placed = [
        f'<g transform="translate({i % ACROSS * WIDTH},{i // ACROSS * tallest + 10})">{panel}</g>'
        for i, panel in enumerate(panels)
    ]
    caption = (
        f"Longer is faster; linear scale in each panel. {results.machine['cores']} cores, "
        f"2 workers, median of {results.rounds} interleaved rounds; whiskers: lowest to highest."
    )
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            "<title>wool compared with what would be used instead</title>",
            f"<style>{STYLE}</style>",
            *placed,
            _text(10, height - 8, caption, "value"),
            "</svg>\n",
        ]
    )


def _panel(title: str, unit: str, found: list[Bar]) -> str:
    longest = max(bar.speed.high for bar in found)
    parts = [_text(10, 14, title, "title")]
    for i, bar in enumerate(found):
        y = TITLE + i * (BAR + GAP)
        width = bar.speed.median / longest * SPAN
        low, high = (LABEL + end / longest * SPAN for end in (bar.speed.low, bar.speed.high))
        kind = "bar ours" if bar.column in ("ours", "main") else "bar"
        middle = y + BAR / 2
        name = COLUMNS[bar.column].title.replace("`", "")
        parts += [
            _text(LABEL - 8, y + 13, name, "name", end=True),
            f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>',
            f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}"/>',
            _text(max(LABEL + width, high) + 6, y + 13, f"{number(bar.value)} {unit}", "value"),
        ]
    return "".join(parts)


def _text(x: float, y: float, text: str, kind: str, *, end: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y}"{anchor}>{escape(text)}</text>'
