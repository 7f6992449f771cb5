"""The workers of one command, in the foreground, from their start to the end of the last."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click
import grpc.aio

from wool.cli import logs
from wool.cli.amounts import number
from wool.cli.systemd import notify
from wool.cli.tally import Tally
from wool.runtime.discovery.addresses import is_loopback
from wool.runtime.errors import RpcError
from wool.runtime.factory import resolve
from wool.runtime.worker import fate, health
from wool.runtime.worker.connection import WorkerConnection
from wool.runtime.worker.crew import Crew, Departure
from wool.runtime.worker.transport import obstacle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from types import TracebackType
    from typing import Self
    from uuid import UUID

    from wool.runtime.discovery.base import DiscoveryLike
    from wool.runtime.worker.auth import Credentials
    from wool.runtime.worker.base import WorkerLike
    from wool.runtime.worker.status import WorkerStatus

logger = logging.getLogger("wool.cli")

INTERVAL: Final = 1.0
"""Seconds between looks at the workers."""

STATUS_TIMEOUT: Final = 5.0
"""Seconds for a worker to say how it is."""

STOPPED: Final = fate.describe(0)
"""How one ends that was told to, which is not replaced."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What makes a worker be replaced: calls that it has run, bytes that it has."""

    tasks: int | None = None
    memory: int | None = None

    def reached(self, status: WorkerStatus) -> str | None:
        """Which, in words."""
        if self.tasks is not None and status.done >= self.tasks:
            return f"it has run {status.done} calls"
        if self.memory is not None and status.memory > self.memory:
            return f"it has {status.memory} bytes of memory"
        return None


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the command itself serves; None is nowhere."""

    health: int | None = None
    metrics: int | None = None


class Fleet:
    """`count` workers that `make` makes, given a host and a port, announced in `discovery`.

    `announced` says where that is. `certified` is a name that the certificate in `credentials` is
    for, by which the workers are called from here.
    """

    def __init__(
        self,
        make: Callable[..., WorkerLike],
        count: int,
        discovery: DiscoveryLike,
        *,
        announced: str,
        host: str | None,
        port: int | None,
        credentials: Credentials | None,
        certified: str | None,
        limits: Limits,
        ports: Ports,
        log_format: str,
    ) -> None:
        self._make = make
        self._count = count
        self._discovery = discovery
        self._announced = announced
        self._host = host
        self._port = port
        self._credentials = credentials
        self._certified = certified
        self._limits = limits
        self._ports = ports
        self._log_format = log_format
        self._readiness = Readiness()
        self._made: dict[WorkerLike, int] = {}
        """Those that are not known to have ended, with their slots."""
        self._tally = Tally()
        self._crew: Crew

    async def run(self) -> int:
        """Until the workers have ended. The exit code of the command."""
        with Signals() as signals:
            try:
                async with AsyncExitStack() as stack:
                    await self._enter(stack, signals)
                    return signals.forced or int(self._crew.failed)
            except Exception as exc:
                logger.debug("The workers could not be run", exc_info=True)
                click.echo(f"Error: {_in_words(exc)}", err=True)
                return 1

    async def _enter(self, stack: AsyncExitStack, signals: Signals) -> None:
        publisher = await resolve(self._discovery.publisher, stack)
        host = self._host
        bind = getattr(publisher, "bind_host", None)
        if host is None and bind is not None and not is_loopback(bind):
            host = bind
        self._crew = crew = Crew(
            partial(self._make_one, host),
            self._count,
            publisher,
            is_over=lambda how: how == STOPPED,
            overlap=not self._port,
        )
        try:
            if await signals.come_before(crew.start()):
                return
            crew.supervise()
            self._readiness.change(True)
            self._say_ready(await self._serve(stack))
            await signals.come_before(self._watch())
        finally:
            self._readiness.change(False)
            notify("STOPPING=1", "STATUS=lets calls end")
            await crew.stop_supervising()
            await signals.cut_short(crew.stop(Departure(drain=True, timeout=None)))

    def _make_one(self, host: str | None, slot: int) -> WorkerLike:
        worker = self._make(host=host, port=self._port + slot if self._port else self._port)
        self._made[worker] = slot
        return worker

    def _say_ready(self, served: str) -> None:
        ready = f"{number(self._count, 'worker')} ready, announced at {self._announced}{served}"
        notify("READY=1", f"STATUS={ready}")
        click.echo(logs.line(ready, self._log_format))

    # What it serves itself

    async def _serve(self, stack: AsyncExitStack) -> str:
        """Serve health and metrics; says where."""
        served = ""
        if self._ports.health is not None:
            port = await self._serve_health(stack, self._ports.health)
            served += f", health on port {port}"
        if self._ports.metrics is not None:
            from wool.cli.metrics import Metrics  # It needs an extra of its own.

            metrics = stack.enter_context(Metrics(self._ports.metrics, self._ask, self._tally))
            served += f", metrics on port {metrics.port}"
        return served

    async def _serve_health(self, stack: AsyncExitStack, port: int) -> int:
        # Before gRPC tries, which tells of it on standard error.
        if reason := obstacle("0.0.0.0", port):
            raise OSError(f"--health-port {port} can't be had: {reason}")
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health.add_to_server(self._readiness, server)
        bound = server.add_insecure_port(f"[::]:{port}")
        await server.start()
        stack.push_async_callback(server.stop, None)
        return bound

    async def _ask(self) -> dict[int, WorkerStatus]:
        """How the workers are that serve and answer, by slot. Those that retire are tallied too."""
        made = list(self._made.items())
        answers = await asyncio.gather(*(self._ask_one(worker) for worker, _ in made))
        current, serving = self._crew.workers.values(), self._crew.serving.values()
        statuses = {}
        for (worker, slot), status in zip(made, answers, strict=True):
            if status is None:
                starting = worker.metadata is None and worker in current
                if worker not in serving and not starting:
                    self._tally.settle(worker.uid)
                    self._made.pop(worker, None)
            elif worker in self._made:
                self._tally.see(slot, status, leaving=worker not in current)
                if worker in current and worker in serving:
                    statuses[slot] = status
        return statuses

    async def _ask_one(self, worker: WorkerLike) -> WorkerStatus | None:
        metadata = worker.metadata
        if metadata is None:
            return None
        connection = WorkerConnection(
            metadata.address, credentials=self._credentials, peer=self._certified
        )
        try:
            status = await connection.status(timeout=STATUS_TIMEOUT)
        except RpcError as exc:
            logger.debug("%r does not say how it is: %s", worker, exc)
            return None
        finally:
            await connection.close()
        return status if status.worker.uid == worker.uid else None  # Its port is another's now.

    # While they run

    async def _watch(self) -> None:
        """Until they are all over, look who has had enough, and who was told to stop."""
        withdrawn: set[UUID] = set()
        over = asyncio.create_task(self._crew.over(), name="wool workers over")
        while not over.done():
            for slot, status in (await self._ask()).items():
                worker = self._crew.workers.get(slot)
                if worker is None or worker.uid != status.worker.uid:
                    continue
                if status.draining and worker.uid not in withdrawn:
                    withdrawn.add(worker.uid)
                    await self._crew.withdraw(worker)
                elif (reason := self._limits.reached(status)) and self._crew.retire(worker):
                    logger.info("%r is to be replaced: %s", worker, reason)
            serving = {worker.uid for worker in self._crew.serving.values()}
            withdrawn &= serving
            self._readiness.change(bool(serving - withdrawn))
            await asyncio.wait([over], timeout=INTERVAL)


class Readiness(health.Health):
    """Says SERVING while a worker serves, until they are asked to stop."""

    def __init__(self) -> None:
        self._serving = False
        self._changed = asyncio.Event()

    def change(self, serving: bool, /) -> None:
        if serving != self._serving:
            self._serving = serving
            self._changed.set()
            self._changed = asyncio.Event()

    def _status(self) -> int:
        return health.SERVING if self._serving else health.NOT_SERVING

    async def watch(self, service: str, context: health.Context) -> AsyncIterator[int]:
        while service in health.KNOWN:
            changed = self._changed
            yield self._status()
            await changed.wait()
        yield health.SERVICE_UNKNOWN
        await asyncio.Event().wait()


class Signals:
    """SIGTERM and SIGINT, inside a `with` block: the first asks for the end, the second for it now.

    `forced` is the exit code of the second, 0 before.
    """

    def __init__(self) -> None:
        self.forced = 0
        self._loop = asyncio.get_running_loop()
        self._first, self._second = asyncio.Event(), asyncio.Event()

    def __enter__(self) -> Self:
        for each in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(each, self._take, each)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(each)

    def _take(self, signum: int) -> None:
        if self._first.is_set():
            self.forced = 128 + signum
            self._second.set()
        self._first.set()

    async def come_before(self, coroutine: Coroutine[Any, Any, None]) -> bool:
        """Whether the first comes before the end of a coroutine, which is cancelled then."""
        return await _cut(coroutine, self._first)

    async def cut_short(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Await the end of a coroutine, which the second cancels."""
        await _cut(coroutine, self._second)


async def _cut(coroutine: Coroutine[Any, Any, None], event: asyncio.Event) -> bool:
    task, cut = asyncio.create_task(coroutine), asyncio.create_task(event.wait())
    try:
        await asyncio.wait([task, cut], return_when=asyncio.FIRST_COMPLETED)
    finally:
        cut.cancel()
        task.cancel()
        await asyncio.wait([task, cut])
    if not task.cancelled():
        task.result()
    return task.cancelled()


def _in_words(exc: BaseException) -> str:
    """What went wrong, on a line."""
    if isinstance(exc, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(map(_in_words, exc.exceptions)))
    return f"{exc}" or type(exc).__name__
