from __future__ import annotations

import gc
import math
import time
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from wool.runtime.discovery.base import DiscoveryEvent, DiscoveryEventType
from wool.runtime.worker.membership import (
    MAX_DELAY,
    MAX_REFUSED,
    Action,
    Admit,
    Membership,
    Refresh,
    Remove,
)
from wool.runtime.worker.metadata import WorkerMetadata

if TYPE_CHECKING:
    from collections.abc import Iterable

OURS = "1.2.0"


def worker(
    number: int,
    *,
    address: str | None = None,
    version: str = OURS,
    secure: bool = False,
    tags: Iterable[str] = (),
) -> WorkerMetadata:
    return WorkerMetadata(
        uid=UUID(int=number),
        address=address or f"127.0.0.1:{1000 + number}",
        pid=1000 + number,
        version=version,
        secure=secure,
        tags=frozenset(tags),
    )


def membership(
    lease: int | None = None, *, secure: bool = False, version: str = OURS, reserved: int = 0
) -> Membership:
    return Membership(
        lease=lease, secure=secure, version=version, reserved=[UUID(int=i) for i in range(reserved)]
    )


def added(metadata: WorkerMetadata) -> DiscoveryEvent:
    return DiscoveryEvent("worker-added", metadata)


def updated(metadata: WorkerMetadata) -> DiscoveryEvent:
    return DiscoveryEvent("worker-updated", metadata)


def dropped(metadata: WorkerMetadata) -> DiscoveryEvent:
    return DiscoveryEvent("worker-dropped", metadata)


def numbers(uids: Iterable[UUID]) -> list[int]:
    return [uid.int for uid in uids]


# The lease


def test_lease_two_of_three_added() -> None:
    """Lease case 16."""
    members = membership(2)
    assert members.apply(added(worker(1))) == [Admit(worker(1))]
    assert members.apply(added(worker(2))) == [Admit(worker(2))]
    assert members.apply(added(worker(3))) == []
    assert numbers(members.admitted) == [1, 2]
    assert numbers(members.waiting) == [3]


def test_lease_none_admits_all() -> None:
    """Lease case 17."""
    members = membership(None)
    for i in range(3):
        assert members.apply(added(worker(i))) == [Admit(worker(i))]
    assert numbers(members.admitted) == [0, 1, 2]


def test_lease_full_update_of_admitted_is_applied() -> None:
    """Lease case 18, A42."""
    members = membership(1)
    members.apply(added(worker(1)))
    members.apply(added(worker(2)))
    moved = worker(1, address="127.0.0.1:9", tags=["new"])
    assert members.apply(updated(moved)) == [Refresh(moved)]
    assert dict(members.admitted) == {moved.uid: moved}


def test_lease_full_drop_then_add() -> None:
    """Lease case 19."""
    members = membership(1)
    members.apply(added(worker(1)))
    assert members.apply(dropped(worker(1))) == [Remove(worker(1))]
    assert members.apply(added(worker(2))) == [Admit(worker(2))]


def test_lease_full_update_of_refused_does_not_admit() -> None:
    """Lease case 20."""
    members = membership(1)
    members.apply(added(worker(1)))
    members.apply(added(worker(2)))
    moved = worker(2, address="127.0.0.1:9")
    assert members.apply(updated(moved)) == []
    assert numbers(members.admitted) == [1]
    assert members.waiting[moved.uid].address == "127.0.0.1:9"


def test_lease_freed_slot_goes_to_longest_waiting() -> None:
    members = membership(1)
    for i in range(4):
        members.apply(added(worker(i)))
    members.apply(dropped(worker(1)))
    assert members.apply(dropped(worker(0))) == [Remove(worker(0)), Admit(worker(2))]
    assert numbers(members.waiting) == [3]


def test_added_again_takes_no_second_slot() -> None:
    """A42."""
    members = membership(2)
    members.apply(added(worker(1)))
    again = worker(1, address="127.0.0.1:9")
    assert members.apply(added(again)) == [Refresh(again)]
    assert members.apply(added(worker(2))) == [Admit(worker(2))]
    assert numbers(members.admitted) == [1, 2]


