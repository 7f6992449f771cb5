"""What is said of a value that can't be pickled: what of it, where that is, and what to do."""

from __future__ import annotations

import abc
import asyncio
import pickle
import threading
import types
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from wool.runtime import serializer, unpicklable
from wool.runtime.unpicklable import can_be_pickled, parameter, refuse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

LOCK = threading.Lock()


class Named(NamedTuple):
    first: object
    second: object = 0


class Holder:
    def __init__(self, **attributes: object) -> None:
        vars(self).update(attributes)


class Guarded:
    """Pickled without its lock, and not at all for another reason."""

    def __init__(self) -> None:
        self.lock = LOCK

    def __getstate__(self) -> object:
        return {"codes": iter_codes()}


def iter_codes() -> Iterator[int]:
    yield 1


async def aiter_codes() -> AsyncIterator[int]:
    yield 1


def of_main(source: str, **names: object) -> Any:
    """`f` of a module that nobody can import, so that it travels by value."""
    module = {"__name__": "__main__", **names}
    exec(source, module)
    return module["f"]


def said(value: object) -> str:
    """What is said of a value, without what pickle says."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        serializer.dumps(value)
    with pytest.raises(type(caught.value)) as refused:
        refuse(caught.value, "the value", value, "x")
    assert refused.value.__cause__ is caught.value
    text = str(refused.value)
    opening = f"The value can't be pickled: {caught.value}"
    assert text.startswith(opening)
    return text.removeprefix(opening).strip(" ()")


def cyclic() -> object:
    items: list[object] = [[1]]
    items[0].append(items)  # type: ignore[attr-defined]
    items.append(LOCK)
    return items


def functions_in_a_cycle() -> object:
    return of_main("def f(): return g()\ndef g(): return f(), lock", lock=LOCK)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (LOCK, ""),
        ([1, LOCK], "it is x[1]"),
        ({"a": [1, {"b": (LOCK,)}]}, "it is x['a'][1]['b'][0]"),
        ({LOCK: 1}, "it is a key of x"),
        ([{LOCK}], "it is an item of x[0]"),
        (Named(1, LOCK), "it is x[1]"),
        (Holder(log=Holder(lock=LOCK)), "it is x.log.lock"),
        (Guarded(), ""),
        (types.SimpleNamespace(lock=LOCK), ""),
        (partial(print, LOCK), ""),
        (of_main("def f(): return lock", lock=LOCK), "it is lock in f"),
        (of_main("def f(): return h", h=Holder(a=[LOCK])), "it is h.a[0] in f"),
        ([of_main("def f(a, b=lock): pass", lock=LOCK)], "it is b in f"),
        (of_main("def f(*, b=lock): pass", lock=LOCK), "it is b in f"),
        (of_main("def g(lock):\n def f(): return lock\n return f\nf = g(lock)", lock=LOCK),
         "it is lock in g.<locals>.f"),
        (of_main("class f:\n lock = lock", lock=LOCK), "it is f.lock"),
        (of_main("class f:\n def g(self): lock", lock=LOCK)(), "it is lock in f.g"),
        (of_main("class f:\n def g(self): pass", lock=LOCK)().g, None),
        (cyclic(), "it is x[1]"),
        (functions_in_a_cycle(), "it is lock in g"),
    ],
)  # fmt: skip
def test_place(value: object, where: str | None) -> None:
    if where is None:
        assert can_be_pickled(value)
    else:
        assert said(value) == where


def test_place_in_a_bound_method() -> None:
    holder = of_main("class f:\n def g(self): pass")()
    holder.lock = LOCK
    assert said(holder.g) == "it is x.__self__.lock"


def test_place_in_a_class_with_parts_that_are_made_anew() -> None:
    cls = of_main(
        "class f(abc.ABC):\n __slots__ = ('a', '__dict__', '__weakref__')\n lock = lock",
        abc=abc,
        lock=LOCK,
    )
    assert said(cls()) == "it is f.lock"


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value]])
def test_hints(wrap: Callable[[object], object], tmp_path: Path) -> None:
    coroutine = asyncio.sleep(0)
    place = "it is x[0]; " if wrap(1) == [1] else ""
    try:
        assert said(wrap(coroutine)) == f"{place}await it first"
    finally:
        coroutine.close()
    assert said(wrap(iter_codes())) == f"{place}make a list of it first"
    assert said(wrap(aiter_codes())) == f"{place}collect its items first"
    with (tmp_path / "log").open("w") as file:
        assert said(wrap(file)) == f"{place}give its path instead"


async def test_hint_for_a_task() -> None:
    task = asyncio.ensure_future(asyncio.sleep(0))
    assert said(task) == "await it first"
    await task


def test_error_of_the_value_itself() -> None:
    error = LookupError("mine")
    with pytest.raises(LookupError, match="mine") as caught:
        refuse(error, "the value", 1, "x")
    assert caught.value is error
    assert error.__notes__ == ["while pickling the value"]
    assert error.__cause__ is None


def test_error_of_pickling_keeps_its_class() -> None:
    with pytest.raises(pickle.PicklingError, match=r"^The value can't be pickled: no$"):
        refuse(pickle.PicklingError("no"), "the value", 1, "x")


def test_search_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpicklable, "DEEPEST", 3)
    assert said([[[[[LOCK]]]]]) == "it is x[0][0][0]"
    monkeypatch.setattr(unpicklable, "PATIENCE", -1)
    assert said([LOCK]) == ""


def test_parameter() -> None:
    def function(a: int, /, b: int, *rest: int, c: int = 0) -> None: ...

    assert [parameter(function, i) for i in range(4)] == ["a", "b", "args[0]", "args[1]"]
    assert parameter(partial(function), 1) == "args[1]"
