"""Real pools over the pairwise product of what can be chosen about them and the calls they run.

The workers that durable and hybrid pools discover are announced by a pool in another process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager, nullcontext
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import psutil
import pytest
from allpairspy import AllPairs

import wool
from tests import integration_routines
from tests.integration_routines import STEPS, Class, Instance, Report, Static
from tests.programs import ROOT
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

NAMESPACE = "integration"
TIMEOUT = 30.0

NEIGHBOUR = f"""
import asyncio, sys, wool

async def main():
    async with wool.WorkerPool(size=2, discovery=wool.LocalDiscovery("{NAMESPACE}")):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def neighbours(runtime_directory: Path) -> Iterator[set[int]]:
    """The processes of two workers that a pool in another process announces in the namespace."""
    with subprocess.Popen(
        [sys.executable, "-c", NEIGHBOUR],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield {child.pid for child in psutil.Process(process.pid).children()}
        process.communicate(timeout=60)
    assert process.returncode == 0


# How pools are made

MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "ephemeral": {"size": 2, "lease": 1},
    "durable": {"lease": 2},
    "hybrid": {"size": 1, "lease": 1},
}


def make_discovery() -> wool.LocalDiscovery:
    return wool.LocalDiscovery(NAMESPACE)


@contextmanager
def enter_discovery() -> Iterator[wool.LocalDiscovery]:
    yield make_discovery()


@asynccontextmanager
async def enter_discovery_async() -> AsyncIterator[wool.LocalDiscovery]:
    yield make_discovery()


DISCOVERIES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "instance": make_discovery,
    "callable": lambda: make_discovery,
    "sync-manager": lambda: enter_discovery,
    "async-manager": lambda: enter_discovery_async,
}


def make_balancer() -> wool.RoundRobinLoadBalancer:
    return wool.RoundRobinLoadBalancer()


@contextmanager
def enter_balancer() -> Iterator[wool.RoundRobinLoadBalancer]:
    yield make_balancer()


@asynccontextmanager
async def enter_balancer_async() -> AsyncIterator[wool.RoundRobinLoadBalancer]:
    yield make_balancer()


BALANCERS: dict[str, Callable[[], Any]] = {
    "class": lambda: wool.RoundRobinLoadBalancer,
    "instance": make_balancer,
    "callable": lambda: make_balancer,
    "sync-manager": lambda: enter_balancer,
    "async-manager": lambda: enter_balancer_async,
}


# What they run. Each returns the reports of the calls made here.

BINDINGS: dict[str, Any] = {
    "function": integration_routines,
    "instance": Instance(0),
    "class": Class,
    "static": Static,
}


async def call(routines: Any, farewell: Path) -> list[Report]:
    reports = [await routines.one(7)]
    assert values(reports) == [7]
    return reports


async def iterate(routines: Any, farewell: Path) -> list[Report]:
    stream = routines.many(7)
    reports = [await anext(stream) for _ in range(STEPS)]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert values(reports) == [7, 8, 9]
    return reports


async def send(routines: Any, farewell: Path) -> list[Report]:
    stream = routines.many(7)
    reports = [await stream.asend(None), await stream.asend(10), await stream.asend(None)]
    with pytest.raises(StopAsyncIteration):
        await stream.asend(1)
    assert values(reports) == [7, 17, 18]
    return reports


async def throw(routines: Any, farewell: Path) -> list[Report]:
    stream = routines.many(7, farewell=farewell)
    reports = [await anext(stream), await stream.athrow(KeyError("handled")), await anext(stream)]
    with pytest.raises(ZeroDivisionError, match="not handled"):
        await stream.athrow(ZeroDivisionError("not handled"))
    assert written(farewell) == reports[0].process
    assert values(reports) == [7, 100, 101]
    return reports


async def close(routines: Any, farewell: Path) -> list[Report]:
    """A14: `aclose` returns when the generator has cleaned up."""
    stream = routines.many(7, farewell=farewell)
    reports = [await anext(stream)]
    await stream.aclose()
    assert written(farewell) == reports[0].process
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert values(reports) == [7]
    return reports


async def coroutine_in_coroutine(routines: Any, farewell: Path) -> list[Report]:
    reports = [await routines.one(7, nested="one")]
    assert [values(report.nested) for report in reports] == [[7]]
    return reports


async def generator_in_coroutine(routines: Any, farewell: Path) -> list[Report]:
    reports = [await routines.one(7, nested="many")]
    assert [values(report.nested) for report in reports] == [[7, 8, 9]]
    return reports


