"""A task is one call of a routine: what is called, with what, on whose behalf."""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import traceback
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from itertools import count
from types import FunctionType
from typing import (
    TYPE_CHECKING,
    Any,
    NoReturn,
    Protocol,
    cast,
    overload,
    runtime_checkable,
)
from uuid import UUID, uuid4

import wool
from wool import protocol
from wool.runtime import context as ambient
from wool.runtime import observation, serializer
from wool.runtime.context import RuntimeContext
from wool.runtime.errors import UnexpectedResponse
from wool.runtime.serializer import Payload, Serializer, to_bytes
from wool.runtime.typing import Undefined
from wool.runtime.unpicklable import can_be_pickled, parameter, refuse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator
    from contextlib import AbstractContextManager
    from contextvars import Token
    from types import TracebackType

    from wool.runtime.resourcepool import Resource


LARGEST_DEFINITION = 64 * 1024
"""Bytes of a callable above which it travels with the arguments, not as a definition."""


@runtime_checkable
class WorkerProxyLike(Protocol):
    """What a task asks of the proxy that dispatches it, and the calls nested in it."""

    @property
    def id(self) -> UUID: ...

    async def dispatch(self, task: Task, *, timeout: float | None = None) -> AsyncIterator[Any]: ...


@dataclass(frozen=True, slots=True)
class TaskException:
    """What a task raised: the class's qualified name and the formatted traceback's lines."""

    type: str
    traceback: list[str]


