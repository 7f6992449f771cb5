"""One turn of one column: a process that is started, told to run a workload, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import uuid4

from benchmarks.columns import ROOT

if TYPE_CHECKING:
    from benchmarks.columns import Column

MARK = "WOOL_BENCHMARK_TURN"
"""The environment variable by which a turn's processes are known."""

HELLO = 60.0
"""Seconds that a driver may take to start."""

FAREWELL = 10.0
"""Seconds that a driver may take to end."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a turn: metrics, or the reason why there are none."""

    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    absent: str = ""
    """Why the column has no such thing."""
    failure: str = ""
    log: str = ""


class _Failed(Exception):
    pass


def take(column: Column, load: str, parameters: dict[str, Any], deadline: float) -> Outcome:
    """Have a column run a workload; whatever it does, nothing of it is left running."""
    mark = uuid4().hex
    with tempfile.TemporaryFile("w+") as log:
        try:
            process = subprocess.Popen(
                column.command(),
                cwd=ROOT,
                env={**os.environ, MARK: mark},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        except FileNotFoundError:
            return Outcome(absent=f"{column.python} is not there")
        try:
            return _converse(process, load, parameters, deadline)
        except _Failed as exc:
            log.seek(0)
            return Outcome(failure=str(exc), log=log.read()[-2000:])
        finally:
            _end(process, mark)


def _converse(
    process: subprocess.Popen[bytes], load: str, parameters: dict[str, Any], deadline: float
) -> Outcome:
    hello = _ask(process, {"do": "hello"}, HELLO)
    if "missing" in hello:
        return Outcome(absent=hello["missing"])
    request = {"do": "run", "load": load, "parameters": parameters}
    answer = _ask(process, request, deadline)
    if "error" in answer:
        raise _Failed(answer["error"])
    return Outcome(
        metrics=answer.get("metrics", {}),
        versions=hello["versions"],
        absent=answer.get("unsupported", ""),
    )


def _ask(process: subprocess.Popen[bytes], request: object, timeout: float) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
    answer: dict[str, Any] = json.loads(_read_line(process.stdout, timeout))
    return answer


def _read_line(pipe: IO[bytes], timeout: float) -> bytes:
    until = time.monotonic() + timeout
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(until - time.monotonic()):
                raise _Failed(f"no answer within {timeout:.0f} s")
            data = os.read(pipe.fileno(), 65536)
            if not data:
                raise _Failed("the driver ended without an answer")
            line += data
    return line


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(FAREWELL)
    for pid in _marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()
    process.stdout.close()


def _marked(mark: str) -> list[int]:
    """The processes of a turn, where there is /proc to tell."""
    needle = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if needle in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found
