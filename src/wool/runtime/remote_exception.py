"""How exceptions are taken apart for pickling, and put together again in another process.

An exception is made blank, by the `__new__` of its nearest builtin base, and then filled: no
`__init__` or `__new__` written in Python runs on arrival, so these may have any signature. Blank
first also lets exceptions refer to each other in cycles. A class with a pickle protocol of its
own is left to that.

A traceback arrives as one whose frames have the original's file, function, line and columns, and
nothing else: no code, no variables.
"""

from __future__ import annotations

import ast
import contextlib
import copyreg
import dis
import traceback
from asyncio import CancelledError
from functools import lru_cache
from itertools import islice
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    TracebackType,
)
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Reduction = str | tuple[Any, ...]
_Frame = tuple[str, str, str, int, int, int, int]
_Links = tuple[list[_Frame], BaseException | None, BaseException | None, bool]
_Descriptor = MemberDescriptorType | GetSetDescriptorType

_NOT_FIELDS = {
    *(vars(BaseException)[f"__{name}__"] for name in ("cause", "context", "traceback", "dict")),
    vars(BaseException)["__suppress_context__"],
    vars(BaseExceptionGroup)["message"],
    vars(BaseExceptionGroup)["exceptions"],
    # Any object at all, wanted for "Did you mean" only. pickle leaves it out as well.
    vars(AttributeError)["obj"],
}
_OWN = {"__dict__", "__weakref__"}
_REDUCERS = {"__reduce__", "__reduce_ex__"}
_REPR_LIMIT = 1000


def is_ordinary(exc: object) -> bool:
    """Whether `exc` is an exception that may be raised in a caller on a worker's word."""
    return isinstance(exc, Exception | CancelledError | BaseExceptionGroup)


def ordinary(exc: BaseException) -> BaseException:
    """`exc`, or, if it is one that would end the caller's process, a `RuntimeError` due to it."""
    if is_ordinary(exc):
        return exc
    error = RuntimeError(f"routine raised {describe(exc)}")
    error.__cause__ = exc
    return error


def describe(exc: BaseException) -> str:
    """Type and message, whatever the message's code does."""
    name = type(exc).__qualname__
    message = _text(str, exc)
    return f"{name}: {message}" if message else name


def tied(exc: BaseException) -> list[BaseException]:
    """`exc` and the exceptions that are its cause, context or member, and so on; `exc` first."""
    found = [exc]
    seen = {id(exc)}
    for each in found:
        for other in (each.__cause__, each.__context__, *_members(each)):
            if other is not None and id(other) not in seen:
                seen.add(id(other))
                found.append(other)
    return found


def reduce(exc: BaseException, *, alone: bool = False) -> Reduction:
    """What a pickler's `reducer_override` returns for `exc`; `alone` without cause and context."""
    links = _links(exc, alone)
    if not _has_own_protocol(type(exc)):
        return _reduction(type(exc), exc, _fields(exc), vars(exc), links)
    reducer = copyreg.dispatch_table.get(type(exc))
    reduced = reducer(exc) if reducer else exc.__reduce_ex__(5)
    if isinstance(reduced, str):
        return reduced
    make, args, state, items, pairs, fill = (*reduced, None, None, None, None)[:6]
    return make, args, (state, fill, links), items, pairs, _fill_own


def raise_here(exc: BaseException) -> NoReturn:
    """Raise what was raised elsewhere.

    Its context stays as it came, and goes on with the exception that is being handled here, as if
    it had been raised here. A plain `raise` would put the latter in the former's place.
    """
    context = exc.__context__
    try:
        raise exc
    except BaseException:
        if context is not None and context is not exc.__context__:
            _last_context(context).__context__ = exc.__context__
            exc.__context__ = context
        raise
    finally:
        del exc, context  # Their traceback refers to this frame.


def _last_context(exc: BaseException) -> BaseException:
    seen = {id(exc)}
    while exc.__context__ is not None and id(exc.__context__) not in seen:
        exc = exc.__context__
        seen.add(id(exc))
    return exc


def degrade(exc: BaseException, survives: Callable[[object], bool]) -> Reduction:
    """The reduction of `exc` with what can't travel replaced, as far as `survives` can tell.

    Attributes and arguments become their repr. A class gives way to its nearest base that can
    travel, with the original's name and message for its argument. Notes say what was replaced.
    """
    notes: list[str] = []

    def portable(name: str, value: object) -> object:
        if survives(value):
            return value
        notes.append(f"{name} could not be pickled and arrived as its repr")
        return _text(repr, value)[:_REPR_LIMIT]

    cls = next(base for base in type(exc).__mro__ if _can_be_made(base) and survives(base))
    attributes = {name: portable(name, value) for name, value in vars(exc).items()}
    fields = _fields(exc)
    args = () if isinstance(exc, BaseExceptionGroup) else fields["args"]
    fields = {name: portable(name, value) for name, value in fields.items() if name != "args"}
    if cls is type(exc):
        fields["args"] = tuple(portable(f"argument {n}", v) for n, v in enumerate(args))
    else:
        fields["args"] = (describe(exc),)
        name = f"{type(exc).__module__}.{type(exc).__qualname__}"
        trace = "".join(traceback.format_exception(exc))
        notes.append(f"{name} could not be pickled and arrived as {cls.__qualname__}:\n{trace}")
    said = attributes.pop("__notes__", None)
    attributes["__notes__"] = [*(said if isinstance(said, list) else ()), *notes]
    return _reduction(cls, exc, fields, attributes, _links(exc))


