"""Two pools in two processes share a namespace; the lease caps what one uses of the other.

A neighbour announces four workers. The pool here has one worker of its own and a lease of two, so
of the five that are announced it uses three.
"""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from uuid import uuid4

import wool

OWN, LEASE, NEIGHBOURS = 1, 2, 4
NEIGHBOUR = Path(__file__).with_name("hybrid_lease_neighbour.py")


@wool.routine
async def process() -> int:
    return os.getpid()


async def announced(discovery: wool.LocalDiscovery, expected: int) -> set[int]:
    """The processes of the workers that discovery knows, once there are as many as expected."""
    processes: set[int] = set()
    async for event in discovery.subscriber:
        processes.add(event.metadata.pid)
        if len(processes) == expected:
            break
    return processes


async def used(expected: int) -> set[int]:
    """The processes that calls end up in, once there are as many as expected."""
    processes: set[int] = set()
    while len(processes) < expected:
        processes.add(await process())
    for _ in range(50):  # there would be more by now if the lease let them in
        processes.add(await process())
    return processes


async def start_neighbour(namespace: str) -> Process:
    neighbour = await asyncio.create_subprocess_exec(
        sys.executable, NEIGHBOUR, namespace, str(NEIGHBOURS), stdin=PIPE, stdout=PIPE
    )
    assert neighbour.stdout
    print("the neighbour", (await neighbour.stdout.readline()).decode().strip())
    return neighbour


async def main() -> None:
    discovery = wool.LocalDiscovery(f"example-{uuid4().hex}")
    neighbour = await start_neighbour(discovery.namespace)
    async with wool.WorkerPool(size=OWN, lease=LEASE, discovery=discovery) as pool:
        known = await announced(discovery, OWN + NEIGHBOURS)
        admitted = await used(OWN + LEASE)
        print(f"announced: {len(known)} workers, {OWN} of this pool and {NEIGHBOURS} more")
        print(f"admitted: {len(admitted)} workers, for size {OWN} and lease {LEASE}")
        print(pool)

        assert neighbour.stdin
        neighbour.stdin.close()
        await neighbour.wait()
        print(f"without the neighbour: {len(await used(OWN))} worker")


asyncio.run(main())
