from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wool import LocalWorker, Worker, WorkerFactory, WorkerLike
from wool.runtime.worker.base import ChannelOptions, WorkerOptions

positive = st.integers(min_value=1, max_value=2**31 - 1)


class Scripted(Worker):
    """A worker that does what it is told, in this process."""

    fails = False

    @property
    def address(self) -> str | None:
        return None

    async def _start(self, timeout: float | None) -> None:
        self.timeout = timeout
        if self.fails:
            raise OSError("broken")

    async def _stop(self, timeout: float | None) -> None:
        await self._start(timeout)


async def test_worker_is_started_and_stopped_in_turn() -> None:
    worker = Scripted("a", "a", "b", colour="blue")
    assert worker.tags == {"a", "b"}
    assert worker.extra == {"colour": "blue"}
    assert worker.metadata is None
    assert worker.uid != Scripted().uid
    with pytest.raises(RuntimeError, match="Worker has not been started"):
        await worker.stop()
    await worker.start(timeout=3)
    assert worker.timeout == 3
    with pytest.raises(RuntimeError, match="Worker has already been started"):
        await worker.start()
    await worker.stop(timeout=-1)
    assert worker.timeout == -1
    await worker.start()


@pytest.mark.parametrize("timeout", [0, -1])
async def test_worker_with_a_start_timeout_that_is_not_positive_is_refused(timeout: float) -> None:
    worker = Scripted()
    with pytest.raises(ValueError, match="Timeout must be positive"):
        await worker.start(timeout=timeout)
    await worker.start()


async def test_worker_can_be_started_after_a_failed_start_or_stop() -> None:
    worker = Scripted()
    worker.fails = True
    with pytest.raises(OSError, match="broken"):
        await worker.start()
    worker.fails = False
    await worker.start()
    worker.fails = True
    with pytest.raises(OSError, match="broken"):
        await worker.stop()
    worker.fails = False
    await asyncio.gather(worker.start())


def test_workers_and_factories_satisfy_their_protocols() -> None:
    assert isinstance(Scripted(), WorkerLike)
    assert isinstance(LocalWorker(), WorkerLike)
    assert isinstance(LocalWorker, WorkerFactory)
    assert not isinstance(object(), WorkerLike)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_receive_message_length": 0}, "max_receive_message_length must be positive, got 0"),
        ({"max_send_message_length": -1}, "max_send_message_length must be positive, got -1"),
        ({"keepalive_time_ms": 0}, "keepalive_time_ms must be positive, got 0"),
        ({"keepalive_timeout_ms": 0}, "keepalive_timeout_ms must be positive, got 0"),
        ({"max_pings_without_data": -1}, "max_pings_without_data must be non-negative, got -1"),
        ({"compression": 3}, "compression must be at most 2, got 3"),
    ],
)
def test_channel_options_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChannelOptions(**settings)


@given(
    st.builds(
        ChannelOptions,
        max_receive_message_length=positive,
        max_send_message_length=positive,
        keepalive_time_ms=positive,
        keepalive_timeout_ms=positive,
        keepalive_permit_without_calls=st.booleans(),
        max_pings_without_data=st.integers(min_value=0, max_value=2**31 - 1),
        compression=st.sampled_from([0, 1, 2]),
    )
)
def test_channel_options_survive_the_wire(options: ChannelOptions) -> None:
    assert ChannelOptions.from_protobuf(options.to_protobuf()) == options


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_connection_idle_ms": 0}, "max_connection_idle_ms must be positive, got 0"),
        ({"max_connection_age_ms": -1}, "max_connection_age_ms must be positive, got -1"),
        ({"max_connection_age_grace_ms": 2**31}, "grace_ms must be at most 2147483647, got"),
        ({"max_ping_strikes": -1}, "max_ping_strikes must be non-negative, got -1"),
        (
            {"http2_min_recv_ping_interval_without_data_ms": -1},
            "http2_min_recv_ping_interval_without_data_ms must be non-negative, got -1",
        ),
    ],
)
def test_worker_options_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorkerOptions(**settings)


@pytest.mark.parametrize("value", ["30s", 1.5, True, None])
def test_options_that_are_no_numbers_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="keepalive_time_ms must be an int, got"):
        ChannelOptions(keepalive_time_ms=value)
    if value is not None:
        with pytest.raises(TypeError, match="max_connection_age_ms must be an int, got"):
            WorkerOptions(max_connection_age_ms=value)


def test_worker_options_that_cut_off_their_own_clients_are_refused() -> None:
    WorkerOptions(ChannelOptions(keepalive_time_ms=100), 100)
    message = "keepalive_time_ms must be >= http2_min_recv_ping_interval_without_data_ms"
    with pytest.raises(ValueError, match=message):
        WorkerOptions(ChannelOptions(keepalive_time_ms=99), 100)
