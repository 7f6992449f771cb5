"""A pool spawns workers, announces them, and owns the proxy through which they are called."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import warnings
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import uuid4

import wool
from wool.runtime.byvalue import check_modules, registered
from wool.runtime.discovery.addresses import is_loopback
from wool.runtime.discovery.base import DiscoveryLike, DiscoveryPublisherLike
from wool.runtime.discovery.local import LocalDiscovery
from wool.runtime.errors import IneffectiveIdentityWarning
from wool.runtime.factory import resolve
from wool.runtime.loadbalancer.roundrobin import RoundRobinLoadBalancer
from wool.runtime.typing import Undefined
from wool.runtime.worker.auth import WorkerCredentialsProvider
from wool.runtime.worker.base import WorkerLike
from wool.runtime.worker.crew import ANNOUNCE_TIMEOUT, Crew, Departure
from wool.runtime.worker.local import LocalWorker
from wool.runtime.worker.process import check_credentials
from wool.runtime.worker.proxy import TagFilter, WorkerProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator
    from types import ModuleType, TracebackType

    from wool.runtime.loadbalancer.base import LoadBalancerLike
    from wool.runtime.typing import Factory, UndefinedType
    from wool.runtime.worker.auth import Credentials
    from wool.runtime.worker.base import WorkerFactory

logger = logging.getLogger("wool.pool")


class WorkerPool:
    """Workers to run routines in, inside `async with`.

    | size    | discovery | the pool                                                      |
    | ------- | --------- | ------------------------------------------------------------- |
    | omitted | omitted   | spawns one worker for each CPU                                |
    | set     | omitted   | spawns `size` workers (0: one for each CPU)                   |
    | omitted | set       | spawns none and uses those it discovers                       |
    | set     | set       | spawns `size` workers, announces them, and uses others as well |

    `tags` are given to the workers; a pool that spawns uses only workers that share a tag with it.
    `lease` caps how many workers the pool uses besides its own; it is no reservation, and omitted
    there is no cap. `worker` makes the workers: a callable `(*tags, credentials=...)` (default:
    `LocalWorker`); where other hosts must reach them, as `LanDiscovery` says, also with `host=` if
    it takes that and was not given one. `discovery` and `loadbalancer` are instances, or a
    `Factory` of one. `shutdown_timeout` bounds leaving, in seconds (None: unbounded); workers that
    are still there then get a SIGTERM, and a SIGKILL five seconds later.

    `credentials`, or a provider of them, are for the workers and for calling them. `identity` is a
    name that the workers' certificate is for; given (None: none), it is passed to `worker`, if that
    takes it and was not given one.

    `by_value` are modules, or names of modules that have been imported, which workers can't import:
    while the pool is entered, what they and modules below them define travels with what refers to
    it, as what a script defines does, in all calls of this process.

    Without a discovery, other processes of this user may join at `LocalDiscovery(pool.namespace)`.

    Left normally, it lets what is in flight finish; left by an exception, it cancels. It can be
    entered once, and pools can be nested, also in routines. A worker that dies is replaced.

    Raises `ValueError` for a negative size or lease, a lease of 0 with a discovery alone, a
    factory that can't be called, a timeout that isn't positive, a module by value that has not been
    imported, or an identity without credentials or that these are not for (with a discovery, that
    is a warning). Entering raises `ExceptionGroup` ("worker spawn failures") if workers fail to
    start, `TypeError` or `ValueError` if the discovery or the load balancer isn't one, and
    `RuntimeError` if it has been entered before. Leaving it in another event loop raises
    `RuntimeError`.
    """

    def __init__(
        self,
        *tags: str,
        size: int | None = None,
        lease: int | None = None,
        worker: WorkerFactory | Callable[..., WorkerLike] | None = None,
        discovery: DiscoveryLike | Factory[DiscoveryLike] | None = None,
        loadbalancer: LoadBalancerLike | Factory[LoadBalancerLike] = RoundRobinLoadBalancer,
        credentials: Credentials | None = None,
        identity: str | UndefinedType | None = Undefined,
        shutdown_timeout: float | None = 60.0,
        by_value: Iterable[ModuleType | str] = (),
    ) -> None:
        _check_types(size, lease, tags)
        if lease is not None and lease < 0:
            raise ValueError("Lease must be non-negative")
        if size is None and discovery is not None:
            if lease == 0:
                raise ValueError("Lease must be positive for discovery-only pools")
            self._size = 0
        else:
            self._size = _resolve_size(size or 0)
        if shutdown_timeout is not None and shutdown_timeout <= 0:
            raise ValueError("Shutdown timeout must be positive")
        if worker is not None:
            _check_factory(worker, tags)
        if self._size:
            _check_identity(identity, worker, credentials, alone=discovery is None)
        elif identity is not Undefined:
            warnings.warn(
                f"identity {identity!r} is for workers of the pool's own, and it has none",
                IneffectiveIdentityWarning,
                stacklevel=2,
            )
        self._identity = {} if identity is Undefined else {"identity": identity}
        self._cap = None if lease is None else self._size + lease
        self._tags = tags
        self._filter = TagFilter(frozenset(tags)) if tags and size is not None else None
        self._worker = worker
        self._discovery = discovery
        self._loadbalancer = loadbalancer
        self._credentials = credentials
        self._shutdown_timeout = shutdown_timeout
        self._by_value = check_modules(by_value)
        self._namespace = None if discovery is not None else f"pool-{uuid4().hex}"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._discovering, self._publishing = AsyncExitStack(), AsyncExitStack()
        self._publisher: DiscoveryPublisherLike | None = None
        self._crew: Crew | None = None
        self._proxy: WorkerProxy | None = None

    def __repr__(self) -> str:
        return f"<WorkerPool {self._namespace or self._discovery!r} {self._proxy or 'not entered'}>"

    @property
    def namespace(self) -> str | None:
        """Where processes of this user may join it; None if it was given a discovery."""
        return self._namespace

    if not TYPE_CHECKING:  # Where a type checker objects by itself.

        def __enter__(self) -> NoReturn:
            raise TypeError("A WorkerPool is entered with `async with`, not with `with`")

        def __exit__(self, *exc_info: object) -> None:
            """Never called; `with` looks for it first."""

    async def __aenter__(self) -> WorkerPool:
        if self._loop is not None:
            raise RuntimeError("A WorkerPool can be entered once; make another one")
        self._loop = asyncio.get_running_loop()
        try:
            self._discovering.enter_context(registered(self._by_value))
            discovery = await self._enter_discovery()
            if self._size:
                self._publisher = await self._enter_publisher(discovery)
                self._crew = Crew(
                    self._make_worker,
                    self._size,
                    self._publisher,
                    changed=self._reserve,
                )
            await self._start(discovery)
        except BaseException as exc:
            await self._leave(exc)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._loop not in (None, asyncio.get_running_loop()):
            raise RuntimeError(f"{self!r} was entered in another event loop; leave it in that one")
        if self._proxy is not None:
            self._proxy.deactivate()
        await self._leave(exc)

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Have routines that are called in a block run in this pool, while it is entered.

        For tasks that are no children of the one that has entered it, such as the handlers of a web
        app whose lifespan has, or the cells of a notebook. Raises `RuntimeError` if it is not.
        """
        if self._proxy is None or not self._proxy.started:
            raise RuntimeError(f"{self!r} is not entered: `async with` it first, and until later")
        token = wool.__proxy__.set(self._proxy)
        try:
            yield
        finally:
            wool.__proxy__.reset(token)

    # Entering

    async def _enter_discovery(self) -> DiscoveryLike:
        given = self._discovery
        if given is None:
            assert self._namespace is not None
            given = LocalDiscovery(self._namespace)
        discovery = await resolve(given, self._discovering)
        if not isinstance(discovery, DiscoveryLike):
            message = f"Expected DiscoveryLike, got: {discovery!r}"
            raise TypeError(message) if self._size else ValueError(message)
        return discovery

    async def _enter_publisher(self, discovery: DiscoveryLike) -> DiscoveryPublisherLike:
        publisher = await resolve(discovery.publisher, self._publishing)
        if not isinstance(publisher, DiscoveryPublisherLike):
            raise ValueError(f"Expected DiscoveryPublisherLike, got: {publisher!r}")
        return publisher

    def _make_worker(self, slot: int) -> WorkerLike:
        make: Any = self._worker or LocalWorker
        options: dict[str, Any] = {"credentials": self._credentials}
        host = getattr(self._publisher, "bind_host", None)
        # A unix socket will do where only this host has to reach the worker.
        if host is not None and not is_loopback(host) and _asks_for(make, "host"):
            options["host"] = host
        if _asks_for(make, "identity"):
            options.update(self._identity)
        worker = make(*self._tags, **options)
        if not isinstance(worker, WorkerLike):
            raise TypeError(f"Expected WorkerLike from {self._worker!r}, got: {worker!r}")
        return worker

    async def _start(self, discovery: DiscoveryLike) -> None:
        if self._crew is not None:
            await self._crew.start()
        self._proxy = WorkerProxy(
            discovery=discovery.subscribe(self._filter) if self._filter else discovery.subscriber,
            loadbalancer=self._loadbalancer,
            credentials=self._credentials,
            lease=self._cap,
        )
        self._reserve()
        await self._proxy.start()
        if self._crew is not None:
            self._crew.supervise()

    def _reserve(self) -> None:
        if self._proxy is not None:
            self._proxy.reserve(self._crew.uids if self._crew is not None else ())

    # Leaving

    async def _leave(self, exc: BaseException | None) -> None:
        try:
            await _to_the_end(self._shut_down(self._departure(exc)))
        finally:
            # Here, as some context managers must be left by the task that has entered them.
            try:
                await self._leave_stack(self._publishing, exc)
            finally:
                await self._leave_stack(self._discovering, exc)

    def _departure(self, exc: BaseException | None) -> Departure:
        return Departure(drain=exc is None, timeout=self._shutdown_timeout)

    async def _leave_stack(self, stack: AsyncExitStack, exc: BaseException | None) -> None:
        try:
            async with asyncio.timeout(ANNOUNCE_TIMEOUT):
                await stack.__aexit__(type(exc) if exc else None, exc, None)
        except Exception:
            logger.exception("The discovery of %r was not left in order", self)

    async def _shut_down(self, leaving: Departure) -> None:
        """Take every step, whatever becomes of those before; cancelled, drain no more.

        A cancellation, or an interrupt, is raised at the end.
        """
        interruption: BaseException | None = None
        for step in (self._stop_supervising, self._stop_proxy, self._stop_workers):
            try:
                await step(leaving)
            except Exception:
                logger.exception("%r was not left in order", self)
            except BaseException as exc:
                leaving.drain = False
                interruption = exc
        if interruption is not None:
            raise interruption

    async def _stop_supervising(self, leaving: Departure) -> None:
        if self._crew is not None:
            await self._crew.stop_supervising()

    async def _stop_proxy(self, leaving: Departure) -> None:
        if self._proxy is not None and self._proxy.started:
            remaining = leaving.remaining()
            try:
                async with asyncio.timeout(remaining):
                    await self._proxy.stop(timeout=remaining if leaving.drain else 0)
            except TimeoutError:
                logger.warning("What still ran in %r when it had to be left was cut off", self)

    async def _stop_workers(self, leaving: Departure) -> None:
        if self._crew is not None:
            await self._crew.stop(leaving)


