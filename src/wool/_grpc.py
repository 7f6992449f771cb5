"""Imports gRPC the way wool needs it. gRPC reads its environment once, when it is imported."""

from __future__ import annotations

import os
from typing import Final

SETTINGS: Final = {"GRPC_VERBOSITY": "ERROR"}
"""By default gRPC tells of every fork on stderr.

It stays with its own way of polling. With its experiments `event_engine_client` and
`event_engine_listener` switched off a call takes less time, and now and then a process dies of
corrupt memory when a connection is closed whose peer doesn't read (gRPC 1.85).
"""


def load() -> None:
    """Import gRPC, with our settings where the environment has none."""
    absent = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    os.environ.update(absent)
    try:
        import grpc  # noqa: F401
    finally:
        for name in absent:
            del os.environ[name]
