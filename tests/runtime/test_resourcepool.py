from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import eventually
from wool.runtime.resourcepool import Resource, ResourcePool, Stats

if TYPE_CHECKING:
    from collections.abc import Coroutine, Hashable

KEPT = 1000.0
"""A TTL longer than any test."""


class Thing:
    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.endings = 0


class Workshop:
    """Makes and ends things, each at a gate that a test may close."""

    def __init__(self) -> None:
        self.made: list[Thing] = []
        self.error: Exception | None = None
        self.making, self.ending = asyncio.Event(), asyncio.Event()
        self.make_gate, self.end_gate = asyncio.Event(), asyncio.Event()
        self.make_gate.set()
        self.end_gate.set()

    async def make(self, key: Hashable) -> Thing:
        self.making.set()
        await self.make_gate.wait()
        if self.error is not None:
            raise self.error
        self.made.append(Thing(key))
        return self.made[-1]

    async def end(self, thing: Thing) -> None:
        self.ending.set()
        await self.end_gate.wait()
        thing.endings += 1

    def pool(self, ttl: float = 0) -> ResourcePool[Thing]:
        return ResourcePool(self.make, finalizer=self.end, ttl=ttl)


@pytest.fixture
async def workshop() -> Workshop:
    return Workshop()


def started(*coroutines: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(coroutine) for coroutine in coroutines]


async def use(pool: ResourcePool[Thing], key: Hashable = "k") -> Thing:
    async with pool.get(key) as thing:
        return thing


# References and the end


async def test_get_makes_once_and_ends_with_the_last_release(workshop: Workshop) -> None:
    pool = workshop.pool()
    async with pool.get("k") as first:
        async with pool.get("k") as second:
            assert first is second
        assert first.endings == 0
        assert pool.stats == Stats(1, 1, 0)
    assert [thing.endings for thing in workshop.made] == [1]
    assert pool.stats == Stats(0, 0, 0)


async def test_keys_are_independent(workshop: Workshop) -> None:
    pool = workshop.pool()
    async with pool.get("a") as a, pool.get(None) as b:
        assert (a.key, b.key) == ("a", None)
        assert pool.stats == Stats(2, 2, 0)


async def test_sync_factory_and_finalizer() -> None:
    ended: list[str] = []
    pool = ResourcePool(lambda key: f"<{key}>", finalizer=ended.append)
    async with pool.get("k") as resource:
        assert resource == "<k>"
        assert not ended
    assert ended == ["<k>"]


async def test_no_finalizer() -> None:
    pool = ResourcePool(str)
    async with pool.get(1) as resource:
        assert resource == "1"
    assert pool.stats.total_entries == 0


@pytest.mark.parametrize("falsy", [None, 0, "", (), False])
async def test_falsy_resource_is_released(falsy: object) -> None:
    """A.8(5)."""
    ended: list[object] = []
    pool = ResourcePool(lambda key: falsy, finalizer=ended.append)
    async with pool.get("k") as resource:
        assert resource is falsy
    assert ended == [falsy]
    assert pool.stats == Stats(0, 0, 0)


async def test_acquire_and_release_by_key(workshop: Workshop) -> None:
    pool = workshop.pool()
    thing = await pool.acquire("k")
    assert await pool.acquire("k") is thing
    await pool.release("k")
    assert thing.endings == 0
    await pool.release("k")
    assert thing.endings == 1


async def test_release_of_unknown_key_is_silent(workshop: Workshop) -> None:
    await workshop.pool().release("k")


async def test_release_below_zero(workshop: Workshop) -> None:
    pool = workshop.pool(KEPT)
    await use(pool)
    with pytest.raises(ValueError, match="Reference count for key 'k' is already 0"):
        await pool.release("k")


async def test_failing_finalizer_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(resource: str) -> None:
        raise ValueError("no")

    pool = ResourcePool(str, finalizer=fail)
    with caplog.at_level(logging.WARNING, "wool.resourcepool"):
        async with pool.get("k"):
            pass
    assert pool.stats == Stats(0, 0, 0)
    assert "Finalizer failed for key 'k'" in caplog.text


async def test_pool_as_context_manager_clears(workshop: Workshop) -> None:
    async with workshop.pool(KEPT) as pool:
        await use(pool)
    assert workshop.made[0].endings == 1


# The time to live


