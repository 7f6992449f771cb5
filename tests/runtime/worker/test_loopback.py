"""Calls that a worker's routines make of the worker itself: here, of a pool of one, all of them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any

import pytest

import wool
from tests.runtime.routines import Oops, diary, note, noted
from tests.support import eventually
from wool import UnexpectedResponse, protocol
from wool.runtime.context import RuntimeContext
from wool.runtime.worker import connection as connections
from wool.runtime.worker.framing import CHUNK
from wool.runtime.worker.loopback import Loopback

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

MIB = 1024 * 1024


@pytest.fixture
async def pool() -> AsyncIterator[wool.WorkerPool]:
    async with wool.WorkerPool(size=1) as pool:
        yield pool


def sessions() -> list[tuple[bool, int]]:
    """Of this loop: whether each goes through gRPC, and how many calls it has."""
    links = connections._links[asyncio.get_running_loop()].values()
    return [
        (link._channel is not None, len(session._calls))
        for link in links
        if (session := link.ready) is not None
    ]


@wool.routine
async def echo(value: Any) -> Any:
    return value


@wool.routine
async def outer_echo(value: Any) -> tuple[Any, bool, list[tuple[bool, int]]]:
    echoed = await echo(value)
    return echoed, echoed is value, sessions()


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize(
    "value",
    [None, [1, "two"], bytes(CHUNK // 2), bytearray(b"x" * 3 * CHUNK), bytes(20 * MIB)],
    ids=["none", "list", "small", "some chunks", "large"],
)
async def test_arguments_and_results_are_copies_and_no_socket_is_opened(value: Any) -> None:
    echoed, same, opened = await outer_echo(value)
    assert echoed == value
    assert type(echoed) is type(value)
    assert not same or value is None
    assert opened == [(False, 0)]


@wool.routine
async def fib(n: int) -> int:
    return n if n < 2 else sum(await asyncio.gather(fib(n - 1), fib(n - 2)))


@pytest.mark.usefixtures("pool")
async def test_recursion() -> None:
    assert await fib(12) == 144


@wool.routine
async def fails(code: int) -> None:
    raise Oops(code=code)


@wool.routine
async def catches() -> tuple[int, list[str]]:
    try:
        await fails(7)
    except Oops as exc:
        frames = []
        traceback = exc.__traceback__
        while traceback is not None:
            frames.append(traceback.tb_frame.f_code.co_name)
            traceback = traceback.tb_next
        return exc.code, frames
    raise AssertionError("nothing was raised")


@pytest.mark.usefixtures("pool")
async def test_exception_is_the_routine_s_with_its_frames() -> None:
    code, frames = await catches()
    assert code == 7
    assert frames[0] == "catches"
    assert frames[-1] == "fails"


@wool.routine
async def converse(log: str) -> list[object]:
    said = []
    async with aclosing(diary(log)) as entries:
        said.append(await anext(entries))
        said.append(await entries.asend("hello"))
        said.append(await entries.athrow(ValueError("no")))
        said.append(await entries.asend(bytes(2 * CHUNK)))
    return [*said[:3], len(str(said[3])) > 2 * CHUNK, sessions()]


@pytest.mark.usefixtures("pool")
async def test_stream_is_sent_to_thrown_into_and_closed(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    assert await converse(log) == [
        "began", "sent hello", "caught ('no',)", True, [(False, 0)]
    ]  # fmt: skip
    assert noted(log)[-2:] == ["ending", "ended"]


@wool.routine(prefetch=8)
async def numbers(log: str) -> AsyncGenerator[int, None]:
    try:
        for i in range(1_000):
            yield i
    finally:
        note(log, "closed")


@wool.routine
async def takes_ten(log: str) -> list[int]:
    taken = []
    async with aclosing(numbers(log)) as stream:
        async for number in stream:
            taken.append(number)
            if len(taken) == 10:
                break
    return taken


@pytest.mark.usefixtures("pool")
async def test_stream_that_runs_ahead(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    assert await takes_ten(log) == list(range(10))
    assert noted(log) == ["closed"]


@wool.routine
async def waits(log: str) -> None:
    note(log, "waiting")
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        note(log, "cleaned up")


@wool.routine
async def awaits(log: str) -> None:
    try:
        await waits(log)
    finally:
        note(log, "outer")


@pytest.mark.usefixtures("pool")
async def test_cancellation_reaches_the_inner_call_first(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    call = asyncio.create_task(awaits(log))
    await eventually(lambda: noted(log))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert noted(log) == ["waiting", "cleaned up", "outer"]
    assert await outer_echo(1) == (1, True, [(False, 0)])


@wool.routine
async def within(timeout: float) -> str:
    with RuntimeContext(dispatch_timeout=timeout):
        return str(await echo("in time"))


@pytest.mark.usefixtures("pool")
async def test_dispatch_timeout_is_for_these_calls_too() -> None:
    assert await within(5.0) == "in time"


@wool.routine
async def too_large() -> str:
    try:
        await echo(bytes(101 * MIB))
    except wool.PayloadTooLarge as exc:
        return str(exc)
    return "it passed"


@pytest.mark.usefixtures("pool")
async def test_limits_hold() -> None:
    assert "max_receive_message_length" in await too_large()
    assert await outer_echo(1) == (1, True, [(False, 0)])


@wool.routine
async def slow(log: str, gate: str) -> str:
    note(log, "inner")
    await eventually(lambda: gate in noted(log))
    return "done"


@wool.routine
async def awaits_slow(log: str, gate: str) -> str:
    return await slow(log, gate)


async def test_pool_that_is_left_lets_them_end(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    async with wool.WorkerPool(size=1):
        call = asyncio.create_task(awaits_slow(log, "go"))
        await eventually(lambda: noted(log))
        asyncio.get_running_loop().call_later(0.2, note, log, "go")
    assert await call == "done"


async def test_pool_that_is_left_by_an_exception_cancels_them(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    pool = wool.WorkerPool(size=1)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(pool)
        call = asyncio.create_task(awaits(log))
        await eventually(lambda: noted(log))
        await pool.__aexit__(LookupError, LookupError("reason"), None)
        stack.pop_all()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert noted(log) == ["waiting", "cleaned up", "outer"]


_background: set[asyncio.Task[None]] = set()


@wool.routine
async def leaves_behind(log: str) -> None:
    """Its own task, which goes on calling routines as long as they are taken."""

    async def go_on() -> None:
        try:
            while True:
                await echo(1)
        except wool.NoWorkersAvailable:
            note(log, "refused")
        except asyncio.CancelledError:
            note(log, "cancelled")
            raise

    await echo(1)
    _background.add(asyncio.create_task(go_on()))


async def test_worker_that_stops_takes_no_more_of_itself(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    worker = wool.LocalWorker()
    await worker.start()
    assert worker.metadata is not None
    async with wool.WorkerProxy(workers=[worker.metadata]):
        await leaves_behind(log)
    await worker.stop(timeout=5)
    assert noted(log) in (["refused"], ["cancelled"])


@wool.routine
async def on_another_loop(value: int) -> tuple[int, list[tuple[bool, int]]]:
    """A loop on another thread reaches the worker as any other client does."""

    async def main() -> tuple[int, list[tuple[bool, int]]]:
        proxy = wool.__proxy__.get()
        assert isinstance(proxy, wool.WorkerProxy)
        metadata = wool.__worker_metadata__
        assert metadata is not None
        async with wool.WorkerProxy(workers=[metadata]):
            return await echo(value), sessions()

    return await asyncio.to_thread(asyncio.run, main())


@pytest.mark.usefixtures("pool")
async def test_other_loops_in_a_worker_go_through_the_socket() -> None:
    assert await on_another_loop(5) == (5, [(True, 0)])


@wool.routine
async def turns_beside(size: int) -> tuple[int, int]:
    """How often this loop runs, and the longest that it doesn't, in ms, while a value is echoed."""
    loop, turns, longest = asyncio.get_running_loop(), 0, 0.0
    call = asyncio.ensure_future(echo(bytes(size)))
    before = loop.time()
    while not call.done():
        await asyncio.sleep(0)
        now = loop.time()
        turns, longest, before = turns + 1, max(longest, now - before), now
    await call
    return turns, round(longest * 1000)


