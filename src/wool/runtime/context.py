"""The ambient state of a call: what surrounds it, and the options set around it."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

from wool import protocol
from wool.runtime.typing import Undefined, UndefinedType

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from uuid import UUID

    from wool.runtime.routine.task import Task
    from wool.runtime.worker.loopback import StreamLike

dispatch_timeout: ContextVar[float | None] = ContextVar("dispatch_timeout", default=None)
"""Seconds that a worker may take to accept a call; None is without limit."""

task: ContextVar[Task | None] = ContextVar("task", default=None)
"""The task that is being executed."""

dispatching: ContextVar[bool] = ContextVar("dispatching", default=True)
"""Whether routines that are called are dispatched, or run where they are called."""


loopback: ContextVar[Callable[[UUID], StreamLike | None] | None] = ContextVar(
    "loopback", default=None
)
"""In a routine, what makes a stream to its own worker, by its uid, without gRPC."""


class RuntimeContext:
    """Options for the calls made inside a `with` block.

    `dispatch_timeout` bounds, in seconds, how long each attempt to hand a call to a worker may
    take, never how long it runs. None lifts a bound set outside; left out, it stays as it is.
    """

    __slots__ = ("__weakref__", "_entered", "_token", "dispatch_timeout")

    def __init__(self, *, dispatch_timeout: float | UndefinedType | None = Undefined) -> None:
        self.dispatch_timeout = dispatch_timeout
        self._token: Token[float | None] | None = None
        self._entered = False

    def __repr__(self) -> str:
        return f"RuntimeContext(dispatch_timeout={self.dispatch_timeout!r})"

    def __enter__(self) -> RuntimeContext:
        if self._entered:
            raise RuntimeError("RuntimeContext is already entered; make another one")
        self._entered = True
        if self.dispatch_timeout is not Undefined:
            self._token = dispatch_timeout.set(self.dispatch_timeout)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered = False
        if self._token is not None:
            dispatch_timeout.reset(self._token)
            self._token = None

    @classmethod
    def get_current(cls) -> RuntimeContext:
        """The options in force here."""
        return cls(dispatch_timeout=dispatch_timeout.get())

    def to_protobuf(self) -> protocol.RuntimeContext:
        message = protocol.RuntimeContext()
        if self.dispatch_timeout is not Undefined and self.dispatch_timeout is not None:
            message.dispatch_timeout = self.dispatch_timeout
        return message

    @classmethod
    def from_protobuf(cls, message: protocol.RuntimeContext) -> RuntimeContext:
        """From a message; what is absent there is left as it is where this is entered."""
        if message.HasField("dispatch_timeout"):
            return cls(dispatch_timeout=message.dispatch_timeout)
        return cls()
