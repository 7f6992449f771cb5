"""Resident sizes of processes, from /proc."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.drivers.base import Unsupported

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERVAL = 0.05


def resident(pid: int | None) -> int:
    """Bytes of a process, of this one if None."""
    try:
        text = Path(f"/proc/{pid or 'self'}/smaps_rollup").read_text()
    except FileNotFoundError as exc:
        raise Unsupported("resident sizes are read from /proc, which is not here") from exc
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line[:4] == "Rss:")


def residents() -> dict[int, int]:
    """The same of all processes that this one has started, and that those have."""
    found = {}
    parents: list[int | str] = ["self"]
    for parent in parents:
        with suppress(OSError, Unsupported):  # Some may end meanwhile.
            for listed in Path(f"/proc/{parent}/task").glob("*/children"):
                for child in map(int, listed.read_text().split()):
                    parents.append(child)
                    found[child] = resident(child)
    return found


class Peak:
    """The largest resident sizes that some processes had inside a `with` block."""

    def __init__(self, pids: Sequence[int | None]) -> None:
        self.sizes = [0 for _ in pids]
        self._pids = pids
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            sizes = [resident(pid) for pid in self._pids]
            self.sizes = list(map(max, self.sizes, sizes))
            if self._over.wait(INTERVAL):
                return
