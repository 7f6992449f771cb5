"""Discovery by the addresses of a name in the DNS, such as that of a headless service.

The DNS says where workers are and nothing else about them, and nobody is told of changes: the name
is asked for again and again. What the workers are like is said by whoever uses the discovery; that
they speak the same version is checked when they are called.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn
from uuid import NAMESPACE_URL, uuid5

from wool import protocol
from wool.runtime.discovery.addresses import join
from wool.runtime.discovery.base import Discovery
from wool.runtime.discovery.filtering import dump_filter, load_filter
from wool.runtime.discovery.iteration import Collector, Iteration
from wool.runtime.extras import need
from wool.runtime.worker.metadata import WorkerMetadata, check_identity, check_tags

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from dns.asyncresolver import Resolver
    from dns.rdata import Rdata

    from wool.runtime.discovery.base import DiscoveryEventType, PredicateFunction
    from wool.runtime.worker.base import ChannelOptions

logger = logging.getLogger("wool.discovery")

NAMESERVER: Final = re.compile(
    r"(\[(?P<six>[^]]+)\]|(?P<host>[^:]+))(:(?P<port>\d+))?|(?P<bare>[^[]*:[^[]*:[^[]*)"
)

ANSWER_TIMEOUT: Final = 5.0
"""Seconds for the DNS to answer a question."""


class _Service(NamedTuple):
    """Which name to ask for, of whom and how often, and what the workers there are like."""

    name: str
    port: int | None
    nameserver: str | None
    interval: float
    tags: frozenset[str]
    secure: bool
    identity: str | None
    options: ChannelOptions | None

    def worker(self, address: str) -> WorkerMetadata:
        """The worker at an address, under the same uid for everybody."""
        return WorkerMetadata(
            uid=uuid5(NAMESPACE_URL, f"wool://{address}"),
            address=address,
            pid=0,
            version=protocol.__version__,
            tags=self.tags,
            secure=self.secure,
            options=self.options,
            identity=self.identity,
        )


class DnsPublisher:
    """Stands for the one that the DNS does not have: entering it raises `RuntimeError`."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def __aenter__(self) -> NoReturn:
        self._refuse()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    async def publish(self, type: DiscoveryEventType, metadata: WorkerMetadata) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise RuntimeError(
            f"Workers can't be announced in the DNS, where {self._name!r} is somebody else's to "
            "change: give a pool with a DnsDiscovery no size, and run workers in another one"
        )


class DnsSubscriber:
    """Tells of the workers at a name, each iteration for itself and from the beginning."""

    def __init__(self, service: _Service, filter: PredicateFunction | None = None) -> None:
        self._service = service
        self.filter = filter

    def __repr__(self) -> str:
        return f"<DnsDiscovery.Subscriber {self._service.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _subscriber, (self._service, dump_filter(self.filter))

    def __aiter__(self) -> Iteration:
        return Iteration(partial(_Follower, self._service), self.filter)


class _Follower(Collector):
    """Asks for a name again and again."""

    def __init__(self, service: _Service) -> None:
        super().__init__()
        self._service = service
        self.spawn(self._follow())

    async def release(self) -> None:
        pass

    async def _follow(self) -> None:
        """Until it is cancelled, or the DNS doesn't answer the first time."""
        need("dns.asyncresolver", extra="dns")
        from dns.exception import DNSException

        resolver = _resolver(self._service.nameserver)
        answered = failing = False
        while True:
            try:
                found = await _addresses(resolver, self._service.name, self._service.port)
            except (DNSException, OSError) as exc:
                if not answered:
                    raise
                if not failing:
                    name = self._service.name
                    logger.warning(
                        "No answer for %r; its workers are kept meanwhile: %s", name, exc
                    )
                failing = True
            else:
                answered, failing = True, False
                for address in self.seen.keys() - found:
                    self.take(address, None)
                for address in sorted(found):
                    self.take(address, self._service.worker(address))
            await asyncio.sleep(self._service.interval)


def _resolver(nameserver: str | None) -> Resolver:
    from dns.asyncresolver import Resolver

    if nameserver is None:
        return Resolver()
    resolver = Resolver(configure=False)
    host, port = _split(nameserver)
    resolver.nameservers = [host]
    resolver.port = port
    return resolver


def _split(nameserver: str) -> tuple[str, int]:
    """Host and port, which is 53 unless it says so. Raises `ValueError` if it isn't an address."""
    import ipaddress

    found = NAMESERVER.fullmatch(nameserver)
    try:
        if found is None:
            raise ValueError("it is of another form")
        host, port = found["six"] or found["host"] or found["bare"], int(found["port"] or 53)
        ipaddress.ip_address(host)
        _check_port(port)
    except ValueError as exc:
        raise ValueError(
            f"nameserver must be an IP address, or one with a port, got {nameserver!r}: {exc}"
        ) from exc
    return host, port