@pytest.mark.usefixtures("pool")
async def test_large_payload_lets_others_run() -> None:
    turns, _ = await turns_beside(32 * MIB)
    assert turns > 2 * 32 * MIB // CHUNK


@wool.routine
async def wait_forever(log: str) -> None:
    note(log, "inner")
    try:
        await asyncio.Event().wait()
    finally:
        for i in range(5):
            await asyncio.sleep(0.02)
            note(log, i)


@wool.routine
async def wait_for_it(log: str, depth: int) -> None:
    await (wait_for_it(log, depth - 1) if depth else wait_forever(log))


@pytest.mark.parametrize("depth", [0, 1, 3])
async def test_stop_cancels_a_nested_routine_once(tmp_path: Path, depth: int) -> None:
    """The stop reaches it directly, and through whoever awaits it: that is one cancellation."""
    log = str(tmp_path / "log")
    worker = wool.LocalWorker()
    await worker.start()
    assert worker.metadata is not None
    async with wool.WorkerProxy(workers=[worker.metadata]):
        call = asyncio.create_task(wait_for_it(log, depth))
        await eventually(lambda: noted(log))
        await worker.stop()
        with pytest.raises((asyncio.CancelledError, wool.WorkerLost)):
            await call
    assert noted(log) == ["inner", *map(str, range(5))]


async def test_stream_that_is_over_takes_nothing() -> None:
    class Half:
        taken = 0
        lost = False

        async def take(self, batch: protocol.RequestBatch) -> None:
            self.taken += 1
            if batch.last:
                raise UnexpectedResponse("a frame of no kind")

        def end_of_input(self) -> None: ...

        async def batches(self) -> AsyncIterator[protocol.ResponseBatch]:
            yield protocol.ResponseBatch()

        def lose(self) -> None:
            self.lost = True

    half, closed = Half(), []
    stream = Loopback(half, lambda: closed.append(1))
    await stream.write(protocol.RequestBatch())
    await stream.write(protocol.RequestBatch(last=True))
    assert half.lost
    with pytest.raises(asyncio.InvalidStateError):
        await stream.write(protocol.RequestBatch())
    stream.cancel()
    assert (half.taken, closed) == (2, [1])
