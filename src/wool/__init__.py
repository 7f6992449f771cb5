"""wool: routines, async functions that run in worker processes, without a scheduler."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from importlib import import_module
from typing import TYPE_CHECKING

from wool import _grpc
from wool._version import __version__

if TYPE_CHECKING:
    from wool.runtime.context import RuntimeContext
    from wool.runtime.discovery.base import (
        Discovery,
        DiscoveryEvent,
        DiscoveryEventType,
        DiscoveryLike,
        DiscoveryPublisherLike,
        DiscoverySubscriberLike,
        PredicateFunction,
    )
    from wool.runtime.discovery.dns import DnsDiscovery
    from wool.runtime.discovery.lan import LanDiscovery
    from wool.runtime.discovery.local import LocalDiscovery
    from wool.runtime.discovery.redis import RedisDiscovery
    from wool.runtime.errors import (
        AdvertiseHostError,
        DispatchTimeout,
        HandshakeError,
        IneffectiveIdentityWarning,
        IneffectivePeersWarning,
        LoopbackAdvertisementWarning,
        NoWorkersAvailable,
        PayloadTooLarge,
        RpcError,
        TransientRpcError,
        UnexpectedResponse,
        WoolError,
        WoolWarning,
        WorkerFull,
        WorkerLost,
        WorkerUnresponsive,
    )
    from wool.runtime.loadbalancer.base import LoadBalancerContextLike, LoadBalancerLike
    from wool.runtime.loadbalancer.leastloaded import LeastLoadedLoadBalancer
    from wool.runtime.loadbalancer.roundrobin import RoundRobinLoadBalancer
    from wool.runtime.map import MapProgress, map
    from wool.runtime.observation import Event, EventKind, Events, events
    from wool.runtime.resourcepool import ResourcePool
    from wool.runtime.routine.task import Task, TaskException, WorkerProxyLike, current_task
    from wool.runtime.routine.wrapper import routine
    from wool.runtime.serializer import Serializer
    from wool.runtime.typing import Factory
    from wool.runtime.worker.auth import WorkerCredentials, WorkerCredentialsProvider
    from wool.runtime.worker.backpressure import BackpressureContext, BackpressureLike
    from wool.runtime.worker.base import Worker, WorkerFactory, WorkerLike
    from wool.runtime.worker.connection import WorkerConnection
    from wool.runtime.worker.local import LocalWorker
    from wool.runtime.worker.metadata import WorkerMetadata
    from wool.runtime.worker.pool import WorkerPool
    from wool.runtime.worker.proxy import WorkerProxy
    from wool.runtime.worker.service import WorkerService
    from wool.runtime.worker.status import RunningTask, WorkerStatus

logging.getLogger("wool").addHandler(logging.NullHandler())

_grpc.load()

__proxy__: ContextVar[WorkerProxyLike | None] = ContextVar("__proxy__", default=None)
"""The proxy that dispatches the routines called here."""

__proxy_pool__: ContextVar[ResourcePool[WorkerProxyLike] | None] = ContextVar(
    "__proxy_pool__", default=None
)
"""In a worker, the proxies of the tasks it runs."""

__worker_service__: ContextVar[WorkerService | None] = ContextVar(
    "__worker_service__", default=None
)
"""In a worker, its service."""

__worker_metadata__: WorkerMetadata | None = None
"""In a worker, how it describes itself."""

__worker_uds_address__: str | None = None
"""In a worker that listens on a unix socket, the socket's address."""

__all__ = [
    # Connections
    "RpcError",
    "TransientRpcError",
    "UnexpectedResponse",
    "WorkerConnection",
    # Context
    "RuntimeContext",
    # Load balancing
    "LeastLoadedLoadBalancer",
    "LoadBalancerContextLike",
    "LoadBalancerLike",
    "NoWorkersAvailable",
    "RoundRobinLoadBalancer",
    # Routines
    "MapProgress",
    "Serializer",
    "Task",
    "TaskException",
    "current_task",
    "map",
    "routine",
    # Workers
    "BackpressureContext",
    "BackpressureLike",
    "LocalWorker",
    "Worker",
    "WorkerCredentials",
    "WorkerCredentialsProvider",
    "WorkerFactory",
    "WorkerLike",
    "WorkerPool",
    "WorkerProxy",
    "RunningTask",
    "WorkerService",
    "WorkerStatus",
    # What happens
    "Event",
    "EventKind",
    "Events",
    "events",
    # Discovery
    "Discovery",
    "DiscoveryEvent",
    "DiscoveryEventType",
    "DiscoveryLike",
    "DiscoveryPublisherLike",
    "DiscoverySubscriberLike",
    "DnsDiscovery",
    "LanDiscovery",
    "LocalDiscovery",
    "PredicateFunction",
    "RedisDiscovery",
    "WorkerMetadata",
    # Typing
    "Factory",
    # Errors
    "AdvertiseHostError",
    "DispatchTimeout",
    "HandshakeError",
    "PayloadTooLarge",
    "WoolError",
    "WorkerFull",
    "WorkerLost",
    "WorkerUnresponsive",
    # Warnings
    "IneffectiveIdentityWarning",
    "IneffectivePeersWarning",
    "LoopbackAdvertisementWarning",
    "WoolWarning",
    # About
    "__version__",
]

_HOMES = {
    "context": ("RuntimeContext",),
    "discovery.base": (
        "Discovery",
        "DiscoveryEvent",
        "DiscoveryEventType",
        "DiscoveryLike",
        "DiscoveryPublisherLike",
        "DiscoverySubscriberLike",
        "PredicateFunction",
    ),
    "discovery.dns": ("DnsDiscovery",),
    "discovery.lan": ("LanDiscovery",),
    "discovery.local": ("LocalDiscovery",),
    "discovery.redis": ("RedisDiscovery",),
    "errors": (
        "AdvertiseHostError",
        "DispatchTimeout",
        "HandshakeError",
        "IneffectiveIdentityWarning",
        "IneffectivePeersWarning",
        "LoopbackAdvertisementWarning",
        "NoWorkersAvailable",
        "PayloadTooLarge",
        "RpcError",
        "TransientRpcError",
        "UnexpectedResponse",
        "WoolError",
        "WoolWarning",
        "WorkerFull",
        "WorkerLost",
        "WorkerUnresponsive",
    ),
    "loadbalancer.base": ("LoadBalancerContextLike", "LoadBalancerLike"),
    "loadbalancer.leastloaded": ("LeastLoadedLoadBalancer",),
    "loadbalancer.roundrobin": ("RoundRobinLoadBalancer",),
    "observation": ("Event", "EventKind", "Events", "events"),
    "map": ("MapProgress", "map"),
    "routine.task": ("Task", "TaskException", "current_task"),
    "routine.wrapper": ("routine",),
    "serializer": ("Serializer",),
    "typing": ("Factory",),
    "worker.auth": ("WorkerCredentials", "WorkerCredentialsProvider"),
    "worker.backpressure": ("BackpressureContext", "BackpressureLike"),
    "worker.base": ("Worker", "WorkerFactory", "WorkerLike"),
    "worker.connection": ("WorkerConnection",),
    "worker.local": ("LocalWorker",),
    "worker.metadata": ("WorkerMetadata",),
    "worker.pool": ("WorkerPool",),
    "worker.proxy": ("WorkerProxy",),
    "worker.service": ("WorkerService",),
    "worker.status": ("RunningTask", "WorkerStatus"),
}
"""The modules, below `wool.runtime`, of the public names. Each is loaded when first asked for."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                value = getattr(import_module(f"wool.runtime.{home}"), name)
                globals()[name] = value
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
