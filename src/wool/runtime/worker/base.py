"""What a worker is to the rest of wool, and how it is configured."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from uuid import UUID, uuid4

from wool import protocol

if TYPE_CHECKING:
    from wool.runtime.worker.auth import Credentials
    from wool.runtime.worker.metadata import WorkerMetadata

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """How clients and a worker talk; the worker announces it and both sides keep to it.

    `max_receive_message_length` and `max_send_message_length` bound one payload, in bytes, seen
    from the worker: the arguments of a call and its result. A peer that says nothing is asked after
    `keepalive_time_ms`, and lost if it doesn't answer within `keepalive_timeout_ms`: after 50 s by
    default. The rest is gRPC's: see its keepalive guide. `compression` is a number of
    `grpc.Compression` (0 none, 1 deflate, 2 gzip).

    Raises `ValueError` for a value out of range, `TypeError` for one that is no number.
    """

    max_receive_message_length: int = 100 * MIB
    max_send_message_length: int = 100 * MIB
    keepalive_time_ms: int = 30_000
    keepalive_timeout_ms: int = 20_000
    keepalive_permit_without_calls: bool = True
    max_pings_without_data: int = 2
    compression: int = 0

    def __post_init__(self) -> None:
        for name in ("max_receive_message_length", "max_send_message_length"):
            _check(self, name, 1, sys.maxsize)
        for name in ("keepalive_time_ms", "keepalive_timeout_ms"):
            _check(self, name, 1)
        _check(self, "max_pings_without_data", 0)
        _check(self, "compression", 0, 2)

    def to_protobuf(self) -> protocol.ChannelOptions:
        return protocol.ChannelOptions(**{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def from_protobuf(cls, message: protocol.ChannelOptions) -> ChannelOptions:
        return cls(**{f.name: getattr(message, f.name) for f in fields(cls)})


CONNECTION_LIMITS = (
    "max_connection_idle_ms",
    "max_connection_age_ms",
    "max_connection_age_grace_ms",
)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker serves.

    `channel` is what it announces to clients. `http2_min_recv_ping_interval_without_data_ms` and
    `max_ping_strikes` say how often a client may ping before it is cut off; 0 strikes is never.

    A connection that is older than `max_connection_age_ms`, give or take a tenth, gets no more
    calls: its client opens another, with the credentials that are current then. What runs may
    end within `max_connection_age_grace_ms`; after that it is cut off, and `WorkerLost` to its
    caller. One without a session is closed after `max_connection_idle_ms`. All are in milliseconds,
    and without limit by default.

    Raises `ValueError` if clients that keep to `channel` would ping too often, and for a value out
    of range, `TypeError` for one that is no number.
    """

    channel: ChannelOptions = field(default_factory=ChannelOptions)
    http2_min_recv_ping_interval_without_data_ms: int = 7_500
    max_ping_strikes: int = 0
    max_connection_idle_ms: int | None = None
    max_connection_age_ms: int | None = None
    max_connection_age_grace_ms: int | None = None

    def __post_init__(self) -> None:
        for name in ("http2_min_recv_ping_interval_without_data_ms", "max_ping_strikes"):
            _check(self, name, 0)
        for name in CONNECTION_LIMITS:
            if getattr(self, name) is not None:
                _check(self, name, 1)
        if self.channel.keepalive_time_ms < self.http2_min_recv_ping_interval_without_data_ms:
            raise ValueError(
                "keepalive_time_ms must be >= http2_min_recv_ping_interval_without_data_ms"
            )


def _check(options: object, name: str, least: int, most: int = 2**31 - 1) -> None:
    value = getattr(options, name)
    if type(value) is not int:
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {'positive' if least else 'non-negative'}, got {value}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")


@runtime_checkable
class WorkerLike(Protocol):
    """What a pool asks of a worker."""

    @property
    def uid(self) -> UUID: ...

    @property
    def metadata(self) -> WorkerMetadata | None:
        """How to announce it; None before it has started."""

    async def start(self, *, timeout: float | None = None) -> None: ...

    async def stop(self, *, timeout: float | None = None) -> None: ...


@runtime_checkable
class WorkerFactory(Protocol):
    """What a pool makes its workers with."""

    def __call__(self, *tags: str, credentials: Credentials | None = None) -> WorkerLike: ...


class Worker(ABC):
    """The part of a worker that does not depend on where it runs.

    `tags` and `extra` (values that JSON can carry) are announced with it.
    """

    def __init__(self, *tags: str, **extra: Any) -> None:
        self.uid = uuid4()
        self.tags = set(tags)
        self.extra = extra
        self._metadata: WorkerMetadata | None = None
        self._started = False

    @property
    def metadata(self) -> WorkerMetadata | None:
        return self._metadata

    @property
    @abstractmethod
    def address(self) -> str | None:
        """Where it listens, as a gRPC target; None before it has started."""

    async def start(self, *, timeout: float | None = None) -> None:
        """Start it, within `timeout` seconds.

        Raises `ValueError` if the timeout isn't positive, `RuntimeError` if it is running.
        """
        if timeout is not None and timeout <= 0:
            raise ValueError("Timeout must be positive")
        if self._started:
            raise RuntimeError("Worker has already been started")
        self._started = True
        try:
            await self._start(timeout)
        except BaseException:
            self._started = False
            raise

    async def stop(self, *, timeout: float | None = None) -> None:
        """Stop it: drain for `timeout` seconds, then cancel what still runs.

        None or 0 cancels at once, a negative timeout drains without limit. Raises `RuntimeError`
        if it isn't running.
        """
        if not self._started:
            raise RuntimeError("Worker has not been started")
        try:
            await self._stop(timeout)
        finally:
            self._started = False

    @abstractmethod
    async def _start(self, timeout: float | None) -> None: ...

    @abstractmethod
    async def _stop(self, timeout: float | None) -> None: ...