def _resolve_size(size: int) -> int:
    """`size`, or the number of CPUs for 0.

    Raises `ValueError` if it is negative, or if the number of CPUs is needed and unknown.
    """
    if size < 0:
        raise ValueError("Size must be non-negative")
    if size:
        return size
    cpus = os.cpu_count()
    if cpus is None:
        raise ValueError("Unable to determine CPU count")
    return cpus


def _check_types(size: object, lease: object, tags: tuple[object, ...]) -> None:
    for name, value in (("size", size), ("lease", lease)):
        if value is not None and not isinstance(value, int):
            raise TypeError(f"{name} must be an int or None, got {value!r}")
    for tag in tags:
        if not isinstance(tag, str):
            hint = f"; for {tag} workers, write size={tag}" if type(tag) is int else ""
            raise TypeError(f"tags must be strings, got {tag!r}{hint}")


def _asks_for(factory: Callable[..., object], name: str) -> bool:
    """Whether a factory can be given that keyword argument, and has not been."""
    while isinstance(factory, partial):
        if name in factory.keywords:
            return False
        factory = factory.func
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(
        each.kind is each.VAR_KEYWORD
        or (each.name == name and each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD))
        for each in parameters
    )


def _check_factory(worker: Callable[..., WorkerLike], tags: tuple[str, ...]) -> None:
    if not callable(worker):
        raise ValueError(f"worker must be a callable that makes workers, got {worker!r}")
    try:
        signature = inspect.signature(worker)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*tags, credentials=None)
    except TypeError as exc:
        raise ValueError(
            f"worker must be callable as worker(*tags, credentials=...), and {worker!r} is not: "
            f"{exc}"
        ) from exc