def test_added_again_while_waiting_keeps_place() -> None:
    members = membership(1)
    for i in range(3):
        members.apply(added(worker(i)))
    members.apply(added(worker(1, address="127.0.0.1:9")))
    assert members.apply(dropped(worker(0))) == [
        Remove(worker(0)),
        Admit(worker(1, address="127.0.0.1:9")),
    ]


def test_dropped_matches_by_uid() -> None:
    """A42: what is removed is what was admitted, whatever the event says of it."""
    members = membership()
    members.apply(added(worker(1)))
    members.apply(updated(worker(1, address="127.0.0.1:9")))
    assert members.apply(dropped(worker(1, tags=["x"]))) == [
        Remove(worker(1, address="127.0.0.1:9"))
    ]
    assert not members.admitted


@pytest.mark.parametrize("event", [dropped(worker(7)), updated(worker(7))])
def test_event_for_unknown_worker_is_ignored(event: DiscoveryEvent) -> None:
    members = membership()
    assert members.apply(event) == []
    assert not members.admitted
    assert not members.waiting


def test_event_of_unknown_type_is_ignored() -> None:
    assert membership().apply(DiscoveryEvent("worker-what", worker(1))) == []  # type: ignore[arg-type]


# Compatibility (A43)


@pytest.mark.parametrize(
    ("metadata", "secure", "reason"),
    [
        (worker(1, secure=True), False, "is secure, and this proxy has no credentials"),
        (worker(1), True, "is not secure, and this proxy has credentials"),
        (worker(1, version="1.1.9"), False, "has version '1.1.9', which does not serve '1.2.0'"),
        (worker(1, version="2.0"), False, "has version '2.0', which does not serve '1.2.0'"),
        (worker(1, version="what"), False, "has version 'what', which does not serve '1.2.0'"),
    ],
)
def test_added_incompatible_is_refused(metadata: WorkerMetadata, secure: bool, reason: str) -> None:
    """A43."""
    members = membership(secure=secure)
    assert members.apply(added(metadata)) == []
    assert not members.admitted
    assert not members.waiting
    assert reason in members.refused[metadata.uid]
    assert metadata.address in members.refused[metadata.uid]


def test_added_with_own_version_unparsable_is_refused() -> None:
    """A43."""
    members = membership(version="what")
    assert members.apply(added(worker(1))) == []
    assert "does not serve 'what'" in members.refused[UUID(int=1)]


def test_refused_takes_no_slot() -> None:
    """A43."""
    members = membership(1)
    members.apply(added(worker(1, secure=True)))
    assert members.apply(added(worker(2))) == [Admit(worker(2))]


def test_refused_is_forgotten_once_compatible_or_dropped() -> None:
    members = membership()
    for i in (1, 2):
        members.apply(added(worker(i, secure=True)))
    members.apply(dropped(worker(1)))
    assert members.apply(added(worker(2))) == [Admit(worker(2))]
    assert not members.refused


def test_refused_from_the_start_is_not_admitted_by_an_update() -> None:
    members = membership()
    members.apply(added(worker(1, secure=True)))
    assert members.apply(updated(worker(1))) == []
    assert not members.admitted


def test_refused_is_bounded() -> None:
    members = membership()
    for i in range(MAX_REFUSED + 5):
        members.apply(added(worker(i, version="9.0")))
    assert numbers(members.refused) == list(range(5, MAX_REFUSED + 5))


def test_update_that_makes_incompatible_evicts_and_back_readmits() -> None:
    """A43: flips evict, and admit again."""
    members = membership(1)
    members.apply(added(worker(1)))
    members.apply(added(worker(2)))
    assert members.apply(updated(worker(1, version="1.1"))) == [
        Remove(worker(1)),
        Admit(worker(2)),
    ]
    assert members.benched[UUID(int=1)].until == math.inf
    assert UUID(int=1) in members.refused
    assert members.next_revival() is None
    assert members.apply(updated(worker(1))) == []
    assert numbers(members.waiting) == [1]
    assert not members.refused
    assert members.apply(dropped(worker(2))) == [Remove(worker(2)), Admit(worker(1))]


def test_update_that_makes_waiting_incompatible() -> None:
    members = membership(1)
    members.apply(added(worker(1)))
    members.apply(added(worker(2)))
    assert members.apply(updated(worker(2, secure=True))) == []
    assert not members.waiting
    assert members.apply(dropped(worker(1))) == [Remove(worker(1))]
    assert members.apply(updated(worker(2))) == [Admit(worker(2))]


