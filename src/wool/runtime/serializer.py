"""Callables, arguments, results and exceptions to bytes and back.

Everything is a pickle, protocol 5 with buffers out of band, and so are arguments and results that
are large bytes. cloudpickle takes what pickle can't; plain pickle is for values that can't refer to
`__main__`.
"""

from __future__ import annotations

import importlib
import io
import pickle
from collections import Counter
from functools import lru_cache
from pickle import PickleBuffer
from types import FunctionType, MappingProxyType, NoneType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    NamedTuple,
    Protocol,
    TypeGuard,
    cast,
    runtime_checkable,
)
from weakref import WeakKeyDictionary

import cloudpickle

from wool.runtime import memory, remote_exception
from wool.runtime.capture import (
    Capture,
    attributes_of,
    lookup,
    name_of,
    options_of,
    routine_of,
    undecorated,
)
from wool.runtime.errors import UnexpectedResponse
from wool.runtime.memory import Buffer, Form

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from wool.runtime.remote_exception import Reduction

OUT_OF_BAND = 64 * 1024
"""Bytes from which an argument or a result that is bytes travels beside the pickle."""

_PROTOCOL = 5
_PLAIN_NODES = 64
_SCALARS = frozenset({NoneType, bool, int, float, complex, str})
_ATOMS = _SCALARS | {bytes}
_CONTAINERS = frozenset({tuple, list, set, frozenset})
_BYTES = frozenset({bytes, bytearray})
_BY_NAME, _BY_VALUE = b"n", b"v"


@runtime_checkable
class Serializer(Protocol):
    """A way to turn the arguments of a task into bytes and back."""

    def dumps(self, value: object) -> bytes: ...

    def loads(self, data: bytes) -> object: ...


class Payload(NamedTuple):
    """A pickle and the buffers that travel beside it."""

    data: Buffer
    buffers: tuple[Buffer, ...] = ()

    @property
    def size(self) -> int:
        """In bytes."""
        if not self.buffers:
            return len(self.data)
        return len(self.data) + sum(memoryview(buffer).nbytes for buffer in self.buffers)

    @property
    def forms(self) -> bytes:
        """The `Form` of each buffer, a byte each."""
        return bytes(map(Form.of, self.buffers))

    @classmethod
    def received(cls, data: bytes, buffers: Collection[bytes], forms: bytes) -> Payload:
        """One whose buffers came as bytes. Raises `UnexpectedResponse` if `forms` doesn't fit."""
        if not buffers and not forms:
            return cls(data)
        if len(forms) != len(buffers):
            raise UnexpectedResponse(f"{len(buffers)} buffers came with {len(forms)} forms")
        return cls(data, tuple(map(_received, buffers, forms)))


_NO_ARGUMENTS = Payload(pickle.dumps(((), {}), _PROTOCOL))


class Dump(NamedTuple):
    """A pickled callable. `reusable`: loaded once, it can serve any number of calls."""

    data: bytes
    reusable: bool


def dumps(value: object) -> Payload:
    """Pickle a value as it is now: buffers that can be written to are copied."""
    if type(value) in _SCALARS:
        return Payload(pickle.dumps(value, _PROTOCOL))
    if _is_large(value):
        return _dump(PickleBuffer(value))
    if _is_plain(value):
        return Payload(pickle.dumps(value, _PROTOCOL))
    return _dump(value)


def dumps_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Payload:
    """Pickle the arguments of a call as they are now, as `(args, kwargs)`."""
    if not kwargs and type(args) is tuple and _SCALARS.issuperset(map(type, args)):
        return Payload(pickle.dumps((args, {}), _PROTOCOL)) if args else _NO_ARGUMENTS
    if any(map(_is_large, args)) or any(map(_is_large, kwargs.values())):
        place = _placement([*args, *kwargs.values()])
        return _dump((tuple(map(place, args)), {name: place(kwargs[name]) for name in kwargs}))
    return dumps((args, kwargs))


def loads(payload: Payload) -> Any:
    """The value pickled by `dumps`, which keeps the payload's buffers.

    Raises what unpickling raises, as the cause of a `RuntimeError` if it would end the process.
    """
    data, buffers = payload
    try:
        return pickle.loads(data, buffers=buffers) if buffers else pickle.loads(data)
    except BaseException as exc:
        if remote_exception.is_ordinary(exc):
            raise
        raise RuntimeError(f"unpickling raised {remote_exception.describe(exc)}") from exc


def to_bytes(value: object) -> bytes:
    """Pickle a value with its buffers in the pickle, to be loaded by `pickle.loads`."""
    return bytes(_dump(value, in_band=True).data)


