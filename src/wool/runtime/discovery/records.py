"""The files behind `LocalDiscovery`: one per worker, locked by whoever announces it.

A namespace is a directory, and a record is a file in it, named by the worker's uid. These rules
make it safe for any number of processes, any of which may die at any point:

- A record is written elsewhere, locked, and renamed into place, so it is never seen in part or
  unlocked. Its owner keeps it open, and with it the lock, for as long as it announces the worker.
- A record whose lock can be taken has lost its owner. Whoever notices removes it, holding the lock
  and having checked that the file of that name is still the one it locked.
- Who replaces a record of which it isn't the owner first takes its lock, if it can, so that nobody
  mistakes the new record for the dead one and removes it.
- Nobody ever waits for a lock. All of this is quick enough to be done on an event loop.
- An empty directory is removed by whoever leaves it, and made again by whoever needs it.

Drafts lie beside the namespaces and not in them, because a file moved out of a directory, or from
one name to another in it, may hold up watchdog's reports of everything else for half a second.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import time
from contextlib import closing, suppress
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple
from uuid import uuid4

from google.protobuf.message import DecodeError

from wool import protocol
from wool.runtime.discovery.descriptors import Descriptor
from wool.runtime.rundir import runtime_directory
from wool.runtime.worker.metadata import WorkerMetadata

logger = logging.getLogger("wool.discovery.local")

# Never waits, not even for the other end of a pipe.
READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
NAME: Final = re.compile("[0-9a-f]{32}")
ATTEMPTS: Final = 100
DESERTED: Final = 3600.0
"""Seconds after which a namespace that stayed empty is taken for one that nobody waits in."""


class Signature(NamedTuple):
    """Tells two versions of a record apart. The earlier announced sorts first."""

    mtime_ns: int
    inode: int
    size: int


class Sighting(NamedTuple):
    """A record as it was last seen. `metadata` is None if it makes no sense to us."""

    signature: Signature
    metadata: WorkerMetadata | None


class Directory:
    """The directory of a namespace, which need not exist.

    Its name is safe whatever the namespace, and different for each even where case doesn't count.
    """

    def __init__(self, namespace: str) -> None:
        digest = sha256(namespace.encode(errors="surrogatepass")).hexdigest()
        readable = re.sub("[^a-z0-9]+", "-", namespace.lower())[:48].strip("-")
        self._root = os.path.join(runtime_directory(), "discovery")
        self.path = os.path.join(self._root, f"{readable or 'namespace'}-{digest[:32]}")

    def make(self) -> None:
        for path in (self._root, self.path):
            with suppress(FileExistsError):
                os.mkdir(path, 0o700)

    def prune(self) -> None:
        """Remove it if it is empty."""
        for path in (self.path, self._root):
            with suppress(OSError):
                os.rmdir(path)

    def sweep(self) -> None:
        """Remove what dead processes left: drafts, and namespaces that nobody uses any more."""
        with suppress(OSError), os.scandir(self._root) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    _remove_if_dead(entry.path)
                else:
                    _remove_if_deserted(entry)
            os.rmdir(self._root)

    def names(self) -> set[str] | None:
        """What is in it, or None if there is no telling at the moment."""
        try:
            return set(os.listdir(self.path))
        except FileNotFoundError:
            return set()
        except OSError as exc:
            _warn_once(self.path, str(exc))
            return None

    def look(self, name: str, before: Sighting | None = None) -> Sighting | None:
        """The record of that name, or `before` if that is what it still is; None if it is gone.

        Removes it if its owner is gone. If it can't be opened it counts as unchanged.
        """
        path = self._path(name)
        if not NAME.fullmatch(name):
            _warn_once(path, "its name is not a worker's uid")
            return None
        while True:
            try:
                file = self.open(name)
            except OSError as exc:
                _warn_once(path, str(exc))
                return before
            if file is None:
                return None
            with closing(file):
                sighting = _see(path, file, before)
                if sighting.metadata is None or not file.lock():
                    return sighting
                if _bury(path, file):
                    return None

    def open(self, name: str) -> Descriptor | None:
        """The record of that name, to read or to lock; None if there is none."""
        try:
            return Descriptor(self._path(name), READ)
        except FileNotFoundError:
            return None

    def write(self, metadata: WorkerMetadata) -> Descriptor:
        """Write the worker's record, in place of the one there may be. It lasts until closed.

        Raises `TypeError` if the metadata can't be encoded, `OSError` if the file can't be written,
        and leaves the previous record as it is.
        """
        data = metadata.to_protobuf().SerializeToString()
        for _ in range(ATTEMPTS):
            self.make()
            # Someone may remove an empty directory just now, or a draft that isn't locked yet.
            with suppress(FileNotFoundError, BlockingIOError):
                return self._place(data, self._path(metadata.uid.hex))
        raise FileNotFoundError(errno.ENOENT, "keeps being removed by others", self.path)

    def open_itself(self) -> Descriptor:
        """The directory, made if need be, to be told whether it is still there."""
        for _ in range(ATTEMPTS):
            self.make()
            with suppress(FileNotFoundError):  # Someone may remove an empty directory just now.
                return Descriptor(self.path, os.O_RDONLY | os.O_DIRECTORY)
        raise FileNotFoundError(errno.ENOENT, "keeps being removed by others", self.path)

    def owns(self, name: str, record: Descriptor) -> bool:
        """Whether the record of that name is this one."""
        with suppress(FileNotFoundError):
            return record.is_at(self._path(name))
        return False

    def remove(self, name: str) -> None:
        """Remove the record of that name, if there is one."""
        with suppress(FileNotFoundError):
            os.unlink(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self.path}/{name}"

    def _place(self, data: bytes, path: str) -> Descriptor:
        draft = os.path.join(self._root, f".{uuid4().hex}")
        record = Descriptor(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            if not record.lock():
                raise BlockingIOError(errno.EWOULDBLOCK, "locked by another process", draft)
            with open(record.fd, "wb", closefd=False) as file:
                file.write(data)
            # The file system's own clock ticks too slowly to tell versions apart.
            os.utime(record.fd, ns=(time.time_ns(),) * 2)
            os.rename(draft, path)
        except BaseException as exc:
            if isinstance(exc, OSError) and exc.filename is None:
                exc.filename = draft
            with suppress(FileNotFoundError):
                os.unlink(draft)
            record.close()
            raise
        record.path = path
        record.announce()
        return record


def _see(path: str, file: Descriptor, before: Sighting | None) -> Sighting:
    status = os.fstat(file.fd)
    signature = Signature(status.st_mtime_ns, status.st_ino, status.st_size)
    if before is not None and before.signature == signature:
        return before
    try:
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        metadata = _parse(os.path.basename(path), file)
    except (OSError, DecodeError, TypeError, ValueError) as exc:
        _warn_once(path, f"{type(exc).__name__}: {exc}")
        return Sighting(signature, None)
    return Sighting(signature, metadata)


def _parse(name: str, file: Descriptor) -> WorkerMetadata:
    with open(file.fd, "rb", closefd=False) as stream:
        message = protocol.WorkerMetadata.FromString(stream.read())
    metadata = WorkerMetadata.from_protobuf(message)
    if metadata.uid.hex != name:
        raise ValueError(f"describes worker {metadata.uid}")
    return metadata


def _bury(path: str, file: Descriptor) -> bool:
    """Remove a record whose lock we have; False if another has taken its place."""
    try:
        if not file.is_at(path):
            return False
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as exc:
        _warn_once(path, str(exc))
    return True


def _remove_if_dead(path: str) -> bool:
    """Remove a file whose lock can be taken; whether it is gone."""
    try:
        file = Descriptor(path, READ)
    except OSError:
        return not os.path.lexists(path)
    with closing(file):
        # Shared, so that others who look at the same time don't take this one for its owner.
        return file.lock(shared=True) and _bury(path, file)


def _remove_if_deserted(namespace: os.DirEntry[str]) -> None:
    """Remove a namespace that has only dead records, or has had none for long."""
    with suppress(OSError):
        records = os.listdir(namespace.path)
        deserted = bool(records) or time.time() - namespace.stat().st_mtime > DESERTED
        if deserted and all(
            NAME.fullmatch(name) and _remove_if_dead(os.path.join(namespace.path, name))
            for name in records
        ):
            os.rmdir(namespace.path)


@lru_cache(maxsize=1024)
def _warn_once(path: str, reason: str) -> None:
    logger.warning("Passing over %s: %s", path, reason)
