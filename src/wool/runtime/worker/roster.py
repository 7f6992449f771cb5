"""The workers that a started proxy has admitted, and their connections."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from wool.runtime import observation
from wool.runtime.discovery.base import DiscoverySubscriberLike
from wool.runtime.errors import NoWorkersAvailable
from wool.runtime.factory import resolve
from wool.runtime.loadbalancer.base import LoadBalancerContext, LoadBalancerLike, TaggedContext
from wool.runtime.worker.connection import WorkerConnection
from wool.runtime.worker.line import Line
from wool.runtime.worker.membership import Admit, Membership, Refresh, Remove

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from wool.runtime.loadbalancer.base import LoadBalancerContextLike
    from wool.runtime.worker.auth import WorkerCredentialsProvider
    from wool.runtime.worker.membership import Action
    from wool.runtime.worker.metadata import WorkerMetadata
    from wool.runtime.worker.proxy import WorkerProxy

logger = logging.getLogger("wool.proxy")

T = TypeVar("T")

FIRST_WORKER_TIMEOUT = 60.0
"""Seconds that a call waits for a worker to be admitted."""

SILENCE = 5.0
"""Seconds that calls wait for a worker to be admitted before that is logged."""

FIRST_RETRY, LAST_RETRY = 0.5, 60.0
"""Seconds between subscriptions to a discovery that fails, doubling."""


class Roster:
    """Keeps the connections of a proxy current with what its discovery says."""

    balancer: LoadBalancerLike

    def __init__(
        self, membership: Membership, credentials: WorkerCredentialsProvider | None
    ) -> None:
        self.membership = membership
        self.context = LoadBalancerContext(on_evict=self._evicted)
        self._credentials = credentials
        self.loop = asyncio.get_running_loop()
        self._connections: dict[UUID, WorkerConnection] = {}
        self._retiring: dict[WorkerConnection, asyncio.Task[None]] = {}
        self._stopped = False
        self._failure: Exception | None = None
        self._tagged: dict[frozenset[str], TaggedContext] = {}
        self.lines: dict[LoadBalancerContextLike, Line] = {}
        """Where calls wait for room, by the workers that may take them."""
        self._tickets = count()
        self._changed = asyncio.Event()
        self._complained: set[LoadBalancerContextLike] = set()
        self._stack = AsyncExitStack()
        self._sentinel: asyncio.Task[None] | None = None
        self._revival: asyncio.TimerHandle | None = None

    async def start(self, loadbalancer: Any, discovery: Any) -> None:
        async with AsyncExitStack() as stack:
            balancer = await resolve(loadbalancer, stack)
            if not isinstance(balancer, LoadBalancerLike):
                raise ValueError(f"Expected LoadBalancerLike, got: {balancer!r}")
            subscriber = await resolve(discovery, stack)
            if not isinstance(subscriber, DiscoverySubscriberLike):
                raise ValueError(f"Expected DiscoverySubscriberLike, got: {subscriber!r}")
            self.balancer = balancer
            self._stack = stack.pop_all()
        self._sentinel = self.loop.create_task(self._watch(subscriber), name="wool sentinel")
        self._sentinel.add_done_callback(_retrieve)

    def check_loop(self, proxy: WorkerProxy) -> None:
        if self.loop is not asyncio.get_running_loop():
            raise RuntimeError(
                f"{proxy!r} was started in another event loop; enter a pool or a proxy in this one"
            )

    async def stop(self, timeout: float | None) -> None:
        """Take every step, whatever becomes of those before; cancelled, without waiting for calls.

        A cancellation is raised at the end.
        """
        deadline = None if timeout is None else self.loop.time() + timeout
        try:
            await self._clear_lines(deadline)
            if deadline is not None:
                timeout = max(0, deadline - self.loop.time())
            await self._stop_watching()
        except asyncio.CancelledError:
            timeout = 0
            raise
        finally:
            try:
                await self._close_connections(timeout)
            finally:
                await self._stack.aclose()

    async def _clear_lines(self, deadline: float | None) -> None:
        """Let the calls that wait for room have it until then; after that, nobody may wait."""
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.gather(*(line.idle() for line in self.lines.values()))
        except TimeoutError:
            logger.debug("Calls still wait for room when the proxy is stopped")
        finally:
            self._stopped = True
            self._changed.set()
            for line in self.lines.values():
                line.close()

    async def _stop_watching(self) -> None:
        if self._revival is not None:
            self._revival.cancel()
        if self._sentinel is not None:
            self._sentinel.cancel()
            await asyncio.wait([self._sentinel])

    async def _close_connections(self, timeout: float | None) -> None:
        cancelled: asyncio.CancelledError | None = None
        closing = {*self._connections.values(), *self._retiring}
        # Again after a cancellation, which may have come before a step had begun.
        while closing:
            try:
                results = await asyncio.gather(
                    *(self._close(connection, closing, timeout) for connection in closing),
                    return_exceptions=True,
                )
            except asyncio.CancelledError as exc:
                cancelled, timeout = exc, 0
                continue
            for error in filter(None, results):
                logger.warning("A connection was not closed in order", exc_info=error)
        if cancelled is not None:
            raise cancelled

    async def _close(
        self, connection: WorkerConnection, closing: set[WorkerConnection], timeout: float | None
    ) -> None:
        closing.discard(connection)
        retirement = self._retiring.get(connection)
        if retirement is not None:
            retirement.cancel()
        await connection.close(timeout=timeout)
        if retirement is not None:
            await asyncio.wait([retirement])

    def having(self, tags: frozenset[str]) -> TaggedContext:
        """The admitted workers that have all of `tags`."""
        context = self._tagged.get(tags)
        if context is None:
            context = self._tagged[tags] = TaggedContext(self.context, tags)
        return context

    def line(self, context: LoadBalancerContextLike) -> Line:
        """Where calls wait for a worker of `context` to have room."""
        if context not in self.lines:
            self.lines[context] = Line(context, self._tickets)
        return self.lines[context]

    async def give_way(self) -> None:
        """Let those go first who have waited for the room that there is."""
        if any(line.leaving for line in self.lines.values()):
            await asyncio.sleep(0)

    async def first_worker(self, proxy: WorkerProxy, context: LoadBalancerContextLike) -> None:
        """Wait until there is a worker in `context`."""
        complaint = self.loop.call_later(SILENCE, self._complain, proxy, context)
        try:
            async with asyncio.timeout(FIRST_WORKER_TIMEOUT):
                while not context.workers:
                    await self._changed.wait()
                    if self._stopped:
                        raise RuntimeError("Proxy was stopped while a call waited for a worker")
            self._complained.discard(context)
        except TimeoutError as exc:
            raise self._nobody(proxy, context) from (self._failure or exc)
        finally:
            complaint.cancel()

    def _complain(self, proxy: WorkerProxy, context: LoadBalancerContextLike) -> None:
        """Once, until one has been admitted."""
        if context not in self._complained:
            self._complained.add(context)
            logger.warning("%s; calls wait for one", self._absence(proxy, context, SILENCE))

    def _nobody(self, proxy: WorkerProxy, context: LoadBalancerContextLike) -> Exception:
        kind = NoWorkersAvailable if isinstance(context, TaggedContext) else TimeoutError
        return kind(self._absence(proxy, context, FIRST_WORKER_TIMEOUT))

    def _absence(self, proxy: WorkerProxy, context: LoadBalancerContextLike, seconds: float) -> str:
        reasons = self.membership.shortcomings()
        if self._failure is not None:
            reasons.append(f"discovery failed: {self._failure!r}")
        wanted = ""
        if isinstance(context, TaggedContext):
            tags = sorted(context.tags)
            wanted = f" with all the tags that the routine requires, {tags},"
        return f"{proxy!r} admitted no worker{wanted} within {seconds:g} s; {'; '.join(reasons)}"

    def reserve(self, uids: frozenset[UUID]) -> None:
        self._apply(self.membership.reserve(uids))

    async def _watch(self, subscriber: DiscoverySubscriberLike) -> None:
        delay = FIRST_RETRY
        while not self._stopped:
            try:
                async with _closing(aiter(subscriber)) as events:
                    async for event in events:
                        self._apply(self.membership.apply(event))
                        self._failure, delay = None, FIRST_RETRY
                return
            except Exception as exc:
                self._failure = exc
                log = logger.warning if delay == FIRST_RETRY else logger.debug
                log("Discovery %r failed and is subscribed to again", subscriber, exc_info=True)
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_RETRY)

    def _evicted(self, metadata: WorkerMetadata) -> None:
        logger.warning("Worker %s at %s is out for an error", metadata.uid, metadata.address)
        observation.tell("worker-evicted", worker=metadata)
        self._apply(self.membership.evict(metadata.uid, self.loop.time()))

    def _lost(self, uid: UUID) -> None:
        self._apply(self.membership.evict(uid, self.loop.time()))

    def _revive(self) -> None:
        self._apply(self.membership.revive(self.loop.time()))

    def _apply(self, actions: list[Action]) -> None:
        if self._stopped:
            return
        for action in actions:
            match action:
                case Admit(metadata):
                    self._admit(metadata)
                case Refresh(metadata):
                    self._refresh(metadata)
                case Remove(metadata):
                    self._remove(metadata)
        if actions:
            # Who waits for a worker looks whether it has come.
            self._changed.set()
            self._changed = asyncio.Event()
            for line in self.lines.values():
                line.workers_changed()
        self._schedule_revival()

    def _room(self, tasks: int) -> None:
        for line in sorted(self.lines.values(), key=lambda line: line.first):
            line.has_room(tasks)

    def _admit(self, metadata: WorkerMetadata) -> None:
        connection = WorkerConnection(
            metadata.address,
            credentials=self._credentials,
            options=metadata.options,
            metadata=metadata,
            on_lost=partial(self._lost, metadata.uid),
            on_room=self._room,
        )
        self._connections[metadata.uid] = connection
        self.context.update_worker(metadata, connection, upsert=True)
        observation.tell("worker-admitted", worker=metadata)

    def _refresh(self, metadata: WorkerMetadata) -> None:
        connection = self._connections[metadata.uid]
        if not connection.fits(metadata):
            self._retire(connection)
            self._admit(metadata)
        else:
            self.context.update_worker(metadata, connection)

    def _remove(self, metadata: WorkerMetadata) -> None:
        self.context.discard(metadata)
        observation.tell("worker-removed", worker=metadata)
        self._retire(self._connections.pop(metadata.uid))

    def _retire(self, connection: WorkerConnection) -> None:
        """Let its calls end, also the streams that wait for their consumer."""
        retirement = self.loop.create_task(self._close_idle(connection), name="wool retirement")
        self._retiring[connection] = retirement

    async def _close_idle(self, connection: WorkerConnection) -> None:
        await connection.drained()
        await connection.close()
        self._retiring.pop(connection, None)

    def _schedule_revival(self) -> None:
        if self._revival is not None:
            self._revival.cancel()
        when = self.membership.next_revival()
        self._revival = self.loop.call_at(when, self._revive) if when is not None else None


def _retrieve(task: asyncio.Task[None]) -> None:
    """Don't have asyncio report a Ctrl-C that came when this task was running, and is raised."""
    if not task.cancelled():
        task.exception()


@asynccontextmanager
async def _closing(events: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    try:
        yield events
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