async def test_ttl_keeps_and_then_ends(workshop: Workshop) -> None:
    pool = workshop.pool(0.01)
    thing = await use(pool)
    assert thing.endings == 0
    assert pool.stats == Stats(1, 0, 1)
    await eventually(lambda: thing.endings)
    assert pool.stats == Stats(0, 0, 0)


async def test_ttl_counts_from_the_last_release(workshop: Workshop) -> None:
    ttl = 0.05
    pool = workshop.pool(ttl)
    time = asyncio.get_running_loop().time
    thing = await use(pool)
    over = time() + 2 * ttl
    async with pool.get("k") as again:
        assert again is thing
        assert pool.pending_cleanup == {}
        await eventually(lambda: time() > over)
        assert pool.stats == Stats(1, 1, 0)
        released = time()
    assert pool.pending_cleanup.keys() == {"k"}
    await eventually(lambda: thing.endings)
    assert time() >= released + ttl
    assert pool.stats == Stats(0, 0, 0)


async def test_ttl_counts_from_a_release_before_the_timer(workshop: Workshop) -> None:
    ttl = 0.2
    pool = workshop.pool(ttl)
    time = asyncio.get_running_loop().time
    half = time() + ttl / 2
    await use(pool)
    await eventually(lambda: time() > half)
    released = time()
    thing = await use(pool)
    await eventually(lambda: thing.endings)
    assert time() >= released + ttl


async def test_ttl_over_makes_anew_while_the_former_ends(workshop: Workshop) -> None:
    pool = workshop.pool(0.001)
    workshop.end_gate.clear()
    former = await use(pool)
    await workshop.ending.wait()
    async with pool.get("k") as thing:
        assert thing is not former
        workshop.end_gate.set()
    await pool.clear()
    assert [each.endings for each in workshop.made] == [1, 1]


# One maker at a time


async def test_concurrent_gets_make_once(workshop: Workshop) -> None:
    pool = workshop.pool()
    workshop.make_gate.clear()
    users = started(*(use(pool) for _ in range(10)))
    await workshop.making.wait()
    workshop.make_gate.set()
    assert len(set(await asyncio.gather(*users))) == 1
    assert [thing.endings for thing in workshop.made] == [1]


async def test_failed_making_fails_all_who_wait_and_leaves_nothing(workshop: Workshop) -> None:
    pool = workshop.pool(KEPT)
    workshop.error = ValueError("no")
    results = await asyncio.gather(*(use(pool) for _ in range(3)), return_exceptions=True)
    assert results == [workshop.error] * 3
    assert pool.stats == Stats(0, 0, 0)
    workshop.error = None
    await use(pool)
    await pool.clear()


async def test_cancelled_maker_is_replaced_by_one_who_waits(workshop: Workshop) -> None:
    pool = workshop.pool()
    workshop.make_gate.clear()
    maker, *others = started(*(use(pool) for _ in range(3)))
    await workshop.making.wait()
    maker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await maker
    workshop.make_gate.set()
    first, second = await asyncio.gather(*others)
    assert first is second
    assert first.endings == 1
    assert pool.stats == Stats(0, 0, 0)


async def test_cancelled_waiter_leaves_no_reference(workshop: Workshop) -> None:
    pool = workshop.pool(KEPT)
    workshop.make_gate.clear()
    maker, waiter = started(use(pool), use(pool))
    await workshop.making.wait()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    workshop.make_gate.set()
    await maker
    assert pool.stats == Stats(1, 0, 1)
    await pool.clear()


async def test_cancelled_waiter_may_be_the_last(workshop: Workshop) -> None:
    """It is cancelled when the resource is there, and the others are done before it resumes."""
    pool = workshop.pool()
    workshop.make_gate.clear()

    async def make_then_cancel() -> None:
        async with pool.get("k"):
            waiter.cancel()

    maker, waiter = started(make_then_cancel(), use(pool))
    await workshop.making.wait()
    workshop.make_gate.set()
    await maker
    assert [thing.endings for thing in workshop.made] == [0]
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert [thing.endings for thing in workshop.made] == [1]
    assert pool.stats == Stats(0, 0, 0)


# Cancellation


@pytest.mark.parametrize("cancels", [1, 3])
async def test_release_runs_to_its_end_when_cancelled(workshop: Workshop, cancels: int) -> None:
    """A18."""
    pool = workshop.pool()
    workshop.end_gate.clear()
    [user] = started(use(pool))
    await workshop.ending.wait()
    assert pool.stats == Stats(0, 0, 0)
    for _ in range(cancels):
        user.cancel()
        await asyncio.wait([user], timeout=0)
    assert not user.done()
    workshop.end_gate.set()
    with pytest.raises(asyncio.CancelledError):
        await user
    assert workshop.made[0].endings == 1


