import asyncio
import math

import wool


@wool.routine
async def count_primes(start: int, stop: int) -> int:
    return sum(
        all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
        for number in range(max(start, 2), stop)
    )


async def main() -> None:
    async with wool.WorkerPool(size=2):
        counts = await asyncio.gather(
            *(count_primes(start, start + 25_000) for start in range(0, 100_000, 25_000))
        )
    print(f"{sum(counts):,} primes below 100,000")


asyncio.run(main())
