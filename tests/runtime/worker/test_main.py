"""Workers of programs that end in all the ways programs end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.programs import Surroundings
from tests.support import eventually
from wool.runtime.worker import main

if TYPE_CHECKING:
    from collections.abc import Iterator

POOL = """
import asyncio, os, signal, sys
import wool

# Of a shell's background it would be one that is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
print("imported", flush=True)

@wool.routine
async def pid():
    return os.getpid()

@wool.routine
async def nap():
    await asyncio.sleep(600)

async def main():
    async with wool.WorkerPool(size=2):
        print(*{await pid() for _ in range(4)}, flush=True)
        await nap()

asyncio.run(main())
"""

WORKER = """
import asyncio
import wool

async def main():
    global worker
    worker = wool.LocalWorker()
    await worker.start()
    print(worker.metadata.pid, flush=True)

asyncio.run(main())
"""


@pytest.fixture
def surroundings() -> Iterator[Surroundings]:
    with Surroundings.make() as surroundings:
        yield surroundings


class Program:
    """A program with a pool of two workers and a call that never ends."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.process = subprocess.Popen(
            [sys.executable, surroundings.write("program.py", POOL)],
            cwd=surroundings.work,
            env=surroundings.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "imported\n"
        self.workers = [int(pid) for pid in self.process.stdout.readline().split()]

    def end(self) -> tuple[int, str, str]:
        output, errors = self.process.communicate(timeout=60)
        return self.process.returncode, output, errors


def sockets(surroundings: Surroundings) -> list[str]:
    return [path.name for path in (surroundings.runtime / "wool").glob("w*")]


async def test_parent_that_is_killed_leaves_nothing(surroundings: Surroundings) -> None:
    """A50: its workers remove their sockets, and the last of them what it had announced."""
    program = Program(surroundings)
    assert len(sockets(surroundings)) == 2
    os.kill(program.process.pid, signal.SIGKILL)
    assert program.end() == (-signal.SIGKILL, "", "")
    await eventually(lambda: not any(map(psutil.pid_exists, program.workers)), timeout=30)
    assert surroundings.left() == []


async def test_sockets_of_what_was_killed_together_go_with_the_next_start(
    surroundings: Surroundings,
) -> None:
    program = Program(surroundings)
    parent = psutil.Process(program.process.pid)
    family = [*parent.children(recursive=True), parent]
    for process in family:
        process.suspend()
    for process in family:
        process.kill()
    program.end()
    await eventually(lambda: not any(map(psutil.pid_exists, program.workers)), timeout=30)
    assert len(sockets(surroundings)) == 2
    assert surroundings.run(surroundings.write("next.py", WORKER)).code == 0
    await eventually(lambda: sockets(surroundings) == [], timeout=30)


async def test_interrupted_program_ends_with_its_workers(surroundings: Surroundings) -> None:
    """Suspicion 12: Ctrl-C in the terminal; the workers say nothing about it."""
    program = Program(surroundings)
    os.killpg(program.process.pid, signal.SIGINT)
    code, output, errors = program.end()
    assert (code, output) == (-signal.SIGINT, "")
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "wool/runtime/worker/main.py" not in errors
    assert surroundings.left() == []


@pytest.mark.parametrize("options", [[], ["-W", "error"], ["-X", "dev"]])
async def test_program_that_forgets_its_worker_ends(
    surroundings: Surroundings, options: list[str]
) -> None:
    """A52."""
    ended = surroundings.run(*options, surroundings.write("program.py", WORKER))
    assert ended.code == 0
    await eventually(lambda: not psutil.pid_exists(int(ended.output)), timeout=30)
    await eventually(lambda: sockets(surroundings) == [], timeout=30)


def test_program_that_takes_its_time_to_end_hears_nothing_of_a_forgotten_worker(
    surroundings: Surroundings,
) -> None:
    """Where a thread waits for processes, as in 3.11, asyncio tells of one that outlives a loop."""
    slow = f"import atexit, time\n\natexit.register(time.sleep, 2)\n{WORKER}"
    ended = surroundings.run(surroundings.write("program.py", slow))
    assert (ended.code, ended.errors) == (0, "")


FORKING = (
    WORKER
    + """
import os, time

if not (child := os.fork()):
    os.close(1)
    os.close(2)
    time.sleep(60)
    os._exit(0)
print(child)
"""
)