class Task:
    """One call of a routine.

    `id` is a UUID or the 16 bytes of one, `callable` is the undecorated function, `proxy`
    dispatches calls nested in it. `caller` is the id of the task that made the call (default: the
    current one), `tag` says where the routine is defined (`module.qualname:line`), `context` is the
    `RuntimeContext` at the call. Its worker cancels it when it has run for `timeout` seconds, an
    async generator when one step has (0: it never does). `exception` is set when it has raised.
    `prefetch` is how many values an async generator may be ahead of its consumer. `trace` is what a
    tracer carries along, by name.

    What does not travel: `tags` are those that a worker must have to be given it. `met_full` is set
    when a worker has refused it as it was full. `tried`, if not None, are the uids of the workers
    that have had it, which come last if it is tried again.

    Raises `TypeError` if `proxy` isn't one.
    """

    # There is one for each call in flight, so what few ask for is made when it is asked for.
    __slots__ = (
        "__weakref__",
        "_arguments",
        "_context",
        "_dispatch_timeout",
        "_id",
        "_tokens",
        "args",
        "callable",
        "caller",
        "definition",
        "exception",
        "kwargs",
        "met_full",
        "prefetch",
        "proxy",
        "proxy_dump",
        "proxy_error",
        "tag",
        "tags",
        "timeout",
        "trace",
        "tried",
    )

    definition: serializer.Dump
    """The pickled callable; empty if it has over `LARGEST_DEFINITION` bytes, which are the last
    buffer of the arguments then. Known, as the others, when it is encoded."""

    proxy_dump: bytes
    """The pickled proxy; empty if it can't travel, for the reason that `proxy_error` gives."""

    proxy_error: str

    def __init__(
        self,
        id: UUID | bytes,
        callable: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        proxy: WorkerProxyLike,
        timeout: float = 0,
        caller: UUID | None = None,
        exception: TaskException | None = None,
        tag: str | None = None,
        context: RuntimeContext | None = None,
        prefetch: int = 0,
        tags: frozenset[str] = frozenset(),
    ) -> None:
        if not (hasattr(proxy, "dispatch") and hasattr(proxy, "id")):
            raise TypeError(f"proxy must conform to WorkerProxyLike, got {type(proxy)}")
        if caller is None and (current := ambient.task.get()) is not None:
            caller = current.id
        self.callable = callable
        self.args = args
        self.kwargs = kwargs
        self.proxy = proxy
        self.timeout = timeout
        self.caller = caller
        self.exception = exception
        self.tag = describe(callable) if tag is None else tag
        self.prefetch = prefetch
        self.tags = tags
        self.trace: dict[str, str] | None = None
        self.met_full = False
        self.tried: set[UUID] | None = None
        self._id = id
        self._context = context
        self._dispatch_timeout = (
            ambient.dispatch_timeout.get() if context is None else context.dispatch_timeout
        )
        self._arguments: Payload | None = None
        self._tokens: tuple[Token[Task | None], Token[bool]] | None = None

    def __repr__(self) -> str:
        return f"<Task {self.id} of {self.tag}>"

    @property
    def id(self) -> UUID:
        if not isinstance(self._id, UUID):
            self._id = UUID(bytes=self._id)
        return self._id

    @property
    def context(self) -> RuntimeContext:
        if self._context is None:
            self._context = RuntimeContext(dispatch_timeout=self._dispatch_timeout)
        return self._context

    def __enter__(self) -> Callable[[], Any]:
        """Make it the current task. Returns what runs its callable with its arguments.

        Raises `ValueError` if the callable is not asynchronous, `RuntimeError` if entered already.
        """
        if self._tokens is not None:
            raise RuntimeError(f"Task {self.id} is already entered")
        if not is_async(self.callable):
            raise ValueError("Expected coroutine function or async generator function")
        if self._dispatch_timeout is not Undefined:
            self.context.__enter__()
        self._tokens = ambient.task.set(self), ambient.dispatching.set(True)
        return self._call

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        assert self._tokens is not None
        if exc is not None:
            self.exception = TaskException(
                type(exc).__qualname__, traceback.format_exception(type(exc), exc, tb)
            )
        current, dispatching = self._tokens
        self._tokens = None
        ambient.dispatching.reset(dispatching)
        ambient.task.reset(current)
        if self._dispatch_timeout is not Undefined:
            self.context.__exit__(exc_type, exc, tb)

    def _call(self) -> Any:
        return self.callable(*self.args, **self.kwargs)

    def dispatch(self) -> Any:
        """Run it in this process: a coroutine, or an async iterator of what its callable yields.

        Raises `ValueError` if the callable makes neither, and `RuntimeError`, when run, outside of
        a worker.
        """
        if inspect.iscoroutinefunction(self.callable):
            return self._result()
        if inspect.isasyncgenfunction(self.callable):
            return self._items()
        raise ValueError("Expected routine to be coroutine or async generator")

    async def _result(self) -> Any:
        async with self.execution() as call:
            return await call()

    async def _items(self) -> AsyncIterator[Any]:
        async with self.execution() as call, aclosing(call()) as items:
            async for item in items:
                yield item

    def execution(self) -> Execution:
        """The scope that its callable runs in: it is the current task, its proxy the active one."""
        return Execution(self)

    def encode(self) -> Payload:
        """Pickle what it carries, once; returns the arguments. Raises whatever pickling raises."""
        if self._arguments is None:
            self._arguments = self._encode(self._dump_arguments())
        return self._arguments

    def _encode(self, arguments: Payload) -> Payload:
        definition = self._dump_callable()
        if len(definition.data) > LARGEST_DEFINITION:
            arguments = arguments._replace(buffers=(*arguments.buffers, definition.data))
            definition = serializer.Dump(b"", False)
        self.definition = definition
        self.proxy_dump, self.proxy_error = self._dump_proxy()
        return arguments

    def write_header(self, message: protocol.Task) -> None:
        """Put into `message` what is no part of `encode`."""
        message.id = self._id if isinstance(self._id, bytes) else self._id.bytes
        message.tag = self.tag
        if self.timeout:
            message.timeout = self.timeout
        if self.prefetch:
            message.prefetch = self.prefetch
        if self.caller is not None:
            message.caller = self.caller.bytes
        if self.trace:
            message.trace.update(self.trace)
        if self._dispatch_timeout is not None:
            message.context.CopyFrom(self.context.to_protobuf())

    def _dump_callable(self) -> serializer.Dump:
        try:
            return serializer.dump_callable(cast("FunctionType", self.callable))
        except Exception as exc:
            refuse(exc, f"routine {self.tag} with what it refers to", self.callable, "the routine")

    def _dump_proxy(self) -> tuple[bytes, str]:
        try:
            dump: Callable[[], bytes] | None = getattr(self.proxy, "dump", None)
            return dump() if dump else to_bytes(self.proxy), ""
        except (AttributeError, TypeError, pickle.PicklingError) as exc:
            return b"", str(exc)

    def _dump_arguments(self) -> Payload:
        try:
            return serializer.dumps_arguments(self.args, self.kwargs)
        except Exception as exc:
            named = [(parameter(self.callable, i), arg) for i, arg in enumerate(self.args)]
            for name, argument in (*named, *self.kwargs.items()):
                if not can_be_pickled(argument):
                    refuse(exc, f"argument {name!r} of routine {self.tag}", argument, name)
            raise

    def to_protobuf(self, serializer: Serializer | None = None) -> protocol.Task:
        """As one message, its arguments pickled by `serializer`, which goes with it."""
        if serializer is None:
            arguments = self.encode()
        else:
            arguments = self._encode(Payload(serializer.dumps((self.args, self.kwargs))))
        message = protocol.Task()
        self.write_header(message)
        if self.definition.data:
            message.callable.content = self.definition.data
        if self.proxy_dump:
            message.proxy.content = self.proxy_dump
        message.proxy_error = self.proxy_error
        if serializer is not None:
            message.serializer = to_bytes(serializer)
        message.arguments.data = bytes(arguments.data)
        message.arguments.buffers.extend(map(bytes, arguments.buffers))
        message.arguments.forms = arguments.forms
        return message

    @classmethod
    def from_protobuf(cls, message: protocol.Task) -> Task:
        """From one message."""
        sent = message.arguments
        arguments = Payload.received(sent.data, sent.buffers, sent.forms)
        if message.HasField("callable"):
            function = serializer.load_callable(message.callable.content)
        else:
            function, arguments = split_callable(arguments)
        proxy = load_proxy(message.proxy.content, message.proxy_error)
        return cls.decode(message, function, proxy, arguments)

    @classmethod
    def decode(
        cls,
        header: protocol.Task,
        callable: Callable[..., Any],
        proxy: WorkerProxyLike,
        arguments: Payload,
    ) -> Task:
        """From a header and what came with it. Raises whatever unpickling the arguments raises."""
        if header.serializer:
            loaded = pickle.loads(header.serializer).loads(arguments.data)
        else:
            loaded = serializer.loads(arguments)
        args, kwargs = loaded
        if len(header.id) != 16:
            raise UnexpectedResponse(f"A task came with an id of {len(header.id)} bytes")
        task = cls(
            id=header.id,
            callable=callable,
            args=args,
            kwargs=kwargs,
            proxy=proxy,
            timeout=header.timeout,
            tag=header.tag,
            prefetch=header.prefetch,
        )
        task.caller = UUID(bytes=header.caller) if header.caller else None
        if header.trace:
            task.trace = dict(header.trace)
        task._dispatch_timeout = Undefined
        if header.HasField("context"):
            task._context = RuntimeContext.from_protobuf(header.context)
            task._dispatch_timeout = task._context.dispatch_timeout
        return task


