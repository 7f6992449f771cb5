from __future__ import annotations

import asyncio
import os
import resource
import sys
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import eventually
from wool.protocol import Segment
from wool.runtime.errors import UnexpectedResponse
from wool.runtime.serializer import Payload
from wool.runtime.worker import arena as arena_module
from wool.runtime.worker.arena import MOST_BUFFERS, SLICE, Arena, Shared, Window, in_turns

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are arenas on Linux only")

LIMIT = 4 * SLICE


class Pair:
    """An arena and the window of a peer on it."""

    def __init__(self) -> None:
        self.freed = 0
        arena = Arena.create(LIMIT)
        assert arena is not None
        arena.on_room = self._count
        self.arena = arena
        window = Window.open(arena.offer, LIMIT)
        assert window is not None
        self.window = window

    def _count(self) -> None:
        self.freed += 1

    def close(self) -> None:
        self.arena.close()
        self.window.close()

    async def put(self, call: int, payload: Payload) -> Segment:
        segment = await self.arena.put(call, payload)
        assert segment is not None
        return segment

    async def read(self, segment: Segment) -> Payload:
        return await in_turns(self.window.copy(segment))


@pytest.fixture
def pair() -> Iterator[Pair]:
    with closing(Pair()) as pair:
        yield pair


def memory(offer: str) -> int:
    """Bytes that an arena takes, its nonce's page aside."""
    pid, descriptor, _ = offer.split(":")
    return max(os.stat(f"/proc/{pid}/fd/{descriptor}").st_blocks * 512 - 4096, 0)


async def test_payload_arrives_as_it_was(pair: Pair) -> None:
    sent = Payload(b"pickle", (b"ab", bytearray(b"cd"), memoryview(bytearray(b"ef")), b""))

    received = await pair.read(await pair.put(1, sent))

    assert received == sent
    assert [type(part) for part in (received.data, *received.buffers)] == [
        bytes,
        bytes,
        bytearray,
        memoryview,
        bytes,
    ]
    assert received.forms == sent.forms


@given(st.lists(st.binary(min_size=1, max_size=50_000), min_size=1, max_size=6), st.data())
async def test_payloads_put_read_and_freed_in_any_order(
    contents: list[bytes], data: st.DataObject
) -> None:
    with closing(Pair()) as pair:
        waiting = {}
        for call, content in enumerate(contents):
            waiting[call] = await pair.put(call, Payload(content, (content[::-1],)))
            for done in data.draw(st.sets(st.sampled_from(range(call + 1)))):
                if done in waiting:
                    received = await pair.read(waiting.pop(done))
                    assert received == Payload(contents[done], (contents[done][::-1],))
                    pair.arena.free(done)
        for call, segment in waiting.items():
            assert (await pair.read(segment)).data == contents[call]
            pair.arena.free(call)

        assert pair.arena.used == 0
        assert pair.freed == len(contents)


