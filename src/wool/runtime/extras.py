"""Packages that few need, and that are installed as extras."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def need(module: str, *, extra: str) -> Any:
    """A module of such a package. Raises `ImportError`, which says what to install."""
    try:
        return import_module(module)
    except ImportError as exc:
        raise ImportError(
            f"{module} can't be imported: {exc}; install the extra wool[{extra}]", name=exc.name
        ) from exc
