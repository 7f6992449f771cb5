"""What to say of a module that is needed to load what has come, and is not to be found here."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

MOST_PLACES = 10
"""Entries of `sys.path` that are listed."""

_IMPORT = "<frozen importlib"
_LOADERS = frozenset({"wool", "cloudpickle", "importlib", "pickle"})


def refuse(exc: ModuleNotFoundError, where: str, *, by_value: bool = False) -> NoReturn:
    """Raise what says which module is missing to load what has come, and where it was looked for.

    `where` is the process that lacks it, `by_value` whether that could do without.
    """
    importer = _importer(exc)
    missing = f"{exc}, which {importer} imports," if importer else str(exc)
    advice = "Make it importable there"
    if by_value and exc.name and not importer:
        advice += (
            f", or have what it defines travel with the calls: WorkerPool(by_value=[{exc.name!r}])"
        )
    raise ModuleNotFoundError(
        f"{missing} in {where}. Its sys.path is {_describe_path()}. {advice}",
        name=exc.name,
        path=exc.path,
    ) from exc


def _importer(exc: ModuleNotFoundError) -> str | None:
    """The module whose code asked for it; None if it was what has come."""
    frames = [frame for frame, _ in traceback.walk_tb(exc.__traceback__)]
    for frame in reversed(frames):
        if not frame.f_code.co_filename.startswith(_IMPORT):
            name = str(frame.f_globals.get("__name__"))
            return None if name.partition(".")[0] in _LOADERS else name
    return None


def _describe_path() -> str:
    library = os.path.dirname(os.__file__)
    own = {library, os.path.join(library, "lib-dynload")}
    archive = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    places = [
        repr(each) for each in sys.path if each not in own and os.path.basename(each) != archive
    ]
    if len(places) > MOST_PLACES:
        places[MOST_PLACES:] = [f"{len(places) - MOST_PLACES} more"]
    return f"{', '.join(places)} and Python's own library"
