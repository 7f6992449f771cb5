"""A web app whose requests are worked on in other processes: `uvicorn fastapi_app:app`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request

import wool

CALLS = 4
"""That a worker runs at once; other requests wait for `PATIENCE` seconds."""

PATIENCE = 5.0


@wool.routine(timeout=30)
async def factors(number: int) -> list[int]:
    found, divisor = [], 2
    while divisor**2 <= number:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return [*found, number] if number > 1 else found


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    worker = partial(wool.LocalWorker, max_concurrent_tasks=CALLS)
    async with wool.WorkerPool(size=2, worker=worker) as pool:
        yield {"pool": pool}


async def use_pool(request: Request) -> AsyncIterator[None]:
    """The lifespan is a task of its own, and a pool is active in the task that has entered it."""
    with request.state.pool.activate():
        yield


app = FastAPI(lifespan=lifespan, dependencies=[Depends(use_pool)])


@app.get("/factors/{number}")
async def get_factors(number: int) -> list[int]:
    try:
        with wool.RuntimeContext(dispatch_timeout=PATIENCE):
            return await factors(number)
    except wool.NoWorkersAvailable as error:
        raise HTTPException(503, "all workers are busy") from error
