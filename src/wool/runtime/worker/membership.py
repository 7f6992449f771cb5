"""Who is admitted to a proxy: (state, event) -> actions. No I/O, no asyncio, no clock.

A worker that discovery speaks of is in exactly one of these places:

    admitted   it gets tasks
    waiting    compatible, but there was no slot for it when it was added
    benched    thrown out for an error, to be tried again; or once compatible and no longer so
    nowhere    never heard of, dropped, or incompatible from the start (`refused` says why)

and moves between them like this:

    added      nowhere, benched -> waiting; the rest: its metadata is refreshed
    updated    benched -> waiting; nowhere: ignored; the rest: its metadata is refreshed
    added or updated, but incompatible
               anywhere but nowhere -> benched, without a time at which it is tried again
    dropped    anywhere -> nowhere
    evict      admitted -> benched, for 1 s the first time, twice as long each time, up to 60 s
    revive     benched, and its time is over -> waiting
    reserve    admitted strangers in excess, newest first -> waiting

After each of these, as long as there is a slot for the first of those waiting, it is admitted. So
nobody waits while there is a slot, and "added" admits at once.

A slot is one of `lease`. As many as there are reserved workers (the pool's own) are kept for them,
also while those are still starting, or benched: strangers share the rest. Reserved workers wait
ahead of strangers, which with a lease of at least their number means that they never wait.

The cost of an event does not grow with the number of workers; only that of `reserve` does.
"""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from dataclasses import dataclass
from heapq import heappop, heappush
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from wool.runtime.worker.version import is_version_compatible, parse_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from uuid import UUID

    from wool.runtime.discovery.base import DiscoveryEvent
    from wool.runtime.worker.metadata import WorkerMetadata

MIN_DELAY: Final = 1.0
MAX_DELAY: Final = 60.0
PROBATION: Final = 60.0
"""How long after its bench a worker must do without an eviction for the delay to start over."""

MAX_REFUSED: Final = 100

MOST_NAMED: Final = 5
"""Workers, of each kind, that are named where it is said why none is admitted."""


@dataclass(frozen=True, slots=True)
class Admit:
    """Connect to a worker and give it tasks."""

    metadata: WorkerMetadata


@dataclass(frozen=True, slots=True)
class Refresh:
    """An admitted worker describes itself anew, maybe at another address."""

    metadata: WorkerMetadata


@dataclass(frozen=True, slots=True)
class Remove:
    """Give a worker no more tasks. `metadata` is what it was admitted or refreshed with."""

    metadata: WorkerMetadata


Action: TypeAlias = Admit | Refresh | Remove


class Benched(NamedTuple):
    """A worker that is tried again at `until`, which is infinity while it is incompatible."""

    metadata: WorkerMetadata
    until: float


class _Strike(NamedTuple):
    delay: float
    until: float


class PeersLike(Protocol):
    """Tells which workers may be called, by the identity they announce."""

    def accepts_peer(self, identity: str | None) -> bool: ...

    def describe_peers(self) -> str: ...


def _named(workers: Iterable[str]) -> list[str]:
    """The first of them, and how many more there are."""
    names = list(workers)
    if len(names) > MOST_NAMED:
        names[MOST_NAMED:] = [f"{len(names) - MOST_NAMED} more"]
    return names


