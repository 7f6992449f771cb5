"""Notices when a routine keeps the routine loop from running anything else."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from wool.runtime.worker.executor import RoutineLoop

logger = logging.getLogger("wool.worker")

QUESTIONS = 2
"""How often the routine loop is asked, within the threshold, whether it runs."""


class LoopWatch:
    """Asks the routine loop now and then, while there is something to run, and times the answer.

    It runs on another loop. Of a loop that has not answered for `threshold` seconds it logs, once,
    what it does instead; None is never.
    """

    def __init__(
        self, routines: RoutineLoop, threshold: float | None, busy: Callable[[], bool]
    ) -> None:
        self._routines = routines
        self._threshold = threshold
        self._busy = busy
        self._lag = 0.0
        self._asked: float | None = None
        self._told = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._schedule()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    @property
    def lag(self) -> float:
        """Seconds that the last answer took, or that one is overdue."""
        asked = self._asked
        return self._lag if asked is None else max(self._lag, time.monotonic() - asked)

    def _schedule(self) -> None:
        interval = (self._threshold or 1.0) / QUESTIONS
        self._timer = asyncio.get_running_loop().call_later(interval, self._look)

    def _look(self) -> None:
        self._schedule()
        if self._asked is None:
            self._told = False
            if self._busy():
                self._asked = time.monotonic()
                self._routines.post(self._answer)
        elif not self._told and self._threshold is not None and self.lag >= self._threshold:
            self._told = True
            self._tell()

    def _answer(self) -> None:
        """On the routine loop."""
        asked, self._asked = self._asked, None
        if asked is not None:
            self._lag = time.monotonic() - asked

    def _tell(self) -> None:
        from wool.runtime.worker.stacks import stack_of  # Few workers are blocked.

        current = asyncio.current_task(self._routines.loop)
        if current is not None:
            logger.warning(
                "Worker %s: a routine has kept its event loop from running anything else for %.1f "
                "s; blocking calls belong in asyncio.to_thread. It is here:\n%s",
                os.getpid(),
                self.lag,
                stack_of(current, self._routines),
            )
