from __future__ import annotations

import asyncio
from typing import Any

import pytest

from wool import RuntimeContext, protocol
from wool.runtime.context import dispatch_timeout
from wool.runtime.typing import Undefined


@pytest.mark.parametrize("value", [None, 0.0, 0.25, 3600.0])
def test_dispatch_timeout_is_set_for_the_block(value: float | None) -> None:
    with RuntimeContext(dispatch_timeout=value):
        assert dispatch_timeout.get() == value
    assert dispatch_timeout.get() is None


def test_dispatch_timeout_left_out_stays_as_it_is() -> None:
    with RuntimeContext(dispatch_timeout=3):
        with RuntimeContext() as context:
            assert dispatch_timeout.get() == 3
            assert context.dispatch_timeout is Undefined
        assert dispatch_timeout.get() == 3


def test_dispatch_timeout_of_none_lifts_the_outer_one() -> None:
    with RuntimeContext(dispatch_timeout=3):
        with RuntimeContext(dispatch_timeout=None):
            assert dispatch_timeout.get() is None
        assert dispatch_timeout.get() == 3


def test_context_is_restored_after_an_error() -> None:
    with pytest.raises(LookupError), RuntimeContext(dispatch_timeout=3):
        raise LookupError
    assert dispatch_timeout.get() is None


@pytest.mark.parametrize("arguments", [{}, {"dispatch_timeout": None}, {"dispatch_timeout": 1.0}])
def test_context_rejects_a_second_entry(arguments: dict[str, Any]) -> None:
    """A94"""
    context = RuntimeContext(**arguments)
    with RuntimeContext(dispatch_timeout=9):
        with context:
            with pytest.raises(RuntimeError, match="already entered"):
                context.__enter__()
            assert dispatch_timeout.get() == arguments.get("dispatch_timeout", 9)
        assert dispatch_timeout.get() == 9
        with context:
            assert dispatch_timeout.get() == arguments.get("dispatch_timeout", 9)
        assert dispatch_timeout.get() == 9


async def test_context_is_of_the_task_that_enters_it() -> None:
    async def other() -> float | None:
        return dispatch_timeout.get()

    task = asyncio.create_task(other())
    with RuntimeContext(dispatch_timeout=1):
        assert await task is None
        assert await asyncio.create_task(other()) == 1


def test_get_current() -> None:
    assert RuntimeContext.get_current().dispatch_timeout is None
    with RuntimeContext(dispatch_timeout=4):
        context = RuntimeContext.get_current()
    assert context.dispatch_timeout == 4
    with context:
        assert dispatch_timeout.get() == 4


@pytest.mark.parametrize("value", [0.0, 0.1, 7200.5])
def test_protobuf_carries_a_timeout(value: float) -> None:
    data = RuntimeContext(dispatch_timeout=value).to_protobuf().SerializeToString()
    context = RuntimeContext.from_protobuf(protocol.RuntimeContext.FromString(data))
    assert context.dispatch_timeout == value


@pytest.mark.parametrize("arguments", [{}, {"dispatch_timeout": None}])
def test_what_is_absent_from_protobuf_is_inherited(arguments: dict[str, Any]) -> None:
    """A94"""
    message = RuntimeContext(**arguments).to_protobuf()
    assert not message.HasField("dispatch_timeout")
    with RuntimeContext(dispatch_timeout=5), RuntimeContext.from_protobuf(message):
        assert dispatch_timeout.get() == 5


def test_repr() -> None:
    assert repr(RuntimeContext()) == "RuntimeContext(dispatch_timeout=Undefined)"
    assert repr(RuntimeContext(dispatch_timeout=2)) == "RuntimeContext(dispatch_timeout=2)"
