"""Forks while it watches a namespace: `python -m tests.runtime.discovery.forker NAMESPACE`.

First the child and then the parent prints what each hears of a third process.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING

from tests.conformance.discovery import make_worker
from tests.runtime.discovery.announcer import Announcer, answer
from wool.runtime.discovery.local import LocalDiscovery

if TYPE_CHECKING:
    from wool.runtime.discovery.local import LocalIteration, LocalSubscriber
    from wool.runtime.worker.metadata import WorkerMetadata


async def hear(iterator: LocalIteration, announcer: Announcer) -> None:
    """Of a worker that is announced when all that were there are known."""
    fresh: set[WorkerMetadata] = set()
    hearing = asyncio.ensure_future(find(iterator, fresh))
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        while not hearing.done():
            fresh.add(worker := make_worker())
            announcer.publish("worker-added", worker)
            await asyncio.wait([hearing], timeout=0.1)
    answer(await hearing)


async def find(iterator: LocalIteration, workers: set[WorkerMetadata]) -> str:
    async for event in iterator:
        if event.metadata in workers:
            return event.type
    raise AssertionError("the iteration has ended")


async def begin(iterator: LocalIteration, announcer: Announcer) -> None:
    for _ in range(2):
        await hear(iterator, announcer)


async def live(subscriber: LocalSubscriber, announcer: Announcer) -> None:
    async with aclosing(aiter(subscriber)) as iterator:
        await begin(iterator, announcer)


def main(namespace: str) -> None:
    subscriber = LocalDiscovery(namespace).subscribe(poll_interval=1e6)
    with Announcer(namespace) as announcer, asyncio.Runner() as runner:
        iterator = aiter(subscriber)
        runner.run(begin(iterator, announcer))
        child = os.fork()
        if child == 0:
            asyncio.run(live(subscriber, announcer))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        runner.run(hear(iterator, announcer))
        runner.run(iterator.aclose())
        announcer.end()
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(sys.argv[1])
