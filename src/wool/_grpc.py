"""Imports gRPC the way wool needs it. gRPC reads its environment once, when it is imported.

How it polls is left to it. With its experiments `event_engine_client` and `event_engine_listener`
switched off a call takes less time, and now and then a process dies of corrupt memory when a
connection is closed whose peer doesn't read (gRPC 1.85).
"""

from __future__ import annotations

import os
from typing import Final

VERBOSITY: Final = "GRPC_VERBOSITY"
"""By default gRPC tells of every fork on stderr."""


def load() -> None:
    """Import gRPC, which tells of errors alone if the environment doesn't say otherwise."""
    said = VERBOSITY in os.environ
    os.environ.setdefault(VERBOSITY, "ERROR")
    try:
        import grpc  # noqa: F401
    finally:
        if not said:
            del os.environ[VERBOSITY]