async def test_release_runs_to_its_end_with_a_cancellation_pending(workshop: Workshop) -> None:
    """A18: the cancellation that ends the body doesn't pre-empt the release."""
    pool = workshop.pool()

    async def cancel_oneself() -> None:
        async with pool.get("k"):
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    [user] = started(cancel_oneself())
    with pytest.raises(asyncio.CancelledError):
        await user
    assert workshop.made[0].endings == 1
    assert pool.stats == Stats(0, 0, 0)


async def test_release_with_a_cancelled_body_gives_the_reference_back(workshop: Workshop) -> None:
    """A18."""
    pool = workshop.pool(KEPT)
    inside = asyncio.Event()

    async def stay() -> None:
        async with pool.get("k"):
            inside.set()
            await asyncio.Event().wait()

    [user] = started(stay())
    await inside.wait()
    user.cancel()
    with pytest.raises(asyncio.CancelledError):
        await user
    assert pool.stats == Stats(1, 0, 1)
    await pool.clear()


async def test_clear_runs_to_its_end_when_cancelled(workshop: Workshop) -> None:
    pool = workshop.pool(KEPT)
    await asyncio.gather(use(pool, "a"), use(pool, "b"))
    workshop.end_gate.clear()
    [clearing] = started(pool.clear())
    await workshop.ending.wait()
    clearing.cancel()
    await asyncio.wait([clearing], timeout=0)
    workshop.end_gate.set()
    with pytest.raises(asyncio.CancelledError):
        await clearing
    assert [thing.endings for thing in workshop.made] == [1, 1]


# Clearing


async def test_clear_ends_all_referenced_or_not(workshop: Workshop) -> None:
    pool = workshop.pool(KEPT)
    await use(pool, "idle")
    resource = pool.get("used")
    await resource.acquire()
    await pool.clear()
    assert [thing.endings for thing in workshop.made] == [1, 1]
    await resource.release()
    assert [thing.endings for thing in workshop.made] == [1, 1]
    assert pool.stats == Stats(0, 0, 0)


async def test_clear_of_a_key_leaves_the_others(workshop: Workshop) -> None:
    pool = workshop.pool(KEPT)
    await asyncio.gather(use(pool, None), use(pool, "b"))
    await pool.clear(None)
    assert {thing.key: thing.endings for thing in workshop.made} == {None: 1, "b": 0}
    await pool.clear()


async def test_clear_of_unknown_key(workshop: Workshop) -> None:
    with pytest.raises(KeyError):
        await workshop.pool().clear("k")


async def test_clear_waits_for_what_is_ending(workshop: Workshop) -> None:
    pool = workshop.pool(0.001)
    workshop.end_gate.clear()
    thing = await use(pool)
    await workshop.ending.wait()
    [clearing] = started(pool.clear())
    await asyncio.wait([clearing], timeout=0)
    assert not clearing.done()
    workshop.end_gate.set()
    await clearing
    assert thing.endings == 1


async def test_clear_while_making_ends_with_the_last_reference(workshop: Workshop) -> None:
    pool = workshop.pool(KEPT)
    workshop.make_gate.clear()
    users = started(use(pool), use(pool))
    await workshop.making.wait()
    await pool.clear()
    assert pool.stats == Stats(0, 0, 0)
    workshop.make_gate.set()
    first, second = await asyncio.gather(*users)
    assert first is second
    assert first.endings == 1


async def test_clear_before_a_waiter_resumes_makes_anew(workshop: Workshop) -> None:
    pool = workshop.pool()

    async def clear_at_once() -> None:
        async with pool.get("k"):
            await pool.clear("k")

    await asyncio.gather(clear_at_once(), use(pool))
    assert [thing.endings for thing in workshop.made] == [1, 1]


async def test_release_after_clear_leaves_the_successor_alone(workshop: Workshop) -> None:
    pool = workshop.pool()
    async with pool.get("k"):
        await pool.clear("k")
        successor = pool.get("k")
        thing = await successor.acquire()
    assert thing.endings == 0
    assert pool.stats == Stats(1, 1, 0)
    await successor.release()


# The handle


