"""A client's connection to a worker: its channel, its session, and the errors of either."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import grpc
import grpc.aio

from wool import protocol
from wool.runtime import context
from wool.runtime.errors import (
    DispatchTimeout,
    HandshakeError,
    RpcError,
    TransientRpcError,
    UnexpectedResponse,
    WorkerFull,
)
from wool.runtime.worker import fate
from wool.runtime.worker.arena import ROOM, Arena, Shared, Window
from wool.runtime.worker.auth import WorkerCredentialsProvider
from wool.runtime.worker.base import ChannelOptions
from wool.runtime.worker.session import Session
from wool.runtime.worker.transport import client_arguments, rpc_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from wool.runtime.routine.task import Task
    from wool.runtime.worker.auth import Credentials, WorkerCredentials
    from wool.runtime.worker.call import Call
    from wool.runtime.worker.loopback import StreamLike
    from wool.runtime.worker.metadata import WorkerMetadata
    from wool.runtime.worker.session import Placed
    from wool.runtime.worker.status import WorkerStatus

    Stream = grpc.aio.StreamStreamCall[Any, protocol.ResponseBatch]

__all__ = ["RpcError", "TransientRpcError", "UnexpectedResponse", "WorkerConnection"]

logger = logging.getLogger("wool.connection")

T = TypeVar("T")

OPEN_TIMEOUT = 10.0
"""Seconds for a session to open."""

WATCH_INTERVAL = 1.0
"""Seconds between looks at a connection. gRPC waits for a change in an `assert`: not with `-O`."""

RENEWAL_TIMEOUT = 5.0
"""Seconds for credentials to be renewed."""

REFUSAL_TIMEOUT = 1.0
"""Seconds for the status of an RPC whose first answer isn't a worker's of our kind."""


class _Target(NamedTuple):
    address: str
    credentials: WorkerCredentialsProvider | None
    options: ChannelOptions
    peer: str | None


class _Link:
    """The channel and the session to one target, shared by the connections of one loop to it."""

    def __init__(self, target: _Target, metadata: WorkerMetadata | None) -> None:
        self.connections: dict[WorkerConnection, None] = {}
        """In the order in which they hear of room next."""
        self._target = target
        self._metadata = metadata
        self._channel: grpc.aio.Channel | None = None
        self._presented: WorkerCredentials | None = None
        self._session: Session | None = None
        self._opening: asyncio.Task[Session] | None = None
        self._former: dict[Session, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._told: set[str] = set()

    @property
    def ready(self) -> Session | None:
        """The open session, if there is one."""
        session = self._session
        return session if session is not None and session.accepting else None

    async def _connect(self) -> grpc.aio.Channel:
        """A channel with what credentials are current.

        Made when first used: every event on any then wakes this loop.
        """
        credentials = await _current(self._target.credentials)
        if credentials != self._presented:
            self._presented = credentials
            self._replace_channel()
        if self._channel is None:
            self._channel = _channel(self._target, credentials)
        return self._channel

    def _replace_channel(self) -> None:
        """Leave the channel to the sessions on it that have not ended."""
        if self._channel is not None:
            closing = asyncio.create_task(self._close_channel(self._channel), name="wool channel")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            self._channel = None

    async def _close_channel(self, channel: grpc.aio.Channel) -> None:
        try:
            if self._former:
                await asyncio.wait(self._former.values())
        finally:
            await channel.close()

    async def session(self) -> Session:
        """The open session; opened if there is none, once for all who ask meanwhile."""
        if (session := self.ready) is not None:
            return session
        if self._opening is None:
            self._retire()
            self._opening = asyncio.create_task(self._open(), name="wool session opening")
            self._opening.add_done_callback(self._opened)
        opening = self._opening
        await asyncio.wait([opening])
        if opening.cancelled():
            raise TransientRpcError(
                grpc.StatusCode.UNAVAILABLE, f"the connection to {self._target.address} was closed"
            )
        if isinstance(error := opening.exception(), RpcError):
            raise type(error)(error.code, error.details) from error  # One for each who waited.
        return opening.result()

    def _opened(self, opening: asyncio.Task[Session]) -> None:
        self._opening = None
        if opening.cancelled():
            return
        error = opening.exception()
        if error is None:
            self._session = opening.result()
        elif isinstance(error, HandshakeError):
            self._tell(error)
        else:
            self._lost()

    def _tell(self, error: HandshakeError) -> None:
        """Log it, once for each reason. The worker is kept: the fault may be this side's."""
        details = str(error.details)
        reason = details.partition(":")[0]
        if reason not in self._told:
            self._told.add(reason)
            address = self._target.address
            logger.warning("No TLS session with the worker at %s: %s", address, details)

    async def _watch(self, channel: grpc.aio.Channel, session: Session) -> None:
        """Let no more calls go over a connection that is being closed, by age for example."""
        ready = grpc.ChannelConnectivity.READY
        while channel.get_state() is ready:
            await channel.wait_for_state_change(ready)
            if channel.get_state() is ready:
                await asyncio.sleep(WATCH_INTERVAL)
        if self._session is session:
            self._retire()

    def _retire(self) -> None:
        """Have the session end when its calls have."""
        session, self._session = self._session, None
        if session is not None:
            if session.full:
                self._room(1)  # The next one is not known to be.
            ending = asyncio.create_task(self._end(session), name="wool session end")
            self._former[session] = ending

    async def _end(self, session: Session) -> None:
        try:
            await session.idle()
            await session.close()
        finally:
            del self._former[session]

    async def _open(self) -> Session:
        loopback = context.loopback.get()
        if loopback is not None and self._metadata is not None:
            own = loopback(self._metadata.uid)
            if own is not None:
                return self._session_on(own)
        channel = await self._connect()
        stub = protocol.WorkerStub(channel)
        arena = self._arena()
        offer = () if arena is None else ((protocol.ARENA_KEY, arena.offer),)
        stream = stub.dispatch(metadata=(*protocol.versions(), *offer))
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                answer = dict(await stream.initial_metadata() or ())
                if answer.get(protocol.WIRE_KEY) != str(protocol.WIRE):
                    raise await self._refusal(stream, answer)
        except BaseException as exc:
            stream.cancel()
            if arena is not None:
                arena.close()
            if isinstance(exc, TimeoutError):
                raise rpc_error(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    f"{self._target.address} did not answer within {OPEN_TIMEOUT} s",
                ) from exc
            if isinstance(exc, grpc.aio.AioRpcError):
                raise rpc_error(exc.code(), exc.details(), repr(_name(self._target))) from exc
            raise
        session = self._session_on(stream, self._shared(arena, answer))
        self._session = session  # Before it is watched.
        if self._watching is not None:
            self._watching.cancel()
        watching = self._watch(channel, session)
        self._watching = asyncio.create_task(watching, name="wool connection watch")
        return session

    def _session_on(self, stream: StreamLike, shared: Shared | None = None) -> Session:
        return Session(
            stream,
            self._target.options,
            shared=shared,
            metadata=self._metadata,
            ascertain=self._ascertain,
            on_lost=self._lost,
            on_room=self._room,
        )

    def _arena(self) -> Arena | None:
        """What to offer to a worker on this host."""
        if not self._target.address.startswith("unix:"):
            return None
        return Arena.create(ROOM * self._target.options.max_receive_message_length)

    def _shared(self, arena: Arena | None, answer: dict[str, str | bytes]) -> Shared | None:
        """What is shared with a worker that has answered."""
        if arena is None:
            return None
        offer = str(answer.get(protocol.ARENA_KEY, ""))
        window = Window.open(offer, self._target.options.max_send_message_length)
        if window is None:
            arena.close()
            return None
        return Shared(arena, window)

    async def _refusal(self, stream: Stream, answer: dict[str, str | bytes]) -> RpcError:
        with suppress(TimeoutError):
            async with asyncio.timeout(REFUSAL_TIMEOUT):
                code = await stream.code()
                if code is not grpc.StatusCode.OK:
                    return rpc_error(code, await stream.details(), repr(_name(self._target)))
        return rpc_error(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"{self._target.address} speaks another wire format: client '{protocol.WIRE}' "
            f"(wool {protocol.__version__!r}), worker {answer.get(protocol.WIRE_KEY)!r} "
            f"(wool {answer.get(protocol.VERSION_KEY)!r})",
        )

    async def _ascertain(self) -> str | None:
        return await fate.ascertain(self._metadata.uid) if self._metadata is not None else None

    def _lost(self) -> None:
        for connection in list(self.connections):
            connection.lost()

    def _room(self, tasks: int) -> None:
        connections = list(self.connections)
        for connection in connections:
            connection.has_room(tasks)
        for first in connections[:1]:  # The room went to its calls. It is another one's turn.
            self.connections[first] = self.connections.pop(first)

    async def close(self, *, timeout: float | None) -> None:
        try:
            await self._close_sessions(timeout)
        finally:
            for closing in self._closing:
                closing.cancel()
            await asyncio.gather(*self._closing, return_exceptions=True)
            if self._channel is not None:
                await self._channel.close()

    async def _close_sessions(self, timeout: float | None) -> None:
        """To the end; a cancellation cuts them off, and is raised then."""
        sessions = set(self._former)
        tasks = {*self._former.values(), *filter(None, [self._opening, self._watching])}
        for task in tasks:
            task.cancel()
        cancelled: asyncio.CancelledError | None = None
        try:
            if tasks:
                await asyncio.wait(tasks)
        except asyncio.CancelledError as exc:
            cancelled, timeout = exc, 0
        if self._session is not None:
            sessions.add(self._session)
        # Again after a cancellation, which may have come before a step had begun.
        while sessions:
            try:
                await asyncio.gather(*(each.close(timeout=timeout) for each in sessions))
                break
            except asyncio.CancelledError as exc:
                cancelled, timeout = exc, 0
        if cancelled is not None:
            raise cancelled


