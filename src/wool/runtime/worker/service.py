"""The gRPC service of a worker; `serversession` has what a session is."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import grpc
import grpc.aio

import wool
from wool import protocol
from wool.runtime import context as ambient
from wool.runtime.errors import TransientRpcError
from wool.runtime.resourcepool import ResourcePool
from wool.runtime.worker.arena import Shared
from wool.runtime.worker.auth import CredentialContext
from wool.runtime.worker.backpressure import Admission, BackpressureLike, Limit
from wool.runtime.worker.base import ChannelOptions
from wool.runtime.worker.executor import RoutineLoop
from wool.runtime.worker.loopback import Loopback
from wool.runtime.worker.relay import Relay
from wool.runtime.worker.serversession import DRAINING, FAREWELL, ServerSession, ServerSessions
from wool.runtime.worker.watch import LoopWatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from uuid import UUID

    from wool.runtime.worker.auth import Credentials
    from wool.runtime.worker.guest import Guest

logger = logging.getLogger("wool.service")


class Event(NamedTuple):
    """An `asyncio.Event` to read and to wait for."""

    event: asyncio.Event

    def is_set(self) -> bool:
        return self.event.is_set()

    async def wait(self) -> None:
        await self.event.wait()


class WorkerService:
    """The gRPC service of a worker: sessions, and the end of them all.

    `options` bound payloads; `proxy_ttl` is how many seconds an unused proxy of a caller's is kept
    for nested calls; `grace` how many seconds routines may take to clean up when they are
    cancelled by a stop; `credentials` are those that its routines' nested calls use. At most
    `max_concurrent_tasks` run at once (None: no limit), and none that the `backpressure` hook
    refuses; neither applies to the calls of routines. A routine that blocks its loop for
    `blocking_threshold` seconds is logged (None: never). `loop_factory` makes that loop.
    """

    replies: Relay
    """Takes what routines answer to the loop that serves."""

    def __init__(
        self,
        *,
        options: ChannelOptions | None = None,
        proxy_ttl: float = 60.0,
        grace: float = 60.0,
        credentials: Credentials | None = None,
        max_concurrent_tasks: int | None = None,
        backpressure: BackpressureLike | None = None,
        blocking_threshold: float | None = 1.0,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    ) -> None:
        limited = max_concurrent_tasks is not None or backpressure is not None
        self._limit = Limit(max_concurrent_tasks) if limited else None
        self._admission = Admission(backpressure) if backpressure is not None else None
        self._credentials = credentials
        self.options = options or ChannelOptions()
        self.routines = RoutineLoop(loop_factory)
        self.proxies: ResourcePool[Any] = ResourcePool(
            _start_later, finalizer=_stop_proxy, ttl=proxy_ttl
        )
        self._grace = grace
        self._watch = LoopWatch(self.routines, blocking_threshold, self._is_busy)
        self._began = time.monotonic()
        self._sessions = ServerSessions()
        self._own = ServerSessions()  # Of the routine loop with this worker.
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._events = Event(self._stopping), Event(self._stopped)
        self._until = math.inf
        self._drain: asyncio.Timeout | None = None
        self._ending: asyncio.Task[None] | None = None

    def start(self, guest: Guest | None = None) -> None:
        """Start the routine loop, and serve on the one that runs, lent to it if it is a guest's."""
        self.replies = Relay(asyncio.get_running_loop())
        self.routines.start(guest)
        self._watch.start()

    @property
    def stopping(self) -> Event:
        """Set when it takes no more tasks."""
        return self._events[0]

    @property
    def stopped(self) -> Event:
        """Set when everything has ended."""
        return self._events[1]

    def loopback(self, uid: UUID) -> Loopback | None:
        """A stream to this worker if that is its uid and the routine loop is running this.

        Raises `TransientRpcError` if the worker takes no more tasks.
        """
        me = wool.__worker_metadata__
        if me is None or me.uid != uid:
            return None
        if asyncio.get_running_loop() is not self.routines.loop:
            return None
        if self._stopping.is_set():
            raise TransientRpcError(grpc.StatusCode.UNAVAILABLE, DRAINING)
        session = self._session(self._own)
        return Loopback(session, partial(self._own.close_soon, session))

    async def dispatch(
        self,
        requests: AsyncIterator[protocol.RequestBatch],
        context: grpc.aio.ServicerContext[protocol.RequestBatch, protocol.ResponseBatch],
    ) -> AsyncIterator[protocol.ResponseBatch]:
        if self._stopping.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, DRAINING)
        shared = self._share(context)
        answer = () if shared is None else ((protocol.ARENA_KEY, shared.arena.offer),)
        try:
            await context.send_initial_metadata((*protocol.versions(), *answer))
        except BaseException:
            if shared is not None:
                shared.close()
            raise
        session = self._session(self._sessions, shared)
        reading = asyncio.create_task(session.read(requests), name="wool session reader")
        context.add_done_callback(cast("Any", session.on_done))
        try:
            async for batch in session.batches():
                yield batch
        finally:
            reading.cancel()
            # A task of its own: gRPC may cancel this one, or stop awaiting it, at any point, and
            # the client need not wait for routines that it has left behind.
            self._sessions.close_soon(session)

    def _session(self, group: ServerSessions, shared: Shared | None = None) -> ServerSession:
        context = contextvars.Context()
        context.run(wool.__proxy_pool__.set, self.proxies)
        context.run(ambient.loopback.set, self.loopback)
        context.run(CredentialContext(self._credentials).__enter__)
        session = ServerSession(
            group,
            context=context,
            routines=self.routines,
            replies=self.replies,
            options=self.options,
            stopping=self._stopping,
            limit=self._limit,
            admission=self._admission,
            shared=shared,
        )
        group.add(session)
        return session

    def _share(self, context: grpc.aio.ServicerContext[Any, Any]) -> Shared | None:
        """Take the client's offer of shared memory, if it makes one that can be taken."""
        for key, value in context.invocation_metadata() or ():
            if key == protocol.ARENA_KEY:
                return Shared.accept(
                    str(value),
                    largest_in=self.options.max_receive_message_length,
                    largest_out=self.options.max_send_message_length,
                )
        return None

    async def stop(
        self,
        request: protocol.StopRequest,
        context: grpc.aio.ServicerContext[protocol.StopRequest, protocol.Void] | None = None,
    ) -> protocol.Void:
        """Take no more tasks, drain, cancel, end every session; returns when that is done.

        A later stop may shorten the draining of an earlier one.
        """
        self._stopping.set()
        if request.timeout >= 0:
            until = asyncio.get_running_loop().time() + request.timeout
            self._until = min(self._until, until)
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(), name="wool stop")
        elif self._drain is not None and not self._drain.expired():
            self._drain.reschedule(self._deadline())
        await asyncio.shield(self._ending)
        return protocol.Void()

    async def status(
        self,
        request: protocol.StatusRequest,
        context: grpc.aio.ServicerContext[protocol.StatusRequest, protocol.Status] | None = None,
    ) -> protocol.Status:
        """How it is; with the tasks that run and their stacks, if they are asked for."""
        from wool.runtime.worker.status import resident_memory  # Few ask.

        groups = self._sessions, self._own
        metadata = wool.__worker_metadata__
        idle_since = max(group.idle_since for group in groups)
        return protocol.Status(
            worker=metadata.to_protobuf() if metadata is not None else None,
            draining=self._stopping.is_set(),
            uptime=time.monotonic() - self._began,
            idle=0 if self._is_busy() else time.monotonic() - idle_since,
            running=sum(group.unanswered for group in groups),
            done=sum(group.done for group in groups),
            failed=sum(group.failed for group in groups),
            refused=sum(group.refused for group in groups),
            sessions=len(self._sessions),
            loop_lag=self._watch.lag,
            cpu=time.process_time(),
            memory=resident_memory(),
            tasks=self.running_tasks() if request.tasks else (),
        )

    def _is_busy(self) -> bool:
        return bool(self._sessions.unanswered or self._own.unanswered)

    def running_tasks(self) -> list[protocol.RunningTask]:
        """The tasks that run, the longest first, and where they are. Their loop may be blocked."""
        from wool.runtime.worker.stacks import stack_of  # Few ask.

        executions = [
            execution
            for group in (self._sessions, self._own)
            for session in list(group)
            for execution in session.running
            if execution.began
        ]
        return [
            protocol.RunningTask(
                id=execution.id,
                tag=execution.tag,
                caller=execution.caller,
                seconds=self.routines.loop.time() - execution.began,
                stack=stack_of(execution.task, self.routines),
            )
            for execution in sorted(executions, key=attrgetter("began"))
        ]

    def _deadline(self) -> float | None:
        return self._until if self._until < math.inf else None

    async def _end(self) -> None:
        try:
            async with asyncio.timeout_at(self._deadline()) as self._drain:
                await self._everywhere(ServerSessions.drained)
        except TimeoutError:
            logger.debug("Cancelling what still runs")
        self._drain = None
        try:
            async with asyncio.timeout(self._grace):
                await self._everywhere(ServerSessions.cancel)
        except TimeoutError:
            logger.warning("Routines still run %s s after they were cancelled", self._grace)
        try:
            async with asyncio.timeout(FAREWELL):
                await self._everywhere(ServerSessions.end)
                await self.routines.run(self._clear_proxies)
        except TimeoutError:
            logger.info("Clients, or proxies of theirs, did not end within %s s", FAREWELL)
        self._watch.stop()
        await self.routines.stop(1.0)
        self.replies.close()
        self._stopped.set()

    async def _everywhere(
        self, step: Callable[[ServerSessions], Coroutine[Any, Any, None]]
    ) -> None:
        """Take a step with all sessions. The routine loop may be busy, and have none."""
        steps = [step(self._sessions)]
        if len(self._own):
            steps.append(self.routines.run(step, self._own))
        await asyncio.gather(*steps)

    async def _clear_proxies(self) -> None:
        await self.proxies.clear()


def _start_later(proxy: Any) -> Any:
    return proxy


async def _stop_proxy(proxy: Any) -> None:
    if getattr(proxy, "started", False):
        await proxy.stop()
