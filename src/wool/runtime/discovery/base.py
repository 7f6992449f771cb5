"""How workers are found: publishers announce events, subscribers iterate over them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from wool.runtime.worker.metadata import WorkerMetadata

DiscoveryEventType: TypeAlias = Literal["worker-added", "worker-dropped", "worker-updated"]

PredicateFunction: TypeAlias = Callable[[WorkerMetadata], bool]
"""Tells whether a subscriber wants to hear of a worker."""


@dataclass(frozen=True, slots=True)
class DiscoveryEvent:
    """What happened to a worker, and how it describes itself since (or last did)."""

    type: DiscoveryEventType
    metadata: WorkerMetadata


@runtime_checkable
class DiscoveryPublisherLike(Protocol):
    """Announces workers. May be an async context manager, entered before use.

    `bind_host`, if it has that attribute, is the host its workers must listen on.
    """

    async def publish(self, type: DiscoveryEventType, metadata: WorkerMetadata) -> None: ...


@runtime_checkable
class DiscoverySubscriberLike(Protocol):
    """Tells of workers. Each iteration starts with a `worker-added` for those already there."""

    def __aiter__(self) -> AsyncIterator[DiscoveryEvent]: ...


@runtime_checkable
class DiscoveryLike(Protocol):
    """Where workers meet: somewhere to publish and somewhere to subscribe."""

    @property
    def publisher(self) -> DiscoveryPublisherLike: ...

    @property
    def subscriber(self) -> DiscoverySubscriberLike: ...

    def subscribe(self, filter: PredicateFunction | None = None) -> DiscoverySubscriberLike: ...


class Discovery(ABC):
    """The base of wool's own discoveries. A pool accepts anything that is `DiscoveryLike`."""

    @property
    @abstractmethod
    def publisher(self) -> DiscoveryPublisherLike: ...

    @property
    def subscriber(self) -> DiscoverySubscriberLike:
        """Tells of the workers that pass this discovery's own filter."""
        return self.subscribe()

    @abstractmethod
    def subscribe(self, filter: PredicateFunction | None = None) -> DiscoverySubscriberLike: ...
