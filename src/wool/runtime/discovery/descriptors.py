"""The open files behind what a process announces, which it keeps locked and takes back at its end.

Apart from `records` so that workers, of which few announce anything, need not load that.
"""

from __future__ import annotations

import atexit
import fcntl
import os
from contextlib import suppress
from weakref import WeakSet


class Descriptor:
    """An open file, and with it the lock on it. Closed when it is collected at the latest.

    `path` is where it was opened, or where it was put since.
    """

    def __init__(self, path: str, flags: int) -> None:
        self.path = path
        self.fd = -1
        self._announces = False
        self.fd = os.open(path, flags, 0o600)

    def __del__(self) -> None:
        self.withdraw()
        self.close()

    def lock(self, *, shared: bool = False) -> bool:
        """Take the file's lock; False if somebody else has it, unless both want it `shared`."""
        try:
            fcntl.flock(self.fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def is_at(self, path: str) -> bool:
        """Whether this is the file at `path`. Raises `FileNotFoundError` if there is none."""
        return os.lstat(path).st_ino == os.fstat(self.fd).st_ino

    @property
    def is_removed(self) -> bool:
        """Whether what was opened is nowhere any more."""
        return os.fstat(self.fd).st_nlink == 0

    def announce(self) -> None:
        """Remove the file if this is open and the file in its place when nobody is left to do so.

        That is when this is collected, or the interpreter exits.
        """
        self._announces = True
        _owned.add(self)

    def withdraw(self) -> None:
        """Remove the file, if this announces it, and the directories that are empty then."""
        with suppress(OSError):
            if self._announces and self.fd >= 0 and self.is_at(self.path):
                os.unlink(self.path)
                os.rmdir(os.path.dirname(self.path))
                os.rmdir(os.path.dirname(os.path.dirname(self.path)))

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


_owned: WeakSet[Descriptor] = WeakSet()


def _disown() -> None:
    for record in list(_owned):
        record.close()


# A child made by fork shares its parent's locks, and would keep them when the parent is dead.
os.register_at_fork(after_in_child=_disown)


@atexit.register
def withdraw() -> None:
    """Remove what is still announced when the interpreter exits."""
    for record in list(_owned):
        record.withdraw()
