"""Memory for large buffers: copies of what may change, and room for what arrives.

The cost of large memory is less the copying than the page faults of its first use. So memory is
not filled with zeros before it is filled with data, and the kernel is asked for huge pages.
"""

from __future__ import annotations

import sys
from enum import IntEnum
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctypes import CDLL

Buffer = memoryview | bytes | bytearray

HUGE = 4 * 1024 * 1024
"""Bytes from which huge pages are worth asking for."""

PAGE = 4096
MADV_HUGEPAGE = 14


class Form(IntEnum):
    """What a buffer is, and is to be where it arrives."""

    BYTES = 0
    BYTEARRAY = 1
    VIEW = 2
    """A memoryview that can be written to."""

    @classmethod
    def of(cls, buffer: Buffer) -> Form:
        if isinstance(buffer, bytearray):
            return cls.BYTEARRAY
        return cls.BYTES if memoryview(buffer).readonly else cls.VIEW


class _Memory(BytesIO):
    """Is not closed by the garbage collector, which complains if views of it are left."""

    __slots__ = ()

    def close(self) -> None:
        pass


class Landing:
    """Room for a buffer of `size` bytes, filled from its start and then had without a copy."""

    __slots__ = ("_bytes", "_file", "_filled", "_form", "_size", "_view")

    def __init__(self, form: int, size: int) -> None:
        self._form = form
        self._size = size
        self._filled = 0
        if form == Form.BYTEARRAY:
            # One that has its size from the start is filled with zeros, all at once.
            self._bytes = bytearray()
        else:
            # Zeros fresh from the allocator, which a `BytesIO` that alone has them writes to.
            self._file = _Memory(bytes(size))
            self._view = self._file.getbuffer()
            if size >= HUGE:
                _advise(self._view)

    @property
    def left(self) -> int:
        """Bytes that it still has room for."""
        return self._size - self._filled

    def room(self, limit: int) -> memoryview:
        """The next bytes to be filled, at most `limit`; not to be kept."""
        start = self._filled
        self._filled += min(limit, self.left)
        if self._form == Form.BYTEARRAY:
            self._bytes += bytes(self._filled - start)
            return memoryview(self._bytes)[start:]
        return self._view[start : self._filled]

    def take(self) -> Buffer:
        """What has been filled."""
        if self._form == Form.BYTEARRAY:
            return self._bytes
        if self._form != Form.BYTES:
            return self._view
        self._view.release()
        return self._file.getvalue()


def copy(view: memoryview) -> Buffer:
    """What `view` holds now, to be kept: a bytearray of a bytearray or of little, else a view."""
    if view.nbytes < HUGE or isinstance(view.obj, bytearray):
        return bytearray(view)
    landing = Landing(Form.VIEW, view.nbytes)
    landing.room(view.nbytes)[:] = view
    return landing.take()


def _advise(view: memoryview) -> None:
    """Have huge pages behind `view`, if there are any to be had."""
    if sys.platform != "linux":
        return
    from ctypes import addressof, c_char

    start = addressof(c_char.from_buffer(view))
    aligned = -(-start // PAGE) * PAGE
    _libc().madvise(aligned, start + view.nbytes - aligned, MADV_HUGEPAGE)


@cache
def _libc() -> CDLL:
    from ctypes import CDLL, c_int, c_size_t, c_void_p

    libc = CDLL(None)
    libc.madvise.argtypes = c_void_p, c_size_t, c_int
    return libc
