"""An async generator that runs in a worker: values go both ways, one step at a time."""

import asyncio
from collections.abc import AsyncGenerator

import wool


@wool.routine
async def average() -> AsyncGenerator[float, float]:
    """The mean of what has been sent so far."""
    total, count, mean = 0.0, 0, 0.0
    while True:
        total += yield mean
        count += 1
        mean = total / count


@wool.routine
async def squares() -> AsyncGenerator[tuple[int, int], None]:
    """All of them; says so when it is closed, in the process that it runs in."""
    number = 0
    try:
        while True:
            yield number, number**2
            number += 1
    finally:
        print(f"squares: closed in the worker after {number}", flush=True)


async def main() -> None:
    async with wool.WorkerPool(size=1):
        running = average()
        await anext(running)
        for value in (10, 20, 60):
            print(f"average: sent {value}, is now {await running.asend(value):g}")
        await running.aclose()

        stream = squares()
        async for number, square in stream:
            print(f"squares: {number} squared is {square}", flush=True)
            if square > 10:
                break
        await stream.aclose()  # returns when the generator's `finally` has run
        print("squares: and so the caller goes on")


asyncio.run(main())
