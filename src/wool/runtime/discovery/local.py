"""Discovery among the processes of one user on one machine.

What is announced is in files (see `records`); an iteration is told which of them to look at (see
`watch`) and compares what it finds with what it last saw. So events are never lost, repeated or out
of order, whoever tells of them and however often.
"""

from __future__ import annotations

import asyncio
import logging
import math
import weakref
from collections import deque
from contextlib import suppress
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import uuid4

from wool.runtime.discovery.base import Discovery, DiscoveryEvent
from wool.runtime.discovery.filtering import EventFilter, dump_filter, load_filter
from wool.runtime.discovery.records import Directory
from wool.runtime.discovery.watch import Listener, hub

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

    from wool.runtime.discovery.base import DiscoveryEventType, PredicateFunction
    from wool.runtime.discovery.descriptors import Descriptor
    from wool.runtime.discovery.records import Sighting
    from wool.runtime.worker.metadata import WorkerMetadata

logger = logging.getLogger("wool.discovery.local")

POLL_INTERVAL: Final = 2.0
"""Seconds between rescans, which notice what nobody told of."""

TRIES: Final = 3
"""How often to try for the lock of another's record: who merely looks has it for microseconds."""


class LocalPublisher:
    """Announces workers in a namespace, each until it is dropped or the publisher is left.

    Should the process die, the workers it announced count as dropped. A worker announced by several
    publishers belongs to the last of them. If the directory vanishes, the records are put back.
    """

    bind_host = "127.0.0.1"

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self._directory: Directory | None = None
        self._records: dict[str, Descriptor] = {}
        self._announced: dict[str, WorkerMetadata] = {}
        self._place: Descriptor | None = None
        self._keeper: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<LocalDiscovery.Publisher {self.namespace!r} {len(self._records)} announced>"

    async def __aenter__(self) -> Self:
        if self._directory is not None:
            raise RuntimeError(f"{self!r} is in use; make another one")
        directory = Directory(self.namespace)
        directory.sweep()
        self._directory = directory
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        directory, self._directory = self._directory, None
        if directory is None:
            return
        if self._keeper is not None:
            self._keeper.cancel()
        self._keeper = self._place = None
        self._announced.clear()
        for name, record in self._records.items():
            with suppress(OSError):
                if directory.owns(name, record):
                    directory.remove(name)
            record.close()
            hub.announce(directory.path, name)
        self._records.clear()
        hub.tidy(directory)

    async def publish(self, type: DiscoveryEventType, metadata: WorkerMetadata) -> None:
        """Announce what happened to a worker. Adding it again updates it.

        Raises `KeyError` for an update of a worker that isn't there, `TypeError` if the metadata
        can't be encoded, `OSError` if it can't be written (what was announced before still stands),
        `RuntimeError` for an unknown type or outside the publisher's context.
        """
        directory, name = self._entered(), metadata.uid.hex
        match type:
            case "worker-added":
                await self._write(metadata)
            case "worker-updated":
                seen = directory.look(name)
                if seen is None or seen.metadata is None:
                    raise KeyError(f"worker {metadata.uid} is not announced in {self.namespace!r}")
                await self._write(metadata)
            case "worker-dropped":
                directory.remove(name)
                self._announced.pop(name, None)
                if not self._announced:
                    self._place = None  # Open, it would keep its end from being reported.
                if record := self._records.pop(name, None):
                    record.close()
            case _:
                raise RuntimeError(f"Unexpected discovery event type: {type}")
        hub.announce(directory.path, name)

    def _entered(self) -> Directory:
        if self._directory is None:
            raise RuntimeError(f"{self!r} must be entered before it can publish")
        return self._directory

    async def _write(self, metadata: WorkerMetadata) -> None:
        name = metadata.uid.hex
        leftover = await self._lock_out(name)
        try:
            if not self._announced:
                self._place = self._entered().open_itself()
            record = self._entered().write(metadata)
        finally:
            if leftover is not None:
                leftover.close()
        self._take(metadata, record)
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="wool local publisher")

    def _take(self, metadata: WorkerMetadata, record: Descriptor) -> None:
        name = metadata.uid.hex
        # Not before, so that at no moment the worker's record is unlocked.
        if previous := self._records.pop(name, None):
            previous.close()
        self._records[name], self._announced[name] = record, metadata

    async def _keep(self) -> None:
        """Put the records back when their directory has vanished."""
        while (directory := self._directory) is not None:
            try:
                if self._place is not None and self._place.is_removed:
                    # Opened first, so that it is noticed if this one vanishes meanwhile.
                    place = directory.open_itself()
                    for metadata in list(self._announced.values()):
                        self._take(metadata, directory.write(metadata))
                        hub.announce(directory.path, metadata.uid.hex)
                    self._place = place
            except OSError as exc:
                logger.warning("%r can't put back what it has announced: %s", self, exc)
            await asyncio.sleep(POLL_INTERVAL)

    async def _lock_out(self, name: str) -> Descriptor | None:
        """Lock a record that isn't ours, lest it is removed as dead when ours is in its place."""
        ours = self._records.get(name)
        for _ in range(TRIES):
            directory = self._entered()
            if ours is not None and directory.owns(name, ours):
                return None
            leftover = directory.open(name)
            if leftover is None or leftover.lock():
                return leftover
            leftover.close()
            await asyncio.sleep(0.001)
        return None  # Its owner is alive.


