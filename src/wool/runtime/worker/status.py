"""What a worker says of itself when it is asked."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
import traceback
from dataclasses import dataclass
from inspect import isasyncgen
from typing import TYPE_CHECKING, Any
from uuid import UUID

from wool.runtime.worker import executor
from wool.runtime.worker.metadata import WorkerMetadata

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from wool import protocol
    from wool.runtime.worker.executor import RoutineLoop


@dataclass(frozen=True, slots=True)
class RunningTask:
    """A task that a worker runs.

    `tag` says where its routine is defined, `caller` which task has called it (None: none has),
    `seconds` for how long it has run, and `stack` where it is, as Python formats stacks.
    """

    id: UUID
    tag: str
    caller: UUID | None
    seconds: float
    stack: str


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """How a worker is.

    `draining` tells that it takes no more tasks. `uptime` is for how many seconds it has served,
    `idle` for how many it has had no task. `running`, `done`, `failed` (of those done, which raised
    something) and `refused` count tasks, `sessions` the event loops that call it. `loop_lag` is how
    many seconds its routine loop took to answer when last asked, or has not answered for. `cpu` is
    the processor time that its process has used, in seconds, `memory` what is resident of it, in
    bytes. `tasks` are those that run, the longest first, if they were asked for.
    """

    worker: WorkerMetadata
    draining: bool
    uptime: float
    idle: float
    running: int
    done: int
    failed: int
    refused: int
    sessions: int
    loop_lag: float
    cpu: float
    memory: int
    tasks: tuple[RunningTask, ...] = ()

    @classmethod
    def from_protobuf(cls, message: protocol.Status) -> WorkerStatus:
        return cls(
            worker=WorkerMetadata.from_protobuf(message.worker),
            draining=message.draining,
            uptime=message.uptime,
            idle=message.idle,
            running=message.running,
            done=message.done,
            failed=message.failed,
            refused=message.refused,
            sessions=message.sessions,
            loop_lag=message.loop_lag,
            cpu=message.cpu,
            memory=message.memory,
            tasks=tuple(map(_from_protobuf, message.tasks)),
        )


def _from_protobuf(task: protocol.RunningTask) -> RunningTask:
    caller = UUID(bytes=task.caller) if task.caller else None
    return RunningTask(UUID(bytes=task.id), task.tag, caller, task.seconds, task.stack)


def resident_memory() -> int:
    """Bytes of this process that are resident; where the system doesn't say, the most so far."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def stack_of(task: asyncio.Task[Any], routines: RoutineLoop) -> str:
    """Where a task of the routine loop is, without the frames that run it. From any thread."""
    if asyncio.current_task(routines.loop) is task:
        frames = list(_thread_frames(routines))
    else:
        frames = list(_awaited_frames(task.get_coro()))
    while frames and frames[0].f_code.co_filename in executor.OWN_FILES:
        del frames[0]
    lines = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)
    return "".join(lines.format())


def _thread_frames(routines: RoutineLoop) -> Iterator[FrameType]:
    """What the routine loop runs right now, from the task's own first frame on."""
    frame = sys._current_frames().get(routines.thread_id or 0)
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    frames.reverse()
    start = next((i for i, each in enumerate(frames) if each.f_code is executor.RUN), 0)
    yield from frames[start:]


def _awaited_frames(awaited: Any) -> Iterator[FrameType]:
    """Of a coroutine, of what it awaits, and so on."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is not None:
            yield frame
            awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
        else:  # A step of an async generator doesn't say of which.
            referents = gc.get_referents(awaited)
            awaited = next((each for each in referents if isasyncgen(each)), None)
