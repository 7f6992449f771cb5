"""Discovery on the local network, by DNS service discovery over multicast DNS (RFC 6762 and 6763).

A worker is an instance of a service whose type stands for the namespace; its TXT record says what
`txt` can carry. Those who come, change and say goodbye are heard of at once. Those who vanish are
dropped when their record expires, which is after 19 minutes at the earliest (python-zeroconf
raises shorter lifetimes); whoever calls such a worker notices at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import pickle
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import UUID, uuid4

from wool.runtime.discovery import addresses, txt
from wool.runtime.discovery.base import Discovery
from wool.runtime.discovery.filtering import dump_filter, load_filter
from wool.runtime.discovery.iteration import Collector, Iteration
from wool.runtime.serializer import to_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from zeroconf import ServiceInfo, ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncZeroconf

    from wool.runtime.discovery.base import DiscoveryEventType, PredicateFunction
    from wool.runtime.worker.metadata import WorkerMetadata

    AdvertiseHost = str | Callable[[], str]

logger = logging.getLogger("wool.discovery")

RESOLVE_TIMEOUT: Final = 3.0
"""Seconds for a worker's host to answer what it announced."""

RESOLVE_RETRY: Final = 10.0
"""Seconds until a worker whose host did not answer is asked for again."""


def service_type(namespace: str) -> str:
    """The DNS-SD service type of a namespace."""
    digest = hashlib.md5(namespace.encode(), usedforsecurity=False).hexdigest()
    return f"_wool-{digest[:6]}._tcp.local."


class LanPublisher:
    """Announces workers of a service type, each until it is dropped or the publisher is left.

    A worker that listens on all interfaces is announced at the addresses of all of them that other
    hosts can reach, or at `advertise_host`.
    """

    bind_host = "0.0.0.0"

    def __init__(self, service_type: str, *, advertise_host: AdvertiseHost | None = None) -> None:
        if isinstance(advertise_host, str):
            addresses.check_host(advertise_host)
        self.service_type = service_type
        self.services: dict[str, ServiceInfo] = {}
        self.aiozc: AsyncZeroconf | None = None
        self._advertise_host = advertise_host
        self._telling: dict[str, asyncio.Future[None]] = {}

    def __repr__(self) -> str:
        return f"<LanDiscovery.Publisher {self.service_type} {len(self.services)} announced>"

    async def __aenter__(self) -> Self:
        if self.aiozc is not None:
            raise RuntimeError(f"{self!r} is in use; make another one")
        self.aiozc = _open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        zeroconf, self.aiozc = self.aiozc, None
        self.services.clear()
        if zeroconf is None:
            return
        try:
            if self._telling:
                await asyncio.wait(self._telling.values())
        finally:
            await zeroconf.async_close()

    async def publish(self, type: DiscoveryEventType, metadata: WorkerMetadata) -> None:
        """Announce what happened to a worker. Adding it again updates it, and the reverse.

        Raises `AdvertiseHostError` if no other host can reach it, `ValueError`, which names the
        field, if it has more to say than a TXT record holds, `TypeError` if its `extra` holds what
        JSON can't carry, `RuntimeError` for an unknown type or outside the publisher's context.
        Then what was announced before still stands.
        """
        if self.aiozc is None:
            raise RuntimeError("Publisher not properly initialized: enter it before it publishes")
        match type:
            case "worker-added" | "worker-updated":
                await self._announce(self.aiozc, metadata)
            case "worker-dropped":
                info = self.services.pop(str(metadata.uid), None)
                if info is not None:
                    await self._tell(info, self.aiozc.async_unregister_service(info))
            case _:
                raise RuntimeError(f"Unexpected discovery event type: {type}")

    async def _announce(self, zeroconf: AsyncZeroconf, metadata: WorkerMetadata) -> None:
        from zeroconf import ServiceInfo

        uid = str(metadata.uid)
        host, port = addresses.split(metadata.address)
        info = ServiceInfo(
            self.service_type,
            f"{uid}.{self.service_type}",
            port=port,
            # A record that says what an earlier one said, lately, would not be noticed.
            properties=txt.encode(metadata) | {"serial": f"{time.time_ns():x}"},
            server=f"{uid}.local.",
            parsed_addresses=await addresses.advertised(host, self._advertise_host),
        )
        known, self.services[uid] = uid in self.services, info
        if known:
            await self._tell(info, zeroconf.async_update_service(info))
        else:
            # The name is a uid: nobody has to be asked whether it is free.
            await self._tell(
                info, zeroconf.async_register_service(info, cooperating_responders=True)
            )

    async def _tell(self, info: ServiceInfo, change: Awaitable[Awaitable[None]]) -> None:
        """Tell the network of a change, and have that repeated, as packets may be lost."""
        former = self._telling.pop(info.name, None)
        if former is not None:
            former.cancel()
        telling = asyncio.ensure_future(await change)
        self._telling[info.name] = telling
        telling.add_done_callback(partial(self._told, info.name))

    def _told(self, name: str, telling: asyncio.Future[None]) -> None:
        if self._telling.get(name) is telling:
            del self._telling[name]
        if not telling.cancelled() and (error := telling.exception()) is not None:
            logger.warning("%r could not tell the network: %r", self, error)