def _reduction(
    cls: type,
    exc: BaseException,
    fields: dict[str, Any],
    attributes: dict[str, object],
    links: _Links,
) -> Reduction:
    make: tuple[object, ...] = (cls,)
    if isinstance(exc, BaseExceptionGroup):
        del fields["args"]
        message = exc.message if cls is type(exc) else f"{type(exc).__qualname__}: {exc.message}"
        make = cls, message, exc.exceptions
    return _blank, make, (fields, attributes, links), None, None, _fill


def _blank(cls: type, *group: Any) -> BaseException:
    if group:
        made: BaseException = BaseExceptionGroup.__new__(cls, *group)
        return made
    inherited = (vars(base).get("__new__") for base in cls.__mro__)
    new = next(found for found in inherited if isinstance(found, BuiltinFunctionType))
    blank: BaseException = new(cls)
    return blank


def _can_be_made(cls: type) -> bool:
    try:
        return issubclass(cls, BaseExceptionGroup) or isinstance(_blank(cls), BaseException)
    except BaseException:
        return False


def _fill(exc: BaseException, state: tuple[dict[str, object], dict[str, object], _Links]) -> None:
    fields, attributes, links = state
    descriptors = dict(_descriptors(type(exc)))
    for name, value in fields.items():
        with contextlib.suppress(AttributeError, KeyError, TypeError):
            descriptors[name].__set__(exc, value)
    vars(exc).update(attributes)
    _link(exc, links)


def _fill_own(exc: BaseException, packed: tuple[Any, Callable[..., object] | None, _Links]) -> None:
    state, fill, links = packed
    if fill is not None:
        fill(exc, state)
    elif state is not None:
        exc.__setstate__(state)
    _link(exc, links)


def _links(exc: BaseException, alone: bool = False) -> _Links:
    frames = [*_frames(exc.__traceback__)]
    if alone:
        return frames, None, None, exc.__suppress_context__
    return frames, exc.__cause__, exc.__context__, exc.__suppress_context__


def _link(exc: BaseException, links: _Links) -> None:
    """Past any `__setattr__` of the class: it may be a frozen dataclass."""
    frames, cause, context, suppress = links
    BaseException.with_traceback(exc, _traceback(frames))
    BaseException.__setattr__(exc, "__cause__", cause)
    BaseException.__setattr__(exc, "__context__", context)
    BaseException.__setattr__(exc, "__suppress_context__", suppress)


def _members(exc: BaseException) -> tuple[BaseException, ...]:
    return exc.exceptions if isinstance(exc, BaseExceptionGroup) else ()


def _has_own_protocol(cls: type) -> bool:
    """By which pickle would go. It ignores `__getstate__` and `__getnewargs__` of exceptions."""
    if cls in copyreg.dispatch_table:
        return True
    definers = (base for base in cls.__mro__ if _REDUCERS & vars(base).keys())
    return next(definers).__module__ != "builtins"


def _descriptors(cls: type) -> Iterator[tuple[str, _Descriptor]]:
    """What classes in C and `__slots__` keep outside of `__dict__`; the nearest base's last."""
    for base in cls.__mro__[-2::-1]:
        for name, found in vars(base).items():
            if isinstance(found, _Descriptor) and not (name in _OWN or found in _NOT_FIELDS):
                yield name, found


def _fields(exc: BaseException) -> dict[str, Any]:
    """None is left out: it is what a blank one has, and differs from it once set."""
    fields = {}
    for name, descriptor in _descriptors(type(exc)):
        with contextlib.suppress(BaseException):
            fields[name] = descriptor.__get__(exc)
    return {name: value for name, value in fields.items() if value is not None}


def _text(convert: Callable[[object], str], value: object) -> str:
    try:
        return convert(value)
    except BaseException:
        return object.__repr__(value)


def _frames(tb: TracebackType | None) -> Iterator[_Frame]:
    while tb is not None:
        code = tb.tb_frame.f_code
        module = str(tb.tb_frame.f_globals.get("__name__", ""))
        yield code.co_filename, code.co_name, module, *_position(code, tb)
        tb = tb.tb_next


def _position(code: CodeType, tb: TracebackType) -> tuple[int, int, int, int]:
    """First and last line, first and last column; -1 for columns that aren't known."""
    position = next(islice(code.co_positions(), tb.tb_lasti // 2, None), (None,) * 4)
    line, last_line, column, last_column = position
    if line is None or last_line is None or column is None or last_column is None:
        line = tb.tb_lineno or 1
        return line, line, -1, -1
    return line, last_line, column, last_column


def _traceback(frames: list[_Frame]) -> TracebackType | None:
    """Made of the frames of generators that have not run: those refer to no other frame.

    One that has run would keep alive all that is on the stack now, this exception included.
    """
    tb: TracebackType | None = None
    for filename, function, module, *position in reversed(frames):
        code, instruction = _stub(filename, function, *position)
        frame = FunctionType(code, {"__name__": module})().gi_frame
        tb = TracebackType(tb, frame, instruction, position[0])
    return tb


@lru_cache(maxsize=1024)
def _stub(
    filename: str, function: str, line: int, last_line: int, column: int, last_column: int
) -> tuple[CodeType, int]:
    """A generator's code with that name, and the offset of an instruction at that position."""
    place: dict[str, Any] = {
        "lineno": line,
        "end_lineno": last_line,
        "col_offset": column,
        "end_col_offset": last_column,
    }
    module = ast.parse("def stub(): yield")
    definition = module.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.body.append(ast.Raise(**place))
    code = next(c for c in compile(module, filename, "exec").co_consts if isinstance(c, CodeType))
    instruction = next(i for i in dis.get_instructions(code) if i.opname == "RAISE_VARARGS")
    return code.replace(co_name=function, co_qualname=function), instruction.offset
