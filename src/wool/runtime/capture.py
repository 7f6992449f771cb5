"""What a function refers to: by which name it can be imported, or what it takes along by value.

A function by value carries its code, defaults, closure, attributes, annotations and the globals
that its code names, and so on through the functions among them. A `Capture` remembers all of
these by identity, so that a pickle made earlier can be used again while it still says the same.
That works only if nothing captured can change in place; `Capture.of` tells.

Functions are remembered weakly: one often captures itself, and must not live for its capture.
"""

from __future__ import annotations

import dis
import sys
import typing
from functools import lru_cache
from itertools import chain, repeat
from operator import attrgetter
from types import BuiltinFunctionType, CodeType, EllipsisType, FunctionType, ModuleType, NoneType
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

from cloudpickle.cloudpickle import list_registry_pickle_by_value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROUTINE = "__wool_routine__"
"""The attribute of a routine's wrapper that holds the undecorated function."""

OPTIONS = "__wool_options__"
"""The attribute of a routine's wrapper that holds its `RoutineOptions`."""

_Place = tuple["Mapping[str, Any]", str, Any]
"""Namespace, key and value."""

_DECORATION = frozenset({ROUTINE, OPTIONS, "options", "__wrapped__", "_is_coroutine_mark"})
_MISSING = object()
_ATOMS = frozenset({NoneType, bool, int, float, complex, str, bytes, EllipsisType})

_GLOBAL_OPS = frozenset({"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL"})
_WRITES = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR"})
_CELL_WRITES = frozenset({"STORE_DEREF", "DELETE_DEREF"})
# Names by which code may reach and change what it captured without any of the opcodes above.
_REFLECTION = frozenset(
    {"__annotations__", "__closure__", "__delattr__", "__dict__", "__globals__", "__kwdefaults__"}
    | {"__setattr__", "cell_contents", "delattr", "eval", "exec", "f_globals", "globals"}
    | {"setattr", "vars"}
)


def undecorated(thing: Any) -> Any:
    """The function behind `thing` if a routine's wrapper is, under any other decorators."""
    return getattr(thing, ROUTINE, thing)


def routine_of(function: FunctionType) -> FunctionType | None:
    """The undecorated function if this is a routine's wrapper itself.

    Other decorators above that copy its attributes; their `__wrapped__` gives them away.
    """
    attributes = function.__dict__
    routine: FunctionType | None = attributes.get(ROUTINE)
    return routine if attributes.get("__wrapped__", routine) is routine else None


def options_of(wrapper: FunctionType) -> tuple[Any, ...]:
    """The decorator's arguments after the function."""
    options = wrapper.__dict__.get(OPTIONS)
    return () if options is None else (options,)


def attributes_of(function: FunctionType) -> dict[str, Any]:
    """The attributes that `function` has been given, other than by the routine decorator."""
    attributes = function.__dict__
    if routine_of(function) is None:
        return attributes
    return {name: value for name, value in attributes.items() if name not in _DECORATION}


def lookup(module: str, qualname: str) -> object:
    """What an imported module has at `qualname`, without running any code of its classes.

    Static and class methods are unwrapped. Raises `AttributeError` if there is nothing.
    """
    found = _steps(module, qualname)[-1][2]
    if found is _MISSING:
        raise AttributeError(f"module {module!r} has no attribute {qualname!r}")
    return _unwrapped(found)


def name_of(function: FunctionType) -> tuple[str, str] | None:
    """Module and qualified name, if `function`, or the routine made of it, travels by them."""
    module, qualname = function.__module__, function.__qualname__
    if not module or module == "__main__" or _is_by_value(module):
        return None
    found = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    found = _unwrapped(found)
    return (module, qualname) if function is undecorated(found) or function is found else None


def variables_of(function: FunctionType) -> Iterator[tuple[str, object]]:
    """The names in a function that come from outside of it, and what they stand for."""
    code = function.__code__
    yield from zip(code.co_freevars, map(_content, function.__closure__ or ()), strict=True)
    for name in _usage(code).names:
        if name in function.__globals__:
            yield name, function.__globals__[name]
    defaults = function.__defaults__ or ()
    yield from zip(code.co_varnames[code.co_argcount - len(defaults) :], defaults, strict=False)
    yield from (function.__kwdefaults__ or {}).items()


def _steps(module: str, qualname: str) -> list[_Place]:
    """The way to a name, which ends with the value `_MISSING` if there is nothing."""
    found = sys.modules.get(module, _MISSING)
    steps: list[_Place] = [(sys.modules, module, found)]
    for part in qualname.split("."):
        namespace = getattr(found, "__dict__", {})
        found = namespace.get(part, _MISSING)
        steps.append((namespace, part, found))
    return steps


def _unwrapped(thing: Any) -> Any:
    return thing.__func__ if isinstance(thing, staticmethod | classmethod) else thing


def _is_by_value(module: str) -> bool:
    registered = list_registry_pickle_by_value()
    if not registered:
        return False
    return any(module == name or module.startswith(f"{name}.") for name in registered)