class LocalSubscriber:
    """Tells of the workers in a namespace, each iteration for itself and from the beginning."""

    def __init__(
        self,
        namespace: str,
        *,
        filter: PredicateFunction | None = None,
        poll_interval: float | None = None,
    ) -> None:
        interval = POLL_INTERVAL if poll_interval is None else poll_interval
        if not 0 < interval < math.inf:
            raise ValueError(f"poll_interval must be a positive number of seconds, got {interval}")
        self.namespace = namespace
        self.filter = filter
        self.poll_interval = interval

    def __repr__(self) -> str:
        return f"<LocalDiscovery.Subscriber {self.namespace!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _subscriber, (self.namespace, dump_filter(self.filter), self.poll_interval)

    def __aiter__(self) -> LocalIteration:
        return LocalIteration(self)


class LocalIteration:
    """One consumer's events: first those who are there, then what changes.

    Holds nothing before the first event is asked for, and ends when it is closed or collected.
    Cancelling the wait for an event does it no harm.
    """

    def __init__(self, subscriber: LocalSubscriber) -> None:
        self._namespace = subscriber.namespace
        self._poll_interval = subscriber.poll_interval
        self._filter = EventFilter(subscriber.filter)
        self._events: deque[DiscoveryEvent] = deque()
        self._source: _Source | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DiscoveryEvent:
        while not self._closed:
            while self._events:
                event = self._filter.apply(self._events.popleft())
                if event is not None:
                    return event
            if self._source is None:
                self._source = self._open()
                self._events.extend(self._source.scan())
            else:
                self._events.extend(await self._source.changes())
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the iteration, also for who waits for its next event."""
        self._closed = True
        if self._source is not None and self._finalizer.detach():
            self._source.close()

    def _open(self) -> _Source:
        source = _Source(self._namespace, self._poll_interval)
        self._finalizer = weakref.finalize(self, source.listener.abandon)
        self._finalizer.atexit = False
        return source


class _Source:
    """What an iteration sees of its directory, and the listener that tells it where to look."""

    def __init__(self, namespace: str, poll_interval: float) -> None:
        self._directory = Directory(namespace)
        self._seen: dict[str, Sighting] = {}
        self._poll_interval = poll_interval
        self._watched = False
        self.listener = Listener(self._directory)
        hub.add(self.listener)

    def close(self) -> None:
        hub.remove(self.listener)
        self.listener.hear(None)

    async def changes(self) -> list[DiscoveryEvent]:
        """Wait until there is reason to look, and look."""
        if not self._watched:
            # Not earlier: who is there is told before watchdog is imported.
            self._watched = True
            hub.watch(self._directory)
        names = await self.listener.wait(self._rescan_at)
        if None not in names:
            return self._look(name for name in names if name is not None)
        hub.watch(self._directory)
        return self.scan()

    def scan(self) -> list[DiscoveryEvent]:
        """What is different from before in all of the directory."""
        self._rescan_at = asyncio.get_running_loop().time() + self._poll_interval
        names = self._directory.names()
        return [] if names is None else self._look(names | self._seen.keys())

    def _look(self, names: Iterable[str]) -> list[DiscoveryEvent]:
        """What is different in those files: who left, then the others as they were announced."""
        changes: list[tuple[int, DiscoveryEvent]] = []
        for name in names:
            before = self._seen.pop(name, None)
            after = self._directory.look(name, before)
            if after is not None:
                self._seen[name] = after
            if after is not before and (event := _difference(before, after)):
                changes.append((after.signature.mtime_ns if after else 0, event))
        return [event for _, event in sorted(changes, key=itemgetter(0))]


def _difference(before: Sighting | None, after: Sighting | None) -> DiscoveryEvent | None:
    old = before and before.metadata
    new = after and after.metadata
    if new is None:
        return DiscoveryEvent("worker-dropped", old) if old else None
    if old is None:
        return DiscoveryEvent("worker-added", new)
    return DiscoveryEvent("worker-updated", new) if new != old else None


class LocalDiscovery(Discovery):
    """Discovery among the processes of this user on this machine that know the namespace.

    Without a namespace it makes up one of its own. `filter` is for subscribers that bring none.
    Entering it is optional; what is left over in the file system goes when it is left for the last
    time. It can be pickled, and equals any other of its namespace.
    """

    Publisher: TypeAlias = LocalPublisher
    Subscriber: TypeAlias = LocalSubscriber

    def __init__(
        self, namespace: str | None = None, *, filter: PredicateFunction | None = None
    ) -> None:
        self._namespace = f"workerpool-{uuid4().hex}" if namespace is None else namespace
        self._filter = filter
        self._entered = 0

    def __repr__(self) -> str:
        return f"<LocalDiscovery {self._namespace!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LocalDiscovery):
            return NotImplemented
        return self._namespace == other._namespace

    def __hash__(self) -> int:
        return hash((LocalDiscovery, self._namespace))

    def __reduce__(self) -> tuple[Any, ...]:
        return _discovery, (self._namespace, dump_filter(self._filter))

    def __enter__(self) -> Self:
        self._entered += 1
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered -= 1
        if not self._entered:
            with suppress(OSError):
                hub.tidy(Directory(self._namespace))

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    @property
    def namespace(self) -> str:
        return self._namespace

    @property
    def publisher(self) -> LocalPublisher:
        """A new publisher, to be entered before use."""
        return LocalPublisher(self._namespace)

    @property
    def subscriber(self) -> LocalSubscriber:
        return self.subscribe()

    def subscribe(
        self, filter: PredicateFunction | None = None, *, poll_interval: float | None = None
    ) -> LocalSubscriber:
        """A subscriber to the workers that pass `filter`, or else this discovery's own.

        Seconds of `poll_interval` pass between rescans, which find what the system doesn't report.
        Raises `ValueError` if it isn't positive.
        """
        return LocalSubscriber(
            self._namespace,
            filter=self._filter if filter is None else filter,
            poll_interval=poll_interval,
        )


def _discovery(namespace: str, filter: bytes | None) -> LocalDiscovery:
    return LocalDiscovery(namespace, filter=load_filter(filter))


def _subscriber(namespace: str, filter: bytes | None, poll_interval: float) -> LocalSubscriber:
    return LocalSubscriber(namespace, filter=load_filter(filter), poll_interval=poll_interval)
