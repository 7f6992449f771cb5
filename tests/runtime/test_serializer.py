from __future__ import annotations

import asyncio
import copyreg
import errno
import functools
import gc
import json
import math
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import traceback
import weakref
from dataclasses import dataclass
from enum import Enum
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID

import cloudpickle
import grpc
import pytest

import wool  # noqa: F401  (so that all of its exceptions are defined)
from wool.runtime import capture, remote_exception, serializer
from wool.runtime.errors import (
    DispatchTimeout,
    HandshakeError,
    NoWorkersAvailable,
    PayloadTooLarge,
    RpcError,
    TransientRpcError,
    UnexpectedResponse,
    WoolError,
    WorkerFull,
    WorkerLost,
    WorkerUnresponsive,
)
from wool.runtime.memory import HUGE
from wool.runtime.serializer import (
    OUT_OF_BAND,
    Payload,
    Serializer,
    dump_callable,
    dump_exception,
    dumps,
    dumps_arguments,
    load_callable,
    load_exception,
    loads,
)
from wool.runtime.worker.metadata import WorkerMetadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

numpy = pytest.importorskip("numpy")

T = TypeVar("T")


def routine(function: Any) -> Any:
    """Stands in for the routine decorator."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    wrapper.__wool_routine__ = function  # type: ignore[attr-defined]
    return wrapper


def retried(function: Any) -> Any:
    """A decorator to put above."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return "retried", function(*args, **kwargs)

    return wrapper


@pytest.fixture(autouse=True)
def decorator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serializer._Pickler, "decorate", None)
    serializer.register_routine_decorator(routine)


def main(source: str) -> dict[str, Any]:
    """The globals after running `source` in a module that can't be imported, as `__main__` can't.

    It knows `routine` and `retried`.
    """
    namespace = {"__name__": "__main__", "routine": routine, "retried": retried}
    # Not with this module's own future imports.
    exec(compile(textwrap.dedent(source), "<main>", "exec", dont_inherit=True), namespace)
    return namespace


def undecorated(wrapper: Any) -> FunctionType:
    function: FunctionType = wrapper.__wool_routine__
    return function


def call(function: FunctionType, *args: Any) -> Any:
    """Call it as a worker would, with a copy."""
    return load_callable(dump_callable(function).data)(*args)


def transfer(exc: BaseException) -> BaseException:
    return load_exception(dump_exception(exc))


def raised(exc: BaseException) -> BaseException:
    try:
        raise exc
    except BaseException as caught:
        return caught


def frames(exc: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(exc.__traceback__)]


# Values


class Point:
    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and self.x == other.x

    __hash__ = None  # type: ignore[assignment]


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "value",
    [
        ((1, 2), {}),
        ((None, True, 1.5, 2j, "a", b"b"), {"k": [{1}, frozenset({2}), {"deep": ()}]}),
        list(range(1000)),
        {"point": Point(1)},
        bytearray(b"abc"),
        math.sqrt,
    ],
)
def test_dumps_value(value: object) -> None:
    assert loads(dumps(value)) == value


def test_dumps_value_that_contains_itself() -> None:
    loaded = loads(dumps(CYCLE))

    assert loaded[0] is loaded


def test_dumps_plain_value_without_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(serializer, "_Pickler")

    assert loads(dumps(((1, "a"), {"b": None}))) == ((1, "a"), {"b": None})
    with pytest.raises(NameError):
        dumps(Point(1))


def test_dumps_unpicklable_value_raises_original_error() -> None:
    """A02, A10."""
    with pytest.raises(TypeError, match="lock"):
        dumps(((threading.Lock(),), {}))


def test_payload_size_counts_buffers() -> None:
    payload = dumps(numpy.zeros(1000))

    assert payload.size == len(payload.data) + 8000
    assert dumps(1).size == len(dumps(1).data)


def received(payload: Payload) -> Payload:
    """As it comes from the wire."""
    return Payload.received(
        bytes(payload.data), [bytes(buffer) for buffer in payload.buffers], payload.forms
    )


@pytest.mark.parametrize("writeable", [True, False])
def test_loads_array_as_writable_as_it_was(writeable: bool) -> None:
    array = numpy.arange(10)
    array.flags.writeable = writeable

    loaded = loads(received(dumps(array)))

    assert (loaded == array).all()
    assert loaded.flags.writeable is writeable


def test_loads_keeps_buffer() -> None:
    payload = received(dumps(numpy.arange(10, dtype="u1")))

    loads(payload)[0] = 7

    assert payload.buffers[0][0] == 7


def test_payload_with_forms_that_do_not_fit() -> None:
    with pytest.raises(UnexpectedResponse, match="2 buffers came with 1 forms"):
        Payload.received(b"", [b"", b""], b"\0")