# The bench (A09)


def test_evicted_is_tried_again_after_a_delay() -> None:
    """A09."""
    members = membership()
    members.apply(added(worker(1)))
    assert members.evict(UUID(int=1), 10.0) == [Remove(worker(1))]
    assert members.next_revival() == 11.0
    assert members.revive(10.9) == []
    assert members.revive(11.0) == [Admit(worker(1))]
    assert members.next_revival() is None


@pytest.mark.parametrize("event", [added, updated])
def test_evicted_is_tried_again_when_spoken_of(event: type) -> None:
    """A09."""
    members = membership()
    members.apply(added(worker(1)))
    members.evict(UUID(int=1), 0.0)
    moved = worker(1, address="127.0.0.1:9")
    assert members.apply(event(moved)) == [Admit(moved)]
    assert members.revive(100.0) == []


def test_evicted_frees_its_slot() -> None:
    members = membership(1)
    members.apply(added(worker(1)))
    members.apply(added(worker(2)))
    assert members.evict(UUID(int=1), 0.0) == [Remove(worker(1)), Admit(worker(2))]
    assert members.revive(1.0) == []
    assert numbers(members.waiting) == [1]
    assert not members.benched


def test_evicted_and_spoken_of_without_a_slot_waits() -> None:
    members = membership(1)
    members.apply(added(worker(1)))
    members.apply(added(worker(2)))
    members.evict(UUID(int=1), 0.0)
    assert members.apply(updated(worker(1))) == []
    assert numbers(members.waiting) == [1]


def test_evicted_is_forgotten_when_dropped() -> None:
    members = membership()
    members.apply(added(worker(1)))
    members.evict(UUID(int=1), 0.0)
    assert members.apply(dropped(worker(1))) == []
    assert members.next_revival() is None
    assert members.revive(100.0) == []


def test_evict_of_not_admitted_is_ignored() -> None:
    members = membership(1)
    members.apply(added(worker(1)))
    members.apply(added(worker(2)))
    assert members.evict(UUID(int=2), 0.0) == []
    assert members.evict(UUID(int=3), 0.0) == []
    assert numbers(members.waiting) == [2]


def test_bench_delay_doubles_up_to_a_minute() -> None:
    members = membership()
    members.apply(added(worker(1)))
    now, delays = 0.0, []
    for _ in range(9):
        members.evict(UUID(int=1), now)
        until = members.next_revival()
        assert until is not None
        delays.append(until - now)
        now = until
        members.revive(now)
    assert delays == [1, 2, 4, 8, 16, 32, MAX_DELAY, MAX_DELAY, MAX_DELAY]


def test_bench_delay_starts_over_after_a_minute_without_eviction() -> None:
    members = membership()
    members.apply(added(worker(1)))
    for now in (0.0, 1.0):
        members.evict(UUID(int=1), now)
        members.revive(now + MAX_DELAY)
    members.evict(UUID(int=1), 1.0 + 2.0 + 59.9)
    assert members.next_revival() == pytest.approx(1.0 + 2.0 + 59.9 + 4.0)
    members.revive(70.0)
    members.evict(UUID(int=1), 1.0 + 2.0 + 59.9 + 4.0 + 60.0)
    assert members.next_revival() == pytest.approx(1.0 + 2.0 + 59.9 + 4.0 + 60.0 + 1.0)


def test_bench_delay_starts_over_after_a_drop() -> None:
    members = membership()
    for _ in range(2):
        members.apply(added(worker(1)))
        members.evict(UUID(int=1), 5.0)
        assert members.next_revival() == 6.0
        members.apply(dropped(worker(1)))


def test_bench_lasts_as_long_as_the_latest_eviction_says() -> None:
    members = membership()
    members.apply(added(worker(1)))
    members.evict(UUID(int=1), 0.0)
    members.apply(updated(worker(1)))
    members.evict(UUID(int=1), 0.5)
    assert members.revive(1.0) == []
    assert members.next_revival() == 2.5


