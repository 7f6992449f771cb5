"""Frames that no well-behaved peer sends, for either half of a session, and some that one does."""

from __future__ import annotations

import os
import pickle
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from hypothesis import strategies as st

from tests import wire_routines as routines
from tests.runtime.worker.peers import payload, task_frame
from wool import protocol
from wool.protocol import (
    Chunk,
    Definition,
    Payload,
    Request,
    RequestBatch,
    Response,
    ResponseBatch,
    Segment,
    Task,
)
from wool.runtime import serializer
from wool.runtime.worker.framing import CHUNK

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    Metadata = tuple[tuple[str, str], ...]

T = TypeVar("T")

NUMBERS = (0, 1, 2, 3, 2**32, 2**64 - 1)
SIZES = (0, 1, 4, CHUNK, 10**8, 2**40, 2**64 - 1)

LOADED: tuple[Any, ...] = (None, 5, ((), {}), [1], routines.Thing(1))
FATAL = (SystemExit, KeyboardInterrupt, GeneratorExit, LookupError)

contents = st.sampled_from(
    [
        b"",
        b"\x80\x05",
        b"garbage",
        b"nno_such_module\0nor_function",
        b"nbuiltins\0len",
        b"v\x80\x05garbage",
        *(pickle.dumps(value) for value in LOADED),
        *(pickle.dumps(routines.Trap(kind, "unpickled")) for kind in FATAL),
    ]
)


def some(*values: T) -> SearchStrategy[T]:
    return st.sampled_from(values)


segments = st.builds(
    Segment,
    offset=some(0, 4096, 2**40, 2**63, 2**64 - 1),
    sizes=st.lists(st.sampled_from(SIZES), max_size=4),
    forms=st.binary(max_size=4),
) | st.builds(lambda n: Segment(offset=4096, sizes=[0] * n, forms=bytes(n - 1)), some(5, 50_000))

payloads = st.builds(
    Payload,
    data=contents,
    buffers=st.lists(contents, max_size=3),
    forms=st.binary(max_size=4),
    chunked=st.booleans(),
) | st.builds(Payload, segment=segments, data=contents)

chunks = st.builds(
    Chunk,
    part=some(0, 1, 2, 2**32 - 1),
    size=st.sampled_from(SIZES),
    data=some(b"", b"x", b"xxxx", bytes(CHUNK)),
    form=some(0, 1, 2, 7, 2**32 - 1),
)

definitions = st.builds(
    Definition,
    number=some(0, 1, 2, 256, 257, 2**32 - 1),
    content=contents,
    reusable=st.booleans(),
)

tasks = st.builds(
    Task,
    id=some(b"", b"short", bytes(16)),
    caller=some(b"", b"short", bytes(16)),
    callable=definitions,
    proxy=definitions,
    timeout=some(0.0, -1.0, float("nan"), float("inf")),
    context=some({}, {"dispatch_timeout": -1.0}, {"dispatch_timeout": float("nan")}),
    serializer=contents,
    arguments=payloads,
    prefetch=some(0, 1, 2**32 - 1),
)

CALLS: tuple[tuple[Any, ...], ...] = (
    (routines.noop,),
    (routines.echo, "x"),
    (routines.fail, "x"),
    (routines.make, 300_000),
    (routines.sleep, "hostile"),
    (routines.throw, SystemExit),
    (routines.talk, "hostile"),
    (routines.count, 5, "hostile"),
    (routines.pieces, 100_000, 1_000, "hostile"),
)


good_tasks = some(*(task_frame(1, *each).task for each in CALLS))


@st.composite
def damaged(draw: st.DrawFn, batch: RequestBatch | ResponseBatch) -> bytes:
    """It as it travels, perhaps cut off, continued or replaced."""
    data = batch.SerializeToString()
    way = draw(some(*["whole"] * 27, "cut", "continued", "replaced"))
    if way == "cut":
        return data[: draw(st.integers(0, len(data)))]
    if way == "continued":
        return data + draw(st.binary(min_size=1, max_size=8))
    return draw(st.binary(max_size=8)) if way == "replaced" else data


PARTS = ("id", "callable", "proxy", "context", "arguments", "serializer")


@st.composite
def changed_tasks(draw: st.DrawFn) -> Task:
    """One that would run, but for what is changed of it."""
    task = Task()
    task.CopyFrom(draw(good_tasks))
    other = draw(tasks)
    for name in draw(st.sets(st.sampled_from(PARTS))):
        task.ClearField(name)
        task.MergeFrom(Task(**{name: getattr(other, name)}))
    task.prefetch = draw(some(0, 0, 1, 2**32 - 1))
    return task


