"""`wool status`: how the workers are, once."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from wool.cli.amounts import duration, milliseconds, size
from wool.cli.finding import Finder, Sight
from wool.cli.options import SETTINGS, places, tls, waiting

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.table import Table

FIELDS: Final = (
    "draining",
    "uptime",
    "idle",
    "running",
    "done",
    "failed",
    "refused",
    "sessions",
    "loop_lag",
    "cpu",
    "memory",
)
"""Of a status: durations are in seconds, memory is in bytes."""

COLUMNS: Final = (
    *("worker", "host", "pid", "tags", "state", "uptime", "idle"),
    *("running", "done", "failed", "refused", "lag", "cpu", "memory"),
)

NUMBERS: Final = COLUMNS[5:]
"""Those that are aligned to the right."""

EXPENDABLE: Final = (
    *("refused", "cpu", "lag", "idle", "pid", "host"),
    *("failed", "memory", "tags", "uptime", "done"),
)
"""Those that are left out, one after the other, of a table that is too wide for its terminal."""


@click.command(context_settings=SETTINGS)
@places
@tls
@waiting
@click.option("--json", "as_json", is_flag=True, help="As JSON, in seconds and bytes.")
@click.pass_context
def status(ctx: click.Context, /, *, as_json: bool, **given: Any) -> None:
    """Tell how the workers are.

    Ends with 1 if there is none, or one of them does not say how it is, with 2 if they can't be
    looked for.
    """
    sights = asyncio.run(_look(Finder.of(**given)))
    if as_json:
        click.echo(json.dumps({"workers": [*map(describe, sights)]}, indent=2))
    elif not sights:
        click.echo("No workers found", err=True)
    elif sys.stdout is not None and sys.stdout.isatty():
        _print_table(sights)
    else:
        click.echo(_aligned([COLUMNS, *map(_cells, sights)]))
    for sight in sights:
        if sight.problem and not as_json:
            click.echo(f"{sight.worker.uid} at {sight.worker.address}: {sight.problem}", err=True)
    ctx.exit(not sights or any(sight.problem for sight in sights))


async def _look(finder: Finder) -> list[Sight]:
    sights = await finder.look(await finder.find())
    return sorted(sights, key=lambda sight: (sight.host, sight.worker.pid, sight.worker.uid))


def describe(sight: Sight) -> dict[str, Any]:
    """A worker for machines; what it says of itself is null if it says nothing."""
    worker, status = sight.worker, sight.status
    return {
        "uid": str(worker.uid),
        "address": worker.address,
        "host": sight.host,
        "pid": worker.pid,
        "version": worker.version,
        "tags": sorted(worker.tags),
        "extra": dict(worker.extra),
        "secure": worker.secure,
        "identity": worker.identity,
        **{field: getattr(status, field, None) for field in FIELDS},
        "problem": sight.problem or None,
    }


def _cells(sight: Sight) -> tuple[str, ...]:
    worker, status = sight.worker, sight.status
    tags = ",".join(sorted(worker.tags)) or "-"
    who = (worker.uid.hex[:8], sight.host, str(worker.pid), tags)
    if status is None:
        return (*who, "silent", *["-"] * len(NUMBERS))
    return (
        *who,
        "draining" if status.draining else "serving",
        duration(status.uptime),
        duration(status.idle),
        f"{status.running:,}",
        f"{status.done:,}",
        f"{status.failed:,}",
        f"{status.refused:,}",
        milliseconds(status.loop_lag),
        duration(status.cpu),
        size(status.memory),
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(_justified(row, widths)).rstrip() for row in rows)


def _justified(row: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
    for name, cell, width in zip(COLUMNS, row, widths, strict=True):
        yield cell.rjust(width) if name in NUMBERS else cell.ljust(width)


def _print_table(sights: Sequence[Sight]) -> None:
    from rich.console import Console

    console = Console()
    unbounded = console.options.update(max_width=sys.maxsize)
    columns = list(COLUMNS)
    for name in EXPENDABLE:
        if console.measure(_table(sights, columns), options=unbounded).maximum <= console.width:
            break
        columns.remove(name)
    console.print(_table(sights, columns))


def _table(sights: Iterable[Sight], columns: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(name, justify="right" if name in NUMBERS else "left", no_wrap=True)
    for sight in sights:
        cells = dict(zip(COLUMNS, _cells(sight), strict=True))
        table.add_row(*(cells[name] for name in columns))
    return table