def test_revive_in_order_of_time() -> None:
    members = membership(1)
    for i in (1, 2):
        members.apply(added(worker(i)))
    members.evict(UUID(int=1), 1.0)
    members.evict(UUID(int=2), 0.5)
    assert members.revive(5.0) == [Admit(worker(2))]
    assert numbers(members.waiting) == [1]


# The pool's own workers


def test_reserved_slots_are_kept_from_strangers() -> None:
    members = membership(6, reserved=2)
    for i in range(10, 20):
        members.apply(added(worker(i)))
    assert numbers(members.admitted) == [10, 11, 12, 13]
    assert members.apply(added(worker(0))) == [Admit(worker(0))]
    assert members.apply(added(worker(1))) == [Admit(worker(1))]
    assert len(members.admitted) == 6


def test_reserved_slot_is_kept_while_its_worker_is_gone() -> None:
    members = membership(2, reserved=1)
    for i in (0, 10, 11):
        members.apply(added(worker(i)))
    assert members.evict(UUID(int=0), 0.0) == [Remove(worker(0))]
    assert members.revive(1.0) == [Admit(worker(0))]
    assert members.apply(dropped(worker(0))) == [Remove(worker(0))]
    assert members.apply(added(worker(0))) == [Admit(worker(0))]


def test_reserved_must_be_compatible() -> None:
    members = membership(2, reserved=1)
    assert members.apply(added(worker(0, secure=True))) == []


def test_reserve_late_sends_newest_strangers_to_wait() -> None:
    members = membership(3)
    for i in (10, 11, 12, 0, 1):
        members.apply(added(worker(i)))
    assert members.reserve([UUID(int=0), UUID(int=1)]) == [
        Remove(worker(11)),
        Remove(worker(12)),
        Admit(worker(0)),
        Admit(worker(1)),
    ]
    assert numbers(members.admitted) == [10, 0, 1]
    assert numbers(members.waiting) == [11, 12]


def test_reserve_late_passes_waiting_strangers() -> None:
    members = membership(1)
    for i in (10, 11, 0):
        members.apply(added(worker(i)))
    assert members.reserve([UUID(int=0)]) == [Remove(worker(10)), Admit(worker(0))]
    assert numbers(members.waiting) == [11, 10]


def test_reserve_keeps_slots_for_workers_to_come() -> None:
    members = membership(2)
    for i in (10, 11):
        members.apply(added(worker(i)))
    assert members.reserve([UUID(int=0)]) == [Remove(worker(11))]
    assert members.apply(added(worker(0))) == [Admit(worker(0))]


def test_reserve_of_admitted_moves_nobody() -> None:
    members = membership(2)
    for i in (0, 10):
        members.apply(added(worker(i)))
    assert members.reserve([UUID(int=0)]) == []


def test_reserve_replaces_the_former() -> None:
    members = membership(2, reserved=1)
    for i in (0, 10, 11):
        members.apply(added(worker(i)))
    assert members.reserve([UUID(int=1)]) == [Remove(worker(10))]
    assert members.apply(dropped(worker(0))) == [Remove(worker(0)), Admit(worker(11))]
    assert members.reserve([]) == [Admit(worker(10))]


def test_reserve_more_than_the_lease_admits_no_stranger() -> None:
    members = membership(1, reserved=2)
    for i in (10, 0, 1):
        members.apply(added(worker(i)))
    assert numbers(members.admitted) == [0]
    assert members.apply(dropped(worker(0))) == [Remove(worker(0)), Admit(worker(1))]


def test_reserve_without_lease() -> None:
    members = membership(None, reserved=1)
    for i in (10, 11):
        members.apply(added(worker(i)))
    assert members.reserve([UUID(int=0)]) == []
    assert numbers(members.admitted) == [10, 11]


# Others


def test_views_are_read_only() -> None:
    members = membership()
    with pytest.raises(TypeError):
        members.admitted[UUID(int=1)] = worker(1)  # type: ignore[index]


