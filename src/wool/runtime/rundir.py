"""The user's private directory for what wool keeps in the file system while it runs."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def runtime_directory() -> Path:
    """The directory, made if need be: readable by this user alone and short enough for sockets.

    `$XDG_RUNTIME_DIR/wool`, or `wool-<user id>` in the temporary directory if that variable names
    no directory (which is common in containers and after `su`). Raises `PermissionError` if
    something there isn't this user's own private directory, `OSError` if it can't be made.
    """
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    user = os.geteuid()
    if os.path.isabs(base) and os.path.isdir(base):
        path = Path(base) / "wool"
    else:
        path = Path(tempfile.gettempdir()) / f"wool-{user}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except FileExistsError:
        status = None
    except OSError as exc:
        message = f"{exc.strerror}; point XDG_RUNTIME_DIR to a directory that wool can write to"
        raise OSError(exc.errno, message, str(path)) from exc
    if (
        status is None
        or not stat.S_ISDIR(status.st_mode)
        or status.st_uid != user
        or status.st_mode & 0o077
    ):
        raise PermissionError(
            f"{path} must be a directory owned by user {user} with mode 0700; "
            "remove it, or point XDG_RUNTIME_DIR to a private directory"
        )
    return path
