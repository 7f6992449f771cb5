"""What `wool top` shows, and what its keys do. No terminal, no workers: keys in, pictures out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from wool.cli.amounts import duration, milliseconds, number, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

    from rich.console import RenderableType

    from wool.cli.finding import Sight

KEYS: Final = "q quit   j/k select   s sort   t tasks   d drain   x stop"

LONG_PATH: Final = re.compile(r'File "/.*/([^/"]+/[^/"]+)"')
"""In a stack, of which the last two parts are shown."""

LAGGING: Final = 0.1
"""Seconds of loop lag that are worth looking at."""

AROUND: Final = 8
"""Lines of the screen that are not of the table's rows."""


@dataclass(frozen=True, slots=True)
class Row:
    """A worker, as it is and as it was when it was last asked, `elapsed` seconds before."""

    sight: Sight
    former: Sight | None = None
    elapsed: float = 0.0

    @property
    def uid(self) -> UUID:
        return self.sight.worker.uid

    def value(self, field: str) -> float:
        return float(getattr(self.sight.status, field, 0))

    def rate(self, field: str) -> float:
        """How much it grows in a second."""
        before = self.former.status if self.former is not None else None
        if self.sight.status is None or before is None or not self.elapsed:
            return 0.0
        return max(0.0, self.value(field) - float(getattr(before, field))) / self.elapsed


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    value: Callable[[Row], float]
    show: Callable[[float], str]


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _field(name: str) -> Callable[[Row], float]:
    return lambda row: row.value(name)


COLUMNS: Final = (
    Column("uptime", _field("uptime"), duration),
    Column("running", _field("running"), _count),
    Column("done", _field("done"), _count),
    Column("failed", _field("failed"), _count),
    Column("calls/s", lambda row: row.rate("done"), _count),
    Column("lag", _field("loop_lag"), milliseconds),
    Column("CPU", lambda row: row.rate("cpu") * 100, lambda value: f"{value:.0f} %"),
    Column("memory", _field("memory"), size),
    Column("idle", _field("idle"), duration),
)
"""What there is to sort by."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be done with a worker: `drain` or `stop`."""

    action: str
    sight: Sight


