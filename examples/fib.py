"""Routines that call routines: a recursion that spreads over the workers of the pool."""

import asyncio
import os

import wool

WORKERS = 3
NUMBER = 12


@wool.routine
async def fib(n: int) -> tuple[int, dict[int, int]]:
    """The n-th Fibonacci number, and how many of the calls for it each process has run."""
    calls = {os.getpid(): 1}
    if n < 2:
        return n, calls
    parts = await asyncio.gather(fib(n - 1), fib(n - 2))
    for _, nested in parts:
        for process, count in nested.items():
            calls[process] = calls.get(process, 0) + count
    return sum(number for number, _ in parts), calls


async def main() -> None:
    async with wool.WorkerPool(size=WORKERS):
        number, calls = await fib(NUMBER)
    print(f"fib({NUMBER}) = {number}")
    print(f"{sum(calls.values())} calls ran in {len(calls)} processes:")
    for process, count in sorted(calls.items()):
        print(f"  process {process}: {count} calls")


asyncio.run(main())
