"""Workers that are started together, announced, replaced when they die, and stopped together."""

from __future__ import annotations

import asyncio
import logging
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from wool.runtime.worker.process import START_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from wool.runtime.discovery.base import DiscoveryPublisherLike
    from wool.runtime.worker.base import WorkerLike

logger = logging.getLogger("wool.pool")

START_MARGIN = 10.0
"""Seconds over a worker's own start timeout after which it is given up on."""

SHORT_LIFE = 5.0
"""Seconds; a worker that dies sooner is replaced after a delay."""

ATTEMPTS = 5
"""How many failed starts in a row are enough."""

ANNOUNCE_TIMEOUT = 5.0
"""Seconds for a discovery to take an announcement, or to be left."""

FIRST_DELAY, LAST_DELAY = 0.1, 5.0
"""Seconds before another start, doubling as long as workers die early or don't start."""

HEARD = 1.0
"""Seconds for clients to hear that a worker has been dropped, before it refuses calls."""


class Crew:
    """Workers in `size` slots, that `make`, given the number of one, makes for it.

    `publisher` announces them; `changed` is called whenever they are others. One that has ended is
    replaced, unless `is_over`, given how it ended in words, returns true (default: never). With
    `overlap`, one that retires is there until its replacement is.
    """

    def __init__(
        self,
        make: Callable[[int], WorkerLike],
        size: int,
        publisher: DiscoveryPublisherLike,
        *,
        changed: Callable[[], object] = lambda: None,
        is_over: Callable[[str], bool] = lambda how: False,
        overlap: bool = True,
    ) -> None:
        self.workers = {slot: make(slot) for slot in range(size)}
        self.failed = False
        """Whether one has died that could not be replaced."""
        self._make = make
        self._publisher = publisher
        self._changed = changed
        self._is_over = is_over
        self._overlap = overlap
        self._started: list[WorkerLike] = []
        self._supervisors: list[asyncio.Task[None]] = []
        self._leaving: dict[UUID, asyncio.Event] = {}
        self._relieving = asyncio.Lock()
        self._endings: dict[UUID, asyncio.Task[None]] = {}

    @property
    def serving(self) -> dict[int, WorkerLike]:
        """Those that have started, by slot."""
        return {slot: each for slot, each in self.workers.items() if each in self._started}

    @property
    def uids(self) -> list[UUID]:
        return [worker.uid for worker in self.workers.values()]

    async def start(self) -> None:
        """Start and announce them all.

        Raises an `ExceptionGroup` if some fail to start; the others are to be stopped then.
        """
        results = await asyncio.gather(
            *(self._start(worker) for worker in self.workers.values()), return_exceptions=True
        )
        failures = [result for result in results if result is not None]
        if failures:
            raise BaseExceptionGroup("worker spawn failures", failures)

    def supervise(self) -> None:
        """Have those that end be replaced, from now on."""
        self._supervisors = [
            asyncio.create_task(self._supervise(slot), name="wool supervisor")
            for slot in self.workers
        ]

    async def over(self) -> None:
        """Return when there is nothing more to supervise."""
        if self._supervisors:
            await asyncio.wait(self._supervisors)

    def retire(self, worker: WorkerLike) -> bool:
        """Have another one take a worker's place; it ends when its calls have.

        Whether that was not under way already.
        """
        if worker not in self.workers.values() or self._retiring(worker).is_set():
            return False
        self._retiring(worker).set()
        return True

    def _retiring(self, worker: WorkerLike) -> asyncio.Event:
        return self._leaving.setdefault(worker.uid, asyncio.Event())

    async def withdraw(self, worker: WorkerLike) -> None:
        """Announce that a worker isn't to be called any more."""
        if worker.metadata is None:
            return
        try:
            async with asyncio.timeout(ANNOUNCE_TIMEOUT):
                await self._publisher.publish("worker-dropped", worker.metadata)
        except Exception:
            logger.exception("Worker %s could not be announced as dropped", worker.uid)

    async def _start(self, worker: WorkerLike) -> None:
        async with asyncio.timeout(START_TIMEOUT + START_MARGIN):
            await worker.start()
            self._started.append(worker)
            if worker.metadata is None:
                raise RuntimeError(f"{worker!r} has started without metadata")
            await self._publisher.publish("worker-added", worker.metadata)

    # While they run

    async def _supervise(self, slot: int) -> None:
        """Replace the worker there, and its replacements, whenever they end."""
        clock = asyncio.get_running_loop().time
        delay = 0.0
        while (wait := getattr(worker := self.workers[slot], "wait", None)) is not None:
            born = clock()
            how = await self._end_of(worker, wait)
            if how is None:
                if await self._relieve(slot):
                    continue
                self._give_up(slot)
                return
            await self._drop(worker)
            if self._is_over(how):
                logger.info("%r is over: %s", worker, how)
                self._disown(slot)
                return
            logger.warning("%r is replaced: %s", worker, how)
            early = clock() - born < SHORT_LIFE
            delay = min(max(2 * delay, FIRST_DELAY), LAST_DELAY) if early else 0.0
            await asyncio.sleep(delay)
            if not await self._replace(slot):
                self._give_up(slot)
                return

    async def _end_of(self, worker: WorkerLike, wait: Callable[[], Any]) -> str | None:
        """How it has ended, in words; None when it is to retire."""
        retiring = self._retiring(worker).wait()
        waits = asyncio.create_task(wait()), asyncio.create_task(retiring)
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return str(await waits[0]) if waits[0].done() else None
        finally:
            for each in waits:
                each.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _relieve(self, slot: int) -> bool:
        """Replace the worker there by another one. Whether one is there then."""
        async with self._relieving:  # One after the other.
            worker = self.workers[slot]
            if not self._overlap:
                await self._dismiss(worker)
                await asyncio.wait([self._endings[worker.uid]])
            replaced = await self._replace(slot)
            if replaced and self._overlap:
                await self._dismiss(worker)
            self._leaving.pop(worker.uid, None)
            return replaced or self._overlap

    async def _dismiss(self, worker: WorkerLike) -> None:
        await self.withdraw(worker)
        await asyncio.sleep(HEARD)
        ending = asyncio.create_task(self._end(worker), name="wool worker end")
        self._endings[worker.uid] = ending

    async def _end(self, worker: WorkerLike) -> None:
        try:
            await worker.stop(timeout=-1)
        except Exception:
            logger.exception("%r did not stop in order", worker)
        finally:
            with suppress(ValueError):
                self._started.remove(worker)
            del self._endings[worker.uid]

    async def _replace(self, slot: int) -> bool:
        """Start another one in its place; False if that has failed too often in a row."""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(min(FIRST_DELAY * 2**attempt, LAST_DELAY))
            if await self._try_to_replace(slot):
                return True
        return False

    def _give_up(self, slot: int) -> None:
        self.failed = True
        worker = self._disown(slot)
        message = f"{worker!r} has died and is not replaced: {ATTEMPTS} others did not start"
        logger.error(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)

    async def _try_to_replace(self, slot: int) -> bool:
        worker = self.workers[slot]
        replacement = None
        try:
            replacement = self._make(slot)
            self._own(slot, replacement)
            await self._start(replacement)
        except Exception:
            logger.exception("%r could not be replaced", worker)
            if replacement is None:
                return False
            self._own(slot, worker)
            if replacement in self._started:
                await self._drop(replacement)
            return False
        return True

    def _own(self, slot: int, worker: WorkerLike) -> None:
        self.workers[slot] = worker
        self._changed()

    def _disown(self, slot: int) -> WorkerLike:
        worker = self.workers.pop(slot)
        self._changed()
        return worker

    async def _drop(self, worker: WorkerLike) -> None:
        """Let go of a worker that has died, or is of no use."""
        await self.withdraw(worker)
        self._leaving.pop(worker.uid, None)
        self._started.remove(worker)
        try:
            await worker.stop()
        except Exception:
            logger.exception("%r did not stop in order", worker)

    # The end

    async def stop_supervising(self) -> None:
        for supervisor in self._supervisors:
            supervisor.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)

    async def stop(self, leaving: Departure) -> None:
        """Stop them all, and return when they have ended.

        Cancelled or interrupted, it stops them without draining; that is raised at the end.
        """
        interruption: BaseException | None = None
        # Again after an interruption, which may have come before a stop had begun.
        while self._started:
            try:
                await asyncio.gather(
                    *(self._stop(worker, leaving) for worker in list(self._started)),
                    return_exceptions=True,
                )
            except BaseException as exc:
                leaving.drain = False
                interruption = exc
        if interruption is not None:
            raise interruption

    async def _stop(self, worker: WorkerLike, leaving: Departure) -> None:
        self._started.remove(worker)
        try:
            await self.withdraw(worker)
        except asyncio.CancelledError:
            leaving.drain = False
            raise
        finally:
            remaining = leaving.remaining()
            patience = -1 if remaining is None else remaining
            ending = self._endings.get(worker.uid)
            try:
                async with asyncio.timeout(remaining):
                    if ending is not None:
                        await ending
                    else:
                        await worker.stop(timeout=patience if leaving.drain else 0)
            except TimeoutError:
                logger.warning("%r did not stop in time and was cut off", worker)
            except Exception:
                logger.exception("%r did not stop in order", worker)


class Departure:
    """How a crew, or a pool, is being left: until when, and whether calls may finish."""

    def __init__(self, *, drain: bool, timeout: float | None) -> None:
        self.drain = drain
        loop = asyncio.get_running_loop()
        self._deadline = None if timeout is None else loop.time() + timeout

    def remaining(self) -> float | None:
        """Seconds until it must be over; None without limit."""
        if self._deadline is None:
            return None
        return max(self._deadline - asyncio.get_running_loop().time(), 0)
