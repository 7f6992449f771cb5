"""Tasks as messages."""

from __future__ import annotations

import pickle
import threading
from typing import Any
from uuid import uuid4

import pytest

from tests.runtime.routine.test_task import Proxy, add, make
from wool import RuntimeContext, Serializer, Task, UnexpectedResponse, protocol
from wool.runtime.routine.task import LARGEST_DEFINITION, AbsentProxy


def there_and_back(task: Task, serializer: Serializer | None = None) -> Task:
    data = task.to_protobuf(serializer).SerializeToString()
    return Task.from_protobuf(protocol.Task.FromString(data))


def test_protobuf_carries_it() -> None:
    caller = uuid4()
    task = make(
        add,
        [1, {"a": b"b"}],
        kwargs={"b": (2, None)},
        timeout=1.5,
        caller=caller,
        tag="somewhere",
        context=RuntimeContext(dispatch_timeout=0.0),
    )
    copy = there_and_back(task)
    for field in ("id", "callable", "args", "kwargs", "proxy", "timeout", "caller", "tag"):
        assert getattr(copy, field) == getattr(task, field)
    assert copy.args[0] is not task.args[0]
    assert copy.context is not None
    assert copy.context.dispatch_timeout == 0.0
    assert copy.exception is None


def test_protobuf_of_what_is_absent() -> None:
    task = make()
    message = task.to_protobuf()
    assert not message.caller
    assert not message.HasField("context")
    with make():
        assert there_and_back(task).caller is None


def test_protobuf_does_not_carry_the_exception() -> None:
    task = make()
    with pytest.raises(ValueError, match="v"), task:
        raise ValueError("v")
    assert there_and_back(task).exception is None


async def test_protobuf_carries_a_callable_too_large_to_be_a_definition() -> None:
    ballast = bytes(2 * LARGEST_DEFINITION)

    async def size(extra: int) -> int:
        return len(ballast) + extra

    copy = there_and_back(make(size, 3))
    assert await copy.callable(*copy.args) == len(ballast) + 3


def test_protobuf_without_anything_callable() -> None:
    message = make().to_protobuf()
    message.ClearField("callable")
    with pytest.raises(UnexpectedResponse, match="nothing callable"):
        Task.from_protobuf(message)


async def test_protobuf_carries_a_closure() -> None:
    offset = 5

    async def shifted(a: int) -> int:
        return a + offset

    with there_and_back(make(shifted, 1)) as run:
        assert await run() == 6


class Registry:
    """A serializer of what can't be pickled, in one process: it hands out tokens."""

    kept: dict[bytes, object] = {}  # noqa: RUF012

    def dumps(self, value: object) -> bytes:
        token = str(len(self.kept)).encode()
        self.kept[token] = value
        return token

    def loads(self, data: bytes) -> object:
        return self.kept.pop(data)


def test_protobuf_with_a_serializer() -> None:
    lock = threading.Lock()
    serializer = Registry()
    assert isinstance(serializer, Serializer)
    copy = there_and_back(make(add, lock), serializer)
    assert copy.args[0] is lock
    assert not Registry.kept


def test_encoding_names_the_argument_that_fails() -> None:
    for arguments, keywords, name in [
        ((1, threading.Lock()), {}, "b"),
        ((1,), {"b": threading.Lock()}, "b"),
        ((1, 2, threading.Lock()), {}, "args[0]"),
    ]:
        task = make(add, *arguments, kwargs=keywords)
        with pytest.raises(TypeError) as info:
            task.encode()
        assert str(info.value) == (
            f"Argument {name!r} of routine {task.tag} can't be pickled: "
            "cannot pickle '_thread.lock' object"
        )


class Fails:
    def __reduce__(self) -> Any:
        raise LookupError("not here")


def test_encoding_leaves_an_error_of_the_argument_alone() -> None:
    task = make(add, 1, Fails())
    with pytest.raises(LookupError, match=r"^'?not here") as info:
        task.encode()
    assert info.value.__notes__ == [f"while pickling argument 'b' of routine {task.tag}"]


class FailsAtFirst:
    tried = False

    def __reduce__(self) -> Any:
        if not FailsAtFirst.tried:
            FailsAtFirst.tried = True
            raise LookupError("not yet")
        return FailsAtFirst, ()


def test_encoding_names_nothing_that_does_not_fail_again() -> None:
    with pytest.raises(LookupError, match="not yet") as info:
        make(add, 1, FailsAtFirst()).encode()
    assert not hasattr(info.value, "__notes__")


def test_encoding_names_the_routine_that_fails() -> None:
    lock = threading.Lock()

    async def locked() -> object:
        return lock

    task = make(locked)
    with pytest.raises(TypeError, match="lock") as info:
        task.encode()
    assert str(info.value) == (
        f"Routine {task.tag} with what it refers to can't be pickled: cannot pickle '_thread.lock' "
        f"object (it is lock in {locked.__qualname__})"
    )


def test_encoding_is_done_once() -> None:
    task = make()
    assert task.encode() is task.encode()


class Homebound(Proxy):
    def __reduce__(self) -> Any:
        raise TypeError("not for travelling")


async def test_proxy_that_can_not_travel() -> None:
    """The task does; calls nested in it fail, and say why."""
    copy = there_and_back(make(proxy=Homebound()))
    assert isinstance(copy.proxy, AbsentProxy)
    with pytest.raises(TypeError, match=r"add:.* can't be called .*: not for travelling"):
        await copy.proxy.dispatch(make())


async def test_proxy_that_is_missing() -> None:
    message = make().to_protobuf()
    message.ClearField("proxy")
    proxy = Task.from_protobuf(message).proxy
    with pytest.raises(TypeError, match="came without a proxy"):
        await proxy.dispatch(make())


def test_decoding_what_is_no_pickle() -> None:
    message = make().to_protobuf()
    message.arguments.data = b"rubbish"
    with pytest.raises((pickle.UnpicklingError, ValueError, EOFError)):
        Task.from_protobuf(message)


def test_tasks_are_equal_by_identity() -> None:
    """They hold whatever they were called with, which need not be comparable."""
    task = make()
    assert task == task
    assert task != there_and_back(task)
    assert len({task, there_and_back(task)}) == 2
