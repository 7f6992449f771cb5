"""Discovery through a Redis server that all hosts reach, with `redis.asyncio`.

A worker's record is a key that expires, and its publisher says it again three times in that time;
so the workers of a host that dies go away. The uids in a namespace are in a set, which expires like
the records; who finds one there without a record removes it. Changes are told on a channel of the
name of that set, by uid: what has changed is in the record alone, so subscribers compare it with
what they last saw, when they are told and from time to time.

When a subscriber has lost the server and is back, missing records are no news until publishers
have had the time to say theirs again: the server may have come back empty.
"""

from __future__ import annotations

import asyncio
import logging
import math
import pickle
import socket
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast
from uuid import UUID, uuid4

from google.protobuf.message import DecodeError

from wool import protocol
from wool.runtime.discovery import addresses
from wool.runtime.discovery.base import Discovery
from wool.runtime.discovery.filtering import dump_filter, load_filter
from wool.runtime.discovery.iteration import Collector, Iteration, end
from wool.runtime.extras import need
from wool.runtime.serializer import to_bytes
from wool.runtime.worker.metadata import WorkerMetadata

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from types import TracebackType
    from typing import Self

    from redis.asyncio import Redis
    from redis.asyncio.client import PubSub

    from wool.runtime.discovery.base import DiscoveryEventType, PredicateFunction

    AdvertiseHost = str | Callable[[], str]

Url: TypeAlias = str | Callable[[], str]

logger = logging.getLogger("wool.discovery")

ANSWER_TIMEOUT: Final = 5.0
"""Seconds for the server to accept a connection, and to answer."""

RETRY: Final = 1.0
"""Seconds before a subscriber that has lost the server connects again."""

BEATS: Final = 3
"""How often a record is said, and looked for, in its lifetime."""


class _Place(NamedTuple):
    """A namespace on a server."""

    url: Url
    namespace: str
    lifetime: float

    def __repr__(self) -> str:
        return repr(self.namespace)  # There may be a password in the URL.

    @property
    def root(self) -> str:
        """The key of the set of uids, and the channel. Braces keep a cluster's keys together."""
        return f"wool:{{{self.namespace}}}"

    def record(self, uid: str) -> str:
        return f"{self.root}:{uid}"

    @property
    def beat(self) -> float:
        """Seconds."""
        return self.lifetime / BEATS

    def location(self) -> str:
        return self.url() if callable(self.url) else self.url

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Redis]:
        need("redis.asyncio", extra="redis")
        from redis.asyncio import ConnectionPool, Redis
        from redis.asyncio.connection import parse_url
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        settings: dict[str, Any] = {
            "socket_connect_timeout": ANSWER_TIMEOUT,
            "socket_timeout": ANSWER_TIMEOUT,
            # A connection from before a restart of the server is found out by its use.
            "retry": Retry(NoBackoff(), 1),
        }
        settings.update(parse_url(self.location()), decode_responses=False)
        client = Redis.from_pool(ConnectionPool(**settings))
        try:
            yield client
        finally:
            await client.aclose()


