"""Who is told that something happened in a directory, and by whom.

A listener hears from two sources, and of a change maybe from both: from publishers in this process
at once, and of everybody's doings from watchdog, one observer for the whole process. Either merely
says where to look; what is to be seen there is in the directory alone. Watchdog is imported when a
listener first needs it, and its threads end with the last listener.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent, FileSystemEventHandler
    from watchdog.observers.api import BaseObserver, ObservedWatch

    from wool.runtime.discovery.records import Directory

logger = logging.getLogger("wool.discovery.local")


class Listener:
    """Collects the names of files to look at, for one iteration on the running loop.

    The name None stands for the directory as a whole.
    """

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._names: set[str | None] = set()
        self._woken = asyncio.Event()

    def hear(self, name: str | None) -> None:
        """To be called from any thread."""
        with self._lock:
            first = not self._names
            self._names.add(name)
        if first:
            with suppress(RuntimeError):  # The loop is closed.
                self._loop.call_soon_threadsafe(self._woken.set)

    async def wait(self, deadline: float) -> set[str | None]:
        """What was heard since the last call, at once or when there is something.

        Past the deadline, in terms of the loop's clock, it is the whole directory.
        """
        try:
            async with asyncio.timeout_at(deadline):
                await self._woken.wait()
        except TimeoutError:
            return {None}
        self._woken.clear()
        with self._lock:
            names, self._names = self._names, set()
        return names

    @property
    def is_stranded(self) -> bool:
        """Whether its loop was closed before it was."""
        return self._loop.is_closed()

    def abandon(self) -> None:
        """Remove it when its iteration is collected: anywhere, at any time, in any thread."""
        try:
            self._loop.call_soon_threadsafe(hub.remove, self)
        except RuntimeError:  # The loop is closed.
            threading.Thread(target=hub.remove, args=(self,)).start()


class _Watch:
    """Watchdog's handler of one directory."""

    handle: ObservedWatch

    def __init__(self, path: str) -> None:
        self.path = path
        self._inode = os.stat(path).st_ino
        self._lost = False

    @property
    def is_good(self) -> bool:
        """Whether what is watched is still what is there."""
        return not self._lost and os.stat(self.path).st_ino == self._inode

    def dispatch(self, event: FileSystemEvent) -> None:
        for path in filter(None, (os.fsdecode(event.src_path), os.fsdecode(event.dest_path))):
            if path == self.path:
                self._lost = True
                hub.announce(self.path, None)
            else:
                hub.announce(self.path, os.path.basename(path))


class Hub:
    """All listeners of this process, and the observer they share.

    The lock is never taken in a watchdog thread: we hold it when we wait for those to end.
    """

    def __init__(self) -> None:
        self.reset()
        os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        """Forget everything, for a child made by fork: it has none of its parent's threads."""
        self._lock = threading.Lock()
        self._listeners: dict[str, tuple[Listener, ...]] = {}
        self._watches: dict[str, _Watch] = {}
        self._observer: BaseObserver | None = None
        self._imported = False
        self._warned = False

    def add(self, listener: Listener) -> None:
        path = listener.directory.path
        with self._lock:
            stranded = [one for some in self._listeners.values() for one in some if one.is_stranded]
            self._listeners[path] = (*self._listeners.get(path, ()), listener)
        for one in stranded:
            self.remove(one)

    def remove(self, listener: Listener) -> None:
        """Remove a listener, if it is there, and with the last of a directory its watch."""
        path = listener.directory.path
        with self._lock:
            rest = tuple(one for one in self._listeners.get(path, ()) if one is not listener)
            if rest:
                self._listeners[path] = rest
            else:
                self._listeners.pop(path, None)
                self._unwatch(path)
                self._stop_if_idle()
        self.tidy(listener.directory)

    def announce(self, path: str, name: str | None) -> None:
        """Tell the listeners of a directory about a file in it, or about all of it."""
        for listener in self._listeners.get(path, ()):
            listener.hear(name)

    def tidy(self, directory: Directory) -> None:
        """Remove a directory if it is empty and nobody in this process listens there."""
        if directory.path not in self._listeners:
            directory.prune()

    def watch(self, directory: Directory) -> None:
        """See to it that the directory is there and watched; its listeners are told when it is.

        That is at once, or, as importing watchdog takes tens of milliseconds, soon after.
        """
        if self._imported:
            self._watch(directory)
        else:
            threading.Thread(target=self._watch, args=(directory,), name="wool-watch").start()

    def _watch(self, directory: Directory) -> None:
        try:
            import_module("watchdog.observers")
            if not self._imported:
                # It warns of directories that vanish, on stderr where logging is not set up.
                logging.getLogger("watchdog").addHandler(logging.NullHandler())
                self._imported = True
            with self._lock:
                renewed = self._renew(directory)
        except FileNotFoundError:
            return  # Somebody removed the directory just now; the next rescan is not far.
        except (ImportError, OSError, RuntimeError) as exc:
            self._imported = True
            self._warn(exc)
            return
        if renewed:
            self.announce(directory.path, None)

    def _renew(self, directory: Directory) -> bool:
        """Watch the directory unless we do, or nobody listens; whether that was news."""
        path = directory.path
        if path not in self._listeners:
            return False
        directory.make()
        old = self._watches.get(path)
        if old is not None and old.is_good:
            return False
        try:
            watch = _Watch(path)
            self._unwatch(path)
            self._schedule(watch)
            self._watches[path] = watch
        finally:
            self._stop_if_idle()
        return True

    def _schedule(self, watch: _Watch) -> None:
        from watchdog import events
        from watchdog.observers import Observer

        if self._observer is None:
            self._observer = Observer()
            self._observer.start()
        # Not what our own looking causes: opened, closed without having been written to.
        watch.handle = self._observer.schedule(
            cast("FileSystemEventHandler", watch),
            watch.path,
            event_filter=[
                events.FileCreatedEvent,
                events.FileMovedEvent,
                events.FileDeletedEvent,
                events.FileClosedEvent,
                events.DirDeletedEvent,
            ],
        )

    def _unwatch(self, path: str) -> None:
        watch = self._watches.pop(path, None)
        if watch is not None and self._observer is not None:
            self._observer.unschedule(watch.handle)

    def _stop_if_idle(self) -> None:
        if self._observer is not None and not self._watches:
            observer, self._observer = self._observer, None
            observer.stop()
            if observer.is_alive():
                observer.join()

    def _warn(self, exc: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "Can't watch for changes made by other processes, and will look for them from "
                "time to time: %s",
                exc,
            )


hub = Hub()
