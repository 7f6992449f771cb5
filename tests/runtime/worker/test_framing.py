from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wool.protocol import Chunk, Response, ResponseBatch
from wool.protocol import Payload as Message
from wool.runtime.errors import UnexpectedResponse
from wool.runtime.serializer import Payload
from wool.runtime.worker.framing import (
    BATCH,
    CHUNK,
    OVERHEAD,
    Assemblies,
    LargePayload,
    Outbox,
    write_payload,
)

LIMIT = 64 * CHUNK

sizes = st.one_of(
    st.integers(0, 100), st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 7])
)
parts = st.builds(
    lambda size, seed, kind: kind(bytes([seed]) * size),
    sizes,
    st.integers(0, 255),
    st.sampled_from([bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))]),
)
payloads = st.builds(
    lambda data, buffers: Payload(bytes(data), tuple(buffers)), parts, st.lists(parts, max_size=4)
)


class Owner:
    """Of what has been queued for a call."""

    def __init__(self, call: int) -> None:
        self.call = call
        self.batch: ResponseBatch | None = None
        self.place = -1


def put(
    outbox: Outbox[ResponseBatch], call: int, payload: Payload | None, weight: int = 0
) -> LargePayload | None:
    if payload is None:
        outbox.add(call).ack = True
        return None
    if payload.size > CHUNK:

        def finish(frame: Response) -> None:
            frame.item.chunked = True
            frame.item.buffers.append(b"x" * weight)

        large = LargePayload(call, payload, finish, Owner(call))
        outbox.add_large(large)
        return large
    frame = outbox.add(call, payload.size + weight, Owner(call))
    write_payload(frame.item, payload)
    if weight:
        frame.item.buffers.append(b"x" * weight)
    frame.item.SetInParent()
    return None


def drain(outbox: Outbox[ResponseBatch]) -> list[ResponseBatch]:
    batches = []
    while outbox:
        batch, _ = outbox.next()
        assert batch.frames
        batches.append(batch)
    return batches


def receive(batches: list[ResponseBatch]) -> list[tuple[int, Payload | None]]:
    """What arrives, in order, over a wire that keeps messages whole."""
    assemblies = Assemblies(LIMIT)
    arrived: list[tuple[int, Payload | None]] = []
    for batch in batches:
        for frame in ResponseBatch.FromString(batch.SerializeToString()).frames:
            if frame.WhichOneof("kind") == "chunk":
                assemblies.add(frame.call, frame.chunk)
            elif frame.WhichOneof("kind") == "item":
                arrived.append((frame.call, assemblies.take(frame.call, frame.item)))
            else:
                arrived.append((frame.call, None))
    return arrived


def content(payload: Payload | None) -> list[tuple[bytes, bool]] | None:
    """Its parts, and whether they can be written to."""
    if payload is None:
        return None
    return [(bytes(part), memoryview(part).readonly) for part in (payload.data, *payload.buffers)]


@given(st.lists(payloads, min_size=1, max_size=4))
def test_payloads_cut_and_put_together_again(given_payloads: list[Payload]) -> None:
    outbox = Outbox(ResponseBatch)
    for call, payload in enumerate(given_payloads):
        put(outbox, call, payload)

    arrived = dict(receive(drain(outbox)))

    assert {call: content(payload) for call, payload in arrived.items()} == {
        call: content(payload) for call, payload in enumerate(given_payloads)
    }
    assert outbox.size == 0