class View:
    """Which workers there are, which one is selected, and what else is shown of them."""

    def __init__(self, places: str) -> None:
        self.tasks = False
        self.message = ""
        self._places = places
        self._rows: list[Row] = []
        self._selected: UUID | None = None
        self._sorting: int | None = None
        self._asked: Request | None = None
        self._detail: Sight | None = None

    @property
    def selected(self) -> Row | None:
        return next((row for row in self._rows if row.uid == self._selected), None)

    def update(self, rows: Iterable[Row], detail: Sight | None = None) -> None:
        """Show these workers, and the tasks of `detail`."""
        self._rows = sorted(rows, key=self._order)
        self._detail = detail
        if self.selected is None:
            self._selected = self._rows[0].uid if self._rows else None

    def _order(self, row: Row) -> tuple[str, float, int]:
        column = None if self._sorting is None else COLUMNS[self._sorting]
        return row.sight.host, -column.value(row) if column else 0.0, row.uid.int

    def press(self, key: str) -> Request | None:
        """Take a key; what is to be done then."""
        if self._asked is not None:
            asked, self._asked = self._asked, None
            self.message = ""
            return asked if key == "y" else None
        row = self.selected
        if key in ("j", "down", "k", "up"):
            self._move(1 if key in ("j", "down") else -1)
        elif key in ("s", "right", "left"):
            self._sort(-1 if key == "left" else 1)
        elif key == "t":
            self.tasks = not self.tasks
        elif key == "d" and row is not None:
            return Request("drain", row.sight)
        elif key == "x" and row is not None:
            self._asked = Request("stop", row.sight)
            self.message = f"Cancel what {name(row.sight)} runs, and stop it? y/n"
        return None

    def _move(self, step: int) -> None:
        uids = [row.uid for row in self._rows]
        if self._selected in uids:
            place = uids.index(self._selected) + step
            self._selected = uids[min(max(place, 0), len(uids) - 1)]

    def _sort(self, step: int) -> None:
        choices = [None, *range(len(COLUMNS))]
        self._sorting = choices[(choices.index(self._sorting) + step) % len(choices)]
        self.update(self._rows, self._detail)

    # The picture

    def render(self, height: int) -> RenderableType:
        parts: list[RenderableType] = [self._summary()]
        shown = self._window(max(height - AROUND, 3) // (2 if self.tasks else 1))
        parts.append(self._table(shown) if shown else Text("\nNo workers yet\n", "dim"))
        if self.tasks:
            parts.append(self._tasks(max(height - AROUND - len(shown), 3)))
        parts.append(Text(self.message or KEYS, "bold yellow" if self.message else "dim"))
        return Group(*parts)

    def _summary(self) -> Text:
        workers = number(len(self._rows), "worker")
        hosts = number(len({row.sight.host for row in self._rows}), "host")
        running, rate = int(self._sum("running")), sum(row.rate("done") for row in self._rows)
        return Text.assemble(
            ("wool top", "bold"),
            f"  {self._places}  {workers} on {hosts}, ",
            f"{number(running, 'call')} running, {rate:,.0f}/s",
            overflow="ellipsis",
            no_wrap=True,
        )

    def _sum(self, field: str) -> float:
        return sum(row.value(field) for row in self._rows)

    def _window(self, most: int) -> list[Row]:
        """As many rows as there is room for, the selected one among them."""
        selected = self.selected
        place = self._rows.index(selected) if selected is not None else 0
        first = min(max(0, place - most // 2), max(0, len(self._rows) - most))
        return self._rows[first : first + most]

    def _table(self, rows: list[Row]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
        for title in ("host", "worker", "tags"):
            table.add_column(title, no_wrap=True, overflow="ellipsis")
        for place, column in enumerate(COLUMNS):
            title = f"{column.name}▾" if place == self._sorting else column.name
            table.add_column(title, justify="right", no_wrap=True)
        for host, group in groupby(rows, key=lambda row: row.sight.host):
            for first, row in zip([host, *[""] * len(rows)], group, strict=False):
                style = "reverse" if row.uid == self._selected else ""
                table.add_row(first, *self._cells(row), style=style)
        return table

    def _cells(self, row: Row) -> Iterable[Text]:
        worker, status = row.sight.worker, row.sight.status
        draining = status is not None and status.draining
        yield Text(worker.uid.hex[:8], "yellow" if draining else "red" if status is None else "")
        yield Text(",".join(sorted(worker.tags)))
        for column in COLUMNS:
            if status is None:
                yield Text("silent" if column.name == "uptime" else "", "red")
            else:
                value = column.value(row)
                yield Text(column.show(value), _style(column.name, value))

    def _tasks(self, most: int) -> Text:
        detail = self._detail
        if detail is None or detail.status is None:
            return Text(f"{detail.problem if detail else 'Asking'}\n", "dim")
        lines = [f"{name(detail)} runs {number(len(detail.status.tasks), 'task')}"]
        for task in detail.status.tasks:
            lines.append(f"{task.tag}, for {duration(task.seconds)}")
            lines += LONG_PATH.sub(r'File ".../\1"', task.stack).rstrip().splitlines()
        if len(lines) > most:
            lines[most - 1 :] = [f"and {len(lines) - most + 1} more lines"]
        return Text("\n".join(lines) + "\n", overflow="ellipsis", no_wrap=True)


def name(sight: Sight) -> str:
    return f"{sight.worker.uid.hex[:8]} on {sight.host}"


def _style(column: str, value: float) -> str:
    if (column == "failed" and value) or (column == "lag" and value >= LAGGING):
        return "red"
    return "green" if column in ("running", "calls/s") and value else ""