class RedisPublisher:
    """Announces workers in a namespace, each until it is dropped or the publisher is left.

    A worker that listens on all interfaces is announced at the address by which this host reaches
    the server, or at `advertise_host`.
    """

    bind_host = "0.0.0.0"

    def __init__(self, place: _Place, advertise_host: AdvertiseHost | None = None) -> None:
        self._place = place
        self._advertise_host = advertise_host
        self._records: dict[str, bytes] = {}
        self._entered = False
        self._turn = asyncio.Lock()  # Each has a connection: what comes later must be told later.
        self._heart: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        place = self._place.namespace
        return f"<RedisDiscovery.Publisher {place!r} {len(self._records)} announced>"

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError(f"{self!r} is in use; make another one")
        self._context = self._place.client()
        self._client = await self._context.__aenter__()
        try:
            await self._client.ping()
        except BaseException:
            await self._context.__aexit__(None, None, None)
            raise
        self._entered = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._entered:
            return
        self._entered = False
        try:
            if self._heart is not None:
                await end([self._heart])
            async with self._turn:
                await self._erase(*self._records)
        finally:
            self._records.clear()
            await self._context.__aexit__(None, None, None)

    async def publish(self, type: DiscoveryEventType, metadata: WorkerMetadata) -> None:
        """Announce what happened to a worker. Adding it again updates it, and the reverse.

        Raises `AdvertiseHostError` if no other host can reach it, `ValueError` for an
        `advertise_host` that is none, `TypeError` if its `extra` holds what JSON can't carry,
        `redis.RedisError` if the server can't be told, and `RuntimeError` for an unknown type or
        outside the publisher's context.
        """
        if not self._entered:
            raise RuntimeError(f"{self!r} must be entered before it can publish")
        uid = metadata.uid.hex
        match type:
            case "worker-added" | "worker-updated":
                address = await self._advertised(metadata.address)
                record = replace(metadata, address=address).to_protobuf().SerializeToString()
                async with self._turn:
                    await self._write({uid: record}, tell=True)
                    self._records[uid] = record
                if self._heart is None:
                    self._heart = asyncio.create_task(self._beat(), name="wool redis heartbeat")
            case "worker-dropped":
                async with self._turn:
                    self._records.pop(uid, None)
                    await self._erase(uid)
            case _:
                raise RuntimeError(f"Unexpected discovery event type: {type}")

    async def _advertised(self, address: str) -> str:
        host, port = addresses.split(address)
        given = self._advertise_host
        if given is not None:
            host = addresses.check_host(given() if callable(given) else given)
        elif addresses.is_wildcard(host):
            host = await _own_address(self._place.location())
        elif addresses.is_loopback(host) and not addresses.is_loopback(
            await _own_address(self._place.location())
        ):
            addresses.warn_of_loopback(host)
        return addresses.join(host, port)

    async def _beat(self) -> None:
        """Say every record again before it expires."""
        silent = False
        while True:
            await asyncio.sleep(self._place.beat)
            try:
                async with self._turn:
                    await self._write(self._records)
                silent = False
            except _errors() as exc:
                if not silent:
                    logger.warning("%r can't tell that its workers are alive: %s", self, exc)
                silent = True

    async def _write(self, records: dict[str, bytes], *, tell: bool = False) -> None:
        if not records:
            return
        place, lifetime = self._place, round(self._place.lifetime * 1000)
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.sadd(place.root, *records)
            pipe.pexpire(place.root, lifetime)
            for uid, record in records.items():
                pipe.set(place.record(uid), record, px=lifetime)
                if tell:
                    pipe.publish(place.root, uid)
            await pipe.execute()

    async def _erase(self, *uids: str) -> None:
        if not uids:
            return
        place = self._place
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.srem(place.root, *uids)
            pipe.delete(*map(place.record, uids))
            for uid in uids:
                pipe.publish(place.root, uid)
            await pipe.execute()


class RedisSubscriber:
    """Tells of the workers in a namespace, each iteration for itself and from the beginning."""

    def __init__(self, place: _Place, filter: PredicateFunction | None = None) -> None:
        self._place = place
        self.filter = filter

    def __repr__(self) -> str:
        return f"<RedisDiscovery.Subscriber {self._place.namespace!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _subscriber, (to_bytes(tuple(self._place)), dump_filter(self.filter))

    def __aiter__(self) -> Iteration:
        return Iteration(partial(_Follower, self._place), self.filter)


class _Follower(Collector):
    """Follows the records of a namespace."""

    def __init__(self, place: _Place) -> None:
        super().__init__()
        self._place = place
        self._records: dict[str, bytes] = {}
        self._settled_at = -math.inf
        self.spawn(self._follow())

    async def release(self) -> None:
        pass

    async def _follow(self) -> None:
        """Until it is cancelled, or the server can't be reached from the beginning."""
        reached = False
        while True:
            try:
                async with self._place.client() as client, client.pubsub() as channel:
                    await channel.subscribe(self._place.root)
                    await self._look(client, await self._known(client))
                    reached = True
                    await self._listen(client, channel)
            except _errors() as exc:
                if not reached:
                    raise
                if self._settled_at <= self._loop.time():
                    logger.warning(
                        "The Redis server of %r does not answer and is tried again; workers are "
                        "kept meanwhile: %s",
                        self._place.namespace,
                        exc,
                    )
            self._settled_at = self._loop.time() + RETRY + 2 * self._place.beat
            await asyncio.sleep(RETRY)

    async def _listen(self, client: Redis, channel: PubSub) -> None:
        due = self._loop.time() + self._place.beat
        while True:
            message = await channel.get_message(
                ignore_subscribe_messages=True, timeout=max(due - self._loop.time(), 0)
            )
            if message is not None:
                await self._look(client, [str(message["data"], "utf-8", "replace")], told=True)
            if self._loop.time() >= due:
                await self._look(client, await self._known(client))
                due = self._loop.time() + self._place.beat

    async def _known(self, client: Redis) -> set[str]:
        """The uids that are in the namespace, or were."""
        members = cast("set[bytes]", await client.smembers(self._place.root))
        return {str(member, "utf-8", "replace") for member in members} | self._records.keys()

    async def _look(self, client: Redis, uids: Iterable[str], *, told: bool = False) -> None:
        """Take what has become of workers. Of those that are gone, believe what was told."""
        from redis.exceptions import ResponseError

        uids = list(uids)
        if not uids:
            return
        found = await client.mget(map(self._place.record, uids))
        records = cast("list[bytes | None]", found)
        gone = [uid for uid, record in zip(uids, records, strict=True) if record is None]
        for uid, record in zip(uids, records, strict=True):
            if record is not None and record != self._records.get(uid):
                self._records[uid] = record
                self.take(uid, self._parse(uid, record))
        if gone and (told or self._loop.time() >= self._settled_at):
            for uid in gone:
                self._records.pop(uid, None)
                self.take(uid, None)
            with suppress(ResponseError):  # It may be that it must not write.
                await client.srem(self._place.root, *gone)

    def _parse(self, uid: str, record: bytes) -> WorkerMetadata | None:
        try:
            metadata = WorkerMetadata.from_protobuf(protocol.WorkerMetadata.FromString(record))
            if metadata.uid != UUID(uid):
                raise ValueError(f"it describes worker {metadata.uid}")
        except (DecodeError, TypeError, ValueError) as exc:
            logger.warning("Passing over the record of %s in %r: %s", uid, self._place, exc)
            return None
        return metadata