async def test_large_payload_lets_the_loop_run(pair: Pair) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    segment = await pair.put(1, Payload(bytes(LIMIT - SLICE), (bytes(SLICE // 2),) * 2))
    written = turns
    await pair.read(segment)
    counting.cancel()
    await asyncio.wait([counting])

    assert written >= 3
    assert turns - written >= 3


async def test_what_does_not_fit_goes_another_way(pair: Pair) -> None:
    await pair.put(1, Payload(bytes(LIMIT // 2)))

    assert await pair.arena.put(2, Payload(bytes(LIMIT // 2 + 1))) is None
    await pair.put(3, Payload(bytes(LIMIT // 2)))
    assert await pair.arena.put(4, Payload(b"x")) is None

    assert pair.arena.used == LIMIT


async def test_payload_of_many_parts_goes_another_way(pair: Pair) -> None:
    assert await pair.arena.put(1, Payload(b"", (b"x",) * (MOST_BUFFERS + 1))) is None


async def test_what_is_lent_for_a_call_is_freed_in_order(pair: Pair) -> None:
    segments = [await pair.put(1, Payload(b"x")) for _ in range(4)]
    pair.arena.free(1)

    assert (await pair.put(2, Payload(b"x"))).offset == segments[0].offset
    pair.arena.end(1)
    assert pair.freed == 4
    assert (await pair.put(3, Payload(b"x"))).offset == segments[1].offset


async def test_free_while_it_is_written_changes_nothing(pair: Pair) -> None:
    """What is being written is not the peer's yet, and not free for others."""
    putting = asyncio.create_task(pair.put(1, Payload(bytes(LIMIT))))
    await asyncio.sleep(0)
    pair.arena.free(1)

    assert await pair.arena.put(2, Payload(b"x")) is None
    await putting
    assert pair.arena.used == LIMIT


async def test_extent_is_used_again(pair: Pair) -> None:
    first = await pair.put(1, Payload(bytes(10_000)))
    second = await pair.put(2, Payload(bytes(10_000)))
    pair.arena.free(1)

    assert (await pair.put(3, Payload(bytes(5_000)))).offset == first.offset
    assert (await pair.put(4, Payload(bytes(10_000)))).offset > second.offset


async def test_free_of_what_is_not_there(pair: Pair) -> None:
    pair.arena.free(1)

    assert not pair.freed


@pytest.mark.parametrize("error", [None, OSError])
async def test_write_that_ends_early_takes_nothing(pair: Pair, error: type[OSError] | None) -> None:
    putting = asyncio.create_task(pair.arena.put(1, Payload(bytes(LIMIT))))
    await asyncio.sleep(0)
    assert pair.arena.used == LIMIT
    if error is None:
        putting.cancel()
    else:
        pair.arena.close()
    await asyncio.wait([putting])

    assert pair.arena.used == 0
    assert putting.cancelled() if error is None else putting.result() is None


async def test_no_room_in_the_file_system(pair: Pair) -> None:
    """As if memory had run out, but harmless."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SLICE, hard))
    try:
        segment = await pair.arena.put(1, Payload(bytes(2 * SLICE)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert segment is None
    assert pair.arena.used == 0


async def test_memory_is_given_back(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena_module, "REST", 0.01)
    await pair.put(1, Payload(bytes(SLICE)))
    await pair.put(2, Payload(bytes(SLICE)))
    assert memory(pair.arena.offer) >= 2 * SLICE
    pair.arena.free(2)

    await eventually(lambda: memory(pair.arena.offer) <= SLICE + 4096)
    assert memory(pair.arena.offer) >= SLICE - 4096
    pair.arena.free(1)
    await eventually(lambda: not memory(pair.arena.offer))

    assert (await pair.read(await pair.put(3, Payload(b"again")))).data == b"again"


async def test_memory_survives_its_owner_while_it_is_read() -> None:
    """What was sent before the sender died arrives."""
    script = """
import asyncio, signal, sys
from wool.runtime.serializer import Payload
from wool.runtime.worker.arena import Arena
arena = Arena.create(1 << 20)
segment = asyncio.run(arena.put(1, Payload(b"last words")))
print(arena.offer, segment.offset, flush=True)
signal.pause()
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    offer, offset = (await process.stdout.readline()).decode().split()
    window = Window.open(offer, LIMIT)
    assert window is not None
    process.kill()
    await process.wait()

    with closing(window):
        received = await in_turns(window.copy(Segment(offset=int(offset), sizes=[10])))
    assert received.data == b"last words"
    process.stdout._transport.close()  # type: ignore[attr-defined]


def test_arena_that_is_cut_off_leaves_no_view_in_what_is_raised() -> None:
    """The garbage collector may find it in a cycle (see `Landing`)."""
    descriptor = os.memfd_create("arena")
    os.ftruncate(descriptor, 1000)
    window = Window(descriptor, LIMIT)
    buffer = bytearray(5000)
    with (
        closing(window),
        memoryview(buffer) as room,
        pytest.raises(UnexpectedResponse, match="cut off") as caught,
    ):
        window._fill(room, 0)
    buffer.clear()  # Which it can't be while there is one.
    assert caught.tb is not None


def offers() -> list[str]:
    return [
        "",
        "1:2",
        "a:b:c",
        "1:2:3:4",
        f"{os.getpid()}:99999:00",
        "999999999:1:00",
        f"{os.getpid()}:-1:00",
    ]


@pytest.mark.parametrize("offer", offers())
def test_offer_that_leads_nowhere(offer: str) -> None:
    assert Window.open(offer, LIMIT) is None


def test_offer_that_leads_elsewhere(pair: Pair) -> None:
    """As in another PID namespace, where the same numbers are something else's."""
    numbers, _, nonce = pair.arena.offer.rpartition(":")
    forged = nonce[:-1] + ("0" if nonce[-1] != "0" else "1")
    reading, writing = os.pipe()
    with ExitStack() as stack:
        stack.callback(os.close, reading)
        stack.callback(os.close, writing)

        assert Window.open(f"{numbers}:{forged}", LIMIT) is None
        assert Window.open(f"{os.getpid()}:{reading}:{nonce}", LIMIT) is None


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (Segment(), "0 parts and 0 forms"),
        (Segment(sizes=[1, 2], forms=b""), "2 parts and 0 forms"),
        (Segment(sizes=[0] * 2000, forms=bytes(1999)), "2,000 parts"),
        (Segment(sizes=[LIMIT + 1]), "exceeds"),
        (Segment(sizes=[LIMIT, LIMIT], forms=b"\0"), "exceeds"),
        (Segment(offset=4096, sizes=[LIMIT]), "reaches beyond the end"),
        (Segment(offset=2**64 - 1, sizes=[1]), "reaches beyond the end"),
    ],
)
async def test_segment_that_cannot_be(pair: Pair, segment: Segment, message: str) -> None:
    with pytest.raises(UnexpectedResponse, match=message):
        await pair.read(segment)


async def test_arena_that_shrinks_while_it_is_read(pair: Pair) -> None:
    segment = await pair.put(1, Payload(bytes(LIMIT)))
    reading = asyncio.create_task(pair.read(segment))
    await asyncio.sleep(0)
    os.ftruncate(int(pair.arena.offer.split(":")[1]), SLICE)

    with pytest.raises(UnexpectedResponse, match="was cut off"):
        await reading


async def test_window_that_is_closed_while_it_is_read(pair: Pair) -> None:
    segment = await pair.put(1, Payload(bytes(LIMIT)))
    reading = asyncio.create_task(pair.read(segment))
    await asyncio.sleep(0)
    pair.window.close()

    with pytest.raises(UnexpectedResponse, match="was cut off"):
        await reading


def test_shared_takes_an_offer_or_leaves_nothing_open(pair: Pair) -> None:
    sizes = {"largest_in": LIMIT, "largest_out": LIMIT}
    shared = Shared.accept(pair.arena.offer, **sizes)
    assert shared is not None
    shared.close()

    assert Shared.accept("1:2:3", **sizes) is None


def test_close_twice(pair: Pair) -> None:
    pair.close()
    pair.close()


def test_no_arena_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    assert Arena.create(LIMIT) is None


def test_no_arena_without_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        arena = Arena.create(LIMIT)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert arena is None
