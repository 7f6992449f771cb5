"""How a worker keeps to a limit: it refuses tasks while it is full, and says when there is room.

A client whose task was refused for that sends no more until it is told how many it may send, and
is told again when it has used them up, as soon as there is room. So tasks wait where they were
made, in order, for the first worker that has room (see `line`).

Tasks that routines send are never refused: what waits for them may be what fills the worker.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import grpc

from wool import protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from wool.runtime.routine.task import Task

logger = logging.getLogger("wool.service")

BUSY: Final[int] = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
BROKEN: Final[int] = grpc.StatusCode.INTERNAL.value[0]
STOPPING: Final[int] = grpc.StatusCode.UNAVAILABLE.value[0]

RECHECK = 1.0
"""Seconds after which a worker whose backpressure hook has refused a task asks it again."""


@dataclass(frozen=True, slots=True)
class BackpressureContext:
    """What a backpressure hook decides by.

    `active_task_count` is how many tasks the worker runs, those of other routines included; `task`
    is the one that would be the next.
    """

    active_task_count: int
    task: Task


@runtime_checkable
class BackpressureLike(Protocol):
    """A function, or async function, that tells whether to refuse a task.

    It runs on the worker's routine loop, for one task at a time, before each that no routine has
    sent. A refused task goes to another worker, or waits until this one has ended another task, or
    a second. If it raises, the worker counts as broken.
    """

    def __call__(self, context: BackpressureContext) -> bool | Awaitable[bool]: ...


class Admission:
    """What runs on the routine loop, and the backpressure hook that is asked before more does."""

    def __init__(self, hook: BackpressureLike) -> None:
        self.running: set[object] = set()
        self._hook = hook
        self._one_at_a_time = asyncio.Lock()

    async def refuses(self, execution: object, task: Task) -> protocol.Nack | None:
        """Why a task is not to run; if it is, its execution counts as running."""
        if task.caller is None:
            async with self._one_at_a_time:
                if (refusal := await self._ask(task)) is not None:
                    return refusal
        self.running.add(execution)
        return None

    async def _ask(self, task: Task) -> protocol.Nack | None:
        try:
            refused = self._hook(BackpressureContext(len(self.running), task))
            if inspect.isawaitable(refused):
                refused = await refused
        except (Exception, SystemExit, KeyboardInterrupt) as exc:
            logger.exception("The backpressure hook %r failed", self._hook)
            return protocol.Nack(reason=f"its backpressure hook raised {exc!r}", code=BROKEN)
        if refused:
            return protocol.Nack(reason="its backpressure hook refuses the task", code=BUSY)
        return None


class Client(Protocol):
    """What is told how many tasks it may send."""

    def tell_room(self, room: int) -> None: ...


class Limit:
    """How many tasks run, `most` at once (None: no limit), and who waits to be told of room."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._taken = 0
        self._left: dict[Client, int] = {}
        """How many more tasks each may send that was refused one. Those with 0 wait."""
        self._telling: asyncio.Handle | None = None
        self._recheck: asyncio.TimerHandle | None = None

    def take(self, client: Client) -> bool:
        """Whether there is room for a task of the client's; `give_back` it when it has ended."""
        if self._most is not None and self._taken >= self._most:
            self._left[client] = 0
            return False
        self._taken += 1
        if left := self._left.get(client):
            self._left[client] = left - 1
            if left == 1:
                self._tell_soon()
        return True

    def give_back(self) -> None:
        """A task that there was room for has ended."""
        self._taken -= 1
        self._tell_soon()

    def refused(self, client: Client) -> None:
        """A task that there was room for was refused by the backpressure hook."""
        self._taken -= 1
        self._left[client] = 0
        if self._recheck is None:
            self._recheck = asyncio.get_running_loop().call_later(RECHECK, self._ask_again)

    def forget(self, client: Client) -> None:
        """The client has gone."""
        self._left.pop(client, None)

    def _ask_again(self) -> None:
        self._recheck = None
        self._tell()

    def _tell_soon(self) -> None:
        """When all that this turn of the loop brings is known."""
        if self._telling is None and self._left:
            self._telling = asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = None
        # The hook has no number.
        room = 1 if self._most is None else self._most - self._taken
        if room > 0:
            for client in [client for client, left in self._left.items() if not left]:
                self._left[client] = room
                client.tell_room(room)
