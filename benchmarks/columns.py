"""What is compared, and how the process of each is started."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

PUBLISHED = "wool==0.15.7"
PUBLISHED_PYTHON = Path(__file__).parent / ".venv-wool" / "bin" / "python"


@dataclass(frozen=True, slots=True)
class Column:
    """One thing compared: its `driver` is a class in a module of `benchmarks.drivers`."""

    key: str
    title: str
    module: str
    driver: str
    as_main: bool = False
    """Whether the module is run as `__main__` instead of being imported."""
    python: Path = Path(sys.executable)

    def command(self) -> list[str]:
        module = f"benchmarks.drivers.{self.module}"
        if self.as_main:
            return [str(self.python), "-m", module]
        code = (
            "from benchmarks.drivers.serving import serve_module; "
            f"serve_module({module!r}, {self.driver!r})"
        )
        return [str(self.python), "-c", code]


COLUMNS = {
    column.key: column
    for column in (
        Column("ours", "wool", "on_wool", "Wool"),
        Column("main", "wool, `__main__`", "on_wool", "Wool", as_main=True),
        Column("floor", "floor", "floor", "Floor"),
        Column("executor", "ProcessPoolExecutor", "on_executor", "Executor"),
        Column("distributed", "distributed", "on_distributed", "Distributed"),
        Column("ray", "ray", "on_ray", "Ray"),
        Column("aiomultiprocess", "aiomultiprocess", "on_aiomultiprocess", "AioMultiprocess"),
        Column(
            "published",
            "wool 0.15.7",
            "on_published_wool",
            "PublishedWool",
            python=PUBLISHED_PYTHON,
        ),
    )
}


def set_up_published() -> str | None:
    """Make the interpreter of the published wool, unless it is there; returns what went wrong."""
    done = PUBLISHED_PYTHON.parent.parent / ".installed"
    if done.exists() and done.read_text() == PUBLISHED:
        return None
    pip = [str(PUBLISHED_PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        for command in (
            [sys.executable, "-m", "venv", str(PUBLISHED_PYTHON.parent.parent)],
            [*pip, PUBLISHED, "numpy"],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as exc:
        return f"could not be installed: {exc.stderr.strip().splitlines()[-1:]}"
    done.write_text(PUBLISHED)
    return None
