"""A proxy turns what discovery says into a set of admitted workers, and routes tasks to them."""

from __future__ import annotations

import asyncio
import logging
import warnings
import weakref
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID, uuid4

import wool
from wool import protocol
from wool.runtime import serializer
from wool.runtime.discovery.base import DiscoveryEvent, DiscoverySubscriberLike
from wool.runtime.factory import is_pre_entered, resolve
from wool.runtime.loadbalancer.base import LoadBalancerContext, LoadBalancerLike
from wool.runtime.loadbalancer.roundrobin import RoundRobinLoadBalancer
from wool.runtime.typing import Undefined, UndefinedType
from wool.runtime.worker.auth import CredentialContext
from wool.runtime.worker.connection import WorkerConnection
from wool.runtime.worker.membership import Admit, Membership, Refresh, Remove
from wool.runtime.worker.version import is_version_compatible, parse_version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from types import TracebackType

    from wool.runtime.routine.task import Task
    from wool.runtime.typing import Factory
    from wool.runtime.worker.auth import WorkerCredentials
    from wool.runtime.worker.membership import Action
    from wool.runtime.worker.metadata import WorkerMetadata

__all__ = ["ReducibleAsyncIterator", "WorkerProxy", "is_version_compatible", "parse_version"]

logger = logging.getLogger("wool.proxy")

T = TypeVar("T")

FIRST_WORKER_TIMEOUT = 60.0
"""Seconds that a call waits for a worker to be admitted."""

FIRST_RETRY, LAST_RETRY = 0.5, 60.0
"""Seconds between subscriptions to a discovery that fails, doubling."""


class ReducibleAsyncIterator(Generic[T]):
    """An async iterator over `items` that pickles, and is iterated over, as a fresh one."""

    def __init__(self, items: Sequence[T]) -> None:
        self._items = items
        self._iterator = iter(items)

    def __aiter__(self) -> ReducibleAsyncIterator[T]:
        return type(self)(self._items)

    async def __anext__(self) -> T:
        try:
            return next(self._iterator)
        except StopIteration:
            raise StopAsyncIteration from None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._items,)


