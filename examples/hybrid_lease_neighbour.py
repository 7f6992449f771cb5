"""A pool that other processes may use too: announces its workers until its input ends.

Run by hybrid_lease.py: `python hybrid_lease_neighbour.py NAMESPACE SIZE`.
"""

import asyncio
import sys

import wool


async def main(namespace: str, size: int) -> None:
    async with wool.WorkerPool(size=size, discovery=wool.LocalDiscovery(namespace)):
        print(f"announces {size} workers", flush=True)
        await asyncio.to_thread(sys.stdin.read)


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