def dump_callable(function: FunctionType) -> Dump:
    """Pickle the undecorated function of a routine: its name if importable by it, else its value.

    By value is as it is now. An earlier pickle is used again if nothing it holds can have changed.
    """
    if (name := name_of(function)) is not None:
        return _dump_name(*name)
    known = _dumps.get(function)
    if known is not None and known[0].holds():
        return known[1]
    capture = Capture.of(function)
    data = _BY_VALUE + to_bytes(function)
    if capture is None:
        return Dump(data, False)
    dump = Dump(data, capture.reusable)
    _dumps[function] = capture, dump
    return dump


@lru_cache(maxsize=1024)
def _dump_name(module: str, qualname: str) -> Dump:
    return Dump(_BY_NAME + f"{module}\0{qualname}".encode(), True)


_dumps: WeakKeyDictionary[FunctionType, tuple[Capture, Dump]] = WeakKeyDictionary()


def load_callable(data: bytes) -> FunctionType:
    """The function pickled by `dump_callable`.

    Raises what importing its module raises, `AttributeError` if that has no such name,
    `TypeError` if it is not a function.
    """
    if data[:1] == _BY_VALUE:
        function: FunctionType = pickle.loads(memoryview(data)[1:])
        return function
    module, _, qualname = data[1:].decode().partition("\0")
    try:
        return _import_function(module, qualname)
    except Exception as exc:
        exc.add_note(
            f"while importing the routine {qualname!r} from {module!r}, by which name the caller "
            "knows it: the worker must be able to import the same module"
        )
        raise


def dump_exception(exc: BaseException) -> Payload:
    """Pickle an exception with its cause, context, group members and tracebacks.

    Never fails: what can't travel, and only that, is replaced (see `remote_exception.degrade`).
    One that would end the process it is raised in goes as the cause of a `RuntimeError`.
    """
    exc = remote_exception.ordinary(exc)
    summary = remote_exception.describe(exc)
    graph = _dump_graph(exc, {}) or _dump_degraded(exc) or _dump([RuntimeError(summary)])
    return Payload(pickle.dumps((summary, graph.data), _PROTOCOL), graph.buffers)


def load_exception(payload: Payload) -> BaseException:
    """The exception pickled by `dump_exception`; to be raised by whoever asks for it.

    It is a `RuntimeError` that says so if it can't be loaded here, and an `UnexpectedResponse` if
    no peer may send it. Raises `UnexpectedResponse` if `payload` holds anything but an exception.
    """
    try:
        loaded = loads(payload)
    except BaseException as exc:
        raise UnexpectedResponse("Expected an exception, got something unreadable") from exc
    match loaded:
        case (str() as summary, bytes() | bytearray() as graph):
            loaded = _load_graph(Payload(graph, payload.buffers), summary)
    if not isinstance(loaded, BaseException):
        raise UnexpectedResponse(f"Expected an exception, got {type(loaded).__qualname__}")
    if remote_exception.is_ordinary(loaded):
        return loaded
    error = UnexpectedResponse(f"The peer sent {remote_exception.describe(loaded)}")
    error.__cause__ = loaded
    return error