async def coroutine_in_generator(routines: Any, farewell: Path) -> list[Report]:
    reports = [report async for report in routines.many(7, nested="one")]
    assert [values(report.nested) for report in reports] == [[7], [8], [9]]
    return reports


async def generator_in_generator(routines: Any, farewell: Path) -> list[Report]:
    reports = [report async for report in routines.many(7, nested="many")]
    assert [values(report.nested) for report in reports] == [[7, 8, 9], [8, 9, 10], [9, 10, 11]]
    return reports


def written(farewell: Path) -> int:
    return int(farewell.read_text())


def values(reports: Any) -> list[int]:
    return [report.value for report in reports]


SHAPES = {
    shape.__name__: shape
    for shape in (
        call,
        iterate,
        send,
        throw,
        close,
        coroutine_in_coroutine,
        generator_in_coroutine,
        coroutine_in_generator,
        generator_in_generator,
    )
}


# The matrix


class Combination(NamedTuple):
    discovery: str  # this one and the next come first, or pairs get lost
    mode: str
    balancer: str
    shape: str
    binding: str
    timeout: str


CHOICES = [
    list(choices)
    for choices in (DISCOVERIES, MODES, BALANCERS, SHAPES, BINDINGS, ("unbounded", "bounded"))
]


def possible(row: list[str]) -> bool:
    """Whether there is such a pool: with a discovery in just those modes that take one."""
    return len(row) < 2 or (row[0] != "none") == (row[1] in ("durable", "hybrid"))


COMBINATIONS = [Combination(*row) for row in AllPairs(CHOICES, filter_func=possible)]


def test_matrix_holds_every_pair() -> None:
    for (i, some), (j, others) in combinations(enumerate(CHOICES), 2):
        for pair in product(some, others):
            if (i, j) != (0, 1) or possible(list(pair)):
                assert any((row[i], row[j]) == pair for row in COMBINATIONS), pair


@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
async def test_pool_runs_routines(
    combination: Combination, neighbours: set[int], tmp_path: Path
) -> None:
    """A01, A13: wherever a routine runs, and in whatever shape, so do those that it calls."""
    bounded = combination.timeout == "bounded"
    pool = wool.WorkerPool(
        discovery=DISCOVERIES[combination.discovery](),
        loadbalancer=BALANCERS[combination.balancer](),
        **MODES[combination.mode],
    )
    async with pool:
        with wool.RuntimeContext(dispatch_timeout=TIMEOUT) if bounded else nullcontext():
            reports = await SHAPES[combination.shape](
                BINDINGS[combination.binding], tmp_path / "farewell"
            )
        workers, lease = admitted()

    assert lease is None or len(workers) <= lease
    assert len({report.task for report in reports}) == 1
    for report in reports:
        assert report.caller is None
        assert report.process in workers
        # A worker may have admitted another one of the neighbours.
        elsewhere = workers if combination.discovery == "none" else workers | neighbours
        check(report, elsewhere, TIMEOUT if bounded else None)


@pytest.mark.parametrize("enter", [enter_discovery, enter_discovery_async])
async def test_pool_given_a_discovery_that_is_good_for_one_entry(
    enter: Callable[[], Any], neighbours: set[int]
) -> None:
    """Its workers get along without it: what they are sent is the subscriber."""
    async with wool.WorkerPool(size=1, lease=2, discovery=enter()):
        report = await integration_routines.one(7, nested="many")
        workers, _ = admitted()

    check(report, workers | neighbours, None)
    assert values(report.nested) == [7, 8, 9]


async def test_worker_that_is_slow_to_answer_is_waited_for() -> None:
    """A03, A09: its machine is busy, here for a second; it stays in the pool, and gets the call."""
    async with wool.WorkerPool(size=1):
        await eventually(lambda: admitted()[0])
        (worker,), _ = admitted()
        os.kill(worker, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(1, os.kill, worker, signal.SIGCONT)

        report = await integration_routines.one(7)

        assert report.process == worker
        assert admitted()[0] == {worker}


def admitted() -> tuple[set[int], int | None]:
    """The processes of the workers of the active proxy, and its lease."""
    proxy = cast("wool.WorkerProxy", wool.__proxy__.get())
    return {worker.pid for worker in proxy.workers}, proxy.lease


def check(report: Report, workers: set[int], timeout: float | None) -> None:
    """It ran in one of the workers, with that dispatch timeout, and so did what it called."""
    assert report.process in workers - {os.getpid()}
    assert report.timeout == timeout
    for nested in report.nested:
        assert nested.caller == report.task
        check(nested, workers, timeout)