class WorkerProxy:
    """Routes tasks to workers that it learns of from exactly one source.

    The source is a pool's namespace on this machine (with `tags`, its workers that share one),
    `discovery` (a subscriber, or a `Factory` of one), or `workers`, a fixed sequence of metadata.
    `lease` caps how many workers are admitted at a time (default: no cap). `credentials` default
    to those of the worker this runs in; with credentials, only secure workers are admitted, and
    without, only others.

    Pickled, it keeps its source, its load balancer, its id and its lease, never its credentials; an
    unpickled proxy starts by itself when it is first used.

    Raises `ValueError` for no source or several, and for a lease below 1.
    """

    def __init__(
        self,
        pool_uri: str | None = None,
        *tags: str,
        discovery: DiscoverySubscriberLike | Factory[DiscoverySubscriberLike] | None = None,
        workers: Sequence[WorkerMetadata] | None = None,
        loadbalancer: LoadBalancerLike | Factory[LoadBalancerLike] = RoundRobinLoadBalancer,
        credentials: WorkerCredentials | UndefinedType | None = Undefined,
        lease: int | None = None,
    ) -> None:
        sources = [
            source for source in (pool_uri, discovery, workers or None) if source is not None
        ]
        if not sources:
            raise ValueError(
                "Must specify either a workerpool URI, discovery event stream, or a sequence of "
                "workers"
            )
        if len(sources) > 1:
            raise ValueError(
                "Must specify exactly one of: pool_uri, discovery_event_stream, or workers"
            )
        if lease is not None and lease < 1:
            raise ValueError("Lease must be a positive, non-zero integer")
        if pool_uri is not None:
            discovery = _subscribe(pool_uri, tags)
        elif workers:
            discovery = ReducibleAsyncIterator(
                [DiscoveryEvent("worker-added", metadata) for metadata in workers]
            )
        self._id = uuid4()
        self._discovery = discovery
        self._loadbalancer = loadbalancer
        self._credentials = credentials
        self._lease = lease
        self._reserved: frozenset[UUID] = frozenset()
        self._revision = 0
        self._dump: bytes | None = None
        self._lazy = False
        self._running: _Running | None = None
        self._starting = asyncio.Lock()
        self._activation: _Activation | None = None
        for name, value, kind in self._strategies():
            if is_pre_entered(value, kind):
                warnings.warn(
                    f"{name} is a context manager that can be entered once: a proxy that holds it "
                    "can't be pickled, so routines can't call routines; pass what makes it instead",
                    UserWarning,
                    stacklevel=2,
                )

    def _strategies(self) -> tuple[tuple[str, Any, type], ...]:
        return (
            ("discovery", self._discovery, DiscoverySubscriberLike),
            ("loadbalancer", self._loadbalancer, LoadBalancerLike),
        )

    def __repr__(self) -> str:
        members = repr(self._running.membership) if self._running else "stopped"
        return f"<WorkerProxy {str(self._id)[:4]} {members}>"

    def __eq__(self, other: object) -> bool:
        return self._id == other._id if isinstance(other, WorkerProxy) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._id)

    def __reduce__(self) -> tuple[Any, ...]:
        for name, value, kind in self._strategies():
            if is_pre_entered(value, kind):
                raise TypeError(
                    f"{name} of {self!r} is a context manager that can be entered once, which "
                    "can't be pickled; pass what makes it instead"
                )
        state = (
            self._id,
            self._discovery,
            self._loadbalancer,
            self._lease,
            self._reserved,
            self._revision,
        )
        return _restore, state

    @property
    def id(self) -> UUID:
        """Kept across pickling."""
        return self._id

    @property
    def lease(self) -> int | None:
        """How many workers are admitted at a time; None is without limit."""
        return self._lease

    @property
    def started(self) -> bool:
        return self._running is not None and not self._running.loop.is_closed()

    @property
    def workers(self) -> list[WorkerMetadata]:
        """The admitted workers, in order of admission."""
        return list(self._running.membership.admitted.values()) if self._running else []

    def dump(self) -> bytes:
        """Its pickle."""
        if self._dump is None:
            self._dump = serializer.to_bytes(self)
        return self._dump

    def reserve(self, uids: Iterable[UUID]) -> None:
        """Keep slots for these workers, as a pool does for those it has spawned."""
        self._adopt_reserved(frozenset(uids), self._revision + 1)

    def adopt(self, other: WorkerProxy) -> None:
        """Follow a later pickle of the same proxy."""
        if other._revision > self._revision:
            self._adopt_reserved(other._reserved, other._revision)

    def _adopt_reserved(self, uids: frozenset[UUID], revision: int) -> None:
        self._reserved, self._revision, self._dump = uids, revision, None
        if self._running is not None:
            self._running.reserve(uids)

    async def __aenter__(self) -> WorkerProxy:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start it and make it the active proxy, `wool.__proxy__`, of this context.

        Raises `RuntimeError` if it is started already, or if a task that still runs has made
        another proxy the active one of this very context, and `ValueError` if its load balancer or
        its discovery isn't one; then nothing is left of the attempt.
        """
        if self.started or self._starting.locked():
            raise RuntimeError("Proxy already started")
        async with self._starting:
            running = await self._run()
            try:
                self._activation = _Activation(self)
            except BaseException:
                self._running = None
                await running.stop(0)
                raise

    async def _run(self) -> _Running:
        running = _Running(
            Membership(
                lease=self._lease,
                secure=self._resolve_credentials() is not None,
                version=protocol.__version__,
                reserved=self._reserved,
            ),
            self._resolve_credentials(),
        )
        await running.start(self._loadbalancer, self._discovery)
        self._running = running
        return running

    def _resolve_credentials(self) -> WorkerCredentials | None:
        if self._credentials is Undefined:
            return CredentialContext.current()
        return self._credentials

    async def stop(self, *, timeout: float | None = 0) -> None:
        """Stop it: calls that run may end within `timeout` seconds (None: however long).

        Raises `RuntimeError` if it isn't started.
        """
        if self._running is None or not self.started:
            raise RuntimeError("Proxy not started - call start() first")
        self._running.check_loop(self)
        self.deactivate()
        running, self._running = self._running, None
        await running.stop(timeout)

    def deactivate(self) -> None:
        """Make what was the active proxy before it that again, in the context it started in."""
        activation, self._activation = self._activation, None
        if activation is not None:
            try:
                activation.end()
            except ValueError:
                logger.debug("%r is stopped in another context than it was started in", self)

    async def dispatch(self, task: Task, *, timeout: float | None = None) -> AsyncIterator[Any]:
        """Hand a task to an admitted worker, waiting for the first one if there is none.

        `timeout`, in seconds, is for each attempt. Raises `RuntimeError` if it isn't started here,
        `TimeoutError` if no worker is admitted in time, and what the load balancer raises.
        """
        running = self._running or await self._run_later()
        running.check_loop(self)
        encode = getattr(task, "encode", None)
        if encode is not None:
            encode()
        if not running.context.workers:
            await running.first_worker(self)
        return await running.balancer.dispatch(task, context=running.context, timeout=timeout)

    async def _run_later(self) -> _Running:
        if not self._lazy:
            raise RuntimeError("Proxy not started - call start() first")
        async with self._starting:
            return self._running or await self._run()


def _restore(
    id: UUID,
    discovery: Any,
    loadbalancer: Any,
    lease: int | None,
    reserved: frozenset[UUID],
    revision: int,
) -> WorkerProxy:
    proxy = WorkerProxy(discovery=discovery, loadbalancer=loadbalancer, lease=lease)
    proxy._id = id
    proxy._reserved = reserved
    proxy._revision = revision
    proxy._lazy = True
    return proxy


def _subscribe(namespace: str, tags: tuple[str, ...]) -> DiscoverySubscriberLike:
    from wool.runtime.discovery.local import LocalDiscovery

    return LocalDiscovery(namespace).subscribe(TagFilter(frozenset(tags)) if tags else None)


@asynccontextmanager
async def _closing(events: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    try:
        yield events
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


class TagFilter:
    """Lets workers pass that have one of `tags`."""

    def __init__(self, tags: frozenset[str]) -> None:
        self.tags = tags

    def __call__(self, metadata: WorkerMetadata) -> bool:
        return not self.tags.isdisjoint(metadata.tags)


class _Activation:
    """That a task has made a proxy the active one of a context.

    Raises `RuntimeError` if another task that still runs has done so in the same context, as tasks
    can that are created with a `context`: each would see the calls of the other go to its proxy.
    """

    def __init__(self, proxy: WorkerProxy) -> None:
        outer = _activation.get()
        if outer is not None and outer._is_in_the_way():
            raise RuntimeError(
                f"Another task that shares this context has entered a pool or a proxy: {proxy!r} "
                "would take its calls; create the tasks without `context`, or with a copy for each"
            )
        self._task = weakref.ref(asyncio.current_task())
        self._mark = _activation.set(self)
        self._token = wool.__proxy__.set(proxy)

    def _is_in_the_way(self) -> bool:
        task = self._task()
        if task is None or task.done() or task is asyncio.current_task():
            return False
        try:
            _activation.reset(self._mark)  # Raises in any context but that in which it was set.
        except ValueError:
            return False
        self._mark = _activation.set(self)
        return True

    def end(self) -> None:
        """Undo it. Raises `ValueError` in another context."""
        wool.__proxy__.reset(self._token)
        _activation.reset(self._mark)


_activation: ContextVar[_Activation | None] = ContextVar("activation", default=None)


class _Running:
    """A started proxy: the admitted workers' connections and the task that keeps them current."""

    balancer: LoadBalancerLike

    def __init__(self, membership: Membership, credentials: WorkerCredentials | None) -> None:
        self.membership = membership
        self.context = LoadBalancerContext(on_evict=self._evicted)
        self._credentials = credentials
        self.loop = asyncio.get_running_loop()
        self._connections: dict[UUID, WorkerConnection] = {}
        self._retiring: dict[WorkerConnection, asyncio.Task[None]] = {}
        self._stopped = False
        self._admitted = asyncio.Event()
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

    def check_loop(self, proxy: WorkerProxy) -> None:
        if self.loop is not asyncio.get_running_loop():
            raise RuntimeError(
                f"{proxy!r} was started in another event loop; enter a pool or a proxy in this one"
            )

    async def stop(self, timeout: float | None) -> None:
        """Take every step, whatever becomes of those before; cancelled, without waiting for calls.

        A cancellation is raised at the end.
        """
        self._stopped = True
        self._admitted.set()
        try:
            await self._stop_watching()
        except asyncio.CancelledError:
            timeout = 0
            raise
        finally:
            try:
                await self._close_connections(timeout)
            finally:
                await self._stack.aclose()

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

    async def first_worker(self, proxy: WorkerProxy) -> None:
        """Wait until a worker is admitted."""
        try:
            async with asyncio.timeout(FIRST_WORKER_TIMEOUT):
                while not self.membership.admitted:
                    await self._admitted.wait()
                    if self._stopped:
                        raise RuntimeError("Proxy was stopped while a call waited for a worker")
        except TimeoutError as exc:
            refused = "".join(f"; refused: {why}" for why in self.membership.refused.values())
            raise TimeoutError(
                f"{proxy!r} admitted no worker within {FIRST_WORKER_TIMEOUT} s{refused}"
            ) from exc

    def reserve(self, uids: frozenset[UUID]) -> None:
        self._apply(self.membership.reserve(uids))

    async def _watch(self, subscriber: DiscoverySubscriberLike) -> None:
        delay = FIRST_RETRY
        while not self._stopped:
            try:
                async with _closing(aiter(subscriber)) as events:
                    async for event in events:
                        self._apply(self.membership.apply(event))
                        delay = FIRST_RETRY
                return
            except Exception:
                log = logger.warning if delay == FIRST_RETRY else logger.debug
                log("Discovery %r failed and is subscribed to again", subscriber, exc_info=True)
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_RETRY)

    def _evicted(self, metadata: WorkerMetadata) -> None:
        logger.warning("Worker %s at %s is out for an error", metadata.uid, metadata.address)
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
        if self.membership.admitted:
            self._admitted.set()
        else:
            self._admitted.clear()
        self._schedule_revival()

    def _admit(self, metadata: WorkerMetadata) -> None:
        connection = WorkerConnection(
            metadata.address,
            credentials=self._credentials,
            options=metadata.options,
            metadata=metadata,
            on_lost=partial(self._lost, metadata.uid),
        )
        self._connections[metadata.uid] = connection
        self.context.update_worker(metadata, connection, upsert=True)

    def _refresh(self, metadata: WorkerMetadata) -> None:
        connection = self._connections[metadata.uid]
        if not connection.fits(metadata):
            self._retire(connection)
            self._admit(metadata)
        else:
            self.context.update_worker(metadata, connection)

    def _remove(self, metadata: WorkerMetadata) -> None:
        self.context.discard(metadata)
        self._retire(self._connections.pop(metadata.uid))

    def _retire(self, connection: WorkerConnection) -> None:
        """Let its calls end, also the streams that wait for their consumer."""
        retirement = self.loop.create_task(self._close_idle(connection), name="wool retirement")
        self._retiring[connection] = retirement

    async def _close_idle(self, connection: WorkerConnection) -> None:
        await connection.idle()
        await connection.close()
        self._retiring.pop(connection, None)

    def _schedule_revival(self) -> None:
        if self._revival is not None:
            self._revival.cancel()
        when = self.membership.next_revival()
        self._revival = self.loop.call_at(when, self._revive) if when is not None else None