class Capture:
    """All that a function takes along by value, by identity.

    `reusable`: its code changes none of it when it runs, as far as one can tell without running
    it, so that one loaded copy can serve many calls.
    """

    def __init__(self, function: FunctionType) -> None:
        self.reusable = True
        self._functions = [function]
        self._parts: list[_Part] = []
        self._places: list[_Place] = []
        self._kept_alive: list[object] = []
        self._unimported: set[str] = set()
        self._by_value = list_registry_pickle_by_value()
        for each in self._functions:
            self._add(each)
        del self._functions

    @classmethod
    def of(cls, function: FunctionType) -> Capture | None:
        """The capture of a function, None if that includes anything that can change in place."""
        try:
            return cls(function)
        except _Mutable:
            return None

    def holds(self) -> bool:
        """Whether pickling the function anew would give the same."""
        for function, names, ids in self._parts:
            alive = function()
            if alive is None or list(map(id, _captured(alive, names))) != ids:
                return False
        for namespace, key, value in self._places:
            if namespace.get(key) is not value:
                return False
        return (
            sys.modules.keys().isdisjoint(self._unimported)
            and list_registry_pickle_by_value() == self._by_value
        )

    def _add(self, function: FunctionType) -> None:
        names: tuple[str, ...] = ()
        if routine_of(function) is None:
            names, writes = _usage(function.__code__)
            self.reusable &= not writes
        self.reusable &= not attributes_of(function)
        values = _captured(function, names)
        self._parts.append(_Part(ref(function), names, [*map(id, values)]))
        for value in values:
            self._check(value)
        self._unimported |= _unimported_submodules(values, function.__code__.co_names)

    def _check(self, value: object) -> None:
        if self._locate(value):
            return
        if type(value) is FunctionType:
            if not any(value is known for known in self._functions):
                self._functions.append(value)
        elif _is_constant(value):
            self._kept_alive.append(value)
        elif (origin := typing.get_origin(value)) is not None:
            self._kept_alive.append(value)
            for part in (*([] if origin is typing.Union else [origin]), *typing.get_args(value)):
                self._check(part)
        else:
            raise _Mutable

    def _locate(self, value: object) -> bool:
        """Whether `value` travels as a name; remembers where that leads."""
        if isinstance(value, ModuleType):
            steps = _steps(value.__name__, "__name__")[:1]
        elif isinstance(value, type | FunctionType | BuiltinFunctionType):
            steps = _steps(value.__module__ or "", value.__qualname__)
        else:
            return False
        module = steps[0][1]
        found = _unwrapped(steps[-1][2])
        if module == "__main__" or _is_by_value(module):
            return False
        if value is not found and value is not undecorated(found):
            return False
        self._places += steps
        return True


class _Mutable(Exception):
    pass


class _Part(NamedTuple):
    function: ref[FunctionType]
    names: tuple[str, ...]
    ids: list[int]


class _Usage(NamedTuple):
    names: tuple[str, ...]
    writes: bool


_plain_attributes = attrgetter("__code__", "__name__", "__qualname__", "__doc__", "__module__")


def _captured(function: FunctionType, names: tuple[str, ...]) -> list[object]:
    """What cloudpickle would take along, in a fixed order. Of a routine's wrapper, what we do."""
    attributes = function.__dict__
    if attributes and (routine := routine_of(function)) is not None:
        attributes = attributes_of(function)
        return [routine, *attributes, *attributes.values()]
    values = [*_plain_attributes(function)]
    values += map(function.__globals__.get, names, repeat(_MISSING))
    values += function.__defaults__ or ()
    for mapping in (function.__kwdefaults__, function.__annotations__, attributes):
        if mapping:
            values += chain(mapping, mapping.values())
    if function.__closure__:
        values += map(_content, function.__closure__)
    return values


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _is_constant(value: Any) -> bool:
    if type(value) in {tuple, frozenset}:
        return all(map(_is_constant, value))
    return (
        type(value) in _ATOMS or type(value) is CodeType or value is _MISSING or value is NoneType
    )


@lru_cache(maxsize=1024)
def _usage(code: CodeType) -> _Usage:
    """The globals that `code` names, and whether it changes anything captured."""
    names: dict[str, None] = {}
    writes = False
    for each in _with_nested(code):
        writes |= not _REFLECTION.isdisjoint(each.co_names)
        for instruction in dis.get_instructions(each):
            operation, argument = instruction.opname, instruction.argval
            if operation in _GLOBAL_OPS:
                names[argument] = None
            writes |= operation in _WRITES
            writes |= operation in _CELL_WRITES and argument in code.co_freevars
    return _Usage((*names,), writes)


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_nested(constant)


def _unimported_submodules(values: list[object], names: tuple[str, ...]) -> set[str]:
    """Submodules that, once imported, a pickle would import: code may say `package.submodule`."""
    packages = [v.__name__ for v in values if isinstance(v, ModuleType) and "__path__" in vars(v)]
    unimported = set()
    for package in packages:
        for name in names:
            submodule = f"{package}.{name}"
            if submodule in sys.modules:
                packages.append(submodule)
            else:
                unimported.add(submodule)
    return unimported
