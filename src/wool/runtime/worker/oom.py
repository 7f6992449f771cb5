"""Whether the kernel has killed a process for want of memory, as Linux tells by its counters.

Of a process that was killed, the counters of its control group tell, whichever limit was reached.
Where there are none, those of the whole system do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path("/")
"""Where `proc` and `sys` are."""

_blamed = 0


class Watch:
    """A look at the counters, to be compared with another one later."""

    def __init__(self) -> None:
        self._before = _unexplained()

    def blames(self) -> bool:
        """Whether they tell of a process killed since, other than those asked about before."""
        global _blamed
        now = _unexplained()
        if self._before is None or now is None or now <= self._before:
            return False
        _blamed += 1
        return True


def _unexplained() -> int | None:
    count = kills()
    return None if count is None else count - _blamed


def kills() -> int | None:
    """How many processes the kernel has killed for want of memory; None if unknown.

    Those in the control group of this process, or else in the system.
    """
    for path in _counters():
        try:
            words = path.read_text().split()
        except (OSError, UnicodeError):
            continue
        if "oom_kill" in words[:-1]:
            return int(words[words.index("oom_kill") + 1])
    return None


def _counters() -> Iterator[Path]:
    """The files that may hold the counter, the most telling first.

    In a container, the group's path may be that on its host, and its directory the mount itself.
    """
    groups = ROOT / "sys/fs/cgroup"
    try:
        lines = (ROOT / "proc/self/cgroup").read_text().splitlines()
    except (OSError, UnicodeError):
        lines = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            yield from _files(groups, group, "memory.events")
            yield from _files(groups / "unified", group, "memory.events")
        elif "memory" in controllers.split(","):
            yield from _files(groups / "memory", group, "memory.oom_control")
    yield ROOT / "proc/vmstat"


def _files(mount: Path, group: str, name: str) -> tuple[Path, Path]:
    return mount / group.lstrip("/") / name, mount / name
