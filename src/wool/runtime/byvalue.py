"""The modules whose functions and classes travel by value, as pools want it while they are entered.

Pickling goes by cloudpickle's registry, which is one for the whole process and does not count.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import cloudpickle

if TYPE_CHECKING:
    from collections.abc import Iterator

_lock = threading.Lock()
_holders: Counter[str] = Counter()
"""How many have registered a module."""


def check_modules(given: Any) -> tuple[ModuleType, ...]:
    """Modules given as such, or by their names.

    Raises `ValueError` for one that has not been imported, `TypeError` for anything else.
    """
    if isinstance(given, str | ModuleType) or not isinstance(given, Iterable):
        raise TypeError(
            f"by_value must be modules or names of modules, in a list for example, got {given!r}"
        )
    return tuple(map(_check, given))


def _check(given: object) -> ModuleType:
    if not isinstance(given, str | ModuleType):
        raise TypeError(f"by_value must be modules or names of modules, got {given!r}")
    name = given if isinstance(given, str) else given.__name__
    module = sys.modules.get(name)
    if module is None or (module is not given and not isinstance(given, str)):
        raise ValueError(f"by_value must be modules that have been imported, got {given!r}")
    return module


@contextmanager
def registered(modules: Iterable[ModuleType]) -> Iterator[None]:
    """Have what these modules and those below them define travel by value for a while."""
    held: list[ModuleType] = []
    try:
        with _lock:
            held.extend(module for module in modules if _hold(module))
        yield
    finally:
        with _lock:
            for module in held:
                _release(module)


def _hold(module: ModuleType) -> bool:
    """Tells whether it is to be released: what others have registered is left to them."""
    name = module.__name__
    if name not in _holders and name in cloudpickle.list_registry_pickle_by_value():
        return False
    _holders[name] += 1
    cloudpickle.register_pickle_by_value(module)
    return True


def _release(module: ModuleType) -> None:
    name = module.__name__
    _holders[name] -= 1
    if not _holders[name]:
        del _holders[name]
        if name in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.unregister_pickle_by_value(module)