def _check_identity(
    identity: str | UndefinedType | None,
    worker: Callable[..., WorkerLike] | None,
    credentials: Credentials | None,
    alone: bool,
) -> None:
    """Tell of workers of a pool's own that it would not call, and of an identity they don't get."""
    name = None if identity is Undefined else identity
    check_credentials(name, credentials)
    message = ""
    if name is not None and not _asks_for(worker or LocalWorker, "identity"):
        message = f"identity {name!r} is not passed on: {worker!r} does not take it, or has its own"
    elif isinstance(credentials, WorkerCredentialsProvider) and (
        worker is None or identity is not Undefined
    ):
        if credentials.accepts_peer(name):
            return
        message = (
            f"The pool's workers would have the identity {name!r}, but its credentials are for "
            f"{credentials.describe_peers()}"
        )
        if alone:
            raise ValueError(message)
    if message:
        warnings.warn(message, IneffectiveIdentityWarning, stacklevel=3)


async def _to_the_end(coroutine: Coroutine[Any, Any, None]) -> None:
    """Await it to its end. A cancellation is passed on to it, and raised when it has ended."""
    task = asyncio.ensure_future(coroutine)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as exc:
            cancelled = exc
            task.cancel()
    if cancelled is not None:
        raise cancelled
    task.result()
