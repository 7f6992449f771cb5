"""What a filter does to a stream of events, whichever discovery they come from."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, cast

from wool.runtime.discovery.base import DiscoveryEvent, PredicateFunction

if TYPE_CHECKING:
    from uuid import UUID

    from wool.runtime.worker.metadata import WorkerMetadata


class EventFilter:
    """Applies a predicate to the events of one iteration.

    A worker that comes to satisfy it is added, one that no longer does is dropped, and the others
    are never heard of.
    """

    def __init__(self, predicate: PredicateFunction | None) -> None:
        self._predicate = predicate
        self._passed: dict[UUID, WorkerMetadata] = {}

    def apply(self, event: DiscoveryEvent) -> DiscoveryEvent | None:
        """The event as the consumer sees it, or None if it doesn't."""
        if self._predicate is None:
            return event
        uid = event.metadata.uid
        if event.type != "worker-dropped" and self._predicate(event.metadata):
            known = uid in self._passed
            self._passed[uid] = event.metadata
            return event if known else DiscoveryEvent("worker-added", event.metadata)
        old = self._passed.pop(uid, None)
        return DiscoveryEvent("worker-dropped", old) if old else None


def dump_filter(predicate: PredicateFunction | None) -> bytes | None:
    """The filter as bytes, by value if it can't be imported."""
    if predicate is None:
        return None
    import cloudpickle

    return cast("bytes", cloudpickle.dumps(predicate))


def load_filter(data: bytes | None) -> PredicateFunction | None:
    return None if data is None else cast("PredicateFunction", pickle.loads(data))
