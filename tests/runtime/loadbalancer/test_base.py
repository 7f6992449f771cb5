from __future__ import annotations

import pickle
from uuid import UUID

import pytest

from tests.conformance.loadbalancer import FakeConnection, worker
from wool.runtime import errors
from wool.runtime.loadbalancer.base import (
    ConnectionLike,
    LoadBalancerContext,
    LoadBalancerContextLike,
    LoadBalancerLike,
    NoWorkersAvailable,
)


@pytest.fixture
def evicted() -> list[UUID]:
    return []


@pytest.fixture
def context(evicted: list[UUID]) -> LoadBalancerContext:
    return LoadBalancerContext(on_evict=lambda metadata: evicted.append(metadata.uid))


def addresses(context: LoadBalancerContext) -> list[str]:
    return [metadata.address for metadata in context.workers]


def test_protocols_are_satisfied(context: LoadBalancerContext) -> None:
    assert isinstance(context, LoadBalancerContextLike)
    assert isinstance(FakeConnection(1), ConnectionLike)
    assert not isinstance(object(), LoadBalancerLike)


def test_no_workers_available_is_the_one_of_errors() -> None:
    assert NoWorkersAvailable is errors.NoWorkersAvailable
    assert str(pickle.loads(pickle.dumps(NoWorkersAvailable("so")))) == "so"


def test_workers_map_metadata_to_connection(context: LoadBalancerContext) -> None:
    one, two = FakeConnection(1), FakeConnection(2)
    context.add_worker(worker(1), one)
    context.add_worker(worker(2), two)
    assert dict(context.workers) == {worker(1): one, worker(2): two}
    assert repr(context) == "<LoadBalancerContext 2 workers>"


def test_workers_are_read_only(context: LoadBalancerContext) -> None:
    with pytest.raises(TypeError):
        context.workers[worker(1)] = FakeConnection(1)  # type: ignore[index]


def test_workers_are_replaced_on_change_only(context: LoadBalancerContext) -> None:
    connection = FakeConnection(1)
    snapshots = [context.workers]
    context.add_worker(worker(1), connection)
    snapshots.append(context.workers)
    context.update_worker(worker(1), FakeConnection(1))
    snapshots.append(context.workers)
    context.update_worker(worker(1, "unix:/new"), context.workers[worker(1)])
    snapshots.append(context.workers)
    context.remove_worker(worker(1))
    snapshots.append(context.workers)
    assert len(set(map(id, snapshots))) == 5
    assert [len(snapshot) for snapshot in snapshots] == [0, 1, 1, 1, 0]


def test_workers_stay_the_same_without_a_change(context: LoadBalancerContext) -> None:
    connection = FakeConnection(1)
    context.add_worker(worker(1), connection)
    snapshot = context.workers
    context.add_worker(worker(1), connection)
    context.update_worker(worker(1), connection, upsert=True)
    context.update_worker(worker(2), connection)
    context.remove_worker(worker(2))
    assert context.workers is snapshot


def test_add_of_present_updates_in_place(context: LoadBalancerContext) -> None:
    """A42: a worker that is announced again, elsewhere, is still one worker."""
    for i in (1, 2):
        context.add_worker(worker(i), FakeConnection(i))
    context.add_worker(worker(1, "unix:/new"), FakeConnection(3))
    assert addresses(context) == ["unix:/new", "unix:/w"]


def test_update_replaces_metadata_and_connection_in_place(context: LoadBalancerContext) -> None:
    """A42."""
    for i in (1, 2):
        context.add_worker(worker(i), FakeConnection(i))
    connection = FakeConnection(3)
    context.update_worker(worker(1, "unix:/new"), connection)
    assert addresses(context) == ["unix:/new", "unix:/w"]
    assert context.workers[worker(1, "unix:/new")] is connection


@pytest.mark.parametrize("upsert", [False, True])
def test_update_of_absent(context: LoadBalancerContext, upsert: bool) -> None:
    context.update_worker(worker(1), FakeConnection(1), upsert=upsert)
    assert len(context.workers) == upsert


def test_remove_matches_by_uid_and_tells(context: LoadBalancerContext, evicted: list[UUID]) -> None:
    """A42."""
    context.add_worker(worker(1), FakeConnection(1))
    context.remove_worker(worker(1, "unix:/other"))
    context.remove_worker(worker(1))
    assert not context.workers
    assert evicted == [UUID(int=1)]


def test_remove_without_anyone_to_tell() -> None:
    context = LoadBalancerContext()
    context.add_worker(worker(1), FakeConnection(1))
    context.remove_worker(worker(1))
    assert not context.workers


def test_discard_tells_nobody(context: LoadBalancerContext, evicted: list[UUID]) -> None:
    context.add_worker(worker(1), FakeConnection(1))
    assert context.discard(worker(1, "unix:/other")) == worker(1)
    assert context.discard(worker(1)) is None
    assert not context.workers
    assert evicted == []
