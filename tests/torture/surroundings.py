"""What some scenarios need around the process that they run in."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.torture.system import AHEAD

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOM = "64k"
"""How large the tiny disk is: for a dozen records."""

MOUNT = 'mount -t tmpfs -o size="$0" wool "$XDG_RUNTIME_DIR" && exec "$@"'


class Surroundings(NamedTuple):
    """What goes before a command and into its environment."""

    prefix: tuple[str, ...]
    environment: Mapping[str, str]


class ImpossibleError(Exception):
    """They can't be made here; says why."""


@contextmanager
def ordinary(directory: Path) -> Iterator[Surroundings]:
    """None in particular: a process that has done nothing else."""
    yield Surroundings((), {})


@contextmanager
def memory_given_back(directory: Path) -> Iterator[Surroundings]:
    """A C library that gives large payloads' memory back, so that what stays in use is ours.

    It does so by itself with what it has mapped, but raises the size from which on it maps.
    """
    yield Surroundings((), {"MALLOC_MMAP_THRESHOLD_": str(64 * 1024)})


@contextmanager
def tiny_disk(directory: Path) -> Iterator[Surroundings]:
    """A disk of 64 KiB for what wool keeps while it runs, mounted for that process alone."""
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    prefix = ("unshare", "--mount", *user, "sh", "-c", MOUNT, ROOM)
    _try(*prefix, "true")
    yield Surroundings(prefix, {})


@contextmanager
def clock_ahead(directory: Path) -> Iterator[Surroundings]:
    """A wall clock that can be set, by a library of ours in place of the system's functions.

    The others on this machine need the real one.
    """
    if sys.platform != "linux":
        raise ImpossibleError("libraries are preloaded on Linux only")
    library, ahead = directory / "clock.so", directory / "ahead"
    _try("cc", "-shared", "-fPIC", "-o", library, Path(__file__).with_name("clock.c"))
    ahead.write_bytes(bytes(8))
    yield Surroundings((), {"LD_PRELOAD": str(library), AHEAD: str(ahead)})


def _try(*command: str | Path) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except FileNotFoundError as exc:
        raise ImpossibleError(f"there is no {exc.filename}") from exc
    except subprocess.CalledProcessError as exc:
        raise ImpossibleError(f"{command[0]}: {exc.stderr.strip()}") from exc
