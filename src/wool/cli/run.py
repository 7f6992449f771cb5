"""`wool run`: a script whose routines go to a pool."""

from __future__ import annotations

import asyncio
import logging
import pickle
import runpy
import sys
import threading
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import click

import wool
from wool.cli.options import FILE, SETTINGS, Tls, chosen, discover, places, tls
from wool.cli.places import Place
from wool.runtime.worker.auth import CredentialContext
from wool.runtime.worker.local import LocalWorker
from wool.runtime.worker.pool import WorkerPool
from wool.runtime.worker.proxy import WorkerProxy
from wool.runtime.worker.transport import overlook_closed_loops

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
    from pathlib import Path
    from uuid import UUID

    from wool.runtime.discovery.base import DiscoveryLike
    from wool.runtime.routine.task import Task
    from wool.runtime.worker.auth import Credentials


@click.command(
    context_settings={
        **SETTINGS,
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
    }
)
@click.argument("script", type=FILE)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("--workers", type=click.IntRange(1), help="Start so many for the script.")
@places
@click.option("--lease", type=click.IntRange(1), help="Use no more than so many. [default: all]")
@tls
def run(
    *,
    script: Path,
    args: Sequence[str],
    workers: int | None,
    discovery: Sequence[Place],
    join: Sequence[str],
    lease: int | None,
    **given: Any,
) -> None:
    """Run SCRIPT with its ARGS, and its routines in workers, where it enters no pool itself.

    The workers are those at the places given, or those started for it by --workers, or both.
    """
    # Unless the script sets up logging, warnings go to standard error: that none is there, say.
    logging.getLogger("wool").handlers.clear()
    options = Tls(**given)
    credentials = options.provider(serving=workers is not None)
    found = chosen(discovery, join, default=workers is None)
    sys.argv = [str(script), *args]
    sys.path[0] = str(script.resolve().parent)  # Before workers start, which inherit it.
    with ExitStack() as stack:
        if workers is not None:
            own = Place.parse(f"local:run-{uuid4().hex}")
            found.append(own)
            stack.enter_context(_workers(workers, own.discovery(), credentials, options.identity))
        everything = discover(found, secure=credentials is not None, identity=options.identity)
        stack.enter_context(CredentialContext(credentials))
        wool.__proxy__.set(AmbientProxy(WorkerProxy(discovery=everything.subscriber, lease=lease)))
        runpy.run_path(str(script), run_name="__main__")


class AmbientProxy:
    """Stands for a proxy in any number of event loops, one after the other or at a time.

    In each, a copy of `proxy` starts with the first call, and stops when the loop is shut down, as
    `asyncio.run` does at its end.
    """

    def __init__(self, proxy: WorkerProxy) -> None:
        self._proxy = proxy
        self._copies: dict[asyncio.AbstractEventLoop, WorkerProxy] = {}
        self._lives: dict[asyncio.AbstractEventLoop, AsyncGenerator[WorkerProxy, None]] = {}

    @property
    def id(self) -> UUID:
        return self._proxy.id

    def dump(self) -> bytes:
        """The pickle of the proxy, which takes this one's place in workers."""
        return self._proxy.dump()

    async def dispatch(self, task: Task, *, timeout: float | None = None) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        copy = self._copies.get(loop)
        if copy is None:
            life = self._lives[loop] = self._live(loop)
            copy = await anext(life)
        return await copy.dispatch(task, timeout=timeout)

    async def _live(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[WorkerProxy, None]:
        """A copy; closed, as the async generators of a loop are at its end, it is stopped."""
        if loop.get_exception_handler() is None:
            # Of an earlier loop, whose tasks were cancelled before its copy could be stopped.
            loop.set_exception_handler(overlook_closed_loops)
        copy: WorkerProxy = pickle.loads(self.dump())
        self._copies[loop] = copy
        try:
            yield copy
        finally:
            del self._copies[loop], self._lives[loop]
            if copy.started:
                await copy.stop()


@contextmanager
def _workers(
    count: int, discovery: DiscoveryLike, credentials: Credentials | None, identity: str | None
) -> Iterator[None]:
    """Workers that are there inside a `with` block, looked after on a thread of its own."""
    ready: Future[None] = Future()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def look_after() -> None:
        pool = WorkerPool(
            size=count,
            discovery=discovery,
            worker=partial(LocalWorker, identity=identity),
            credentials=credentials,
        )
        try:
            async with pool:
                ready.set_result(None)
                await over.wait()
        except Exception as exc:
            if not ready.done():
                ready.set_exception(exc)
            else:
                raise

    def main() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(look_after())

    thread = threading.Thread(target=main, name="wool workers")
    thread.start()
    try:
        ready.result()
        yield
    finally:
        with suppress(RuntimeError):  # They have not started, and the loop is closed.
            loop.call_soon_threadsafe(over.set)
        thread.join()