async def test_forgotten_worker_outlives_no_program_that_has_forked(
    surroundings: Surroundings,
) -> None:
    """The fork has the control pipe as well."""
    ended = surroundings.run(surroundings.write("program.py", FORKING))
    worker, child = map(int, ended.output.split())
    try:
        await eventually(lambda: not psutil.pid_exists(worker), timeout=30)
        assert psutil.pid_exists(child)
    finally:
        os.kill(child, signal.SIGKILL)
    await eventually(lambda: sockets(surroundings) == [], timeout=30)


LOCK = """
import asyncio, contextlib, os, sys
import uvloop
import wool

async def main():
    worker = wool.LocalWorker()
    await worker.start()
    directory = os.path.dirname(worker.metadata.address.removeprefix("unix:"))
    open_here = set()
    for descriptor in os.scandir(f"/proc/{worker.metadata.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            open_here.add(os.readlink(descriptor.path))
    print(directory in open_here)
    await worker.stop()

{"asyncio": asyncio, "uvloop": uvloop}[sys.argv[1]].run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_worker_inherits_the_lock_of_its_directory(surroundings: Surroundings, loop: str) -> None:
    """uvloop runs what is to run in forked processes before the worker's interpreter."""
    ended = surroundings.run(surroundings.write("program.py", LOCK), loop)
    assert (ended.code, ended.output) == (0, "True\n"), ended.errors


HANGING = """
import asyncio, functools, logging, os, sys, threading
import wool

def write_to_a_pipe_that_nobody_reads(written):
    logging.lastResort.acquire()
    written.set()
    threading.Event().wait()

@wool.routine
async def thread():
    written = threading.Event()
    target = write_to_a_pipe_that_nobody_reads
    threading.Thread(target=target, args=[written], daemon=True).start()
    written.wait()
    print(os.getpid(), flush=True)
    os.kill(os.getppid(), 9)

@wool.routine
async def routine():
    print(os.getpid(), flush=True)
    os.kill(os.getppid(), 9)
    write_to_a_pipe_that_nobody_reads(threading.Event())

async def main():
    worker = functools.partial(
        wool.LocalWorker, shutdown_grace_period=1.0, blocking_threshold=0.1
    )
    async with wool.WorkerPool(size=1, worker=worker):
        await globals()[sys.argv[1]]()

asyncio.run(main())
"""


@pytest.mark.parametrize("holder", ["thread", "routine"])
async def test_orphan_ends_whatever_its_routines_hold(
    surroundings: Surroundings, holder: str
) -> None:
    """That one is blocked is logged, and logging is shut down at last: both take the lock."""
    ended = surroundings.run(surroundings.write("program.py", HANGING), holder)
    await eventually(lambda: not psutil.pid_exists(int(ended.output)), timeout=30)


def test_worker_does_not_import_the_program_and_inherits_its_options(
    surroundings: Surroundings,
) -> None:
    """Without a guard; A worker prints what its routines print, and nothing else."""
    program = """
import asyncio, sys, warnings
import wool

print("imported")

@wool.routine
async def options():
    print("here", flush=True)
    return sys.warnoptions, sys.flags.optimize, sys.flags.dont_write_bytecode, sys._xoptions

async def main():
    async with wool.WorkerPool(size=1):
        print(*await options())

sys.stdout.reconfigure(line_buffering=True)
asyncio.run(main())
"""
    ended = surroundings.run(
        "-O",
        "-B",
        "-W",
        "error::UserWarning",
        "-W",
        "ignore::ResourceWarning",
        "-X",
        "utf8",
        surroundings.write("program.py", program),
    )
    assert ended.errors == ""
    assert ended.output.splitlines() == [
        "imported",
        "here",
        "['error::UserWarning', 'ignore::ResourceWarning'] 1 1 {'utf8': True}",
    ]
    assert surroundings.left() == []


def test_worker_started_by_hand_says_what_it_wants(surroundings: Surroundings) -> None:
    """The end of its control pipe is the end of its parent."""
    control, parent = os.pipe()
    report, worker = os.pipe()
    os.close(parent)
    command = [sys.executable, "-m", "wool.runtime.worker.main", str(control), str(worker)]
    process = subprocess.Popen(
        command, pass_fds=(control, worker), env=surroundings.environment, cwd=surroundings.work
    )
    os.close(control)
    os.close(worker)
    with os.fdopen(report, "rb") as pipe:
        assert pipe.read() == b"!EOFError: the parent has gone"
    assert process.wait(60) == 1


@pytest.mark.parametrize(
    ("host", "port", "address"),
    [("127.0.0.1", 80, "127.0.0.1:80"), ("::1", 80, "[::1]:80"), ("host", 1, "host:1")],
)
def test_address_of_a_host_and_a_port(host: str, port: int, address: str) -> None:
    assert main._join(host, port) == address
