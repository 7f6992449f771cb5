"""What it is in a value that can't be pickled, and where, in words."""

from __future__ import annotations

import inspect
import io
import pickle
import reprlib
import time
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from wool.runtime import serializer
from wool.runtime.capture import name_of, routine_of, variables_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEEPEST = 20
"""Levels of a value that are looked into."""

PATIENCE = 0.5
"""Seconds after which no more parts of a value are pickled to see whether they can be."""

_LEFT_OUT = (GetSetDescriptorType, MemberDescriptorType)
"""What is made anew with a class that travels by value, as its `_abc_impl` is."""

_HINTS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (inspect.isawaitable, "await it first"),
    (inspect.isgenerator, "make a list of it first"),
    (inspect.isasyncgen, "collect its items first"),
    (lambda value: isinstance(value, io.IOBase), "give its path instead"),
)


def refuse(exc: Exception, what: str, value: object, place: str) -> NoReturn:
    """Raise what says that `what`, which is `value`, can't be pickled, as `exc` says.

    `place` is what the value is called there. An error of the value's own is raised as it is.
    """
    if type(exc) not in {TypeError, pickle.PicklingError}:
        exc.add_note(f"while pickling {what}")
        raise exc
    whole = _Part(value, place)
    found = _Search().innermost(whole) or whole
    remarks = [f"it is {found}"] if found is not whole else []
    remarks += [hint for applies, hint in _HINTS if applies(found.value)]
    remark = f" ({'; '.join(remarks)})" if remarks else ""
    raise type(exc)(f"{what[0].upper()}{what[1:]} can't be pickled: {exc}{remark}") from exc


def can_be_pickled(value: object) -> bool:
    try:
        serializer.dumps(value)
    except Exception:
        return False
    return True


def parameter(function: Callable[..., Any], position: int) -> str:
    """What a function calls the argument at that position."""
    code = getattr(function, "__code__", None)
    if code is not None and position < code.co_argcount:
        return str(code.co_varnames[position])
    return f"args[{position - (code.co_argcount if code else 0)}]"


class _Part(NamedTuple):
    """A part of a value, the path that leads there, and the function in which that begins."""

    value: Any
    path: str
    function: str = ""

    def __str__(self) -> str:
        return f"{self.path} in {self.function}" if self.function else self.path

    def parts(self) -> Iterator[_Part]:
        for path, value in self._items():
            yield _Part(value, path, self.function)
        if isinstance(self.value, FunctionType):
            function = routine_of(self.value) or self.value
            if name_of(function) is None:
                for name, value in variables_of(function):
                    yield _Part(value, name, function.__qualname__)

    def _items(self) -> Iterator[tuple[str, object]]:
        value, path = self.value, self.path
        if isinstance(value, dict):
            yield from ((f"{path}[{reprlib.repr(key)}]", item) for key, item in value.items())
            yield from ((f"a key of {path}", key) for key in value)
        elif isinstance(value, list | tuple):
            yield from ((f"{path}[{i}]", item) for i, item in enumerate(value))
        elif isinstance(value, set | frozenset):
            yield from ((f"an item of {path}", item) for item in value)
        elif isinstance(value, MethodType):
            yield f"{path}.__self__", value.__self__
        elif isinstance(value, type):
            for name, item in [*vars(value).items()]:
                if not isinstance(item, _LEFT_OUT) and name != "_abc_impl":
                    yield f"{value.__qualname__}.{name}", item
        elif isinstance(value, ModuleType):
            yield from ((f"{value.__name__}.{name}", item) for name, item in vars(value).items())
        elif _is_pickled_by_attributes(type(value)):
            yield from ((f"{path}.{name}", item) for name, item in vars(value).items())
            yield type(value).__qualname__, type(value)


def _is_pickled_by_attributes(cls: type) -> bool:
    return "__dict__" in dir(cls) and all(
        getattr(cls, name, None) is getattr(object, name, None)
        for name in ("__reduce__", "__reduce_ex__", "__getstate__")
    )


class _Search:
    """For the innermost part of a value that can't be pickled."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._deadline = time.monotonic() + PATIENCE

    def innermost(self, whole: _Part, depth: int = 0) -> _Part | None:
        """None if it is only in parts that were looked into before."""
        is_innermost = True
        self._seen.add(id(whole.value))
        for part in whole.parts() if depth < DEEPEST else ():
            if time.monotonic() > self._deadline:
                return whole
            if can_be_pickled(part.value):
                continue
            is_innermost = False
            if id(part.value) not in self._seen and (found := self.innermost(part, depth + 1)):
                return found
        return whole if is_innermost else None
