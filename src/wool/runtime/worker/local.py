"""Workers on this machine, as children of this process."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from wool.runtime.discovery.addresses import is_loopback
from wool.runtime.worker.base import Worker
from wool.runtime.worker.process import WorkerProcess

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from wool.runtime.worker.auth import Credentials
    from wool.runtime.worker.backpressure import BackpressureLike
    from wool.runtime.worker.base import WorkerOptions

STOP_MARGIN = 10.0
"""Seconds for a worker to end its sessions and its process, besides draining and cleaning up."""


class LocalWorker(Worker):
    """A worker in a process of its own.

    `tags` and `extra` (JSON values) are announced with it. With neither `host` nor `port` it
    listens on a unix socket that only this user can reach; with either, on TCP (host: default
    `127.0.0.1`, port: default any free one). `shutdown_grace_period` and `proxy_pool_ttl` are in
    seconds. `identity` is a name that the certificate of its credentials is for, by which clients
    may know it instead of by its address. See `WorkerProcess` for what is raised.

    At most `max_concurrent_tasks` run at once (None: no limit), a stream from its first step until
    it is closed, and none that `backpressure` refuses: see `BackpressureLike`. What a full worker
    refuses goes to another one, or waits where it was called, in order, for as long as its dispatch
    timeout allows. Calls that routines make are run all the same, and don't count, so that those
    who wait for them don't wait for ever.

    A routine that keeps the worker's event loop from running anything else for `blocking_threshold`
    seconds is logged, with its stack (None: never).

    `initializer` is called in its process before it serves; what that raises fails the start.
    `loop_factory` makes the loop that its routines run on, such as `uvloop.new_event_loop`.
    """

    def __init__(
        self,
        *tags: str,
        host: str | None = None,
        port: int | None = None,
        shutdown_grace_period: float = 60.0,
        proxy_pool_ttl: float = 60.0,
        credentials: Credentials | None = None,
        options: WorkerOptions | None = None,
        identity: str | None = None,
        max_concurrent_tasks: int | None = None,
        backpressure: BackpressureLike | None = None,
        blocking_threshold: float | None = 1.0,
        initializer: Callable[[], object] | None = None,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(*tags, **extra)
        self._grace = shutdown_grace_period
        self._settings: dict[str, Any] = {
            "uid": self.uid,
            "tags": frozenset(self.tags),
            "extra": extra,
            "host": host,
            "port": port,
            "shutdown_grace_period": shutdown_grace_period,
            "proxy_pool_ttl": proxy_pool_ttl,
            "credentials": credentials,
            "options": options,
            "identity": identity,
            "max_concurrent_tasks": max_concurrent_tasks,
            "backpressure": backpressure,
            "blocking_threshold": blocking_threshold,
            "initializer": initializer,
            "loop_factory": loop_factory,
        }
        self._process = WorkerProcess(**self._settings)
        if host is not None and credentials is None and not is_loopback(host):
            warnings.warn(
                f"A worker on {host} without credentials runs code for anyone who can reach "
                "its port; give it WorkerCredentials",
                RuntimeWarning,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        return f"<LocalWorker {self.uid} at {self.address or 'no address'}>"

    @property
    def address(self) -> str | None:
        return self._process.address

    async def wait(self) -> str:
        """Return when its process has ended; says how, in words."""
        return await self._process.wait()

    async def _start(self, timeout: float | None) -> None:
        self._process = WorkerProcess(**self._settings)
        await self._process.start(timeout)
        self._metadata = self._process.metadata

    async def _stop(self, timeout: float | None) -> None:
        seconds = timeout or 0
        self._process.tell_to_stop(seconds)
        await self._process.reap(None if seconds < 0 else seconds + self._grace + STOP_MARGIN)
