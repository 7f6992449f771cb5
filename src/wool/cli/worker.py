"""`wool worker`: workers in the foreground."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from wool.cli import logs
from wool.cli.certificates import certified_name
from wool.cli.fleet import Fleet, Limits, Ports
from wool.cli.options import SETTINGS, Tls, chosen, discover, places, port, size, tag, tls
from wool.runtime.worker.local import LocalWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wool.cli.places import Place

ADVERTISING = ("lan", "redis")
"""The kinds of places that say where their workers are to be called."""


@click.command(context_settings=SETTINGS)
@click.option("--workers", type=click.IntRange(1), help="How many. [default: one for each CPU]")
@places
@click.option("--tag", type=tag, multiple=True, help="That the workers have. Repeatable.")
@click.option("--host", help="Where to listen, such as 0.0.0.0. [default: a socket of this user]")
@click.option(
    "--port", type=port, help="Of the first worker; the others have those after it. [default: any]"
)
@click.option("--advertise", metavar="HOST", help="Where others reach this host.")
@tls
@click.option("--max-tasks", type=click.IntRange(1), help="How many calls a worker runs at once.")
@click.option(
    "--max-tasks-per-child",
    type=click.IntRange(1),
    help="A worker that has run so many calls, or some more, is replaced when they have ended.",
)
@click.option(
    "--max-memory", type=size, metavar="SIZE", help="A worker that has more is replaced likewise."
)
@click.option("--health-port", type=port, help="Serve grpc.health.v1 here, without TLS.")
@click.option("--metrics-port", type=port, help="Serve /metrics for Prometheus here.")
@click.option("--import", "modules", multiple=True, metavar="MODULE", help="For workers to import.")
@click.option("--uvloop", is_flag=True, help="Run the workers' routines on uvloop.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="info",
    show_default=True,
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text")
@click.pass_context
def worker(
    ctx: click.Context,
    /,
    *,
    tag: Sequence[str],
    max_tasks: int | None,
    modules: Sequence[str],
    uvloop: bool,
    log_level: str,
    log_format: str,
    **given: Any,
) -> None:
    """Run workers, and replace those that die.

    SIGTERM or SIGINT lets calls end, a second one cancels them. Workers that `wool stop` has
    stopped are not replaced.
    """
    make = partial(
        LocalWorker,
        *tag,
        max_concurrent_tasks=max_tasks,
        initializer=partial(logs.begin_worker, log_level, log_format, modules),
        loop_factory=_uvloop() if uvloop else None,
    )
    fleet = _fleet(make, log_format=log_format, **given)
    logs.set_up(log_level, log_format)
    ctx.exit(asyncio.run(fleet.run()))


def _fleet(
    make: Callable[..., LocalWorker],
    *,
    workers: int | None,
    discovery: Sequence[Place],
    join: Sequence[str],
    host: str | None,
    port: int | None,
    advertise: str | None,
    max_tasks_per_child: int | None,
    max_memory: int | None,
    health_port: int | None,
    metrics_port: int | None,
    log_format: str,
    **tls: Any,
) -> Fleet:
    count = workers or os.cpu_count() or 1
    places = chosen(discovery, join)
    _check_places(places, advertise)
    _check_ports(port, count)
    if metrics_port is not None:
        import_module("wool.cli.metrics")  # Which says so if its extra is missing.
    given = Tls(**tls)
    credentials = given.provider(serving=True)
    return Fleet(
        partial(make, credentials=credentials, identity=given.identity),
        count,
        discover(places, advertise=advertise),
        announced=", ".join(map(str, places)),
        host=host,
        port=port,
        credentials=credentials,
        certified=_certified_name(given),
        limits=Limits(max_tasks_per_child, max_memory),
        ports=Ports(health_port, metrics_port),
        log_format=log_format,
    )


def _check_ports(first: int | None, count: int) -> None:
    if first is not None and first + count > 65536:
        raise click.BadParameter(
            f"{count} workers have no ports from {first} on", param_hint="--port"
        )


def _check_places(places: Sequence[Place], advertise: str | None) -> None:
    for place in places:
        if place.kind == "dns":
            raise click.BadParameter(
                f"{place} announces nobody: workers are found there if the name leads to them. "
                "Leave it out, and give --host and --port",
                param_hint="--discovery",
            )
    if advertise is not None and not any(place.kind in ADVERTISING for place in places):
        raise click.BadParameter(
            "it is for lan and redis, which tell other hosts where the workers are",
            param_hint="--advertise",
        )


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError as exc:
        raise click.BadParameter(
            f"{exc}: python -m pip install 'wool[uvloop]'", param_hint="--uvloop"
        ) from exc
    return uvloop.new_event_loop


def _certified_name(given: Tls) -> str | None:
    if given.files is None:
        return None
    try:
        return certified_name(*given.files)
    except (OSError, ValueError) as exc:
        raise click.BadParameter(
            f"workers can't be called with it: {exc}", param_hint="--cert"
        ) from exc