async def _current(provider: WorkerCredentialsProvider | None) -> WorkerCredentials | None:
    """What to present on a connection that is opened now."""
    if provider is None or not provider.reloadable:
        return None if provider is None else provider.credentials
    try:
        async with asyncio.timeout(RENEWAL_TIMEOUT):
            return await asyncio.to_thread(lambda: provider.credentials)
    except TimeoutError:
        logger.warning("%r takes over %s s to renew credentials", provider, RENEWAL_TIMEOUT)
        return provider.credentials  # Those from before, for as long as it takes.


def _name(target: _Target) -> str:
    """The name that the worker's certificate must be for."""
    if target.peer is not None:
        return target.peer
    # The path of a socket is no name that a certificate can vouch for.
    host = target.address.rpartition(":")[0]
    return "localhost" if host == "unix" else host.removeprefix("[").removesuffix("]")


def _channel(target: _Target, credentials: WorkerCredentials | None) -> grpc.aio.Channel:
    arguments: list[tuple[str, int | str]] = [*client_arguments(target.options)]
    if credentials is None:
        return grpc.aio.insecure_channel(target.address, options=arguments)
    if target.peer is not None or target.address.startswith("unix:"):
        arguments.append(("grpc.ssl_target_name_override", _name(target)))
    return grpc.aio.secure_channel(
        target.address, credentials.client_credentials(), options=arguments
    )