LARGE = b"0123456789abcdef" * (OUT_OF_BAND // 16)


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_large_bytes_travel_beside_the_pickle(kind: type) -> None:
    value = kind(LARGE)

    payload = dumps(value)

    assert len(payload.data) < 100
    loaded = loads(received(payload))
    assert type(loaded) is kind
    assert loaded == value


def test_large_bytes_are_not_copied() -> None:
    payload = dumps(LARGE)

    assert payload.buffers[0] is LARGE
    assert loads(payload) is LARGE


def test_small_bytes_stay_in_the_pickle() -> None:
    assert not dumps(LARGE[:-1]).buffers
    assert not dumps_arguments((LARGE[:-1],), {"x": LARGE[:-1]}).buffers


class Named(bytes):
    pass


def test_subclass_of_bytes_keeps_its_class() -> None:
    loaded = loads(received(dumps(Named(LARGE))))

    assert type(loaded) is Named
    assert loaded == LARGE


def test_large_arguments_travel_beside_the_pickle() -> None:
    payload = dumps_arguments((1, LARGE, "a"), {"b": bytearray(LARGE), "c": None})

    assert len(payload.data) < 200
    args, kwargs = loads(received(payload))
    assert args == (1, LARGE, "a")
    assert kwargs == {"b": bytearray(LARGE), "c": None}
    assert type(args[1]) is bytes
    assert type(kwargs["b"]) is bytearray


@pytest.mark.parametrize("size", [OUT_OF_BAND, HUGE])
def test_arguments_are_as_they_were_when_dumped(size: int) -> None:
    changing, array = bytearray(size), numpy.zeros(size, "u1")
    payload = dumps_arguments((changing,), {}), dumps_arguments((array,), {})
    changing[0] = array[0] = 1

    for each in payload:
        ((loaded,), _) = loads(received(each))
        assert not any(loaded)


def test_bytearray_passed_twice_is_one_object() -> None:
    changing = bytearray(LARGE)

    ((first, second), _) = loads(received(dumps_arguments((changing, changing), {})))
    ((one, (other,)), _) = loads(received(dumps_arguments((changing, [changing]), {})))

    assert first is second
    assert one is other


def test_bytes_passed_twice() -> None:
    ((first, second, (third,)), _) = loads(received(dumps_arguments((LARGE, LARGE, [LARGE]), {})))

    assert first == LARGE
    assert first is second is third


def test_large_bytes_beside_what_plain_pickle_cannot_take() -> None:
    function = main("def function(): return 7")["function"]

    ((loaded, data), _) = loads(received(dumps_arguments((function, LARGE), {})))

    assert loaded() == 7
    assert data == LARGE


@pytest.mark.parametrize(
    "array",
    [
        numpy.arange(10)[::2],
        numpy.arange(10)[::-1],
        numpy.arange(12).reshape(3, 4)[:, 1:],
        numpy.asfortranarray(numpy.arange(12).reshape(3, 4)),
        numpy.array([]),
    ],
)
def test_dumps_array_that_is_not_in_one_piece(array: Any) -> None:
    loaded = loads(received(dumps(array)))

    assert (loaded == array).all()
    assert loaded.flags.writeable


def test_dumps_arrays_out_of_band() -> None:
    payload = dumps([numpy.arange(5), numpy.arange(6)])

    assert [len(buffer) for buffer in payload.buffers] == [40, 48]
    assert [len(array) for array in loads(payload)] == [5, 6]


def test_serializer_protocol() -> None:
    class Own:
        def dumps(self, value: object) -> bytes:
            return b""

        def loads(self, data: bytes) -> object:
            return None

    assert isinstance(Own(), Serializer)
    assert not isinstance(object(), Serializer)


# Classes by value


def test_class_comes_back_as_the_original() -> None:
    """A11."""
    point = main("class Point: pass")["Point"]

    assert type(loads(dumps(point()))) is point


def test_class_that_comes_back_does_not_change_the_original() -> None:
    names = main(
        """
        class Counter:
            count = 0
            def where(self): return globals()
        """
    )
    payload = dumps(names["Counter"]())
    names["Counter"].count = 1

    assert loads(payload).count == 1
    assert loads(payload).where() is names


def test_enum_by_value_comes_back_as_the_original() -> None:
    names = main("import enum\nclass Color(enum.Enum):\n    RED = 1")

    assert loads(dumps(names["Color"].RED)) is names["Color"].RED


def test_copy_of_class_follows_its_original(tmp_path: Path) -> None:
    Process(tmp_path).run(
        """
        class Config:
            level = 1

        @routine
        async def level():
            return Config.level, Config

        worker = Worker()
        assert worker.call(level) == (1, Config)
        Config.level = 2
        assert worker.call(level) == (2, Config)
        """
    )


@pytest.mark.parametrize("value", [type(None), type(...), type(NotImplemented), FunctionType])
def test_dumps_builtin_class_without_a_name(value: type) -> None:
    assert loads(dumps(value)) is value


# Routines as values


@routine
async def imported(n: int) -> int:
    return n


@retried
@routine
async def imported_retried(n: int) -> int:
    return n


class Holder:
    @routine
    async def method(self) -> str:
        return "method"

    @staticmethod
    @routine
    async def static() -> str:
        return "static"

    @classmethod
    @routine
    async def of_class(cls) -> str:
        return cls.__name__

    @routine
    async def __private(self) -> str:
        return "private"

    private = __private

    def plain(self) -> str:
        return "plain"


def attribute(name: str) -> Any:
    found = vars(Holder)[name]
    return getattr(found, "__func__", found)


@pytest.mark.parametrize(
    "wrapper",
    [imported, attribute("method"), attribute("static"), attribute("of_class")],
)
def test_dumps_routine_by_reference(wrapper: Any) -> None:
    assert loads(dumps(wrapper)) is wrapper
    assert loads(dumps(undecorated(wrapper))) is undecorated(wrapper)


def test_dumps_routine_by_value() -> None:
    names = main("@routine\nasync def double(n): return n * factor\nfactor = 2")

    loaded = loads(dumps(names["double"]))

    assert loaded is not names["double"]
    assert loaded.__name__ == "double"
    assert loaded.__code__ is names["double"].__code__
    assert asyncio.run(loaded(4)) == 8


def test_dumps_routine_that_calls_itself() -> None:
    names = main(
        """
        @routine
        async def fib(n): return n if n < 2 else await fib(n - 1) + await fib(n - 2)
        """
    )

    loaded = loads(dumps(names["fib"]))

    assert asyncio.run(loaded(10)) == 55
    assert undecorated(loaded).__globals__["fib"] is loaded


def test_dumps_routines_that_call_each_other() -> None:
    names = main(
        """
        @routine
        async def even(n): return n == 0 or await odd(n - 1)
        @routine
        async def odd(n): return n != 0 and await even(n - 1)
        """
    )

    even, odd = loads(dumps([names["even"], names["odd"]]))

    assert asyncio.run(even(10))
    assert undecorated(even).__globals__["odd"] is odd


def test_dumps_routine_with_attributes() -> None:
    names = main("@routine\nasync def f(): pass\nf.mark = [1]")

    assert loads(dumps(names["f"])).mark == [1]


def test_dumps_routine_under_another_decorator() -> None:
    names = main("@retried\n@routine\nasync def f(n): return n")

    mark, coroutine = loads(dumps(names["f"]))(3)

    assert (mark, asyncio.run(coroutine)) == ("retried", 3)


def test_dumps_routine_without_registered_decorator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serializer._Pickler, "decorate", None)
    names = main("@routine\nasync def f(n): return n")

    assert asyncio.run(loads(dumps(names["f"]))(3)) == 3