@given(st.lists(st.one_of(st.none(), payloads), max_size=8), st.data())
def test_outbox_anything_put_or_dropped_in_any_order(
    queued: list[Payload | None], data: st.DataObject
) -> None:
    """What isn't dropped arrives, what is dropped doesn't, and nothing is left to account for."""
    outbox = Outbox(ResponseBatch)
    batches = []
    large: dict[int, LargePayload] = {}
    dropped = set()
    for call, payload in enumerate(queued):
        queued_large = put(outbox, call, payload)
        if queued_large is not None:
            large[call] = queued_large
        action = data.draw(st.sampled_from(["wait", "write", "drop"]))
        if action == "write":
            batches.append(outbox.next()[0])
        elif action == "drop" and large:
            victim = data.draw(st.sampled_from(sorted(large)))
            if not large[victim].over:
                dropped.add(victim)
            outbox.drop(large[victim])
    batches += drain(outbox)

    arrived = receive(batches)

    assert {call for call, _ in arrived} == {*range(len(queued))} - dropped
    assert len(arrived) == len(queued) - len(dropped)
    assert outbox.size == 0
    assert not outbox


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=50))
def test_small_frames_keep_their_order(small_sizes: list[int]) -> None:
    outbox = Outbox(ResponseBatch)
    for call, size in enumerate(small_sizes):
        put(outbox, call, Payload(b"x" * size))

    assert [call for call, _ in receive(drain(outbox))] == list(range(len(small_sizes)))


def test_large_payload_does_not_overtake_what_waits() -> None:
    """A stream that runs ahead may have sent it all."""
    outbox = Outbox(ResponseBatch)
    for call in [2] * 9 + [1]:
        put(outbox, call, Payload(b"x" * CHUNK))
    put(outbox, 1, Payload(b"x" * 2 * CHUNK))

    assert [call for call, _ in receive(drain(outbox))] == [2] * 9 + [1, 1]


def test_large_payloads_interleave_and_small_frames_pass() -> None:
    outbox = Outbox(ResponseBatch)
    for call in (1, 2, 3):
        put(outbox, call, Payload(b"x" * 3 * CHUNK))
    put(outbox, 4, Payload(b"small"))

    batches = drain(outbox)

    assert batches[0].frames[0].call == 4
    order = [f.call for b in batches for f in b.frames if f.WhichOneof("kind") == "chunk"]
    assert order == [1, 2, 3] * 3
    assert [call for call, _ in receive(batches)] == [4, 1, 2, 3]


def test_large_payload_dropped_lets_the_next_one_leave_at_once() -> None:
    outbox = Outbox(ResponseBatch)
    first = put(outbox, 1, Payload(b"x" * 2 * CHUNK))
    put(outbox, 2, Payload(b"x" * 2 * CHUNK))
    assert first is not None
    outbox.drop(first)

    batch, owners = outbox.next()

    assert [owner.call for owner in owners] == [2]
    assert [frame.call for frame in batch.frames] == [2]


def test_payload_of_many_parts_takes_few_messages() -> None:
    outbox = Outbox(ResponseBatch)
    buffers = tuple(bytes([i % 256]) * 100 for i in range(10_000))
    put(outbox, 1, Payload(b"data", buffers))

    batches = drain(outbox)

    assert len(batches) < 10
    ((_, payload),) = receive(batches)
    assert content(payload) == [(b"data", True), *((buffer, True) for buffer in buffers)]


@given(st.lists(st.tuples(sizes, st.integers(0, 64 * 1024)), min_size=1, max_size=60))
def test_messages_stay_small(queued: list[tuple[int, int]]) -> None:
    """What else a frame holds, as a callable that travels by value, counts as well."""
    outbox = Outbox(ResponseBatch)
    for call, (size, weight) in enumerate(queued):
        put(outbox, call, Payload(b"x" * size), weight)

    assert max(batch.ByteSize() for batch in drain(outbox)) < BATCH + 2 * CHUNK + 65 * 1024


