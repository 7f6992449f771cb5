"""`wool stop`: workers that are to end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from wool.cli.finding import Finder
from wool.cli.options import SETTINGS, places, tls, waiting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wool.runtime.worker.metadata import WorkerMetadata


@click.command(context_settings=SETTINGS)
@click.argument("workers", nargs=-1, metavar="[UID]...")
@places
@tls
@waiting
@click.option("--tag", multiple=True, help="Those that have one of these. Repeatable.")
@click.option("--all", "everyone", is_flag=True, help="All that are found.")
@click.option("--drain/--now", default=True, help="Let calls end, or cancel them. [default: drain]")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Cancel what still runs after that. [default: never]",
)
@click.pass_context
def stop(
    ctx: click.Context,
    /,
    *,
    workers: Sequence[str],
    tag: Sequence[str],
    everyone: bool,
    drain: bool,
    timeout: float | None,
    **given: Any,
) -> None:
    """Stop workers: some by their uids or the beginnings of these, some by tag, or all.

    Returns when they have stopped. A pool replaces workers of its own that end; `wool worker` does
    not replace those stopped here. Ends with 1 if there is none, or one could not be stopped.
    """
    if sum([bool(workers), bool(tag), everyone]) != 1:
        raise click.UsageError("say which workers: by uid, by --tag, or --all")
    if timeout is not None and not drain:
        raise click.UsageError("--timeout is how long to drain: leave out --now")
    finder = Finder.of(**given)
    seconds = (-1 if timeout is None else timeout) if drain else 0
    ctx.exit(asyncio.run(_stop(finder, workers, frozenset(tag), everyone, seconds)))


async def _stop(
    finder: Finder, uids: Sequence[str], tags: frozenset[str], everyone: bool, timeout: float
) -> int:
    found = await finder.find()
    if uids:
        found = _named(found, uids)
    elif not everyone:
        found = [worker for worker in found if worker.tags & tags]
    if not found:
        click.echo("No such workers found", err=True)
        return 1
    return max(await asyncio.gather(*(_stop_one(finder, worker, timeout) for worker in found)))


async def _stop_one(finder: Finder, worker: WorkerMetadata, timeout: float) -> int:
    name = f"{worker.uid.hex[:8]} at {worker.address}"
    problem = await finder.stop(worker, timeout)
    if problem:
        click.echo(f"{name} was not stopped: {problem}", err=True)
        return 1
    click.echo(f"{name} has stopped")
    return 0


def _named(found: Sequence[WorkerMetadata], uids: Sequence[str]) -> list[WorkerMetadata]:
    """Those whose uids begin so. Raises `UsageError` for what is the beginning of none or many."""
    named = {}
    for given in uids:
        start = given.replace("-", "").lower()
        matching = [worker for worker in found if start and worker.uid.hex.startswith(start)]
        if len(matching) != 1:
            count = len(matching) or "no"
            raise click.UsageError(f"{given!r} is the beginning of {count} workers' uids")
        named[matching[0].uid] = matching[0]
    return list(named.values())
