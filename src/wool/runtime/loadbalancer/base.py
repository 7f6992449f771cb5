"""What a load balancer is given and what it must do."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from wool.runtime import observation
from wool.runtime.errors import NoWorkersAvailable, RpcError, TransientRpcError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from uuid import UUID

    from wool.runtime.routine.task import Task
    from wool.runtime.worker.metadata import WorkerMetadata

    Entry = tuple[WorkerMetadata, "ConnectionLike"]


@runtime_checkable
class ConnectionLike(Protocol):
    """A way to one worker."""

    @property
    def in_flight(self) -> int:
        """How many tasks have been handed to it that have not ended."""
        ...

    async def dispatch(self, task: Task, *, timeout: float | None = None) -> AsyncIterator[Any]:
        """The results of `task`, once the worker has taken it, within `timeout` seconds.

        Raises `RpcError` if it has not been run: a `TransientRpcError` if another worker, or the
        same one later, may take it. Any other error is the caller's.
        """
        ...


@runtime_checkable
class LoadBalancerContextLike(Protocol):
    """The workers to choose from. A worker is identified by its uid, whatever else changes."""

    @property
    def workers(self) -> Mapping[WorkerMetadata, ConnectionLike]:
        """In order of admission. A change replaces the mapping, so its identity is a cache key."""
        ...

    def add_worker(self, metadata: WorkerMetadata, connection: ConnectionLike) -> None: ...

    def update_worker(
        self, metadata: WorkerMetadata, connection: ConnectionLike, *, upsert: bool = False
    ) -> None: ...

    def remove_worker(self, metadata: WorkerMetadata) -> None: ...


@runtime_checkable
class LoadBalancerLike(Protocol):
    """Chooses a worker for each task.

    A balancer may serve several contexts at once, and must not let a call wait for another one.
    tests/conformance/loadbalancer.py says all that is expected, and runs against any balancer.
    """

    async def dispatch(
        self, task: Task, *, context: LoadBalancerContextLike, timeout: float | None = None
    ) -> AsyncIterator[Any]:
        """The results of `task`, from the first worker that takes it.

        `timeout` is for each attempt, in seconds. A worker that fails with a `TransientRpcError`
        is passed over, one that fails with another `RpcError` is removed from the context as well.
        Every other error goes to the caller at once: the task may have run, or never will.
        Raises `NoWorkersAvailable` if no worker took it.
        """
        ...


class LoadBalancerContext:
    """The admitted workers of a proxy.

    `on_evict` is called with what is known of a worker when `remove_worker` has removed it.
    """

    def __init__(self, *, on_evict: Callable[[WorkerMetadata], None] | None = None) -> None:
        self._on_evict = on_evict
        self._entries: dict[UUID, tuple[WorkerMetadata, ConnectionLike]] = {}
        self._workers: Mapping[WorkerMetadata, ConnectionLike] | None = None

    def __repr__(self) -> str:
        return f"<LoadBalancerContext {len(self._entries)} workers>"

    @property
    def workers(self) -> Mapping[WorkerMetadata, ConnectionLike]:
        if self._workers is None:
            self._workers = MappingProxyType(dict(self._entries.values()))
        return self._workers

    def add_worker(self, metadata: WorkerMetadata, connection: ConnectionLike) -> None:
        """Add a worker, or update it in its place if it is there."""
        self._set(metadata, connection)

    def update_worker(
        self, metadata: WorkerMetadata, connection: ConnectionLike, *, upsert: bool = False
    ) -> None:
        """Update a worker in its place. One that isn't there is added if `upsert`, else ignored."""
        if upsert or metadata.uid in self._entries:
            self._set(metadata, connection)

    def remove_worker(self, metadata: WorkerMetadata) -> None:
        """Remove a worker because it failed, if it is there."""
        removed = self.discard(metadata)
        if removed is not None and self._on_evict is not None:
            self._on_evict(removed)

    def discard(self, metadata: WorkerMetadata) -> WorkerMetadata | None:
        """Remove a worker through no fault of its own. Returns what was known of it, if it was."""
        entry = self._entries.pop(metadata.uid, None)
        if entry is None:
            return None
        self._workers = None
        return entry[0]

    def _set(self, metadata: WorkerMetadata, connection: ConnectionLike) -> None:
        known, current = self._entries.get(metadata.uid, (None, None))
        if known != metadata or current is not connection:
            self._entries[metadata.uid] = (metadata, connection)
            self._workers = None


class TaggedContext:
    """The workers of a context that have all of `tags`."""

    def __init__(self, context: LoadBalancerContextLike, tags: frozenset[str]) -> None:
        self.tags = tags
        self._context = context
        self._all: Mapping[WorkerMetadata, ConnectionLike] | None = None
        self._workers: Mapping[WorkerMetadata, ConnectionLike] = MappingProxyType({})

    def __repr__(self) -> str:
        return f"<TaggedContext {len(self.workers)} workers with {sorted(self.tags)}>"

    @property
    def workers(self) -> Mapping[WorkerMetadata, ConnectionLike]:
        everyone = self._context.workers
        if everyone is not self._all:
            self._all = everyone
            self._workers = MappingProxyType(
                {each: way for each, way in everyone.items() if self.tags <= each.tags}
            )
        return self._workers

    def add_worker(self, metadata: WorkerMetadata, connection: ConnectionLike) -> None:
        self._context.add_worker(metadata, connection)

    def update_worker(
        self, metadata: WorkerMetadata, connection: ConnectionLike, *, upsert: bool = False
    ) -> None:
        self._context.update_worker(metadata, connection, upsert=upsert)

    def remove_worker(self, metadata: WorkerMetadata) -> None:
        self._context.remove_worker(metadata)


def _untried_first(choices: Iterator[Entry], tried: set[UUID]) -> Iterator[Entry]:
    later = []
    for entry in choices:
        if entry[0].uid in tried:
            later.append(entry)
        else:
            yield entry
    yield from later


async def first_to_take(
    task: Task,
    choices: Iterator[Entry],
    context: LoadBalancerContextLike,
    timeout: float | None,
) -> AsyncIterator[Any]:
    """Hand a task to the first of `choices` that takes it, as a load balancer must.

    Each is asked for when the one before it has failed. Those that have had the task come last.
    """
    error: RpcError | None = None
    for metadata, connection in _untried_first(choices, task.tried) if task.tried else choices:
        try:
            stream = await connection.dispatch(task, timeout=timeout)
            if task.tried is not None:
                task.tried.add(metadata.uid)
            return stream
        except RpcError as exc:
            error = exc
            observation.tell("call-refused", task, worker=metadata, error=exc)
            if not isinstance(exc, TransientRpcError):
                context.remove_worker(metadata)
    refusal = NoWorkersAvailable()
    if error is None:
        raise refusal
    raise NoWorkersAvailable(f"{refusal}: {str(error) or type(error).__name__}") from error


__all__ = [
    "ConnectionLike",
    "LoadBalancerContext",
    "LoadBalancerContextLike",
    "LoadBalancerLike",
    "NoWorkersAvailable",
    "first_to_take",
]
