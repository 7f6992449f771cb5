"""Every exception class of wool, by whose fault it is and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

    from wool.runtime.worker.metadata import WorkerMetadata


class WoolError(Exception):
    """The base of all errors of wool's own."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[WoolError], args: tuple[Any, ...], state: dict[str, Any]) -> WoolError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class WoolWarning(UserWarning):
    """The base of all warnings of wool's own."""


class AdvertiseHostError(WoolError):
    """A worker has no address at which other hosts could reach it."""


class LoopbackAdvertisementWarning(WoolWarning):
    """A worker is announced on the network at an address that only its own host can reach."""


class IneffectiveIdentityWarning(WoolWarning):
    """Workers don't announce the identity they are meant to have, or are not called for it."""


class IneffectivePeersWarning(WoolWarning):
    """Credentials name nobody as those whom they are for."""


class NoWorkersAvailable(WoolError):
    """No admitted worker took the call. It has not run."""

    def __init__(self, message: str = "No healthy workers available for dispatch") -> None:
        super().__init__(message)


class WorkerLost(WoolError):
    """The worker went away while it had the call, which may have run, in part or in full.

    `metadata` describes the worker. `reason` says what is known of its end: how its process died
    when this process is its parent, else what was seen of the connection.
    """

    def __init__(self, metadata: WorkerMetadata | None, reason: str) -> None:
        name = f"Worker {metadata.uid} at {metadata.address}" if metadata else "The worker"
        super().__init__(f"{name} was lost during a call that may have run: {reason}")
        self.metadata = metadata
        self.reason = reason


class WorkerUnresponsive(WorkerLost, TimeoutError):
    """The worker neither took nor returned the call within the dispatch timeout."""


class RpcError(WoolError):
    """The call to a worker failed before the routine ran, in a way that repeats.

    `code` is a `grpc.StatusCode` or None, `details` says what happened.
    """

    def __init__(self, code: grpc.StatusCode | None = None, details: str | None = None) -> None:
        super().__init__(f"{code.name}: {details}" if code else (details or ""))
        self.code = code
        self.details = details


class TransientRpcError(RpcError):
    """The call to a worker failed before the routine ran; another worker, or later, may do."""


class WorkerFull(TransientRpcError):
    """The worker runs as many tasks as it may. The call has not run."""


class HandshakeError(TransientRpcError):
    """A worker could not be called as TLS failed: whom it trusts, its name, or its dates.

    The worker stays admitted, as what is wrong may be mended here. `details` says what it was.
    """


class DispatchTimeout(TransientRpcError, TimeoutError):
    """No worker took the call within the dispatch timeout. It has not run."""


class UnexpectedResponse(WoolError):
    """The peer broke the protocol."""


class PayloadTooLarge(WoolError):
    """Arguments, a result or an exception exceed what the worker's `ChannelOptions` allow.

    `size` and `limit` are in bytes; `option` names the field to raise.
    """

    def __init__(self, what: str, size: int, option: str, limit: int) -> None:
        super().__init__(
            f"{what} of {size:,} bytes exceeds the limit of {limit:,} bytes; "
            f"raise ChannelOptions.{option} of the worker, or send less"
        )
        self.size = size
        self.option = option
        self.limit = limit
