"""What a worker process is told by the one that starts it."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from uuid import UUID

    from wool.runtime.worker.auth import Credentials
    from wool.runtime.worker.base import WorkerOptions


STOP: Final = Struct("d")
"""Seconds to drain, with which a worker is told to stop."""


class Configuration(NamedTuple):
    """How to serve, and as which worker."""

    uid: UUID
    tags: frozenset[str]
    extra: dict[str, Any]
    host: str | None
    port: int
    directory: str | None
    shutdown_grace_period: float
    proxy_pool_ttl: float
    credentials: Credentials | None
    options: WorkerOptions
    identity: str | None
    blocking_threshold: float | None
    max_concurrent_tasks: int | None
    backpressure: bytes | None
    """Pickled, as it may be defined where only the parent can find it by name. So are these."""
    initializer: bytes | None
    loop_factory: bytes | None