def test_dumps_class_with_routines_by_value() -> None:
    names = main(
        """
        class Base:
            @routine
            async def who(self): return "base"
        class Derived(Base):
            @routine
            async def who(self): return "derived " + await super().who()
        """
    )
    method = undecorated(names["Derived"].who)

    assert asyncio.run(call(method, names["Derived"]())) == "derived base"
    assert not dump_callable(method).reusable


# Callables by name


@pytest.mark.parametrize("name", ["method", "static", "of_class"])
def test_dump_callable_by_name_in_class(name: str) -> None:
    function = undecorated(attribute(name))
    dump = dump_callable(function)

    assert dump == (f"n{__name__}\0Holder.{name}".encode(), True)
    assert load_callable(dump.data) is function


def test_dump_callable_by_name() -> None:
    dump = dump_callable(undecorated(imported))

    assert dump == (f"n{__name__}\0imported".encode(), True)
    assert load_callable(dump.data) is undecorated(imported)


def test_dump_callable_by_name_that_was_never_decorated() -> None:
    function = Holder.plain
    assert isinstance(function, FunctionType)

    assert load_callable(dump_callable(function).data) is function


def test_dump_callable_by_name_under_another_decorator() -> None:
    function = undecorated(imported_retried)
    dump = dump_callable(function)

    assert dump.data[:1] == b"n"
    assert load_callable(dump.data) is function


def test_dump_callable_with_mangled_name() -> None:
    assert asyncio.run(call(undecorated(Holder.private), Holder())) == "private"


def test_dump_callable_whose_name_is_bound_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    function = undecorated(imported)
    monkeypatch.setattr(sys.modules[__name__], "imported", routine(lambda n: -n))

    assert dump_callable(function).data[:1] == b"v"
    assert asyncio.run(call(function, 5)) == 5


@pytest.mark.parametrize("registered", [__name__, __name__.rpartition(".")[0]])
def test_dump_callable_from_module_registered_by_value(registered: str) -> None:
    module = sys.modules[registered]
    cloudpickle.register_pickle_by_value(module)
    try:
        dump = dump_callable(undecorated(imported))
    finally:
        cloudpickle.unregister_pickle_by_value(module)

    assert dump.data[:1] == b"v"
    assert asyncio.run(load_callable(dump.data)(5)) == 5


def test_dump_callable_from_module_not_registered_by_value() -> None:
    cloudpickle.register_pickle_by_value(json)
    try:
        assert dump_callable(undecorated(imported)).data[:1] == b"n"
    finally:
        cloudpickle.unregister_pickle_by_value(json)


def test_dump_callable_without_module() -> None:
    function = main("def f(): return 1")["f"]
    function.__module__ = None

    assert call(function) == 1


def test_load_callable_from_missing_module() -> None:
    """A04."""
    with pytest.raises(ModuleNotFoundError, match="no_such_module") as caught:
        load_callable(b"nno_such_module\0f")

    assert "'f' from 'no_such_module'" in caught.value.__notes__[0]


def test_load_callable_missing_in_module() -> None:
    """A04."""
    with pytest.raises(AttributeError, match=r"module 'json' has no attribute 'No\.f'") as caught:
        load_callable(b"njson\0No.f")

    assert "'No.f' from 'json'" in caught.value.__notes__[0]


def test_load_callable_that_is_not_a_function() -> None:
    with pytest.raises(TypeError, match="JSONEncoder is not a function"):
        load_callable(b"njson\0JSONEncoder")


# Callables by value: always as they are now


def test_dump_callable_by_value_sees_rebound_global() -> None:
    names = main("n = 1\nasync def f(): return n")
    dump = dump_callable(names["f"])
    assert dump.reusable
    assert dump_callable(names["f"]) is dump

    names["n"] = 2

    assert asyncio.run(call(names["f"])) == 2


@pytest.mark.parametrize(("before", "after"), [(1, True), (0.0, -0.0), (1, 1.0)])
def test_dump_callable_by_value_sees_global_rebound_to_equal(before: object, after: object) -> None:
    names = main("def f(n=None, *, k=None): return n, k, g")
    names["g"] = names["f"].__kwdefaults__["k"] = before
    dump_callable(names["f"])

    names["f"].__kwdefaults__["k"] = after
    assert str(call(names["f"])) == str((None, after, before))

    names["g"] = after
    assert str(call(names["f"])) == str((None, after, after))


def test_dump_callable_by_value_sees_new_and_deleted_global() -> None:
    names = main("def f(): return n")
    assert dump_callable(names["f"]).reusable

    names["n"] = 1
    assert call(names["f"]) == 1

    del names["n"]
    with pytest.raises(NameError):
        call(names["f"])


