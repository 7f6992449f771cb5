"""Which versions of wool work together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.version import Version


def parse_version(text: str) -> Version | None:
    """A PEP 440 version, or None if `text` isn't one."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(text)
    except InvalidVersion:
        return None


def is_version_compatible(client: Version | None, server: Version | None) -> bool:
    """Whether `client` may call `server`: same major version, and the server is not older.

    None, a version that could not be parsed, is compatible with nothing.
    """
    if client is None or server is None:
        return False
    return client.major == server.major and client <= server
