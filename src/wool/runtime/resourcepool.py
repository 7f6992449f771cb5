"""Resources that are shared while in use and kept for a while after."""

from __future__ import annotations

import asyncio
import logging
from enum import Enum, auto
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from wool.runtime.typing import Undefined, UndefinedType

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Hashable

T = TypeVar("T")

log = logging.getLogger("wool.resourcepool")


class Stats(NamedTuple):
    total_entries: int
    referenced_entries: int
    pending_cleanup: int


class ResourcePool(Generic[T]):
    """One resource per key, made by `factory(key)` when first asked for.

    `ttl` seconds after its last reference is gone, `finalizer(resource)` ends it, unless it has
    been asked for again; with a `ttl` of 0, as part of the last release. What a finalizer raises
    is logged. Both functions may be async. A finalizer runs in a task, so in a context, of its own.

    Each event loop has its own resources. Those of a closed loop are forgotten: `clear` the pool,
    or use it as a context manager, before the loop ends.
    """

    def __init__(
        self,
        factory: Callable[[Any], T | Awaitable[T]],
        *,
        finalizer: Callable[[T], Awaitable[None] | None] | None = None,
        ttl: float = 0,
    ) -> None:
        self._factory = factory
        self._finalizer = finalizer
        self._ttl = ttl
        self._shelves: dict[asyncio.AbstractEventLoop, _Shelf[T]] = {}

    async def __aenter__(self) -> ResourcePool[T]:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.clear()

    @property
    def stats(self) -> Stats:
        entries = self._all()
        return Stats(
            total_entries=len(entries),
            referenced_entries=sum(entry.references > 0 for entry in entries),
            pending_cleanup=sum(entry.idle for entry in entries),
        )

    @property
    def pending_cleanup(self) -> dict[Hashable, asyncio.TimerHandle]:
        """The timers of the resources that nobody uses, by key."""
        return {entry.key: entry.timer for entry in self._all() if entry.idle and entry.timer}

    def get(self, key: Hashable) -> Resource[T]:
        """A reference to the resource of `key`, for use with `async with`, once."""
        return Resource(self, key)

    async def acquire(self, key: Hashable) -> T:
        """The resource of `key`, with a reference to be given back with `release`."""
        return (self._share(key) or await self._acquire(key)).value

    async def release(self, key: Hashable) -> None:
        """Give a reference back. A key without a resource is ignored.

        Runs to its end even if cancelled. Raises `ValueError` if nobody has a reference.
        """
        entry = self._shelf().entries.get(key)
        if entry is None:
            return
        if entry.references == 0:
            raise ValueError(f"Reference count for key '{key}' is already 0")
        await self._release(entry)

    async def clear(self, key: Hashable | UndefinedType = Undefined) -> None:
        """End the resource of `key`, or all of this event loop, referenced or not.

        One that is still being made ends with its last reference. Runs to its end even if
        cancelled. Raises `KeyError` if there is none for `key`.
        """
        shelf = self._shelf()
        whole = key is Undefined
        entries = [shelf.entries.pop(each) for each in ([*shelf.entries] if whole else [key])]
        endings = {self._end(entry) for entry in entries if entry.phase is _Phase.LIVE}
        await _finish(endings | shelf.endings if whole else endings)

    def _share(self, key: Hashable) -> _Entry[T] | None:
        """The entry of `key`, with one more reference, if its resource is there already."""
        entry = self._shelf().entries.get(key)
        if entry is None or entry.phase is not _Phase.LIVE:
            return None
        entry.references += 1
        return entry

    async def _acquire(self, key: Hashable) -> _Entry[T]:
        shelf = self._shelf()
        while (entry := shelf.entries.get(key)) is not None:
            entry.references += 1
            if not entry.settled.is_set():
                try:
                    await entry.settled.wait()
                except BaseException:
                    await self._release(entry)
                    raise
            if entry.error is not None:
                raise entry.error
            if entry.phase is _Phase.LIVE:
                return entry
        entry = _Entry(key, shelf)
        try:
            made = self._factory(key)
            entry.value = await made if isawaitable(made) else made
            entry.phase = _Phase.LIVE
        except BaseException as exc:
            entry.error = exc if isinstance(exc, Exception) else None
            entry.forget()
            raise
        finally:
            entry.settled.set()
        return entry

    async def _release(self, entry: _Entry[T]) -> None:
        if (ending := self._give_back(entry)) is not None:
            await _finish([ending])

    def _give_back(self, entry: _Entry[T]) -> asyncio.Task[None] | None:
        """Take a reference off. Returns the end of the resource, if that comes now."""
        entry.references -= 1
        if entry.references > 0 or entry.phase is not _Phase.LIVE:
            return None
        shelf = self._shelf()
        if self._ttl > 0 and shelf.entries.get(entry.key) is entry:
            entry.unused_since = shelf.loop.time()
            if entry.timer is None:
                entry.timer = shelf.loop.call_later(self._ttl, self._expire, entry)
            return None
        return self._end(entry)

    def _expire(self, entry: _Entry[T]) -> None:
        """End it, unless it has been used since the timer was set."""
        entry.timer = None
        if entry.references > 0:
            return
        loop = entry.shelf.loop
        end = entry.unused_since + self._ttl
        if loop.time() < end:
            entry.timer = loop.call_at(end, self._expire, entry)
        else:
            self._end(entry)

    def _end(self, entry: _Entry[T]) -> asyncio.Task[None]:
        entry.forget()
        ending = asyncio.get_running_loop().create_task(self._finalize(entry))
        endings = self._shelf().endings
        endings.add(ending)
        ending.add_done_callback(endings.discard)
        return ending

    async def _finalize(self, entry: _Entry[T]) -> None:
        if self._finalizer is None:
            return
        try:
            outcome = self._finalizer(entry.value)
            if isawaitable(outcome):
                await outcome
        except Exception:
            log.warning("Finalizer failed for key %r", entry.key, exc_info=True)

    def _shelf(self) -> _Shelf[T]:
        loop = asyncio.get_running_loop()
        if loop not in self._shelves:
            for dead in [each for each in self._shelves.copy() if each.is_closed()]:
                self._shelves.pop(dead, None)
            self._shelves[loop] = _Shelf(loop)
        return self._shelves[loop]

    def _all(self) -> list[_Entry[T]]:
        shelves = self._shelves.copy().items()
        live = [shelf for loop, shelf in shelves if not loop.is_closed()]
        return [entry for shelf in live for entry in shelf.entries.copy().values()]