def register_routine_decorator(decorate: Callable[..., Any]) -> None:
    """Have routines that travel by value decorated with `decorate` on arrival.

    It is called with the function and what `options_of` says of the routine, and must be importable
    by name. The function may be incomplete (defaults, annotations, closure and globals follow) when
    that refers to its own routine.
    """
    _Pickler.decorate = staticmethod(decorate)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, which also knows routines and exceptions, and leaves originals alone.

    `replaced` has other reductions for some exceptions, by id.
    """

    decorate: ClassVar[Callable[..., Any] | None] = None
    replaced: Mapping[int, Reduction] = MappingProxyType({})

    def reducer_override(self, thing: Any) -> Any:
        kind = type(thing)
        if kind is FunctionType:
            return self._reduce_function(thing)
        if issubclass(kind, BaseException):
            return self.replaced.get(id(thing)) or remote_exception.reduce(thing)
        if issubclass(kind, type):
            return self._reduce_class(thing)
        return NotImplemented

    def _reduce_function(self, function: FunctionType) -> Any:
        reduced = super().reducer_override(function)
        if reduced is NotImplemented:
            return reduced
        routine = routine_of(function)
        if (name := name_of(function)) is not None:
            return _import_name if routine else _import_function, name
        if routine is not None and self.decorate is not None:
            arguments = routine, *options_of(function)
            return self.decorate, arguments, attributes_of(function) or None
        return reduced

    def _reduce_class(self, cls: type) -> Any:
        reduced = super().reducer_override(cls)
        if reduced is NotImplemented or len(reduced) < 6:
            return reduced
        _is_copy.setdefault(cls, False)
        make, args, state, _, _, fill = reduced
        return make, args, (fill, state), None, None, _fill_class


_is_copy: WeakKeyDictionary[type, bool] = WeakKeyDictionary()
"""Of the classes that travel by value, which were defined in another process."""


def _fill_class(cls: type, packed: tuple[Callable[[type, object], object], object]) -> None:
    """Copies follow their original. The original, when it comes home, is not to follow a copy."""
    fill, state = packed
    if _is_copy.setdefault(cls, True):
        fill(cls, state)


def _is_large(value: object) -> TypeGuard[bytes | bytearray]:
    return type(value) in _BYTES and len(cast("bytes", value)) >= OUT_OF_BAND


def _placement(arguments: list[object]) -> Callable[[object], object]:
    """What puts large bytes beside the pickle, unless they would come out as two objects.

    In the pickle an object that is referred to twice is one, which matters if it can change.
    """
    times = Counter(map(id, arguments))
    unshared = all(type(each) in _ATOMS or type(each) is bytearray for each in arguments)

    def place(argument: Any) -> object:
        if not _is_large(argument) or times[id(argument)] > 1:
            return argument
        return PickleBuffer(argument) if unshared or type(argument) is bytes else argument

    return place


def _received(buffer: bytes, form: int) -> Buffer:
    return buffer if form == Form.BYTES else bytearray(buffer)


def _is_plain(value: object) -> bool:
    nodes: list[Any] = [value]
    for node in nodes:
        kind = type(node)
        if kind in _ATOMS:
            continue
        if kind in _CONTAINERS:
            children = node
        elif kind is dict:
            children = (*node, *node.values())
        else:
            return False
        if _ATOMS.issuperset(map(type, children)) and len(children) < _PLAIN_NODES:
            continue
        if len(nodes) + len(children) > _PLAIN_NODES:
            return False
        nodes += children
    return True


def _dump(
    value: object, *, in_band: bool = False, replaced: Mapping[int, Reduction] | None = None
) -> Payload:
    buffers: list[Buffer] = []

    def keep(buffer: PickleBuffer) -> None:
        view = buffer.raw()
        if not view.readonly:
            buffers.append(memory.copy(view))
        elif type(view.obj) is bytes and len(view.obj) == view.nbytes:
            buffers.append(view.obj)
        else:
            buffers.append(bytes(view))  # Others may write to what it is a view of.

    with io.BytesIO() as file:
        pickler = _Pickler(file, _PROTOCOL, None if in_band else keep)
        if replaced:
            pickler.replaced = replaced
        pickler.dump(value)
        return Payload(file.getvalue(), tuple(buffers))


def _import_name(module: str, qualname: str) -> Any:
    importlib.import_module(module)
    return lookup(module, qualname)


def _import_function(module: str, qualname: str) -> FunctionType:
    function = undecorated(_import_name(module, qualname))
    if not isinstance(function, FunctionType):
        raise TypeError(f"{module}.{qualname} is not a function but {function!r}")
    return function


def _dump_graph(exc: BaseException, replaced: Mapping[int, Reduction]) -> Payload | None:
    """A list whose last item is `exc`, if it can be loaded again.

    Causes come before what they caused, so that a long chain needs no deep recursion.
    """
    try:
        payload = _dump(remote_exception.tied(exc)[::-1], replaced=replaced)
        loaded = loads(payload)[-1]
    except BaseException:
        return None
    return payload if isinstance(loaded, BaseException) else None


def _dump_degraded(exc: BaseException) -> Payload | None:
    try:
        culprits = [each for each in remote_exception.tied(exc) if not _survives_alone(each)]
        replaced = {id(each): remote_exception.degrade(each, _survives) for each in culprits}
    except BaseException:
        return None
    return _dump_graph(exc, replaced)


def _survives(value: object, replaced: Mapping[int, Reduction] | None = None) -> bool:
    try:
        loads(_dump(value, replaced=replaced))
    except BaseException:
        return False
    return True


def _survives_alone(exc: BaseException) -> bool:
    try:
        reduction = remote_exception.reduce(exc, alone=True)
    except BaseException:
        return False
    return _survives(exc, {id(exc): reduction})


def _load_graph(graph: Payload, summary: str) -> object:
    try:
        return loads(graph)[-1]
    except BaseException as exc:
        error = RuntimeError(f"{summary} (an exception that could not be loaded here)")
        error.__cause__ = exc
        return error