def test_owner_learns_where_its_frame_waits() -> None:
    outbox = Outbox(ResponseBatch)
    owners = [Owner(call) for call in range(3 * BATCH // OVERHEAD)]
    for owner in owners:
        outbox.add(owner.call, 0, owner).ack = True
    for owner in owners:
        assert owner.batch is not None
        assert owner.batch.frames[owner.place].call == owner.call


def test_outbox_counts_what_waits() -> None:
    outbox = Outbox(ResponseBatch)
    put(outbox, 1, Payload(b"x"))
    assert (outbox.small, outbox.payloads, outbox.large) == (OVERHEAD + 1, 1, 0)
    large = put(outbox, 2, Payload(b"x" * 2 * CHUNK))
    assert (outbox.small, outbox.large) == (OVERHEAD + 1, 2 * CHUNK)

    _, owners = outbox.next()

    assert [owner.call for owner in owners] == [1, 2]
    assert large is not None
    assert (outbox.small, outbox.payloads, outbox.large) == (0, 0, large.size)


def chunk(part: int, size: int, data: bytes) -> Chunk:
    return Chunk(part=part, size=size, data=data)


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(1, 1, b"x")],
        [chunk(0, 2, b"xy"), chunk(2, 1, b"x")],
        [chunk(0, 2, b"x"), chunk(1, 1, b"x")],
        [chunk(0, 2, b"xyz")],
        [chunk(0, 2, b"xy"), chunk(0, 2, b"z")],
        [chunk(0, 2, b"xy"), chunk(1, 1, b"z"), chunk(0, 2, b"")],
    ],
    ids=["starts late", "skips a part", "leaves a gap", "too long", "twice", "goes back"],
)
def test_misplaced_chunk(chunks: list[Chunk]) -> None:
    assemblies = Assemblies(100)
    for each in chunks[:-1]:
        assemblies.add(7, each)

    with pytest.raises(UnexpectedResponse, match="misplaced chunk of call 7"):
        assemblies.add(7, chunks[-1])

    assert not assemblies.discard(7)


@pytest.mark.parametrize("ahead", [[], [chunk(0, 90, b"x" * 90)]])
def test_chunk_beyond_the_limit_is_refused_before_room_is_made(ahead: list[Chunk]) -> None:
    assemblies = Assemblies(100)
    for each in ahead:
        assemblies.add(7, each)

    with pytest.raises(UnexpectedResponse, match="payload of call 7 exceeds 100 bytes"):
        assemblies.add(7, chunk(len(ahead), 101 - 90 * len(ahead), b"x"))

    assert not assemblies.discard(7)


def test_payloads_under_way_are_bounded_in_all() -> None:
    """Parts count for something even if they are empty, and no more when they have been taken."""
    assemblies = Assemblies(100, 4 * OVERHEAD + 100)
    assemblies.add(1, chunk(0, 100, b"x" * 100))
    assemblies.add(2, chunk(0, 0, b""))
    assemblies.add(2, chunk(1, 0, b""))
    assemblies.add(3, chunk(0, 0, b""))

    with pytest.raises(UnexpectedResponse, match="payloads under way exceed 1,124 bytes"):
        assemblies.add(4, chunk(0, 0, b""))

    assemblies.take(1, Message(chunked=True))
    assemblies.discard(3)
    assemblies.add(5, chunk(0, 100, b""))
    with pytest.raises(UnexpectedResponse, match="under way"):
        assemblies.add(6, chunk(0, 100, b""))


@pytest.mark.parametrize("chunks", [[], [chunk(0, 2, b"x")]], ids=["nothing", "half"])
def test_incomplete_payload_is_refused(chunks: list[Chunk]) -> None:
    assemblies = Assemblies(100)
    for each in chunks:
        assemblies.add(7, each)

    with pytest.raises(UnexpectedResponse, match="payload of call 7 is incomplete"):
        assemblies.take(7, Message(chunked=True))


def test_discarded_payload_leaves_others_alone() -> None:
    assemblies = Assemblies(100)
    assemblies.add(1, chunk(0, 2, b"x"))
    assemblies.add(2, chunk(0, 2, b"ab"))

    assert assemblies.discard(1)
    assert not assemblies.discard(1)

    assert bytes(assemblies.take(2, Message(chunked=True)).data) == b"ab"
