from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.discovery import gpu, make_worker
from wool.runtime.discovery.base import DiscoveryEvent
from wool.runtime.discovery.filtering import EventFilter, dump_filter, load_filter

if TYPE_CHECKING:
    from wool.runtime.worker.metadata import WorkerMetadata

WORKERS = [make_worker() for _ in range(3)]


@given(st.lists(st.tuples(st.sampled_from(range(3)), st.sampled_from(["gpu", "cpu", None]))))
def test_filter_shows_exactly_those_who_pass(steps: list[tuple[int, str | None]]) -> None:
    """Any history of workers that come with a tag, change it, and go (None)."""
    filter = EventFilter(gpu)
    there: dict[int, WorkerMetadata] = {}
    shown: dict[int, WorkerMetadata] = {}
    for number, tag in steps:
        worker = replace(WORKERS[number], tags=frozenset({tag} if tag else ()))
        if tag is None and number not in there:
            continue
        if tag is None:
            event = filter.apply(DiscoveryEvent("worker-dropped", there.pop(number)))
        else:
            known = number in there
            event = filter.apply(
                DiscoveryEvent("worker-updated" if known else "worker-added", worker)
            )
            there[number] = worker
        match event:
            case DiscoveryEvent("worker-added", metadata):
                assert number not in shown
                shown[number] = metadata
            case DiscoveryEvent("worker-updated", metadata):
                assert number in shown
                shown[number] = metadata
            case DiscoveryEvent("worker-dropped", metadata):
                assert shown.pop(number) == metadata
        assert shown == {number: worker for number, worker in there.items() if gpu(worker)}


def test_filter_without_predicate_changes_nothing() -> None:
    filter = EventFilter(None)
    events = [DiscoveryEvent("worker-added", make_worker()) for _ in range(2)]
    events.append(DiscoveryEvent("worker-dropped", make_worker()))

    assert [filter.apply(event) for event in events] == events


def test_dump_filter_without_filter() -> None:
    assert load_filter(dump_filter(None)) is None


def test_dump_filter_by_value() -> None:
    tag = "gpu"
    filter = load_filter(dump_filter(lambda worker: tag in worker.tags))

    assert filter is not None
    assert filter(make_worker())
    assert not filter(make_worker(tags=frozenset()))