def test_shortcomings() -> None:
    assert membership().shortcomings() == ["none has been discovered"]
    members = membership(4, reserved=2)
    assert members.shortcomings() == ["2 of the pool's own have not come, or have gone"]
    for number in (0, 2, 3, 4):
        members.apply(added(worker(number, tags=["b", "a"])))
    members.apply(added(worker(5, secure=True)))
    members.apply(updated(worker(3, secure=True)))
    members.evict(UUID(int=0), 0)
    assert members.shortcomings() == [
        "admitted: 127.0.0.1:1002 with tags ['a', 'b'], 127.0.0.1:1004 with tags ['a', 'b']",
        "out for an error, to be tried again: 127.0.0.1:1000",
        "refused: 127.0.0.1:1005 is secure, and this proxy has no credentials",
        "refused: 127.0.0.1:1003 is secure, and this proxy has no credentials",
        "2 of the pool's own have not come, or have gone",
    ]


def test_shortcomings_when_there_is_no_place() -> None:
    members = membership(1, reserved=1)
    for number in range(2, 10):
        members.apply(added(worker(number)))
    assert members.shortcomings() == [
        "waiting for a place, of which there are 1: "
        + "".join(f"127.0.0.1:{1000 + number}, " for number in range(2, 7))
        + "3 more",
        "1 of the pool's own have not come, or have gone",
    ]


def test_repr() -> None:
    members = membership(1)
    for i in range(3):
        members.apply(added(worker(i)))
    members.apply(added(worker(4, secure=True)))
    assert repr(members) == "<Membership 1/1 admitted, 2 waiting, 0 benched, 1 refused>"
    assert repr(membership()).startswith("<Membership 0 admitted")


def churn_cost(workers: int) -> float:
    """Seconds per event, at best, with so many workers admitted, and as many waiting."""
    members = membership(workers)
    for i in range(2 * workers):
        members.apply(added(worker(i)))
    costs = []
    gc.disable()
    try:
        for turn in range(20):
            crowd = [*members.admitted.values()][:100]
            start = time.perf_counter()
            for leaves, fails in zip(crowd[::2], crowd[1::2], strict=True):
                members.apply(dropped(leaves))
                members.apply(added(leaves))
                members.evict(fails.uid, 1000.0 * turn)
                members.next_revival()
                members.revive(1000.0 * turn + 100)
            costs.append((time.perf_counter() - start) / 250)
    finally:
        gc.enable()
    return min(costs)


def test_cost_of_an_event_does_not_grow_with_the_number_of_workers() -> None:
    assert churn_cost(10_000) < 10 * churn_cost(100)