class Execution:
    """The scope that a task's callable runs in, in a worker."""

    __slots__ = ("_active", "_resource", "_span", "_task")

    _resource: Resource[WorkerProxyLike]
    _active: Token[WorkerProxyLike | None]

    def __init__(self, task: Task) -> None:
        self._task = task

    async def __aenter__(self) -> Callable[[], Any]:
        task = self._task
        pool = wool.__proxy_pool__.get()
        if pool is None:
            raise RuntimeError("No proxy pool available for task execution")
        self._resource = pool.get(cast("Hashable", task.proxy))
        proxy = await self._resource.acquire()
        if proxy is not task.proxy and (adopt := getattr(proxy, "adopt", None)) is not None:
            adopt(task.proxy)
        self._active = wool.__proxy__.set(proxy)
        try:
            call = task.__enter__()
        except BaseException:
            wool.__proxy__.reset(self._active)
            await self._resource.release()
            raise
        self._span = observation.task_span(task) if observation.listeners else None
        return call

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._span is not None:
            self._span.end(exc)
        try:
            self._task.__exit__(exc_type, exc, traceback)
            wool.__proxy__.reset(self._active)
        finally:
            await self._resource.release()


class AbsentProxy:
    """Stands in a worker for a proxy that could not travel: calls nested in the task fail."""

    def __init__(self, error: str) -> None:
        self.id = uuid4()
        self._error = error

    async def dispatch(self, task: Task, *, timeout: float | None = None) -> NoReturn:
        raise TypeError(f"Routine {task.tag} can't be called from another routine: {self._error}")


