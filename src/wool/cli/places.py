"""Where workers meet, in words: `local:NAME`, `lan[:NAME]`, `redis://...`, `dns:NAME[:PORT]`."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from wool.runtime.discovery.addresses import is_loopback
from wool.runtime.discovery.base import Discovery, DiscoveryLike
from wool.runtime.discovery.dns import DnsDiscovery
from wool.runtime.discovery.filtering import dump_filter, load_filter
from wool.runtime.discovery.iteration import Collector, Iteration
from wool.runtime.discovery.lan import LanDiscovery
from wool.runtime.discovery.local import LocalDiscovery
from wool.runtime.discovery.redis import RedisDiscovery
from wool.runtime.factory import resolve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from wool.runtime.discovery.base import (
        DiscoveryEventType,
        DiscoveryPublisherLike,
        DiscoverySubscriberLike,
        PredicateFunction,
    )
    from wool.runtime.worker.metadata import WorkerMetadata

NAME: Final = "wool"
"""Of a namespace, where none is given."""

REDIS: Final = ("redis", "rediss", "unix")

FORMS: Final = "local:NAME, lan[:NAME], redis://HOST[:PORT][/DB][#NAME] or dns:NAME[:PORT]"


@dataclass(frozen=True, slots=True)
class Place:
    """A place as it was given; `kind` is `local`, `lan`, `redis` or `dns`.

    `name` is that of the namespace, or in the DNS, `url` that of a server.
    """

    text: str
    kind: str
    name: str
    url: str = ""
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Place:
        """Raises `ValueError` if it is of another form."""
        kind, colon, rest = text.partition(":")
        if kind in REDIS and rest.startswith("//"):
            url, _, name = text.partition("#")
            return cls(text, "redis", name or NAME, url=url)
        if kind == "lan" or (kind == "local" and rest):
            return cls(text, kind, rest or NAME)
        if kind == "dns" and rest:
            name, colon, port = rest.rpartition(":")
            if not colon:
                return cls(text, kind, rest)
            if name and port.isdecimal():
                return cls(text, kind, name, port=int(port))
        raise ValueError(f"expected {FORMS}")

    def __str__(self) -> str:
        if self.kind != "redis":
            return self.text
        return f"redis://{self.url.partition('//')[2].rpartition('@')[2]}#{self.name}"

    def discovery(
        self,
        *,
        advertise: str | None = None,
        secure: bool = False,
        identity: str | None = None,
        tags: Sequence[str] = (),
    ) -> DiscoveryLike:
        """Raises `ValueError` for what it can't be made of, `ImportError` without its extra."""
        match self.kind:
            case "local":
                return LocalDiscovery(self.name)
            case "lan":
                return LanDiscovery(self.name, advertise_host=advertise)
            case "redis":
                return RedisDiscovery(self.name, url=self.url, advertise_host=advertise)
        return DnsDiscovery(self.name, self.port, secure=secure, identity=identity, tags=tags)


def together(discoveries: Sequence[DiscoveryLike]) -> DiscoveryLike:
    """All of them as one."""
    return discoveries[0] if len(discoveries) == 1 else Several(discoveries)


async def check(discovery: DiscoveryLike) -> None:
    """Raises what tells that there is no such place, if the discovery can tell."""
    if isinstance(discovery, (DnsDiscovery, Several)):
        await discovery.check()


class Several(Discovery):
    """Announces in all of some discoveries, and tells of the workers that are in any of them."""

    def __init__(self, discoveries: Sequence[DiscoveryLike]) -> None:
        self._discoveries = tuple(discoveries)

    def __repr__(self) -> str:
        return f"<Several {' '.join(map(repr, self._discoveries))}>"

    @property
    def publisher(self) -> SeveralPublisher:
        return SeveralPublisher([each.publisher for each in self._discoveries])

    def subscribe(self, filter: PredicateFunction | None = None) -> SeveralSubscriber:
        return SeveralSubscriber([each.subscriber for each in self._discoveries], filter)

    async def check(self) -> None:
        for each in self._discoveries:
            await check(each)


class SeveralPublisher:
    def __init__(self, publishers: Sequence[DiscoveryPublisherLike]) -> None:
        self._publishers = tuple(publishers)
        self._stack = AsyncExitStack()

    @property
    def bind_host(self) -> str | None:
        """The widest that is asked for."""
        hosts = [getattr(each, "bind_host", None) for each in self._publishers]
        given = [host for host in hosts if host is not None]
        return min(given, key=is_loopback, default=None)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for publisher in self._publishers:
                await resolve(publisher, stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(exc_type, exc, traceback)

    async def publish(self, type: DiscoveryEventType, metadata: WorkerMetadata) -> None:
        """Announce it everywhere. Raises an `ExceptionGroup` of what went wrong."""
        results = await asyncio.gather(
            *(each.publish(type, metadata) for each in self._publishers), return_exceptions=True
        )
        if failures := [result for result in results if result is not None]:
            raise BaseExceptionGroup(f"{type} was not announced everywhere", failures)


class SeveralSubscriber:
    def __init__(
        self,
        subscribers: Sequence[DiscoverySubscriberLike],
        filter: PredicateFunction | None = None,
    ) -> None:
        self._subscribers = tuple(subscribers)
        self.filter = filter

    def __reduce__(self) -> tuple[Any, ...]:
        return _subscriber, (self._subscribers, dump_filter(self.filter))

    def __aiter__(self) -> Iteration:
        return Iteration(partial(_Merger, self._subscribers), self.filter)


def _subscriber(
    subscribers: Sequence[DiscoverySubscriberLike], filter: bytes | None
) -> SeveralSubscriber:
    return SeveralSubscriber(subscribers, load_filter(filter))


class _Merger(Collector):
    """Follows several subscribers; a worker is there as long as one of them has it."""

    def __init__(self, subscribers: Sequence[DiscoverySubscriberLike]) -> None:
        super().__init__()
        self._found: dict[str, dict[int, WorkerMetadata]] = {}
        for number, subscriber in enumerate(subscribers):
            self.spawn(self._follow(number, subscriber))

    async def release(self) -> None:
        pass

    async def _follow(self, number: int, subscriber: DiscoverySubscriberLike) -> None:
        async with aclosing(cast("Any", aiter(subscriber))) as events:
            async for event in events:
                key = event.metadata.uid.hex
                found = self._found.setdefault(key, {})
                if event.type == "worker-dropped":
                    found.pop(number, None)
                else:
                    found[number] = event.metadata
                self.take(key, next(iter(found.values()), None))
                if not found:
                    del self._found[key]
