"""Spans and metrics, seen by OpenTelemetry's own SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import StatusCode

from tests import otel_routines
from tests.otel_routines import branch, count, exporter, fail, finished, leaf
from tests.runtime.worker.routines import pid
from wool import WorkerPool, otel

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def reader() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    tracer_provider, meter_provider = otel_routines.provider(), MeterProvider([reader])
    otel.instrument(tracer_provider=tracer_provider, meter_provider=meter_provider)
    yield reader
    otel.uninstrument()
    meter_provider.shutdown()
    tracer_provider.shutdown()
    exporter.clear()
    # The exporter outlives its providers here.
    exporter._stopped = False


async def test_a_call_is_a_span_here_and_one_in_its_worker() -> None:
    async with WorkerPool(size=1):
        await leaf()
        ((name, kind, parent, span_id),) = otel_routines.describe()
        assert (name, kind, parent) == ("leaf", "CLIENT", None)
        there = await finished()
    assert [(name, kind, parent) for name, kind, parent, _ in there] == [
        ("leaf", "SERVER", span_id)
    ]


async def test_nested_calls_are_children() -> None:
    async with WorkerPool(size=1):
        await branch()
        ((_, _, _, root),) = otel_routines.describe()
        spans = await finished()
    (branch_span,) = [span for span in spans if span[0] == "branch"]
    calls = [span for span in spans if (span[0], span[1]) == ("leaf", "CLIENT")]
    leaves = [span for span in spans if (span[0], span[1]) == ("leaf", "SERVER")]
    assert branch_span[2] == root
    assert [call[2] for call in calls] == [branch_span[3]] * 2
    assert {each[2] for each in leaves} == {call[3] for call in calls}


async def test_a_trace_goes_through_all_of_it() -> None:
    async with WorkerPool(size=2):
        trace_id = await branch()
    (span,) = exporter.get_finished_spans()
    assert span.context is not None
    assert trace_id == f"{span.context.trace_id:032x}"


async def test_a_stream_is_one_span() -> None:
    async with WorkerPool(size=1):
        assert [number async for number in count()] == [1, 2]
        assert [name for name, *_ in await finished()] == ["count"]
    assert next(name for name, *_ in otel_routines.describe()) == "count"


async def test_a_worker_where_it_fails_runs_tasks_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_TRACER_PROVIDER", "one that is not installed")
    async with WorkerPool(size=1):
        assert await pid() > 0
        assert await pid() > 0


async def test_what_is_raised_is_recorded() -> None:
    async with WorkerPool(size=1):
        with pytest.raises(LookupError):
            await fail()
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {}) == {
        "rpc.system.name": "wool",
        "rpc.method": "tests.otel_routines.fail",
        "error.type": "LookupError",
    }
    assert [event.name for event in span.events] == ["exception"]


async def test_durations_are_measured(reader: InMemoryMetricReader) -> None:
    async with WorkerPool(size=1):
        await leaf()
        await leaf()
    data: Any = reader.get_metrics_data()
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    assert (metric.name, metric.unit) == ("rpc.client.call.duration", "s")
    (point,) = metric.data.data_points
    assert point.count == 2
    assert 0 < point.sum < 60


async def test_ends_with_uninstrument() -> None:
    otel.uninstrument()
    async with WorkerPool(size=1):
        await leaf()
        assert await finished() == []
    assert exporter.get_finished_spans() == ()
