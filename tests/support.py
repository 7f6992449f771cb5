"""What several test modules share."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


async def eventually(
    predicate: Callable[[], object], timeout: float = 10, interval: float = 0.01
) -> None:
    """Wait until `predicate()` is true; `AssertionError` if it isn't within `timeout` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not predicate():
        if loop.time() > deadline:
            raise AssertionError(f"not true within {timeout} s: {_describe(predicate)}")
        await asyncio.sleep(interval)


def _describe(predicate: Callable[[], object]) -> str:
    try:
        return inspect.getsource(predicate).strip()
    except (OSError, TypeError):
        return repr(predicate)