@pytest.mark.parametrize(
    ("source", "mutate"),
    [
        ("n = [1]\ndef f(): return n[0]", "n[0] = 2"),
        ("def f(n={'n': 1}): return n['n']", "f.__defaults__[0]['n'] = 2"),
        ("def f(*, n={'n': 1}): return n['n']", "f.__kwdefaults__['n']['n'] = 2"),
        ("def f(*, n=1): return n", "f.__kwdefaults__['n'] = 2"),
        ("def f(n=1): return n", "f.__defaults__ = (2,)"),
        ("n = ([1],)\ndef f(): return n[0][0]", "n[0][0] = 2"),
        ("def g(): return 1\ndef f(): return g()", "def g(): return 2"),
        ("def g(): return 1\ndef f(): return g()", "g.__code__ = (lambda: 2).__code__"),
        ("n = 1\ndef g(): return n\ndef f(): return g()", "n = 2"),
        ("n = 1\ndef f(): return (lambda: n)()", "n = 2"),
        ("n = 1\ndef g(): return n\ndef f(g=g): return g()", "n = 2"),
        ("n = 1\n@routine\ndef g(): return n\ndef f(): return g()", "n = 2"),
        ("@routine\ndef g(): return 1\ndef f(): return g()", "@routine\ndef g(): return 2"),
        ("@routine\ndef g(): return 1\ng.n = 1\ndef f(): return g.n", "g.n = 2"),
        ("@routine\ndef g(): return g.n\ng.n = 1\nf = g.__wool_routine__", "g.n = 2"),
        ("def f(): return f.n\nf.n = 1", "f.n = 2"),
        ("def outer(n):\n def f(): return n\n return f\nf = outer(1)", "f = outer(2)"),
        (
            "def outer(n):\n def f(): return n\n return f\nf = outer(1)",
            "f.__closure__[0].cell_contents = 2",
        ),
        (
            "def outer(n):\n def f(): return n[0]\n return f\nf = outer([1])",
            "f.__closure__[0].cell_contents[0] = 2",
        ),
        ("from json import dumps as n\ndef f(): return n.__name__", "def n(): pass"),
        ("def f(): return f.__name__", "f.__name__ = 'g'"),
        ("def f(): return f.__doc__", "f.__doc__ = 'g'"),
        ("def f(): return f.__annotations__.get('n')", "f.__annotations__['n'] = 2"),
    ],
)
def test_dump_callable_by_value_sees_change(source: str, mutate: str) -> None:
    names = main(source)
    before = [dump_callable(names["f"]) for _ in range(2)][1]

    exec(mutate, names)
    after = dump_callable(names["f"])

    assert load_callable(before.data)() != load_callable(after.data)()
    assert load_callable(after.data)() == names["f"]()


def test_dump_callable_by_value_sees_import_of_submodule(tmp_path: Path) -> None:
    Process(tmp_path).run(
        """
        import xml

        async def version():
            return xml.sax.handler.version

        worker = Worker()
        dump = dump_callable(version)
        assert dump_callable(version) is dump
        import xml.sax
        assert dump_callable(version) is not dump
        assert worker.call(version) == xml.sax.handler.version
        """
    )


def test_dump_callable_by_value_sees_registration_by_value() -> None:
    names = main("import json\ndef f(): return json")
    dump = dump_callable(names["f"])
    assert dump_callable(names["f"]) is dump

    cloudpickle.register_pickle_by_value(copyreg)
    try:
        assert dump_callable(names["f"]) is not dump
    finally:
        cloudpickle.unregister_pickle_by_value(copyreg)


def test_dump_callable_by_value_sees_that_name_leads_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = ModuleType("fleeting")
    monkeypatch.setitem(sys.modules, "fleeting", module)
    exec("class C: n = 1", vars(module))
    names = main("from fleeting import C\ndef f(): return C.n")
    dump = dump_callable(names["f"])
    assert dump_callable(names["f"]) is dump

    exec("class C: n = 2", vars(module))

    assert dump_callable(names["f"]) is not dump
    assert call(names["f"]) == 1


def test_dump_callable_by_value_does_not_keep_function_alive() -> None:
    names = main(
        """
        def make():
            @routine
            async def f(n): return n and await f(n - 1)
            return f
        """
    )
    function = undecorated(names["make"]())
    dump = dump_callable(function)
    assert dump_callable(function) is dump
    alive = weakref.ref(function)

    del function
    gc.collect()

    assert alive() is None


def test_capture_does_not_hold_once_a_function_is_gone() -> None:
    names = main("def g(): pass\ndef f(): return g")
    taken = capture.Capture.of(names["f"])
    assert taken is not None
    assert taken.holds()

    names["f"].__globals__["g"] = None
    gc.collect()

    assert not taken.holds()


@pytest.mark.parametrize(
    "source",
    [
        "def f(): pass",
        "import json, math\nfrom math import sqrt\ndef f(): return json, math, sqrt, len",
        "from uuid import UUID\ndef f(): return UUID",
        "t = (1, 'a', (None, ...), frozenset({2.5}))\ndef f(): return t",
        "def f(a: int, b: list[int], c: dict[str, int | None] = None) -> None: pass",
        "from typing import Optional\ndef f(a: Optional[int]): pass",
        "def f():\n n = 1\n def g():\n  nonlocal n\n  n += 1\n g()\n return n",
        "@routine\nasync def f(n): return await f(n)\nf = f.__wool_routine__",
        "def outer():\n def f(): return later\n return f\n later = 1\nf = outer()",
        "code = (lambda: 1).__code__\ndef f(): return code",
    ],
)
def test_dump_callable_by_value_is_reusable(source: str) -> None:
    names = main(source)
    dump = dump_callable(names["f"])

    assert dump.reusable
    assert dump_callable(names["f"]) is dump


@pytest.mark.parametrize(
    "source",
    [
        "n = 0\ndef f():\n global n\n n += 1\n return n",
        "n = 0\ndef f():\n global n\n del n",
        "n = 0\ndef f():\n def g():\n  global n\n  n += 1\n g()\n return n",
        "n = 0\ndef g():\n global n\n n += 1\ndef f(): g()\n",
        "def f(): f.n = getattr(f, 'n', 0) + 1; return f.n",
        "def f(x): del x.n",
        "def f(): return f.n\nf.n = 1",
        "def outer(n):\n def f():\n  nonlocal n\n  n += 1\n  return n\n return f\nf = outer(0)",
        "def o(n):\n def f():\n  def g():\n   nonlocal n\n   n += 1\n  g()\n return f\nf = o(0)",
        "def f(): globals()['n'] = 1",
        "def g(): pass\ndef f(): setattr(g, 'n', 1)",
        "def g(): pass\ndef f(): g.__dict__['n'] = 1",
    ],
)
def test_dump_callable_by_value_that_changes_itself_is_not_reusable(source: str) -> None:
    assert not dump_callable(main(source)["f"]).reusable