class Resource(Generic[T]):
    """A reference to a resource, to be acquired once and released once."""

    __slots__ = ("_entry", "_key", "_phase", "_pool")

    def __init__(self, pool: ResourcePool[T], key: Hashable) -> None:
        self._pool = pool
        self._key = key
        self._phase = _Phase.NEW
        self._entry: _Entry[T] | None = None

    async def __aenter__(self) -> T:
        return await self.acquire()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.release()

    async def acquire(self) -> T:
        if self._phase is not _Phase.NEW:
            raise RuntimeError("Cannot re-acquire a resource that has already been acquired")
        self._phase = _Phase.LIVE
        try:
            pool, key = self._pool, self._key
            self._entry = pool._share(key) or await pool._acquire(key)
        except BaseException:
            self._phase = _Phase.NEW
            raise
        return self._entry.value

    async def release(self) -> None:
        """Give the reference back. Runs to its end even if cancelled."""
        if self._phase is _Phase.OVER:
            raise RuntimeError("Cannot release a resource that has already been released")
        if self._entry is None:
            raise RuntimeError("Cannot release a resource that was not acquired")
        self._phase = _Phase.OVER
        if (ending := self._pool._give_back(self._entry)) is not None:
            await _finish([ending])


class _Phase(Enum):
    NEW = auto()
    LIVE = auto()
    OVER = auto()


class _Shelf(Generic[T]):
    """What an event loop has of a pool."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.entries: dict[Hashable, _Entry[T]] = {}
        self.endings: set[asyncio.Task[None]] = set()


class _Entry(Generic[T]):
    """A resource, or one in the making, on its shelf. Those waiting for it have references too."""

    value: T

    def __init__(self, key: Hashable, shelf: _Shelf[T]) -> None:
        self.key = key
        self.shelf = shelf
        self.phase = _Phase.NEW
        self.settled = asyncio.Event()
        self.error: Exception | None = None
        self.references = 1
        self.unused_since = 0.0
        self.timer: asyncio.TimerHandle | None = None
        shelf.entries[key] = self

    @property
    def idle(self) -> bool:
        """Whether it is kept although nobody uses it."""
        return self.timer is not None and self.references == 0

    def forget(self) -> None:
        self.phase = _Phase.OVER
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.shelf.entries.get(self.key) is self:
            del self.shelf.entries[self.key]


async def _finish(tasks: Collection[asyncio.Task[None]]) -> None:
    """Wait for `tasks` to end. A cancellation meanwhile is raised then."""
    cancellation = None
    while pending := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as exc:
            cancellation = exc
    if cancellation is not None:
        raise cancellation
