"""Traces and metrics by OpenTelemetry: `wool.otel.instrument()`, with the extra `wool[otel]`.

A call is a CLIENT span where it is made, and a SERVER span in its worker, which is the parent of
the calls nested in it: the trace context travels with the task. A worker takes it up by itself; for
its spans to go anywhere, the SDK must be set up there as well, for example by a module that it
imports. Names and attributes follow OpenTelemetry's conventions for RPC:
https://opentelemetry.io/docs/specs/semconv/rpc/.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Final

from opentelemetry import context, metrics, propagate, trace
from opentelemetry.trace import SpanKind, StatusCode

from wool._version import __version__
from wool.runtime import observation

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token
    from uuid import UUID

    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

    from wool.runtime.observation import Event
    from wool.runtime.routine.task import Task

SYSTEM: Final = "wool"
"""The value of `rpc.system.name`."""

_lock = threading.Lock()
_end: Callable[[], None] | None = None


def instrument(
    *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> None:
    """Record the calls and tasks of this process (default: with the global providers).

    Spans are named like their routine and have its name in `rpc.method`, and in `error.type` the
    class of what was raised. Metrics are the histograms `rpc.client.call.duration` and
    `rpc.server.call.duration`, in seconds, and the counter `wool.client.call.refusals`, of workers
    that did not take a call. Does nothing if it has been called before.
    """
    global _end
    with _lock:
        if _end is None:
            _end = observation.listen(_Recorder(tracer_provider, meter_provider))


def uninstrument() -> None:
    """Record no more. Spans that have begun are not ended."""
    global _end
    with _lock:
        if _end is not None:
            _end()
            _end = None


class _Recorder:
    """Makes spans and measurements of events."""

    def __init__(
        self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None
    ) -> None:
        self._tracer = trace.get_tracer("wool", __version__, tracer_provider)
        meter = metrics.get_meter("wool", __version__, meter_provider)
        self._durations = {
            f"{kind}-ended": meter.create_histogram(
                f"rpc.{side}.call.duration", unit="s", description=f"How long {kind}s take"
            )
            for kind, side in (("call", "client"), ("task", "server"))
        }
        self._refusals = meter.create_counter(
            "wool.client.call.refusals", description="Workers that did not take a call"
        )
        self._calls: dict[UUID, Span] = {}
        self._tasks: dict[object, tuple[Span, Token[Context]]] = {}
        """By the asyncio task that runs them: one that is tried again may run twice here."""

    def __call__(self, event: Event, task: Task | None) -> None:
        if event.kind == "call-started" and task is not None:
            self._begin_call(event, task)
        elif event.kind == "task-started" and task is not None:
            self._begin_task(event, task)
        elif event.kind == "call-ended":
            self._end(event, self._calls.pop(event.id, None) if event.id else None)
        elif event.kind == "task-ended" and (here := asyncio.current_task()) in self._tasks:
            span, token = self._tasks.pop(here)
            context.detach(token)
            self._end(event, span)
        elif event.kind == "call-refused":
            self._refusals.add(1, _attributes(event))

    def _begin_call(self, event: Event, task: Task) -> None:
        span = self._tracer.start_span(
            _method(event), kind=SpanKind.CLIENT, attributes=_attributes(event)
        )
        task.trace = {}
        propagate.inject(task.trace, trace.set_span_in_context(span))
        self._calls[task.id] = span

    def _begin_task(self, event: Event, task: Task) -> None:
        parent = propagate.extract(task.trace or {})
        span = self._tracer.start_span(
            _method(event), parent, kind=SpanKind.SERVER, attributes=_attributes(event)
        )
        token = context.attach(trace.set_span_in_context(span, parent))
        self._tasks[asyncio.current_task()] = span, token

    def _end(self, event: Event, span: Span | None) -> None:
        attributes = _attributes(event)
        if event.error is not None:
            attributes["error.type"] = _class(event.error)
        if event.seconds is not None:
            self._durations[event.kind].record(event.seconds, attributes)
        if span is not None:
            if event.error is not None:
                span.record_exception(event.error)
                span.set_attribute("error.type", attributes["error.type"])
                span.set_status(StatusCode.ERROR, str(event.error))
            span.end()


def _method(event: Event) -> str:
    """The routine, without the line."""
    return event.tag.rpartition(":")[0]


def _attributes(event: Event) -> dict[str, str]:
    return {"rpc.system.name": SYSTEM, "rpc.method": _method(event)}


def _class(error: BaseException) -> str:
    kind = type(error)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else (f"{kind.__module__}.{kind.__qualname__}")
    )
