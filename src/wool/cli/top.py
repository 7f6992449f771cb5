"""`wool top`: how the workers are, live."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import click
from rich.console import Console
from rich.live import Live

from wool.cli.finding import Finder, Sight, UnreachableError, apply
from wool.cli.options import SETTINGS, chosen, places, tls
from wool.cli.view import Request, Row, View, name

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from uuid import UUID

    from wool.runtime.worker.metadata import WorkerMetadata

ARROWS: Final = {"A": "up", "B": "down", "C": "right", "D": "left"}


@click.command(context_settings=SETTINGS)
@places
@tls
@click.option(
    "--interval",
    type=click.FloatRange(0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="From one look to the next.",
)
def top(*, interval: float, **given: Any) -> None:
    """Show how the workers are, live, by host.

    Keys: q quits; j, k and up, down select a worker; s and left, right change what they are sorted
    by; t shows what the selected one runs, and where; d drains it, x stops it.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("top needs a terminal; wool status does without")
    shown = " ".join(map(str, chosen(given["discovery"], given["join"])))
    asyncio.run(Top(Finder.of(wait=None, **given), View(shown), interval).run())


class Top:
    """Follows the workers that a finder finds, and shows them in a view."""

    def __init__(self, finder: Finder, view: View, interval: float) -> None:
        self.view = view
        self._finder = finder
        self._interval = interval
        self._found: dict[UUID, WorkerMetadata] = {}
        self._seen: dict[UUID, tuple[float, Sight]] = {}
        self._failure: UnreachableError | None = None
        self._over = asyncio.Event()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """On this process's terminal, until it is told to quit."""
        console = Console()
        with keys(self._press), Live(screen=True, auto_refresh=False, console=console) as live:
            self._spawn(self.follow())
            self._spawn(self._look_again_and_again())
            try:
                while not self._over.is_set():
                    live.update(self.view.render(console.height), refresh=True)
                    self._changed.clear()
                    await self._changed.wait()
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    async def follow(self) -> None:
        """Keep track of which workers there are."""
        try:
            async with aclosing(cast("Any", aiter(self._finder.discovery.subscriber))) as events:
                async for event in events:
                    apply(event, self._found)
        except Exception as exc:
            self._failure = UnreachableError(exc)
            self._over.set()
            self._changed.set()

    async def look(self) -> None:
        """Ask all workers how they are."""
        selected = self.view.selected
        uid = selected.uid if selected is not None and self.view.tasks else None
        asked = [
            self._finder.ask(worker, tasks=worker.uid == uid) for worker in self._found.values()
        ]
        sights = await asyncio.gather(*asked)
        now = asyncio.get_running_loop().time()
        rows = [self._row(sight, now) for sight in sights]
        self._seen = {sight.worker.uid: (now, sight) for sight in sights}
        self.view.update(rows, next((each for each in sights if each.worker.uid == uid), None))
        self._changed.set()

    def _row(self, sight: Sight, now: float) -> Row:
        before, former = self._seen.get(sight.worker.uid, (now, None))
        return Row(sight, former, now - before)

    async def _look_again_and_again(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._interval)

    def _press(self, key: str) -> None:
        self._changed.set()
        if key == "q":
            self._over.set()
            return
        request = self.view.press(key)
        if request is not None:
            self._spawn(self._stop(request))
        elif self.view.tasks:
            self._spawn(self.look())

    async def _stop(self, request: Request) -> None:
        drain = request.action == "drain"
        who = name(request.sight)
        self.view.message = f"{who} {'drains' if drain else 'stops'}"
        self._changed.set()
        problem = await self._finder.stop(request.sight.worker, -1 if drain else 0)
        self.view.message = f"{who} was not stopped: {problem}" if problem else ""
        self._changed.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.view.message = f"{type(error).__name__}: {error}"
            self._changed.set()


@contextmanager
def keys(press: Callable[[str], None]) -> Iterator[None]:
    """Have each key that is pressed be passed on at once, inside a `with` block."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    loop = asyncio.get_running_loop()
    tty.setcbreak(terminal)
    loop.add_reader(terminal, lambda: _read(terminal, press))
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _read(terminal: int, press: Callable[[str], None]) -> None:
    try:
        text = os.read(terminal, 1024).decode(errors="replace")
    except OSError:
        text = ""
    if not text:  # The terminal is gone.
        press("q")
    while text:
        if text.startswith(("\x1b[", "\x1bO")) and text[2:3] in ARROWS:
            press(ARROWS[text[2]])
            text = text[3:]
        else:
            press(text[0])
            text = text[1:]
