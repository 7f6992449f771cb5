from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.worker.memory import made_up
from wool import WorkerMetadata, protocol
from wool.runtime.worker.base import ChannelOptions

if TYPE_CHECKING:
    from collections.abc import Callable

json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=5,
)
workers = st.builds(
    WorkerMetadata,
    uid=st.uuids(),
    address=st.text(),
    pid=st.integers(min_value=1, max_value=2**22),
    version=st.text(),
    tags=st.frozensets(st.text()),
    extra=st.dictionaries(st.text(), json),
    secure=st.booleans(),
    options=st.none() | st.just(ChannelOptions(keepalive_time_ms=8_000)),
)


@given(workers)
def test_metadata_survives_the_wire_and_pickling(worker: WorkerMetadata) -> None:
    """Suspicions 1 and 2: with its options, and with extra of any JSON kind."""
    message = protocol.WorkerMetadata.FromString(worker.to_protobuf().SerializeToString())
    assert WorkerMetadata.from_protobuf(message) == worker
    assert pickle.loads(pickle.dumps(worker)) == worker
    assert copy.deepcopy(worker) == worker


def test_metadata_is_hashed_by_uid() -> None:
    worker = made_up(extra={"unhashable": [1]})
    changed = replace(worker, tags=frozenset({"other"}))
    assert hash(worker) == hash(changed)
    assert worker != changed
    assert changed.tags == frozenset({"other"})


def test_metadata_can_not_be_changed() -> None:
    extra = {"colour": "blue"}
    worker = made_up(extra=extra)
    extra["colour"] = "red"
    assert worker.extra == {"colour": "blue"}
    with pytest.raises(TypeError):
        worker.extra["colour"] = "red"  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        worker.pid = 2  # type: ignore[misc]


def test_metadata_with_extra_that_json_can_not_carry() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        made_up(extra={"lock": object()}).to_protobuf()


def _set(**changes: Any) -> Callable[[protocol.WorkerMetadata], None]:
    def apply(message: protocol.WorkerMetadata) -> None:
        for name, value in changes.items():
            setattr(message, name, value)

    return apply


@pytest.mark.parametrize(
    "spoil",
    [
        _set(uid=b""),
        _set(uid=b"short"),
        _set(extra="no json"),
        _set(extra="3"),
        _set(extra="[1, 2]"),
        _set(wire=protocol.WIRE + 1),
        lambda message: message.options.SetInParent(),
    ],
)
def test_malformed_metadata_is_refused(spoil: Callable[[protocol.WorkerMetadata], None]) -> None:
    message = made_up(uid=uuid4()).to_protobuf()
    spoil(message)
    with pytest.raises(ValueError, match=r"."):
        WorkerMetadata.from_protobuf(message)
