"""How the workers are, for Prometheus, asked when it asks."""

from __future__ import annotations

import asyncio
import logging
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Final, TypeVar

import click

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
    from prometheus_client.registry import Collector
except ImportError as exc:
    raise click.UsageError(
        f"--metrics-port: {exc}; python -m pip install 'wool[prometheus]'"
    ) from exc

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from prometheus_client.metrics_core import Metric

    from wool.cli.tally import Tally
    from wool.runtime.worker.status import WorkerStatus

    Ask = Callable[[], Awaitable[dict[int, WorkerStatus]]]

T = TypeVar("T")

logger = logging.getLogger("wool.cli")

SCRAPE_TIMEOUT: Final = 8.0
"""Seconds; Prometheus waits for 10 by default."""

GAUGES: Final = {
    "tasks_running": ("running", "Tasks that have not ended."),
    "sessions": ("sessions", "Event loops that call the worker."),
    "loop_lag_seconds": ("loop_lag", "How long its event loop took to answer."),
    "idle_seconds": ("idle", "For how long it has had no task."),
    "uptime_seconds": ("uptime", "For how long it has served."),
    "resident_memory_bytes": ("memory", "Memory of its process that is resident."),
    "draining": ("draining", "1 if it takes no more tasks."),
}

COUNTERS: Final = {
    "tasks_done": ("done", "Tasks that have ended, those that failed included."),
    "tasks_failed": ("failed", "Tasks that have raised something."),
    "tasks_refused": ("refused", "Tasks that it did not take."),
    "cpu_seconds": ("cpu", "Processor time that its process has used."),
}


class Metrics(Collector):
    """Serves `/metrics` on a port inside a `with` block.

    Workers are told apart by the numbers of their slots: a replacement has that of the one before,
    and counts on from there.
    """

    def __init__(self, port: int, ask: Ask, tally: Tally) -> None:
        self.port = port
        self._ask = ask
        self._tally = tally
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(self.port, registry=registry)
        except OSError as exc:
            raise OSError(f"--metrics-port {self.port} can't be had: {exc}") from exc
        self.port = self._server.server_port
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def collect(self) -> Iterator[Metric]:
        """On a thread of the server's."""
        statuses, sums = asyncio.run_coroutine_threadsafe(self._look(), self._loop).result()
        yield GaugeMetricFamily("wool_workers", "Workers that serve.", value=len(statuses))
        info = InfoMetricFamily("wool_worker", "Which worker it is.", labels=["worker"])
        for slot, status in statuses.items():
            worker = status.worker
            described = {
                "uid": str(worker.uid),
                "address": worker.address,
                "pid": str(worker.pid),
                "version": worker.version,
                "tags": ",".join(sorted(worker.tags)),
            }
            info.add_metric([str(slot)], described)
        yield info
        for name, (field, help) in GAUGES.items():
            yield _family(GaugeMetricFamily, name, help, statuses, attrgetter(field))
        for name, (field, help) in COUNTERS.items():
            yield _family(CounterMetricFamily, name, help, sums, itemgetter(field))

    async def _look(self) -> tuple[dict[int, WorkerStatus], dict[int, Counter[str]]]:
        async with asyncio.timeout(SCRAPE_TIMEOUT):
            return await self._ask(), self._tally.sums()


def _family(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    help: str,
    slots: Mapping[int, T],
    value: Callable[[T], float],
) -> Metric:
    family = kind(f"wool_worker_{name}", help, labels=["worker"])
    for slot, source in slots.items():
        family.add_metric([str(slot)], float(value(source)))
    return family