def often(usual: SearchStrategy[T], *others: SearchStrategy[T]) -> SearchStrategy[T]:
    """The first as often as all others together."""
    return st.sampled_from([usual] * len(others) + list(others)).flatmap(lambda each: each)


numbers = st.sampled_from(NUMBERS)
KINDS = ("close", "cancel", "withdraw", "heartbeat", "release", "reachable")

harmless = st.one_of(
    st.builds(Request, next=some(0, 1, 2**32 - 1)),
    *(st.builds(Request, **{kind: some(True)}) for kind in KINDS),
    st.builds(Request, send=some(payload(None), payload("sent"))),
    st.builds(Request, task=changed_tasks()),
)

hostile_requests = st.one_of(
    st.builds(Request, task=tasks),
    st.builds(Request, chunk=chunks),
    st.builds(Request, send=payloads),
    st.builds(Request, throw=payloads),
    st.builds(Request, call=numbers, task=good_tasks),
    st.builds(Request, call=numbers),
)


@st.composite
def request_batches(draw: st.DrawFn) -> list[bytes]:
    """A session's, from the first on: tasks that run, what may be asked of them, and the rest."""
    batches = [RequestBatch()]
    for number in range(1, draw(st.integers(1, 12)) + 1):
        if draw(st.booleans()):
            batches.append(RequestBatch())
        frame = Request(task=draw(good_tasks))
        kind = draw(some("task", "task", "other", "other", "hostile"))
        if kind != "task":
            frame = draw(harmless if kind == "other" else hostile_requests)
        if not frame.call:
            new = frame.HasField("task")
            frame.call = number if new else draw(st.integers(max(0, number - 3), number))
        batches[-1].frames.append(frame)
    batches[-1].last = draw(some(*[False] * 9, True))
    return [draw(damaged(batch)) for batch in batches]


RESULTS = (
    payload(ValueError("an exception")),
    payload(b"x" * 300_000),
    Payload(data=bytes(serializer.dump_exception(SystemExit(3)).data)),
    payload(SystemExit(3)),
    payload(StopIteration()),
    payload(StopAsyncIteration()),
    payload(routines.Trap(SystemExit, "unpickled")),
)

ours = some(1, 2, 3)  # The numbers of a client's first calls.


def answers(*kinds: str, bodies: SearchStrategy[Any]) -> SearchStrategy[Response]:
    return st.builds(
        lambda n, kind, body: Response(call=n, **{kind: body}), ours, some(*kinds), bodies
    )


fitting = st.one_of(
    answers("ack", bodies=some(True)),
    answers("item", bodies=some(payload(None), payload("good"))),
    answers("item", "result", bodies=some(payload(None), payload("good"))),
    answers("exception", bodies=some(payload(LookupError("raised")))),
    answers("done", bodies=some(True)),
)

responses = often(
    fitting,
    answers("heartbeat", "cancelling", "release", bodies=some(True)),
    answers("result", "item", "exception", bodies=st.sampled_from(RESULTS)),
    answers("result", "item", "exception", bodies=payloads),
    answers("nack", bodies=some({}, {"reason": "hostile"})),
    answers("chunk", bodies=chunks),
    st.builds(Response, call=numbers, result=payloads),
    st.builds(Response, call=numbers),
)

response_batches = st.builds(
    ResponseBatch, frames=st.lists(responses, max_size=4), last=some(*[False] * 9, True)
).flatmap(damaged)

VERSION, WIRE = protocol.VERSION_KEY, protocol.WIRE_KEY

versions = some(
    *[protocol.versions()] * 24,
    (),
    ((VERSION, protocol.__version__),),
    ((WIRE, str(protocol.WIRE)),),
    ((WIRE, "0"), (VERSION, protocol.__version__)),
    ((WIRE, str(protocol.WIRE)), (VERSION, "not a version")),
    ((WIRE, str(protocol.WIRE)), (VERSION, "999.0.0")),
)

ME = os.getpid()

offers = some(
    None,
    "",
    ":",
    "::::",
    "a:b:c",
    "0:0:",
    f"-1:{2**70}:00",
    f"{ME}:0:",
    f"{ME}:1:{'00' * 32}",
    f"{ME}:{sys.maxsize}:00",
    f"{'9' * 6000}:1:00",
    "self/../../etc:passwd:00",
    "1/fd/../../../etc/passwd:0:00",
)
