"""Finds the workers at some places, and speaks to them."""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, cast

import click

from wool.cli.options import Tls, chosen, discover
from wool.cli.places import check
from wool.runtime.discovery.addresses import split
from wool.runtime.errors import RpcError
from wool.runtime.worker.connection import WorkerConnection

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wool.cli.places import Place
    from wool.runtime.discovery.base import DiscoveryLike
    from wool.runtime.worker.auth import Credentials
    from wool.runtime.worker.metadata import WorkerMetadata
    from wool.runtime.worker.status import WorkerStatus

WAIT: Final = {"local": 0.3}
"""Seconds in which the workers of a place have been found."""

LONGER: Final = 2.0
"""Seconds, where others have to answer first."""

ANSWER_TIMEOUT: Final = 3.0
"""Seconds for a worker to say how it is."""


class UnreachableError(click.ClickException):
    """Where workers meet can't be looked at. Ends a command with 2."""

    exit_code = 2

    def __init__(self, exc: Exception) -> None:
        super().__init__(f"workers can't be looked for: {str(exc) or type(exc).__name__}")


@dataclass(frozen=True, slots=True)
class Sight:
    """A worker, and how it is; or, in words, why it does not say that."""

    worker: WorkerMetadata
    status: WorkerStatus | None
    problem: str = ""

    @property
    def host(self) -> str:
        return host_of(self.worker)


def host_of(worker: WorkerMetadata) -> str:
    if worker.address.startswith("unix:"):
        return socket.gethostname()
    return split(worker.address)[0]


class Finder:
    """Workers at some places, called with some credentials."""

    def __init__(
        self, discovery: DiscoveryLike, credentials: Credentials | None, wait: float
    ) -> None:
        self.discovery = discovery
        self.credentials = credentials
        self._wait = wait

    @classmethod
    def of(
        cls, *, discovery: Sequence[Place], join: Sequence[str], wait: float | None, **tls: Any
    ) -> Finder:
        """As the options of a command say."""
        given = Tls(**tls)
        credentials = given.provider()
        places = chosen(discovery, join)
        longest = max(WAIT.get(place.kind, LONGER) for place in places)
        return cls(
            discover(places, secure=credentials is not None, identity=given.identity),
            credentials,
            longest if wait is None else wait,
        )

    async def find(self) -> list[WorkerMetadata]:
        """Those that are there, as far as is known after a while."""
        found: dict[Any, WorkerMetadata] = {}
        try:
            await check(self.discovery)
            async with (
                asyncio.timeout(self._wait),
                aclosing(cast("Any", aiter(self.discovery.subscriber))) as events,
            ):
                async for event in events:
                    apply(event, found)
        except TimeoutError:
            pass
        except Exception as exc:
            raise UnreachableError(exc) from exc
        return list(found.values())

    async def look(self, workers: Iterable[WorkerMetadata], *, tasks: bool = False) -> list[Sight]:
        """How they are, in order."""
        return await asyncio.gather(*(self.ask(worker, tasks=tasks) for worker in workers))

    async def ask(self, worker: WorkerMetadata, *, tasks: bool = False) -> Sight:
        if problem := self._misfit(worker):
            return Sight(worker, None, problem)
        connection = self._connect(worker)
        try:
            status = await connection.status(tasks=tasks, timeout=ANSWER_TIMEOUT)
        except RpcError as exc:
            return Sight(worker, None, in_short(exc))
        finally:
            await connection.close()
        if worker.pid == 0:  # The DNS says nothing of a worker but where it is.
            worker = replace(status.worker, uid=worker.uid, address=worker.address)
        return Sight(worker, status)

    async def stop(self, worker: WorkerMetadata, timeout: float) -> str:
        """Have it stop, and return when it has; why it has not, in words."""
        if problem := self._misfit(worker):
            return problem
        connection = self._connect(worker)
        try:
            await connection.stop(timeout=timeout)
        except RpcError as exc:
            return in_short(exc)
        finally:
            await connection.close()
        return ""

    def _connect(self, worker: WorkerMetadata) -> WorkerConnection:
        return WorkerConnection(
            worker.address,
            credentials=self.credentials,
            options=worker.options,
            metadata=worker,
        )

    def _misfit(self, worker: WorkerMetadata) -> str:
        if worker.secure and self.credentials is None:
            return "it has TLS: give --ca, --key and --cert"
        if not worker.secure and self.credentials is not None:
            return "it has no TLS, and --ca was given"
        return ""


def apply(event: Any, found: dict[Any, WorkerMetadata]) -> None:
    """Add or remove the worker of a discovery event."""
    if event.type == "worker-dropped":
        found.pop(event.metadata.uid, None)
    else:
        found[event.metadata.uid] = event.metadata


def in_short(exc: RpcError) -> str:
    return f"{exc.details or exc.code}".partition("\n")[0]
