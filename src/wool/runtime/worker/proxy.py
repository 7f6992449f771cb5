"""A proxy turns what discovery says into a set of admitted workers, and routes tasks to them."""

from __future__ import annotations

import asyncio
import logging
import pickle
import warnings
import weakref
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID, uuid4

import wool
from wool import protocol
from wool.runtime import serializer
from wool.runtime.discovery.base import DiscoveryEvent, DiscoverySubscriberLike
from wool.runtime.errors import NoWorkersAvailable, RpcError, TransientRpcError
from wool.runtime.factory import is_pre_entered
from wool.runtime.loadbalancer.base import LoadBalancerLike
from wool.runtime.loadbalancer.roundrobin import RoundRobinLoadBalancer
from wool.runtime.typing import Undefined, UndefinedType
from wool.runtime.worker.auth import CredentialContext, WorkerCredentialsProvider
from wool.runtime.worker.version import is_version_compatible, parse_version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from types import TracebackType

    from wool.runtime.loadbalancer.base import LoadBalancerContextLike
    from wool.runtime.routine.task import Task
    from wool.runtime.typing import Factory
    from wool.runtime.worker.auth import Credentials
    from wool.runtime.worker.metadata import WorkerMetadata
    from wool.runtime.worker.roster import Roster

__all__ = ["ReducibleAsyncIterator", "WorkerProxy", "is_version_compatible", "parse_version"]

logger = logging.getLogger("wool.proxy")

T = TypeVar("T")


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
    `lease` caps how many workers are admitted at a time (default: no cap). `credentials`, or a
    provider of them, default to those of the worker this runs in; with credentials, only secure
    workers are admitted that they are for, and without, only others.

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
        credentials: Credentials | UndefinedType | None = Undefined,
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
        self._identify(uuid4())
        self._discovery = discovery
        self._loadbalancer = loadbalancer
        self._credentials = credentials
        self._lease = lease
        self._reserved: frozenset[UUID] = frozenset()
        self._revision = 0
        self._dump: bytes | None = None
        self._lazy = False
        self._running: Roster | None = None
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

    def _identify(self, id: UUID) -> None:
        self._id = id
        self._hash = hash(id)  # Asked for twice by every call.

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
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        for name, value, kind in self._strategies():
            if is_pre_entered(value, kind):
                raise TypeError(
                    f"{name} of {self!r} is a context manager that can be entered once, which "
                    "can't be pickled; pass what makes it instead"
                )
        state = (
            self._id,
            _Pickled.of(self._discovery),
            _Pickled.of(self._loadbalancer),
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

    async def _run(self) -> Roster:
        # Not before, because proxies travel to workers that never make a call.
        from wool.runtime.worker.membership import Membership
        from wool.runtime.worker.roster import Roster

        credentials = self._resolve_credentials()
        running = Roster(
            Membership(
                lease=self._lease,
                secure=credentials is not None,
                peers=credentials,
                version=protocol.__version__,
                reserved=self._reserved,
            ),
            credentials,
        )
        await running.start(self._loadbalancer, self._discovery)
        self._running = running
        return running

    def _resolve_credentials(self) -> WorkerCredentialsProvider | None:
        given = self._credentials
        return WorkerCredentialsProvider.coerce(
            CredentialContext.current() if given is Undefined else given
        )

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
            activation.end()

    async def dispatch(self, task: Task, *, timeout: float | None = None) -> AsyncIterator[Any]:
        """Hand a task to an admitted worker, waiting for the first one if there is none.

        `timeout`, in seconds, is for each attempt, and for a full worker to have room, for which
        the calls of routines don't wait. Raises `RuntimeError` if it isn't started here, what the
        load balancer raises, and if no worker is admitted within a minute, `TimeoutError`, or
        `NoWorkersAvailable` for a task that requires tags.
        """
        running = self._running or await self._run_later()
        running.check_loop(self)
        task.encode()  # Arguments are copied before anything is waited for.
        context = running.having(task.tags) if task.tags else running.context
        if running.lines and task.caller is None:
            await running.give_way()
        if not running.lines or task.caller is not None or len(running.line(context)) == 0:
            if not context.workers:
                await running.first_worker(self, context)
            try:
                return await running.balancer.dispatch(task, context=context, timeout=timeout)
            except NoWorkersAvailable as exc:
                if not self._may_try_again(context, task, exc):
                    raise
        attempt = partial(self._attempt, running, context, task, timeout)
        if task.caller is not None:
            return await attempt()
        return await running.line(context).dispatch(task, attempt, timeout)

    def _may_try_again(
        self, context: LoadBalancerContextLike, task: Task, error: NoWorkersAvailable
    ) -> bool:
        """Whether a task that nobody took has a chance.

        It has not run. Workers of a pool's own that have died are replaced, unless they fail for
        every task, and those that are full will have room.
        """
        if not context.workers:
            cause = error.__cause__
            final = isinstance(cause, RpcError) and not isinstance(cause, TransientRpcError)
            return bool(self._reserved) and not final
        return task.met_full

    async def _attempt(
        self, running: Roster, context: LoadBalancerContextLike, task: Task, timeout: float | None
    ) -> AsyncIterator[Any]:
        while True:
            if not context.workers:
                await running.first_worker(self, context)
            try:
                return await running.balancer.dispatch(task, context=context, timeout=timeout)
            except NoWorkersAvailable as exc:
                if context.workers or not self._may_try_again(context, task, exc):
                    raise

    async def _run_later(self) -> Roster:
        if not self._lazy:
            raise RuntimeError("Proxy not started - call start() first")
        async with self._starting:
            return self._running or await self._run()


class _Pickled:
    """A factory of what it was made of, which is not loaded before it is called."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @classmethod
    def of(cls, value: Any) -> _Pickled:
        return value if isinstance(value, cls) else cls(serializer.to_bytes(value))

    def __call__(self) -> Any:
        return pickle.loads(self._content)


def _restore(
    id: UUID,
    discovery: Any,
    loadbalancer: Any,
    lease: int | None,
    reserved: frozenset[UUID],
    revision: int,
) -> WorkerProxy:
    proxy = WorkerProxy(discovery=discovery, loadbalancer=loadbalancer, lease=lease)
    proxy._identify(id)
    proxy._reserved = reserved
    proxy._revision = revision
    proxy._lazy = True
    return proxy


def _subscribe(namespace: str, tags: tuple[str, ...]) -> DiscoverySubscriberLike:
    from wool.runtime.discovery.local import LocalDiscovery

    return LocalDiscovery(namespace).subscribe(TagFilter(frozenset(tags)) if tags else None)


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
        self._outer = outer
        self._before = wool.__proxy__.get()
        self._over = False
        self._mark = _activation.set(self)
        wool.__proxy__.set(proxy)

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
        """Undo it, if it stands in this context. Those made since may end later."""
        self._over = True
        if _activation.get() is self:
            last = self
            while last._outer is not None and last._outer._over:
                last = last._outer
            _activation.set(last._outer)
            wool.__proxy__.set(last._before)


_activation: ContextVar[_Activation | None] = ContextVar("activation", default=None)