def _errors() -> tuple[type[Exception], ...]:
    """What is raised when the server can't be reached."""
    from redis.exceptions import RedisError

    return RedisError, OSError


async def _own_address(url: str) -> str:
    """The address by which this host reaches the server, and so the hosts that do so as well."""
    from redis.asyncio.connection import parse_url

    options = parse_url(url)
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    loop = asyncio.get_running_loop()
    family, *_, target = (await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM))[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)  # Which sends nothing, and chooses an address.
        return str(probe.getsockname()[0])


class RedisDiscovery(Discovery):
    """Discovery among all who reach a Redis server, or one that speaks its protocol.

    Without a namespace it makes up one of its own. `url` is the server's, as `redis` takes it, or
    what returns it where it is needed: it goes to workers with the calls they are given, and a
    password in it does too, unless it is a function that finds it there. Workers whose host has
    died are dropped after `lifetime` seconds, or a third more. `advertise_host` is where the
    workers that are published can be reached, an address or a host's name, or what returns it
    (default: the address by which their host reaches the server, which is a loopback one if it
    is on this host, or reached through a tunnel from it). `filter` is for subscribers that
    bring none. Entering it is optional. It can be pickled, and equals any other of its namespace
    and server. Anyone who can write to the server can announce workers: give pools
    `WorkerCredentials`.

    Needs the extra `wool[redis]`; raises `ImportError` without. Raises `ValueError` for a
    `lifetime` below 0.1, a `url` of another kind, and an `advertise_host` that is empty or stands
    for all interfaces.
    """

    Publisher: TypeAlias = RedisPublisher
    Subscriber: TypeAlias = RedisSubscriber

    def __init__(
        self,
        namespace: str | None = None,
        *,
        url: Url = "redis://localhost:6379",
        lifetime: float = 15.0,
        advertise_host: AdvertiseHost | None = None,
        filter: PredicateFunction | None = None,
    ) -> None:
        parse_url = need("redis.asyncio.connection", extra="redis").parse_url
        if not callable(url):
            parse_url(url)
        if not 0.1 <= lifetime < math.inf:
            raise ValueError(f"lifetime must be a number of seconds, 0.1 or more, got {lifetime}")
        if isinstance(advertise_host, str):
            addresses.check_host(advertise_host)
        self._place = _Place(
            url, f"pool-{uuid4().hex}" if namespace is None else namespace, lifetime
        )
        self._advertise_host = advertise_host
        self._filter = filter

    def __repr__(self) -> str:
        return f"<RedisDiscovery {self._place.namespace!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RedisDiscovery):
            return NotImplemented
        return self._place == other._place

    def __hash__(self) -> int:
        return hash(self._place)

    def __reduce__(self) -> tuple[Any, ...]:
        return _discovery, (
            to_bytes((tuple(self._place), self._advertise_host)),
            dump_filter(self._filter),
        )

    @property
    def namespace(self) -> str:
        return self._place.namespace

    @property
    def publisher(self) -> RedisPublisher:
        """A new publisher, to be entered before use; then the server must answer."""
        return RedisPublisher(self._place, self._advertise_host)

    @property
    def subscriber(self) -> RedisSubscriber:
        return self.subscribe()

    def subscribe(self, filter: PredicateFunction | None = None) -> RedisSubscriber:
        """A subscriber to the workers that pass `filter`, or else this discovery's own."""
        return RedisSubscriber(self._place, self._filter if filter is None else filter)


def _discovery(content: bytes, filter: bytes | None) -> RedisDiscovery:
    (url, namespace, lifetime), advertise_host = pickle.loads(content)
    return RedisDiscovery(
        namespace,
        url=url,
        lifetime=lifetime,
        advertise_host=advertise_host,
        filter=load_filter(filter),
    )


def _subscriber(content: bytes, filter: bytes | None) -> RedisSubscriber:
    return RedisSubscriber(_Place(*pickle.loads(content)), load_filter(filter))