class LanSubscriber:
    """Tells of the workers of a service type, each iteration for itself and from the beginning."""

    def __init__(self, service_type: str, *, filter: PredicateFunction | None = None) -> None:
        self.service_type = service_type
        self.filter = filter

    def __repr__(self) -> str:
        return f"<LanDiscovery.Subscriber {self.service_type}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _subscriber, (self.service_type, dump_filter(self.filter))

    def __aiter__(self) -> Iteration:
        return Iteration(partial(_Browser, self.service_type), self.filter)


class _Browser(Collector):
    """Follows what is announced, and reads the records of each worker."""

    def __init__(self, service_type: str) -> None:
        from zeroconf.asyncio import AsyncServiceBrowser

        super().__init__()
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._zeroconf = _open()
        self._browser = AsyncServiceBrowser(
            self._zeroconf.zeroconf, service_type, handlers=[self._changed]
        )

    async def release(self) -> None:
        await self._browser.async_cancel()
        await self._zeroconf.async_close()

    def _changed(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """What zeroconf calls, on this loop."""
        if (task := self._reading.pop(name, None)) is not None:
            task.cancel()
        if state_change.name == "Removed":
            self.take(name, None)
        else:
            self._reading[name] = self.spawn(self._read(service_type, name))

    async def _read(self, service_type: str, name: str) -> None:
        from zeroconf.asyncio import AsyncServiceInfo

        info = AsyncServiceInfo(service_type, name)
        while not await info.async_request(self._zeroconf.zeroconf, RESOLVE_TIMEOUT * 1000):
            logger.info("%s is announced, but its host does not answer", name)
            await asyncio.sleep(RESOLVE_RETRY)
        try:
            metadata = _metadata(info)
        except txt.ForeignRecord as exc:
            logger.debug("%s is passed over: %s", name, exc)
        except ValueError as exc:
            logger.warning("The record of %s can't be read and is skipped: %s", name, exc)
        else:
            self.take(name, metadata)
        del self._reading[name]


def _metadata(info: ServiceInfo) -> WorkerMetadata:
    """Raises `ValueError` if the records are not a worker's."""
    uid = UUID(info.name.partition(".")[0])
    found = info.parsed_scoped_addresses()
    if not found or not info.port:
        raise ValueError("it has no address")
    address = addresses.join(addresses.nearest(found, addresses.interfaces()), info.port)
    return txt.decode(uid, address, info.properties)


def _open() -> AsyncZeroconf:
    from zeroconf.asyncio import AsyncZeroconf

    return AsyncZeroconf(interfaces=addresses.multicast_interfaces())


class LanDiscovery(Discovery):
    """Discovery on the local network, among those who know the namespace.

    Without a namespace it makes up one of its own. `advertise_host` is where the workers that are
    published can be reached, an address or a host's name, or what returns it when it is asked
    for (default: the addresses of the interfaces that they listen on). `filter` is for subscribers
    that bring none. Entering it is optional. It can be pickled, and equals any other of its
    namespace. Anyone on the network can announce a worker and read what is announced: give pools
    `WorkerCredentials`.

    Raises `ValueError` for an `advertise_host` that is empty, or stands for all interfaces.
    """

    Publisher: TypeAlias = LanPublisher
    Subscriber: TypeAlias = LanSubscriber

    def __init__(
        self,
        namespace: str | None = None,
        *,
        advertise_host: AdvertiseHost | None = None,
        filter: PredicateFunction | None = None,
    ) -> None:
        if isinstance(advertise_host, str):
            addresses.check_host(advertise_host)
        self._namespace = f"pool-{uuid4().hex}" if namespace is None else namespace
        self._advertise_host = advertise_host
        self._filter = filter

    def __repr__(self) -> str:
        return f"<LanDiscovery {self._namespace!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LanDiscovery):
            return NotImplemented
        return self._namespace == other._namespace

    def __hash__(self) -> int:
        return hash((LanDiscovery, self._namespace))

    def __reduce__(self) -> tuple[Any, ...]:
        return _discovery, (
            self._namespace,
            to_bytes(self._advertise_host),
            dump_filter(self._filter),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    @property
    def namespace(self) -> str:
        return self._namespace

    @property
    def service_type(self) -> str:
        """The DNS-SD service type that stands for the namespace."""
        return service_type(self._namespace)

    @property
    def publisher(self) -> LanPublisher:
        """A new publisher, to be entered before use."""
        return LanPublisher(self.service_type, advertise_host=self._advertise_host)

    @property
    def subscriber(self) -> LanSubscriber:
        return self.subscribe()

    def subscribe(self, filter: PredicateFunction | None = None) -> LanSubscriber:
        """A subscriber to the workers that pass `filter`, or else this discovery's own."""
        return LanSubscriber(self.service_type, filter=self._filter if filter is None else filter)


def _discovery(namespace: str, advertise_host: bytes, filter: bytes | None) -> LanDiscovery:
    return LanDiscovery(
        namespace, advertise_host=pickle.loads(advertise_host), filter=load_filter(filter)
    )


def _subscriber(service_type: str, filter: bytes | None) -> LanSubscriber:
    return LanSubscriber(service_type, filter=load_filter(filter))