@pytest.mark.parametrize(
    "captured",
    ["[1]", "{}", "set()", "bytearray()", "([],)", "object()", "type('C', (), {})", "[].append"],
)
def test_dump_callable_by_value_with_mutable_is_not_reusable(captured: str) -> None:
    names = main(f"n = {captured}\ndef f(): return n")
    dump = dump_callable(names["f"])

    assert not dump.reusable
    assert dump_callable(names["f"]) is not dump


@pytest.mark.parametrize(
    ("source", "results"),
    [
        ("n = 0\ndef f():\n global n\n n += 1\n return n", [1, 1]),
        ("n = []\ndef f():\n n.append(1)\n return len(n)", [1, 1]),
        ("def f(n=[]):\n n.append(1)\n return len(n)", [1, 1]),
        ("def f(): f.n = getattr(f, 'n', 0) + 1; return f.n", [1, 1]),
        (
            "def outer(n):\n def f():\n  nonlocal n\n  n += 1\n  return n\n return f\nf = outer(0)",
            [1, 1],
        ),
    ],
)
def test_dump_callable_by_value_isolates_calls(source: str, results: list[int]) -> None:
    names = main(source)

    assert [call(names["f"]) for _ in results] == results


# Exceptions


class KeywordOnly(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Formatted(ValueError):
    def __init__(self, name: str, value: object) -> None:
        super().__init__(f"{name} is {value}")
        self.name = name


class Slotted(Exception):
    __slots__ = ("left", "right")

    def __init__(self, left: object) -> None:
        self.left = left


class DemandingNew(Exception):
    def __new__(cls, one: object, two: object) -> DemandingNew:
        return super().__new__(cls, one)


@dataclass(frozen=True)
class Frozen(Exception):
    detail: str


class Reducing(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__("sum")
        self.sum = first + second

    def __reduce__(self) -> tuple[Any, ...]:
        return Reducing, (self.sum, 0), {"arrived": True}


class Setting(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return Setting, (), 5, None, None, set_number


def set_number(exc: Any, number: int) -> None:
    exc.number = number


class Registered(Exception):
    pass


class Singleton(Exception):
    def __reduce__(self) -> str:
        return "SINGLETON"


SINGLETON = Singleton("only one")


class Falsy(Exception):
    def __bool__(self) -> bool:
        return False


class Equal(Exception):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not to be compared")

    __hash__ = None  # type: ignore[assignment]


class Parametrized(Exception, Generic[T]):
    pass


class OwnGroup(ExceptionGroup[Exception]):
    code: int

    def __new__(cls, excs: list[Exception], code: int) -> OwnGroup:
        self = super().__new__(cls, "own", excs)
        self.code = code
        return self

    def __init__(self, excs: list[Exception], code: int) -> None:
        pass


class Color(Enum):
    RED = 1


def described(exc: BaseException) -> tuple[object, ...]:
    return type(exc), exc.args, vars(exc), str(exc)


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("a", 1),
        Exception(),
        KeyError("k"),
        FileNotFoundError(errno.ENOENT, "No such file", "from", None, "to"),
        OSError("just text"),
        BlockingIOError(errno.EAGAIN, "again", 5),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        UnicodeEncodeError("ascii", "é", 0, 1, "bad"),
        ImportError("no", name="module", path="/path"),
        AttributeError("no", name="attribute"),
        NameError("no", name="variable"),
        StopAsyncIteration(1),
        StopIteration(7),
        SyntaxError("bad", ("file", 1, 2, "text", 1, 3)),
        asyncio.CancelledError("why"),
        subprocess.CalledProcessError(3, ["cmd"], b"out", b"err"),
        json.JSONDecodeError("bad", "doc", 1),
        KeywordOnly(code=3),
        Formatted("n", 1),
        DemandingNew(1, 2),
        Frozen("detail"),
        Parametrized[int]("p"),
        Color.RED and Exception(Color.RED, numpy.float64(2)),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_exception_arrives_as_it_was(exc: Exception) -> None:
    loaded = transfer(exc)

    assert described(loaded) == described(exc)
    for name in ("errno", "strerror", "filename", "filename2", "characters_written", "start"):
        assert getattr(loaded, name, None) == getattr(exc, name, None)
    for name in ("name", "path", "value", "code", "lineno", "text", "end_offset", "doc", "object"):
        assert getattr(loaded, name, None) == getattr(exc, name, None)


def test_exception_with_slots() -> None:
    loaded = transfer(Slotted("l"))

    assert isinstance(loaded, Slotted)
    assert loaded.left == "l"
    assert not hasattr(loaded, "right")


def test_exception_with_its_own_reduce() -> None:
    loaded = transfer(raised(Reducing(1, 2)))

    assert isinstance(loaded, Reducing)
    assert vars(loaded) == {"sum": 3, "arrived": True}
    assert frames(loaded) == ["raised"]


def test_exception_with_its_own_state_setter() -> None:
    assert vars(transfer(Setting())) == {"number": 5}


def test_exception_that_is_global() -> None:
    assert transfer(SINGLETON) is SINGLETON


def test_exception_registered_with_copyreg(monkeypatch: pytest.MonkeyPatch) -> None:
    reducers: dict[type, Callable[[Any], Any]] = copyreg.dispatch_table
    monkeypatch.setitem(reducers, Registered, lambda exc: (Registered, ("reduced", *exc.args)))

    assert transfer(Registered("a")).args == ("reduced", "a")


def test_exception_class_of_main_comes_back_as_the_original() -> None:
    """A11."""
    names = main("class Mine(Exception):\n def __init__(self, *, n): self.n = n")

    loaded = transfer(names["Mine"](n=1))

    assert type(loaded) is names["Mine"]
    assert vars(loaded) == {"n": 1}


def test_exception_traceback_arrives() -> None:
    """A.8 (8)."""
    names = main("class Late(Exception): pass\ndef inner(): raise Late\ndef outer(): inner()")
    with pytest.raises(names["Late"]) as caught:
        names["outer"]()

    loaded = transfer(transfer(caught.value))

    assert frames(loaded)[-2:] == ["outer", "inner"]
    assert traceback.format_exception(loaded) == traceback.format_exception(caught.value)


def test_exception_traceback_without_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    exc = raised(ValueError())
    tb = exc.__traceback__
    assert tb is not None
    line = traceback.extract_tb(tb)[0].lineno
    monkeypatch.setattr(remote_exception, "islice", lambda *args: iter(()))

    loaded = traceback.extract_tb(transfer(exc).__traceback__)[0]

    assert (loaded.lineno, loaded.name, loaded.colno) == (line, "raised", None)


def test_exception_traceback_refers_to_nothing() -> None:
    payload = dump_exception(raised(Falsy()))
    gc.collect()
    gc.disable()
    try:
        alive = weakref.ref(load_exception(payload))
        assert alive() is None
    finally:
        gc.enable()


def test_exception_with_deep_traceback() -> None:
    def sink() -> None:
        sink()

    with pytest.raises(RecursionError) as caught:
        sink()

    assert len(frames(transfer(caught.value))) == len(frames(caught.value))


def test_exception_cause_context_and_notes() -> None:
    cause, context, exc = KeyError("cause"), TypeError("context"), ValueError("outer")
    exc.__cause__, exc.__context__ = cause, context
    exc.__suppress_context__ = False
    exc.add_note("a note")
    cause.__context__ = context

    loaded = transfer(exc)

    assert described(loaded) == described(exc)
    assert loaded.__cause__ is not None
    assert described(loaded.__cause__) == described(cause)
    assert loaded.__cause__.__context__ is loaded.__context__ is not None
    assert loaded.__suppress_context__ is False
    assert loaded.__notes__ == ["a note"]


def test_exception_with_suppressed_context() -> None:
    exc = ValueError()
    exc.__context__ = KeyError()
    exc.__suppress_context__ = True

    assert transfer(exc).__suppress_context__


def test_exception_with_falsy_cause() -> None:
    exc = ValueError()
    exc.__cause__ = Falsy("no")

    loaded = transfer(exc)

    assert isinstance(loaded.__cause__, Falsy)
    assert isinstance(transfer(Falsy()), Falsy)


def test_exceptions_are_not_compared() -> None:
    exc = Equal()
    exc.__cause__ = Equal()

    assert isinstance(transfer(exc).__cause__, Equal)


def test_exception_in_cycles() -> None:
    first, second = ValueError(1), KeyError(2)
    first.__cause__, second.__context__ = second, first
    first.me = first  # type: ignore[attr-defined]
    second.args = (2, first)

    loaded: Any = transfer(first)

    assert loaded.__cause__.__context__ is loaded
    assert loaded.me is loaded
    assert loaded.__cause__.args == (2, loaded)


def test_exception_with_long_chain() -> None:
    exc: BaseException = ValueError(0)
    for n in range(1, 5000):
        following = ValueError(n)
        following.__context__ = exc
        exc = following

    assert len(remote_exception.tied(transfer(exc))) == 5000


def test_exception_group() -> None:
    inner = BaseExceptionGroup("inner", [raised(KeywordOnly(code=1)), KeyError("k")])
    group = BaseExceptionGroup("outer", [inner, asyncio.CancelledError()])
    group.add_note("noted")

    loaded = transfer(raised(group))

    assert isinstance(loaded, BaseExceptionGroup)
    assert (loaded.message, loaded.__notes__) == ("outer", ["noted"])
    assert isinstance(loaded.exceptions[0], ExceptionGroup)
    member = loaded.exceptions[0].exceptions[0]
    assert described(member) == described(inner.exceptions[0])
    assert frames(member) == frames(loaded) == ["raised"]


def test_exception_group_with_its_own_signature() -> None:
    loaded = transfer(OwnGroup([ValueError(1)], code=3))

    assert isinstance(loaded, OwnGroup)
    assert (loaded.message, loaded.code) == ("own", 3)


def test_exception_group_whose_member_was_raised_while_handling_it() -> None:
    member = ValueError()
    group = ExceptionGroup("group", [member])
    member.__context__ = group

    loaded = transfer(group)

    assert isinstance(loaded, ExceptionGroup)
    assert loaded.exceptions[0].__context__ is loaded


def test_exception_as_value() -> None:
    exc = raised(KeywordOnly(code=2))
    exc.__cause__ = ValueError("cause")

    (loaded,) = loads(dumps([exc]))

    assert described(loaded) == described(exc)
    assert described(loaded.__cause__) == described(exc.__cause__)
    assert frames(loaded) == ["raised"]


def test_exception_with_array() -> None:
    loaded = load_exception(received(dump_exception(ValueError(numpy.arange(3)))))

    assert loaded.args[0].sum() == 3


# Exceptions that can't be pickled


def test_exception_with_unpicklable_attribute_and_argument() -> None:
    """A21."""
    lock = threading.Lock()
    exc: Any = raised(Formatted("n", 1))
    exc.lock, exc.good, exc.args = lock, [1], ("text", lock)
    exc.add_note("own note")

    loaded: Any = transfer(exc)

    assert (type(loaded), loaded.name) == (Formatted, "n")
    assert (loaded.good, loaded.lock) == ([1], repr(lock))
    assert loaded.args == ("text", repr(lock))
    assert frames(loaded) == ["raised"]
    assert loaded.__notes__ == [
        "own note",
        "lock could not be pickled and arrived as its repr",
        "argument 1 could not be pickled and arrived as its repr",
    ]


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
def test_exception_with_unpicklable_cause(link: str) -> None:
    """A21."""
    cause: Any = KeyError("k")
    cause.lock = threading.Lock()
    exc = KeywordOnly(code=1)
    setattr(exc, link, cause)

    loaded = transfer(exc)
    tied: Any = getattr(loaded, link)

    assert described(loaded) == described(exc)
    assert (type(tied), tied.args, tied.lock) == (KeyError, ("k",), repr(cause.lock))


def test_exception_with_unpicklable_group_member() -> None:
    """A21."""
    member: Any = ValueError("m")
    member.lock = threading.Lock()

    loaded = transfer(ExceptionGroup("group", [member, KeywordOnly(code=1)]))

    assert isinstance(loaded, ExceptionGroup)
    assert [type(each) for each in loaded.exceptions] == [ValueError, KeywordOnly]
    assert not hasattr(loaded, "__notes__") or loaded.__notes__ == []


def test_exception_with_attribute_whose_repr_fails() -> None:
    class Bad:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

        def __reduce__(self) -> str:
            raise RuntimeError("no reduce")

    exc: Any = ValueError()
    exc.bad = Bad()

    assert "Bad object at" in transfer(exc).bad  # type: ignore[attr-defined]


def test_exception_of_unpicklable_class() -> None:
    """A21."""
    names = main(
        """
        import threading
        class Base(LookupError): pass
        class Locked(Base):
            lock = threading.Lock()
        def fail(): raise Locked("message")
        """
    )
    with pytest.raises(names["Base"]) as caught:
        names["fail"]()

    loaded = transfer(caught.value)

    assert type(loaded) is names["Base"]
    assert loaded.args == ("Locked: message",)
    assert "__main__.Locked could not be pickled and arrived as Base" in loaded.__notes__[0]
    assert "in fail" in loaded.__notes__[0]


def test_exception_group_of_unpicklable_class() -> None:
    names = main("import threading\nclass Group(ExceptionGroup):\n lock = threading.Lock()")

    loaded = transfer(names["Group"]("group", [ValueError(1)]))

    assert isinstance(loaded, ExceptionGroup)
    assert described(loaded.exceptions[0]) == described(ValueError(1))
    assert "__main__.Group" in loaded.__notes__[0]


class BrokenReduce(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        raise RuntimeError("no reduce")


class BrokenLoad(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return json.loads, ("",)


class NotAnException(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return int, (5,)


class BrokenBlank(ValueError):
    """As if it were written in C, with a `__new__` that wants arguments."""

    __new__ = math.hypot  # type: ignore[assignment]


@pytest.mark.parametrize("cls", [BrokenReduce, BrokenLoad, NotAnException])
def test_exception_whose_reduce_is_broken(cls: type[Exception]) -> None:
    loaded = transfer(raised(cls("a")))

    assert (type(loaded), loaded.args, frames(loaded)) == (cls, ("a",), ["raised"])


def test_exception_that_cannot_be_made_blank() -> None:
    loaded = transfer(ValueError.__new__(BrokenBlank, "a"))

    assert type(loaded) is ValueError
    assert loaded.args == ("BrokenBlank: a",)


def test_exception_whose_notes_are_no_list() -> None:
    exc: Any = ValueError()
    exc.__notes__ = exc.lock = threading.Lock()

    assert transfer(exc).__notes__[-1] == "lock could not be pickled and arrived as its repr"


def test_exception_as_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("degrade")

    exc: Any = KeyError("k")
    exc.lock = threading.Lock()
    monkeypatch.setattr(remote_exception, "degrade", fail)

    loaded = transfer(exc)

    assert described(loaded) == (RuntimeError, ("KeyError: 'k'",), {}, "KeyError: 'k'")


def test_exception_whose_message_fails() -> None:
    class Mute(SystemExit):
        def __str__(self) -> str:
            raise RuntimeError("no message")

    assert "Mute" in str(transfer(Mute()))


# Exceptions that no caller should raise


@pytest.mark.parametrize(
    ("exc", "message"),
    [
        (SystemExit(3), "routine raised SystemExit: 3"),
        (KeyboardInterrupt(), "routine raised KeyboardInterrupt"),
        (GeneratorExit("x"), "routine raised GeneratorExit: x"),
    ],
)
def test_dump_exception_that_would_end_the_caller(exc: BaseException, message: str) -> None:
    """A.8 (6)."""
    loaded = transfer(raised(exc))

    assert type(loaded) is RuntimeError
    assert str(loaded) == message
    assert type(loaded.__cause__) is type(exc)
    assert frames(loaded.__cause__) == ["raised"]
    assert type(exc).__name__ in "".join(traceback.format_exception(loaded))


@pytest.mark.parametrize("exc", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_load_exception_that_would_end_the_caller(exc: BaseException) -> None:
    """A22."""
    loaded = load_exception(dumps(exc))

    assert type(loaded) is UnexpectedResponse
    assert type(exc).__name__ in str(loaded)
    assert type(loaded.__cause__) is type(exc)


@pytest.mark.parametrize("value", [5, None, ValueError, ("summary", "text"), ("a", b"b", b"c")])
def test_load_exception_that_is_none(value: object) -> None:
    """A22."""
    with pytest.raises(UnexpectedResponse, match="Expected an exception, got"):
        load_exception(dumps(value))


def test_load_exception_from_unreadable_data() -> None:
    with pytest.raises(UnexpectedResponse, match="unreadable") as caught:
        load_exception(Payload(b"garbage"))

    assert caught.value.__cause__ is not None


def test_load_exception_from_graph_without_exception() -> None:
    with pytest.raises(UnexpectedResponse, match="got int"):
        load_exception(Payload(pickle.dumps(("summary", pickle.dumps([5])))))


def test_load_exception_that_cannot_be_loaded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A04."""
    module = ModuleType("elsewhere")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "elsewhere", module)
        exec("class Unknown(Exception): pass", vars(module))
        payload = dump_exception(module.Unknown("text"))

    loaded = load_exception(payload)

    assert type(loaded) is RuntimeError
    assert str(loaded).startswith("Unknown: text")
    assert isinstance(loaded.__cause__, ModuleNotFoundError)


# wool's own exceptions

METADATA = WorkerMetadata(uid=UUID(int=1), address="localhost:1", pid=1, version="1.0")

SAMPLES: dict[type[WoolError], tuple[object, ...]] = {
    NoWorkersAvailable: (),
    WorkerLost: (METADATA, "exit code 1"),
    WorkerUnresponsive: (METADATA, "no answer"),
    RpcError: (grpc.StatusCode.INTERNAL, "details"),
    TransientRpcError: (grpc.StatusCode.UNAVAILABLE, "details"),
    HandshakeError: (grpc.StatusCode.UNAVAILABLE, "a certificate has expired"),
    WorkerFull: (grpc.StatusCode.RESOURCE_EXHAUSTED, "full"),
    DispatchTimeout: (None, "after 1 s"),
    PayloadTooLarge: ("The arguments", 10, "max_send_message_length", 5),
}
"""Arguments for those that don't take just a message."""


def subclasses(cls: type[WoolError]) -> Iterator[type[WoolError]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


@pytest.mark.parametrize("cls", sorted({WoolError, *subclasses(WoolError)}, key=str))
@pytest.mark.parametrize(
    "copy",
    [lambda exc: pickle.loads(pickle.dumps(exc)), transfer, lambda exc: loads(dumps(exc))],
    ids=["pickle", "exception", "value"],
)
def test_exception_of_wool(cls: type[WoolError], copy: Callable[[Exception], Exception]) -> None:
    """A21, A93."""
    exc = cls(*SAMPLES.get(cls, ("message",)))
    exc.add_note("note")

    assert described(copy(exc)) == described(exc)


# Several processes

HELPER = '''
import asyncio, os, pickle, subprocess, sys

from test_serializer_helper_decorator import routine
from wool.runtime.serializer import *
from wool.runtime import serializer
from wool.runtime.serializer import dump_callable, dump_exception, dumps
from wool.runtime.serializer import load_callable, load_exception, loads


class Worker:
    """A process that runs routines, whose __main__ is another."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from test_serializer_helper import work; work()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def call(self, routine, *args):
        function = getattr(routine, "__wool_routine__", routine)
        pickle.dump((dump_callable(function).data, dumps(args)), self.process.stdin)
        self.process.stdin.flush()
        result, exception = pickle.load(self.process.stdout)
        if exception is not None:
            raise load_exception(exception)
        return loads(result)

    def __del__(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def work():
    while True:
        try:
            function, args = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = dumps(asyncio.run(load_callable(function)(*loads(args)))), None
        except BaseException as exc:
            answer = None, dump_exception(exc)
        sys.stdout.buffer.write(pickle.dumps(answer))
        sys.stdout.buffer.flush()
'''

DECORATOR = """
import functools
from wool.runtime.serializer import register_routine_decorator


def routine(function):
    @functools.wraps(function)
    async def wrapper(*args, **kwargs):
        return await function(*args, **kwargs)

    wrapper.__wool_routine__ = function
    return wrapper


register_routine_decorator(routine)
"""


class Process:
    """Runs scripts as `__main__`, with `Worker` to start more processes from there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "test_serializer_helper.py").write_text(HELPER)
        (directory / "test_serializer_helper_decorator.py").write_text(DECORATOR)

    def run(self, source: str) -> None:
        script = self._directory / "script.py"
        script.write_text("from test_serializer_helper import *\n" + textwrap.dedent(source))
        path = os.pathsep.join([str(self._directory), *filter(None, sys.path)])
        subprocess.run(
            [sys.executable, str(script)], check=True, env={**os.environ, "PYTHONPATH": path}
        )


def test_exception_of_main_on_first_and_second_hop(tmp_path: Path) -> None:
    """A11."""
    Process(tmp_path).run(
        """
        class MyError(Exception):
            def __init__(self, *, code):
                super().__init__(f"code {code}")
                self.code = code

        @routine
        async def fail(code):
            raise MyError(code=code)

        @routine
        async def relay(code):
            try:
                Worker().call(fail, code)
            except MyError as exc:
                if code > 1:
                    raise
                raise MyError(code=exc.code + 10) from exc

        for routine_, code, expected in [(fail, 1, 1), (relay, 1, 11), (relay, 2, 2)]:
            for _ in range(2):
                try:
                    Worker().call(routine_, code)
                except MyError as exc:
                    assert exc.code == expected, exc.code
                    assert routine_ is fail or code == 2 or type(exc.__cause__) is MyError
                else:
                    raise AssertionError("nothing raised")
        assert MyError.__init__.__globals__ is globals()
        """
    )


def test_recursive_routine_of_main(tmp_path: Path) -> None:
    Process(tmp_path).run(
        """
        @routine
        async def fib(n):
            return n if n < 2 else await fib(n - 1) + await fib(n - 2)

        @routine
        async def nested(n):
            return Worker().call(fib, n)

        worker = Worker()
        assert worker.call(fib, 10) == 55
        assert worker.call(nested, 9) == 34
        assert worker.call(nested, 8) == 21
        """
    )


def test_routine_of_main_sees_each_call_anew(tmp_path: Path) -> None:
    Process(tmp_path).run(
        """
        n, items = 1, []

        @routine
        async def count():
            global n
            n += 1
            items.append(n)
            return items

        worker = Worker()
        assert [worker.call(count) for _ in range(2)] == [[2], [2]]
        n = 5
        items.append(0)
        assert worker.call(count) == [0, 6]
        """
    )


def test_routine_that_exits(tmp_path: Path) -> None:
    """A.8 (6)."""
    Process(tmp_path).run(
        """
        @routine
        async def leave():
            sys.exit(3)

        @routine
        async def stay():
            return 1

        worker = Worker()
        try:
            worker.call(leave)
        except RuntimeError as exc:
            assert str(exc) == "routine raised SystemExit: 3", exc
            assert exc.__cause__.code == 3
        assert worker.call(stay) == 1
        """
    )


def test_routine_missing_on_the_worker(tmp_path: Path) -> None:
    """A04."""
    Process(tmp_path).run(
        """
        import types
        module = sys.modules["only_here"] = types.ModuleType("only_here")
        exec("async def f(): pass", vars(module))

        try:
            Worker().call(module.f)
        except ModuleNotFoundError as exc:
            assert "only_here" in exc.__notes__[0]
        else:
            raise AssertionError("nothing raised")
        """
    )