_links: dict[asyncio.AbstractEventLoop, dict[_Target, _Link]] = {}


def _links_of(loop: asyncio.AbstractEventLoop) -> dict[_Target, _Link]:
    if loop not in _links:
        for dead in [other for other in list(_links) if other.is_closed()]:
            _links.pop(dead, None)  # Other threads may do so at the same time.
        _links[loop] = {}
    return _links[loop]


class WorkerConnection:
    """A connection to the worker at `target`, opened when first used, for one event loop.

    `options` are what the worker announced (default: `ChannelOptions()`), `metadata` is how it
    describes itself. `peer` is the name that its certificate must be for (default: its identity
    if credentials are for certain peers, else its address). `on_lost` is called when the worker
    can't be reached, or no longer, `on_room` when it was full and has room for so many tasks.

    Raises `ValueError` for a `peer` without credentials.
    """

    def __init__(
        self,
        target: str,
        *,
        credentials: Credentials | None = None,
        options: ChannelOptions | None = None,
        peer: str | None = None,
        metadata: WorkerMetadata | None = None,
        on_lost: Callable[[], None] | None = None,
        on_room: Callable[[int], None] | None = None,
    ) -> None:
        provider = WorkerCredentialsProvider.coerce(credentials)
        if peer is not None and provider is None:
            raise ValueError(f"peer {peer!r} needs credentials: without TLS nobody can verify it")
        self._peer = peer
        name = self._peer_of(metadata, provider)
        self._target = _Target(target, provider, options or ChannelOptions(), name)
        self._metadata = metadata
        self._on_lost = on_lost
        self._on_room = on_room
        self._link: _Link | None = None
        self._calls: set[Call] = set()
        self._waiting = 0
        self._on_end = self._ended
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<WorkerConnection to {self._target.address}>"

    @property
    def in_flight(self) -> int:
        """How many tasks have been handed to it that have not ended."""
        return len(self._calls) + self._waiting

    @property
    def full(self) -> bool:
        """Whether the worker takes no task at the moment, as far as is known."""
        session = self._link.ready if self._link is not None else None
        return session is not None and session.full

    def fits(self, metadata: WorkerMetadata) -> bool:
        """Whether it leads to a worker that describes itself so."""
        credentials = self._target.credentials
        name = self._peer_of(metadata, credentials)
        options = metadata.options or ChannelOptions()
        return self._target == _Target(metadata.address, credentials, options, name)

    def _peer_of(
        self, metadata: WorkerMetadata | None, provider: WorkerCredentialsProvider | None
    ) -> str | None:
        if self._peer is not None or provider is None or metadata is None:
            return self._peer
        return provider.name_of(metadata)

    async def dispatch(self, task: Task, *, timeout: float | None = None) -> Call:
        """Hand a task to the worker; returns, once it has taken it, what to await or iterate.

        `timeout` bounds that in seconds. Raises `ValueError` if it isn't positive,
        `RpcError` if the task has not run (`WorkerFull`, `DispatchTimeout` on expiry, or another
        `TransientRpcError` if it may run elsewhere or later), `WorkerLost` if it may have, and
        whatever pickling its arguments raises.
        """
        if timeout is not None and not timeout > 0:
            raise ValueError(f"Dispatch timeout must be positive, got {timeout}")
        task.encode()  # Arguments are copied before anything is waited for.
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        session = self._open_link().ready
        placed = None
        try:
            if session is not None and task.caller is None:
                session.check_room()
            if session is None or session.crowded(task):
                session, placed = await self._wait_for_turn(task, deadline, timeout)
            call = session.submit(task, self._on_end, placed)
            self._calls.add(call)
            self._idle.clear()
            await call.accepted(deadline)
        except WorkerFull:
            task.met_full = True
            raise
        return call

    async def _wait_for_turn(
        self, task: Task, deadline: float | None, timeout: float | None
    ) -> tuple[Session, Placed | None]:
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                return await self._turn(task)
        except TimeoutError as exc:
            raise DispatchTimeout(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"{self!r} had no room within {timeout} s"
            ) from exc
        finally:
            self._waiting -= 1

    async def _turn(self, task: Task) -> tuple[Session, Placed | None]:
        """The session, open, when it is the turn of a task, and where its arguments were put."""
        session = await self._open_link().session()
        placed = await session.turn(task) if session.crowded(task) else None
        if self._closed:
            session.leave_out(placed)
            raise self._closed_error()
        return session, placed

    def _ended(self, call: Call) -> None:
        self._calls.discard(call)
        if not self._calls:
            self._idle.set()

    def _open_link(self) -> _Link:
        if self._closed:
            raise self._closed_error()
        loop = asyncio.get_running_loop()
        if self._link is None:
            links = _links_of(loop)
            if self._target not in links:
                links[self._target] = _Link(self._target, self._metadata)
            self._link = links[self._target]
            self._link.connections[self] = None
            self._loop = loop
        elif loop is not self._loop:
            raise RuntimeError(f"{self!r} belongs to another event loop")
        return self._link

    def _closed_error(self) -> TransientRpcError:
        return TransientRpcError(grpc.StatusCode.UNAVAILABLE, f"{self!r} is closed")

    def lost(self) -> None:
        """Tell whoever asked that the worker can't be reached, or no longer."""
        if self._on_lost is not None:
            self._on_lost()

    def has_room(self, tasks: int) -> None:
        """Tell whoever asked that the worker has room for so many tasks."""
        if self._on_room is not None:
            self._on_room(tasks)

    async def stop(self, *, timeout: float = 0, deadline: float | None = None) -> None:
        """Ask the worker to stop after draining for `timeout` seconds; returns when it has.

        `deadline`, in seconds, bounds the wait. Raises `RpcError` if it can't be asked.
        """
        request = protocol.StopRequest(timeout=timeout)
        await self._ask(lambda stub: stub.stop(request, timeout=deadline))

    async def status(self, *, tasks: bool = False, timeout: float | None = None) -> WorkerStatus:
        """How the worker is, with the tasks that run and their stacks if `tasks`.

        Raises `ValueError` if `timeout`, in seconds, isn't positive, and `RpcError` if the worker
        can't be asked or does not answer within it.
        """
        from wool.runtime.worker.status import WorkerStatus  # Few ask.

        if timeout is not None and not timeout > 0:
            raise ValueError(f"Timeout must be positive, got {timeout}")
        request = protocol.StatusRequest(tasks=tasks)
        return WorkerStatus.from_protobuf(
            await self._ask(lambda stub: stub.status(request, timeout=timeout))
        )

    async def idle(self, timeout: float | None = None) -> float:
        """For how many seconds the worker has had no task; 0 while it has one. See `status`."""
        return (await self.status(timeout=timeout)).idle

    async def _ask(self, call: Callable[[protocol.WorkerStub], Awaitable[T]]) -> T:
        target = self._target
        # Not over the channel of the sessions, which may be replaced meanwhile.
        async with _channel(target, await _current(target.credentials)) as channel:
            try:
                return await call(protocol.WorkerStub(channel))
            except grpc.aio.AioRpcError as exc:
                raise rpc_error(exc.code(), exc.details(), repr(_name(target))) from exc

    async def drained(self) -> None:
        """Return when it has no calls, streams that wait for their consumer included."""
        await self._idle.wait()

    async def close(self, *, timeout: float | None = 0) -> None:
        """Leave for good; calls that run may end within `timeout` seconds (None: however long).

        Those that don't are cancelled. A session that other connections of this loop share stays
        open.
        """
        self._closed = True
        link, self._link = self._link, None
        if link is None:
            return
        link.connections.pop(self, None)
        if link.connections:
            await self._drain(timeout)
            return
        links = _links_of(asyncio.get_running_loop())
        if links.get(self._target) is link:
            del links[self._target]
        await link.close(timeout=timeout)

    async def _drain(self, timeout: float | None) -> None:
        try:
            for call in list(self._calls):
                call.leave()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._idle.wait()
        finally:
            for call in list(self._calls):
                call.abandon()
