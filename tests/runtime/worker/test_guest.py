"""An event loop that runs on the thread of another one, unless that is held up."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from tests.support import eventually
from wool.runtime.worker import guest as guest_module
from wool.runtime.worker.executor import RoutineLoop
from wool.runtime.worker.guest import Guest
from wool.runtime.worker.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Run = Callable[[Callable[[RoutineLoop], Awaitable[None]]], None]


@pytest.fixture(scope="module", autouse=True)
def uvloop_s_own_pipe() -> None:
    """It is opened once and for all."""
    uvloop.new_event_loop().close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def host(request: pytest.FixtureRequest) -> RoutineLoop:
    return RoutineLoop(request.param)


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.loop.close()


@pytest.fixture
def run(guest: Guest, host: RoutineLoop) -> Run:
    """Runs a coroutine function on the guest, while it has the host."""

    def run(function: Callable[[RoutineLoop], Awaitable[None]]) -> None:
        async def main() -> None:
            host.start(guest)
            try:
                await asyncio.wait_for(function(host), 30)
            finally:
                await host.stop(5)

        guest.run(main())

    return run


def on_thread_of(host: RoutineLoop) -> bool:
    return threading.get_ident() == host.thread_id


@contextmanager
def held_up(host: RoutineLoop) -> Iterator[None]:
    """Its thread does nothing else meanwhile."""
    begun, gate = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        gate.wait(30)

    host.post(wait)
    try:
        yield
        assert begun.is_set()
    finally:
        gate.set()


def test_runs_on_the_thread_of_its_host(run: Run) -> None:
    async def main(host: RoutineLoop) -> None:
        await eventually(lambda: on_thread_of(host))
        for _ in range(100):
            await asyncio.sleep(0)
            assert on_thread_of(host)
        assert asyncio.get_running_loop() is not host.loop
        woken_there = []
        for _ in range(20):
            await asyncio.sleep(0.02)
            woken_there.append(on_thread_of(host))
        assert sum(woken_there) > 10

    run(main)


def test_runs_on_its_own_while_its_host_is_held_up(run: Run) -> None:
    async def main(host: RoutineLoop) -> None:
        for _ in range(3):
            await eventually(lambda: on_thread_of(host))
            with held_up(host):
                await eventually(lambda: threading.current_thread() is threading.main_thread())
                for _ in range(3):
                    await asyncio.sleep(guest_module.PATIENCE)
                    assert not on_thread_of(host)

    run(main)


def test_returns_to_its_host_even_if_nothing_else_happens(run: Run, guest: Guest) -> None:
    async def main(host: RoutineLoop) -> None:
        await eventually(lambda: on_thread_of(host))
        relay = Relay(asyncio.get_running_loop())
        posted = asyncio.Event()
        poster = threading.Timer(0.2, relay.post, (posted.set,))
        with held_up(host):
            poster.start()
            await posted.wait()
            assert not on_thread_of(host)
        await host.run(eventually, lambda: not guest._turn.locked())
        poster.join()
        relay.close()

    run(main)


def test_is_on_time_whether_or_not_its_host_is_held_up(run: Run) -> None:
    async def main(host: RoutineLoop) -> None:
        loop = asyncio.get_running_loop()

        async def lateness(seconds: float) -> float:
            due = loop.time() + seconds
            await asyncio.sleep(seconds)
            return loop.time() - due

        async def latenesses() -> list[float]:
            return await asyncio.gather(*(lateness(s) for s in (0.2, 0.05, 0.1, 0.0)))

        await eventually(lambda: on_thread_of(host))
        assert max(await latenesses()) < 0.2
        with held_up(host):
            assert max(await latenesses()) < 0.2

    run(main)


def test_is_on_time_when_its_host_is_held_up_twice_in_a_row(run: Run) -> None:
    """Its own thread gives it back in between, and the host never gets to it."""

    async def main(host: RoutineLoop) -> None:
        loop = asyncio.get_running_loop()
        await eventually(lambda: on_thread_of(host))
        await asyncio.sleep(0.1)
        relay = Relay(loop)
        posted = asyncio.Event()
        poster = threading.Timer(0.1, relay.post, (posted.set,))
        poster.start()
        host.post(lambda: time.sleep(0.3))
        await posted.wait()
        host.post(lambda: time.sleep(1.5))
        due = loop.time() + 0.5
        await asyncio.sleep(0.5)
        assert loop.time() - due < 0.3
        poster.join()
        relay.close()

    run(main)


def test_waits_without_being_looked_after(run: Run) -> None:
    """Nobody's time is spent on a guest with nothing to do."""

    async def main(host: RoutineLoop) -> None:
        await eventually(lambda: on_thread_of(host))
        await asyncio.sleep(0.1)
        before = time.process_time()
        await asyncio.sleep(1)
        assert time.process_time() - before < 0.05

    run(main)


def test_is_visited_when_a_timer_is_due_and_not_before(run: Run, guest: Guest) -> None:
    """Event loops round timers, and uvloop rounds some of them down."""

    async def main(host: RoutineLoop) -> None:
        await eventually(lambda: on_thread_of(host))
        before = guest._visits
        for _ in range(50):
            await asyncio.sleep(0.0104)
        assert guest._visits - before < 5 * 50

    run(main)


