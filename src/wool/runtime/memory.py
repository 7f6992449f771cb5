"""Memory for large buffers: copies of what may change, and room for what arrives.

The cost of large memory is less the copying than the page faults of its first use. So memory is
not filled with zeros before it is filled with data, and the kernel is asked for huge pages.
"""

from __future__ import annotations

import sys
from enum import IntEnum
from functools import cache
from io import BytesIO
from mmap import MAP_PRIVATE, mmap
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


class Landing:
    """Room for a buffer of `size` bytes, filled from its start and then had without a copy.

    No view of a `BytesIO` outlives a step: Python 3.12.1 crashes, and 3.13 complains, when its
    garbage collector finds one in a cycle.
    """

    __slots__ = ("_filled", "_form", "_memory", "_size")

    def __init__(self, form: int, size: int) -> None:
        self._form = form
        self._size = size
        self._filled = 0
        self._memory: BytesIO | bytearray | mmap
        if form == Form.BYTES:
            # Zeros fresh from the allocator, which a `BytesIO` that alone has them writes to.
            self._memory = BytesIO(bytes(size))
        elif form == Form.BYTEARRAY or size < HUGE:
            # One that has its size from the start is filled with zeros, all at once.
            self._memory = bytearray()
            return
        else:
            self._memory = mmap(-1, size, flags=MAP_PRIVATE)
        if size >= HUGE:
            with self._view() as view:
                _advise(view)

    @property
    def left(self) -> int:
        """Bytes that it still has room for."""
        return self._size - self._filled

    def room(self, limit: int) -> memoryview:
        """The next bytes to be filled, at most `limit`; not to be kept."""
        start = self._filled
        self._filled += min(limit, self.left)
        if isinstance(self._memory, bytearray):
            self._memory += bytes(self._filled - start)
        return self._view()[start : self._filled]

    def take(self) -> Buffer:
        """What has been filled."""
        if isinstance(self._memory, BytesIO):
            return self._memory.getvalue()
        if isinstance(self._memory, bytearray) and self._form == Form.BYTEARRAY:
            return self._memory
        return memoryview(self._memory)

    def _view(self) -> memoryview:
        memory = self._memory
        return memory.getbuffer() if isinstance(memory, BytesIO) else memoryview(memory)


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
