"""Programs run in surroundings of their own, and what they leave there."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

ROOT = Path(__file__).parent.parent

SECONDS = 60
"""That a program may take, on a machine that is busy."""

PLACE = "XDG_RUNTIME_DIR"
"""The variable by which the processes of a program are told from others."""


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int
    output: str
    errors: str


class Surroundings:
    """Directories and an environment for programs: a work directory and those that wool uses."""

    def __init__(self, root: Path) -> None:
        self.work, self.runtime, self.temporary, home = (
            root / name for name in ("work", "runtime", "tmp", "home")
        )
        for directory in (self.work, self.runtime, self.temporary, home):
            directory.mkdir(mode=0o700)
        self._written: set[Path] = set()
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
        }
        self.environment |= {
            PLACE: str(self.runtime),
            "TMPDIR": str(self.temporary),
            "HOME": str(home),
            "JUPYTER_RUNTIME_DIR": str(home),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHON_BASIC_REPL": "1",
            "TERM": "dumb",
            "NO_COLOR": "1",
        }

    @classmethod
    @contextlib.contextmanager
    def make(cls) -> Iterator[Self]:
        """Ends the processes that are left when it is left."""
        # Not pytest's directory: a socket's path must be short.
        with tempfile.TemporaryDirectory(prefix="wool-", dir="/tmp") as root:
            surroundings = cls(Path(root).resolve())
            try:
                yield surroundings
            finally:
                for process in surroundings.processes():
                    with contextlib.suppress(psutil.Error):
                        process.kill()

    def write(self, name: str, text: str) -> Path:
        path = self.work / name
        path.write_text(text, encoding="utf-8")
        self._written.add(path)
        return path

    def run(self, *command: str | Path, input: str = "") -> Ended:
        """Run this Python with these arguments."""
        ended = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=self.work,
            env=self.environment,
            input=input,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def left(self) -> list[str]:
        """What is there besides the files written for the program: processes, sockets, files."""
        expected = self._written | {self.runtime / "wool"}
        places = (self.work, self.runtime, self.temporary)
        # Not `Path.rglob`, which fails when a directory goes meanwhile.
        files = {
            Path(directory, name)
            for place in places
            for directory, directories, names in os.walk(place)
            for name in (*directories, *names)
        } - expected
        return [*map(repr, self.processes()), *map(str, files)]

    async def emptied(self, timeout: float = 10) -> None:
        """Wait until nothing is left; `AssertionError` with what is after `timeout` seconds."""
        with contextlib.suppress(AssertionError):
            await eventually(lambda: not self.left(), timeout)
        assert not (left := self.left()), left

    def processes(self) -> list[psutil.Process]:
        """Those that run here."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(PLACE) == self.environment[PLACE]:
                    found.append(process)
        return found


FENCE = r'```(\w*)(?: title="([^"]*)")?'


class Block(NamedTuple):
    """A block of code on a page. `line` is that of its first line, `heading` the one above."""

    language: str
    text: str
    heading: str
    line: int
    title: str = ""


def blocks(page: Path) -> list[Block]:
    found = []
    heading, opened, lines = "", 0, [""]
    language, title = None, ""
    text = page.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        if language is None and line.startswith("#"):
            heading = line.lstrip("# ")
        elif language is None and (fence := re.fullmatch(FENCE, line)):
            language, title, opened, lines = fence[1], fence[2] or "", number + 1, []
        elif line == "```" and language is not None:
            found.append(Block(language, "\n".join(lines) + "\n", heading, opened, title))
            language = None
        else:
            lines.append(line)
    return found


def quickstart() -> str:
    """The program that a newcomer pastes."""
    return next(
        block.text
        for block in blocks(ROOT / "README.md")
        if (block.language, block.heading) == ("python", "Quickstart")
    )