class MembershipMachine(RuleBasedStateMachine):
    """Any events, evictions and reservations in any order, among eight workers."""

    uids = st.integers(0, 7).map(lambda number: UUID(int=number))
    described = st.builds(
        worker,
        st.integers(0, 7),
        address=st.sampled_from(["a:1", "b:2"]),
        version=st.sampled_from([*[OURS] * 6, "1.3", "1.1", "2.0", "what"]),
        secure=st.sampled_from([*[False] * 8, True]),
        tags=st.sampled_from([(), ("x",)]),
    )

    @initialize(lease=st.none() | st.integers(1, 5), reserved=st.sets(uids, max_size=3))
    def start(self, lease: int | None, reserved: set[UUID]) -> None:
        self.lease = math.inf if lease is None else lease
        self.reserved = reserved
        self.members = Membership(lease=lease, version=OURS, reserved=reserved)
        self.model: dict[UUID, WorkerMetadata] = {}
        self.strikes: dict[UUID, tuple[float, float]] = {}
        self.now = 0.0

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            uid = action.metadata.uid
            match action:
                case Admit():
                    assert uid not in self.model
                    self.model[uid] = action.metadata
                case Refresh():
                    assert uid in self.model
                    self.model[uid] = action.metadata
                case Remove():
                    assert self.model.pop(uid) == action.metadata

    def speak(self, type: DiscoveryEventType, metadata: WorkerMetadata) -> None:
        queue = list(self.members.waiting)
        actions = self.members.apply(DiscoveryEvent(type, metadata))
        self.carry_out(actions)
        self.check_fair(queue)

    def check_fair(self, queue: list[UUID]) -> None:
        """Of the strangers that waited and still could, the oldest have been admitted."""
        strangers = [uid for uid in queue if uid not in self.reserved]
        still = [uid for uid in strangers if uid in self.model or uid in self.members.waiting]
        came_in = [uid in self.model for uid in still]
        assert came_in == sorted(came_in, reverse=True)

    @rule(metadata=described)
    def add(self, metadata: WorkerMetadata) -> None:
        had_slot = self.has_slot(metadata.uid)
        self.speak("worker-added", metadata)
        if compatible(metadata) and had_slot:
            assert self.model[metadata.uid] == metadata

    @rule(uids=st.permutations(range(8)), count=st.integers(2, 8))
    def crowd_in(self, uids: list[int], count: int) -> None:
        for uid in uids[:count]:
            self.add(worker(uid))

    @rule(metadata=described)
    def update(self, metadata: WorkerMetadata) -> None:
        uid = metadata.uid
        waited, admitted = uid in self.members.waiting, uid in self.model
        benched, had_slot = uid in self.members.benched, self.has_slot(uid)
        self.speak("worker-updated", metadata)
        if admitted or (benched and had_slot):
            assert self.model.get(uid) == (metadata if compatible(metadata) else None)
        else:
            assert uid not in self.model
        if waited:
            assert self.members.waiting.get(uid) == (metadata if compatible(metadata) else None)

    @rule(metadata=described)
    def drop(self, metadata: WorkerMetadata) -> None:
        uid = metadata.uid
        self.speak("worker-dropped", metadata)
        self.strikes.pop(uid, None)
        for place in (self.members.admitted, self.members.waiting, self.members.benched):
            assert uid not in place
        assert uid not in self.members.refused

    @rule(uid=uids)
    def evict(self, uid: UUID) -> None:
        queue = list(self.members.waiting)
        admitted = uid in self.model
        self.carry_out(self.members.evict(uid, self.now))
        self.check_fair(queue)
        if admitted:
            delay, until = self.strikes.get(uid, (0.5, math.inf))
            delay = 1.0 if self.now >= until + 60 else min(60.0, 2 * delay)
            self.strikes[uid] = (delay, self.now + delay)
            assert self.members.benched[uid].until == self.now + delay

    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0, 100.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        queue = list(self.members.waiting)
        self.carry_out(self.members.revive(self.now))
        self.check_fair(queue)
        assert all(benched.until > self.now for benched in self.members.benched.values())

    @rule(uids=st.sets(uids, max_size=3))
    def reserve(self, uids: set[UUID]) -> None:
        strangers = [uid for uid in self.model if uid not in uids]
        self.reserved = uids
        self.carry_out(self.members.reserve(uids))
        kept = [uid in self.model for uid in strangers]
        assert kept == sorted(kept, reverse=True)

    def has_slot(self, uid: UUID) -> bool:
        if uid in self.reserved:
            return len(self.model) < self.lease
        return self.strangers() < self.lease - len(self.reserved)

    def strangers(self) -> int:
        return len(self.model.keys() - self.reserved)

    @invariant()
    def actions_give_admitted(self) -> None:
        assert list(self.members.admitted.items()) == list(self.model.items())

    @invariant()
    def lease_holds(self) -> None:
        assert len(self.model) <= self.lease
        assert self.strangers() <= max(self.lease - len(self.reserved), 0)

    @invariant()
    def each_worker_is_in_one_place(self) -> None:
        places = (self.members.admitted, self.members.waiting, self.members.benched)
        assert len(set().union(*places)) == sum(map(len, places))

    @invariant()
    def nobody_waits_while_there_is_a_slot(self) -> None:
        assert not any(self.has_slot(uid) for uid in self.members.waiting)

    @invariant()
    def reserved_wait_only_for_each_other(self) -> None:
        if len(self.reserved) <= self.lease:
            assert not self.reserved & self.members.waiting.keys()

    @invariant()
    def only_compatible_ones_are_in(self) -> None:
        assert all(map(compatible, self.model.values()))
        assert all(map(compatible, self.members.waiting.values()))
        for benched in self.members.benched.values():
            assert compatible(benched.metadata) is (benched.until < math.inf)

    @invariant()
    def next_revival_is_the_first(self) -> None:
        first = min((each.until for each in self.members.benched.values()), default=math.inf)
        assert self.members.next_revival() == (None if first == math.inf else first)


def compatible(metadata: WorkerMetadata) -> bool:
    return metadata.version in (OURS, "1.3") and not metadata.secure


TestMembershipMachine = MembershipMachine.TestCase
TestMembershipMachine.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, print_blob=True
)