def test_is_on_its_own_thread_for_good_when_recalled(run: Run, guest: Guest) -> None:
    async def main(host: RoutineLoop) -> None:
        await eventually(lambda: on_thread_of(host))
        for _ in range(2):
            await guest.recall()
            for _ in range(10):
                assert threading.current_thread() is threading.main_thread()
                answered = asyncio.Event()
                relay = Relay(asyncio.get_running_loop())
                host.post(lambda a=answered, r=relay: r.post(a.set))  # type: ignore[misc]
                await answered.wait()
                relay.close()

    run(main)


@pytest.mark.parametrize("blocks", [False, True])
def test_main_coroutine_that_raises(guest: Guest, host: RoutineLoop, blocks: bool) -> None:
    async def main() -> None:
        host.start(guest)
        await eventually(lambda: on_thread_of(host))
        if blocks:
            host.post(lambda: time.sleep(0.3))
            await eventually(lambda: not on_thread_of(host))
        raise LookupError("it failed")

    with pytest.raises(LookupError, match="it failed"):
        guest.run(main())
    guest.loop.run_until_complete(host.stop(5))


def test_main_coroutine_that_ends_while_its_own_thread_waits_for_its_turn(
    guest: Guest, host: RoutineLoop
) -> None:
    async def main() -> None:
        host.start(guest)
        await eventually(lambda: on_thread_of(host))
        await asyncio.sleep(5 * guest_module.PATIENCE)
        asyncio.get_running_loop().call_soon(time.sleep, 10 * guest_module.PATIENCE)
        await asyncio.sleep(0)

    guest.run(main())
    guest.loop.run_until_complete(host.stop(5))


def test_what_leaves_its_own_thread_takes_it_from_the_host(guest: Guest, host: RoutineLoop) -> None:
    async def busy() -> None:
        for _ in range(10_000_000):
            await asyncio.sleep(0)

    async def main() -> None:
        host.start(guest)
        running = asyncio.create_task(busy())
        host.post(lambda: time.sleep(0.3))
        await eventually(lambda: not on_thread_of(host))
        asyncio.get_running_loop().call_soon(sys.exit, 3)
        await running

    with asyncio.Runner(loop_factory=lambda: guest.loop) as runner:
        with pytest.raises(SystemExit, match="3"):
            guest.run(main())
        runner.run(host.stop(5))


def test_leaves_its_host_as_it_was(run: Run) -> None:
    async def main(host: RoutineLoop) -> None:
        seen: list[Any] = []

        async def look() -> None:
            before = asyncio.get_running_loop(), sys.get_asyncgen_hooks(), asyncio.current_task()
            for _ in range(10):
                await asyncio.sleep(0.001)
                now = asyncio.get_running_loop(), sys.get_asyncgen_hooks(), asyncio.current_task()
                seen.append(now == before)

        async def busy() -> None:
            for _ in range(1_000_000):
                await asyncio.sleep(0)

        looking = asyncio.ensure_future(host.run(look))
        turns = asyncio.ensure_future(busy())
        await looking
        turns.cancel()
        assert seen == [True] * 10

    run(main)


def test_goes_on_after_a_callback_that_raises_what_ends_a_process(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(host: RoutineLoop) -> None:
        await eventually(lambda: on_thread_of(host))
        asyncio.get_running_loop().call_soon(sys.exit)
        await asyncio.sleep(0.1)
        await eventually(lambda: on_thread_of(host))

    run(main)
    assert "tried to end the worker" in caplog.text


def test_goes_on_when_its_host_has_ended(guest: Guest, host: RoutineLoop) -> None:
    async def main() -> None:
        host.start(guest)
        await eventually(lambda: on_thread_of(host))
        host._ending = True
        host.loop.call_soon_threadsafe(host.loop.stop)
        await eventually(lambda: not host._thread.is_alive())
        await asyncio.sleep(0.1)

    guest.run(main())


def test_the_two_run_at_the_same_time_only_while_the_host_is_held_up(run: Run) -> None:
    """What they have for each other arrives in order, however often it changes who runs what."""

    async def main(host: RoutineLoop) -> None:
        loop = asyncio.get_running_loop()
        replies = Relay(loop)
        came: list[int] = []
        threads: set[int] = set()
        inside = threading.Lock()
        chance = random.Random(7)
        done = asyncio.Event()

        def reply(number: int, pause: float) -> None:
            if pause:
                time.sleep(pause)
            replies.post(lambda: arrive(number))

        def arrive(number: int) -> None:
            assert inside.acquire(blocking=False)
            threads.add(threading.get_ident())
            came.append(number)
            inside.release()
            if len(came) == 3_000:
                done.set()

        for number in range(3_000):
            pause = chance.uniform(0, 2 * guest_module.PATIENCE) if not number % 50 else 0
            host.post(lambda n=number, p=pause: reply(n, p))  # type: ignore[misc]
            if not number % 7:
                await asyncio.sleep(0)
        await done.wait()
        assert came == sorted(came)
        assert len(threads) == 2
        replies.close()

    run(main)