class Membership:
    """The workers of a proxy, of which `lease` (None: any number) are admitted at a time.

    `secure` tells whether the proxy has credentials, `peers` for which workers those are,
    `version` is its own, `reserved` are the workers whose slots nobody else may take.
    """

    def __init__(
        self,
        *,
        lease: int | None = None,
        secure: bool = False,
        peers: PeersLike | None = None,
        version: str,
        reserved: Iterable[UUID] = (),
    ) -> None:
        self._lease = sys.maxsize if lease is None else lease
        self._secure = secure
        self._peers = peers
        self._version_text = version
        self._version = parse_version(version)
        self._reserved = frozenset(reserved)
        self._admitted: dict[UUID, WorkerMetadata] = {}
        self._strangers = 0
        self._waiting: OrderedDict[UUID, WorkerMetadata] = OrderedDict()
        self._benched: dict[UUID, Benched] = {}
        self._revivals: list[tuple[float, UUID]] = []
        self._strikes: dict[UUID, _Strike] = {}
        self._refused: dict[UUID, str] = {}
        self.admitted: Mapping[UUID, WorkerMetadata] = MappingProxyType(self._admitted)
        """In order of admission."""
        self.waiting: Mapping[UUID, WorkerMetadata] = MappingProxyType(self._waiting)
        """In the order in which they will be admitted."""
        self.benched: Mapping[UUID, Benched] = MappingProxyType(self._benched)
        self.refused: Mapping[UUID, str] = MappingProxyType(self._refused)
        """Why incompatible workers are out, for the latest hundred of them."""

    def __repr__(self) -> str:
        lease = "" if self._lease == sys.maxsize else f"/{self._lease}"
        return (
            f"<Membership {len(self._admitted)}{lease} admitted, {len(self._waiting)} waiting, "
            f"{len(self._benched)} benched, {len(self._refused)} refused>"
        )

    def shortcomings(self) -> list[str]:
        """What has become of the workers, for those who lack one, or one with certain tags."""
        tagged = (
            f"{each.address} with tags {sorted(each.tags)}" for each in self.admitted.values()
        )
        waiting = (each.address for each in self.waiting.values())
        benched = (each.metadata.address for each in self.benched.values() if each.until < math.inf)
        missing = len(self._reserved - self.admitted.keys() - self.waiting.keys())
        places = f"waiting for a place, of which there are {self._lease}"
        found = [
            f"{what}: {', '.join(names)}"
            for what, names in (
                ("admitted", _named(tagged)),
                (places, _named(waiting)),
                ("out for an error, to be tried again", _named(benched)),
            )
            if names
        ]
        found += [f"refused: {why}" for why in _named(self.refused.values())]
        if missing:
            found.append(f"{missing} of the pool's own have not come, or have gone")
        return found or ["none has been discovered"]

    def apply(self, event: DiscoveryEvent) -> list[Action]:
        uid = event.metadata.uid
        match event.type:
            case "worker-dropped":
                return self._drop(uid)
            case "worker-updated" if not self._knows(uid):
                return []
            case "worker-added" | "worker-updated":
                return self._consider(event.metadata)
        return []

    def evict(self, uid: UUID, now: float) -> list[Action]:
        """Bench a worker for an error, if it is admitted."""
        if uid not in self._admitted:
            return []
        strike = self._strikes.get(uid)
        delay = MIN_DELAY
        if strike is not None and now < strike.until + PROBATION:
            delay = min(2 * strike.delay, MAX_DELAY)
        removal = self._remove(uid)
        self._strikes[uid] = _Strike(delay, now + delay)
        self._benched[uid] = Benched(removal.metadata, now + delay)
        heappush(self._revivals, (now + delay, uid))
        return [removal, *self._fill()]

    def revive(self, now: float) -> list[Action]:
        """Try the benched workers again whose time is over."""
        actions: list[Action] = []
        while (until := self.next_revival()) is not None and until <= now:
            _, uid = heappop(self._revivals)
            self._enqueue(self._benched.pop(uid).metadata)
            actions += self._fill()
        return actions

    def next_revival(self) -> float | None:
        """When to call `revive` next."""
        while self._revivals:
            until, uid = self._revivals[0]
            if uid in self._benched and self._benched[uid].until == until:
                return until
            heappop(self._revivals)
        return None

    def reserve(self, uids: Iterable[UUID]) -> list[Action]:
        """Keep slots for these workers, and for none of those named before."""
        self._reserved = frozenset(uids)
        strangers = [uid for uid in self._admitted if uid not in self._reserved]
        self._strangers = len(strangers)
        share = max(self._lease - len(self._reserved), 0)
        removals = [self._remove(uid) for uid in strangers[share:]]
        for removal in removals:
            self._enqueue(removal.metadata)
        for uid in [uid for uid in reversed(self._waiting) if uid in self._reserved]:
            self._waiting.move_to_end(uid, last=False)
        return [*removals, *self._fill()]

    def _knows(self, uid: UUID) -> bool:
        return uid in self._admitted or uid in self._waiting or uid in self._benched

    def _consider(self, metadata: WorkerMetadata) -> list[Action]:
        uid = metadata.uid
        if objection := self._objection(metadata):
            return self._refuse(metadata, objection)
        self._refused.pop(uid, None)
        if uid in self._admitted:
            self._admitted[uid] = metadata
            return [Refresh(metadata)]
        if uid in self._waiting:
            self._waiting[uid] = metadata
            return []
        self._benched.pop(uid, None)
        self._enqueue(metadata)
        return self._fill()

    def _objection(self, metadata: WorkerMetadata) -> str | None:
        address = metadata.address
        if metadata.secure and not self._secure:
            return f"{address} is secure, and this proxy has no credentials"
        if self._secure and not metadata.secure:
            return f"{address} is not secure, and this proxy has credentials"
        if self._peers is not None and not self._peers.accepts_peer(metadata.identity):
            return (
                f"{address} announces the identity {metadata.identity!r}, and this proxy calls "
                f"{self._peers.describe_peers()} only"
            )
        if not is_version_compatible(self._version, parse_version(metadata.version)):
            return (
                f"{address} has version {metadata.version!r}, which does not serve "
                f"{self._version_text!r}: it must be of the same major version and not older"
            )
        return None

    def _refuse(self, metadata: WorkerMetadata, reason: str) -> list[Action]:
        uid = metadata.uid
        self._refused.pop(uid, None)
        self._refused[uid] = reason
        if len(self._refused) > MAX_REFUSED:
            del self._refused[next(iter(self._refused))]
        if not self._knows(uid):
            return []
        self._waiting.pop(uid, None)
        removals = [self._remove(uid)] if uid in self._admitted else []
        self._benched[uid] = Benched(metadata, math.inf)
        return [*removals, *self._fill()]

    def _drop(self, uid: UUID) -> list[Action]:
        self._waiting.pop(uid, None)
        self._benched.pop(uid, None)
        self._strikes.pop(uid, None)
        self._refused.pop(uid, None)
        if uid not in self._admitted:
            return []
        return [self._remove(uid), *self._fill()]

    def _remove(self, uid: UUID) -> Remove:
        self._strangers -= uid not in self._reserved
        return Remove(self._admitted.pop(uid))

    def _enqueue(self, metadata: WorkerMetadata) -> None:
        self._waiting[metadata.uid] = metadata
        if metadata.uid in self._reserved:
            self._waiting.move_to_end(metadata.uid, last=False)

    def _fill(self) -> list[Action]:
        actions: list[Action] = []
        while self._waiting and self._has_slot(uid := next(iter(self._waiting))):
            metadata = self._waiting.pop(uid)
            self._admitted[uid] = metadata
            self._strangers += uid not in self._reserved
            actions.append(Admit(metadata))
        return actions

    def _has_slot(self, uid: UUID) -> bool:
        if uid in self._reserved:
            return len(self._admitted) < self._lease
        return self._strangers < self._lease - len(self._reserved)
