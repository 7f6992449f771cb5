"""Whether the kernel has killed for want of memory: its files, and its deed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.programs import Surroundings
from wool.runtime.worker import oom

if TYPE_CHECKING:
    from collections.abc import Iterator

EVENTS = """\
low 0
high 0
max 107
oom 3
oom_kill {}
oom_group_kill 9
"""

CONTROL = """\
oom_kill_disable 0
under_oom 0
oom_kill {}
"""

VMSTAT = """\
pgfault 1
oom_kill {}
drop_pagecache 2
"""

HUNGRY = """
import asyncio, os, signal, sys
import wool

@wool.routine
async def eat():
    meal = []
    while True:
        meal.append(bytearray(b"x" * 10_000_000))

@wool.routine
async def end():
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    with open(sys.argv[1], "w") as group:
        group.write(str(os.getpid()))
    async with wool.WorkerPool(size=1):
        for routine in (eat, end):
            try:
                await routine()
            except wool.WorkerLost as lost:
                print(lost.reason)

asyncio.run(main())
"""

V1 = "8:pids:/\n4:cpu,memory:/a/b\n1:name=systemd:/a/b\n0::/\n"
V2 = "0::/a/b:c\n"

GROUPS = Path("/sys/fs/cgroup")


def tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "count"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param({"proc/vmstat": VMSTAT.format(4)}, 4, id="system"),
        pytest.param({"proc/vmstat": "pgfault 1\noom_kill"}, None, id="cut-off"),
        pytest.param(
            {
                "proc/self/cgroup": V2,
                "proc/vmstat": VMSTAT.format(4),
                "sys/fs/cgroup/a/b:c/memory.events": EVENTS.format(2),
            },
            2,
            id="v2",
        ),
        pytest.param(
            {"proc/self/cgroup": V2, "sys/fs/cgroup/memory.events": EVENTS.format(3)},
            3,
            id="v2-in-a-container",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "proc/vmstat": VMSTAT.format(0)}, 0, id="v2-at-its-root"
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1,
                "proc/vmstat": VMSTAT.format(4),
                "sys/fs/cgroup/memory/memory.oom_control": CONTROL.format(1),
                "sys/fs/cgroup/memory/a/b/memory.oom_control": CONTROL.format(6),
            },
            6,
            id="v1",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/memory/memory.oom_control": CONTROL.format(1),
            },
            1,
            id="v1-in-a-container",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1,
                "proc/vmstat": VMSTAT.format(5),
                # As old kernels have it.
                "sys/fs/cgroup/memory/a/b/memory.oom_control": "under_oom 0\n",
            },
            5,
            id="v1-without-a-counter",
        ),
    ],
)
def test_counters(
    files: dict[str, str], count: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree(tmp_path, files)
    monkeypatch.setattr(oom, "ROOT", tmp_path)
    assert oom.kills() == count


def test_counters_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(oom, "ROOT", tmp_path)
    watch = oom.Watch()
    assert not watch.blames()
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_bytes(b"\xff")
    (tmp_path / "proc/vmstat").write_text(VMSTAT.format(1))
    assert oom.kills() == 1
    assert not watch.blames()


def test_counters_of_this_machine() -> None:
    count = oom.kills()
    assert count is None or count >= 0


@pytest.fixture
def limited_group() -> Iterator[Path]:
    """A control group of 300 MiB, which programs may join."""
    v1 = (GROUPS / "memory").is_dir()
    group = GROUPS / ("memory" if v1 else "") / f"wool-{uuid4().hex}"
    try:
        group.mkdir()
    except OSError as exc:
        pytest.skip(f"no control group can be made: {exc}")
    try:
        limit = group / ("memory.limit_in_bytes" if v1 else "memory.max")
        if not os.access(limit, os.W_OK):
            pytest.skip("no control group can be limited")
        limit.write_text(str(300 * 1024 * 1024))
        yield group
    finally:
        group.rmdir()


def test_worker_killed_for_want_of_memory(limited_group: Path) -> None:
    with Surroundings.make() as surroundings:
        program = surroundings.write("hungry.py", HUNGRY)
        ended = surroundings.run(program, limited_group / "cgroup.procs")
        assert ended.errors == ""
        assert ended.output.splitlines() == [
            "its process was killed by signal SIGKILL, probably by the kernel, for want of memory",
            "its process was killed by signal SIGKILL",
        ]
        assert surroundings.left() == []