async def _addresses(resolver: Resolver, name: str, port: int | None) -> set[str]:
    """What the DNS has of a name: hosts with that port, or without, services."""
    if port is None:
        services: Any = await _ask(resolver, name, "SRV")
        # A target of "." says that there is no such service (RFC 2782).
        targets = {(each.target.to_text(True), each.port) for each in services}
        return {join(host, port) for host, port in targets if host != "."}
    # A worker with addresses of both kinds is one.
    hosts: Any = await _ask(resolver, name, "A") or await _ask(resolver, name, "AAAA")
    return {join(each.address, port) for each in hosts}


async def _ask(resolver: Resolver, name: str, kind: str) -> Iterable[Rdata]:
    from dns.resolver import NXDOMAIN

    try:
        return await _query(resolver, name, kind)
    except NXDOMAIN:
        return ()


async def _query(resolver: Resolver, name: str, kind: str) -> Iterable[Rdata]:
    """Nothing if the name has no such records; raises `NXDOMAIN` if there is no such name."""
    from dns.resolver import NoAnswer

    try:
        return tuple(await resolver.resolve(name, kind, search=True, lifetime=ANSWER_TIMEOUT))
    except NoAnswer:
        return ()


class DnsDiscovery(Discovery):
    """Discovery of workers at the addresses of a name, without announcing any.

    With a `port`, they are at the name's addresses (A, or else AAAA), each with that port, as for a
    headless service of Kubernetes. Without, the name's SRV records tell hosts and ports, whatever
    priority and weight they have. The name is asked for every `interval` seconds, of the system's
    name servers or `nameserver`, an IP address with or without a port. `tags`, `secure`, `identity`
    and `options` are as for `WorkerMetadata` and hold for all workers there. `filter` is for
    subscribers that bring none.

    It can be pickled. A pool with it has no `size`: who runs the service makes its records.

    Needs the extra `wool[dns]`; raises `ImportError` without. Raises `ValueError` for what isn't a
    name, a port outside 1..65535, an interval that isn't positive, and a nameserver that is none.
    """

    def __init__(
        self,
        name: str,
        port: int | None = None,
        *,
        tags: Iterable[str] = (),
        secure: bool = False,
        identity: str | None = None,
        options: ChannelOptions | None = None,
        interval: float = 5.0,
        nameserver: str | None = None,
        filter: PredicateFunction | None = None,
    ) -> None:
        _check_name(name)
        if port is not None:
            _check_port(port)
        check_identity(identity)
        if not 0 < interval < math.inf:
            raise ValueError(f"interval must be a positive number of seconds, got {interval}")
        if nameserver is not None:
            _split(nameserver)
        self._service = _Service(
            name, port, nameserver, interval, check_tags(tags), secure, identity, options
        )
        self._filter = filter

    def __repr__(self) -> str:
        return f"<DnsDiscovery {self._service.name!r} {self._service.port or 'SRV'}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DnsDiscovery):
            return NotImplemented
        return self._service == other._service

    def __hash__(self) -> int:
        return hash(self._service)

    def __reduce__(self) -> tuple[Any, ...]:
        return _discovery, (self._service, dump_filter(self._filter))

    @property
    def publisher(self) -> DnsPublisher:
        """Raises `RuntimeError` when it is entered."""
        return DnsPublisher(self._service.name)

    @property
    def subscriber(self) -> DnsSubscriber:
        return self.subscribe()

    def subscribe(self, filter: PredicateFunction | None = None) -> DnsSubscriber:
        """A subscriber to the workers that pass `filter`, or else this discovery's own."""
        return DnsSubscriber(self._service, self._filter if filter is None else filter)

    async def check(self) -> None:
        """Raises dnspython's `DNSException` if there is no such name, or the DNS doesn't answer.

        To subscribers, a name that isn't there is one without workers: it may come to be.
        """
        service = self._service
        kind = "SRV" if service.port is None else "A"
        await _query(_resolver(service.nameserver), service.name, kind)


def _check_port(port: object) -> None:
    if type(port) is not int or not 1 <= port <= 65535:
        raise ValueError(f"port must be in 1..65535, got {port!r}")


def _check_name(name: str) -> None:
    names, exceptions = need("dns.name", extra="dns"), need("dns.exception", extra="dns")
    try:
        if not name.strip("."):
            raise ValueError("it is empty")
        names.from_text(name)
    except (exceptions.DNSException, ValueError) as exc:
        raise ValueError(f"{name!r} is not a name in the DNS: {exc}") from exc


def _discovery(service: _Service, filter: bytes | None) -> DnsDiscovery:
    name, port, nameserver, interval, tags, secure, identity, options = service
    return DnsDiscovery(
        name,
        port,
        tags=tags,
        secure=secure,
        identity=identity,
        options=options,
        interval=interval,
        nameserver=nameserver,
        filter=load_filter(filter),
    )


def _subscriber(service: _Service, filter: bytes | None) -> DnsSubscriber:
    return DnsSubscriber(service, load_filter(filter))
