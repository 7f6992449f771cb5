"""The default load balancer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from wool.runtime.loadbalancer.base import first_to_take

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
    from uuid import UUID

    from wool.runtime.loadbalancer.base import ConnectionLike, Entry, LoadBalancerContextLike
    from wool.runtime.routine.task import Task
    from wool.runtime.worker.metadata import WorkerMetadata

    Order = tuple[Entry, ...]


class RoundRobinLoadBalancer:
    """Workers take turns, in order of admission.

    A turn is taken when a call picks a worker, before it connects: calls made at the same time go
    to different workers. A call tries each worker at most once, of those there when it began.
    """

    def __init__(self) -> None:
        self._rotations: WeakKeyDictionary[LoadBalancerContextLike, _Rotation] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def dispatch(
        self, task: Task, *, context: LoadBalancerContextLike, timeout: float | None = None
    ) -> Coroutine[Any, Any, AsyncIterator[Any]]:
        return first_to_take(task, self._turns(context), context, timeout)

    def _turns(self, context: LoadBalancerContextLike) -> Iterator[Entry]:
        rotation = self._rotations.get(context)
        if rotation is None:
            rotation = self._rotations[context] = _Rotation()
        order, start = rotation.begin(context.workers)
        for i in range(start, start + len(order)):
            entry = rotation.turn(context.workers, order[i % len(order)][0].uid)
            if entry is not None:
                yield entry


class _Rotation:
    """Whose turn it is in a context."""

    def __init__(self) -> None:
        self._workers: Mapping[WorkerMetadata, ConnectionLike] | None = None
        self._order: Order = ()
        self._places: dict[UUID, int] = {}
        self._next = 0

    def begin(self, workers: Mapping[WorkerMetadata, ConnectionLike]) -> tuple[Order, int]:
        """The present workers, and the place of the one whose turn it is."""
        self._follow(workers)
        return self._order, self._next

    def turn(self, workers: Mapping[WorkerMetadata, ConnectionLike], uid: UUID) -> Entry | None:
        """The worker's turn, as it is now; None if it has left."""
        self._follow(workers)
        place = self._places.get(uid)
        if place is None:
            return None
        if place == self._next:
            self._next = (place + 1) % len(self._order)
        return self._order[place]

    def _follow(self, workers: Mapping[WorkerMetadata, ConnectionLike]) -> None:
        if workers is self._workers:
            return
        queue = self._order[self._next :] + self._order[: self._next]
        self._workers = workers
        self._order = tuple(workers.items())
        self._places = {metadata.uid: i for i, (metadata, _) in enumerate(self._order)}
        places = (self._places.get(metadata.uid) for metadata, _ in queue)
        self._next = next((place for place in places if place is not None), 0)
