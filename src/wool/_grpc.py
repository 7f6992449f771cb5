"""Imports gRPC the way wool needs it. gRPC reads its environment once, when it is imported."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from typing import Final

VERIFIED: Final = range(80, 86)
"""The minor versions of gRPC 1 that are known to have `DIRECT_POLLING`."""

DIRECT_POLLING: Final = "-event_engine_client,-event_engine_listener"
"""Has gRPC's Python threads poll sockets themselves instead of being woken by another thread.

A message takes a third less time. gRPC tells on stderr of names that it does not know.
"""


def load() -> None:
    """Import gRPC, with our settings where the environment has none."""
    # By default gRPC tells of every fork on stderr.
    settings = {"GRPC_VERBOSITY": "ERROR"}
    if _minor_version() in VERIFIED:
        settings["GRPC_EXPERIMENTS"] = DIRECT_POLLING
    absent = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(absent)
    try:
        import grpc  # noqa: F401
    finally:
        for name in absent:
            del os.environ[name]


def _minor_version() -> int | None:
    """gRPC's, without importing it; None if it isn't version 1, or unknown."""
    spec = find_spec("grpc")
    if spec is None or spec.origin is None:
        return None
    metadata = os.path.join(os.path.dirname(spec.origin), "_grpcio_metadata.py")
    if not os.path.exists(metadata):
        return None
    with open(metadata) as file:
        found = re.search(r'__version__ = """1\.(\d+)\.', file.read())
    return int(found[1]) if found else None