async def test_handle_can_be_acquired_once(workshop: Workshop) -> None:
    resource = workshop.pool().get("k")
    assert isinstance(resource, Resource)
    await resource.acquire()
    with pytest.raises(RuntimeError, match=r"Cannot re-acquire .* already been acquired"):
        await resource.acquire()
    await resource.release()
    with pytest.raises(RuntimeError, match="Cannot re-acquire"):
        await resource.acquire()


async def test_handle_release_without_acquire(workshop: Workshop) -> None:
    with pytest.raises(RuntimeError, match="Cannot release a resource that was not acquired"):
        await workshop.pool().get("k").release()


async def test_handle_release_twice(workshop: Workshop) -> None:
    resource = workshop.pool().get("k")
    async with resource:
        pass
    with pytest.raises(RuntimeError, match="resource that has already been released"):
        await resource.release()


async def test_handle_failed_acquire_leaves_it_unacquired(workshop: Workshop) -> None:
    resource = workshop.pool().get("k")
    workshop.error = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        await resource.acquire()
    with pytest.raises(RuntimeError, match="was not acquired"):
        await resource.release()
    workshop.error = None
    async with resource as thing:
        assert thing.endings == 0


# Event loops


def test_loop_that_closes_within_the_ttl_leaves_nothing_pending() -> None:
    """A58: warnings are errors here."""
    pool = ResourcePool(Thing, ttl=KEPT)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(use(pool))
    assert not asyncio.all_tasks(loop)
    loop.close()
    gc.collect()
    assert pool.stats == Stats(0, 0, 0)


def test_next_loop_makes_its_own() -> None:
    """A57."""
    pool = ResourcePool(Thing, ttl=KEPT)
    first, second = (asyncio.run(use(pool)) for _ in range(2))
    assert first is not second
    assert len(pool._shelves) == 1


def test_reference_that_outlives_its_loop() -> None:
    ended: list[Thing] = []
    pool = ResourcePool(Thing, finalizer=ended.append, ttl=KEPT)
    resource = pool.get("k")
    thing = asyncio.run(resource.acquire())
    asyncio.run(resource.release())
    assert ended == [thing]
    assert pool.stats == Stats(0, 0, 0)


def test_loops_at_the_same_time_have_their_own() -> None:
    """A57."""
    pool = ResourcePool(Thing)
    meeting = threading.Barrier(2, timeout=10)
    things: list[Thing] = []

    async def meet() -> None:
        async with pool.get("k") as thing:
            things.append(thing)
            meeting.wait()

    threads = [threading.Thread(target=asyncio.run, args=(meet(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(things)) == 2


@settings(deadline=None)
@given(
    ttl=st.sampled_from([0, KEPT]),
    users=st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.integers(0, 3),
            st.integers(0, 3),
            st.none() | st.integers(0, 6),
        ),
        max_size=8,
    ),
    failures=st.lists(st.booleans(), max_size=4),
    clear_at=st.none() | st.integers(0, 6),
)
async def test_any_interleaving_ends_everything_once(
    ttl: float,
    users: list[tuple[str, int, int, int | None]],
    failures: list[bool],
    clear_at: int | None,
) -> None:
    """Users come, stay, and are cancelled, after so many turns of the loop; factories fail."""
    ended: Counter[Thing] = Counter()
    made: list[Thing] = []
    script = iter(failures)

    async def make(key: str) -> Thing:
        await turns(1)
        if next(script, False):
            raise ValueError(key)
        made.append(Thing(key))
        return made[-1]

    async def end(thing: Thing) -> None:
        ended[thing] += 1
        await turns(1)

    pool = ResourcePool(make, finalizer=end, ttl=ttl)

    async def visit(key: str, start: int, stay: int) -> None:
        await turns(start)
        async with pool.get(key) as thing:
            assert clear_at is not None or not ended[thing]
            await turns(stay)
            assert clear_at is not None or not ended[thing]

    tasks = started(*(visit(key, start, stay) for key, start, stay, _ in users))
    for turn in range(7):
        for task, (*_, cancel_at) in zip(tasks, users, strict=True):
            if turn == cancel_at:
                task.cancel()
        if turn == clear_at:
            clearing = asyncio.create_task(pool.clear())
        await turns(1)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {
        type(None),
        ValueError,
        asyncio.CancelledError,
    }
    if clear_at is not None:
        await clearing
    assert pool.stats.referenced_entries == 0
    assert ttl or pool.stats.total_entries == 0
    await pool.clear()
    assert [ended[thing] for thing in made] == [1] * len(made)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
