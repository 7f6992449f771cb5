"""Where the time of one call goes: what each stage costs by itself, and what the whole costs.

The stages are those of a no-op, run here one at a time, many times over. The wire is the floor's
round trip, and the rest is what the whole takes beyond all that: wake-ups of loops and processes
that are not hot, queues, and the bookkeeping of sessions.
"""

from __future__ import annotations

import asyncio
from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from benchmarks.columns import COLUMNS
from benchmarks.turns import take

if TYPE_CHECKING:
    from collections.abc import Callable

REPEATS = 2_000
ROUNDS = 7
WHOLE_ROUNDS = 3


class _Proxy:
    """Stands for the proxy of the pool, whose pickle is made once."""

    def __init__(self) -> None:
        self.id = uuid4()

    def dump(self) -> bytes:
        return b"proxy"

    async def dispatch(self, task: Any, *, timeout: float | None = None) -> Any:
        raise NotImplementedError


async def _noop() -> None:
    pass


def measure() -> dict[str, float]:
    """Microseconds by stage; empty where wool can't be taken apart like this any more."""
    try:
        parts = {
            **_codec(),
            "worker: run it, a task of asyncio": asyncio.run(_task()),
            "worker: to the routine loop and back": _hop(),
        }
    except (AttributeError, ImportError, TypeError, ValueError):
        return {}
    whole, wire = _latency("ours"), _latency("floor")
    parts["wire: the floor's round trip"] = wire
    parts["rest: wake-ups, queues, sessions"] = whole - sum(parts.values())
    parts["whole: p50 of a no-op"] = whole
    return parts


def _latency(column: str) -> float:
    runs = [
        take(COLUMNS[column], "latency", {"calls": REPEATS}, 60).metrics.get("p50_ms", 0.0)
        for _ in range(WHOLE_ROUNDS)
    ]
    return min(runs) * 1e3


def _time(function: Callable[[], object]) -> float:
    """Microseconds of one of many calls, in the best round."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = perf_counter()
        for _ in range(REPEATS):
            function()
        best = min(best, perf_counter() - start)
    return best / REPEATS * 1e6


def _codec() -> dict[str, float]:
    from wool import protocol
    from wool.runtime import serializer
    from wool.runtime.routine.task import Task

    proxy: Any = _Proxy()

    def build() -> Task:
        return Task(id=uuid4(), callable=_noop, args=(), kwargs={}, proxy=proxy)

    def frame() -> protocol.RequestBatch:
        batch = protocol.RequestBatch()
        request = batch.frames.add()
        request.call = 1000
        task.write_header(request.task)
        request.task.callable.number = 1
        request.task.proxy.number = 2
        request.task.arguments.data = bytes(arguments.data)
        return batch

    def reply() -> protocol.ResponseBatch:
        batch = protocol.ResponseBatch()
        response = batch.frames.add()
        response.call = 1000
        response.result.data = bytes(result.data)
        return batch

    task = build()
    arguments = task.encode()
    request = frame().SerializeToString()
    header = protocol.RequestBatch.FromString(request).frames[0].task
    result = serializer.dumps(None)
    response = reply().SerializeToString()
    building = _time(build)
    return {
        "caller: make the task": building,
        "caller: encode it": _time(lambda: build().encode()) - building,
        "caller: frame it": _time(frame),
        "caller: serialize the batch": _time(frame().SerializeToString),
        "worker: parse the batch": _time(lambda: protocol.RequestBatch.FromString(request)),
        "worker: decode the task": _time(lambda: Task.decode(header, _noop, proxy, arguments)),
        "worker: encode and frame the result": _time(lambda: serializer.dumps(None)) + _time(reply),
        "worker: serialize the batch": _time(reply().SerializeToString),
        "caller: parse the batch": _time(lambda: protocol.ResponseBatch.FromString(response)),
        "caller: decode the result": _time(lambda: serializer.loads(result)),
    }


async def _task() -> float:
    loop = asyncio.get_running_loop()
    start = perf_counter()
    for _ in range(REPEATS):
        await loop.create_task(_noop())
    return (perf_counter() - start) / REPEATS * 1e6


def _hop() -> float:
    """There and back, between the loops of a worker."""
    from wool.runtime.worker.executor import RoutineLoop
    from wool.runtime.worker.guest import Guest
    from wool.runtime.worker.relay import Relay

    guest = Guest()
    hops: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        replies = Relay(loop)
        routines = RoutineLoop()
        routines.start(guest)
        for _ in range(REPEATS):
            done = loop.create_future()
            answer = partial(replies.post, partial(done.set_result, None))
            start = perf_counter()
            routines.post(answer)
            await done
            hops.append(perf_counter() - start)
        await routines.stop(1)
        replies.close()

    guest.run(main())
    guest.loop.close()
    return median(hops) * 1e6
