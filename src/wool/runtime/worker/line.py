"""Calls that wait where they were made while every worker that could take them is full."""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from wool.runtime.errors import DispatchTimeout, NoWorkersAvailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from wool.runtime.loadbalancer.base import LoadBalancerContextLike
    from wool.runtime.routine.task import Task

logger = logging.getLogger("wool.proxy")

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds without a change after which it is logged that calls wait."""


class Line:
    """The calls that wait for room at a worker of `context`, in the order of their tickets.

    Each is let go once for every change that may mean room; the last one that is out of the line
    lets another one go, if there may be room still. One that finds all workers full waits for the
    next change, if there has been none since.
    """

    def __init__(self, context: LoadBalancerContextLike, tickets: Iterator[int]) -> None:
        self.leaving = 0
        """How many have been let go that the event loop has not run since."""
        self._context = context
        self._tickets = tickets
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._changes = 0
        self._complaint: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def first(self) -> float:
        """The ticket of the call that has waited longest; infinite if none waits."""
        return self._waiting[0][0] if self._waiting else math.inf

    @property
    def _full(self) -> bool:
        """Whether no worker has room, as far as is known."""
        connections: Any = self._context.workers.values()
        return bool(connections) and all(connection.full for connection in connections)

    async def dispatch(
        self, task: Task, attempt: Callable[[], Awaitable[T]], timeout: float | None
    ) -> T:
        """Attempt it when it is the task's turn, and again while it meets full workers only.

        Raises `NoWorkersAvailable` if its turn doesn't come within `timeout` seconds,
        `RuntimeError` if the line is closed, and what `attempt` raises.
        """
        ticket = next(self._tickets)
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        waits = bool(self._waiting) or self._full
        self._under_way += 1
        self._idle.clear()
        try:
            while True:
                if waits and not self._closed:
                    await self._turn(ticket, deadline, timeout)
                if self._closed:
                    raise RuntimeError("Proxy was stopped while a call waited for room at a worker")
                changes = self._changes
                task.met_full = False
                try:
                    return await attempt()
                except NoWorkersAvailable:
                    if not task.met_full:
                        raise
                waits = self._changes == changes
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
            elif self._under_way <= len(self._waiting) and not self._full:
                self._let_go(1)

    async def _turn(self, ticket: int, deadline: float | None, timeout: float | None) -> None:
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (ticket, turn))
        self._complain_later()
        try:
            async with asyncio.timeout_at(deadline):
                await turn
        except TimeoutError:
            number = len(self._context.workers)
            reason = f"all {number} workers that may take it were full for {timeout} s"
            raise NoWorkersAvailable(f"{NoWorkersAvailable()}: {reason}") from DispatchTimeout(
                grpc.StatusCode.DEADLINE_EXCEEDED, reason
            )
        finally:
            if turn.done() and not turn.cancelled():
                self.leaving -= 1
            self._skip_done()

    def _complain_later(self, told: bool = False) -> None:
        if self._complaint is None and not told and not self._closed:
            loop = asyncio.get_running_loop()
            self._complaint = loop.call_later(PATIENCE, self._complain, self._changes)

    def _complain(self, changes: int) -> None:
        """Log, once, that nothing moves."""
        self._complaint = None
        if self._waiting:
            stuck = self._changes == changes
            if stuck:
                logger.warning(
                    "%d calls wait, as all %d workers that may take them have been full for %s s; "
                    "streams that are open count, too, until they are closed",
                    len(self._waiting),
                    len(self._context.workers),
                    PATIENCE,
                )
            self._complain_later(told=stuck)

    async def idle(self) -> None:
        """Return when no call is waiting, or on its way to a worker."""
        await self._idle.wait()

    def has_room(self, tasks: int) -> None:
        """A worker has room for so many tasks."""
        self._changes += 1
        self._let_go(tasks)

    def workers_changed(self) -> None:
        """Let one try them, or everyone if there is none that could ever have room."""
        self.has_room(1 if self._context.workers else len(self._waiting))

    def close(self) -> None:
        """Let nobody wait any more."""
        self._closed = True
        if self._complaint is not None:
            self._complaint.cancel()
        self.has_room(len(self._waiting))

    def _let_go(self, tasks: int) -> None:
        while self._waiting and tasks:
            turn = heapq.heappop(self._waiting)[1]
            if not turn.done():  # As that of one is who is cancelled and does not know yet.
                turn.set_result(None)
                self.leaving += 1
                tasks -= 1
        self._skip_done()

    def _skip_done(self) -> None:
        """Whoever is first in the line still waits."""
        while self._waiting and self._waiting[0][1].done():
            heapq.heappop(self._waiting)
