"""Routines of the tests of OpenTelemetry. In a worker, this module sets up the SDK."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import wool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

exporter = InMemorySpanExporter()


def provider() -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


if wool.__worker_metadata__ is not None:
    trace.set_tracer_provider(provider())


@wool.routine
async def leaf() -> str:
    return trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)


@wool.routine
async def branch() -> str:
    (only,) = set(await asyncio.gather(leaf(), leaf()))
    return only


@wool.routine
async def count() -> AsyncIterator[int]:
    yield 1
    yield 2


@wool.routine
async def fail() -> None:
    raise LookupError("on purpose")


@wool.routine
async def finished() -> list[tuple[str, str, str | None, str]]:
    """Name, kind, parent and id of the spans that have ended in this worker."""
    return describe()


def describe() -> list[tuple[str, str, str | None, str]]:
    return [
        (
            span.name.rpartition(".")[2],
            span.kind.name,
            trace.format_span_id(span.parent.span_id) if span.parent else None,
            trace.format_span_id(span.context.span_id),
        )
        for span in exporter.get_finished_spans()
        if span.context is not None
    ]
