"""What workers have counted, kept when they are gone."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from uuid import UUID

    from wool.runtime.worker.status import WorkerStatus

COUNTED: Final = ("done", "failed", "refused", "cpu")
"""The fields of a status that only grow."""


class _Seen(NamedTuple):
    slot: int
    status: WorkerStatus
    leaving: bool


class Tally:
    """Adds up by slot what the workers there have counted. The sums never fall."""

    def __init__(self) -> None:
        self._seen: dict[UUID, _Seen] = {}
        self._gone: defaultdict[int, Counter[str]] = defaultdict(Counter)

    def see(self, slot: int, status: WorkerStatus, *, leaving: bool) -> None:
        """How a worker is. `leaving` if it is to end when its tasks have."""
        uid = status.worker.uid
        last = self._seen.get(uid)
        if last is None or status.uptime >= last.status.uptime:  # Answers can overtake each other.
            self._seen[uid] = _Seen(slot, status, leaving or status.draining)

    def settle(self, uid: UUID) -> None:
        """It has ended, and what it ran when it was last seen too, if it was leaving."""
        last = self._seen.pop(uid, None)
        if last is not None:
            self._gone[last.slot].update(_counts(last.status))
            if last.leaving:
                self._gone[last.slot]["done"] += last.status.running

    def sums(self) -> dict[int, Counter[str]]:
        sums = {slot: Counter(counts) for slot, counts in self._gone.items()}
        for slot, status, _ in self._seen.values():
            sums.setdefault(slot, Counter()).update(_counts(status))
        return dict(sorted(sums.items()))


def _counts(status: WorkerStatus) -> dict[str, float]:
    return {field: getattr(status, field) for field in COUNTED}