def new_id() -> bytes:
    """The 16 bytes of an id that no other task has, in this process or another."""
    return _origin + next(_numbers).to_bytes(8, "big")


def _start_numbers() -> None:
    global _origin, _numbers
    _origin, _numbers = os.urandom(8), count()


_origin: bytes
_numbers: count[int]
_start_numbers()
os.register_at_fork(after_in_child=_start_numbers)


def split_callable(arguments: Payload) -> tuple[FunctionType, Payload]:
    """A callable that came as the last buffer of the arguments, and the rest of them.

    Raises `UnexpectedResponse` if there is none.
    """
    if not arguments.buffers:
        raise UnexpectedResponse("A task came with nothing callable")
    *buffers, function = arguments.buffers
    return serializer.load_callable(bytes(function)), Payload(arguments.data, tuple(buffers))


def load_proxy(content: bytes, error: str = "") -> WorkerProxyLike:
    """A task's proxy, from its pickle."""
    if not content:
        return AbsentProxy(error or "the task came without a proxy")
    proxy: WorkerProxyLike = pickle.loads(content)
    return proxy


def is_async(function: object) -> bool:
    """Whether it is a coroutine function or an async generator function."""
    if type(function) is FunctionType and function.__code__.co_flags & inspect.CO_COROUTINE:
        return True
    return is_generator(function) or inspect.iscoroutinefunction(function)


def within(
    timeout: float, awaitable: Awaitable[Any], function: Callable[..., Any]
) -> Awaitable[Any]:
    """Awaits it, at most `timeout` seconds (0: however long). `function` is what takes that long.

    Raises `TimeoutError` when it has ended after it was cancelled for that.
    """
    return _within(timeout, awaitable, function) if timeout else awaitable


async def _within(timeout: float, awaitable: Awaitable[Any], function: Callable[..., Any]) -> Any:
    scope = asyncio.timeout(timeout)
    try:
        async with scope:
            return await awaitable
    except TimeoutError as exc:
        if scope.expired():
            raise TimeoutError(f"{describe(function)} took over {timeout:g} s") from exc
        raise


def is_generator(function: object) -> bool:
    """Whether it is an async generator function."""
    if type(function) is FunctionType:
        return bool(function.__code__.co_flags & inspect.CO_ASYNC_GENERATOR)
    return inspect.isasyncgenfunction(function)


def describe(function: Callable[..., Any]) -> str:
    """Where it is defined, as `module.qualname:line`; the line is 0 if unknown."""
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{function.__module__}.{name}:{code.co_firstlineno if code else 0}"


def current_task() -> Task | None:
    """The task that is being executed, or None outside of routines."""
    return ambient.task.get()


@overload
def do_dispatch() -> bool: ...
@overload
def do_dispatch(flag: bool) -> AbstractContextManager[None]: ...
def do_dispatch(flag: bool | None = None) -> bool | AbstractContextManager[None]:
    """Whether routines that are called here are dispatched; with a flag, set it for a block.

    Inside `with do_dispatch(False)` a routine runs where it is called; the calls nested in it are
    dispatched again.
    """
    return ambient.dispatching.get() if flag is None else _dispatching(flag)


@contextmanager
def _dispatching(flag: bool) -> Iterator[None]:
    token = ambient.dispatching.set(flag)
    try:
        yield
    finally:
        ambient.dispatching.reset(token)
