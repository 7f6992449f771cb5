"""What the loop that serves and the routine loop share of a session.

That is three things, each with one producer and one consumer: `pending` (tasks that have arrived),
`mail` (everything else, in order) and `replies`. A task belongs to whichever side pops it from
`pending`: the routine loop, when it takes the first step of running it, or the serving side, to
give it back unrun.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from wool.runtime import serializer, unimportable
from wool.runtime.routine.task import Task, load_proxy, split_callable
from wool.runtime.serializer import Payload
from wool.runtime.worker.framing import OVERHEAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from wool import protocol

Body: TypeAlias = "Payload | protocol.Segment | protocol.Nack | None"
"""What a reply carries."""

GIVEN_BACK = "it was withdrawn before it ran"


@dataclass(slots=True, eq=False)
class Definition:
    """A callable or a proxy as it came, and what it loads to if that may be used again."""

    content: bytes | bytearray
    reusable: bool
    value: Any = None

    def load(self, loads: Callable[[bytes], Any]) -> Any:
        if self.value is not None:
            return self.value
        value = loads(bytes(self.content))
        if self.reusable:
            self.value = value
        return value


@dataclass(slots=True)
class Arrival:
    """A task that has arrived."""

    header: protocol.Task
    callable: Definition | None
    """None if it is the last buffer of the arguments."""
    proxy: Definition | None
    arguments: Payload | protocol.Segment

    def load(self, arguments: Payload) -> Task:
        """The task, from its arguments once they are here. Raises what loading its parts raises."""
        try:
            return self._load(arguments)
        except ModuleNotFoundError as exc:
            where = f"the worker that is to run routine {self.header.tag}"
            unimportable.refuse(exc, where, by_value=True)

    def _load(self, arguments: Payload) -> Task:
        if self.proxy is None:
            proxy = load_proxy(b"", self.header.proxy_error)
        else:
            proxy = self.proxy.load(load_proxy)
        if self.callable is None:
            function, arguments = split_callable(arguments)
        else:
            function = self.callable.load(serializer.load_callable)
        return Task.decode(self.header, function, proxy, arguments)


def reply_size(payload: Body) -> int:
    """What a reply that waits counts for, in bytes."""
    if payload is None:
        return OVERHEAD
    return OVERHEAD + (payload.size if isinstance(payload, Payload) else payload.ByteSize())


@dataclass(slots=True)
class Exchange:
    """The three, and how the two sides tell each other of them.

    The routine loop calls `collect` when replies wait. `crowded` tells whether more of them wait
    for the client than may; if `stalled`, someone there waits for the end of that. Each of
    `replies` comes with its size; `replied` and `collected` are the bytes that have gone in and
    come out.
    """

    collect: Callable[[], object]
    crowded: Callable[[], bool]
    stalled: bool = False
    replied: int = 0
    collected: int = 0
    pending: dict[int, Arrival] = field(default_factory=dict)
    mail: deque[tuple[int, str, Any]] = field(default_factory=deque)
    replies: deque[tuple[int, str, Body, int]] = field(default_factory=deque)
