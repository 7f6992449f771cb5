from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wool import protocol
from wool.runtime.discovery.txt import LONGEST, ForeignRecord, decode, encode
from wool.runtime.worker.base import ChannelOptions
from wool.runtime.worker.metadata import WorkerMetadata


def make(**changes: Any) -> WorkerMetadata:
    return replace(WorkerMetadata(uuid4(), "10.0.0.1:50051", 4711, "1.2.3"), **changes)


def record(metadata: WorkerMetadata) -> dict[bytes, bytes | None]:
    """As it comes from the network."""
    return {key.encode(): value.encode() for key, value in encode(metadata).items()}


options = st.builds(
    ChannelOptions,
    max_receive_message_length=st.integers(1, 2**40),
    max_send_message_length=st.integers(1, 2**40),
    keepalive_time_ms=st.integers(1, 10**9),
    keepalive_timeout_ms=st.integers(1, 10**9),
    keepalive_permit_without_calls=st.booleans(),
    max_pings_without_data=st.integers(0, 100),
    compression=st.sampled_from([0, 1, 2]),
)


@given(
    st.frozensets(st.text(max_size=8), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
    st.booleans(),
    st.none() | st.just(ChannelOptions()) | options,
)
def test_everything_travels(
    tags: frozenset[str], extra: dict[str, Any], secure: bool, options: ChannelOptions | None
) -> None:
    worker = make(tags=tags, extra=extra, secure=secure, options=options)
    assert decode(worker.uid, worker.address, record(worker)) == worker


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tags", frozenset({"x" * LONGEST})),
        ("extra", {"note": "x" * LONGEST}),
        ("version", "1." * LONGEST),
    ],
)
def test_field_that_is_too_long_is_named(field: str, value: Any) -> None:
    worker = make(**{field: value})
    with pytest.raises(ValueError, match=rf"The {field} of worker {worker.uid} take \d+ bytes"):
        encode(worker)


def test_longest_field_that_fits() -> None:
    room = LONGEST - len('tags=[""]')
    worker = make(tags=frozenset({"x" * room}))
    assert decode(worker.uid, worker.address, record(worker)) == worker
    with pytest.raises(ValueError, match=f"take {LONGEST + 1} bytes"):
        encode(make(tags=frozenset({"x" * (room + 1)})))


def test_extra_that_json_cannot_carry() -> None:
    with pytest.raises(TypeError):
        encode(make(extra={"lock": object()}))


@pytest.mark.parametrize("wire", [None, b"", b"0", b"2"])
def test_record_of_another_wire_format_is_foreign(wire: bytes | None) -> None:
    worker = make()
    fields = record(worker)
    if wire is None:
        del fields[b"wire"]
    else:
        fields[b"wire"] = wire
    with pytest.raises(ForeignRecord, match=f"expected '{protocol.WIRE}'"):
        decode(worker.uid, worker.address, fields)


@pytest.mark.parametrize(
    "changes",
    [
        {b"pid": None},
        {b"pid": b"many"},
        {b"pid": ...},
        {b"version": ...},
        {b"tags": b"not JSON"},
        {b"tags": b'"gpu"'},
        {b"tags": b"[1]"},
        {b"extra": b"[]"},
        {b"options": b"[]"},
        {b"options": b'{"colour": 1}'},
        {b"options": b'{"compression": 9}'},
        {b"options": b'{"keepalive_time_ms": "soon"}'},
        {b"version": b"\xff"},
    ],
    ids=str,
)
def test_record_that_is_wrong(changes: dict[bytes, Any]) -> None:
    worker = make()
    fields = record(worker) | changes
    fields = {key: value for key, value in fields.items() if value is not ...}
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        decode(worker.uid, worker.address, fields)
    assert not isinstance(caught.value, ForeignRecord)
