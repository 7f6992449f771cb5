"""The bar that shows how far a `wool.map` is. Imported where one is asked for: it takes rich."""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Task

    from wool.runtime.map import MapProgress

INTERVAL: Final = 0.1
"""Seconds, at least, from one drawing to the next."""


@contextmanager
def bar(name: str, total: int | None) -> Iterator[Callable[[MapProgress], None] | None]:
    """What is to be called to update a bar, or None where none can be seen."""
    console = Console(stderr=True)
    screen: _Screen
    if console.is_jupyter:
        screen = _Notebook()
    elif _is_terminal(console):
        screen = _terminal
    else:
        yield None
        return
    lines = screen.open(console)
    try:
        line = _Line(screen, lines, name, total)
        try:
            yield line.update
        finally:
            line.end()
    finally:
        screen.close()


def _is_terminal(console: Console) -> bool:
    """Not rich's answer alone, which variables of the environment can change."""
    seen = sys.stderr is not None and sys.stderr.isatty()
    return seen and console.is_terminal and not console.is_dumb_terminal


class _Screen(Protocol):
    """Where lines are drawn."""

    def open(self, console: Console) -> Progress: ...
    def draw(self) -> None: ...
    def close(self) -> None: ...


class _Terminal:
    """Bars that overlap in time share it: each has a line, until the last of them ends."""

    def __init__(self) -> None:
        self._lines: Progress | None = None
        self._bars = 0

    def open(self, console: Console) -> Progress:
        if self._lines is None:
            self._lines = _lines(console)
            self._lines.start()
        self._bars += 1
        return self._lines

    def draw(self) -> None:
        assert self._lines is not None
        self._lines.refresh()

    def close(self) -> None:
        assert self._lines is not None
        self._bars -= 1
        if not self._bars:
            self._lines.stop()
            self._lines = None


_terminal = _Terminal()


class _Notebook:
    """An output of a cell. Not rich's own, which takes ipywidgets."""

    def __init__(self) -> None:
        self._output: Any = None

    def open(self, console: Console) -> Progress:
        self._lines = _lines(console)
        return self._lines

    def draw(self) -> None:
        if self._output is not None:
            self._output.update(self._lines)
            return
        from IPython.display import display

        self._output = display(self._lines, display_id=True)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        pass


class _Line:
    """One bar. It is drawn soon after a change, and in the end."""

    def __init__(self, screen: _Screen, lines: Progress, name: str, total: int | None) -> None:
        self._screen = screen
        self._lines = lines
        self._line = lines.add_task(name, total=total, failed=0)
        screen.draw()
        self._loop = asyncio.get_running_loop()
        self._latest: MapProgress | None = None
        self._timer: asyncio.TimerHandle | None = None

    def update(self, progress: MapProgress) -> None:
        self._latest = progress
        if self._timer is None:
            self._timer = self._loop.call_later(INTERVAL, self._draw)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._lines.stop_task(self._line)
        self._draw()

    def _draw(self) -> None:
        self._timer = None
        if (latest := self._latest) is not None:
            self._lines.update(
                self._line, completed=latest.done, total=latest.total, failed=latest.failed
            )
        self._screen.draw()


def _lines(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        _Rate(),
        _Remaining(),
        _Failures(),
        console=console,
        auto_refresh=False,
        expand=True,
        # What is printed appears above the bars, unless it goes elsewhere.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )


class _Rate(ProgressColumn):
    """Calls in a second: lately, and in the end on average."""

    def render(self, task: Task) -> Text:
        speed = task.speed
        if speed is None or task.stop_time is not None:
            speed = task.completed / task.elapsed if task.elapsed else 0
        return Text(f"{speed:,.1f}/s")


class _Remaining(TimeRemainingColumn):
    def render(self, task: Task) -> Text:
        remaining = super().render(task)
        return remaining.append(" left") if remaining else remaining


class _Failures(ProgressColumn):
    def render(self, task: Task) -> Text:
        failed = task.fields["failed"]
        return Text(f"{failed:,} failed", style="red" if failed else "")
